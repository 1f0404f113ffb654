//! A pre-norm transformer block: attention and a perceptron, each around the residual stream.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use lotep_kernels::gemm::{Activate, Activation, Multiply, Residual, Rounded, Store};
use lotep_kernels::{
    Operand, Tiles,
    attention::{self, Attention, Extra, Places},
    depthwise::{Depthwise, Rows, Shape},
    memory::uncleared,
    norm,
};

use crate::inside::{FC1, FC2, KeysValues, Layout, Learnt, PROJ, QKV, Step};
use crate::linear::{Dense, FrozenLinear};
use crate::prompted::Prompted;
use crate::{FrozenOp, Inside, Kept, LearningOp, Precision, Wanted, Windows, isa, packed};

/// `x' = x + P`, `y = x' + proj(attention(qkv(LN(x'))))`, `out = y + fc2(f(fc1(LN(y))))`, the norms' scales and
/// shifts inside `qkv` and `fc1`.
///
/// One that halves its map has `y = expand(mean(x')) + proj(attention(qkv(mean(LN(x')))))`, with means of 2 × 2.
///
/// Tokens that come in beyond those of the map of a block with windows are prompts: they stand before the map's and are
/// in every window.
#[derive(Debug)]
pub struct Transformer {
    /// Attention heads.
    pub heads: usize,
    /// Added to the norms' variances; `None` where nothing is normalised, as with batch norms, which are all scale and
    /// shift.
    pub eps: Option<f32>,
    /// In the perceptron.
    pub activation: Activation,
    /// Added to the scores, `[heads, N, N]`; may be empty.
    pub bias: Vec<f32>,
    /// None where all tokens attend to each other.
    pub windows: Option<Windowed>,
    /// Queries, keys and values, packed `[q | k | v]`, each `heads × d`.
    pub qkv: Dense,
    /// Behind the attention.
    pub proj: Dense,
    /// The perceptron's first layer.
    pub fc1: Dense,
    /// Its second.
    pub fc2: Dense,
    /// Halves the map on the way, where the block does.
    pub shrink: Option<Shrink>,
}

/// Attention within windows.
#[derive(Clone, Debug)]
pub struct Windowed {
    /// Which.
    pub windows: Arc<Windows>,
    /// The projection of padding, which a norm does not see: `qkv`'s own bias.
    pub padding: Vec<f32>,
}

/// How a block halves its map's sides.
#[derive(Debug)]
pub struct Shrink {
    /// Height and width of the map that enters, even numbers.
    pub size: [usize; 2],
    /// The shortcut's layer, as wide as the output.
    pub expand: Dense,
}

/// A block and the part of it that a class token needs.
pub struct PackedTransformer {
    /// `[B, N, C]` to the same shape, or to `[B, N / 4, C']`.
    pub block: Arc<dyn FrozenOp>,
    /// `[B, N, C]` to `[B, 1, C]`: nothing else of a last block's output is read, so behind the attention nothing
    /// else is computed.
    pub class_token: Arc<dyn FrozenOp>,
    learns: Arc<dyn Learns>,
}

impl PackedTransformer {
    /// The same block, or the part for its class token, with something learnt inside. The packed weights are shared.
    pub fn learning(&self, inside: Inside, class_token: bool) -> Arc<dyn LearningOp> {
        self.learns.clone().learning(inside, class_token)
    }
}

/// A block of either precision, as [`PackedTransformer::learning`] sees it.
trait Learns: Send + Sync {
    fn learning(self: Arc<Self>, inside: Inside, class_token: bool) -> Arc<dyn LearningOp>;
}

impl Transformer {
    /// Pack it.
    pub fn pack(self, precision: Precision) -> PackedTransformer {
        packed!(self, precision)
    }

    fn packed<T: Operand>(self) -> PackedTransformer {
        let block = Arc::new(Packed {
            heads: self.heads,
            eps: self.eps,
            prompted: Mutex::default(),
            activation: self.activation,
            bias: self.bias,
            windows: self.windows,
            qkv: FrozenLinear::<T>::new(self.qkv),
            proj: FrozenLinear::new(self.proj),
            fc1: FrozenLinear::new(self.fc1),
            fc2: FrozenLinear::new(self.fc2),
            shrink: self.shrink.map(|Shrink { size, expand }| {
                let expand = FrozenLinear::new(expand);
                Halved { size, means: means(expand.inputs()), expand }
            }),
        });
        PackedTransformer { class_token: Arc::new(ClassToken(block.clone())), learns: block.clone(), block }
    }
}

#[derive(Debug)]
struct Packed<T> {
    heads: usize,
    eps: Option<f32>,
    /// The windows with so many prompts in them, once some have come.
    prompted: Mutex<BTreeMap<usize, Arc<Prompted>>>,
    activation: Activation,
    bias: Vec<f32>,
    windows: Option<Windowed>,
    qkv: FrozenLinear<T>,
    proj: FrozenLinear<T>,
    fc1: FrozenLinear<T>,
    fc2: FrozenLinear<T>,
    shrink: Option<Halved<T>>,
}

#[derive(Debug)]
struct Halved<T> {
    size: [usize; 2],
    means: Depthwise,
    expand: FrozenLinear<T>,
}

/// The means of 2 × 2 pixels.
pub(crate) fn means(channels: usize) -> Depthwise {
    let shape = Shape { channels, side: 2, stride: 2, padding: 0 };
    Depthwise::new(shape, &vec![0.25; 4 * channels])
}

/// Kept for each token of width C: both normalised rows (2 C), the projections (3 C), the perceptron before its
/// activation (4 C), all in the operands' precision, and two f32. The stream itself is not needed again.
struct Saved<T> {
    normed1: Tiles<T>,
    inverse1: Vec<f32>,
    qkv: Tiles<T>,
    normed2: Tiles<T>,
    inverse2: Vec<f32>,
    before: Tiles<T>,
    inside: SavedInside<T>,
}

/// Kept beside that for what is learnt inside: each update's `t`, keys and values as operands, and what an updated
/// layer saw if it is nowhere else, the attention's result (C) for `proj` and the perceptron's inside (4 C) for `fc2`.
struct SavedInside<T> {
    thin: [Vec<f32>; 4],
    keys_values: Option<KeysValues<T>>,
    attended: Option<Tiles<T>>,
    inner: Option<Tiles<T>>,
}

impl<T: Operand> Halved<T> {
    /// The means of normalised tokens.
    fn normed(&self, normed: &Tiles<T>, samples: usize) -> Tiles<T> {
        let mut halved = Tiles::new(normed.rows() / 4, normed.columns());
        self.means.run(isa(), normed, samples, self.size, &Store::tiles(&mut halved));
        halved
    }
}

impl<T: Operand> Packed<T> {
    /// The attention over samples of `tokens`, of which `asking` ask.
    fn attention(&self, samples: usize, tokens: usize, asking: usize) -> Attention<'_> {
        let width = self.qkv.outputs() / 3 / self.heads;
        let plain = Attention { bias: &self.bias, ..Attention::plain(samples, tokens, self.heads, width) };
        let Some(Windowed { windows, .. }) = &self.windows else {
            return Attention { queries: asking, ..plain };
        };
        Attention {
            batch: samples * windows.count(),
            tokens: windows.size,
            queries: windows.size,
            mask: &windows.mask,
            places: Some(Places { of: &windows.places, rows: windows.tokens }),
            ..plain
        }
    }

    /// The windows with the prompts that samples of `tokens` have beyond the map's; `None` if there are none.
    fn prompted(&self, tokens: usize) -> Option<Arc<Prompted>> {
        let windows = &self.windows.as_ref()?.windows;
        let prompts = tokens.checked_sub(windows.tokens).filter(|n| *n > 0)?;
        let mut all = self.prompted.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || Arc::new(Prompted::new(windows, &self.bias, prompts));
        Some(all.entry(prompts).or_insert_with(made).clone())
    }

    /// The attention's result for the first `asking` tokens of each sample.
    fn attend(
        &self,
        [samples, tokens, asking]: [usize; 3],
        qkv: &Tiles<T>,
        extra: Option<&Extra<'_, T>>,
    ) -> Tiles<T> {
        let columns = self.qkv.outputs() / 3;
        if let Some(prompted) = self.prompted(tokens) {
            let sizes = prompted.attention(samples, self.heads, columns / self.heads);
            let mut attended = Tiles::new(sizes.batch * sizes.tokens, columns);
            attention::forward(isa(), sizes, &prompted.gather(qkv, samples), extra, &mut attended);
            return prompted.mean(&attended, samples);
        }
        let mut attended = Tiles::new(samples * asking, columns);
        attention::forward(isa(), self.attention(samples, tokens, asking), qkv, extra, &mut attended);
        attended
    }

    /// The gradient of the projections, and that of keys and values of every sample or window.
    fn attend_back(
        &self,
        [samples, tokens, asking]: [usize; 3],
        qkv: &Tiles<T>,
        keys_values: Option<&KeysValues<T>>,
        grad: &Tiles<T>,
    ) -> (Tiles<T>, Option<Vec<f32>>) {
        let columns = self.qkv.outputs();
        let prompted = self.prompted(tokens);
        let (sizes, gathered) = match &prompted {
            Some(p) => {
                let sizes = p.attention(samples, self.heads, columns / 3 / self.heads);
                (sizes, Some((p.gather(qkv, samples), p.spread(grad, samples))))
            }
            None => (self.attention(samples, tokens, asking), None),
        };
        let (qkv, grad) = gathered.as_ref().map_or((qkv, grad), |(qkv, grad)| (qkv, grad));
        let rows = if prompted.is_some() { sizes.batch * sizes.tokens } else { samples * tokens };
        let mut projections = Tiles::new(rows, columns);
        let extra = keys_values.map(KeysValues::extra);
        let mut of_samples = keys_values.map(|kv| uncleared(sizes.batch * kv.len()));
        let both = extra.as_ref().zip(of_samples.as_deref_mut());
        attention::backward(isa(), sizes, qkv, both, grad, &mut projections);
        let projections = match &prompted {
            Some(prompted) => prompted.sum(&projections, samples),
            None => projections,
        };
        (projections, of_samples)
    }

    fn normalise(&self, x: &[f32], prompt: &[f32], width: usize) -> (Tiles<T>, Vec<f32>) {
        let Some(eps) = self.eps else { return (Tiles::rounded(isa(), x, prompt, &[], width), Vec::new()) };
        let rows = x.len() / width;
        let (mut out, mut inverse) = (Tiles::new(rows, width), vec![0.0; rows]);
        norm::forward(isa(), x, prompt, eps, &mut out, &mut inverse);
        (out, inverse)
    }

    /// The gradient of a norm's input, given that of its output and what goes around it.
    fn before_norm(&self, normed: &Tiles<T>, inverse: &[f32], grad: &[f32], around: &[f32], out: &mut [f32]) {
        if self.eps.is_some() {
            return norm::backward(isa(), normed, inverse, grad, around, out);
        }
        for ((out, grad), around) in out.iter_mut().zip(grad).zip(around) {
            *out = grad + around;
        }
    }

    /// Queries, keys and values, and behind them those of padding where there is some; with the update's `t`. Padding is
    /// zero, so that an update adds nothing to it.
    fn project(&self, normed: &Tiles<T>, learnt: Learnt<'_>) -> (Tiles<T>, Vec<f32>) {
        let mut qkv = Tiles::new(normed.rows(), self.qkv.outputs());
        let store = Store::tiles(&mut qkv).bias(self.qkv.bias());
        let thin = self.qkv.forward_updated(learnt.update(QKV), normed, store);
        let qkv = match &self.windows {
            Some(w) if w.windows.is_padded() => {
                let mut rows = qkv.to_rows();
                rows.extend(w.padding.iter().map(|v| T::from_f32(*v)));
                Tiles::from_rows(&rows, self.qkv.outputs())
            }
            _ => qkv,
        };
        (qkv, thin)
    }

    /// The first `asking` tokens of each sample, behind the block.
    fn forward_some(
        &self,
        x: &[f32],
        shape: &[usize],
        prompt: &[f32],
        learnt: Learnt<'_>,
        keep: bool,
        asking: usize,
    ) -> (Vec<f32>, Option<Kept>) {
        let (samples, width) = (shape[0], shape[2]);
        let (columns, hidden) = (self.proj.outputs(), self.fc1.outputs());
        let (normed1, inverse1) = self.normalise(x, prompt, width);
        let (tokens, asking, (qkv, thin_qkv)) = match &self.shrink {
            Some(h) => {
                let tokens = shape[1] / 4;
                (tokens, tokens, self.project(&h.normed(&normed1, samples), learnt))
            }
            None => (shape[1], asking, self.project(&normed1, learnt)),
        };
        let rows = samples * asking;
        let keys_values = learnt.keys_values::<T>(self.qkv.outputs() / 3);
        let extra = keys_values.as_ref().map(KeysValues::extra);
        let attended = self.attend([samples, tokens, asking], &qkv, extra.as_ref());
        let mut y = uncleared(rows * columns);
        let update = learnt.update(PROJ);
        let thin_proj = if let Some(h) = &self.shrink {
            let around = self.around(h, x, shape, prompt);
            let residual = Residual::new(&around, &[], self.proj.bias(), &mut y, columns);
            self.proj.forward_updated(update, &attended, residual)
        } else {
            let x = first_rows(x, shape, asking);
            let prompt = prompt.get(..asking * width).unwrap_or_default();
            let residual = Residual::new(&x, prompt, self.proj.bias(), &mut y, columns);
            self.proj.forward_updated(update, &attended, residual)
        };
        let attended = (keep && learnt.sees(PROJ)).then_some(attended);
        let (normed2, inverse2) = self.normalise(&y, &[], columns);
        let mut before = keep.then(|| Tiles::new(rows, hidden));
        let mut inner = Tiles::new(rows, hidden);
        let mut activate = Activate::new(self.activation, self.fc1.bias(), &mut inner);
        if let Some(before) = &mut before {
            activate = activate.keep(before);
        }
        let thin_fc1 = self.fc1.forward_updated(learnt.update(FC1), &normed2, activate);
        let mut out = uncleared(rows * columns);
        let update = learnt.update(FC2);
        let residual = Residual::new(&y, &[], self.fc2.bias(), &mut out, columns);
        let thin_fc2 = self.fc2.forward_updated(update, &inner, residual);
        let kept = before.map(|before| {
            let inner = learnt.sees(FC2).then_some(inner);
            let thin = [thin_qkv, thin_proj, thin_fc1, thin_fc2];
            let inside = SavedInside { thin, keys_values, attended, inner };
            Box::new(Saved { normed1, inverse1, qkv, normed2, inverse2, before, inside }) as Kept
        });
        (out, kept)
    }

    /// `expand(mean(x + P))`.
    fn around(&self, h: &Halved<T>, x: &[f32], shape: &[usize], prompt: &[f32]) -> Vec<f32> {
        let rows = shape[0] * shape[1] / 4;
        let mut halved = Tiles::new(rows, shape[2]);
        let pixels = Rows::new(x, shape[2]).prompt(prompt);
        h.means.run(isa(), &pixels, shape[0], h.size, &Store::tiles(&mut halved));
        let mut around = uncleared(rows * h.expand.outputs());
        let store = Store::new(&mut around, h.expand.outputs()).bias(h.expand.bias());
        h.expand.forward(&halved, &store);
        around
    }

    /// The gradients of the stream and of what is learnt, as far as they are wanted.
    fn backward_some(
        &self,
        kept: Kept,
        shape: &[usize],
        learnt: Learnt<'_>,
        grad: &[f32],
        wanted: Wanted,
        asking: usize,
    ) -> (Vec<f32>, Vec<f32>) {
        let Saved { normed1, inverse1, qkv, normed2, inverse2, before, inside } =
            *kept.downcast::<Saved<T>>().expect("its own");
        let SavedInside { thin, keys_values, attended, inner } = inside;
        let (samples, width) = (shape[0], shape[2]);
        let (columns, hidden) = (self.proj.outputs(), self.fc1.outputs());
        let [tokens, asking] = if self.shrink.is_some() { [shape[1] / 4; 2] } else { [shape[1], asking] };
        let rows = samples * asking;
        let mut gradient = learnt.gradient(wanted);
        let goes_on = |step| learnt.goes_on(wanted, step);
        let layers = learnt.learns_layers(wanted);

        let (upper, update) = (Rounded::new(grad, columns), learnt.update(FC2));
        let back = update.map(|update| {
            let inner = inner.as_ref().expect("kept where fc2 is updated");
            update.back(&upper, &thin[FC2], inner, &mut gradient)
        });
        if let Some(inner) = inner.as_ref().filter(|_| layers) {
            let upper = Tiles::rounded(isa(), grad, &[], &[], columns);
            learnt.layer_gradient(FC2, inner, &upper, samples, &mut gradient);
        }
        if !goes_on(Step::Fc2) {
            return (Vec::new(), gradient);
        }
        drop(inner);
        let mut inner = Tiles::new(rows, hidden);
        let multiply = Multiply::new(self.activation, &before, &mut inner);
        self.fc2.backward_updated(update, &upper, &back.unwrap_or_default(), multiply);
        drop(before);

        let update = learnt.update(FC1);
        let back = update.map(|update| update.back(&inner, &thin[FC1], &normed2, &mut gradient));
        if layers {
            learnt.layer_gradient(FC1, &normed2, &inner, samples, &mut gradient);
        }
        if !goes_on(Step::Fc1) {
            return (Vec::new(), gradient);
        }
        let mut branch = uncleared(rows * columns);
        let store = Store::new(&mut branch, columns);
        self.fc1.backward_updated(update, &inner, &back.unwrap_or_default(), store);
        drop(inner);
        let mut middle = uncleared(rows * columns);
        self.before_norm(&normed2, &inverse2, &branch, grad, &mut middle);
        drop(normed2);

        let (upper, update) = (Rounded::new(&middle, columns), learnt.update(PROJ));
        let back = update.map(|update| {
            let attended = attended.as_ref().expect("kept where proj is updated");
            update.back(&upper, &thin[PROJ], attended, &mut gradient)
        });
        if let Some(attended) = attended.as_ref().filter(|_| layers) {
            let upper = Tiles::rounded(isa(), &middle, &[], &[], columns);
            learnt.layer_gradient(PROJ, attended, &upper, samples, &mut gradient);
        }
        if !goes_on(Step::Proj) {
            return (Vec::new(), gradient);
        }
        drop(attended);
        let mut attended = Tiles::new(rows, self.qkv.outputs() / 3);
        let store = Store::tiles(&mut attended);
        self.proj.backward_updated(update, &upper, &back.unwrap_or_default(), store);

        let sizes = [samples, tokens, asking];
        let (projections, of_samples) = self.attend_back(sizes, &qkv, keys_values.as_ref(), &attended);
        if let Some(of_samples) = of_samples {
            learnt.sum_keys_values(&of_samples, &mut gradient);
        }
        drop(qkv);
        if !goes_on(Step::Attention) {
            return (Vec::new(), gradient);
        }

        let update = learnt.update(QKV);
        let back = update.map(|update| {
            let back = |x: &Tiles<T>, to: &mut [f32]| update.back(&projections, &thin[QKV], x, to);
            match &self.shrink {
                Some(h) if wanted.learnt => back(&h.normed(&normed1, samples), &mut gradient),
                _ => back(&normed1, &mut gradient),
            }
        });
        if layers {
            learnt.layer_gradient(QKV, &normed1, &projections, samples, &mut gradient);
        }
        if !wanted.stream {
            return (Vec::new(), gradient);
        }
        let mut branch = uncleared(samples * tokens * width);
        let store = Store::new(&mut branch, width);
        self.qkv.backward_updated(update, &projections, &back.unwrap_or_default(), store);
        let mut out = uncleared(samples * shape[1] * width);
        if let Some(h) = &self.shrink {
            let mut around = uncleared(branch.len());
            h.expand.backward(&Rounded::new(&middle, columns), &Store::new(&mut around, width));
            let spread = |from: &[f32]| {
                let mut to = uncleared(samples * shape[1] * width);
                let pixels = Rows::new(from, width);
                h.means.backward(isa(), &pixels, samples, h.size, &Store::new(&mut to, width));
                to
            };
            self.before_norm(&normed1, &inverse1, &spread(&branch), &spread(&around), &mut out);
        } else {
            let middle = spread_rows(&middle, shape, asking);
            self.before_norm(&normed1, &inverse1, &branch, &middle, &mut out);
        }
        (out, gradient)
    }
}

/// The first `asking` rows of each sample of `x`.
fn first_rows<'a>(x: &'a [f32], shape: &[usize], asking: usize) -> Cow<'a, [f32]> {
    if asking == shape[1] {
        return Cow::Borrowed(x);
    }
    let samples = x.chunks_exact(shape[1] * shape[2]);
    Cow::Owned(samples.flat_map(|sample| &sample[..asking * shape[2]]).copied().collect())
}

/// The other way about: the other rows are zero.
fn spread_rows<'a>(x: &'a [f32], shape: &[usize], asking: usize) -> Cow<'a, [f32]> {
    if asking == shape[1] {
        return Cow::Borrowed(x);
    }
    let mut out = vec![0.0; shape[0] * shape[1] * shape[2]];
    let samples = out.chunks_exact_mut(shape[1] * shape[2]);
    for (sample, x) in samples.zip(x.chunks_exact(asking * shape[2])) {
        sample[..x.len()].copy_from_slice(x);
    }
    Cow::Owned(out)
}

/// What is wanted where nothing is learnt.
const STREAM: Wanted = Wanted { stream: true, learnt: false };

impl<T: Operand> FrozenOp for Packed<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        let tokens = if self.shrink.is_some() { input[1] / 4 } else { input[1] };
        vec![input[0], tokens, self.proj.outputs()]
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        self.forward_some(x, shape, prompt, Learnt::default(), keep, shape[1])
    }

    fn backward(&self, kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        self.backward_some(kept, shape, Learnt::default(), grad, STREAM, shape[1]).0
    }
}

/// The block for its first token alone.
#[derive(Debug)]
struct ClassToken<T>(Arc<Packed<T>>);

impl<T: Operand> FrozenOp for ClassToken<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        vec![input[0], 1, input[2]]
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        self.0.forward_some(x, shape, prompt, Learnt::default(), keep, 1)
    }

    fn backward(&self, kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        self.0.backward_some(kept, shape, Learnt::default(), grad, STREAM, 1).0
    }
}

impl<T: Operand> Learns for Packed<T> {
    fn learning(self: Arc<Self>, inside: Inside, class_token: bool) -> Arc<dyn LearningOp> {
        let size = |layer: &FrozenLinear<T>| [layer.inputs(), layer.outputs()];
        let layout = Layout::new(inside, [&self.qkv, &self.proj, &self.fc1, &self.fc2].map(size));
        Arc::new(Learning { block: self, layout, class_token })
    }
}

/// The block with something learnt inside.
#[derive(Debug)]
struct Learning<T> {
    block: Arc<Packed<T>>,
    layout: Layout,
    /// For its first token alone.
    class_token: bool,
}

impl<T: Operand> Learning<T> {
    fn asking(&self, shape: &[usize]) -> usize {
        if self.class_token { 1 } else { shape[1] }
    }
}

impl<T: Operand> LearningOp for Learning<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        if self.class_token { vec![input[0], 1, input[2]] } else { self.block.output_shape(input) }
    }

    fn forward(
        &self,
        x: &[f32],
        shape: &[usize],
        prompt: &[f32],
        learnt: &[f32],
        keep: bool,
    ) -> (Vec<f32>, Option<Kept>) {
        let learnt = Learnt::new(&self.layout, learnt);
        self.block.forward_some(x, shape, prompt, learnt, keep, self.asking(shape))
    }

    fn backward(
        &self,
        kept: Kept,
        shape: &[usize],
        learnt: &[f32],
        grad: &[f32],
        wanted: Wanted,
    ) -> (Vec<f32>, Vec<f32>) {
        let learnt = Learnt::new(&self.layout, learnt);
        self.block.backward_some(kept, shape, learnt, grad, wanted, self.asking(shape))
    }
}
