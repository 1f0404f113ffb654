//! Where a product's rows come from.

use super::{PackedRow, TILE_ROWS, line};
use crate::depthwise::Pixels;
use crate::scratch::Line;
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
    /// What its rows are made of, where that lies in tiles already; then [`Source::find`] is there, too.
    #[doc(hidden)]
    fn pieces(&self) -> Option<Pieces<'_, T>> {
        None
    }
    /// For the sixteen rows from `row` on, where each piece begins: its first line among those of the tiles, or [`NOWHERE`],
    /// as for rows beyond the last. To be `#[inline(always)]`.
    #[doc(hidden)]
    fn find(&self, _row: usize, _starts: &mut [[u32; TILE_ROWS]]) {
        unreachable!("only rows in pieces are looked for");
    }
}

/// Rows that each consist of the same number of whole rows of tiles, or of zeros in their place: the windows of a feature map.
pub struct Pieces<'a, T> {
    tiles: &'a Tiles<T>,
    count: usize,
}

impl<T> Clone for Pieces<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Pieces<'_, T> {}

/// Where a piece of zeros begins.
pub(crate) const NOWHERE: u32 = u32::MAX;

impl<'a, T: Operand> Pieces<'a, T> {
    /// `count` rows of `tiles` in each row; `None` where there is nothing, or more lines than [`NOWHERE`] lets tell apart.
    pub(crate) fn new(tiles: &'a Tiles<T>, count: usize) -> Option<Self> {
        let pieces = Self { tiles, count };
        let lines = u32::try_from(pieces.lines().len()).is_ok_and(|lines| lines > 0 && lines < NOWHERE);
        (count > 0 && lines).then_some(pieces)
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Lines of a piece; they lie a tile's height apart.
    pub(crate) fn line_count(&self) -> usize {
        self.tiles.per_row()
    }

    /// Of all tiles.
    pub(crate) fn lines(&self) -> &'a [Line] {
        self.tiles.all_lines()
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
