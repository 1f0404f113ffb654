//! The hot operations over frozen weights, in their portable form: Burn tensors, every device.
//!
//! Each operation owns its weights, prepared once for a network that never changes (linear weights transposed,
//! batch norms folded into the convolution before them), and lives in one file, so that a faster form for a
//! particular machine has one place to go. Weights are stored outside autodiff: where a tracked activation meets
//! them, Burn takes them as constants.

mod attention;
mod conv;
mod frozen_conv;
mod linear;
mod norm;

use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

pub use attention::attention;
pub use conv::{BatchNorm, Conv2d, max_pool_3x3_s2};
pub use linear::Linear;
pub use norm::LayerNorm;

/// What the operands of matrix products are rounded to. Everything else (residual stream, norms, softmax,
/// loss, prompts) is f32 in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Full single precision.
    #[default]
    #[serde(alias = "auto")]
    F32,
    /// Operands rounded to bfloat16, products accumulated in f32.
    Bf16,
}

impl Precision {
    /// Round an operand of a matrix product.
    pub(crate) fn round<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::F32 => x,
            Self::Bf16 => x.cast(DType::BF16).cast(DType::F32),
        }
    }
}

/// A prompt `[C, H, W]` as rows `[tokens, C]`: patches row by row, and zeros for the class token unless the
/// prompt covers it (as a sequence, H · W = tokens).
pub(crate) fn token_rows(prompt: Tensor<3>, tokens: usize) -> Tensor<2> {
    let [c, h, w] = prompt.dims();
    let rows = prompt.reshape([c, h * w]).transpose();
    if h * w == tokens {
        return rows;
    }
    let class_token = Tensor::zeros([tokens - h * w, c], &rows.device());
    Tensor::cat(vec![class_token, rows], 0)
}
