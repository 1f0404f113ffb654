//! A residual block of convolutions.

use std::sync::Arc;

use burn::tensor::{Tensor, activation::relu};
use lotep_frozen::{FrozenOp, Kernel};

use super::conv::{BatchNorm, Conv2d, folded};
use super::conv_update::{OpenConv, with_dropout};
use super::learnt::{Learnt, plan};
use super::{Compute, ConvUpdate, Dropout, fast, kernel};

/// A convolution without bias, the batch norm behind it, and its stride; padded to keep its size.
#[derive(Clone)]
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
    Portable {
        convs: Vec<Conv2d>,
        shortcut: Option<Conv2d>,
    },
    Fast(Box<Fast>),
    /// Weights that are learnt, and the portable form of them, where something is added to them.
    Learnt(Learnt, Arc<dyn Fn() -> ResidualBlock + Send + Sync>),
}

#[derive(Clone)]
struct Fast {
    fused: Arc<dyn FrozenOp>,
    recompute: bool,
    convs: Vec<OpenConv>,
    shortcut: Option<OpenConv>,
}

/// What is learnt inside a residual block; by default nothing.
#[derive(Clone, Debug, Default)]
pub struct ResidualUpdates {
    /// Of the convolutions, in order; those beyond the last have none.
    pub convs: Vec<Option<ConvUpdate>>,
    /// Of the one on the shortcut.
    pub shortcut: Option<ConvUpdate>,
    /// Of what the updates see.
    pub dropout: Option<Dropout>,
}

impl ResidualUpdates {
    fn conv(&self, i: usize) -> Option<&ConvUpdate> {
        self.convs.get(i)?.as_ref()
    }

    fn dropout(&self, place: impl std::fmt::Display) -> Option<Dropout> {
        self.dropout.map(|dropout| dropout.at(&place.to_string()))
    }

    fn is_empty(&self) -> bool {
        self.shortcut.is_none() && self.convs.iter().all(Option::is_none)
    }
}

impl ResidualBlock {
    /// Take the convolutions, and the one on the shortcut where there is one.
    pub fn new(convs: Vec<ConvNorm>, shortcut: Option<ConvNorm>, compute: Compute) -> Self {
        if compute.is_fast(&convs[0].kernel) {
            return Self(Form::Fast(Box::new(Fast::new(convs, shortcut, compute))));
        }
        if compute.learns_fast(&convs[0].kernel) {
            return Self::learnt(convs, shortcut, compute);
        }
        let conv = |c: ConvNorm| {
            let padding = c.kernel.dims()[2] / 2;
            Conv2d::with_norm(c.kernel, c.norm, c.stride, padding, compute.precision)
        };
        let convs = convs.into_iter().map(conv).collect();
        Self(Form::Portable { convs, shortcut: shortcut.map(conv) })
    }

    fn learnt(convs: Vec<ConvNorm>, shortcut: Option<ConvNorm>, compute: Compute) -> Self {
        let op = lotep_frozen::LearntResidual {
            convs: convs.iter().map(plan).collect(),
            shortcut: shortcut.as_ref().map(plan),
        };
        let learnt = Learnt::new(op.pack(compute.precision), convs.iter().chain(&shortcut), compute);
        let portable = Compute { portable: true, ..compute };
        let made = move || Self::new(convs.clone(), shortcut.clone(), portable);
        Self(Form::Learnt(learnt, Arc::new(made)))
    }

    /// A map `[B, C, H, W]` to `[B, C', H', W']`, `prompt` `[C, H, W]` added to each sample as it enters.
    ///
    /// The fast form computes with channels last, and what it gives is a view of that: from block to block nothing
    /// is rearranged.
    pub fn forward(&self, x: Tensor<4>, prompt: Option<Tensor<3>>, updates: &ResidualUpdates) -> Tensor<4> {
        let (convs, shortcut) = match &self.0 {
            Form::Portable { convs, shortcut } => (convs, shortcut),
            Form::Fast(f) => return f.forward(x, prompt, updates),
            Form::Learnt(learnt, _) if updates.is_empty() => return learnt.map(x, prompt),
            Form::Learnt(_, portable) => return portable().forward(x, prompt, updates),
        };
        let x = match prompt {
            Some(prompt) => x + prompt.unsqueeze(),
            None => x,
        };
        let mut y = x.clone();
        for (i, conv) in convs.iter().enumerate() {
            y = with_dropout(y, updates.conv(i), updates.dropout(i), |x, update| conv.updated(x, update));
            if i + 1 < convs.len() {
                y = relu(y);
            }
        }
        let around = match shortcut {
            Some(conv) => {
                let (update, dropout) = (updates.shortcut.as_ref(), updates.dropout("shortcut"));
                with_dropout(x, update, dropout, |x, update| conv.updated(x, update))
            }
            None => x,
        };
        relu(y + around)
    }
}

impl Fast {
    fn new(convs: Vec<ConvNorm>, shortcut: Option<ConvNorm>, compute: Compute) -> Self {
        let scale = |c: &ConvNorm| c.norm.folded_scale();
        let scales: Vec<_> = convs.iter().map(scale).collect();
        let shortcut_scale = shortcut.as_ref().and_then(scale);
        let convs = convs.into_iter().map(ConvNorm::plain).collect();
        let block = lotep_frozen::ResidualBlock { convs, shortcut: shortcut.map(ConvNorm::plain) };
        let packed = block.pack(compute.precision);
        let open = |(op, scale)| OpenConv { op, scale };
        Self {
            fused: packed.block,
            recompute: compute.recompute,
            convs: packed.convs.into_iter().zip(scales).map(open).collect(),
            shortcut: packed.shortcut.map(|op| open((op, shortcut_scale))),
        }
    }

    /// With updates the convolutions run one by one, which keep what they need: nothing is computed again then.
    fn forward(&self, x: Tensor<4>, prompt: Option<Tensor<3>>, updates: &ResidualUpdates) -> Tensor<4> {
        if updates.is_empty() {
            return fast::apply_map(self.fused.clone(), self.recompute, x, prompt);
        }
        fast::apply_open(x, prompt, |x| {
            let mut y = x.clone();
            for (i, conv) in self.convs.iter().enumerate() {
                let dropout = updates.dropout(i);
                y = with_dropout(y, updates.conv(i), dropout, |x, update| conv.forward(x, update));
                if i + 1 < self.convs.len() {
                    y = relu(y);
                }
            }
            let around = match &self.shortcut {
                Some(conv) => {
                    let (update, dropout) = (updates.shortcut.as_ref(), updates.dropout("shortcut"));
                    with_dropout(x, update, dropout, |x, update| conv.forward(x, update))
                }
                None => x,
            };
            relu(y + around)
        })
    }
}
