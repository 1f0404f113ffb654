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
        let (rows, rank, columns) = (shape[0], shape[1], self.columns);
        let x = kept.downcast::<Vec<f32>>().expect("its own");
        let mut of_x = vec![0.0; if wanted.stream { rows * rank } else { 0 }];
        if wanted.stream {
            thin::product_of_transposed(isa(), grad, w, rank, &mut of_x);
        }
        let mut of_w = vec![0.0; if wanted.learnt { rank * columns } else { 0 }];
        if wanted.learnt {
            thin::contract(isa(), &x, rank, &Rows::new(grad, columns), &mut of_w);
        }
        (of_x, of_w)
    }
}
