//! The hot operations over frozen weights, each in two forms.
//!
//! The portable form is made of Burn tensors, for every device.
//! The fast form, on the CPU, calls the project's kernels over weights packed once, a whole residual block at a
//! time, a ResNet's all at once (part by part where something is learnt inside one of convolutions), with a backward pass
//! of its own (`lotep-frozen`). An operation picks its form when it takes its weights, and holds
//! them in that form only: linear weights transposed or packed, norms folded into what is next to them. Weights are
//! stored outside autodiff: where a tracked activation meets them, Burn takes them as constants.
//!
//! Weights inside autodiff are those whose own gradients are wanted. ResNets' stems and blocks and plain transformer blocks
//! have a fast form for them too, which is packed anew at every step; everything else is portable then.

mod attention;
mod conv;
mod conv_update;
mod convnext;
mod dropout;
mod fast;
mod frozen_conv;
mod held;
mod inside;
#[cfg(test)]
mod inside_parity;
mod learnt;
mod linear;
mod mbconv;
mod nonlinearity;
mod norm;
mod normalise;
mod patch_embed;
mod patch_merge;
mod patch_stem;
mod prompt;
mod residual;
mod scope;
mod stem;
mod thin;
mod training;
mod transformer;

use burn::tensor::{DType, Device, Tensor};
use lotep_frozen::{Dense, Kernel};
use lotep_kernels::conv::Shape;

use crate::{Result, input_error};

pub use conv::{BatchNorm, Conv2d};
pub use conv_update::ConvUpdate;
pub use convnext::{ConvNextBlock, ConvNextUpdates, ConvNextWeights, NormDown};
pub use dropout::Dropout;
pub use inside::{Inside, LowRank};
pub use linear::Linear;
pub use lotep_frozen::{Halving, Precision, Windows};
pub use mbconv::{ConvStem, MbConv, MbConvUpdates, MbConvWeights};
pub use nonlinearity::Nonlinearity;
pub(crate) use norm::LayerNorm;
pub(crate) use normalise::Normalise;
pub use patch_embed::PatchEmbed;
pub use patch_merge::PatchMerge;
pub use patch_stem::PatchStem;
pub use prompt::{Factors, Product, Prompt};
pub use residual::{ConvNorm, ResidualBlock, ResidualUpdates, mean_pixels};
pub use scope::{Scope, relative_bias};
pub use stem::{Below, ImageStem};
pub(crate) use thin::thin_product;
pub use training::{BatchStatistics, DropPath, Training};
pub use transformer::{Shrink, TransformerBlock, TransformerWeights};

pub(crate) use attention::attention;

/// The precision that `auto` means on `device`: bfloat16 where products of it are faster.
///
/// # Errors
/// The environment asks for an instruction set that this machine lacks.
pub fn auto_precision(device: &Device) -> Result<Precision> {
    let isa = lotep_kernels::Isa::from_environment().map_err(|e| input_error!("{e}"))?;
    let fast = if is_cpu(device) { isa.has_fast_bf16() } else { multiplies_bf16(device) };
    Ok(if fast { Precision::Bf16 } else { Precision::F32 })
}

/// Whether a device other than the CPU multiplies bfloat16 as it is.
fn multiplies_bf16(device: &Device) -> bool {
    device.supports_dtype(DType::BF16)
}

/// Rounding of tensors to a precision.
trait Round {
    /// An operand of a matrix product, rounded. It is kept in bfloat16 on a device that multiplies it, and in f32
    /// elsewhere, where the product is one of f32.
    fn round<const D: usize>(self, x: Tensor<D>) -> Tensor<D>;

    /// The result of a product of rounded operands, in f32.
    fn widen<const D: usize>(self, y: Tensor<D>) -> Tensor<D>;
}

impl Round for Precision {
    fn round<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::F32 => x,
            Self::Bf16 => {
                let device = x.device();
                let x = x.cast(DType::BF16);
                if !is_cpu(&device) && multiplies_bf16(&device) { x } else { x.cast(DType::F32) }
            }
        }
    }

    fn widen<const D: usize>(self, y: Tensor<D>) -> Tensor<D> {
        match self {
            Self::F32 => y,
            Self::Bf16 => y.cast(DType::F32),
        }
    }
}

/// How a network computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compute {
    /// What the operands of products are rounded to.
    pub precision: Precision,
    /// Use the portable form where there is a fast one, too.
    pub portable: bool,
    /// In the fast form, keep only each block's input for the backward pass and compute the block again there.
    pub recompute: bool,
}

impl Compute {
    /// Whether an operation with this weight takes its fast form.
    fn is_fast<const D: usize>(self, weight: &Tensor<D>) -> bool {
        self.is_fast_at_all(weight) && !weight.is_autodiff()
    }

    /// Whether it takes the fast form in which the weight is learnt, where it has one.
    fn learns_fast<const D: usize>(self, weight: &Tensor<D>) -> bool {
        self.is_fast_at_all(weight) && weight.is_autodiff()
    }

    fn is_fast_at_all<const D: usize>(self, weight: &Tensor<D>) -> bool {
        !self.portable && is_cpu(&weight.device())
    }
}

impl From<Precision> for Compute {
    fn from(precision: Precision) -> Self {
        Self { precision, ..Self::default() }
    }
}

/// Whether a device computes on the CPU with the fast forms at hand.
pub(crate) fn is_cpu(device: &Device) -> bool {
    device.clone().without_autodiff() == Device::flex()
}

/// A tensor's values, in order.
fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.without_autodiff().into_data().iter::<f32>().collect()
}

/// A layer's weight `[out, in]` and bias for the fast form.
fn dense(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Dense {
    let outputs = weight.dims()[0];
    Dense { weight: host(weight), bias: bias.map(host).unwrap_or_default(), outputs }
}

/// The same for a kernel `[out, in, side, side]`.
fn kernel(weight: Tensor<4>, bias: Option<Tensor<1>>, stride: usize, padding: usize) -> Kernel {
    let [outputs, inputs, side, _] = weight.dims();
    let shape = Shape { inputs, outputs, side, stride, padding };
    Kernel { shape, weight: host(weight), bias: bias.map(host).unwrap_or_default() }
}

/// A prompt `[C, H, W]` as rows `[tokens, C]`: patches row by row, and zeros for the class token unless the
/// prompt covers it (as a sequence, H · W = tokens).
pub(crate) fn token_rows(prompt: Tensor<3>, tokens: usize) -> Tensor<2> {
    let [c, h, w] = prompt.dims();
    let rows = prompt.permute([1, 2, 0]).reshape([h * w, c]);
    if h * w == tokens {
        return rows;
    }
    let class_token = Tensor::zeros([tokens - h * w, c], &rows.device());
    Tensor::cat(vec![class_token, rows], 0)
}
