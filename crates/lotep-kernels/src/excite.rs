//! Squeeze and excitation: sums over an image's pixels, and its channels scaled by a gate.

use rayon::prelude::*;

use crate::gemm::{Activation, PANEL};
use crate::parallel::ranges;
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::{Isa, Operand, SharedMut, SharedTiles, Tiles};

/// A function of values that were kept before it was applied.
#[derive(Clone, Copy, Debug)]
pub struct Behind<'a, T: Operand> {
    /// What it is applied to.
    pub before: &'a Tiles<T>,
    /// The function.
    pub function: Activation,
}

/// Sums over the pixels of each image: `out[b, c] = Σ x[b, p, c] · f(before[b, p, c])`, the factor being 1 where it is
/// not given. `x` is `[B · P, C]`, `out` `[B, C]`.
///
/// # Panics
/// The lengths do not fit each other.
pub fn sums<T: Operand>(isa: Isa, x: &Tiles<T>, times: Option<Behind<'_, T>>, out: &mut [f32]) {
    let channels = x.columns();
    assert!(channels > 0 && out.len().is_multiple_of(channels), "sums [B, C] of {channels} channels");
    let images = out.len() / channels;
    assert!(x.rows().is_multiple_of(images.max(1)), "{} pixels of {images} images", x.rows());
    if let Some(times) = &times {
        assert_eq!((times.before.rows(), times.before.columns()), (x.rows(), channels), "factors");
    }
    let pixels = x.rows() / images.max(1);
    let panels = channels.div_ceil(PANEL);
    let out = SharedMut::new(out);
    (0..images * panels).into_par_iter().for_each(|i| {
        let (image, first) = (i / panels, i % panels * PANEL);
        let to = image * channels + first..image * channels + (first + PANEL).min(channels);
        // SAFETY: each panel of each image is one task's.
        let out = unsafe { out.part(to) };
        dispatch(isa, Sums { x, times, rows: image * pixels..(image + 1) * pixels, first, out });
    });
}

struct Sums<'a, T: Operand> {
    x: &'a Tiles<T>,
    times: Option<Behind<'a, T>>,
    rows: std::ops::Range<usize>,
    first: usize,
    out: &'a mut [f32],
}

impl<T: Operand> Kernel for Sums<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (half, out) in self.out.chunks_mut(LANES).enumerate() {
            let column = self.first + half * LANES;
            let mut sum = s.splat(0.0);
            for row in self.rows.clone() {
                let x = self.x.load(s, row, column, out.len());
                sum = match &self.times {
                    Some(b) => {
                        let y = b.function.value::<T, S>(s, b.before.load(s, row, column, out.len()));
                        s.mul_add(x, y, sum)
                    }
                    None => s.add(sum, x),
                };
            }
            s.store(out, sum);
        }
    }
}

/// `out[b, p, c] = x[b, p, c] · gate[b, c] + shift[b, c]`, times `f'(before[b, p, c])` where that is given: a gate, or
/// its gradient and that of the mean it was made of, carried back. `x` and `out` are `[B · P, C]`, `gate` is `[B, C]`,
/// `shift` as well, or empty.
///
/// # Panics
/// The lengths do not fit each other.
pub fn scale<T: Operand>(
    isa: Isa,
    x: &Tiles<T>,
    gate: &[f32],
    shift: &[f32],
    slope: Option<Behind<'_, T>>,
    out: &mut Tiles<T>,
) {
    let (rows, channels) = (x.rows(), x.columns());
    assert_eq!((out.rows(), out.columns()), (rows, channels), "as many results as values");
    assert!(channels > 0 && gate.len().is_multiple_of(channels), "a gate [B, C] of {channels} channels");
    assert!(shift.is_empty() || shift.len() == gate.len(), "a shift [B, C]");
    let images = gate.len() / channels;
    assert!(rows.is_multiple_of(images.max(1)), "{rows} pixels of {images} images");
    if let Some(slope) = &slope {
        assert_eq!((slope.before.rows(), slope.before.columns()), (rows, channels), "values before");
    }
    let pixels = (rows / images.max(1)).max(1);
    let out = out.share();
    ranges(rows, 1, 4, |rows| {
        dispatch(isa, Scale { x, gate, shift, slope, pixels, rows, out });
    });
}

struct Scale<'a, T: Operand> {
    x: &'a Tiles<T>,
    gate: &'a [f32],
    shift: &'a [f32],
    slope: Option<Behind<'a, T>>,
    /// Of an image.
    pixels: usize,
    rows: std::ops::Range<usize>,
    out: SharedTiles<'a, T>,
}

impl<T: Operand> Kernel for Scale<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.x.columns();
        for row in self.rows {
            let image = row / self.pixels * channels;
            for column in (0..channels).step_by(LANES) {
                let count = (channels - column).min(LANES);
                let at = image + column..image + column + count;
                let shift =
                    if self.shift.is_empty() { s.splat(0.0) } else { s.load(&self.shift[at.clone()]) };
                let x = self.x.load(s, row, column, count);
                let mut v = s.mul_add(x, s.load(&self.gate[at]), shift);
                if let Some(b) = &self.slope {
                    let x = b.before.load(s, row, column, count);
                    v = s.mul(v, b.function.derivative::<T, S>(s, x));
                }
                // SAFETY: rows are shared out among the tasks.
                unsafe { self.out.store(s, row, column, count, v) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Sweep, assert_close, operands, sweep, values, wide};

    /// Images, pixels, channels.
    struct Maps([usize; 3]);

    impl Sweep for Maps {
        fn check<T: Operand>(&self, isa: Isa, rounding: f64) {
            let [images, pixels, channels] = self.0;
            let what = format!("{isa:?} {:?}", self.0);
            let count = images * pixels * channels;
            let (x, y) = (operands::<T>(count, 1), operands::<T>(count, 2));
            let (gate, shift) = (values(images * channels, 3), values(images * channels, 4));
            let (tiles, before) = (Tiles::from_rows(&x, channels), Tiles::from_rows(&y, channels));
            let (x, y) = (wide(&x), wide(&y));
            let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
            let behind = Some(Behind { before: &before, function: Activation::Silu });
            let at = |i: usize| i / (pixels * channels) * channels + i % channels;
            for with in [false, true] {
                let mut expected = vec![0.0; images * channels];
                for i in 0..count {
                    expected[at(i)] += x[i] * if with { y[i] * sigmoid(y[i]) } else { 1.0 };
                }
                let mut out = vec![9.0_f32; images * channels];
                sums(isa, &tiles, behind.filter(|_| with), &mut out);
                assert_close(&out, &expected, 2.0 * rounding, &what);
                let shift = if with { &shift[..] } else { &[] };
                let expected: Vec<f64> = (0..count)
                    .map(|i| {
                        let v =
                            x[i] * f64::from(gate[at(i)]) + shift.get(at(i)).map_or(0.0, |v| f64::from(*v));
                        let s = sigmoid(y[i]);
                        if with { v * s * (1.0 + y[i] * (1.0 - s)) } else { v }
                    })
                    .collect();
                let mut out = Tiles::new(images * pixels, channels);
                scale(isa, &tiles, &gate, shift, behind.filter(|_| with), &mut out);
                assert_close(&out.to_rows(), &expected, 2.0 * rounding, &what);
            }
        }
    }

    #[test]
    fn maps_of_any_size_agree_with_f64() {
        for sizes in [[1, 1, 1], [2, 5, 33], [3, 49, 64], [0, 4, 8], [1, 7, 40]] {
            sweep(&Maps(sizes));
        }
    }
}
