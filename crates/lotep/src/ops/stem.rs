//! The entrance of a residual network.

use std::sync::Arc;

use burn::tensor::{Tensor, activation::relu};
use lotep_frozen::FrozenOp;

use super::conv::{Conv2d, max_pool_3x3_s2};
use super::learnt::{Learnt, plan};
use super::{Compute, ConvNorm, fast};

/// Channels of a method's own beside an image's colours, the same for every image, and the slice of the first convolution
/// that sees them (VPT's "below").
#[derive(Clone, Debug)]
pub struct Below {
    /// Normalised, `[n, H, W]`.
    pub channels: Tensor<3>,
    /// `[C, n, k, k]`, in front of a norm as the kernel of the colours.
    pub kernel: Tensor<4>,
}

/// `max_pool(relu(conv(x)))`, the pooling 3 × 3 with stride 2 and padding 1.
#[derive(Clone)]
pub struct ImageStem {
    fast: Option<Arc<dyn FrozenOp>>,
    /// The fast form of a convolution that is learnt.
    learnt: Option<Learnt>,
    /// Also beside the fast forms, which know nothing of further channels: it is small.
    conv: Conv2d,
}

impl ImageStem {
    /// Take the convolution.
    pub fn new(conv: ConvNorm, compute: Compute) -> Self {
        let (padding, precision) = (conv.kernel.dims()[2] / 2, compute.precision);
        let (kernel, norm) = (conv.kernel.clone(), conv.norm.clone());
        let portable = Conv2d::with_norm(kernel, norm, conv.stride, padding, precision);
        let fast = compute.is_fast(&conv.kernel);
        let learnt = compute.learns_fast(&conv.kernel).then(|| {
            let op = lotep_frozen::LearntStem { conv: plan(&conv) }.pack(precision);
            Learnt::new(op, [&conv], compute)
        });
        let fast = fast.then(|| lotep_frozen::Stem { conv: conv.plain() }.pack(precision));
        Self { fast, learnt, conv: portable }
    }

    /// Images `[B, 3, H, W]`, with channels beside their colours or not, to maps `[B, C, H/4, W/4]`.
    pub fn forward(&self, x: Tensor<4>, below: Option<&Below>) -> Tensor<4> {
        if let (Some(op), None) = (&self.fast, below) {
            let y: Tensor<4> = fast::apply(op.clone(), false, x, None::<Tensor<1>>);
            return y.permute([0, 3, 1, 2]);
        }
        if let (Some(learnt), None) = (&self.learnt, below) {
            return learnt.images(x);
        }
        max_pool_3x3_s2(relu(self.conv.beside(x, below)))
    }
}
