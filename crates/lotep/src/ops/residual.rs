//! A residual block of convolutions.

use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::{Tensor, activation::relu};
use lotep_frozen::{Chain, Keep, Kept, Kernel, LearningOp, Link, Pairs, Prepared, Wanted, chain};

use super::conv::{BatchNorm, Conv2d, folded};
use super::conv_update::{OpenConv, with_dropout};
use super::held::Held;
use super::learnt::{Learnt, plan};
use super::prompt::{PARTS, Ready};
use super::{Compute, ConvUpdate, Dropout, Prompt, fast, kernel};

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
    link: Link,
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

    /// Whether nothing is learnt.
    pub fn is_empty(&self) -> bool {
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

    /// A map `[B, C, H, W]` to `[B, C', H', W']`, `prompt` added to each sample as it enters.
    ///
    /// The fast form computes with channels last, and what it gives is a view of that: from block to block nothing
    /// is rearranged.
    pub fn forward(&self, x: Tensor<4>, prompt: Option<Prompt>, updates: &ResidualUpdates) -> Tensor<4> {
        let (convs, shortcut) = match &self.0 {
            Form::Portable { convs, shortcut } => (convs, shortcut),
            Form::Fast(f) => return f.forward(x, prompt, updates),
            Form::Learnt(learnt, _) if updates.is_empty() => {
                return learnt.map(x, prompt.map(Prompt::whole));
            }
            Form::Learnt(_, portable) => return portable().forward(x, prompt, updates),
        };
        let x = match prompt {
            Some(prompt) => x + prompt.whole().unsqueeze(),
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

    /// A map through blocks one after another, in which nothing is learnt, `prompts[i]` added as it enters the `i`-th.
    ///
    /// The fast form takes them all at once: between them the stream stays as its products read it, in bfloat16 where they
    /// do.
    pub fn stretch(blocks: &[&Self], x: Tensor<4>, prompts: Vec<Option<Prompt>>) -> Tensor<4> {
        match Self::all_fast(blocks) {
            Some(blocks) => last_first(through(&blocks, false, x, prompts)),
            None => Self::one_by_one(blocks, x, prompts),
        }
    }

    /// The same, averaged over the last map's pixels: `[B, C]`.
    pub fn stretch_to_mean(blocks: &[&Self], x: Tensor<4>, prompts: Vec<Option<Prompt>>) -> Tensor<2> {
        match Self::all_fast(blocks) {
            Some(blocks) => through(&blocks, true, x, prompts),
            None => mean_pixels(Self::one_by_one(blocks, x, prompts)),
        }
    }

    /// The blocks' fast forms, where there are some and all have one.
    fn all_fast<'a>(blocks: &[&'a Self]) -> Option<Vec<&'a Fast>> {
        let fast = |block: &&'a Self| match &block.0 {
            Form::Fast(block) => Some(&**block),
            Form::Portable { .. } | Form::Learnt(..) => None,
        };
        blocks.iter().map(fast).collect::<Option<Vec<_>>>().filter(|blocks| !blocks.is_empty())
    }

    fn one_by_one(blocks: &[&Self], x: Tensor<4>, prompts: Vec<Option<Prompt>>) -> Tensor<4> {
        let nothing = ResidualUpdates::default();
        blocks.iter().zip(prompts).fold(x, |x, (block, prompt)| block.forward(x, prompt, &nothing))
    }
}

/// The mean of a map over its pixels: `[B, C, H, W]` to `[B, C]`.
pub fn mean_pixels(x: Tensor<4>) -> Tensor<2> {
    let [b, c, h, w] = x.dims();
    // The fast forms' maps lie pixel by pixel. (On CUDA Burn 0.22.1 takes wrong means over both axes of such a map, as a view,
    // where it is one pixel high.)
    x.permute([0, 2, 3, 1]).reshape([b, h * w, c]).mean_dim(1).reshape([b, c])
}

fn last_first(x: Tensor<4>) -> Tensor<4> {
    x.permute([0, 3, 1, 2])
}

/// Blocks as one operation: a map `[B, C, H, W]` to one with its channels last or, `pooled`, to their means.
fn through<const D: usize>(
    blocks: &[&Fast],
    pooled: bool,
    x: Tensor<4>,
    prompts: Vec<Option<Prompt>>,
) -> Tensor<D> {
    let keep = if blocks.iter().any(|b| b.recompute) { Keep::Entrances } else { Keep::All };
    let chain = chain(blocks.iter().map(|b| &b.link), pooled);
    let ready = prompts.iter().map(|prompt| prompt.as_ref()?.ready()).collect();
    let parts = prompts.into_iter().flat_map(|prompt| prompt.map_or_else(Default::default, Prompt::parts));
    let (parts, token) = Held::hold(parts, &x.device());
    let op = Arc::new(Prompted { chain, parts, ready, keep });
    // What is computed again is the chain's own affair.
    fast::apply_learning(op, false, x.permute([0, 2, 3, 1]), None::<Tensor<3>>, token)
}

/// A chain with the prompts of one call; what it learns comes as the token of those.
#[derive(Debug)]
struct Prompted {
    chain: Arc<dyn Chain>,
    /// [`PARTS`] of each prompt ([`Prompt::parts`]).
    parts: Held,
    /// Of each prompt.
    ready: Vec<Option<Ready>>,
    keep: Keep,
}

/// Kept: the factors of prompts, and what the chain keeps.
struct Saved {
    parts: Vec<Given>,
    inner: Kept,
}

/// The parts of a prompt.
#[derive(Debug)]
enum Given {
    Nothing,
    Whole(Option<FlexTensor>),
    Product {
        channel: FlexTensor,
        row: FlexTensor,
        column: FlexTensor,
        core: Option<FlexTensor>,
        /// Of rows, columns and core.
        pixels: Vec<f32>,
    },
    /// Not kept.
    Prepared(Prepared),
}

/// Rows, columns and core of a prompt whose channels are of a rank.
fn pairs<'a>(
    [row, column]: [&'a FlexTensor; 2],
    core: Option<&'a FlexTensor>,
    channel: &FlexTensor,
) -> Pairs<'a> {
    let length = |x: &FlexTensor, axis: usize| x.layout().shape()[axis];
    let size = [length(row, 1), length(column, 1)];
    Pairs::new(core.map(fast::values), [row, column].map(fast::values), length(channel, 0), size)
}

impl Given {
    /// For predictions: made once for all batches, or where another precision came first for this one.
    fn prepared(parts: [Option<FlexTensor>; PARTS], ready: &Ready, chain: &dyn Chain) -> Self {
        let columns = parts[0].as_ref().map_or(0, |channel| channel.layout().shape()[1]);
        let made = ready.get().filter(|made| chain.takes(made)).cloned();
        let made = made.unwrap_or_else(|| {
            let made = chain.prepare(&Self::new(parts).view(), columns);
            _ = ready.set(made.clone());
            made
        });
        Self::Prepared(made)
    }

    fn new([first, row, column, core]: [Option<FlexTensor>; PARTS]) -> Self {
        match (first, row, column) {
            (Some(channel), Some(row), Some(column)) => {
                let pixels = pairs([&row, &column], core.as_ref(), &channel).product();
                Self::Product { channel, row, column, core, pixels }
            }
            (Some(values), ..) => Self::Whole(Some(values)),
            (None, ..) => Self::Nothing,
        }
    }

    fn view(&self) -> lotep_frozen::Prompt<'_> {
        use lotep_frozen::Prompt;
        match self {
            Self::Nothing => Prompt::None,
            Self::Prepared(made) => Prompt::Prepared(made),
            Self::Whole(values) => Prompt::Whole(values.as_ref().map_or(&[], fast::values)),
            Self::Product { channel, pixels, .. } => {
                let rank = channel.layout().shape()[0];
                Prompt::Product { pixels, channels: fast::values(channel), rank }
            }
        }
    }

    /// The gradients of its parts, given those of what [`view`](Self::view) gave.
    fn gradients(&self, [first, channels]: [Vec<f32>; 2]) -> [Vec<f32>; PARTS] {
        match self {
            Self::Product { channel, row, column, core, .. } if !first.is_empty() => {
                let pairs = pairs([row, column], core.as_ref(), channel).gradients(&first);
                [channels, pairs.v, pairs.w, pairs.core]
            }
            _ => [first, channels, Vec::new(), Vec::new()],
        }
    }

    /// What the backward pass asks for: not the values of a whole prompt.
    fn kept(self) -> Self {
        if let Self::Whole(_) = self { Self::Whole(None) } else { self }
    }
}

impl LearningOp for Prompted {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        self.chain.output_shape(input)
    }

    fn forward(
        &self,
        x: &[f32],
        shape: &[usize],
        _prompt: &[f32],
        _token: &[f32],
        keep: bool,
    ) -> (Vec<f32>, Option<Kept>) {
        let parts = self.parts.values();
        let parts = parts.as_chunks::<PARTS>().0.iter().cloned().zip(&self.ready);
        let given = parts.map(|(parts, ready)| match ready {
            Some(ready) if !keep => Given::prepared(parts, ready, self.chain.as_ref()),
            _ => Given::new(parts),
        });
        let given: Vec<_> = given.collect();
        let prompts: Vec<_> = given.iter().map(Given::view).collect();
        let (out, inner) =
            self.chain.forward(x, shape, &prompts, if keep { self.keep } else { Keep::Nothing });
        let parts = given.into_iter().map(Given::kept).collect();
        (out, inner.map(|inner| Box::new(Saved { parts, inner }) as Kept))
    }

    fn backward(
        &self,
        kept: Kept,
        shape: &[usize],
        token: &[f32],
        grad: &[f32],
        wanted: Wanted,
    ) -> (Vec<f32>, Vec<f32>) {
        let Saved { parts, inner } = *kept.downcast::<Saved>().expect("its own");
        let prompts: Vec<_> = parts.iter().map(Given::view).collect();
        let (stream, learnt) = self.chain.backward(inner, shape, &prompts, grad, wanted);
        if !wanted.learnt {
            return (stream, Vec::new());
        }
        self.parts.leave(parts.iter().zip(learnt).flat_map(|(part, learnt)| part.gradients(learnt)));
        (stream, vec![0.0; token.len()])
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
            link: packed.block,
            recompute: compute.recompute,
            convs: packed.convs.into_iter().zip(scales).map(open).collect(),
            shortcut: packed.shortcut.map(|op| open((op, shortcut_scale))),
        }
    }

    /// With updates the convolutions run one by one, which keep what they need: nothing is computed again then.
    fn forward(&self, x: Tensor<4>, prompt: Option<Prompt>, updates: &ResidualUpdates) -> Tensor<4> {
        if updates.is_empty() {
            return last_first(through(&[self], false, x, vec![prompt]));
        }
        fast::apply_open(x, prompt.map(Prompt::whole), |x| {
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
