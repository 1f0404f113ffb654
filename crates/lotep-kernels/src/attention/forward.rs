//! The forward pass of one head of one sample.

use super::operands::{store_left, transposed};
use super::softmax::Power;
use super::{Attention, Extents, Extra, STRIP, store};
use crate::gemm::micro::{Sums, Unit};
use crate::gemm::{PANEL, TILE_ROWS};
use crate::scratch::{Line, elements_mut};
use crate::simd::{Kernel, LANES, Simd};
use crate::{Operand, SharedTiles, Tiles};

/// Queries, keys on their way, keys, values, a strip's weights and scores.
pub(super) fn scratch(e: &Extents) -> [usize; 6] {
    let face = e.face();
    [face, face, face, e.width_right() * e.key_lines, STRIP * e.key_lines, e.scores()]
}

pub(super) struct Forward<'a, T: Operand> {
    pub(super) sizes: Attention<'a>,
    pub(super) extents: Extents,
    pub(super) qkv: &'a Tiles<T>,
    pub(super) extra: Option<&'a Extra<'a, T>>,
    pub(super) out: SharedTiles<'a, T>,
    /// Sample and head.
    pub(super) at: [usize; 2],
    pub(super) lines: [&'a mut [Line]; 6],
}

impl<T: Operand> Kernel for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { sizes, extents: e, qkv, extra, out, at, .. } = self;
        let [sample, head] = at;
        let column = sizes.column(head, 0);
        let [q, k, keys, values, weights, scores] = self.lines;
        let q = &mut q[..sizes.queries.next_multiple_of(STRIP) * e.width_lines];
        sizes.rows(qkv, [sample, head, 0]).part(0, sizes.queries).left(e.width_lines, q);
        sizes.rows(qkv, [sample, head, 1]).and(extra.map(|x| (x.keys, column))).left(e.width_lines, k);
        transposed(s, k, e.width_lines, false, keys);
        sizes.rows(qkv, [sample, head, 2]).and(extra.map(|x| (x.values, column))).right(
            s,
            e.width_panels,
            values,
        );
        let unit = Unit::<T, S>::new(s);
        let scores = elements_mut::<f32>(scores);
        let stride = e.score_row();
        let mut block = Sums::ZERO;
        for first in (0..sizes.queries).step_by(STRIP) {
            let q = &q[first * e.width_lines..(first + STRIP) * e.width_lines];
            for (p, keys) in keys.chunks_exact(2 * TILE_ROWS * e.width_lines).enumerate() {
                unit.product_into(q, e.width_lines, keys, &mut scores[p * PANEL..], stride);
            }
            let count = (sizes.queries - first).min(STRIP);
            let mut inverse = [0.0; STRIP];
            for (r, row) in scores.chunks_exact_mut(stride).enumerate().take(count) {
                let power = Power::of(s, &sizes, at, first + r, row, e.keys);
                let mut sums = [s.splat(0.0); 2];
                for (p, scores) in row.as_chunks::<PANEL>().0.iter().enumerate() {
                    let w = power.weights::<T>(s, scores, (e.keys - p * PANEL).min(PANEL));
                    sums = [s.add(sums[0], w[0]), s.add(sums[1], w[1])];
                    store_left::<T, S>(s, weights, e.key_lines, r, p, w);
                }
                inverse[r] = s.sum(s.add(sums[0], sums[1])).recip();
            }
            for (p, values) in values.chunks_exact(2 * TILE_ROWS * e.key_lines).enumerate() {
                unit.product(weights, e.key_lines, values, &mut block);
                let columns = (sizes.width - p * PANEL).min(PANEL);
                for (r, sums) in block.0.iter().enumerate().take(count) {
                    let scale = s.splat(inverse[r]);
                    let v = [s.mul(s.load(&sums[..LANES]), scale), s.mul(s.load(&sums[LANES..]), scale)];
                    let row = match sizes.places {
                        None => sample * sizes.queries + first + r,
                        Some(_) => match sizes.row(sample, first + r) {
                            Some(row) => row,
                            None => continue,
                        },
                    };
                    // SAFETY: each head of each token is written by one task, once.
                    unsafe { store(s, &out, row, column + p * PANEL, columns, v) };
                }
            }
        }
    }
}
