//! Rows of scores become weights.

use super::Attention;
use crate::Operand;
use crate::gemm::PANEL;
use crate::simd::{LANES, Simd, coarse_exp2, exp2};

/// How a row's scores `x` become weights `2^(x · scale - shift)`, the largest of them 1.
#[derive(Clone, Copy)]
pub(super) struct Power<S: Simd> {
    scale: S::F,
    shift: S::F,
}

impl<S: Simd> Power<S> {
    /// Look through a row of scores, of which `keys` count; add bias and mask first.
    #[inline(always)]
    pub(super) fn of(
        s: S,
        sizes: &Attention<'_>,
        at: [usize; 2],
        query: usize,
        row: &mut [f32],
        keys: usize,
    ) -> Self {
        let mut factor = std::f32::consts::LOG2_E / (sizes.width as f32).sqrt();
        let [bias, mask] = sizes.added(at, query, keys);
        let (first, second) = if bias.is_empty() { (mask, bias) } else { (bias, mask) };
        if !first.is_empty() {
            let (scale, unit) = (s.splat(factor), s.splat(std::f32::consts::LOG2_E));
            // By their numbers: to take two iterators over chunks side by side, the compiler calls a function that divides.
            for (i, x) in row.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                let from = i * LANES;
                let mut v = s.mul(s.load(x), scale);
                if from < first.len() {
                    let mut a = s.load(&first[from..first.len().min(from + LANES)]);
                    if from < second.len() {
                        a = s.add(a, s.load(&second[from..second.len().min(from + LANES)]));
                    }
                    v = s.mul_add(a, unit, v);
                }
                s.store(x, v);
            }
            factor = 1.0;
        }
        let (whole, rest) = row[..keys].as_chunks::<LANES>();
        let mut largest = s.splat(f32::MIN);
        for x in whole {
            largest = s.max(largest, s.load(x));
        }
        if !rest.is_empty() {
            let mask = (1 << rest.len()) - 1;
            largest = s.max(largest, s.select(mask, s.load(rest), s.splat(f32::MIN)));
        }
        let shift = s.splat(s.largest(largest) * factor);
        Self { scale: s.splat(factor), shift }
    }

    /// The weights of a panel, of which `count` keys (1 to 32) are there; those of the others are zero.
    #[inline(always)]
    pub(super) fn weights<T: Operand>(&self, s: S, scores: &[f32], count: usize) -> [S::F; 2] {
        let (low, high) = scores[..PANEL].split_at(LANES);
        let mut weights = [self.weight::<T>(s, low), self.weight::<T>(s, high)];
        if count < PANEL {
            let mask = (1_u32 << count) - 1;
            weights[0] = s.select(mask as u16, weights[0], s.splat(0.0));
            weights[1] = s.select((mask >> LANES) as u16, weights[1], s.splat(0.0));
        }
        weights
    }

    #[inline(always)]
    fn weight<T: Operand>(&self, s: S, scores: &[f32]) -> S::F {
        let x = s.sub(s.mul(s.load(scores), self.scale), self.shift);
        if T::GROUP == 2 { coarse_exp2(s, x) } else { exp2(s, x) }
    }
}
