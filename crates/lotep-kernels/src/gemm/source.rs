//! Where a product's rows come from.

use super::{PackedRow, line};
use crate::Operand;
use crate::simd::{LANES, Simd};

/// Rows to multiply, brought into packed form one at a time, on several threads at once.
pub trait Source<T: Operand>: Sync {
    /// Number of rows.
    fn rows(&self) -> usize;
    /// Their length.
    fn depth(&self) -> usize;
    /// Write row `row` into `out`, the last line filled up with zeros. To be `#[inline(always)]`.
    fn pack<S: Simd>(&self, s: S, row: usize, out: PackedRow<'_>);
}

/// Rows as they lie in memory.
#[derive(Clone, Copy, Debug)]
pub struct Dense<'a, T> {
    x: &'a [T],
    depth: usize,
}

impl<'a, T> Dense<'a, T> {
    /// Rows of `depth` values.
    ///
    /// # Panics
    /// `x` is not made of whole rows.
    pub fn new(x: &'a [T], depth: usize) -> Self {
        assert!(depth > 0 && x.len().is_multiple_of(depth), "{} values in rows of {depth}", x.len());
        Self { x, depth }
    }
}

impl<T: Operand> Source<T> for Dense<'_, T> {
    #[inline(always)]
    fn rows(&self) -> usize {
        self.x.len() / self.depth
    }

    #[inline(always)]
    fn depth(&self) -> usize {
        self.depth
    }

    #[inline(always)]
    fn pack<S: Simd>(&self, _s: S, row: usize, mut out: PackedRow<'_>) {
        copy(&self.x[row * self.depth..(row + 1) * self.depth], &mut out);
    }
}

#[inline(always)]
fn copy<T: Operand>(row: &[T], out: &mut PackedRow<'_>) {
    for (i, part) in row.chunks(line::<T>()).enumerate() {
        let out = out.line::<T>(i);
        if part.len() == line::<T>() {
            out.copy_from_slice(part);
        } else {
            out[..part.len()].copy_from_slice(part);
            out[part.len()..].fill(T::default());
        }
    }
}

/// Rows of f32, rounded to the operand's type on the way, with something added first where it is given.
#[derive(Clone, Copy, Debug)]
pub struct Rounded<'a> {
    x: &'a [f32],
    depth: usize,
}

impl<'a> Rounded<'a> {
    /// Rows of `depth` values.
    ///
    /// # Panics
    /// `x` is not made of whole rows.
    pub fn new(x: &'a [f32], depth: usize) -> Self {
        assert!(depth > 0 && x.len().is_multiple_of(depth), "{} values in rows of {depth}", x.len());
        Self { x, depth }
    }
}

impl<T: Operand> Source<T> for Rounded<'_> {
    #[inline(always)]
    fn rows(&self) -> usize {
        self.x.len() / self.depth
    }

    #[inline(always)]
    fn depth(&self) -> usize {
        self.depth
    }

    #[inline(always)]
    fn pack<S: Simd>(&self, s: S, row: usize, mut out: PackedRow<'_>) {
        let row = &self.x[row * self.depth..(row + 1) * self.depth];
        for (i, part) in row.chunks(line::<T>()).enumerate() {
            let out = out.line::<T>(i);
            let mut halves = part.chunks(LANES);
            for out in out.chunks_mut(LANES) {
                T::store(s, out, s.load(halves.next().unwrap_or(&[])));
            }
        }
    }
}
