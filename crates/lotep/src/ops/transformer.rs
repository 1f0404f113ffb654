//! A pre-norm transformer block.

use std::sync::Arc;

use burn::tensor::Tensor;
use lotep_frozen::{PackedTransformer, Windowed};

use super::conv::{BatchNorm, affine, max_pool_3x3_s2};
use super::{
    Compute, DropPath, Inside, LayerNorm, Linear, LowRank, Nonlinearity, Precision, Scope, attention, dense,
    fast, host, scope,
};

/// The weights of a block: each norm's scale and shift, each layer's weight `[out, in]` and bias `[out]`.
#[derive(Clone)]
pub struct TransformerWeights {
    /// Attention heads.
    pub heads: usize,
    /// Added to the norms' variances.
    pub eps: f64,
    /// In the perceptron.
    pub nonlinearity: Nonlinearity,
    /// Which tokens attend to each other.
    pub scope: Scope,
    /// Norm before the attention.
    pub norm1: [Tensor<1>; 2],
    /// Queries, keys and values, packed `[q | k | v]`, each `heads × d`.
    pub qkv: (Tensor<2>, Option<Tensor<1>>),
    /// Behind the attention.
    pub proj: (Tensor<2>, Tensor<1>),
    /// Norm before the perceptron.
    pub norm2: [Tensor<1>; 2],
    /// The perceptron's first layer.
    pub fc1: (Tensor<2>, Tensor<1>),
    /// Its second.
    pub fc2: (Tensor<2>, Tensor<1>),
    /// Halves the map on the way, where the block does.
    pub shrink: Option<Shrink>,
    /// Leaves out both branches for some samples, in training mode.
    pub drop_path: Option<DropPath>,
}

/// How a block halves its map's sides (CoAtNet): attention and shortcut take the means of 2 × 2 tokens, the shortcut
/// behind a layer that makes it as wide as the output.
#[derive(Clone)]
pub struct Shrink {
    /// The greatest of 3 × 3 tokens, in steps of 2, instead of means. There is no fast form of it.
    pub maxima: bool,
    /// Height and width of the map that enters, even numbers.
    pub size: [usize; 2],
    /// The shortcut's layer.
    pub expand: (Tensor<2>, Tensor<1>),
}

/// `x' = x + P`, `y = x' + proj(attention(qkv(LN(x'))))`, `y + fc2(f(fc1(LN(y))))`.
///
/// A block that halves its map has `y = expand(mean(x')) + proj(attention(qkv(mean(LN(x')))))`.
///
/// Tokens beyond those of the map of a block with windows are prompts. They stand before the map's, every window attends
/// to them and they to every window's tokens, with neither bias nor mask; what the windows make of them is averaged.
#[derive(Clone)]
pub struct TransformerBlock(Form);

#[derive(Clone)]
enum Form {
    Portable(Box<Portable>),
    Fast(Box<Fast>),
    Learnt(Box<Learnt>),
}

/// A block whose weights are learnt.
#[derive(Clone)]
struct Learnt {
    /// Of the same values.
    fast: Fast,
    /// The layers' weights and biases in a row, with the norms' scales and shifts in them as the fast form has them.
    layers: Tensor<1>,
    /// For the portable form, where more is learnt inside.
    weights: TransformerWeights,
    precision: Precision,
}

#[derive(Clone)]
struct Fast {
    packed: Arc<PackedTransformer>,
    recompute: bool,
    /// Scale and shift of both norms, for what is learnt behind them.
    norms: [[Tensor<1>; 2]; 2],
}

#[derive(Clone)]
struct Portable {
    heads: usize,
    precision: Precision,
    nonlinearity: Nonlinearity,
    scope: Scope,
    norm1: Norm,
    qkv: Linear,
    proj: Linear,
    norm2: Norm,
    fc1: Linear,
    fc2: Linear,
    shrink: Option<(Pooling, Linear)>,
    drop_path: Option<DropPath>,
}

/// Over a token's channels, or over all tokens of a channel.
#[derive(Clone)]
enum Norm {
    Layer(LayerNorm),
    Batch(BatchNorm),
}

impl Norm {
    /// `[B, N, C]` to the same shape.
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Batch(norm) => {
                norm.forward(x.swap_dims(1, 2).unsqueeze_dim(3)).squeeze_dim(3).swap_dims(1, 2)
            }
        }
    }
}

/// What halves a map of that height and width.
#[derive(Clone, Copy)]
enum Pooling {
    Means([usize; 2]),
    Maxima([usize; 2]),
}

impl TransformerBlock {
    /// Take the weights.
    pub fn new(w: TransformerWeights, compute: Compute) -> Self {
        Self::with_norms(w, None, compute)
    }

    /// The same with batch norms in the places of the weights' own (CoAtNet's `bn`).
    pub fn with_batch_norms(mut w: TransformerWeights, norms: [BatchNorm; 2], compute: Compute) -> Self {
        [w.norm1, w.norm2] = norms.clone().map(affine);
        Self::with_norms(w, Some(norms), compute)
    }

    fn with_norms(w: TransformerWeights, batch_norms: Option<[BatchNorm; 2]>, compute: Compute) -> Self {
        if compute.is_fast(&w.qkv.0) && !w.shrink.as_ref().is_some_and(|s| s.maxima) {
            return Self(Form::Fast(Box::new(Fast::new(w, batch_norms.is_none(), compute))));
        }
        let is_plain = w.shrink.is_none() && w.drop_path.is_none() && batch_norms.is_none();
        if compute.learns_fast(&w.qkv.0) && is_plain && w.scope.windows.is_none() && w.scope.bias.is_none() {
            return Self(Form::Learnt(Box::new(Learnt::new(w, compute))));
        }
        Self(Form::Portable(Box::new(Portable::new(w, batch_norms, compute.precision))))
    }

    /// Tokens `[B, N, C]` to the same shape (or to `[B, N / 4, C']`), `prompt` `[N, C]` added to each sample as it
    /// enters.
    pub fn forward(&self, x: Tensor<3>, prompt: Option<Tensor<2>>, inside: &Inside) -> Tensor<3> {
        match &self.0 {
            Form::Fast(f) => f.forward(x, prompt, inside, false),
            Form::Learnt(learnt) => learnt.forward(x, prompt, inside, false),
            Form::Portable(block) => block.forward(x, prompt, inside),
        }
    }

    /// The first token alone of what [`forward`](Self::forward) gives, `[B, 1, C]`.
    pub fn class_token(&self, x: Tensor<3>, prompt: Option<Tensor<2>>, inside: &Inside) -> Tensor<3> {
        match &self.0 {
            Form::Fast(f) => f.forward(x, prompt, inside, true),
            Form::Learnt(learnt) => learnt.forward(x, prompt, inside, true),
            Form::Portable(block) => block.forward(x, prompt, inside).narrow(1, 0, 1),
        }
    }
}

impl Learnt {
    fn new(w: TransformerWeights, compute: Compute) -> Self {
        // As `plain` has them: `W (s · x + t) + b = (W s) x + (W t + b)`.
        let behind = |[scale, shift]: &[Tensor<1>; 2], weight: &Tensor<2>, bias: Option<&Tensor<1>>| {
            let shifted = (weight.clone() * shift.clone().unsqueeze()).sum_dim(1).squeeze_dim::<1>(1);
            let bias = bias.map_or(shifted.clone(), |bias| shifted + bias.clone());
            [(weight.clone() * scale.clone().unsqueeze()).flatten(0, 1), bias]
        };
        let linear = |(weight, bias): &(Tensor<2>, Tensor<1>)| [weight.clone().flatten(0, 1), bias.clone()];
        let layers = [
            behind(&w.norm1, &w.qkv.0, w.qkv.1.as_ref()),
            linear(&w.proj),
            behind(&w.norm2, &w.fc1.0, Some(&w.fc1.1)),
            linear(&w.fc2),
        ];
        Self {
            fast: Fast::new(w.clone(), true, compute),
            layers: Tensor::cat(layers.into_iter().flatten().collect(), 0),
            weights: w,
            precision: compute.precision,
        }
    }

    fn forward(
        &self,
        x: Tensor<3>,
        prompt: Option<Tensor<2>>,
        inside: &Inside,
        class_token: bool,
    ) -> Tensor<3> {
        if !inside.is_empty() {
            let y = Portable::new(self.weights.clone(), None, self.precision).forward(x, prompt, inside);
            return if class_token { y.narrow(1, 0, 1) } else { y };
        }
        let layers = lotep_frozen::Inside { layers: true, ..Default::default() };
        let op = self.fast.packed.learning(layers, class_token);
        fast::apply_learning(op, self.fast.recompute, x, prompt, Some(self.layers.clone()))
    }
}

impl Fast {
    fn new(w: TransformerWeights, normalises: bool, compute: Compute) -> Self {
        let norms = [w.norm1.clone(), w.norm2.clone()];
        let packed = Arc::new(plain(w, normalises).pack(compute.precision));
        Self { packed, recompute: compute.recompute, norms }
    }

    fn forward(
        &self,
        x: Tensor<3>,
        prompt: Option<Tensor<2>>,
        inside: &Inside,
        class_token: bool,
    ) -> Tensor<3> {
        if let Some((inside, learnt)) = inside.flat(&self.norms) {
            let op = self.packed.learning(inside, class_token);
            return fast::apply_learning(op, self.recompute, x, prompt, Some(learnt));
        }
        let op = if class_token { &self.packed.class_token } else { &self.packed.block };
        fast::apply(op.clone(), self.recompute, x, prompt)
    }
}

impl Portable {
    fn new(w: TransformerWeights, batch_norms: Option<[BatchNorm; 2]>, precision: Precision) -> Self {
        let [norm1, norm2] = match batch_norms {
            Some(norms) => norms.map(Norm::Batch),
            None => [w.norm1, w.norm2].map(|[scale, shift]| Norm::Layer(LayerNorm::new(scale, shift, w.eps))),
        };
        let pooling = |s: &Shrink| if s.maxima { Pooling::Maxima(s.size) } else { Pooling::Means(s.size) };
        let linear = |weight, bias| Linear::new(weight, bias, precision);
        Self {
            heads: w.heads,
            precision,
            nonlinearity: w.nonlinearity,
            scope: w.scope,
            norm1,
            qkv: linear(w.qkv.0, w.qkv.1),
            proj: linear(w.proj.0, Some(w.proj.1)),
            norm2,
            fc1: linear(w.fc1.0, Some(w.fc1.1)),
            fc2: linear(w.fc2.0, Some(w.fc2.1)),
            shrink: w.shrink.map(|s| (pooling(&s), linear(s.expand.0, Some(s.expand.1)))),
            drop_path: w.drop_path,
        }
    }

    fn forward(&self, x: Tensor<3>, prompt: Option<Tensor<2>>, inside: &Inside) -> Tensor<3> {
        let x = match prompt {
            Some(prompt) => x + prompt.unsqueeze(),
            None => x,
        };
        let normed = self.norm1.forward(x.clone());
        let (around, normed) = match &self.shrink {
            Some((pooling, expand)) => (expand.forward(pooling.apply(x)), pooling.apply(normed)),
            None => (x, normed),
        };
        let dropped = |branch: Tensor<3>| match &self.drop_path {
            Some(drop_path) => drop_path.apply(branch),
            None => branch,
        };
        let linear = |layer: &Linear, update: &Option<LowRank>, leaf, x| {
            LowRank::add(update.as_ref(), layer, x, self.precision, inside.dropout_at(leaf))
        };
        let y = around + dropped(linear(&self.proj, &inside.proj, "proj", self.attend(normed, inside)));
        let hidden = linear(&self.fc1, &inside.fc1, "fc1", self.norm2.forward(y.clone()));
        y + dropped(linear(&self.fc2, &inside.fc2, "fc2", self.nonlinearity.apply(hidden)))
    }

    fn attend(&self, normed: Tensor<3>, inside: &Inside) -> Tensor<3> {
        let (bias, before) = (self.scope.bias.as_ref(), inside.before());
        let project = |x, parts| {
            let dropout = inside.dropout_at("qkv").map(|dropout| dropout.in_parts(parts));
            LowRank::add(inside.qkv.as_ref(), &self.qkv, x, self.precision, dropout)
        };
        let Some(windows) = &self.scope.windows else {
            return attention(project(normed, 1), self.heads, bias, None, before, self.precision);
        };
        let prompts = normed.dims()[1] - windows.tokens;
        let (windows, bias) = if prompts > 0 {
            (&windows.with_prompts(prompts), bias.map(|bias| scope::beside(bias.clone(), prompts)))
        } else {
            (windows.as_ref(), bias.cloned())
        };
        // Padding is zero, so that an update adds nothing to it.
        let qkv = project(scope::gather(windows, normed), windows.count());
        let mask = scope::mask(windows, &qkv.device());
        let attended = attention(qkv, self.heads, bias.as_ref(), mask, before, self.precision);
        scope::scatter(windows, attended)
    }
}

impl Pooling {
    /// Tokens of a map, `[B, H · W, C]` to `[B, H/2 · W/2, C]`.
    fn apply(self, x: Tensor<3>) -> Tensor<3> {
        let [b, _, c] = x.dims();
        match self {
            Self::Means([h, w]) => {
                x.reshape([b, h / 2, 2, w / 2, 2, c]).mean_dims(&[2, 4]).reshape([b, h / 2 * (w / 2), c])
            }
            Self::Maxima([h, w]) => {
                let map = x.reshape([b, h, w, c]).permute([0, 3, 1, 2]);
                max_pool_3x3_s2(map).flatten::<3>(2, 3).swap_dims(1, 2)
            }
        }
    }
}

/// The weights for the fast form; the norms normalise, or are all scale and shift.
fn plain(w: TransformerWeights, normalises: bool) -> lotep_frozen::Transformer {
    let behind = |[scale, shift]: [Tensor<1>; 2], weight: Tensor<2>, bias: Option<Tensor<1>>| {
        dense(weight, bias).behind_norm(&host(scale), &host(shift))
    };
    let linear = |(weight, bias): (Tensor<2>, Tensor<1>)| dense(weight, Some(bias));
    let padding = w.qkv.1.clone().map_or_else(|| vec![0.0; w.qkv.0.dims()[0]], host);
    lotep_frozen::Transformer {
        heads: w.heads,
        eps: normalises.then_some(w.eps as f32),
        activation: w.nonlinearity.fast(),
        bias: w.scope.bias.map(host).unwrap_or_default(),
        windows: w.scope.windows.map(|windows| Windowed { windows, padding }),
        qkv: behind(w.norm1, w.qkv.0, w.qkv.1),
        proj: linear(w.proj),
        fc1: behind(w.norm2, w.fc1.0, Some(w.fc1.1)),
        fc2: linear(w.fc2),
        shrink: w.shrink.map(|s| lotep_frozen::Shrink { size: s.size, expand: linear(s.expand) }),
    }
}
