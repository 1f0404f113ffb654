//! A large matrix of low rank from its factors: what a low-rank prompt is.

use lotep_kernels::depthwise::Rows;
use lotep_kernels::memory::uncleared;
use lotep_kernels::thin;

use crate::{Kept, LearningOp, Wanted, isa};

/// `x w` in f32, with `x` `[rows, rank]` the stream and `w` `[rank, columns]` what is learnt. The rank is small, so that
/// this and the gradients of the two are little more than passes over the large matrix, shared out by its rows or, for the
/// gradient of `w`, by its columns.
///
/// Kept: `x`.
#[derive(Clone, Copy, Debug)]
pub struct ThinProduct {
    /// Of `w`.
    pub columns: usize,
}

impl LearningOp for ThinProduct {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        vec![input[0], self.columns]
    }

    fn forward(
        &self,
        x: &[f32],
        shape: &[usize],
        _prompt: &[f32],
        w: &[f32],
        keep: bool,
    ) -> (Vec<f32>, Option<Kept>) {
        let (rows, rank, columns) = (shape[0], shape[1], self.columns);
        assert_eq!(w.len(), rank * columns, "the second factor of {rank} rows and {columns} columns");
        let mut out = uncleared(rows * columns);
        thin::product(isa(), x, w, rank, &mut out);
        (out, keep.then(|| Box::new(x.to_vec()) as Kept))
    }

    fn backward(
        &self,
        kept: Kept,
        shape: &[usize],
        w: &[f32],
        grad: &[f32],
        wanted: Wanted,
    ) -> (Vec<f32>, Vec<f32>) {
        let x = kept.downcast::<Vec<f32>>().expect("its own");
        factors_gradients([&x, w], shape[1], grad, wanted).into()
    }
}

/// The gradients of a product's factors, `x` `[rows, rank]` (the stream) and `w` `[rank, columns]` (what is learnt), given the
/// product's; what is not wanted is empty.
pub(crate) fn factors_gradients(
    [x, w]: [&[f32]; 2],
    rank: usize,
    grad: &[f32],
    wanted: Wanted,
) -> [Vec<f32>; 2] {
    let mut of_x = uncleared(if wanted.stream { x.len() } else { 0 });
    if wanted.stream {
        thin::product_of_transposed(isa(), grad, w, rank, &mut of_x);
    }
    let mut of_w = uncleared(if wanted.learnt { w.len() } else { 0 });
    if wanted.learnt {
        thin::contract(isa(), x, rank, &Rows::new(grad, w.len() / rank), &mut of_w);
    }
    [of_x, of_w]
}
