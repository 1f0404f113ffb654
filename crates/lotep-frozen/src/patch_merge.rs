//! What halves Swin's maps between stages.

use std::sync::Arc;

use lotep_kernels::gemm::{Rounded, Store};
use lotep_kernels::memory::uncleared;
use lotep_kernels::{Operand, Tiles, norm};
use rayon::prelude::*;

use crate::linear::{Dense, FrozenLinear};
use crate::{FrozenOp, Kept, Precision, isa, packed};

/// `reduce(LN([x(0,0), x(1,0), x(0,1), x(1,1)]))` of each 2 × 2 pixels of maps `[B, H, W, C]`, zeros beyond an odd
/// side; the norm's scale and shift inside `reduce`.
///
/// Kept: the normalised rows in the operands' precision, and an f32 each.
#[derive(Debug)]
pub struct PatchMerge {
    /// `4 C` inputs.
    pub reduce: Dense,
    /// Added to the norm's variance.
    pub eps: f32,
}

impl PatchMerge {
    /// Pack it.
    pub fn pack(self, precision: Precision) -> Arc<dyn FrozenOp> {
        packed!(self, precision)
    }

    fn packed<T: Operand>(self) -> Arc<dyn FrozenOp> {
        Arc::new(Packed { reduce: FrozenLinear::<T>::new(self.reduce), eps: self.eps })
    }
}

#[derive(Debug)]
struct Packed<T> {
    reduce: FrozenLinear<T>,
    eps: f32,
}

struct Normed<T> {
    rows: Tiles<T>,
    inverse: Vec<f32>,
}

/// Where the four pixels of row `i` of the merged maps are in the map, in their order; those beyond it are nowhere.
fn four(shape: &[usize], i: usize) -> [Option<usize>; 4] {
    let (height, width) = (shape[1], shape[2]);
    let (h, w) = (height.div_ceil(2), width.div_ceil(2));
    let (image, y, x) = (i / (h * w), i / w % h * 2, i % w * 2);
    [[0, 0], [1, 0], [0, 1], [1, 1]].map(|[dy, dx]| {
        let inside = y + dy < height && x + dx < width;
        inside.then(|| (image * height + y + dy) * width + x + dx)
    })
}

fn merged(shape: &[usize]) -> Vec<usize> {
    vec![shape[0], shape[1].div_ceil(2), shape[2].div_ceil(2)]
}

impl<T: Operand> FrozenOp for Packed<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        let mut shape = merged(input);
        shape.push(self.reduce.outputs());
        shape
    }

    fn forward(&self, x: &[f32], shape: &[usize], _prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        let c = shape[3];
        let count: usize = merged(shape).iter().product();
        let mut fours = uncleared(count * 4 * c);
        fours.par_chunks_mut(4 * c).enumerate().with_min_len(64).for_each(|(i, row)| {
            for (to, from) in row.chunks_mut(c).zip(four(shape, i)) {
                match from {
                    Some(pixel) => to.copy_from_slice(&x[pixel * c..(pixel + 1) * c]),
                    None => to.fill(0.0),
                }
            }
        });
        let (mut rows, mut inverse) = (Tiles::<T>::new(count, 4 * c), vec![0.0; count]);
        norm::forward(isa(), &fours, &[], self.eps, &mut rows, &mut inverse);
        drop(fours);
        let columns = self.reduce.outputs();
        let mut out = vec![0.0; count * columns];
        self.reduce.forward(&rows, &Store::new(&mut out, columns).bias(self.reduce.bias()));
        (out, keep.then(|| Box::new(Normed { rows, inverse }) as Kept))
    }

    fn backward(&self, kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        let Normed { rows, inverse } = *kept.downcast::<Normed<T>>().expect("its own");
        let (c, count) = (shape[3], rows.rows());
        let mut branch = uncleared(count * 4 * c);
        let from = Rounded::new(grad, self.reduce.outputs());
        self.reduce.backward(&from, &Store::new(&mut branch, 4 * c));
        let mut fours = uncleared(branch.len());
        norm::backward(isa(), &rows, &inverse, &branch, &[], &mut fours);
        let mut out = vec![0.0; shape.iter().product()];
        for (i, row) in fours.chunks(4 * c).enumerate() {
            for (from, to) in row.chunks(c).zip(four(shape, i)) {
                if let Some(pixel) = to {
                    out[pixel * c..(pixel + 1) * c].copy_from_slice(from);
                }
            }
        }
        out
    }
}
