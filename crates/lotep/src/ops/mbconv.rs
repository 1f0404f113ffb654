//! CoAtNet's inverted bottleneck with squeeze and excitation, and its entrance.

use std::sync::Arc;

use burn::tensor::{Tensor, activation::sigmoid};
use lotep_frozen::{FrozenOp, Halving};
use lotep_kernels::depthwise::{Depthwise, Shape};

use super::conv::{BatchNorm, Behind, Conv2d, affine, depthwise_conv, folded, max_pool_3x3_s2};
use super::conv_update::{OpenConv, with_dropout};
use super::{
    Compute, ConvNorm, ConvUpdate, Dropout, Linear, Nonlinearity, Precision, dense, fast, host, kernel,
    mean_pixels,
};

/// The weights of a block; its convolutions have biases where they are given.
pub struct MbConvWeights {
    /// Before everything on the branch.
    pub pre_norm: BatchNorm,
    /// Behind it, if it is not SiLU.
    pub entrance: Nonlinearity,
    /// Whether the map is halved; the shortcut takes means of 2 × 2 then.
    pub halved: Option<Halving>,
    /// Or the greatest of 3 × 3, in steps of 2.
    pub maxima: bool,
    /// To the wide channels, `[E, C, 1, 1]`, and the norm behind.
    pub expand: (Tensor<4>, BatchNorm),
    /// Depthwise, `[E, 1, side, side]`, and the norm behind.
    pub depthwise: (Tensor<4>, BatchNorm),
    /// Whether the gate comes between those two.
    pub early: bool,
    /// Means to the narrow layer.
    pub squeeze: (Tensor<2>, Tensor<1>),
    /// Behind it.
    pub middle: Nonlinearity,
    /// And to the gates.
    pub excite: (Tensor<2>, Tensor<1>),
    /// Back to few channels, `[C', E]`.
    pub reduce: (Tensor<2>, Option<Tensor<1>>),
    /// On the shortcut, `[C', C]`, where the channels change.
    pub shortcut: Option<(Tensor<2>, Option<Tensor<1>>)>,
}

/// With `x' = x + P`, `f` = SiLU and `gate(h) = σ(excite(f₁(squeeze(mean(h)))))`:
/// `h = f(BN(depthwise(f(BN(expand(f₀(BN(x'))))))))`, `shortcut(x') + reduce(h · gate(h))`; or with an early gate
/// `h = depthwise(…)`, `shortcut(x') + reduce(f(BN(h · gate(h))))`.
#[derive(Clone)]
pub struct MbConv(Form);

#[derive(Clone)]
enum Form {
    Portable(Box<Portable>),
    Fast(Box<Fast>),
}

#[derive(Clone)]
struct Fast {
    fused: Arc<dyn FrozenOp>,
    recompute: bool,
    /// The shortcut halves by maxima, which the fused block does not know.
    maxima: bool,
    /// The parts of the fused block, one by one.
    first: Arc<dyn FrozenOp>,
    expand: OpenConv,
    middle: Arc<dyn FrozenOp>,
    reduce: OpenConv,
    means: Option<Arc<dyn FrozenOp>>,
    shortcut: Option<OpenConv>,
}

/// What is learnt inside a block; by default nothing.
#[derive(Clone, Debug, Default)]
pub struct MbConvUpdates {
    /// Added to the kernel that makes the channels wide, `[E, C, 1, 1]`.
    pub expand: Option<ConvUpdate>,
    /// Added to the one that makes them few again, `[C', E, 1, 1]`.
    pub reduce: Option<ConvUpdate>,
    /// Added to the one on the shortcut, `[C', C, 1, 1]`.
    pub shortcut: Option<ConvUpdate>,
    /// Of what the updates see.
    pub dropout: Option<Dropout>,
}

impl MbConvUpdates {
    fn dropout(&self, place: &str) -> Option<Dropout> {
        self.dropout.map(|dropout| dropout.at(place))
    }

    fn is_empty(&self) -> bool {
        self.expand.is_none() && self.reduce.is_none() && self.shortcut.is_none()
    }
}

#[derive(Clone)]
struct Portable {
    pre_norm: BatchNorm,
    entrance: Nonlinearity,
    halved: Option<Halving>,
    maxima: bool,
    expand: Conv2d,
    depthwise: (Tensor<4>, Behind),
    /// Behind an early gate.
    late_norm: Option<BatchNorm>,
    squeeze: Linear,
    middle: Nonlinearity,
    excite: Linear,
    reduce: Linear,
    shortcut: Option<Linear>,
    precision: Precision,
}

impl MbConv {
    /// Take the weights.
    pub fn new(w: MbConvWeights, compute: Compute) -> Self {
        if compute.is_fast(&w.reduce.0) {
            return Self(Form::Fast(Box::new(Fast::new(w, compute))));
        }
        let linear = |(weight, bias)| Linear::new(weight, bias, compute.precision);
        let (kernel, norm) = w.depthwise;
        let (depthwise, late_norm) = if w.early {
            ((kernel, Behind::Nothing), Some(norm))
        } else {
            (Behind::absorbed(kernel, norm), None)
        };
        Self(Form::Portable(Box::new(Portable {
            pre_norm: w.pre_norm,
            entrance: w.entrance,
            halved: w.halved,
            maxima: w.maxima,
            expand: Conv2d::with_norm(w.expand.0, w.expand.1, 1, 0, compute.precision),
            depthwise,
            late_norm,
            squeeze: linear((w.squeeze.0, Some(w.squeeze.1))),
            middle: w.middle,
            excite: linear((w.excite.0, Some(w.excite.1))),
            reduce: linear(w.reduce),
            shortcut: w.shortcut.map(linear),
            precision: compute.precision,
        })))
    }

    /// A map `[B, C, H, W]` to `[B, C', H', W']`, its sides halved or not, `prompt` `[C, H, W]` added to each sample as it
    /// enters.
    pub fn forward(&self, x: Tensor<4>, prompt: Option<Tensor<3>>, updates: &MbConvUpdates) -> Tensor<4> {
        let block = match &self.0 {
            Form::Fast(f) => return f.forward(x, prompt, updates),
            Form::Portable(block) => block,
        };
        let x = match prompt {
            Some(prompt) => x + prompt.unsqueeze(),
            None => x,
        };
        let silu = |x: Tensor<4>| Nonlinearity::Silu.apply(x);
        let mut y = block.entrance.apply(block.pre_norm.forward(x.clone()));
        if block.halved == Some(Halving::Means) {
            y = halves(y);
        }
        let (update, dropout) = (updates.expand.as_ref(), updates.dropout("expand"));
        let y = silu(with_dropout(y, update, dropout, |x, update| block.expand.updated(x, update)));
        let (kernel, behind) = &block.depthwise;
        let stride = if block.halved == Some(Halving::Stride) { 2 } else { 1 };
        let y = behind.forward(depthwise_conv(y, kernel.clone(), None, stride));
        let y = match &block.late_norm {
            Some(norm) => silu(norm.forward(block.gated(y))),
            None => block.gated(silu(y)),
        };
        let last = |x: Tensor<4>| x.permute([0, 2, 3, 1]);
        let linear = |layer: &Linear, update: &Option<ConvUpdate>, place, x| {
            let add = |x, update: Option<&ConvUpdate>| ConvUpdate::add(update, layer, x, block.precision);
            with_dropout(x, update.as_ref(), updates.dropout(place), add)
        };
        let y = linear(&block.reduce, &updates.reduce, "reduce", last(y));
        let around = last(match block.halved {
            Some(_) if block.maxima => max_pool_3x3_s2(x),
            Some(_) => halves(x),
            None => x,
        });
        let around = match &block.shortcut {
            Some(layer) => linear(layer, &updates.shortcut, "shortcut", around),
            None => around,
        };
        (around + y).permute([0, 3, 1, 2])
    }
}

impl Fast {
    fn new(w: MbConvWeights, compute: Compute) -> Self {
        let scale = w.expand.1.folded_scale();
        let maxima = w.maxima && w.halved.is_some();
        let packed = plain(w).pack(compute.precision);
        Self {
            fused: packed.block,
            recompute: compute.recompute,
            maxima,
            first: packed.first,
            expand: OpenConv { op: packed.expand, scale },
            middle: packed.middle,
            reduce: OpenConv { op: packed.reduce, scale: None },
            means: packed.means,
            shortcut: packed.shortcut.map(|op| OpenConv { op, scale: None }),
        }
    }

    /// With updates, or maxima, the parts run one by one, which keep what they need: nothing is computed again then.
    fn forward(&self, x: Tensor<4>, prompt: Option<Tensor<3>>, updates: &MbConvUpdates) -> Tensor<4> {
        if updates.is_empty() && !self.maxima {
            return fast::apply_map(self.fused.clone(), self.recompute, x, prompt);
        }
        let part = |op: &Arc<dyn FrozenOp>, x| fast::apply(op.clone(), false, x, None::<Tensor<3>>);
        fast::apply_open(x, prompt, |x: Tensor<4>| {
            let conv = |conv: &OpenConv, update: &Option<ConvUpdate>, place, x| {
                with_dropout(x, update.as_ref(), updates.dropout(place), |x, update| conv.forward(x, update))
            };
            let y = conv(&self.expand, &updates.expand, "expand", part(&self.first, x.clone()));
            let y = conv(&self.reduce, &updates.reduce, "reduce", part(&self.middle, y));
            let around = match &self.means {
                Some(_) if self.maxima => max_pool_3x3_s2(x.permute([0, 3, 1, 2])).permute([0, 2, 3, 1]),
                Some(means) => part(means, x),
                None => x,
            };
            let around = match &self.shortcut {
                Some(shortcut) => conv(shortcut, &updates.shortcut, "shortcut", around),
                None => around,
            };
            around + y
        })
    }
}

impl Portable {
    /// `x · gate(x)`.
    fn gated(&self, x: Tensor<4>) -> Tensor<4> {
        let [b, wide, _, _] = x.dims();
        let mean = mean_pixels(x.clone());
        let gate = sigmoid(self.excite.forward(self.middle.apply(self.squeeze.forward(mean))));
        x * gate.reshape([b, wide, 1, 1])
    }
}

/// The mean of each 2 × 2 pixels.
fn halves(x: Tensor<4>) -> Tensor<4> {
    let [b, c, h, w] = x.dims();
    x.reshape([b, c, h / 2, 2, w / 2, 2]).mean_dims(&[3, 5]).reshape([b, c, h / 2, w / 2])
}

fn plain(w: MbConvWeights) -> lotep_frozen::MbConv {
    let [channels, _, side, _] = w.depthwise.0.dims();
    let [scale, shift] = affine(w.pre_norm).map(host);
    let stride = if w.halved == Some(Halving::Stride) { 2 } else { 1 };
    let shape = Shape { channels, side, stride, padding: side / 2 };
    let (expand, expand_bias) = folded(w.expand.0, w.expand.1);
    let (weight, bias, early) = if w.early {
        (w.depthwise.0, Vec::new(), Some(affine(w.depthwise.1).map(host)))
    } else {
        let (weight, bias) = folded(w.depthwise.0, w.depthwise.1);
        (weight, host(bias), None)
    };
    lotep_frozen::MbConv {
        scale,
        shift,
        entrance: w.entrance.fast(),
        halved: w.halved,
        expand: dense(expand.flatten(1, 3), Some(expand_bias)),
        depthwise: Depthwise::new(shape, &host(weight)),
        bias,
        squeeze: dense(w.squeeze.0, Some(w.squeeze.1)),
        middle: w.middle.fast(),
        excite: dense(w.excite.0, Some(w.excite.1)),
        early,
        reduce: dense(w.reduce.0, w.reduce.1),
        shortcut: w.shortcut.map(|(weight, bias)| dense(weight, bias)),
    }
}

/// CoAtNet's entrance: `conv2(SiLU(BN(conv1(x))))`.
#[derive(Clone)]
pub struct ConvStem(StemForm);

#[derive(Clone)]
enum StemForm {
    Portable { first: Conv2d, second: Conv2d },
    Fast(Arc<dyn FrozenOp>),
}

impl ConvStem {
    /// Take the convolutions, both padded to keep a map's size but for their stride.
    pub fn new(first: ConvNorm, second: Tensor<4>, compute: Compute) -> Self {
        if compute.is_fast(&second) {
            let padding = second.dims()[2] / 2;
            let stem =
                lotep_frozen::ConvStem { first: first.plain(), second: kernel(second, None, 1, padding) };
            return Self(StemForm::Fast(stem.pack(compute.precision)));
        }
        let padding = |kernel: &Tensor<4>| kernel.dims()[2] / 2;
        let (p1, p2) = (padding(&first.kernel), padding(&second));
        let first = Conv2d::with_norm(first.kernel, first.norm, first.stride, p1, compute.precision);
        let second = Conv2d::new(second, None, 1, p2, compute.precision);
        Self(StemForm::Portable { first, second })
    }

    /// Images `[B, 3, H, W]` to maps `[B, C, H/2, W/2]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.0 {
            StemForm::Fast(op) => fast::apply_map(op.clone(), false, x, None),
            StemForm::Portable { first, second } => {
                second.forward(Nonlinearity::Silu.apply(first.forward(x)))
            }
        }
    }
}
