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

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::fixtures::assert_close;
    use crate::ops::{BatchNorm, Compute, ConvNorm, ResidualBlock};
    use crate::params::normal;

    fn made<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
        let values = normal(shape.iter().product(), 0.3, &mut ChaCha8Rng::seed_from_u64(seed));
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn flat<const D: usize>(x: Tensor<D>) -> Vec<f32> {
        x.without_autodiff().into_data().iter::<f32>().collect()
    }

    /// Residual blocks take prompts of every kind side by side, and give the gradients of what each is made of, as the
    /// portable form does, which asks for whole ones.
    #[test]
    fn blocks_give_the_gradients_of_parts() {
        const SHAPE: [usize; 4] = [2, 12, 7, 5];
        let outcome = |portable: bool| {
            let compute = Compute { portable, ..Compute::default() };
            let device = Device::flex();
            let conv = |seed| {
                let [weight, bias, mean] = [1, 2, 3].map(|own| made([12], seed + own, &device));
                let var = made([12], seed + 4, &device).square() + 0.5;
                let norm = BatchNorm { weight: weight + 1.0, bias, mean, var, eps: 1e-5, batch: None };
                ConvNorm { kernel: made([12, 12, 3, 3], seed, &device) * 0.3, norm, stride: 1 }
            };
            let blocks: Vec<_> = (0..4)
                .map(|i| ResidualBlock::new(vec![conv(20 * i), conv(20 * i + 10)], None, compute))
                .collect();
            let device = device.autodiff();
            let x = made(SHAPE, 100, &device).require_grad();
            let whole = made([12, 7, 5], 101, &device).require_grad();
            let factors = [(3, 102), (1, 104)].map(|(rank, seed)| {
                let [pixels, channels] =
                    [made([35, rank], seed, &device), made([rank, 12], seed + 1, &device)];
                [pixels.require_grad(), channels.require_grad()]
            });
            let [first, last] = factors
                .clone()
                .map(|[pixels, channels]| Prompt::Product(Product::new(pixels, channels, [7, 5])));
            let prompts = vec![Some(first), None, Some(whole.clone().into()), Some(last)];
            let y = ResidualBlock::stretch(&blocks.iter().collect::<Vec<_>>(), x.clone(), prompts);
            let grads = (y.clone() * made(SHAPE, 110, &device)).sum().backward();
            let mut all = vec![flat(y), flat(x.grad(&grads).unwrap()), flat(whole.grad(&grads).unwrap())];
            all.extend(factors.into_iter().flatten().map(|factor| flat(factor.grad(&grads).unwrap())));
            all
        };
        for (i, (fast, portable)) in outcome(false).iter().zip(&outcome(true)).enumerate() {
            assert!(fast.iter().any(|v| *v != 0.0), "{i}");
            assert_close(fast, portable, if i == 0 { 1e-5 } else { 5e-5 }, &format!("{i}"));
        }
    }
}
