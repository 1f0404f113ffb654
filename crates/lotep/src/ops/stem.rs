//! The entrance of a residual network.

use std::sync::Arc;

use burn::tensor::{Tensor, activation::relu};
use lotep_frozen::Entrance;

use super::conv::{Conv2d, max_pool_3x3_s2};
use super::{Compute, ConvNorm, fast, host};

/// `max_pool(relu(conv(x)))`, the pooling 3 × 3 with stride 2 and padding 1.
///
/// A folded image prompt becomes a map that is added behind the convolution, not a bias: zero padding makes it differ
/// at the borders.
#[derive(Clone)]
pub struct ImageStem(Form);

#[derive(Clone)]
enum Form {
    /// The convolution, and what a folded image adds, `[1, C, H, W]`.
    Portable(Conv2d, Option<Tensor<4>>),
    Fast(Arc<dyn Entrance>),
}

impl ImageStem {
    /// Take the convolution.
    pub fn new(conv: ConvNorm, compute: Compute) -> Self {
        let (padding, stride, precision) = (conv.kernel.dims()[2] / 2, conv.stride, compute.precision);
        if !compute.is_fast(&conv.kernel) {
            let conv = Conv2d::with_norm(conv.kernel, conv.norm, stride, padding, precision);
            return Self(Form::Portable(conv, None));
        }
        Self(Form::Fast(lotep_frozen::Stem { conv: conv.plain() }.pack(precision)))
    }

    /// Images `[B, 3, H, W]` to maps `[B, C, H/4, W/4]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.0 {
            Form::Fast(op) => {
                let y: Tensor<4> = fast::apply(op.clone(), false, x, None::<Tensor<1>>);
                y.permute([0, 3, 1, 2])
            }
            Form::Portable(conv, offset) => {
                let y = conv.forward(x);
                let y = match offset {
                    Some(offset) => y + offset.clone(),
                    None => y,
                };
                max_pool_3x3_s2(relu(y))
            }
        }
    }

    /// The same with an image `[1, 3, H, W]` added to every input.
    #[must_use]
    pub fn with_added(&self, image: Tensor<4>) -> Self {
        Self(match &self.0 {
            Form::Portable(conv, _) => Form::Portable(conv.clone(), Some(conv.linear_part(image))),
            Form::Fast(op) => {
                let shape = image.dims();
                Form::Fast(op.with_offset(op.linear_part(&host(image), &shape)))
            }
        })
    }
}
