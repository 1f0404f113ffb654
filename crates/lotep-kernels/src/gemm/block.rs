//! Blocks of rows of `A`, in the forms in which products read them.

use std::ops::Range;

use super::micro::Unit;
use super::{GROUPS, PANEL, Pieces, TILE_ROWS};
use crate::isa::Kind;
use crate::scratch::{Line, block, block_mut};
use crate::simd::Simd;
use crate::{Isa, Operand};

/// Lines of the summed axis to take at a time where rows are many. A panel of as many is 96 KiB: with the rows that pass
/// by it, it stays in the second-level cache. (Measured: shorter parts, for the first-level cache, gain nothing, since
/// sums are stored and loaded between them.) A piece of more is taken whole.
const PART: usize = 48;
/// The same of turned tiles, for the first-level cache. (Measured on Zen 3, whose second-level cache has 512 KiB: 2 to 10 %
/// over [`PART`]; without turning nothing.)
const TURNED_PART: usize = 8;

/// Lines of the summed axis, of `lines`, for [`Unit::add_part`] to take at a time: parts as equal as may be, of
/// [`TURNED_PART`] or [`PART`] at most.
fn part<const TURNED: bool>(lines: usize) -> usize {
    let most = if TURNED { TURNED_PART } else { PART };
    lines.div_ceil(lines.div_ceil(most).max(1)).max(1)
}

/// Whether rows of `A` that are packed already are turned first, by [`turn`]: where vectors are not [wide](Simd::WIDE). A
/// line then has the same group of sixteen rows, and a product reads what it multiplies at once from one line instead of six (or
/// four). (Measured in f32 on AVX2, Zen 3: 85 GFLOP/s, 76 without, of the 92 that registers alone reach. Rows further apart,
/// so that they are in different banks of the cache, gain nothing; windows of feature maps, when they were packed, lost by turning
/// what they gained.)
pub(crate) fn turns(isa: Isa) -> bool {
    isa.kind() < Kind::Avx512
}

/// Turn tiles.
#[inline(always)]
pub(crate) fn turn<S: Simd>(s: S, from: &[Line], to: &mut [Line]) {
    assert!(from.len() <= to.len(), "room for the tiles");
    for (from, to) in from.chunks_exact(TILE_ROWS).zip(to.chunks_exact_mut(TILE_ROWS)) {
        s.transpose(block(from), block_mut(to));
    }
}

/// Whether rows in [`Pieces`] are read where they lie: by vectors. Tile instructions want rows a constant step apart, so for
/// them they are packed. (Measured on Zen 5, a thread, feature maps of ResNet-18 in bfloat16: 3 × 3 convolutions run at 470 to 510
/// GFLOP/s, of 525 on registers alone; with packing at 330 of 64 channels, 420 of 128, 450 to 460 of 256 and 512. A piece's lines are
/// the next tap's as well, and so in the first-level cache, where packed ones come from the second.)
pub(crate) fn in_place<T: Operand>(isa: Isa) -> bool {
    isa.kind() < Kind::Amx || T::GROUP == 1
}

/// Rows of `A`, in tiles of sixteen.
pub(crate) trait Block<T: Operand> {
    /// Lines of the summed axis to take at a time.
    fn part(&self) -> usize;

    /// Over `part` of the lines, `sums (+)= A b` for one or two `tiles`: the first part sets the sums, others add to them. `b` is
    /// a whole panel, and sums are in rows of [`PANEL`]. With `ahead` as many lines as the part's, those that
    /// follow them, are asked for; `soon` is told which rows' sums are next ([`Unit::add_part`]), counted from
    /// the first tile's first; they may reach beyond the last row there is.
    fn add<S: Simd>(
        &self,
        unit: &Unit<T, S>,
        tiles: Range<usize>,
        part: Range<usize>,
        b: &[Line],
        sums: &mut [f32],
        ahead: bool,
        soon: &impl Fn(Range<usize>),
    );
}

/// Tiles one after another.
pub(crate) struct Packed<'a, const TURNED: bool> {
    tiles: &'a [Line],
    /// Of each row.
    lines: usize,
}

impl<'a, const TURNED: bool> Packed<'a, TURNED> {
    pub(crate) fn new(tiles: &'a [Line], lines: usize) -> Self {
        Self { tiles, lines }
    }
}

impl<T: Operand, const TURNED: bool> Block<T> for Packed<'_, TURNED> {
    #[inline(always)]
    fn part(&self) -> usize {
        part::<TURNED>(self.lines)
    }

    #[inline(always)]
    fn add<S: Simd>(
        &self,
        unit: &Unit<T, S>,
        tiles: Range<usize>,
        part: Range<usize>,
        b: &[Line],
        sums: &mut [f32],
        ahead: bool,
        soon: &impl Fn(Range<usize>),
    ) {
        let tile = self.lines * TILE_ROWS;
        let tiles = &self.tiles[tiles.start * tile..tiles.end * tile];
        unit.add_part::<TURNED>(tiles, self.lines, part, b, sums, PANEL, ahead, soon);
    }
}

/// Rows whose pieces were found.
pub(crate) struct Found<'a, T> {
    pieces: Pieces<'a, T>,
    /// Of each tile's pieces in turn, those of the sixteen rows.
    starts: &'a [[u32; TILE_ROWS]],
}

impl<'a, T: Operand> Found<'a, T> {
    pub(crate) fn new(pieces: Pieces<'a, T>, starts: &'a [[u32; TILE_ROWS]]) -> Self {
        Self { pieces, starts }
    }
}

impl<T: Operand> Block<T> for Found<'_, T> {
    /// Whole pieces.
    #[inline(always)]
    fn part(&self) -> usize {
        let (count, lines) = (self.pieces.count(), self.pieces.line_count());
        let most = (PART / lines).clamp(1, count);
        count.div_ceil(count.div_ceil(most)) * lines
    }

    #[inline(always)]
    fn add<S: Simd>(
        &self,
        unit: &Unit<T, S>,
        tiles: Range<usize>,
        part: Range<usize>,
        b: &[Line],
        sums: &mut [f32],
        ahead: bool,
        soon: &impl Fn(Range<usize>),
    ) {
        let (count, lines) = (self.pieces.count(), self.pieces.line_count());
        let b = &b[part.start * 2 * GROUPS..part.end * 2 * GROUPS];
        for (half, (tile, sums)) in tiles.zip(sums.chunks_mut(TILE_ROWS * PANEL)).enumerate() {
            soon(half * TILE_ROWS..(half + 1) * TILE_ROWS);
            let starts = &self.starts[tile * count..(tile + 1) * count][part.start / lines..part.end / lines];
            unit.add_pieces(
                self.pieces.lines(),
                starts,
                lines,
                b,
                sums,
                part.start > 0,
                ahead.then_some(half),
            );
        }
    }
}
