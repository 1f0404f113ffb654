//! The innermost product: up to 32 rows with 32 columns over the whole summed axis.

use std::marker::PhantomData;
use std::ops::Range;

use super::{GROUPS, NOWHERE, PANEL, TILE_ROWS};
use crate::Operand;
use crate::scratch::Line;
use crate::simd::{LANES, Simd};

/// Rows whose sums are held in registers at once by the vector form: two vectors each, beside two of `W`.
const ROWS: usize = 8;
/// The same where registers are not wide: one vector each, which is two or four of them. Two blocks of these and one of
/// [`FEW_ROWS`] make a tile's rows.
const SOME_ROWS: usize = 6;
/// The same of bfloat16, which takes registers to widen it.
const FEW_ROWS: usize = 4;

/// As [`ROWS`] for a pair of tiles: two blocks of these and one of those. (Measured on two cores of Zen 5 in bfloat16, against
/// blocks of eight: 850 GFLOP/s instead of 720 with 64 values a row, 2 to 5 % more with 512 to 768. Rows in pieces gain nothing.)
const PAIR_ROWS: usize = 12;
const _: () = assert!(2 * PAIR_ROWS + ROWS == 2 * TILE_ROWS);

/// Rows of a tile, from its first, that are taken [`SOME_ROWS`] at a time; the others [`FEW_ROWS`].
const fn some_rows<T: Operand>() -> usize {
    const { assert!(2 * SOME_ROWS + FEW_ROWS == TILE_ROWS && TILE_ROWS.is_multiple_of(FEW_ROWS)) };
    if T::GROUP == 1 { 2 * SOME_ROWS } else { 0 }
}

/// Call a method of [`Unit`] for each block of a tile whose first row is `$tile`: its rows and vectors of columns as generic
/// arguments, where it begins as the last argument. (Not a closure: that would be compiled without its instructions.)
macro_rules! each_block {
    ($self:ident.$block:ident $(::<$more:ident>)? ($($given:expr),*), $tile:expr) => {
        if S::WIDE {
            for first in ($tile..$tile + TILE_ROWS).step_by(ROWS) {
                $self.$block::<ROWS, 2, $($more)?>($($given,)* [first, 0]);
            }
        } else {
            // The columns of a block stay the same as long as there are rows.
            for vector in 0..2 {
                for first in ($tile..$tile + some_rows::<T>()).step_by(SOME_ROWS) {
                    $self.$block::<SOME_ROWS, 1, $($more)?>($($given,)* [first, vector]);
                }
                for first in ($tile + some_rows::<T>()..$tile + TILE_ROWS).step_by(FEW_ROWS) {
                    $self.$block::<FEW_ROWS, 1, $($more)?>($($given,)* [first, vector]);
                }
            }
        }
    };
}

/// Sums of 32 rows and 32 columns.
#[repr(C, align(64))]
pub(crate) struct Sums(pub(crate) [[f32; PANEL]; 2 * TILE_ROWS]);

impl Sums {
    pub(crate) const ZERO: Self = Self([[0.0; PANEL]; 2 * TILE_ROWS]);
}

/// A thread's multiplier, with its tiles configured where it has them.
pub(crate) struct Unit<T, S> {
    s: S,
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    tiles: Option<super::amx::Tiles>,
    element: PhantomData<T>,
}

impl<T: Operand, S: Simd> Unit<T, S> {
    #[inline(always)]
    pub(crate) fn new(s: S) -> Self {
        Self {
            s,
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            // SAFETY: the token says that tiles may be used.
            tiles: (s.tiles() && T::GROUP == 2).then(|| unsafe { super::amx::Tiles::configure() }),
            element: PhantomData,
        }
    }

    /// `sums = a b` for one or two tiles of rows, each `lines` lines long, and a panel of as many lines.
    #[inline(always)]
    pub(crate) fn product(&self, a: &[Line], lines: usize, b: &[Line], sums: &mut Sums) {
        self.product_into(a, lines, b, sums.0.as_flattened_mut(), PANEL);
    }

    /// The same into rows `stride` apart.
    #[inline(always)]
    pub(crate) fn product_into(&self, a: &[Line], lines: usize, b: &[Line], sums: &mut [f32], stride: usize) {
        self.add_part::<false>(a, lines, 0..lines, b, sums, stride, false, &|_| ());
    }

    /// As [`Unit::product_into`] over some of the lines: the first part sets the sums, others add to them. `TURNED` tiles
    /// are for vectors alone. With `ahead` wide vectors ask on the way for what follows the
    /// part of `b`, as much again. `soon` is told which rows' sums are next. (Measured on Zen 4, for a result that joins another in
    /// bfloat16, whose lines it asks for: 64 values a row and 256 results 10 % quicker than with all 32 rows at once, 128 and 512
    /// 2 %; by six rows inside the loop 3 % quicker and 3 % slower than at once.)
    #[inline(always)]
    pub(crate) fn add_part<const TURNED: bool>(
        &self,
        a: &[Line],
        lines: usize,
        part: Range<usize>,
        b: &[Line],
        sums: &mut [f32],
        stride: usize,
        ahead: bool,
        soon: &impl Fn(Range<usize>),
    ) {
        let tile = lines * TILE_ROWS;
        assert!((a.len() == tile || a.len() == 2 * tile) && b.len() == 2 * lines * GROUPS);
        assert!(part.start <= part.end && part.end <= lines);
        let rows = if a.len() == tile { TILE_ROWS } else { 2 * TILE_ROWS };
        assert!(stride >= PANEL && sums.len() >= (rows - 1) * stride + PANEL);
        if lines == 0 {
            // Tiles of no lines cannot be counted: these are the sums of two, as far as there is room.
            for row in sums.chunks_mut(stride).take(2 * TILE_ROWS) {
                let columns = row.len().min(PANEL);
                row[..columns].fill(0.0);
            }
            return;
        }
        let (first, second) = a.split_at(tile);
        let lines = part.start * TILE_ROWS..part.end * TILE_ROWS;
        // Not by `map`, which is a call that is not inlined.
        let a = [&first[lines.clone()], second.get(lines).unwrap_or_default()];
        let add = part.start > 0;
        let b = &b[part.start * 2 * GROUPS..part.end * 2 * GROUPS];
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if let Some(tiles) = &self.tiles {
            assert!(!TURNED, "tiles are loaded by rows");
            soon(0..rows);
            return tiles.product(a, b, sums, stride, add);
        }
        if S::WIDE && !TURNED && rows == 2 * TILE_ROWS {
            soon(0..PAIR_ROWS);
            self.block_of_pair::<PAIR_ROWS>(a, b, sums, stride, add, 0, ahead);
            soon(PAIR_ROWS..2 * PAIR_ROWS);
            self.block_of_pair::<PAIR_ROWS>(a, b, sums, stride, add, PAIR_ROWS, ahead);
            soon(2 * PAIR_ROWS..rows);
            self.block_of_pair::<ROWS>(a, b, sums, stride, add, 2 * PAIR_ROWS, ahead);
            return;
        }
        soon(0..rows);
        for (tile, sums) in a.iter().filter(|t| !t.is_empty()).zip(sums.chunks_mut(TILE_ROWS * stride)) {
            each_block!(self.block::<TURNED>(tile, b, sums, stride, add, ahead), 0);
        }
    }

    /// `sums = a b` for 32 rows that lie `row` groups apart in `a`; their lines begin at `starts`, in groups too, and
    /// may overlap. Only the first `counts[i]` groups of line `i` need be multiplied: `b` has zeros for the others. Sums go
    /// into rows `stride` apart.
    #[inline(always)]
    pub(crate) fn product_at(
        &self,
        a: &[u32],
        starts: &[usize],
        counts: &[usize],
        row: usize,
        b: &[Line],
        sums: &mut [f32],
        stride: usize,
    ) {
        let rows = 2 * TILE_ROWS;
        let last = starts.iter().max().expect("a line at least");
        assert!(counts.len() == starts.len() && counts.iter().all(|count| *count <= GROUPS));
        assert!(b.len() == 2 * starts.len() * GROUPS && a.len() >= last + (rows - 1) * row + GROUPS);
        assert!(stride >= PANEL && sums.len() >= (rows - 1) * stride + PANEL);
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if let Some(tiles) = &self.tiles {
            return tiles.product_at(a, starts, row, b, sums, stride);
        }
        for tile in [0, TILE_ROWS] {
            each_block!(self.block_at(a, starts, counts, row, b, sums, stride), tile);
        }
    }

    /// As [`Unit::add_part`] for sixteen rows that are in pieces ([`Pieces`](super::Pieces)): `starts` are some of them, each
    /// `lines` long. `ahead` tells which half of what follows `b` to ask for, if any.
    #[inline(always)]
    pub(crate) fn add_pieces(
        &self,
        a: &[Line],
        starts: &[[u32; TILE_ROWS]],
        lines: usize,
        b: &[Line],
        sums: &mut [f32],
        add: bool,
        ahead: Option<usize>,
    ) {
        assert!(b.len() == starts.len() * lines * 2 * GROUPS && sums.len() >= TILE_ROWS * PANEL);
        debug_assert!(!(self.s.tiles() && T::GROUP == 2), "tiles are loaded from packed rows");
        each_block!(self.block_of_pieces(a, starts, lines, b, sums, add, ahead), 0);
    }

    /// `R` rows of a tile and `V` vectors of columns, from the `first` row and vector on. `add` to the sums, or set them.
    #[inline(always)]
    fn block<const R: usize, const V: usize, const TURNED: bool>(
        &self,
        tile: &[Line],
        b: &[Line],
        sums: &mut [f32],
        stride: usize,
        add: bool,
        ahead: bool,
        [first, vector]: [usize; 2],
    ) {
        let s = self.s;
        let sums = &mut sums[first * stride + vector * LANES..];
        let mut acc = load_sums::<S, R, V>(s, sums, stride, add);
        let (b, behind) = (b.as_chunks::<{ 2 * GROUPS }>().0, b.len() + 2 * first);
        let tile = tile.as_chunks::<TILE_ROWS>().0;
        for l in 0..b.len() {
            let (a, b) = (&tile[l], &b[l]);
            if ahead && S::WIDE {
                for i in 0..2 * R {
                    s.prefetch_read(b, behind + i);
                }
            }
            let b = &b[vector * GROUPS..];
            for g in 0..GROUPS {
                if TURNED {
                    let a: &[u32; R] = a[g].0[first..first + R].try_into().expect("a part of a tile's rows");
                    add_products::<T, S, R, V>(s, &mut acc, b, g, |r| a[r]);
                } else {
                    let a: &[Line; R] = a[first..first + R].try_into().expect("a part of a tile's rows");
                    add_products::<T, S, R, V>(s, &mut acc, b, g, |r| a[r].0[g]);
                }
            }
        }
        store_sums(s, acc, sums, stride);
    }

    /// The same for rows of two tiles and both vectors; each block asks for its share of what is `ahead`. (Measured on Zen 4 with
    /// weights that come from memory: products of 197 and 1,576 rows of 768 or 3,072 values 4 to 13 % quicker in bfloat16, 49
    /// rows of 512 27 %. Windows of strided convolutions, which ask likewise, are up to 15 % slower when the second-level cache
    /// alone is asked for.)
    #[inline(always)]
    fn block_of_pair<const R: usize>(
        &self,
        tiles: [&[Line]; 2],
        b: &[Line],
        sums: &mut [f32],
        stride: usize,
        add: bool,
        first: usize,
        ahead: bool,
    ) {
        let s = self.s;
        let sums = &mut sums[first * stride..];
        let mut acc = load_sums::<S, R, 2>(s, sums, stride, add);
        let (b, behind) = (b.as_chunks::<{ 2 * GROUPS }>().0, b.len());
        let [uppers, lowers] = tiles;
        let (uppers, lowers) = (uppers.as_chunks::<TILE_ROWS>().0, lowers.as_chunks::<TILE_ROWS>().0);
        // By their numbers: iterators side by side would be a call each, which shows where there are two lines.
        for l in 0..b.len() {
            let (upper, lower, b) = (&uppers[l], &lowers[l], &b[l]);
            if ahead {
                for row in first..first + R {
                    s.prefetch_read(b, behind + row);
                }
            }
            let mut rows = [&Line::ZERO; R];
            for (row, at) in rows.iter_mut().zip(first..) {
                *row = if at < TILE_ROWS { &upper[at] } else { &lower[at - TILE_ROWS] };
            }
            for g in 0..GROUPS {
                add_products::<T, S, R, 2>(s, &mut acc, b, g, |r| rows[r].0[g]);
            }
        }
        store_sums(s, acc, sums, stride);
    }

    /// As [`Unit::block`] for rows in pieces.
    #[inline(always)]
    fn block_of_pieces<const R: usize, const V: usize>(
        &self,
        a: &[Line],
        starts: &[[u32; TILE_ROWS]],
        lines: usize,
        b: &[Line],
        sums: &mut [f32],
        add: bool,
        ahead: Option<usize>,
        [first, vector]: [usize; 2],
    ) {
        let s = self.s;
        let sums = &mut sums[first * PANEL + vector * LANES..];
        let mut acc = load_sums::<S, R, V>(s, sums, PANEL, add);
        let behind = b.len() + first + ahead.unwrap_or(0) * TILE_ROWS;
        for (starts, b) in starts.iter().zip(b.chunks_exact(lines * 2 * GROUPS)) {
            let starts: &[u32; R] = starts[first..first + R].try_into().expect("a part of a tile's rows");
            for (i, b) in b.chunks_exact(2 * GROUPS).enumerate() {
                if ahead.is_some() && S::WIDE {
                    for row in 0..R {
                        s.prefetch_read(b, behind + row);
                    }
                }
                let mut rows = [&Line::ZERO.0; R];
                for (row, start) in rows.iter_mut().zip(starts) {
                    if *start != NOWHERE {
                        *row = &a[*start as usize + i * TILE_ROWS].0;
                    }
                }
                let b = &b[vector * GROUPS..];
                for g in 0..GROUPS {
                    add_products::<T, S, R, V>(s, &mut acc, b, g, |r| rows[r][g]);
                }
            }
        }
        store_sums(s, acc, sums, PANEL);
    }

    /// As [`Unit::block`] for rows that lie `row` groups apart; `starts` are their lines'.
    #[inline(always)]
    fn block_at<const R: usize, const V: usize>(
        &self,
        a: &[u32],
        starts: &[usize],
        counts: &[usize],
        row: usize,
        b: &[Line],
        sums: &mut [f32],
        stride: usize,
        [first, vector]: [usize; 2],
    ) {
        let s = self.s;
        let mut acc = [[s.splat(0.0); V]; R];
        for ((start, count), b) in starts.iter().zip(counts).zip(b.chunks_exact(2 * GROUPS)) {
            let b = &b[vector * GROUPS..];
            let mut rows = [&[0; GROUPS]; R];
            for (r, line) in rows.iter_mut().enumerate() {
                *line = a[start + (first + r) * row..].first_chunk().expect("a line of each row");
            }
            for g in 0..GROUPS.min(*count) {
                add_products::<T, S, R, V>(s, &mut acc, b, g, |r| rows[r][g]);
            }
        }
        store_sums(s, acc, &mut sums[first * stride + vector * LANES..], stride);
    }
}

/// Group `g` of `R` rows times that of `V` vectors; those begin in `b`, `GROUPS` lines apart.
#[inline(always)]
fn add_products<T: Operand, S: Simd, const R: usize, const V: usize>(
    s: S,
    acc: &mut [[S::F; V]; R],
    b: &[Line],
    g: usize,
    a: impl Fn(usize) -> u32,
) {
    // Without closures around instructions: those would be compiled without them.
    let mut groups = [s.splat_group(0); V];
    for (group, b) in groups.iter_mut().zip(b[g..].iter().step_by(GROUPS)) {
        *group = s.load_groups(&b.0);
    }
    for (r, acc) in acc.iter_mut().enumerate() {
        let a = s.splat_group(a(r));
        // By reference, here and below: an array's own iterator would keep it in memory where tests are compiled.
        for (acc, b) in acc.iter_mut().zip(&groups) {
            *acc = T::dot(s, *acc, a, *b);
        }
    }
}

/// From rows `stride` apart, if there is something to `add` to.
#[inline(always)]
fn load_sums<S: Simd, const R: usize, const V: usize>(
    s: S,
    sums: &[f32],
    stride: usize,
    add: bool,
) -> [[S::F; V]; R] {
    let mut acc = [[s.splat(0.0); V]; R];
    if add {
        for (acc, sums) in acc.iter_mut().zip(sums.chunks(stride)) {
            for (acc, sums) in acc.iter_mut().zip(sums.chunks_exact(LANES)) {
                *acc = s.load(sums);
            }
        }
    }
    acc
}

/// Into rows `stride` apart.
#[inline(always)]
fn store_sums<S: Simd, const R: usize, const V: usize>(
    s: S,
    acc: [[S::F; V]; R],
    sums: &mut [f32],
    stride: usize,
) {
    for (sums, acc) in sums.chunks_mut(stride).zip(&acc) {
        for (sums, acc) in sums.chunks_exact_mut(LANES).zip(acc) {
            s.store(sums, *acc);
        }
    }
}
