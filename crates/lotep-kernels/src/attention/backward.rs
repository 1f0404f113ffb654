//! The backward pass of one head of one sample.
//!
//! With weights `P`, values `V`, the output's gradient `G` and `D = G Vᵀ`: the scores' gradient is
//! `S = P (D - Σ P D)` row by row, and those of queries, keys and values are `S K`, `Sᵀ Q` and `Pᵀ G`, the first two
//! times `1 / √d`.

use super::operands::{right_line, store_left, transposed};
use super::softmax::Power;
use super::{Attention, Extents, Extra, QUERY_BLOCK, STRIP, SUMS_LINES, store};
use crate::gemm::micro::{Sums, Unit};
use crate::gemm::{PANEL, TILE_ROWS, line};
use crate::scratch::{Line, block, block_mut, elements, elements_mut};
use crate::simd::{Kernel, LANES, Simd};
use crate::{Operand, SharedMut, SharedTiles, Tiles};

/// Queries of a block.
fn block_rows(e: &Extents) -> usize {
    QUERY_BLOCK.min(e.key_panels * PANEL)
}

pub(super) fn scratch<T: Operand>(e: &Extents) -> [usize; 12] {
    let (face, right) = (e.face(), e.width_right());
    let block = block_rows(e) / line::<T>();
    [
        face,                                           // left operands on their way
        face,                                           // keys, as right operand's transpose
        face,                                           // values, as right operand's transpose
        right * e.key_lines,                            // keys as right operand
        2 * STRIP * e.width_lines,                      // a strip's queries and upper gradients, left
        STRIP * e.key_lines,                            // a strip's score gradients, left
        2 * right * block, // a block's queries and upper gradients, transposed, left
        right * block,     // on their way there
        2 * e.key_panels * STRIP * block, // a block's weights and score gradients, right
        e.scores(),        // a strip's scores, then weights
        e.scores(),        // a strip's weights' gradients
        2 * e.width_panels * e.key_panels * SUMS_LINES, // gradients of keys and values, transposed
    ]
}

pub(super) struct Backward<'a, T: Operand> {
    pub(super) sizes: Attention<'a>,
    pub(super) extents: Extents,
    pub(super) qkv: &'a Tiles<T>,
    pub(super) extra: Option<&'a Extra<'a, T>>,
    pub(super) grad: &'a Tiles<T>,
    pub(super) out: SharedTiles<'a, T>,
    pub(super) extra_grad: SharedMut<'a, f32>,
    /// Sample and head.
    pub(super) at: [usize; 2],
    pub(super) lines: [&'a mut [Line]; 12],
}

impl<T: Operand> Kernel for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { sizes, extents: e, qkv, extra, grad, out, extra_grad, at, .. } = self;
        let [sample, head] = at;
        let n = sizes.tokens;
        let column = sizes.column(head, 0);
        let queries = sizes.rows(qkv, [sample, head, 0]);
        let keys = sizes.rows(qkv, [sample, head, 1]).and(extra.map(|x| (x.keys, column)));
        let values = sizes.rows(qkv, [sample, head, 2]).and(extra.map(|x| (x.values, column)));
        let upper = sizes.outputs(grad, at);
        let [way, keys_t, values_t, keys_right, strip, left, block_t, block_way, block_right, p, d, totals] =
            self.lines;
        keys.left(e.width_lines, way);
        transposed(s, way, e.width_lines, false, keys_t);
        values.left(e.width_lines, way);
        transposed(s, way, e.width_lines, false, values_t);
        keys.right(s, e.width_panels, keys_right);
        let unit = Unit::<T, S>::new(s);
        let (p, d) = (elements_mut::<f32>(p), elements_mut::<f32>(d));
        let stride = e.score_row();
        let scale = (sizes.width as f32).sqrt().recip();
        let (q_strip, g_strip) = strip.split_at_mut(STRIP * e.width_lines);
        let mut sums = Sums::ZERO;
        for token in sizes.queries..n {
            for d in (0..sizes.width).step_by(PANEL) {
                let columns = (sizes.width - d).min(PANEL);
                // SAFETY: each head of each token is written by one task, once.
                unsafe { store(s, &out, sample * n + token, column + d, columns, [s.splat(0.0); 2]) };
            }
        }
        for start in (0..sizes.queries).step_by(block_rows(&e)) {
            let rows = (sizes.queries - start).min(block_rows(&e));
            let lines = rows.next_multiple_of(PANEL) / line::<T>();
            let size = e.width_right() * lines;
            let (q_block, g_block) = block_t[..2 * size].split_at_mut(size);
            queries.part(start, rows).right(s, e.width_panels, &mut block_way[..size]);
            transposed(s, &block_way[..size], lines, true, q_block);
            upper.part(start, rows).right(s, e.width_panels, &mut block_way[..size]);
            transposed(s, &block_way[..size], lines, true, g_block);
            let size = e.key_panels * STRIP * lines;
            let (p_right, s_right) = block_right[..2 * size].split_at_mut(size);
            for first in (0..rows).step_by(STRIP) {
                let count = (rows - first).min(STRIP);
                let query = start + first;
                queries.part(query, count).left(e.width_lines, q_strip);
                upper.part(query, count).left(e.width_lines, g_strip);
                let size = 2 * TILE_ROWS * e.width_lines;
                for i in 0..e.key_panels {
                    let panel = i * size..(i + 1) * size;
                    unit.product_into(
                        q_strip,
                        e.width_lines,
                        &keys_t[panel.clone()],
                        &mut p[i * PANEL..],
                        stride,
                    );
                    unit.product_into(g_strip, e.width_lines, &values_t[panel], &mut d[i * PANEL..], stride);
                }
                for r in (0..STRIP).step_by(T::GROUP) {
                    let pair = RowPair {
                        sizes: &sizes,
                        e: &e,
                        at,
                        query: query + r,
                        r,
                        here: count.saturating_sub(r),
                    };
                    pair.run::<T, S>(s, p, d, scale, left, (first + r, lines), [p_right, s_right]);
                }
                for (i, keys) in keys_right.chunks_exact(2 * TILE_ROWS * e.key_lines).enumerate() {
                    unit.product(left, e.key_lines, keys, &mut sums);
                    let columns = (sizes.width - i * PANEL).min(PANEL);
                    for (r, sums) in sums.0.iter().enumerate().take(count) {
                        let v = [s.load(&sums[..LANES]), s.load(&sums[LANES..])];
                        let Some(row) = sizes.row(sample, query + r) else { continue };
                        // SAFETY: each head of each token is written by one task, once.
                        unsafe { store(s, &out, row, column + i * PANEL, columns, v) };
                    }
                }
            }
            // Kᵀ's gradient = Qᵀ S and Vᵀ's = Gᵀ P, summed over the blocks.
            let (size_left, size_right) = (2 * TILE_ROWS * lines, STRIP * lines);
            let (is_first, is_last) = (start == 0, start + rows == sizes.queries);
            for (kind, (x, y)) in [(&*q_block, &*s_right), (&*g_block, &*p_right)].into_iter().enumerate() {
                for i in 0..e.width_panels * e.key_panels {
                    let (d, key) = (i / e.key_panels, i % e.key_panels);
                    let x = &x[d * size_left..(d + 1) * size_left];
                    unit.product(x, lines, &y[key * size_right..(key + 1) * size_right], &mut sums);
                    if !(is_first && is_last) {
                        let at = (kind * e.width_panels * e.key_panels + i) * SUMS_LINES;
                        let total = elements_mut::<f32>(&mut totals[at..at + SUMS_LINES]);
                        add_total(s, total, &mut sums, is_first);
                    }
                    if is_last {
                        let to = Columns { sizes: &sizes, e: &e, at, kind, d: d * PANEL, key: key * PANEL };
                        to.store(s, &sums, &out, &extra_grad);
                    }
                }
            }
        }
    }
}

/// Add a block to what was summed before, in both places.
#[inline(always)]
fn add_total<S: Simd>(s: S, total: &mut [f32], sums: &mut Sums, first: bool) {
    for (total, sums) in total.chunks_exact_mut(LANES).zip(sums.0.as_flattened_mut().chunks_exact_mut(LANES))
    {
        let mut v = s.load(sums);
        if !first {
            v = s.add(v, s.load(total));
            s.store(sums, v);
        }
        s.store(total, v);
    }
}

/// A row of a strip of scores and of weights' gradients, or two where a group holds two.
struct RowPair<'a> {
    sizes: &'a Attention<'a>,
    e: &'a Extents,
    at: [usize; 2],
    query: usize,
    /// The first's place in the strip.
    r: usize,
    /// How many are there; the others count as zero.
    here: usize,
}

impl RowPair<'_> {
    /// Make weights and score gradients of scores and weights' gradients, and put them in the forms that the
    /// products need: the latter left, and both right, `row` rows into operands of `lines`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn run<T: Operand, S: Simd>(
        &self,
        s: S,
        scores: &mut [f32],
        grads: &[f32],
        scale: f32,
        left: &mut [Line],
        (row, lines): (usize, usize),
        [p_right, s_right]: [&mut [Line]; 2],
    ) {
        let e = self.e;
        let stride = e.score_row();
        let zero = s.splat(0.0);
        // Of each row: 1 / Σ e, and the two factors that make `scale · P (D - Σ P D)` of `e` and `D`.
        let mut factors = [[zero; 3]; 2];
        for i in 0..T::GROUP.min(self.here) {
            let row = (self.r + i) * stride;
            let (x, g) = (&mut scores[row..row + stride], &grads[row..row + stride]);
            let power = Power::of(s, self.sizes, self.at, self.query + i, x, e.keys);
            let (mut sum, mut product) = ([zero; 2], [zero; 2]);
            for (p, x) in x.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
                let g = &g[p * PANEL..(p + 1) * PANEL];
                let w = power.weights::<T>(s, x, (e.keys - p * PANEL).min(PANEL));
                for half in 0..2 {
                    let part = half * LANES..(half + 1) * LANES;
                    sum[half] = s.add(sum[half], w[half]);
                    product[half] = s.mul_add(w[half], s.load(&g[part.clone()]), product[half]);
                    s.store(&mut x[part], w[half]);
                }
            }
            let inverse = s.sum(s.add(sum[0], sum[1])).recip();
            let delta = s.sum(s.add(product[0], product[1])) * inverse;
            factors[i] = [s.splat(inverse), s.splat(inverse * scale), s.splat(-delta * inverse * scale)];
        }
        for p in 0..e.key_panels {
            let (mut weights, mut slopes) = ([[zero; 2]; 2], [[zero; 2]; 2]);
            for i in 0..T::GROUP.min(self.here) {
                let at = (self.r + i) * stride + p * PANEL;
                for half in 0..2 {
                    let part = at + half * LANES..at + (half + 1) * LANES;
                    let w = s.load(&scores[part.clone()]);
                    let [inverse, factor, shift] = factors[i];
                    weights[half][i] = s.mul(w, inverse);
                    slopes[half][i] = s.mul(w, s.mul_add(s.load(&grads[part]), factor, shift));
                }
                store_left::<T, S>(s, left, e.key_lines, self.r + i, p, [slopes[0][i], slopes[1][i]]);
            }
            for half in 0..2 {
                let at = right_line::<T>(lines, row, 2 * p + half);
                T::groups(s, weights[half], &mut p_right[at].0);
                T::groups(s, slopes[half], &mut s_right[at].0);
            }
        }
    }
}

/// Where a block of keys' or values' transposed gradients goes, 32 columns of a head by 32 keys.
struct Columns<'a> {
    sizes: &'a Attention<'a>,
    e: &'a Extents,
    at: [usize; 2],
    /// 0 keys, 1 values.
    kind: usize,
    /// First column within the head.
    d: usize,
    /// First key.
    key: usize,
}

impl Columns<'_> {
    #[inline(always)]
    fn store<T: Operand, S: Simd>(
        &self,
        s: S,
        sums: &Sums,
        out: &SharedTiles<'_, T>,
        extra: &SharedMut<'_, f32>,
    ) {
        let ([sample, head], n) = (self.at, self.sizes.tokens);
        let columns = (self.sizes.width - self.d).min(PANEL);
        for half in 0..2 {
            let mut quarters = [[Line::ZERO; TILE_ROWS]; 2];
            for (quarter, rows) in quarters.iter_mut().zip(sums.0.chunks_exact(TILE_ROWS)) {
                let mut from = [Line::ZERO; TILE_ROWS];
                for (line, row) in from.iter_mut().zip(rows) {
                    let values = s.load(&row[half * LANES..(half + 1) * LANES]);
                    s.store(elements_mut(std::slice::from_mut(line)), values);
                }
                s.transpose(block(&from), block_mut(quarter));
            }
            let first = self.key + half * LANES;
            for key in first..self.e.keys.min(first + LANES) {
                let of =
                    |quarter: usize| elements::<f32>(std::slice::from_ref(&quarters[quarter][key - first]));
                let v = [s.load(of(0)), s.load(of(1))];
                // SAFETY: each head of each key is written by one task, once.
                unsafe {
                    if key < n {
                        let Some(row) = self.sizes.row(sample, key) else { continue };
                        let column = self.sizes.column(head, 1 + self.kind) + self.d;
                        store(s, out, row, column, columns, v);
                    } else {
                        let extra_row = (sample * 2 + self.kind) * (self.e.keys - n) + key - n;
                        let at = extra_row * self.sizes.channels() + self.sizes.column(head, 0) + self.d;
                        s.store(extra.part(at..at + columns.min(LANES)), v[0]);
                        s.store(extra.part(at + columns.min(LANES)..at + columns), v[1]);
                    }
                }
            }
        }
    }
}
