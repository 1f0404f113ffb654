//! What is added to a feature map, or to a grid of tokens, as it enters a block.

use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;

use super::thin_product;

/// A prompt `[C, H, W]`, shared by all samples, as a whole or as a product.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Its values.
    Whole(Tensor<3>),
    /// The product of two thin matrices.
    Product(Product),
}

/// `P[i,j,k] = Σ_t pixels[(j,k),t] channels[t,i]`.
///
/// Its values lie as the activations do that they are added to, pixel by pixel, and are computed when somebody asks, once. The
/// fast form of residual blocks does not ask: it takes the factors, and gives their gradients.
#[derive(Clone, Debug)]
pub struct Product {
    pixels: Tensor<2>,
    channels: Tensor<2>,
    size: [usize; 2],
    whole: Arc<OnceLock<Tensor<3>>>,
}

impl Product {
    /// Of pixels `[H · W, r]` and channels `[r, C]`.
    ///
    /// # Panics
    /// They are not of one rank, or of none, or the map is of another size.
    pub fn new(pixels: Tensor<2>, channels: Tensor<2>, size: [usize; 2]) -> Self {
        assert_eq!(pixels.dims(), [size[0] * size[1], channels.dims()[0]], "a prompt's pixels and rank");
        assert!(channels.dims()[0] > 0, "a prompt's rank");
        Self { pixels, channels, size, whole: Arc::default() }
    }

    fn whole(&self) -> Tensor<3> {
        if let Some(made) = self.whole.get() {
            return made.clone();
        }
        let [[h, w], [_, channels]] = [self.size, self.channels.dims()];
        let product = thin_product(self.pixels.clone(), self.channels.clone());
        // Computed before the cell is asked to wait: the thread may meanwhile take up another task that asks for the same.
        let whole = product.reshape([h, w, channels]).permute([2, 0, 1]);
        self.whole.get_or_init(|| whole).clone()
    }
}

impl Prompt {
    /// Its values `[C, H, W]`.
    pub fn whole(self) -> Tensor<3> {
        match self {
            Self::Whole(values) => values,
            Self::Product(product) => product.whole(),
        }
    }

    /// What it is made of, pixel by pixel: its values `[H · W, C]`, or its factors `[H · W, r]` and `[r, C]`.
    pub(super) fn parts(self) -> [Option<Tensor<2>>; 2] {
        match self {
            Self::Whole(values) => [Some(values.flatten::<2>(1, 2).transpose()), None],
            Self::Product(Product { pixels, channels, .. }) => [Some(pixels), Some(channels)],
        }
    }
}

impl From<Tensor<3>> for Prompt {
    fn from(values: Tensor<3>) -> Self {
        Self::Whole(values)
    }
}
