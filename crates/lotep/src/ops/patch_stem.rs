//! The entrance of ConvNeXt and Swin: patches, normalised.

use std::sync::Arc;

use burn::tensor::Tensor;
use lotep_frozen::FrozenOp;

use super::{Below, Compute, Conv2d, LayerNorm, dense, fast, host};

/// `LN(conv(x))`, the convolution's stride its side.
#[derive(Clone)]
pub struct PatchStem {
    fast: Option<Arc<dyn FrozenOp>>,
    /// Also beside the fast form, which knows nothing of further channels: it is small.
    conv: Conv2d,
    norm: LayerNorm,
}

impl PatchStem {
    /// Take a kernel `[C, 3, patch, patch]` with its bias, and the norm behind it.
    pub fn new(kernel: Tensor<4>, bias: Tensor<1>, norm: [Tensor<1>; 2], eps: f64, compute: Compute) -> Self {
        let patch = kernel.dims()[2];
        let [scale, shift] = norm.clone();
        let conv = Conv2d::new(kernel.clone(), Some(bias.clone()), patch, 0, compute.precision);
        let fast = compute.is_fast(&kernel).then(|| {
            let project = dense(kernel.flatten(1, 3), Some(bias));
            let stem = lotep_frozen::PatchStem { patch, project, norm: norm.map(host), eps: eps as f32 };
            stem.pack(compute.precision)
        });
        Self { fast, conv, norm: LayerNorm::new(scale, shift, eps) }
    }

    /// Images `[B, 3, H, W]`, with channels beside their colours or not, to their patches, row by row,
    /// `[B, H/patch · W/patch, C]`.
    pub fn forward(&self, x: Tensor<4>, below: Option<&Below>) -> Tensor<3> {
        if let (Some(op), None) = (&self.fast, below) {
            return fast::apply(op.clone(), false, x, None::<Tensor<1>>);
        }
        let y = self.conv.beside(x, below);
        self.norm.forward(y.flatten::<3>(2, 3).swap_dims(1, 2))
    }
}
