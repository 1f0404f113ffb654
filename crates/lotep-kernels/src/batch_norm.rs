//! Batch normalisation of pixels in rows of f32, by the batch's own statistics, forward and back.
//!
//! Sums over all pixels are taken in blocks of rows, and the blocks' in f64 and in their order: as exact as the values
//! themselves, and the same however many threads there are.

use std::ops::Range;

use rayon::prelude::*;

use crate::gemm::{TILE_ROWS, mask_words};
use crate::parallel::ranges;
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::{Isa, Operand, SharedMut, SharedTiles, Tiles};

/// Rows whose sums are taken in f32.
const BLOCK: usize = 256;

/// Mean and biased variance of each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// `[channels]`
    pub mean: Vec<f32>,
    /// `[channels]`
    pub variance: Vec<f32>,
    /// Values of a channel that they are of.
    pub count: usize,
}

/// How channels are normalised: `(x - mean) · inverse · scale + shift`, each `[channels]`.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// Subtracted first.
    pub mean: &'a [f32],
    /// `1 / √(variance + eps)`
    pub inverse: &'a [f32],
    /// Learnt factor.
    pub scale: &'a [f32],
    /// Learnt summand.
    pub shift: &'a [f32],
}

impl Norm<'_> {
    fn channels(&self) -> usize {
        let channels = self.mean.len();
        let lengths = [self.inverse.len(), self.scale.len(), self.shift.len()];
        assert!(channels > 0 && lengths == [channels; 3], "a norm of {channels} channels: {lengths:?}");
        channels
    }

    /// `x` of the channels from `channel` on, normalised; before `scale` and `shift`, and behind them.
    #[inline(always)]
    pub(crate) fn apply<S: Simd>(&self, s: S, x: &[f32], channel: usize) -> [S::F; 2] {
        let part = channel..channel + x.len();
        let centred = s.sub(s.load(x), s.load(&self.mean[part.clone()]));
        let y = s.mul(centred, s.load(&self.inverse[part.clone()]));
        [y, s.mul_add(y, s.load(&self.scale[part.clone()]), s.load(&self.shift[part]))]
    }
}

/// Sums of two quantities over a block's rows, and over all rows.
struct Sums {
    blocks: Vec<f32>,
    rows: usize,
    channels: usize,
}

impl Sums {
    /// Have `run` sum each block's rows into two times `channels` values.
    fn new(rows: usize, channels: usize, run: impl Fn(Range<usize>, &mut [f32]) + Sync) -> Self {
        let mut blocks = vec![0.0; rows.div_ceil(BLOCK) * 2 * channels];
        blocks.par_chunks_mut(2 * channels).enumerate().for_each(|(i, sums)| {
            run(i * BLOCK..rows.min((i + 1) * BLOCK), sums);
        });
        Self { blocks, rows, channels }
    }

    /// Each block's number of rows and the two of a channel.
    fn of(&self, channel: usize) -> impl Iterator<Item = [f64; 3]> {
        self.blocks.chunks_exact(2 * self.channels).enumerate().map(move |(i, sums)| {
            let count = (self.rows - i * BLOCK).min(BLOCK);
            [count as f64, f64::from(sums[channel]), f64::from(sums[self.channels + channel])]
        })
    }
}

/// The mean and the biased variance of each channel over all rows.
///
/// # Panics
/// `x` is not made of whole rows.
pub fn moments(isa: Isa, x: &[f32], channels: usize) -> Moments {
    assert!(channels > 0 && x.len().is_multiple_of(channels), "{} values in rows of {channels}", x.len());
    let rows = x.len() / channels;
    let sums = Sums::new(rows, channels, |rows, sums| {
        let x = &x[rows.start * channels..rows.end * channels];
        let (mean, squares) = sums.split_at_mut(channels);
        dispatch(isa, Deviations { x, mean, squares });
    });
    let count = rows.max(1) as f64;
    let of = |channel| {
        let mean = sums.of(channel).map(|[n, mean, _]| n * mean).sum::<f64>() / count;
        let squares = sums.of(channel).map(|[n, m, squares]| squares + n * (m - mean).powi(2)).sum::<f64>();
        (mean as f32, (squares / count) as f32)
    };
    let (mean, variance) = (0..channels).map(of).unzip();
    Moments { mean, variance, count: rows }
}

/// The means of a block's channels, and the sums of squared deviations from them.
struct Deviations<'a> {
    x: &'a [f32],
    mean: &'a mut [f32],
    squares: &'a mut [f32],
}

impl Kernel for Deviations<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.mean.len();
        let share = s.splat(1.0 / (self.x.len() / channels) as f32);
        let outputs = self.mean.chunks_mut(LANES).zip(self.squares.chunks_mut(LANES));
        for (i, (mean, squares)) in outputs.enumerate() {
            let part = i * LANES..i * LANES + mean.len();
            // Two rows' sums side by side: one alone would wait for itself.
            let mut sums = [s.splat(0.0); 2];
            let second = channels + part.start..channels + part.end;
            let pairs = self.x.chunks_exact(2 * channels);
            let rest = pairs.remainder();
            for x in pairs.clone() {
                sums = [s.add(sums[0], s.load(&x[part.clone()])), s.add(sums[1], s.load(&x[second.clone()]))];
            }
            if !rest.is_empty() {
                sums[0] = s.add(sums[0], s.load(&rest[part.clone()]));
            }
            let middle = s.mul(s.add(sums[0], sums[1]), share);
            let mut sums = [s.splat(0.0); 2];
            for x in pairs {
                let d = [s.sub(s.load(&x[part.clone()]), middle), s.sub(s.load(&x[second.clone()]), middle)];
                sums = [s.mul_add(d[0], d[0], sums[0]), s.mul_add(d[1], d[1], sums[1])];
            }
            if !rest.is_empty() {
                let d = s.sub(s.load(&rest[part.clone()]), middle);
                sums[0] = s.mul_add(d, d, sums[0]);
            }
            s.store(mean, middle);
            s.store(squares, s.add(sums[0], sums[1]));
        }
    }
}

/// `out = max(0, norm(x))`.
///
/// # Panics
/// The lengths do not fit each other.
pub fn relu<T: Operand>(isa: Isa, x: &[f32], norm: Norm<'_>, out: &mut Tiles<T>) {
    let channels = norm.channels();
    assert!(out.columns() == channels && x.len() == out.rows() * channels, "rows of {channels}");
    let (rows, out) = (out.rows(), out.share());
    ranges(rows, TILE_ROWS, 4, |rows| dispatch(isa, Relu { x, norm, rows, out }));
}

struct Relu<'a, T> {
    x: &'a [f32],
    norm: Norm<'a>,
    rows: Range<usize>,
    out: SharedTiles<'a, T>,
}

impl<T: Operand> Kernel for Relu<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.norm.mean.len();
        for row in self.rows {
            for (i, x) in self.x[row * channels..(row + 1) * channels].chunks(LANES).enumerate() {
                let [_, y] = self.norm.apply(s, x, i * LANES);
                // SAFETY: rows are shared out among the tasks.
                unsafe { self.out.store(s, row, i * LANES, x.len(), s.max(s.splat(0.0), y)) };
            }
        }
    }
}

/// What goes around a residual block's convolutions.
#[derive(Clone, Copy, Debug)]
pub enum Around<'a> {
    /// The stream as it enters.
    Stream(&'a [f32]),
    /// A convolution's result and the norm behind it.
    Normed(&'a [f32], Norm<'a>),
}

/// `out = max(0, norm(x) + around)`, and where it is above zero, sixteen channels to a word of `mask`, which may be empty.
///
/// # Panics
/// The lengths do not fit each other.
pub fn join(isa: Isa, x: &[f32], norm: Norm<'_>, around: Around<'_>, out: &mut [f32], mask: &mut [u16]) {
    let channels = norm.channels();
    let other = match around {
        Around::Stream(x) => x.len(),
        Around::Normed(x, norm) => {
            assert_eq!(norm.channels(), channels, "channels that go around");
            x.len()
        }
    };
    assert!([x.len(), other] == [out.len(); 2] && x.len().is_multiple_of(channels), "rows of {channels}");
    let (rows, words) = (x.len() / channels, mask_words(channels));
    assert!(mask.is_empty() || mask.len() == rows * words, "words of the mask");
    let (out, mask) = (SharedMut::new(out), SharedMut::new(mask));
    ranges(rows, 1, 4, |rows| {
        let marked = if mask.is_empty() { 0..0 } else { rows.start * words..rows.end * words };
        // SAFETY: ranges do not overlap.
        let (out, mask) =
            unsafe { (out.part(rows.start * channels..rows.end * channels), mask.part(marked)) };
        dispatch(isa, Join { x, norm, around, first: rows.start, out, mask });
    });
}

struct Join<'a> {
    x: &'a [f32],
    norm: Norm<'a>,
    around: Around<'a>,
    first: usize,
    out: &'a mut [f32],
    mask: &'a mut [u16],
}

impl Kernel for Join<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.norm.mean.len();
        for (r, out) in self.out.chunks_exact_mut(channels).enumerate() {
            for (i, out) in out.chunks_mut(LANES).enumerate() {
                let at = (self.first + r) * channels + i * LANES;
                let part = at..at + out.len();
                let [_, y] = self.norm.apply(s, &self.x[part.clone()], i * LANES);
                let around = match &self.around {
                    Around::Stream(x) => s.load(&x[part]),
                    Around::Normed(x, norm) => norm.apply(s, &x[part], i * LANES)[1],
                };
                let y = s.add(y, around);
                if !self.mask.is_empty() {
                    self.mask[r * mask_words(channels) + i] = s.positive(y);
                }
                s.store(out, s.max(s.splat(0.0), y));
            }
        }
    }
}

/// Carry the gradient of `norm(x)` back: those of `scale` and `shift`, and that of `x`. With `batch` the mean and the
/// variance are `x`'s own and move with it, else they are constants.
///
/// # Panics
/// The lengths do not fit each other.
pub fn backward<T: Operand>(
    isa: Isa,
    grad: &Tiles<T>,
    x: &[f32],
    norm: Norm<'_>,
    batch: bool,
    [of_scale, of_shift]: [&mut [f32]; 2],
    out: &mut Tiles<T>,
) {
    let (rows, channels) = (grad.rows(), norm.channels());
    assert!(grad.columns() == channels && x.len() == rows * channels, "rows of {channels}");
    assert!((out.rows(), out.columns()) == (rows, channels), "rows of {channels}");
    assert!([of_scale.len(), of_shift.len()] == [channels; 2], "gradients of {channels} channels");
    let sums = Sums::new(rows, channels, |rows, sums| {
        let (scale, shift) = sums.split_at_mut(channels);
        dispatch(isa, Contracted { grad, x, norm, rows, scale, shift });
    });
    let count = rows.max(1) as f64;
    // `out = factor · (grad - mean(grad) - y · mean(grad · y))`
    let mut means = [vec![0.0; channels], vec![0.0; channels]];
    for c in 0..channels {
        let total = sums.of(c).fold([0.0; 2], |[a, b], [_, scale, shift]| [a + scale, b + shift]);
        [of_scale[c], of_shift[c]] = total.map(|v| v as f32);
        if batch {
            [means[1][c], means[0][c]] = total.map(|v| (v / count) as f32);
        }
    }
    let (means, out) = ([&means[0][..], &means[1]], out.share());
    ranges(rows, TILE_ROWS, 4, |rows| dispatch(isa, Back { grad, x, norm, means, rows, out }));
}

/// Sums over a block's rows: of `grad · y`, with `y` before scale and shift, and of `grad`.
struct Contracted<'a, T> {
    grad: &'a Tiles<T>,
    x: &'a [f32],
    norm: Norm<'a>,
    rows: Range<usize>,
    scale: &'a mut [f32],
    shift: &'a mut [f32],
}

impl<T: Operand> Kernel for Contracted<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.norm.mean.len();
        let outputs = self.scale.chunks_mut(LANES).zip(self.shift.chunks_mut(LANES));
        for (i, (scale, shift)) in outputs.enumerate() {
            let (column, count) = (i * LANES, scale.len());
            let [mut along, mut sum] = [s.splat(0.0); 2];
            for row in self.rows.clone() {
                let g = self.grad.load(s, row, column, count);
                let at = row * channels + column;
                let [y, _] = self.norm.apply(s, &self.x[at..at + count], column);
                (along, sum) = (s.mul_add(g, y, along), s.add(sum, g));
            }
            s.store(scale, along);
            s.store(shift, sum);
        }
    }
}

struct Back<'a, T> {
    grad: &'a Tiles<T>,
    x: &'a [f32],
    norm: Norm<'a>,
    means: [&'a [f32]; 2],
    rows: Range<usize>,
    out: SharedTiles<'a, T>,
}

impl<T: Operand> Kernel for Back<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.norm.mean.len();
        for row in self.rows {
            for (i, x) in self.x[row * channels..(row + 1) * channels].chunks(LANES).enumerate() {
                let part = i * LANES..i * LANES + x.len();
                let [y, _] = self.norm.apply(s, x, part.start);
                let g = self.grad.load(s, row, part.start, x.len());
                let (mean, along) =
                    (s.load(&self.means[0][part.clone()]), s.load(&self.means[1][part.clone()]));
                let v = s.sub(s.sub(g, mean), s.mul(y, along));
                let factor =
                    s.mul(s.load(&self.norm.scale[part.clone()]), s.load(&self.norm.inverse[part.clone()]));
                // SAFETY: rows are shared out among the tasks.
                unsafe { self.out.store(s, row, part.start, x.len(), s.mul(v, factor)) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Sweep, assert_close, operands, sweep, values, wide};

    /// Rows and channels.
    struct Sizes(usize, usize);

    impl Sweep for Sizes {
        fn check<T: Operand>(&self, isa: Isa, rounding: f64) {
            let &Self(rows, channels) = self;
            let what = format!("{isa:?} {rows} x {channels}");
            // Far from zero, and each channel elsewhere.
            let x: Vec<f32> =
                (0..).zip(values(rows * channels, 1)).map(|(i, v)| v + (i % channels) as f32).collect();
            let (scale, shift) = (values(channels, 2), values(channels, 3));
            let grad = operands::<T>(x.len(), 4);
            let (wide_x, wide_grad) = (x.iter().map(|v| f64::from(*v)).collect::<Vec<_>>(), wide(&grad));
            let along =
                |v: &[f64], c: usize| -> Vec<f64> { v.iter().skip(c).step_by(channels).copied().collect() };
            let mean_of = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
            let [mut mean, mut variance, mut of_scale, mut of_shift] = [const { Vec::new() }; 4];
            let mut y = vec![0.0; x.len()];
            let (mut back, mut constant) = (y.clone(), y.clone());
            for c in 0..channels {
                let (x, g) = (along(&wide_x, c), along(&wide_grad, c));
                mean.push(mean_of(&x));
                variance.push(mean_of(&x.iter().map(|v| (v - mean[c]).powi(2)).collect::<Vec<_>>()));
                let inverse = 1.0 / (variance[c] + 1e-5).sqrt();
                let own: Vec<f64> = x.iter().map(|v| (v - mean[c]) * inverse).collect();
                of_shift.push(g.iter().sum::<f64>());
                of_scale.push(own.iter().zip(&g).map(|(y, g)| y * g).sum::<f64>());
                for r in 0..rows {
                    y[r * channels + c] = own[r] * f64::from(scale[c]) + f64::from(shift[c]);
                    let factor = inverse * f64::from(scale[c]);
                    constant[r * channels + c] = factor * g[r];
                    back[r * channels + c] =
                        factor * (g[r] - (of_shift[c] + own[r] * of_scale[c]) / rows as f64);
                }
            }
            let found = moments(isa, &x, channels);
            assert_close(&found.mean, &mean, 1e-6, &what);
            assert_close(&found.variance, &variance, 1e-5, &what);
            let inverse: Vec<f32> = found.variance.iter().map(|v| (v + 1e-5).sqrt().recip()).collect();
            let norm = Norm { mean: &found.mean, inverse: &inverse, scale: &scale, shift: &shift };

            let mut out = Tiles::<T>::new(rows, channels);
            relu(isa, &x, norm, &mut out);
            let expected: Vec<f64> = y.iter().map(|v| v.max(0.0)).collect();
            assert_close(&out.to_rows(), &expected, rounding + 2e-5, &what);

            let other = values(x.len(), 5);
            let (mut out, mut mask) = (vec![9.0_f32; x.len()], vec![0; rows * mask_words(channels)]);
            join(isa, &x, norm, Around::Stream(&other), &mut out, &mut mask);
            let expected: Vec<f64> =
                y.iter().zip(&other).map(|(y, o)| (y + f64::from(*o)).max(0.0)).collect();
            assert_close(&out, &expected, 2e-5, &what);
            for (i, v) in out.iter().enumerate() {
                let (r, c) = (i / channels, i % channels);
                assert_eq!(mask[r * mask_words(channels) + c / LANES] >> (c % LANES) & 1 == 1, *v > 0.0);
            }
            join(isa, &x, norm, Around::Normed(&x, norm), &mut out, &mut []);
            let expected: Vec<f64> = y.iter().map(|y| (y + y).max(0.0)).collect();
            assert_close(&out, &expected, 2e-5, &what);

            let grad = Tiles::from_rows(&grad, channels);
            for (batch, expected) in [(true, &back), (false, &constant)] {
                let mut out = Tiles::<T>::new(rows, channels);
                let [mut scale, mut shift] = [vec![9.0; channels], vec![9.0; channels]];
                backward(isa, &grad, &x, norm, batch, [&mut scale, &mut shift], &mut out);
                assert_close(&out.to_rows(), expected, rounding + 2e-5, &what);
                assert_close(&scale, &of_scale, 2e-5, &what);
                assert_close(&shift, &of_shift, 2e-5, &what);
            }
        }
    }

    #[test]
    fn channels_of_any_number_agree_with_f64() {
        // Two rows would be +1 and -1 whatever they are.
        for (rows, channels) in [(4, 1), (5, 16), (7, 33), (40, 12)] {
            sweep(&Sizes(rows, channels));
        }
        if !cfg!(miri) {
            sweep(&Sizes(1000, 20));
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too long")]
    fn sums_do_not_depend_on_threads() {
        let x = values(1000 * 7, 1);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| moments(Isa::best(), &x, 7))
        };
        let alone = with(1);
        for threads in [2, 3, 5] {
            assert_eq!(with(threads), alone, "{threads} threads");
        }
    }
}
