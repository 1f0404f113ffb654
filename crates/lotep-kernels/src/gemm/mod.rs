//! Products of a matrix with a frozen, packed one.
//!
//! `run` computes `C = A W` for `A` given by a [`Source`] (tiles, rows of f32, patches of an image, windows of a
//! feature map) and gives each row of sums to an [`Epilogue`].
//!
//! Work is cut into blocks of rows whose packed form stays in the second-level cache while the panels of `W`, 32
//! columns each, pass by once. A long summed axis is taken in parts, so that a part of the panel stays in the second-level
//! cache while all rows of the block pass. Both operands are packed in lines of 64 bytes: a tile of `A` is 16 rows of one
//! line, a tile of `W` 16 groups (a group being 32 bits of the summed axis) of 16 columns. That is what tile instructions
//! load, and the vector forms read the same bytes; those of narrow registers turn tiles of `A` first where it pays, and all of
//! them read the windows of a feature map where they lie ([`Pieces`]).

#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(crate) mod amx;
mod block;
mod cut;
mod epilogue;
mod matrix;
pub(crate) mod micro;
mod source;
mod stream;

pub use epilogue::{Activate, Activation, Add, Epilogue, Masked, Multiply, Output, Plain, Residual, Store};
pub(crate) use epilogue::{expect_read, load, mask_words, selected};
pub use matrix::Matrix;
pub(crate) use source::NOWHERE;
pub use source::{Pieces, Rounded, Source};
pub(crate) use stream::stored;
pub use stream::{AddTo, Join, Part};

use crate::scratch::{self, Line, elements_mut};
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::{Isa, Operand};
use block::{Block, Found, Packed};
pub(crate) use cut::Cut;

/// Rows of a tile of `A`.
pub const TILE_ROWS: usize = 16;
/// Columns of a panel of `W`: two tiles.
pub const PANEL: usize = 32;
/// Groups of a line: 16 f32 or 32 bfloat16.
pub(crate) const GROUPS: usize = 16;
/// Elements of a line.
pub const fn line<T: Operand>() -> usize {
    GROUPS * T::GROUP
}

/// Compute `C = A W` and hand `C` to the epilogue.
///
/// # Panics
/// The shapes do not fit each other.
pub fn run<T: Operand, A: Source<T>, E: Epilogue>(isa: Isa, a: &A, w: &Matrix<T>, epilogue: &E) {
    let (rows, columns) = (a.rows(), w.columns());
    assert_eq!(a.depth(), w.depth(), "the rows' length and the matrix's depth");
    epilogue.check(rows, columns);
    if rows == 0 || columns == 0 {
        return;
    }
    let lines = w.lines();
    let tiles = rows.div_ceil(TILE_ROWS);
    let pieces = a.pieces().filter(|_| block::in_place::<T>(isa));
    if let Some(pieces) = &pieces {
        assert_eq!(pieces.count() * pieces.line_count(), lines, "the rows' pieces and the matrix's lines");
    }
    // Of pieces, also where they begin.
    let tile_lines = match &pieces {
        Some(pieces) => pieces.lines().len().div_ceil(tiles) + pieces.count(),
        None => lines.max(1) * TILE_ROWS,
    };
    let there = a.packed().is_some() || pieces.is_some();
    let cut = Cut::new(tiles, tile_lines * size_of::<Line>(), there, w.panels());
    // Each share turns the rows for itself, which takes a panel or two to pay for.
    let turned = a.packed().is_some() && block::turns(isa) && w.panels() >= 2 * cut.shares();
    // Lent here rather than inside the task: a closure there would be compiled without its instructions.
    cut.run(|tiles, panels| {
        let rows = tiles.start * TILE_ROWS..(tiles.end * TILE_ROWS).min(rows);
        let tiles = tiles.len();
        let packed = match &pieces {
            Some(pieces) => tiles * pieces.count(),
            None if a.packed().is_some() && !turned => 0,
            None => tiles * lines * TILE_ROWS,
        };
        let sums = tiles.next_multiple_of(2) * TILE_ROWS * PANEL / GROUPS;
        scratch::with([packed, sums], |[packed, sums]| {
            let sums = elements_mut(sums);
            dispatch(isa, Task { a, w, epilogue, rows, panels, turned, pieces, packed, sums });
        });
    });
}

struct Task<'a, T, A, E> {
    a: &'a A,
    w: &'a Matrix<T>,
    epilogue: &'a E,
    rows: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
    /// Whether rows that are packed already are turned.
    turned: bool,
    /// What rows are made of, where it is read where it lies.
    pieces: Option<Pieces<'a, T>>,
    /// Room for packed rows, or turned ones, or for where their pieces begin.
    packed: &'a mut [Line],
    /// A panel's, of all rows.
    sums: &'a mut [f32],
}

impl<T: Operand, A: Source<T>, E: Epilogue> Kernel for Task<'_, T, A, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let packed = std::mem::take(&mut self.packed);
        let Self { a, rows, .. } = &self;
        let lines = self.w.lines();
        if let Some(all) = a.packed() {
            let all = all.tiles(rows.start / TILE_ROWS..rows.end.div_ceil(TILE_ROWS));
            if S::WIDE || !self.turned {
                return self.multiply(s, &Packed::<false>::new(all, lines));
            }
            block::turn(s, all, packed);
            return self.multiply(s, &Packed::<true>::new(packed, lines));
        }
        if let Some(pieces) = self.pieces {
            let starts = scratch::rows_mut(packed);
            for (tile, starts) in starts.chunks_exact_mut(pieces.count()).enumerate() {
                a.find(rows.start + tile * TILE_ROWS, starts);
            }
            return self.multiply(s, &Found::new(pieces, starts));
        }
        let tile = lines * TILE_ROWS;
        for (i, row) in rows.clone().enumerate().filter(|_| tile > 0) {
            let at = i / TILE_ROWS * tile + i % TILE_ROWS;
            a.pack(s, row, PackedRow::new(&mut packed[at..(i / TILE_ROWS + 1) * tile]));
        }
        self.multiply(s, &Packed::<false>::new(packed, lines));
    }
}

impl<T: Operand, A: Source<T>, E: Epilogue> Task<'_, T, A, E> {
    #[inline(always)]
    fn multiply<S: Simd>(self, s: S, block: &impl Block<T>) {
        let Self { w, rows, panels, sums, .. } = self;
        let epilogue = *self.epilogue;
        let lines = w.lines();
        let tiles = rows.len().div_ceil(TILE_ROWS);
        let unit = micro::Unit::<T, S>::new(s);
        let part = block.part();
        for (panel, start) in panels.flat_map(|p| (0..lines.max(1)).step_by(part).map(move |s| (p, s))) {
            let b = w.panel(panel);
            let column = panel * PANEL;
            let part = start..(start + part).min(lines);
            for first in (0..tiles).step_by(2) {
                let count = (rows.len() - first * TILE_ROWS).min(2 * TILE_ROWS);
                let row = rows.start + first * TILE_ROWS;
                // Where all is done at once, the same few sums serve all rows.
                let at = if part.len() == lines { 0 } else { first * TILE_ROWS * PANEL };
                let sums = &mut sums[at..at + 2 * TILE_ROWS * PANEL];
                let last = part.end == lines;
                // A closure can do this without its instructions: it only asks for memory.
                let soon = |next: std::ops::Range<usize>| {
                    let next = next.start..next.end.min(count);
                    if last && !next.is_empty() {
                        epilogue.expect(s, row + next.start, next.len(), column);
                    }
                };
                // The last whole pair, or a tile that is alone, asks for the next part or panel.
                let ahead = first / 2 + 1 == (tiles / 2).max(1);
                block.add(&unit, first..(first + 2).min(tiles), part.clone(), b, sums, ahead, &soon);
                if !last {
                    continue;
                }
                let columns = (w.columns() - column).min(PANEL);
                for (t, sums) in sums.chunks_exact(TILE_ROWS * PANEL).enumerate() {
                    let rows = count.saturating_sub(t * TILE_ROWS).min(TILE_ROWS);
                    for (r, sums) in sums.chunks_exact(PANEL).enumerate().take(rows) {
                        // The tile's number and, visibly, a row within it.
                        let row = (row / TILE_ROWS + t) * TILE_ROWS + r % TILE_ROWS;
                        let sums = [s.load(&sums[..LANES]), s.load(&sums[LANES..])];
                        // SAFETY: `run` checked the epilogue for all rows and columns; blocks and panels do not
                        // overlap.
                        unsafe {
                            if columns == PANEL {
                                // The usual case, with the count known to the compiler.
                                epilogue.put(s, row, column, PANEL, sums);
                            } else {
                                epilogue.put(s, row, column, columns, sums);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Where one row of `A` goes: its lines are a tile apart.
pub struct PackedRow<'a> {
    lines: &'a mut [Line],
}

impl<'a> PackedRow<'a> {
    /// `lines` begins with the row's first line.
    pub(crate) fn new(lines: &'a mut [Line]) -> Self {
        Self { lines }
    }

    /// The elements of the row's line `i`.
    #[inline(always)]
    pub fn line<T: Operand>(&mut self, i: usize) -> &mut [T] {
        elements_mut(std::slice::from_mut(&mut self.lines[i * TILE_ROWS]))
    }
}

#[cfg(test)]
mod tests;
