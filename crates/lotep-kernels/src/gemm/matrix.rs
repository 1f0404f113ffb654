//! A frozen matrix, packed once.

use std::marker::PhantomData;

use rayon::prelude::*;

use super::{GROUPS, PANEL, TILE_ROWS, line};
use crate::scratch::Line;
use crate::simd::LANES;
use crate::{Isa, Operand, Tiles};

/// A matrix of `depth` rows, over which products sum, and `columns` columns.
///
/// In panels of 32 columns, each in lines of the summed axis, each of two tiles: 16 groups × 16 columns. Padded
/// with zeros.
#[derive(Clone)]
pub struct Matrix<T> {
    data: Vec<Line>,
    depth: usize,
    columns: usize,
    element: PhantomData<T>,
}

impl<T: Operand> Matrix<T> {
    /// Pack a matrix whose element `(k, n)` is `at(k, n)`, one element at a time; what is packed often is by
    /// [`Matrix::of_weight`].
    pub fn pack(depth: usize, columns: usize, at: impl Fn(usize, usize) -> f32 + Sync) -> Self {
        Self::new(depth, columns).filled(|panel, l, half, rows| {
            for (g, row) in rows.iter_mut().enumerate() {
                for (c, group) in row.0.iter_mut().enumerate() {
                    let n = panel * PANEL + half * LANES + c;
                    let k = l * line::<T>() + g * T::GROUP;
                    let value = |k: usize| if k < depth && n < columns { at(k, n) } else { 0.0 };
                    *group = T::group([value(k), if T::GROUP == 2 { value(k + 1) } else { 0.0 }]);
                }
            }
        })
    }

    /// Element `(k, n)`, as it was rounded.
    pub(crate) fn get(&self, k: usize, n: usize) -> f32 {
        let (l, g) = (k / line::<T>(), k % line::<T>() / T::GROUP);
        let row = ((n / PANEL * self.lines() + l) * 2 + n % PANEL / LANES) * GROUPS + g;
        T::ungroup(self.data[row].0[n % LANES])[k % T::GROUP]
    }

    /// Pack a weight `[columns, depth]`, row by row: what `x Wᵀ` multiplies with.
    ///
    /// # Panics
    /// It is not made of whole rows.
    pub fn of_weight(isa: Isa, weight: &[f32], depth: usize) -> Self {
        Self::of_columns(&Tiles::rounded(isa, weight, &[], &[], depth))
    }

    /// Pack the matrix whose columns are the rows of `x`.
    pub(crate) fn of_columns(x: &Tiles<T>) -> Self {
        let new = Self::new(x.columns(), x.rows());
        new.filled(|panel, l, half, rows| {
            let first = panel * PANEL + half * LANES;
            for c in 0..x.rows().saturating_sub(first).min(LANES) {
                for (row, group) in rows.iter_mut().zip(x.row_line(first + c, l).0) {
                    row.0[c] = group;
                }
            }
        })
    }

    /// The columns as rows: what [`Matrix::of_columns`] took.
    pub(crate) fn to_columns(&self) -> Tiles<T> {
        let mut x = Tiles::new(self.columns, self.depth);
        let (lines, all) = (self.lines(), &self.data);
        if self.depth == 0 {
            return x;
        }
        x.lines_mut().par_chunks_mut(lines * TILE_ROWS).enumerate().for_each(|(tile, out)| {
            for (l, out) in out.chunks_exact_mut(TILE_ROWS).enumerate() {
                let from = ((tile / 2 * lines + l) * 2 + tile % 2) * GROUPS;
                for (g, row) in all[from..from + GROUPS].iter().enumerate() {
                    for (out, group) in out.iter_mut().zip(row.0) {
                        out.0[g] = group;
                    }
                }
            }
        });
        x
    }

    /// Pack a matrix of blocks below each other: for each of `lines`, the `columns` columns of `x` from that line on, each block
    /// filled up with rows of zeros to `per_block`. Columns beyond those, in the last line, must be zero.
    pub(crate) fn of_blocks(x: &Tiles<T>, lines: &[usize], per_block: usize, columns: usize) -> Self {
        let zeros = [T::default(); LANES];
        Self::new(lines.len() * per_block, columns).filled(|panel, l, half, rows| {
            let first = panel * PANEL + half * LANES;
            if first >= columns {
                return;
            }
            let row = |k: usize| match lines.get(k / per_block) {
                Some(line) if k % per_block < x.rows() => x.sixteen(k % per_block, *line, first),
                _ => &zeros,
            };
            for (g, out) in rows.iter_mut().enumerate() {
                let k = l * line::<T>() + g * T::GROUP;
                T::zip([row(k), row(k + T::GROUP - 1)], &mut out.0);
            }
        })
    }

    /// The transposed matrix, packed.
    #[must_use]
    pub fn transposed(&self) -> Self {
        Self::of_blocks(&self.to_columns(), &[0], self.columns, self.depth)
    }

    /// Zeros.
    fn new(depth: usize, columns: usize) -> Self {
        let (lines, panels) = (depth.div_ceil(line::<T>()), columns.div_ceil(PANEL));
        let data = vec![Line::ZERO; panels * lines * 2 * GROUPS];
        Self { data, depth, columns, element: PhantomData }
    }

    /// Fill each tile, given its panel, its line and which of the line's two it is.
    fn filled(mut self, fill: impl Fn(usize, usize, usize, &mut [Line]) + Sync) -> Self {
        let lines = self.lines();
        self.data.par_chunks_mut(GROUPS).with_min_len(64).enumerate().for_each(|(tile, rows)| {
            fill(tile / (2 * lines), tile / 2 % lines, tile % 2, rows);
        });
        self
    }

    /// Length of the summed axis.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<Line>()
    }

    pub(crate) fn lines(&self) -> usize {
        self.depth.div_ceil(line::<T>())
    }

    pub(crate) fn panels(&self) -> usize {
        self.columns.div_ceil(PANEL)
    }

    pub(crate) fn panel(&self, i: usize) -> &[Line] {
        let size = self.lines() * 2 * GROUPS;
        &self.data[i * size..(i + 1) * size]
    }
}

impl<T> std::fmt::Debug for Matrix<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix<{}>[{}, {}]", std::any::type_name::<T>(), self.depth, self.columns)
    }
}
