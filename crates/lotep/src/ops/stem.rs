//! The entrance of a residual network.

use std::sync::Arc;

use burn::tensor::{Tensor, activation::relu};
use lotep_kernels::conv::Shape;
use lotep_kernels::stem::ImageConv;
use lotep_kernels::{Operand, bf16};

use super::conv::{Conv2d, folded, max_pool_3x3_s2};
use super::fast::{self, FrozenOp, Stem};
use super::{Compute, ConvNorm, Precision, host};

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
    /// The whole in its fast form, and the convolution alone to fold images with.
    Fast(Packed, Arc<dyn FrozenOp>, Conv2d),
}

#[derive(Clone)]
enum Packed {
    F32(Stem<f32>),
    Bf16(Stem<bf16>),
}

impl Packed {
    fn with_offset(&self, offset: Vec<f32>) -> Arc<dyn FrozenOp> {
        match self {
            Self::F32(op) => Arc::new(Stem { offset, ..op.clone() }),
            Self::Bf16(op) => Arc::new(Stem { offset, ..op.clone() }),
        }
    }
}

impl ImageStem {
    /// Take the convolution.
    pub fn new(conv: ConvNorm, compute: Compute) -> Self {
        let (padding, stride, precision) = (conv.kernel.dims()[2] / 2, conv.stride, compute.precision);
        if !compute.is_fast(&conv.kernel) {
            let conv = Conv2d::with_norm(conv.kernel, conv.norm, stride, padding, precision);
            return Self(Form::Portable(conv, None));
        }
        let (kernel, bias) = folded(conv.kernel, conv.norm);
        let packed = match precision {
            Precision::F32 => Packed::F32(packed(&kernel, &bias, stride)),
            Precision::Bf16 => Packed::Bf16(packed(&kernel, &bias, stride)),
        };
        let conv = Conv2d::new(kernel, Some(bias), stride, padding, precision);
        Self(Form::Fast(packed.clone(), packed.with_offset(Vec::new()), conv))
    }

    /// Images `[B, 3, H, W]` to maps `[B, C, H/4, W/4]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.0 {
            Form::Fast(_, op, _) => {
                let y: Tensor<4> = fast::apply(op, false, x, None::<Tensor<1>>);
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
            Form::Fast(packed, _, conv) => {
                let offset = host(conv.linear_part(image).permute([0, 2, 3, 1]));
                Form::Fast(packed.clone(), packed.with_offset(offset), conv.clone())
            }
        })
    }
}

fn packed<T: Operand>(kernel: &Tensor<4>, bias: &Tensor<1>, stride: usize) -> Stem<T> {
    let [outputs, inputs, side, _] = kernel.dims();
    let shape = Shape { inputs, outputs, side, stride, padding: side / 2 };
    let conv = Arc::new(ImageConv::new(shape, &host(kernel.clone())));
    Stem { conv, bias: host(bias.clone()), offset: Vec::new() }
}
