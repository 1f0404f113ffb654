//! The four packed forms in which a head's rows enter products: as left operand, as right operand, and both of the
//! transpose.
//!
//! Left forms have 16 rows of one line a tile, right forms 16 groups of the summed axis, so a left tile of `X` and
//! a right tile of `Xᵀ` are each other's transposes, taken 32 bits at a time.

use crate::gemm::{PANEL, PackedRow, TILE_ROWS, line};
use crate::scratch::{Line, block, block_mut, elements_mut};
use crate::simd::{LANES, Simd};
use crate::{Operand, Tiles};

/// Some rows of one head within a larger matrix, and more of another behind them.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, T> {
    tiles: &'a Tiles<T>,
    first: usize,
    count: usize,
    column: usize,
    width: usize,
    more: Option<(&'a Tiles<T>, usize)>,
    /// Where the rows are behind `first`, if not one after another, and what stands for padding.
    places: Option<(&'a [u32], usize)>,
    /// The row that stands for padding, if it is not zero.
    padding: Option<usize>,
}

impl<'a, T> Rows<'a, T> {
    pub(super) fn new(tiles: &'a Tiles<T>, first: usize, count: usize, column: usize, width: usize) -> Self {
        Self { tiles, first, count, column, width, more: None, places: None, padding: None }
    }

    /// The same, with each row's place behind the first; `rows` stands for padding, which has a row of its own or
    /// is zero.
    pub(super) fn at_places(self, places: &'a [u32], rows: usize, padding: Option<usize>) -> Self {
        Self { places: Some((places, rows)), padding, ..self }
    }

    /// A range of the rows.
    pub(super) fn part(&self, first: usize, count: usize) -> Self {
        match self.places {
            Some((places, rows)) => {
                Self { places: Some((&places[first..first + count], rows)), count, ..*self }
            }
            None => Self { first: self.first + first, count, ..*self },
        }
    }

    /// With all rows of another matrix behind them, the head beginning at `column`.
    pub(super) fn and(self, more: Option<(&'a Tiles<T>, usize)>) -> Self {
        Self { more, ..self }
    }
}

impl<T: Operand> Rows<'_, T> {
    /// Matrix, row and column of a row; `None` behind the last, and for padding that is zero.
    #[inline(always)]
    fn at(&self, row: usize) -> Option<(&Tiles<T>, usize, usize)> {
        if row < self.count {
            let row = match self.places {
                None => self.first + row,
                Some((places, rows)) if (places[row] as usize) < rows => self.first + places[row] as usize,
                Some(_) => self.padding?,
            };
            return Some((self.tiles, row, self.column));
        }
        let (tiles, column) = self.more?;
        let row = row - self.count;
        (row < tiles.rows()).then_some((tiles, row, column))
    }

    /// Sixteen values of a row; those beyond its end, or beyond the last row, are zero.
    #[inline(always)]
    fn lanes<S: Simd>(&self, s: S, row: usize, half: usize) -> S::F {
        let count = self.width.saturating_sub(half * LANES).min(LANES);
        match self.at(row) {
            Some((tiles, row, column)) if count > 0 => tiles.load(s, row, column + half * LANES, count),
            _ => s.splat(0.0),
        }
    }

    /// As left operand: `[tile][line]`, rows beyond the last zero.
    #[inline(always)]
    pub(super) fn left(&self, lines: usize, out: &mut [Line]) {
        if self.is_of_lines() {
            return self.left_lines(lines, out);
        }
        for r in 0..out.len() / lines {
            let tile = r / TILE_ROWS * TILE_ROWS * lines;
            let mut packed = PackedRow::new(&mut out[tile + r % TILE_ROWS..tile + TILE_ROWS * lines]);
            let source = self.at(r);
            for i in 0..lines {
                let from = i * line::<T>();
                let out = packed.line::<T>(i);
                let count = self.width.saturating_sub(from).min(line::<T>());
                match source {
                    Some((tiles, row, column)) if count > 0 => {
                        tiles.copy(row, column + from, &mut out[..count]);
                        out[count..].fill(T::default());
                    }
                    _ => out.fill(T::default()),
                }
            }
        }
    }

    /// As right operand: the rows are the summed axis, `[panel][line][half]`.
    #[inline(always)]
    pub(super) fn right<S: Simd>(&self, s: S, panels: usize, out: &mut [Line]) {
        let lines = out.len() / (2 * TILE_ROWS * panels);
        if T::GROUP == 2 && self.is_of_lines() {
            return self.whole_lines(lines, panels, out);
        }
        for first in (0..lines * line::<T>()).step_by(T::GROUP) {
            for half in 0..2 * panels {
                let pair = [self.lanes(s, first, half), self.lanes(s, first + 1, half)];
                T::groups(s, pair, &mut out[right_line::<T>(lines, first, half)].0);
            }
        }
    }
}

impl<T: Operand> Rows<'_, T> {
    /// Whether the head begins and ends where lines do.
    #[inline(always)]
    fn is_of_lines(&self) -> bool {
        let more = self.more.map_or(0, |(_, column)| column);
        [self.column, self.width, more].iter().all(|n| n.is_multiple_of(line::<T>()))
    }

    /// The left operand where that is so: its lines are rows' own. (Measured on Zen 4, as one loop with the general form: attention
    /// in windows of 49 is 2 to 5 % slower.)
    #[inline(always)]
    fn left_lines(&self, lines: usize, out: &mut [Line]) {
        let own = (self.width / line::<T>()).min(lines);
        for r in 0..out.len() / lines {
            let tile = r / TILE_ROWS * TILE_ROWS * lines + r % TILE_ROWS;
            let source = self.at(r);
            for i in 0..lines {
                out[tile + i * TILE_ROWS] = match source {
                    Some((tiles, row, column)) if i < own => *tiles.row_line(row, column / line::<T>() + i),
                    _ => Line::ZERO,
                };
            }
        }
    }

    /// The right operand where a panel of a row is a line: nothing is converted.
    #[inline(always)]
    fn whole_lines(&self, lines: usize, panels: usize, out: &mut [Line]) {
        let none = [T::default(); PANEL];
        for first in (0..lines * line::<T>()).step_by(2) {
            let pair = [self.at(first), self.at(first + 1)];
            for p in 0..panels {
                let [a, b] = pair.map(|row| match row {
                    Some((tiles, row, column)) => {
                        tiles.line(row, column / PANEL + p).as_array().expect("a line")
                    }
                    None => &none,
                });
                let at = right_line::<T>(lines, first, 2 * p);
                for half in 0..2 {
                    let part = |x: &[T; PANEL]| -> [T; LANES] {
                        *x[half * LANES..][..LANES].as_array().expect("half a line")
                    };
                    T::zip([&part(a), &part(b)], &mut out[at + half * TILE_ROWS].0);
                }
            }
        }
    }
}

/// The line of a right operand, `lines` long, that holds row `row` of the summed axis and columns `16 · half..`.
#[inline(always)]
pub(super) fn right_line<T: Operand>(lines: usize, row: usize, half: usize) -> usize {
    let (l, group) = (row / line::<T>(), row % line::<T>() / T::GROUP);
    ((half / 2 * lines + l) * 2 + half % 2) * TILE_ROWS + group
}

/// A right operand from the left form of its transpose, `[tile][line]` to `[panel][line][half]`; or, with
/// `to_left`, the other way about.
#[inline(always)]
pub(super) fn transposed<S: Simd>(s: S, from: &[Line], lines: usize, to_left: bool, out: &mut [Line]) {
    let tiles = from.len().min(out.len()) / (lines * TILE_ROWS);
    for tile in 0..tiles {
        for l in 0..lines {
            let left = (tile * lines + l) * TILE_ROWS;
            let right = ((tile / 2 * lines + l) * 2 + tile % 2) * TILE_ROWS;
            let (a, b) = if to_left { (right, left) } else { (left, right) };
            s.transpose(block(&from[a..a + TILE_ROWS]), block_mut(&mut out[b..b + TILE_ROWS]));
        }
    }
}

/// Row `r` of a strip in the left form: where its panel `p` goes, 32 values.
#[inline(always)]
pub(super) fn store_left<T: Operand, S: Simd>(
    s: S,
    out: &mut [Line],
    lines: usize,
    r: usize,
    p: usize,
    v: [S::F; 2],
) {
    let tile = r / TILE_ROWS * lines * TILE_ROWS + r % TILE_ROWS;
    if line::<T>() == 2 * LANES {
        let at = tile + p * TILE_ROWS;
        T::store_pair(s, elements_mut(&mut out[at..=at]), v);
    } else {
        for (half, v) in v.into_iter().enumerate() {
            let at = tile + (2 * p + half) * TILE_ROWS;
            T::store(s, elements_mut(&mut out[at..=at]), v);
        }
    }
}
