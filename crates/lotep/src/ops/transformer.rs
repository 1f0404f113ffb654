//! A pre-norm transformer block.

use std::sync::Arc;

use burn::tensor::Tensor;
use lotep_frozen::{PackedTransformer, Windowed};

use super::{
    Compute, DropPath, Inside, LayerNorm, Linear, LowRank, Nonlinearity, Precision, Scope, attention, dense,
    fast, host, scope,
};

/// The weights of a block: each norm's scale and shift, each layer's weight `[out, in]` and bias `[out]`.
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
pub struct Shrink {
    /// Height and width of the map that enters, even numbers.
    pub size: [usize; 2],
    /// The shortcut's layer.
    pub expand: (Tensor<2>, Tensor<1>),
}

/// `x' = x + P`, `y = x' + proj(attention(qkv(LN(x'))))`, `y + fc2(f(fc1(LN(y))))`.
///
/// A block that halves its map has `y = expand(mean(x')) + proj(attention(qkv(mean(LN(x')))))`.
#[derive(Clone)]
pub struct TransformerBlock(Form);

#[derive(Clone)]
enum Form {
    Portable(Box<Portable>),
    Fast(Box<Fast>),
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
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    shrink: Option<([usize; 2], Linear)>,
    drop_path: Option<DropPath>,
}

impl TransformerBlock {
    /// Take the weights.
    pub fn new(w: TransformerWeights, compute: Compute) -> Self {
        if compute.is_fast(&w.qkv.0) {
            let norms = [w.norm1.clone(), w.norm2.clone()];
            let packed = Arc::new(plain(w).pack(compute.precision));
            return Self(Form::Fast(Box::new(Fast { packed, recompute: compute.recompute, norms })));
        }
        let norm = |[scale, shift]: [Tensor<1>; 2]| LayerNorm::new(scale, shift, w.eps);
        let linear = |weight, bias| Linear::new(weight, bias, compute.precision);
        Self(Form::Portable(Box::new(Portable {
            heads: w.heads,
            precision: compute.precision,
            nonlinearity: w.nonlinearity,
            scope: w.scope,
            norm1: norm(w.norm1),
            qkv: linear(w.qkv.0, w.qkv.1),
            proj: linear(w.proj.0, Some(w.proj.1)),
            norm2: norm(w.norm2),
            fc1: linear(w.fc1.0, Some(w.fc1.1)),
            fc2: linear(w.fc2.0, Some(w.fc2.1)),
            shrink: w.shrink.map(|s| (s.size, linear(s.expand.0, Some(s.expand.1)))),
            drop_path: w.drop_path,
        })))
    }

    /// Tokens `[B, N, C]` to the same shape (or to `[B, N / 4, C']`), `prompt` `[N, C]` added to each sample as it
    /// enters.
    pub fn forward(&self, x: Tensor<3>, prompt: Option<Tensor<2>>, inside: &Inside) -> Tensor<3> {
        match &self.0 {
            Form::Fast(f) => f.forward(x, prompt, inside, false),
            Form::Portable(block) => block.forward(x, prompt, inside),
        }
    }

    /// The first token alone of what [`forward`](Self::forward) gives, `[B, 1, C]`.
    pub fn class_token(&self, x: Tensor<3>, prompt: Option<Tensor<2>>, inside: &Inside) -> Tensor<3> {
        match &self.0 {
            Form::Fast(f) => f.forward(x, prompt, inside, true),
            Form::Portable(block) => block.forward(x, prompt, inside).narrow(1, 0, 1),
        }
    }
}

impl Fast {
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
    fn forward(&self, x: Tensor<3>, prompt: Option<Tensor<2>>, inside: &Inside) -> Tensor<3> {
        let x = match prompt {
            Some(prompt) => x + prompt.unsqueeze(),
            None => x,
        };
        let normed = self.norm1.forward(x.clone());
        let (around, normed) = match &self.shrink {
            Some((size, expand)) => (expand.forward(means(x, *size)), means(normed, *size)),
            None => (x, normed),
        };
        let dropped = |branch: Tensor<3>| match &self.drop_path {
            Some(drop_path) => drop_path.apply(branch),
            None => branch,
        };
        let linear = |layer: &Linear, update: &Option<LowRank>, x| {
            LowRank::add(update.as_ref(), layer, x, self.precision)
        };
        let y = around + dropped(linear(&self.proj, &inside.proj, self.attend(normed, inside)));
        let hidden = linear(&self.fc1, &inside.fc1, self.norm2.forward(y.clone()));
        y + dropped(linear(&self.fc2, &inside.fc2, self.nonlinearity.apply(hidden)))
    }

    fn attend(&self, normed: Tensor<3>, inside: &Inside) -> Tensor<3> {
        let (bias, before) = (self.scope.bias.as_ref(), inside.before());
        let project = |x| LowRank::add(inside.qkv.as_ref(), &self.qkv, x, self.precision);
        let Some(windows) = &self.scope.windows else {
            return attention(project(normed), self.heads, bias, None, before, self.precision);
        };
        // Padding is zero, so that an update adds nothing to it.
        let qkv = project(scope::gather(windows, normed));
        let mask = scope::mask(windows, &qkv.device());
        scope::scatter(windows, attention(qkv, self.heads, bias, mask, before, self.precision))
    }
}

/// The mean of each 2 × 2 tokens of a map: `[B, H · W, C]` to `[B, H/2 · W/2, C]`.
fn means(x: Tensor<3>, [h, w]: [usize; 2]) -> Tensor<3> {
    let [b, _, c] = x.dims();
    x.reshape([b, h / 2, 2, w / 2, 2, c]).mean_dims(&[2, 4]).reshape([b, h / 2 * (w / 2), c])
}

fn plain(w: TransformerWeights) -> lotep_frozen::Transformer {
    let behind = |[scale, shift]: [Tensor<1>; 2], weight: Tensor<2>, bias: Option<Tensor<1>>| {
        dense(weight, bias).behind_norm(&host(scale), &host(shift))
    };
    let linear = |(weight, bias): (Tensor<2>, Tensor<1>)| dense(weight, Some(bias));
    let padding = w.qkv.1.clone().map_or_else(|| vec![0.0; w.qkv.0.dims()[0]], host);
    lotep_frozen::Transformer {
        heads: w.heads,
        eps: w.eps as f32,
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
