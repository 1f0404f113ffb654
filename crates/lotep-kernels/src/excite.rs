//! Squeeze and excitation: sums over an image's pixels, and its channels scaled by a gate.

use std::ops::Range;

use rayon::prelude::*;

use crate::gemm::{Activation, PANEL, TILE_ROWS, load};
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
    assert!(x.rows().is_multiple_of(images), "{} pixels of {images} images", x.rows());
    if let Some(times) = &times {
        assert_eq!((times.before.rows(), times.before.columns()), (x.rows(), channels), "factors");
    }
    let pixels = x.rows() / images.max(1);
    let panels = channels.div_ceil(PANEL);
    // Images are enough for all threads, or their channels are shared out as well.
    let shares = (2 * rayon::current_num_threads()).div_ceil(images.max(1)).min(panels);
    let out = SharedMut::new(out);
    (0..images * shares).into_par_iter().for_each(|i| {
        let (image, share) = (i / shares, i % shares);
        let [first, end] = [share, share + 1].map(|i| (i * panels / shares * PANEL).min(channels));
        // SAFETY: each share of each image is one task's.
        let out = unsafe { out.part(image * channels + first..image * channels + end) };
        out.fill(0.0);
        dispatch(isa, Sums { x, times, rows: image * pixels..(image + 1) * pixels, first, out });
    });
}

/// The parts of `rows` that lie in a tile each, and in an image of `pixels`.
#[inline(always)]
fn pieces(rows: Range<usize>, pixels: usize) -> impl Iterator<Item = Range<usize>> {
    let mut row = rows.start;
    std::iter::from_fn(move || {
        let start = row;
        let next = |of: usize| (start / of + 1) * of;
        row = next(TILE_ROWS).min(next(pixels)).min(rows.end);
        (start < rows.end).then_some(start..row)
    })
}

struct Sums<'a, T: Operand> {
    x: &'a Tiles<T>,
    times: Option<Behind<'a, T>>,
    /// Of an image.
    rows: Range<usize>,
    first: usize,
    out: &'a mut [f32],
}

impl<T: Operand> Kernel for Sums<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        // A tile with all its panels, one after another, is read as it lies. (All rows are one image's.)
        for rows in pieces(self.rows.clone(), TILE_ROWS) {
            for from in (0..self.out.len()).step_by(PANEL) {
                let count = (self.out.len() - from).min(PANEL);
                if count == PANEL {
                    // The usual case, with the count known to the compiler.
                    self.add(s, &rows, from, PANEL);
                } else {
                    self.add(s, &rows, from, count);
                }
            }
        }
    }
}

impl<T: Operand> Sums<'_, T> {
    /// Add some rows of a tile to `count` (up to a panel's) of the sums.
    #[inline(always)]
    fn add<S: Simd>(&mut self, s: S, rows: &Range<usize>, from: usize, count: usize) {
        let column = self.first + from;
        let out = &mut self.out[from..from + count];
        let (low, high) = out.split_at_mut(count.min(LANES));
        let mut sums = [s.load(low), s.load(high)];
        for row in rows.clone() {
            // SAFETY: rows and columns are the matrices' own, of the same sizes.
            let x = unsafe { self.x.load_panel(s, row, column, count) };
            sums = match &self.times {
                Some(b) => {
                    // SAFETY: as above.
                    let y = unsafe { b.before.load_panel(s, row, column, count) };
                    let f = b.function;
                    // Not by `map`, whose closure would be compiled without these instructions.
                    let y = [f.value::<T, S>(s, y[0]), f.value::<T, S>(s, y[1])];
                    [s.mul_add(x[0], y[0], sums[0]), s.mul_add(x[1], y[1], sums[1])]
                }
                None => [s.add(sums[0], x[0]), s.add(sums[1], x[1])],
            };
        }
        s.store(low, sums[0]);
        s.store(high, sums[1]);
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
    assert!(rows.is_multiple_of(images), "{rows} pixels of {images} images");
    if let Some(slope) = &slope {
        assert_eq!((slope.before.rows(), slope.before.columns()), (rows, channels), "values before");
    }
    let pixels = (rows / images.max(1)).max(1);
    let out = out.share();
    ranges(rows, TILE_ROWS, 4, |rows| {
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
    rows: Range<usize>,
    out: SharedTiles<'a, T>,
}

impl<T: Operand> Kernel for Scale<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.x.columns();
        for rows in pieces(self.rows.clone(), self.pixels) {
            for column in (0..channels).step_by(PANEL) {
                let count = (channels - column).min(PANEL);
                if count == PANEL {
                    // The usual case, with the count known to the compiler.
                    self.panel(s, &rows, column, PANEL);
                } else {
                    self.panel(s, &rows, column, count);
                }
            }
        }
    }
}

impl<T: Operand> Scale<'_, T> {
    /// Some rows of a tile and of an image, `count` columns of a panel.
    #[inline(always)]
    fn panel<S: Simd>(&self, s: S, rows: &Range<usize>, column: usize, count: usize) {
        let at = rows.start / self.pixels * self.x.columns() + column;
        // SAFETY: gates and shifts have these columns of each image.
        let gate = unsafe { load(s, self.gate, at, count) };
        let shift = if self.shift.is_empty() {
            [s.splat(0.0); 2]
        } else {
            // SAFETY: as above.
            unsafe { load(s, self.shift, at, count) }
        };
        self.out.expect(s, rows.start, rows.len(), column);
        for row in rows.clone() {
            // SAFETY: rows and columns are the matrices' own, of the same sizes; rows are shared out among the tasks.
            unsafe {
                let x = self.x.load_panel(s, row, column, count);
                let mut v = [s.mul_add(x[0], gate[0], shift[0]), s.mul_add(x[1], gate[1], shift[1])];
                if let Some(b) = &self.slope {
                    let before = b.before.load_panel(s, row, column, count);
                    v[0] = s.mul(v[0], b.function.derivative::<T, S>(s, before[0]));
                    v[1] = s.mul(v[1], b.function.derivative::<T, S>(s, before[1]));
                }
                self.out.store_panel(s, row, column, count, v);
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
    #[should_panic(expected = "16 pixels of 0 images")]
    fn pixels_of_no_image_are_refused() {
        let x = Tiles::<f32>::new(16, 4);
        scale(Isa::best(), &x, &[], &[], None, &mut Tiles::new(16, 4));
    }

    #[test]
    fn maps_of_any_size_agree_with_f64() {
        for sizes in [[1, 1, 1], [2, 5, 33], [3, 49, 64], [0, 4, 8], [2, 0, 8], [1, 7, 40], [1, 20, 300]] {
            sweep(&Maps(sizes));
        }
    }
}
