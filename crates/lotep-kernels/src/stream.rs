//! A residual stream in tiles beside its products: the sum over samples that a prompt's gradient is, and the mean over
//! pixels at a network's end.

use std::ops::Range;

use rayon::prelude::*;

use crate::depthwise::Rows;
use crate::gemm::{PANEL, TILE_ROWS, line, load, mask_words, selected, stored};
use crate::memory::uncleared;
use crate::parallel::ranges;
use crate::scratch::{self, elements_mut};
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::thin::{self, Contract, OfTransposed};
use crate::{Isa, Operand, SharedMut, SharedTiles, Tiles};

/// Take a prompt's gradient out of that of the stream it was added to: `out = Σ_b grad[b]`, and leave the gradient where
/// the mask of the ReLU before is set ([`crate::gemm::Join::mask`]), zero elsewhere. `out` is one sample's rows.
///
/// # Panics
/// The sizes do not fit each other.
pub fn take_prompt<T: Operand>(isa: Isa, grad: &mut Tiles<T>, mask: &[u16], out: &mut [f32]) {
    let columns = grad.columns();
    let pixels = out.len() / columns.max(1);
    assert!(out.len() == pixels * columns, "a prompt of {} values", out.len());
    let samples = Samples::new(grad, mask, pixels);
    let out = SharedMut::new(out);
    ranges(pixels, TILE_ROWS, 2, |part| {
        // SAFETY: ranges do not overlap.
        let out = unsafe { out.part(part.start * columns..part.end * columns) };
        dispatch(isa, TakePrompt { samples, part, out });
    });
}

/// The same of a prompt that is a product, `thin` `[pixels, rank]` with `wide` `[rank, columns]`: the gradients of the two,
/// in their shapes. That of the product is summed a few pixels at a time and is nowhere whole.
///
/// How pixels are shared out depends on their number alone, and so does the order of sums: the number of threads changes
/// nothing.
///
/// # Panics
/// The sizes do not fit each other.
pub fn take_factors<T: Operand>(
    isa: Isa,
    grad: &mut Tiles<T>,
    mask: &[u16],
    [thin, wide]: [&[f32]; 2],
    rank: usize,
) -> [Vec<f32>; 2] {
    /// Tasks to come to.
    const SEGMENTS: usize = 32;
    let columns = grad.columns();
    let pixels = thin.len() / rank.max(1);
    thin::sizes(thin, wide, rank, pixels * columns);
    let samples = Samples::new(grad, mask, pixels);
    // Each has sums of its own for the other factor, which are not to outgrow the gradient of the product.
    // Of whole tiles where there are many: each sample's lines then lie side by side.
    let whole = if pixels < SEGMENTS * TILE_ROWS { TOGETHER } else { TILE_ROWS };
    let segment = pixels.div_ceil(SEGMENTS.min(pixels / rank).max(1)).next_multiple_of(whole);
    let mut of_thin = uncleared(thin.len());
    let mut partial = vec![0.0; pixels.div_ceil(segment) * wide.len()];
    let parts = of_thin.par_chunks_mut(segment * rank).zip(partial.par_chunks_mut(wide.len()));
    parts.with_max_len(1).enumerate().for_each(|(i, (of_thin, of_wide))| {
        let part = i * segment..((i + 1) * segment).min(pixels);
        let thin = &thin[part.start * rank..part.end * rank];
        scratch::with([SUMS.max(TOGETHER * columns).div_ceil(line::<f32>())], |[sums]| {
            let sums = elements_mut(sums);
            dispatch(isa, TakeFactors { samples, part, thin, wide, rank, of_thin, of_wide, sums });
        });
    });
    let mut of_wide = partial[..wide.len()].to_vec();
    for more in partial.chunks_exact(wide.len()).skip(1) {
        for (sum, more) in of_wide.iter_mut().zip(more) {
            *sum += more;
        }
    }
    [of_thin, of_wide]
}

/// Sums that stay in the first-level cache while the samples pass by.
const SUMS: usize = 8192;
/// Pixels whose sums are in registers at once, in bfloat16, where those are wide: a tile's lines lie side by side, where those of
/// samples are maps apart. (Measured on Zen 4, eight samples of 56 × 56 × 256 on two threads. Lines' halves summed apart: 0.27 ms
/// eight pixels at a time, 0.39 one by one. Lines widened and rounded again: 0.43 and 0.41.)
const TOGETHER: usize = 8;

/// The gradient of a stream that each of some samples had the same prompt added to.
#[derive(Clone, Copy)]
struct Samples<'a, T> {
    grad: SharedTiles<'a, T>,
    mask: &'a [u16],
    count: usize,
    /// Rows of a sample.
    pixels: usize,
}

impl<'a, T: Operand> Samples<'a, T> {
    fn new(grad: &'a mut Tiles<T>, mask: &'a [u16], pixels: usize) -> Self {
        let (rows, columns) = (grad.rows(), grad.columns());
        assert!(pixels > 0 && rows.is_multiple_of(pixels), "{rows} rows of samples of {pixels}");
        assert_eq!(mask.len(), rows * mask_words(columns), "words of the mask");
        Self { grad: grad.share(), mask, count: rows / pixels, pixels }
    }

    /// So many of some pixels at a time that their sums stay in the first-level cache.
    fn steps(&self, part: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<T> {
        let step = (SUMS / self.grad.columns() / TOGETHER * TOGETHER).clamp(TOGETHER, TILE_ROWS);
        part.clone().step_by(step).map(move |first| first..(first + step).min(part.end))
    }

    /// Sum some pixels' gradients over the samples, and mask them.
    ///
    /// # Safety
    /// Nobody else uses these pixels at the same time.
    #[inline(always)]
    unsafe fn sum<S: Simd>(&self, s: S, pixels: Range<usize>, sums: &mut [f32]) {
        let columns = self.grad.columns();
        let whole = columns - columns % PANEL;
        for column in (0..columns).step_by(PANEL) {
            if T::GROUP == 1 || column == whole {
                for (pixel, sums) in pixels.clone().zip(sums.chunks_exact_mut(columns)) {
                    let to = &mut sums[column..(column + PANEL).min(columns)];
                    // SAFETY: the caller's; a pixel there is, from a panel's first column on.
                    unsafe { self.sum_values(s, pixel, column, to) };
                }
                continue;
            }
            let mut first = pixels.start;
            for sums in sums.chunks_mut(TOGETHER * columns) {
                let sums = sums.split_at_mut(column).1;
                // SAFETY: the caller's; pixels there are, and a whole panel of bfloat16.
                unsafe {
                    if S::WIDE && pixels.end - first >= TOGETHER {
                        self.sum_lines::<S, TOGETHER>(s, first, column, sums);
                    } else {
                        let end = pixels.end.min(first + TOGETHER);
                        for (pixel, sums) in (first..end).zip(sums.chunks_mut(columns)) {
                            self.sum_lines::<S, 1>(s, pixel, column, sums);
                        }
                    }
                }
                first += TOGETHER;
            }
        }
    }

    /// The same of one pixel and up to a panel of columns.
    ///
    /// # Safety
    /// The sample has the pixel, and a panel begins at `column`; nobody else uses either at the same time.
    #[inline(always)]
    unsafe fn sum_values<S: Simd>(&self, s: S, pixel: usize, column: usize, sums: &mut [f32]) {
        let (count, words) = (sums.len(), mask_words(self.grad.columns()));
        let mut sum = [s.splat(0.0); 2];
        for row in (0..self.count).map(|sample| sample * self.pixels + pixel) {
            // SAFETY: a row and columns that the matrix has; alone, as the caller promises.
            let v = unsafe { stored(s, &self.grad, row, column, count) };
            sum = [s.add(sum[0], v[0]), s.add(sum[1], v[1])];
            let mask = &self.mask[row * words + column / LANES..][..count.div_ceil(LANES)];
            // SAFETY: as above.
            unsafe { self.grad.store_panel(s, row, column, count, selected(s, mask, v)) };
        }
        let (low, high) = sums.split_at_mut(count.min(LANES));
        s.store(low, sum[0]);
        s.store(high, sum[1]);
    }

    /// The same of `N` pixels and a whole panel of bfloat16, which is one line of each: the two values of a group are summed apart,
    /// and nothing is rounded again. `sums` begin with the panel's first.
    ///
    /// # Safety
    /// The sample has the pixels, and a whole panel of bfloat16 begins at `column`; nobody else uses them at the same time.
    #[inline(always)]
    unsafe fn sum_lines<S: Simd, const N: usize>(&self, s: S, first: usize, column: usize, sums: &mut [f32]) {
        debug_assert!(T::GROUP == 2 && column.is_multiple_of(PANEL));
        let columns = self.grad.columns();
        let words = mask_words(columns);
        let mut sum = [[s.splat(0.0); 2]; N];
        for first in (0..self.count).map(|sample| sample * self.pixels + first) {
            for (i, sum) in sum.iter_mut().enumerate() {
                let row = first + i;
                let word = row * words + column / LANES;
                // SAFETY: a row and columns that the matrix and the mask have; alone, as the caller promises.
                unsafe {
                    let line = self.grad.row_line_mut(row, column);
                    let mask = self.mask.get_unchecked(word..word + PANEL / LANES);
                    let groups = s.load_groups(line);
                    s.store_groups(line, s.keep_bf16([mask[0], mask[1]], groups));
                    let v = s.unpair(groups);
                    *sum = [s.add(sum[0], v[0]), s.add(sum[1], v[1])];
                }
            }
        }
        for (sum, to) in sum.into_iter().zip(sums.chunks_mut(columns)) {
            let v = s.interleave(sum[0], sum[1]);
            s.store(&mut to[..LANES], v[0]);
            s.store(&mut to[LANES..PANEL], v[1]);
        }
    }
}

struct TakePrompt<'a, T> {
    samples: Samples<'a, T>,
    part: Range<usize>,
    /// Of this part.
    out: &'a mut [f32],
}

impl<T: Operand> Kernel for TakePrompt<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let columns = self.samples.grad.columns();
        for pixels in self.samples.steps(self.part.clone()) {
            let at = (pixels.start - self.part.start) * columns;
            let out = &mut self.out[at..at + pixels.len() * columns];
            // SAFETY: pixels are shared out among the tasks.
            unsafe { self.samples.sum(s, pixels, out) };
        }
    }
}

struct TakeFactors<'a, T> {
    samples: Samples<'a, T>,
    part: Range<usize>,
    /// The factor's rows of this part.
    thin: &'a [f32],
    wide: &'a [f32],
    rank: usize,
    /// The gradient of those rows.
    of_thin: &'a mut [f32],
    /// What this part adds to the other factor's.
    of_wide: &'a mut [f32],
    sums: &'a mut [f32],
}

impl<T: Operand> Kernel for TakeFactors<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { samples, part, thin, wide, rank, of_thin, of_wide, sums } = self;
        let columns = samples.grad.columns();
        for pixels in samples.steps(part.clone()) {
            let sums = &mut sums[..pixels.len() * columns];
            let own = (pixels.start - part.start) * rank..(pixels.end - part.start) * rank;
            // SAFETY: pixels are shared out among the tasks.
            unsafe { samples.sum(s, pixels, sums) };
            let (thin, wide_rows) = (&thin[own.clone()], Rows::new(sums, columns));
            let out = SharedMut::new(of_wide);
            Contract { thin, rank, wide: &wide_rows, columns: 0..columns, out }.run(s);
            OfTransposed { grad: sums, wide, rank, out: &mut of_thin[own] }.run(s);
        }
    }
}

/// The mean of each sample's rows: `x` in rows of `columns`, `[samples · pixels, columns]` to `[samples, columns]`.
///
/// # Panics
/// The sizes do not fit each other.
pub fn mean_rows(isa: Isa, x: &[f32], samples: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; samples * columns];
    if out.is_empty() {
        return out;
    }
    assert!(!x.is_empty() && x.len().is_multiple_of(out.len()), "{} values of {samples} samples", x.len());
    let shared = SharedMut::new(&mut out);
    ranges(samples, 1, 1, |part| {
        // SAFETY: ranges do not overlap.
        let out = unsafe { shared.part(part.start * columns..part.end * columns) };
        let size = x.len() / samples;
        dispatch(isa, MeanRows { x: &x[part.start * size..part.end * size], columns, out });
    });
    out
}

struct MeanRows<'a> {
    x: &'a [f32],
    columns: usize,
    out: &'a mut [f32],
}

impl Kernel for MeanRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.x.len() / self.out.len();
        let scale = s.splat(1.0 / rows as f32);
        let samples = self.x.chunks_exact(rows * self.columns);
        for (x, out) in samples.zip(self.out.chunks_exact_mut(self.columns)) {
            for x in x.chunks_exact(self.columns) {
                for (out, x) in out.chunks_mut(LANES).zip(x.chunks(LANES)) {
                    let sum = s.add(s.load(out), s.load(x));
                    s.store(out, sum);
                }
            }
            for out in out.chunks_mut(LANES) {
                let mean = s.mul(s.load(out), scale);
                s.store(out, mean);
            }
        }
    }
}

/// The gradient of the rows that [`mean_rows`] takes, behind a ReLU: `grad[sample] / pixels` where the mask is set.
///
/// # Panics
/// The sizes do not fit each other.
pub fn spread_rows<T: Operand>(
    isa: Isa,
    grad: &[f32],
    pixels: usize,
    mask: &[u16],
    columns: usize,
) -> Tiles<T> {
    assert!(columns > 0 && grad.len().is_multiple_of(columns), "{} values in rows of {columns}", grad.len());
    let rows = grad.len() / columns * pixels;
    assert_eq!(mask.len(), rows * mask_words(columns), "words of the mask");
    let mut tiles = Tiles::new(rows, columns);
    let out = tiles.share();
    ranges(rows, TILE_ROWS, 2, |part| dispatch(isa, SpreadRows { grad, pixels, mask, part, out }));
    tiles
}

struct SpreadRows<'a, T> {
    grad: &'a [f32],
    pixels: usize,
    mask: &'a [u16],
    part: Range<usize>,
    out: SharedTiles<'a, T>,
}

impl<T: Operand> Kernel for SpreadRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let columns = self.out.columns();
        let words = mask_words(columns);
        let scale = s.splat(1.0 / self.pixels as f32);
        for row in self.part {
            for column in (0..columns).step_by(PANEL) {
                let count = (columns - column).min(PANEL);
                // SAFETY: a sample's row has these columns.
                let v = unsafe { load(s, self.grad, row / self.pixels * columns + column, count) };
                let mask = &self.mask[row * words + column / LANES..][..count.div_ceil(LANES)];
                let v = selected(s, mask, [s.mul(v[0], scale), s.mul(v[1], scale)]);
                // SAFETY: rows are shared out among the tasks.
                unsafe { self.out.store_panel(s, row, column, count, v) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{self, AddTo, Join, Matrix, Part};
    use crate::testing::{Sweep, assert_close, operands, sweep, values, wide};

    /// Bits of a mask, one a value.
    fn bits(mask: &[u16], columns: usize) -> Vec<f64> {
        let words = mask_words(columns);
        let bit = |i: usize| mask[i / columns * words + i % columns / LANES] >> (i % columns % LANES) & 1;
        (0..mask.len() / words * columns).map(|i| f64::from(bit(i))).collect()
    }

    struct Stream {
        samples: usize,
        pixels: usize,
        columns: usize,
    }

    impl Sweep for Stream {
        fn check<T: Operand>(&self, isa: Isa, rounding: f64) {
            let &Self { samples, pixels, columns } = self;
            let what = format!("{isa:?} {} {samples} x {pixels} x {columns}", std::any::type_name::<T>());
            let (rows, depth) = (samples * pixels, 5);
            let count = rows * columns;
            let (a, w) = (operands::<T>(rows * depth, 1), operands::<T>(depth * columns, 2));
            let matrix = Matrix::<T>::pack(depth, columns, |k, n| w[k * columns + n].to_f32());
            let (wide_a, wide_w) = (wide(&a), wide(&w));
            let product = |i: usize| -> f64 {
                let (row, column) = (i / columns, i % columns);
                (0..depth).map(|k| wide_a[row * depth + k] * wide_w[k * columns + column]).sum()
            };
            let a = Tiles::from_rows(&a, depth);
            let x = operands::<T>(count, 3);
            let (wide_x, x) = (wide(&x), Tiles::from_rows(&x, columns));
            let bias = values(columns, 4);
            let prompt = operands::<T>(pixels * columns, 5);
            let (wide_prompt, prompt) = (wide(&prompt), Tiles::from_rows(&prompt, columns));

            // Where a branch joins: into tiles with a prompt, and into rows without.
            let before: Vec<f64> =
                (0..count).map(|i| product(i) + wide_x[i] + f64::from(bias[i % columns])).collect();
            let relu: Vec<f64> = before.iter().map(|v| v.max(0.0)).collect();
            let mut mask = vec![0; rows * mask_words(columns)];
            let mut rows_out = vec![9.0_f32; count];
            gemm::run(isa, &a, &matrix, &Join::rows(&x, &bias, &mut rows_out).mask(&mut mask));
            assert_close(&rows_out, &relu, 1e-5, &what);
            let found: Vec<f64> = rows_out.iter().map(|v| f64::from(u8::from(*v > 0.0))).collect();
            assert_eq!(bits(&mask, columns), found, "{what}");
            let mut out = Tiles::<T>::new(rows, columns);
            let mut again = vec![0; mask.len()];
            let join = Join::tiles(&x, &bias, &mut out).mask(&mut again).prompt(Some(&prompt));
            gemm::run(isa, &a, &matrix, &join);
            let expected: Vec<f64> =
                relu.iter().enumerate().map(|(i, v)| v + wide_prompt[i % wide_prompt.len()]).collect();
            assert_close(&out.to_rows(), &expected, rounding, &what);
            assert_eq!(again, mask, "{what}");

            // Where it parts, with or without something around it and a mask, and something added later.
            let open = bits(&mask, columns);
            let plain: Vec<f64> = (0..count).map(|i| product(i) + wide_x[i]).collect();
            let mut part = vec![9.0_f32; count];
            gemm::run(isa, &a, &matrix, &Part::rows(&x, &mut part));
            assert_close(&part, &plain, 1e-5, &what);
            let masked: Vec<f64> = plain.iter().zip(&open).map(|(v, open)| v * open).collect();
            let mut out = Tiles::<T>::new(rows, columns);
            gemm::run(isa, &a, &matrix, &Part::tiles(Some(&x), &mask, &mut out));
            assert_close(&out.to_rows(), &masked, rounding, &what);
            gemm::run(isa, &a, &matrix, &Part::tiles(None, &mask, &mut out));
            gemm::run(isa, &a, &matrix, &AddTo::new(&mask, &mut out));
            let twice: Vec<f64> = (0..count).map(|i| 2.0 * product(i) * open[i]).collect();
            assert_close(&out.to_rows(), &twice, 2.0 * rounding, &what);

            // A prompt's gradient, and what goes on behind it; the same however many threads there are.
            let grad = operands::<T>(count, 6);
            let sums: Vec<f64> = (0..pixels * columns)
                .map(|i| (0..samples).map(|b| f64::from(grad[b * pixels * columns + i].to_f32())).sum())
                .collect();
            let behind: Vec<f64> = wide(&grad).iter().zip(&open).map(|(v, open)| v * open).collect();
            let mut found = Vec::new();
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut tiles = Tiles::from_rows(&grad, columns);
                let mut taken = vec![9.0; pixels * columns];
                pool.install(|| take_prompt(isa, &mut tiles, &mask, &mut taken));
                assert_close(&taken, &sums, 1e-6, &what);
                assert_close(&tiles.to_rows(), &behind, 0.0, &what);
                found.push(taken);
            }
            assert_eq!(found[0], found[1], "{what}");

            // The mean over pixels, and its gradient.
            let mean: Vec<f64> = (0..samples * columns)
                .map(|i| {
                    let value = |p: usize| rows_out[(i / columns * pixels + p) * columns + i % columns];
                    (0..pixels).map(|p| f64::from(value(p))).sum::<f64>() / pixels as f64
                })
                .collect();
            assert_close(&mean_rows(isa, &rows_out, samples, columns), &mean, 1e-6, &what);
            let grad = values(samples * columns, 7);
            let spread: Vec<f64> = (0..count)
                .map(|i| {
                    let sample = i / (pixels * columns);
                    f64::from(grad[sample * columns + i % columns]) / pixels as f64 * open[i]
                })
                .collect();
            let found = spread_rows::<T>(isa, &grad, pixels, &mask, columns);
            assert_close(&found.to_rows(), &spread, rounding, &what);
        }
    }

    #[test]
    fn a_stream_in_tiles_agrees_with_f64() {
        for (samples, pixels, columns) in [
            (1, 1, 1),
            (2, 3, 16),
            (3, 5, 33),
            (2, 16, 64),
            (4, 21, 47),
            (1, 37, 100),
            (2, 29, 33),
            (2, 11, 1100),
        ] {
            sweep(&Stream { samples, pixels, columns });
        }
    }

    /// The gradients of a prompt's factors.
    struct Factors {
        samples: usize,
        pixels: usize,
        columns: usize,
        rank: usize,
    }

    impl Sweep for Factors {
        fn check<T: Operand>(&self, isa: Isa, _rounding: f64) {
            let &Self { samples, pixels, columns, rank } = self;
            let what = format!("{isa:?} {samples} x {pixels} x {columns}, rank {rank}");
            let size = pixels * columns;
            let grad = operands::<T>(samples * size, 6);
            let mask: Vec<u16> = (0..samples * pixels * mask_words(columns))
                .map(|i| (i as u32).wrapping_mul(0x9E37_79B1).to_be_bytes())
                .map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
                .collect();
            let (thin, other) = (values(pixels * rank, 8), values(rank * columns, 9));
            let (wide_grad, wide_thin, wide_other) = (wide(&grad), wide(&thin), wide(&other));
            let sums: Vec<f64> =
                (0..size).map(|i| (0..samples).map(|b| wide_grad[b * size + i]).sum()).collect();
            let of_thin: Vec<f64> = (0..pixels * rank)
                .map(|i| {
                    let (p, k) = (i / rank, i % rank);
                    (0..columns).map(|c| sums[p * columns + c] * wide_other[k * columns + c]).sum()
                })
                .collect();
            let of_other: Vec<f64> = (0..rank * columns)
                .map(|i| {
                    let (k, c) = (i / columns, i % columns);
                    (0..pixels).map(|p| wide_thin[p * rank + k] * sums[p * columns + c]).sum()
                })
                .collect();
            let open = bits(&mask, columns);
            let behind: Vec<f64> = wide_grad.iter().zip(&open).map(|(v, open)| v * open).collect();
            let found = [1, 3].map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut tiles = Tiles::from_rows(&grad, columns);
                let factors = pool.install(|| take_factors(isa, &mut tiles, &mask, [&thin, &other], rank));
                assert_close(&factors[0], &of_thin, 1e-5, &what);
                assert_close(&factors[1], &of_other, 1e-5, &what);
                assert_close(&tiles.to_rows(), &behind, 0.0, &what);
                factors
            });
            assert_eq!(found[0], found[1], "{what}");
        }
    }

    /// Of any rank; more than 512 pixels take several steps in each part.
    #[test]
    fn gradients_of_factors_agree_with_f64() {
        for (samples, pixels, columns, rank) in
            [(1, 1, 1, 1), (2, 3, 16, 4), (3, 5, 33, 6), (4, 21, 47, 11), (1, 70, 600, 5), (2, 1100, 33, 1)]
        {
            if !cfg!(miri) || pixels < 70 {
                sweep(&Factors { samples, pixels, columns, rank });
            }
        }
    }
}
