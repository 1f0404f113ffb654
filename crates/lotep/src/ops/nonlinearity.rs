//! The functions between layers.

use burn::tensor::{Tensor, activation};
use lotep_kernels::gemm::Activation;
use serde::{Deserialize, Serialize};

/// A function applied to each value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nonlinearity {
    /// `x Φ(x)`, exact.
    #[default]
    Gelu,
    /// `x σ(1.702 x)`, OpenAI CLIP's.
    QuickGelu,
    /// `x σ(x)`.
    Silu,
    /// `max(0, x)`.
    Relu,
    /// `x`.
    Identity,
}

impl Nonlinearity {
    /// Its value, in the portable form.
    pub(super) fn apply<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Gelu => activation::gelu(x),
            Self::QuickGelu => x.clone() * activation::sigmoid(x * 1.702),
            Self::Silu => activation::silu(x),
            Self::Relu => activation::relu(x),
            Self::Identity => x,
        }
    }

    /// The same for the kernels.
    pub(super) fn fast(self) -> Activation {
        match self {
            Self::Gelu => Activation::Gelu,
            Self::QuickGelu => Activation::QuickGelu,
            Self::Silu => Activation::Silu,
            Self::Relu => Activation::Relu,
            Self::Identity => Activation::Identity,
        }
    }
}
