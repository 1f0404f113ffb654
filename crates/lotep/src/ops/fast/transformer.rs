//! A pre-norm transformer block: attention and a perceptron, each around the residual stream.

use std::borrow::Cow;
use std::sync::Arc;

use lotep_kernels::gemm::{Activate, Activation, Multiply, Residual, Rounded, Store};
use lotep_kernels::{
    Buffer, Operand, Tiles,
    attention::{self, Attention},
    norm,
};

use super::{FrozenLinear, FrozenOp, Kept, isa};

/// `x' = x + P`, `y = x' + proj(attention(qkv(LN(x'))))`, `out = y + fc2(GELU(fc1(LN(y))))`, the norms' scales and
/// shifts inside `qkv` and `fc1`.
#[derive(Debug)]
pub(crate) struct Transformer<T> {
    pub(crate) heads: usize,
    pub(crate) eps: f32,
    pub(crate) qkv: FrozenLinear<T>,
    pub(crate) proj: FrozenLinear<T>,
    pub(crate) fc1: FrozenLinear<T>,
    pub(crate) fc2: FrozenLinear<T>,
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
}

impl<T: Operand> Transformer<T> {
    fn attention(&self, shape: &[usize], asking: usize) -> Attention<'static> {
        Attention {
            queries: asking,
            ..Attention::plain(shape[0], shape[1], self.heads, shape[2] / self.heads)
        }
    }

    fn normalise(&self, x: &[f32], prompt: &[f32], width: usize) -> (Tiles<T>, Vec<f32>) {
        let rows = x.len() / width;
        let (mut out, mut inverse) = (Tiles::new(rows, width), vec![0.0; rows]);
        norm::forward(isa(), x, prompt, self.eps, &mut out, &mut inverse);
        (out, inverse)
    }

    /// The first `asking` tokens of each sample, behind the block.
    fn forward_some(
        &self,
        x: &[f32],
        shape: &[usize],
        prompt: &[f32],
        keep: bool,
        asking: usize,
    ) -> (Vec<f32>, Option<Kept>) {
        let (width, hidden) = (shape[2], self.fc1.outputs());
        let (normed1, inverse1) = self.normalise(x, prompt, width);
        let mut qkv = Tiles::new(shape[0] * shape[1], 3 * width);
        self.qkv.forward(&normed1, &Store::tiles(&mut qkv).bias(self.qkv.bias()));
        let rows = shape[0] * asking;
        let mut attended = Tiles::new(rows, width);
        attention::forward(isa(), self.attention(shape, asking), &qkv, None, &mut attended);
        let x = first_rows(x, shape, asking);
        let prompt = prompt.get(..asking * width).unwrap_or_default();
        let mut y = Buffer::new(rows * width);
        self.proj.forward(&attended, &Residual::new(&x, prompt, self.proj.bias(), &mut y, width));
        drop(attended);
        let (normed2, inverse2) = self.normalise(&y, &[], width);
        let mut before = keep.then(|| Tiles::new(rows, hidden));
        let mut inner = Tiles::new(rows, hidden);
        let mut activate = Activate::new(Activation::Gelu, self.fc1.bias(), &mut inner);
        if let Some(before) = &mut before {
            activate = activate.keep(before);
        }
        self.fc1.forward(&normed2, &activate);
        let mut out = vec![0.0; rows * width];
        self.fc2.forward(&inner, &Residual::new(&y, &[], self.fc2.bias(), &mut out, width));
        let kept = before
            .map(|before| Box::new(Saved { normed1, inverse1, qkv, normed2, inverse2, before }) as Kept);
        (out, kept)
    }

    fn backward_some(&self, kept: Kept, shape: &[usize], grad: &[f32], asking: usize) -> Vec<f32> {
        let Saved { normed1, inverse1, qkv, normed2, inverse2, before } =
            *kept.downcast::<Saved<T>>().expect("its own");
        let (rows, width, hidden) = (shape[0] * asking, shape[2], self.fc1.outputs());
        let mut inner = Tiles::new(rows, hidden);
        let multiply = Multiply::new(Activation::Gelu, &before, &mut inner);
        self.fc2.backward(&Rounded::new(grad, width), &multiply);
        drop(before);
        let mut branch = Buffer::new(rows * width);
        self.fc1.backward(&inner, &Store::new(&mut branch, width));
        drop(inner);
        let mut middle = Buffer::new(rows * width);
        norm::backward(isa(), &normed2, &inverse2, &branch, grad, &mut middle);
        drop(normed2);
        let mut attended = Tiles::new(rows, width);
        self.proj.backward(&Rounded::new(&middle, width), &Store::tiles(&mut attended));
        let mut projections = Tiles::new(shape[0] * shape[1], 3 * width);
        let sizes = self.attention(shape, asking);
        attention::backward(isa(), sizes, &qkv, None, &attended, &mut projections);
        drop(qkv);
        let mut branch = Buffer::new(shape[0] * shape[1] * width);
        self.qkv.backward(&projections, &Store::new(&mut branch, width));
        let middle = spread_rows(&middle, shape, asking);
        let mut out = vec![0.0; shape[0] * shape[1] * width];
        norm::backward(isa(), &normed1, &inverse1, &branch, &middle, &mut out);
        out
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

impl<T: Operand> FrozenOp for Transformer<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        input.to_vec()
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        self.forward_some(x, shape, prompt, keep, shape[1])
    }

    fn backward(&self, kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        self.backward_some(kept, shape, grad, shape[1])
    }
}

/// The block for its first token alone, the class token: nothing else of a last block's output is read, so behind
/// the attention nothing else is computed. `[B, N, C]` to `[B, 1, C]`.
#[derive(Debug)]
pub(crate) struct ClassToken<T>(pub(crate) Arc<Transformer<T>>);

impl<T: Operand> FrozenOp for ClassToken<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        vec![input[0], 1, input[2]]
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        self.0.forward_some(x, shape, prompt, keep, 1)
    }

    fn backward(&self, kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        self.0.backward_some(kept, shape, grad, 1)
    }
}
