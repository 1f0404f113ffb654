//! Where a product's rows come from.

use super::{PackedRow, line};
use crate::depthwise::Pixels;
use crate::simd::{LANES, Simd};
use crate::{Operand, Tiles};

/// Rows to multiply, brought into packed form one at a time, on several threads at once.
pub trait Source<T: Operand>: Sync {
    /// Number of rows.
    fn rows(&self) -> usize;
    /// Their length.
    fn depth(&self) -> usize;
    /// Write row `row` into `out`, the last line filled up with zeros. To be `#[inline(always)]`.
    fn pack<S: Simd>(&self, s: S, row: usize, out: PackedRow<'_>);
    /// All of it, where it is packed already.
    fn packed(&self) -> Option<&Tiles<T>> {
        None
    }
}

/// Rows that are packed already.
impl<T: Operand> Source<T> for Tiles<T> {
    fn rows(&self) -> usize {
        Tiles::rows(self)
    }

    fn depth(&self) -> usize {
        self.columns()
    }

    #[inline(always)]
    fn pack<S: Simd>(&self, _s: S, row: usize, mut out: PackedRow<'_>) {
        for i in 0..self.per_row() {
            out.line::<T>(i).copy_from_slice(self.line(row, i));
        }
    }

    fn packed(&self) -> Option<&Tiles<T>> {
        Some(self)
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

/// Before rounding.
impl Pixels for Rounded<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.x.len() / self.depth, self.depth)
    }

    #[inline(always)]
    fn load<S: Simd>(&self, s: S, pixel: usize, channel: usize, count: usize) -> S::F {
        let at = pixel * self.depth + channel;
        s.load(&self.x[at..at + count])
    }
}
