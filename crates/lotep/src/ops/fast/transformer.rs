//! A pre-norm transformer block: attention and a perceptron, each around the residual stream.

use lotep_kernels::gemm::{Activate, Activation, Multiply, Residual, Rounded, Store};
use lotep_kernels::{
    Operand, Tiles,
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
    fn attention(&self, shape: &[usize]) -> Attention<'static> {
        Attention::plain(shape[0], shape[1], self.heads, shape[2] / self.heads)
    }

    fn normalise(&self, x: &[f32], prompt: &[f32], width: usize) -> (Tiles<T>, Vec<f32>) {
        let rows = x.len() / width;
        let (mut out, mut inverse) = (Tiles::new(rows, width), vec![0.0; rows]);
        norm::forward(isa(), x, prompt, self.eps, &mut out, &mut inverse);
        (out, inverse)
    }
}

impl<T: Operand> FrozenOp for Transformer<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        input.to_vec()
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        let (rows, width, hidden) = (shape[0] * shape[1], shape[2], self.fc1.outputs());
        let (normed1, inverse1) = self.normalise(x, prompt, width);
        let mut qkv = Tiles::new(rows, 3 * width);
        self.qkv.forward(&normed1, &Store::tiles(&mut qkv).bias(self.qkv.bias()));
        let mut attended = Tiles::new(rows, width);
        attention::forward(isa(), self.attention(shape), &qkv, None, &mut attended);
        let mut y = vec![0.0; rows * width];
        self.proj.forward(&attended, &Residual::new(x, prompt, self.proj.bias(), &mut y, width));
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

    fn backward(&self, kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        let Saved { normed1, inverse1, qkv, normed2, inverse2, before } =
            *kept.downcast::<Saved<T>>().expect("its own");
        let (rows, width, hidden) = (shape[0] * shape[1], shape[2], self.fc1.outputs());
        let mut inner = Tiles::new(rows, hidden);
        let multiply = Multiply::new(Activation::Gelu, &before, &mut inner);
        self.fc2.backward(&Rounded::new(grad, width), &multiply);
        drop(before);
        let mut branch = vec![0.0; rows * width];
        self.fc1.backward(&inner, &Store::new(&mut branch, width));
        drop(inner);
        let mut middle = vec![0.0; rows * width];
        norm::backward(isa(), &normed2, &inverse2, &branch, grad, &mut middle);
        drop(normed2);
        let mut attended = Tiles::new(rows, width);
        self.proj.backward(&Rounded::new(&middle, width), &Store::tiles(&mut attended));
        let mut projections = Tiles::new(rows, 3 * width);
        attention::backward(isa(), self.attention(shape), &qkv, None, &attended, &mut projections);
        drop(qkv);
        self.qkv.backward(&projections, &Store::new(&mut branch, width));
        let mut out = vec![0.0; rows * width];
        norm::backward(isa(), &normed1, &inverse1, &branch, &middle, &mut out);
        out
    }
}
