//! Multi-head self-attention, forward and backward, over a fused query-key-value projection.
//!
//! A head's tokens are few enough (197 to some thousands) for a strip of scores, 32 queries with every key, to stay
//! in the cache; so a strip is finished, softmax included, before the next begins. Nothing of size
//! tokens × tokens outlives a head: the backward pass computes the scores again.
//!
//! A matrix `X` enters products in one of four packed forms: its rows as left operand, its rows as right operand,
//! and both of its transpose. Left forms have 16 rows of one line a tile, right forms 16 groups of the summed axis,
//! so a left tile of `X` and a right tile of `Xᵀ` are each other's transposes, taken 32 bits at a time.

use rayon::prelude::*;

use crate::gemm::micro::{Sums, Unit};
use crate::gemm::{PANEL, PackedRow, TILE_ROWS, line};
use crate::scratch::{self, Line, elements_mut};
use crate::simd::{Kernel, LANES, Simd, dispatch, exp};
use crate::{Isa, Operand, SharedTiles, Tiles};

/// Rows of a strip: two tiles.
const STRIP: usize = 2 * TILE_ROWS;
/// Queries whose probabilities the backward pass holds at once, for the gradients of keys and values.
const QUERY_BLOCK: usize = 256;
const SUMS_LINES: usize = size_of::<Sums>() / size_of::<Line>();

/// The sizes of an attention, and what is added to its scores.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Samples, or windows.
    pub batch: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub width: usize,
    /// Added to the scaled scores, `[heads, tokens, tokens]`; may be empty.
    pub bias: &'a [f32],
    /// Added as well, `[windows, tokens, tokens]`, sample `b` using `b mod windows`; may be empty.
    pub mask: &'a [f32],
}

impl Attention<'_> {
    /// Neither bias nor mask.
    pub fn plain(batch: usize, tokens: usize, heads: usize, width: usize) -> Self {
        Self { batch, tokens, heads, width, bias: &[], mask: &[] }
    }

    fn channels(&self) -> usize {
        self.heads * self.width
    }

    fn check<T: Operand>(&self, projections: &[&Tiles<T>], outputs: &[&Tiles<T>]) {
        let (rows, channels) = (self.batch * self.tokens, self.channels());
        for (tiles, columns) in
            projections.iter().zip([3 * channels; 2]).chain(outputs.iter().zip([channels; 2]))
        {
            assert_eq!((tiles.rows(), tiles.columns()), (rows, columns), "[B · N, 3 · C] and [B · N, C]");
        }
        let square = self.tokens * self.tokens;
        assert!(self.bias.is_empty() || self.bias.len() == self.heads * square, "bias [heads, N, N]");
        assert!(self.mask.is_empty() || self.mask.len().is_multiple_of(square), "mask [windows, N, N]");
    }

    /// Lines of a row of `width` elements.
    fn width_lines<T: Operand>(&self) -> usize {
        self.width.div_ceil(line::<T>())
    }

    fn key_panels(&self) -> usize {
        self.tokens.div_ceil(PANEL)
    }

    /// Lines of a right operand whose summed axis is a line long, a head's width wide.
    fn width_right(&self) -> usize {
        self.width.div_ceil(PANEL) * 2 * TILE_ROWS
    }

    /// Lines of all keys along a summed axis.
    fn key_lines<T: Operand>(&self) -> usize {
        self.key_panels() * PANEL / line::<T>()
    }

    /// Lines of a block of queries along a summed axis.
    fn block_lines<T: Operand>(&self) -> usize {
        QUERY_BLOCK.min(self.key_panels() * PANEL) / line::<T>()
    }

    /// Lines of all tokens, as left operand or its transpose.
    fn face<T: Operand>(&self) -> usize {
        self.key_panels() * 2 * TILE_ROWS * self.width_lines::<T>()
    }

    /// Queries, keys on their way, keys, values, a strip's weights and scores.
    fn forward_scratch<T: Operand>(&self) -> [usize; 6] {
        let face = self.face::<T>();
        let keys = self.key_lines::<T>();
        [face, face, face, self.width_right() * keys, STRIP * keys, self.key_panels() * SUMS_LINES]
    }

    fn backward_scratch<T: Operand>(&self) -> [usize; 11] {
        let (face, right) = (self.face::<T>(), self.width_right());
        let (keys, block, panels) = (self.key_lines::<T>(), self.block_lines::<T>(), self.key_panels());
        [
            face,                                                 // left operands on their way
            face,                                                 // keys, as right operand's transpose
            face,                                                 // values, as right operand's transpose
            right * keys,                                         // keys as right operand
            2 * STRIP * self.width_lines::<T>(), // a strip's queries and upper gradients, left
            STRIP * keys,                        // a strip's score gradients, left
            2 * right * block,                   // a block's queries and upper gradients, transposed, left
            right * block,                       // on their way there
            2 * panels * STRIP * block,          // a block's probabilities and score gradients, right
            2 * panels * SUMS_LINES,             // a strip's probabilities and score gradients
            2 * self.width.div_ceil(PANEL) * panels * SUMS_LINES, // gradients of keys and values, transposed
        ]
    }

    /// The first column of head `head` in part `part` of the projections.
    fn column(&self, head: usize, part: usize) -> usize {
        part * self.channels() + head * self.width
    }

    /// Sample and head of each task.
    fn each(&self, run: impl Fn(usize, usize) + Sync) {
        let tasks = self.batch * self.heads;
        (0..tasks).into_par_iter().for_each(|i| run(i / self.heads, i % self.heads));
    }
}

/// `softmax(q kᵀ / √d + bias + mask) v` for every head.
///
/// `qkv` is `[B · N, 3 · C]`, packed `[q | k | v]`, each of `heads × d`; `out` is `[B · N, C]`.
///
/// # Panics
/// The lengths do not fit the sizes.
pub fn forward<T: Operand>(isa: Isa, sizes: Attention<'_>, qkv: &Tiles<T>, out: &mut Tiles<T>) {
    sizes.check(&[qkv], &[out]);
    let out = out.share();
    let lines = sizes.forward_scratch::<T>();
    sizes.each(|sample, head| {
        scratch::with(lines, |lines| dispatch(isa, Forward { sizes, qkv, out, sample, head, lines }));
    });
}

/// The gradient of `qkv`, given that of the output; both in their forward layouts.
///
/// # Panics
/// The lengths do not fit the sizes.
pub fn backward<T: Operand>(
    isa: Isa,
    sizes: Attention<'_>,
    qkv: &Tiles<T>,
    grad: &Tiles<T>,
    out: &mut Tiles<T>,
) {
    sizes.check(&[qkv, out], &[grad]);
    let out = out.share();
    let lines = sizes.backward_scratch::<T>();
    sizes.each(|sample, head| {
        scratch::with(lines, |lines| dispatch(isa, Backward { sizes, qkv, grad, out, sample, head, lines }));
    });
}

/// Some rows of one head within a larger matrix.
#[derive(Clone, Copy)]
struct Rows<'a, T> {
    tiles: &'a Tiles<T>,
    first: usize,
    count: usize,
    column: usize,
    width: usize,
}

impl<T: Operand> Rows<'_, T> {
    /// A range of rows.
    fn part(&self, first: usize, count: usize) -> Self {
        Self { first: self.first + first, count, ..*self }
    }

    /// Sixteen values of a row; those beyond its end, or beyond the last row, are zero.
    #[inline(always)]
    fn lanes<S: Simd>(&self, s: S, row: usize, half: usize) -> S::F {
        let count = self.width.saturating_sub(half * LANES).min(LANES);
        if row >= self.count || count == 0 {
            return s.splat(0.0);
        }
        self.tiles.load(s, self.first + row, self.column + half * LANES, count)
    }

    /// As left operand: `[tile][line]`, rows beyond the last zero.
    #[inline(always)]
    fn left(&self, lines: usize, out: &mut [Line]) {
        for r in 0..out.len() / lines {
            let tile = r / TILE_ROWS * TILE_ROWS * lines;
            let mut packed = PackedRow::new(&mut out[tile + r % TILE_ROWS..tile + TILE_ROWS * lines]);
            for i in 0..lines {
                let from = i * line::<T>();
                let count = if r < self.count { self.width.saturating_sub(from).min(line::<T>()) } else { 0 };
                let out = packed.line::<T>(i);
                if count > 0 {
                    self.tiles.copy(self.first + r, self.column + from, &mut out[..count]);
                }
                out[count..].fill(T::default());
            }
        }
    }

    /// As right operand: the rows are the summed axis, `[panel][line][half]`.
    #[inline(always)]
    fn right<S: Simd>(&self, s: S, panels: usize, out: &mut [Line]) {
        let lines = out.len() / (2 * TILE_ROWS * panels);
        for first in (0..lines * line::<T>()).step_by(T::GROUP) {
            let (l, g) = (first / line::<T>(), first % line::<T>() / T::GROUP);
            for half in 0..2 * panels {
                let to = ((half / 2 * lines + l) * 2 + half % 2) * TILE_ROWS + g;
                T::groups(s, [self.lanes(s, first, half), self.lanes(s, first + 1, half)], &mut out[to].0);
            }
        }
    }
}

/// A right operand from the left form of its transpose, `[tile][line]` to `[panel][line][half]`; or, with
/// `to_left`, the other way about.
#[inline(always)]
fn transposed<S: Simd>(s: S, from: &[Line], lines: usize, to_left: bool, out: &mut [Line]) {
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

#[inline(always)]
fn block(lines: &[Line]) -> &[[u32; LANES]; LANES] {
    assert!(lines.len() == LANES);
    // SAFETY: sixteen lines, each sixteen u32 and nothing else.
    unsafe { &*lines.as_ptr().cast() }
}

#[inline(always)]
fn block_mut(lines: &mut [Line]) -> &mut [[u32; LANES]; LANES] {
    assert!(lines.len() == LANES);
    // SAFETY: sixteen lines, each sixteen u32 and nothing else.
    unsafe { &mut *lines.as_mut_ptr().cast() }
}

/// Lines as blocks of sums, a panel each.
#[inline(always)]
fn sums(lines: &mut [Line]) -> &mut [Sums] {
    // SAFETY: a block of sums is 4 KiB of f32, aligned as lines are; the slice is rounded down to whole blocks.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() / SUMS_LINES) }
}

/// The scaled scores of a row, with bias and mask added, made into `e^(score - largest)`; gives their sum.
#[inline(always)]
fn exponentials<S: Simd>(
    s: S,
    sizes: &Attention<'_>,
    scores: &mut [Sums],
    r: usize,
    added: [&[f32]; 2],
) -> f32 {
    let scale = s.splat((sizes.width as f32).sqrt().recip());
    let lowest = s.splat(f32::MIN);
    let mut largest = lowest;
    for (i, at) in (0..scores.len() * PANEL).step_by(LANES).enumerate() {
        let cell = &mut scores[i / 2].0[r][i % 2 * LANES..(i % 2 + 1) * LANES];
        let mut v = s.mul(s.load(cell), scale);
        for added in added {
            if !added.is_empty() {
                let from = at.min(added.len());
                v = s.add(v, s.load(&added[from..added.len().min(at + LANES)]));
            }
        }
        let count = sizes.tokens.saturating_sub(at).min(LANES);
        if count < LANES {
            v = s.select(((1_u32 << count) - 1) as u16, v, lowest);
        }
        s.store(cell, v);
        largest = s.max(largest, v);
    }
    let largest = s.splat(s.largest(largest));
    let mut sum = s.splat(0.0);
    for panel in scores {
        for half in panel.0[r].chunks_exact_mut(LANES) {
            let e = exp(s, s.sub(s.load(half), largest));
            sum = s.add(sum, e);
            s.store(half, e);
        }
    }
    s.sum(sum)
}

/// What is added to the scores of query `q`.
fn added<'a>(sizes: &Attention<'a>, sample: usize, head: usize, q: usize) -> [&'a [f32]; 2] {
    let n = sizes.tokens;
    let row = |table: &'a [f32], index: usize| {
        if table.is_empty() { table } else { &table[(index * n + q) * n..(index * n + q + 1) * n] }
    };
    let windows = (sizes.mask.len() / (n * n)).max(1);
    [row(sizes.bias, head), row(sizes.mask, sample % windows)]
}

struct Forward<'a, T> {
    sizes: Attention<'a>,
    qkv: &'a Tiles<T>,
    out: SharedTiles<'a, T>,
    sample: usize,
    head: usize,
    lines: [&'a mut [Line]; 6],
}

impl Attention<'_> {
    /// All tokens of a head of a sample.
    fn rows<'a, T>(&self, tiles: &'a Tiles<T>, sample: usize, head: usize, part: usize) -> Rows<'a, T> {
        let column = self.column(head, part);
        Rows { tiles, first: sample * self.tokens, count: self.tokens, column, width: self.width }
    }
}

/// Store the part of a panel of a row that belongs to a head, `width` wide, times `scale`; the head begins at
/// `column`, the panel `d` further.
///
/// # Safety
/// No other task writes this head of this row.
#[inline(always)]
unsafe fn store_panel<T: Operand, S: Simd>(
    s: S,
    out: &SharedTiles<'_, T>,
    [row, column, d]: [usize; 3],
    width: usize,
    scale: f32,
    values: &[f32; PANEL],
) {
    for half in 0..PANEL / LANES {
        let d = d + half * LANES;
        let count = width.saturating_sub(d).min(LANES);
        if count > 0 {
            let v = s.mul(s.load(&values[half * LANES..(half + 1) * LANES]), s.splat(scale));
            // SAFETY: the caller's.
            unsafe { out.store(s, row, column + d, count, v) };
        }
    }
}

impl<T: Operand> Kernel for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { sizes, qkv, out, sample, head, .. } = self;
        let d_lines = sizes.width_lines::<T>();
        let d_panels = sizes.width.div_ceil(PANEL);
        let k_lines = sizes.key_lines::<T>();
        let part = |i| sizes.rows(qkv, sample, head, i);
        let [q, k, keys, values, weights, scores] = self.lines;
        part(0).left(d_lines, q);
        part(1).left(d_lines, k);
        transposed(s, k, d_lines, false, keys);
        part(2).right(s, d_panels, values);
        let unit = Unit::<T, S>::new(s);
        let scores = sums(scores);
        let mut block = Sums::ZERO;
        for first in (0..sizes.tokens).step_by(STRIP) {
            let q = &q[first * d_lines..(first + STRIP) * d_lines];
            for (scores, keys) in scores.iter_mut().zip(keys.chunks_exact(2 * TILE_ROWS * d_lines)) {
                unit.product(q, d_lines, keys, scores);
            }
            let count = (sizes.tokens - first).min(STRIP);
            let mut inverse = [0.0; STRIP];
            for r in 0..count {
                let sum = exponentials(s, &sizes, scores, r, added(&sizes, sample, head, first + r));
                inverse[r] = sum.recip();
                store_left::<T, S>(s, scores, r, k_lines, weights);
            }
            for (p, values) in values.chunks_exact(2 * TILE_ROWS * k_lines).enumerate() {
                unit.product(weights, k_lines, values, &mut block);
                for r in 0..count {
                    let at = [sample * sizes.tokens + first + r, sizes.column(head, 0), p * PANEL];
                    // SAFETY: each head of each token is written by one task, once.
                    unsafe { store_panel(s, &out, at, sizes.width, inverse[r], &block.0[r]) };
                }
            }
        }
    }
}

/// Row `r` of a strip as a row of a left operand.
#[inline(always)]
fn store_left<T: Operand, S: Simd>(s: S, strip: &[Sums], r: usize, lines: usize, out: &mut [Line]) {
    let tile = r / TILE_ROWS * lines * TILE_ROWS;
    let mut row = PackedRow::new(&mut out[tile + r % TILE_ROWS..tile + lines * TILE_ROWS]);
    for (p, panel) in strip.iter().enumerate() {
        for half in 0..2 {
            let at = p * PANEL + half * LANES;
            let out = &mut row.line::<T>(at / line::<T>())[at % line::<T>()..][..LANES];
            T::store(s, out, s.load(&panel.0[r][half * LANES..(half + 1) * LANES]));
        }
    }
}

struct Backward<'a, T> {
    sizes: Attention<'a>,
    qkv: &'a Tiles<T>,
    grad: &'a Tiles<T>,
    out: SharedTiles<'a, T>,
    sample: usize,
    head: usize,
    lines: [&'a mut [Line]; 11],
}

impl<T: Operand> Kernel for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { sizes, qkv, grad, out, sample, head, .. } = self;
        let n = sizes.tokens;
        let (d_lines, panels) = (sizes.width_lines::<T>(), sizes.key_panels());
        let d_panels = sizes.width.div_ceil(PANEL);
        let (k_lines, block_lines) = (sizes.key_lines::<T>(), sizes.block_lines::<T>());
        let part = |i| sizes.rows(qkv, sample, head, i);
        let upper = sizes.rows(grad, sample, head, 0);
        let right = sizes.width_right();
        let scale = s.splat((sizes.width as f32).sqrt().recip());
        let [way, keys_t, values_t, keys, strip, ds_left, block_t, block_way, block_right, scores, totals] =
            self.lines;
        part(1).left(d_lines, way);
        transposed(s, way, d_lines, false, keys_t);
        part(2).left(d_lines, way);
        transposed(s, way, d_lines, false, values_t);
        part(1).right(s, d_panels, keys);
        let unit = Unit::<T, S>::new(s);
        let (p, ds) = sums(scores).split_at_mut(panels);
        let (q_strip, g_strip) = strip.split_at_mut(STRIP * d_lines);
        let (q_block, g_block) = block_t.split_at_mut(right * block_lines);
        let (p_right, ds_right) = block_right.split_at_mut(panels * STRIP * block_lines);
        let totals = sums(totals);
        for total in totals.iter_mut() {
            *total = Sums::ZERO;
        }
        let mut block = Sums::ZERO;
        let block_rows = block_lines * line::<T>();
        for start in (0..n).step_by(block_rows) {
            let rows = (n - start).min(block_rows);
            part(0).part(start, rows).right(s, d_panels, block_way);
            transposed(s, block_way, block_lines, true, q_block);
            upper.part(start, rows).right(s, d_panels, block_way);
            transposed(s, block_way, block_lines, true, g_block);
            for first in (0..block_rows).step_by(STRIP) {
                let count = rows.saturating_sub(first).min(STRIP);
                let q0 = start + first;
                if count > 0 {
                    part(0).part(q0, count).left(d_lines, q_strip);
                    upper.part(q0, count).left(d_lines, g_strip);
                    let size = 2 * TILE_ROWS * d_lines;
                    for i in 0..panels {
                        unit.product(q_strip, d_lines, &keys_t[i * size..(i + 1) * size], &mut p[i]);
                        unit.product(g_strip, d_lines, &values_t[i * size..(i + 1) * size], &mut ds[i]);
                    }
                }
                for r in 0..count {
                    let sum = exponentials(s, &sizes, p, r, added(&sizes, sample, head, q0 + r));
                    score_gradients(s, p, ds, r, sum, scale);
                    store_left::<T, S>(s, ds, r, k_lines, ds_left);
                }
                for r in (0..STRIP).step_by(T::GROUP) {
                    let lq = (first + r) / line::<T>();
                    let g = (first + r) % line::<T>() / T::GROUP;
                    for half in 0..2 * panels {
                        let to = ((half / 2 * block_lines + lq) * 2 + half % 2) * TILE_ROWS + g;
                        T::groups(s, row_pair(s, p, r, count, half), &mut p_right[to].0);
                        T::groups(s, row_pair(s, ds, r, count, half), &mut ds_right[to].0);
                    }
                }
                for (i, keys) in keys.chunks_exact(2 * TILE_ROWS * k_lines).enumerate() {
                    if count == 0 {
                        break;
                    }
                    unit.product(ds_left, k_lines, keys, &mut block);
                    for r in 0..count {
                        let at = [sample * n + q0 + r, sizes.column(head, 0), i * PANEL];
                        // SAFETY: each head of each token is written by one task, once.
                        unsafe { store_panel(s, &out, at, sizes.width, 1.0, &block.0[r]) };
                    }
                }
            }
            // dKᵀ += Qᵀ dS and dVᵀ += dOᵀ P, over the block's queries.
            let (left, size) = (2 * TILE_ROWS * block_lines, STRIP * block_lines);
            for i in 0..d_panels * panels {
                let (a, b) = (i / panels * left, i % panels * size);
                let kinds = [(&*q_block, &*ds_right), (&*g_block, &*p_right)];
                for (kind, (x, y)) in kinds.into_iter().enumerate() {
                    unit.product(&x[a..a + left], block_lines, &y[b..b + size], &mut block);
                    let total = &mut totals[kind * d_panels * panels + i];
                    for (total, v) in total.0.iter_mut().flatten().zip(block.0.iter().flatten()) {
                        *total += v;
                    }
                }
            }
        }
        for (i, total) in totals.iter().enumerate() {
            let (kind, i) = (i / (d_panels * panels), i % (d_panels * panels));
            let (d0, token0) = (i / panels * PANEL, i % panels * PANEL);
            let mut columns = [Line::ZERO; TILE_ROWS];
            for quarter in 0..4 {
                let (d, token0) = (d0 + quarter / 2 * TILE_ROWS, token0 + quarter % 2 * LANES);
                let count = sizes.width.saturating_sub(d).min(LANES);
                transposed_quarter(s, total, quarter, &mut columns);
                for token in token0..n.min(token0 + LANES) {
                    let values = elements_mut(std::slice::from_mut(&mut columns[token - token0]));
                    if count > 0 {
                        let (row, column) = (sample * n + token, sizes.column(head, 1 + kind) + d);
                        // SAFETY: each head of each token is written by one task, once.
                        unsafe { out.store(s, row, column, count, s.load(values)) };
                    }
                }
            }
        }
    }
}

/// Sixteen values of rows `r` and `r + 1` of a strip; rows from `count` on are zero.
#[inline(always)]
fn row_pair<S: Simd>(s: S, strip: &[Sums], r: usize, count: usize, half: usize) -> [S::F; 2] {
    let columns = half % 2 * LANES..(half % 2 + 1) * LANES;
    let mut pair = [s.splat(0.0); 2];
    for (i, v) in pair.iter_mut().enumerate() {
        if r + i < count {
            *v = s.load(&strip[half / 2].0[r + i][columns.clone()]);
        }
    }
    pair
}

/// Normalise row `r` of the probabilities, and make `scale · P (dP - Σ P dP)` of the row of `ds`.
#[inline(always)]
fn score_gradients<S: Simd>(s: S, p: &mut [Sums], ds: &mut [Sums], r: usize, sum: f32, scale: S::F) {
    let inverse = s.splat(sum.recip());
    let mut delta = s.splat(0.0);
    for (p, ds) in p.iter_mut().zip(ds.iter()) {
        for (p, ds) in p.0[r].chunks_exact_mut(LANES).zip(ds.0[r].chunks_exact(LANES)) {
            let v = s.mul(s.load(p), inverse);
            delta = s.mul_add(v, s.load(ds), delta);
            s.store(p, v);
        }
    }
    let delta = s.splat(s.sum(delta));
    for (p, ds) in p.iter().zip(ds) {
        for (p, ds) in p.0[r].chunks_exact(LANES).zip(ds.0[r].chunks_exact_mut(LANES)) {
            let v = s.mul(s.mul(s.load(p), scale), s.sub(s.load(ds), delta));
            s.store(ds, v);
        }
    }
}

/// A quarter of a block, 16 × 16, transposed: 0 and 1 above, 2 and 3 below.
#[inline(always)]
fn transposed_quarter<S: Simd>(s: S, of: &Sums, quarter: usize, to: &mut [Line; TILE_ROWS]) {
    let mut from = [Line::ZERO; TILE_ROWS];
    let columns = quarter % 2 * LANES..(quarter % 2 + 1) * LANES;
    for (line, row) in from.iter_mut().zip(&of.0[quarter / 2 * TILE_ROWS..]) {
        elements_mut::<f32>(std::slice::from_mut(line)).copy_from_slice(&row[columns.clone()]);
    }
    s.transpose(block(&from), block_mut(to));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Sweep, assert_close, operands, sweep, values, wide};

    /// Output and gradient of `qkv` in f64.
    fn reference(sizes: &Attention<'_>, qkv: &[f64], grad: &[f64]) -> [Vec<f64>; 2] {
        let (n, d) = (sizes.tokens, sizes.width);
        let mut out = vec![0.0; grad.len()];
        let mut back = vec![0.0; qkv.len()];
        let scale = (d as f64).sqrt().recip();
        for sample in 0..sizes.batch {
            for head in 0..sizes.heads {
                let at = |token: usize, part| {
                    (sample * n + token) * 3 * sizes.channels() + sizes.column(head, part)
                };
                let mut p = vec![0.0; n * n];
                for q in 0..n {
                    let [bias, mask] = added(sizes, sample, head, q);
                    let extra = |k: usize| {
                        let value = |t: &[f32]| t.get(k).map_or(0.0, |v| f64::from(*v));
                        value(bias) + value(mask)
                    };
                    let score = |k: usize| {
                        let dot: f64 = (0..d).map(|i| qkv[at(q, 0) + i] * qkv[at(k, 1) + i]).sum();
                        dot * scale + extra(k)
                    };
                    let scores: Vec<f64> = (0..n).map(score).collect();
                    let largest = scores.iter().fold(f64::MIN, |m, v| m.max(*v));
                    let total: f64 = scores.iter().map(|v| (v - largest).exp()).sum();
                    for k in 0..n {
                        p[q * n + k] = (scores[k] - largest).exp() / total;
                    }
                    let o = (sample * n + q) * sizes.channels() + sizes.column(head, 0);
                    let g = &grad[o..o + d];
                    let dp: Vec<f64> =
                        (0..n).map(|k| (0..d).map(|i| g[i] * qkv[at(k, 2) + i]).sum()).collect();
                    let delta: f64 = (0..n).map(|k| p[q * n + k] * dp[k]).sum();
                    for k in 0..n {
                        let weight = p[q * n + k];
                        let ds = scale * weight * (dp[k] - delta);
                        for i in 0..d {
                            out[o + i] += weight * qkv[at(k, 2) + i];
                            back[at(k, 2) + i] += weight * g[i];
                            back[at(q, 0) + i] += ds * qkv[at(k, 1) + i];
                            back[at(k, 1) + i] += ds * qkv[at(q, 0) + i];
                        }
                    }
                }
            }
        }
        [out, back]
    }

    struct Heads {
        sizes: [usize; 4],
        windows: usize,
    }

    impl Sweep for Heads {
        fn check<T: Operand>(&self, isa: Isa, rounding: f64) {
            let [batch, tokens, heads, width] = self.sizes;
            let what = format!("{isa:?} {:?}", self.sizes);
            let square = tokens * tokens;
            let (bias, mask) = if self.windows > 0 {
                let mut mask = values(self.windows * square, 3);
                // Shifted windows forbid pairs by -100.
                mask.iter_mut().step_by(3).for_each(|v| *v = -100.0);
                (values(heads * square, 2), mask)
            } else {
                (Vec::new(), Vec::new())
            };
            let sizes = Attention { batch, tokens, heads, width, bias: &bias, mask: &mask };
            let rows = batch * tokens;
            let qkv: Vec<T> =
                values(3 * rows * heads * width, 1).iter().map(|v| T::from_f32(2.0 * v)).collect();
            let grad = operands::<T>(rows * heads * width, 5);
            let [expected, expected_back] = reference(&sizes, &wide(&qkv), &wide(&grad));
            let channels = heads * width;
            let (qkv, grad) = (Tiles::from_rows(&qkv, 3 * channels), Tiles::from_rows(&grad, channels));
            let mut out = Tiles::new(rows, channels);
            forward(isa, sizes, &qkv, &mut out);
            assert_close(&out.to_rows(), &expected, 2.0 * rounding, &what);
            let mut back = Tiles::new(rows, 3 * channels);
            backward(isa, sizes, &qkv, &grad, &mut back);
            assert_close(&back.to_rows(), &expected_back, 3.0 * rounding, &what);
        }
    }

    #[test]
    fn heads_of_any_size_agree_with_f64() {
        for sizes in [[1, 1, 1, 1], [2, 5, 3, 4], [1, 33, 2, 32], [2, 49, 1, 40], [0, 7, 2, 8]] {
            for windows in [0, 2] {
                sweep(&Heads { sizes, windows });
            }
        }
    }

    /// More queries than the backward pass holds at once.
    #[test]
    #[cfg_attr(miri, ignore = "too long")]
    fn many_tokens_agree_with_f64() {
        sweep(&Heads { sizes: [1, 197, 2, 64], windows: 0 });
        sweep(&Heads { sizes: [1, 300, 1, 16], windows: 1 });
    }
}
