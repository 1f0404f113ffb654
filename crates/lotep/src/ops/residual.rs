//! A residual block of convolutions.

use std::sync::Arc;

use burn::tensor::{Tensor, activation::relu};
use lotep_frozen::{FrozenOp, Kernel};

use super::conv::{BatchNorm, Conv2d, folded};
use super::{Compute, fast, kernel};

/// A convolution without bias, the batch norm behind it, and its stride; padded to keep its size.
pub struct ConvNorm {
    /// `[out, in, side, side]`
    pub kernel: Tensor<4>,
    /// What follows it.
    pub norm: BatchNorm,
    /// Step between windows.
    pub stride: usize,
}

impl ConvNorm {
    /// With its norm folded in, for the fast form.
    pub(super) fn plain(self) -> Kernel {
        let side = self.kernel.dims()[2];
        let (weight, bias) = folded(self.kernel, self.norm);
        kernel(weight, Some(bias), self.stride, side / 2)
    }
}

/// `relu(convs(x') + shortcut(x'))` with `x' = x + P`, a ReLU between the convolutions.
#[derive(Clone)]
pub struct ResidualBlock(Form);

#[derive(Clone)]
enum Form {
    Portable { convs: Vec<Conv2d>, shortcut: Option<Conv2d> },
    Fast(Arc<dyn FrozenOp>, bool),
}

impl ResidualBlock {
    /// Take the convolutions, and the one on the shortcut where there is one.
    pub fn new(convs: Vec<ConvNorm>, shortcut: Option<ConvNorm>, compute: Compute) -> Self {
        if compute.is_fast(&convs[0].kernel) {
            let convs = convs.into_iter().map(ConvNorm::plain).collect();
            let block = lotep_frozen::ResidualBlock { convs, shortcut: shortcut.map(ConvNorm::plain) };
            return Self(Form::Fast(block.pack(compute.precision), compute.recompute));
        }
        let conv = |c: ConvNorm| {
            let padding = c.kernel.dims()[2] / 2;
            Conv2d::with_norm(c.kernel, c.norm, c.stride, padding, compute.precision)
        };
        let convs = convs.into_iter().map(conv).collect();
        Self(Form::Portable { convs, shortcut: shortcut.map(conv) })
    }

    /// A map `[B, C, H, W]` to `[B, C', H', W']`, `prompt` `[C, H, W]` added to each sample as it enters.
    ///
    /// The fast form computes with channels last, and what it gives is a view of that: from block to block nothing
    /// is rearranged.
    pub fn forward(&self, x: Tensor<4>, prompt: Option<Tensor<3>>) -> Tensor<4> {
        let (convs, shortcut) = match &self.0 {
            Form::Portable { convs, shortcut } => (convs, shortcut),
            Form::Fast(op, recompute) => return fast::apply_map(op.clone(), *recompute, x, prompt),
        };
        let x = match prompt {
            Some(prompt) => x + prompt.unsqueeze(),
            None => x,
        };
        let mut y = x.clone();
        for (i, conv) in convs.iter().enumerate() {
            y = conv.forward(y);
            if i + 1 < convs.len() {
                y = relu(y);
            }
        }
        let around = match shortcut {
            Some(conv) => conv.forward(x),
            None => x,
        };
        relu(y + around)
    }
}
