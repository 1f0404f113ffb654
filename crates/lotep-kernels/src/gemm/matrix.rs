//! A frozen matrix, packed once.

use std::marker::PhantomData;

use rayon::prelude::*;

use super::{GROUPS, PANEL, line};
use crate::Operand;
use crate::scratch::Line;
use crate::simd::LANES;

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
    /// Pack a matrix whose element `(k, n)` is `at(k, n)`.
    pub fn pack(depth: usize, columns: usize, at: impl Fn(usize, usize) -> f32 + Sync) -> Self {
        let lines = depth.div_ceil(line::<T>());
        let panels = columns.div_ceil(PANEL);
        let mut data = vec![Line::ZERO; panels * lines * 2 * GROUPS];
        data.par_chunks_mut(GROUPS).enumerate().for_each(|(tile, rows)| {
            let (panel, l, half) = (tile / (2 * lines), tile / 2 % lines, tile % 2);
            for (g, row) in rows.iter_mut().enumerate() {
                for (c, group) in row.0.iter_mut().enumerate() {
                    let n = panel * PANEL + half * LANES + c;
                    let k = l * line::<T>() + g * T::GROUP;
                    let value = |k: usize| if k < depth && n < columns { at(k, n) } else { 0.0 };
                    *group = T::group([value(k), if T::GROUP == 2 { value(k + 1) } else { 0.0 }]);
                }
            }
        });
        Self { data, depth, columns, element: PhantomData }
    }

    /// Element `(k, n)`, as it was rounded.
    pub(crate) fn get(&self, k: usize, n: usize) -> f32 {
        let (l, g) = (k / line::<T>(), k % line::<T>() / T::GROUP);
        let row = ((n / PANEL * self.lines() + l) * 2 + n % PANEL / LANES) * GROUPS + g;
        T::ungroup(self.data[row].0[n % LANES])[k % T::GROUP]
    }

    /// The transposed matrix, packed.
    #[must_use]
    pub fn transposed(&self) -> Self {
        Self::pack(self.columns, self.depth, |k, n| self.get(n, k))
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
