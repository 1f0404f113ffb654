//! Layer normalisation with frozen scale and shift.

use burn::tensor::{Tensor, module::layer_norm};

/// Normalise over the last axis: `(x - μ) / sqrt(σ² + eps) · w + b`, biased variance.
#[derive(Clone, Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor<1>,
    bias: Tensor<1>,
    eps: f64,
}

impl LayerNorm {
    /// Take scale and shift, each `[channels]`.
    pub(crate) fn new(weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Self {
        Self { weight, bias, eps }
    }

    /// `[..., channels]` to the same shape.
    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        layer_norm(x, self.weight.clone(), Some(self.bias.clone()), self.eps)
    }
}
