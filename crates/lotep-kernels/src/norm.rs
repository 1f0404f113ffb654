//! Layer normalisation of rows, without scale and shift where they belong into the product that follows.
//!
//! In a feature map whose pixels are rows of channels, it is the normalisation over channels (timm's
//! `LayerNorm2d`); [`channels`] is for where that ends in f32, as between a network's entrance and its residual
//! stream.

use crate::gemm::TILE_ROWS;
use crate::parallel::ranges;
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::{Isa, Operand, SharedMut, SharedTiles, Tiles};

/// Normalise rows: `(x + prompt - μ) / σ`, with `σ² = variance + eps`, and keep `1 / σ` of each row.
///
/// `prompt` is one sample's rows, repeated, and may be empty.
///
/// # Panics
/// The lengths do not fit each other.
pub fn forward<T: Operand>(
    isa: Isa,
    x: &[f32],
    prompt: &[f32],
    eps: f32,
    out: &mut Tiles<T>,
    inverse: &mut [f32],
) {
    let width = out.columns();
    assert!(out.rows() == inverse.len() && x.len() == inverse.len() * width, "rows of {width}");
    assert!(width > 0 && prompt.len().is_multiple_of(width), "a prompt of broken rows");
    let (out, inverse) = (out.share(), SharedMut::new(inverse));
    ranges(inverse.len(), TILE_ROWS, 2, |rows| {
        // SAFETY: ranges do not overlap.
        let inverse = unsafe { inverse.part(rows.clone()) };
        let (first, out, affine) = (rows.start, Some(out), None);
        dispatch(isa, Forward { x, prompt, first, width, eps, out, affine, inverse });
    });
}

/// Normalise the channels of pixels to `out = (x - μ) / σ · scale + shift`, with `σ² = variance + eps`: `x` and `out`
/// in rows of `scale.len()`. Keep `1 / σ` of each pixel, and the normalised values where the backward pass
/// ([`channels_backward`]) will ask for them.
///
/// # Panics
/// The lengths do not fit each other.
pub fn channels<T: Operand>(
    isa: Isa,
    x: &[f32],
    [scale, shift]: [&[f32]; 2],
    eps: f32,
    normalised: Option<&mut Tiles<T>>,
    out: &mut [f32],
    inverse: &mut [f32],
) {
    let (width, rows) = (scale.len(), inverse.len());
    assert!(width > 0 && shift.len() == width, "a scale of {width}, a shift of {}", shift.len());
    assert!([x.len(), out.len()] == [rows * width; 2], "{rows} rows of {width}");
    let kept = normalised.map(Tiles::share);
    assert!(kept.is_none_or(|t| (t.rows(), t.columns()) == (rows, width)), "normalised rows of {width}");
    let (out, inverse) = (SharedMut::new(out), SharedMut::new(inverse));
    ranges(rows, TILE_ROWS, 2, |rows| {
        // SAFETY: ranges do not overlap.
        let inverse = unsafe { inverse.part(rows.clone()) };
        let (first, affine) = (rows.start, Some(Affine { scale, shift, out }));
        dispatch(isa, Forward { x, prompt: &[], first, width, eps, out: kept, affine, inverse });
    });
}

struct Forward<'a, T> {
    x: &'a [f32],
    prompt: &'a [f32],
    /// First row.
    first: usize,
    width: usize,
    eps: f32,
    out: Option<SharedTiles<'a, T>>,
    affine: Option<Affine<'a>>,
    inverse: &'a mut [f32],
}

/// Scaled and shifted results, in rows of f32.
struct Affine<'a> {
    scale: &'a [f32],
    shift: &'a [f32],
    out: SharedMut<'a, f32>,
}

impl<T: Operand> Kernel for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.width;
        let mut with_prompt = Vec::new();
        for (r, inverse) in (self.first..).zip(self.inverse) {
            let mut x = &self.x[r * width..(r + 1) * width];
            if !self.prompt.is_empty() {
                let at = r * width % self.prompt.len();
                with_prompt.resize(width, 0.0);
                let prompt = self.prompt[at..at + width].chunks(LANES);
                for ((y, x), p) in with_prompt.chunks_mut(LANES).zip(x.chunks(LANES)).zip(prompt) {
                    s.store(y, s.add(s.load(x), s.load(p)));
                }
                x = &with_prompt;
            }
            let mut sum = s.splat(0.0);
            for x in x.chunks(LANES) {
                sum = s.add(sum, s.load(x));
            }
            let mean = s.splat(s.sum(sum) / width as f32);
            let mut squares = s.splat(0.0);
            for x in x.chunks(LANES) {
                let mut d = s.sub(s.load(x), mean);
                if x.len() < LANES {
                    // Lanes beyond the row hold -μ.
                    d = s.select((1 << x.len()) - 1, d, s.splat(0.0));
                }
                squares = s.mul_add(d, d, squares);
            }
            *inverse = (s.sum(squares) / width as f32 + self.eps).sqrt().recip();
            let scale = s.splat(*inverse);
            for (i, x) in x.chunks(LANES).enumerate() {
                let v = s.mul(s.sub(s.load(x), mean), scale);
                if let Some(out) = &self.out {
                    // SAFETY: rows are shared out among the tasks.
                    unsafe { out.store(s, r, i * LANES, x.len(), v) };
                }
                if let Some(Affine { scale, shift, out }) = &self.affine {
                    let part = i * LANES..i * LANES + x.len();
                    let v = s.mul_add(v, s.load(&scale[part.clone()]), s.load(&shift[part.clone()]));
                    // SAFETY: as above.
                    s.store(unsafe { out.part(r * width + part.start..r * width + part.end) }, v);
                }
            }
        }
    }
}

/// Carry a gradient back: `out = skip + (g - mean(g) - y · mean(g · y)) / σ` for rows of `width`, where `g` is the
/// gradient of the normalised rows `y`, and `skip` the gradient that goes around, if any does.
///
/// # Panics
/// The lengths do not fit each other.
pub fn backward<T: Operand>(
    isa: Isa,
    normalised: &Tiles<T>,
    inverse: &[f32],
    grad: &[f32],
    skip: &[f32],
    out: &mut [f32],
) {
    let width = normalised.columns();
    let skipping = if skip.is_empty() { grad.len() } else { skip.len() };
    let lengths = [normalised.rows() * width, grad.len(), skipping, out.len()];
    assert!(lengths.iter().all(|l| *l == inverse.len() * width), "rows of {width}: {lengths:?}");
    carry_back(isa, normalised, inverse, &[], grad, skip, out);
}

/// Carry a gradient back through [`channels`]: as [`backward`], with `g = grad · scale` and nothing that goes around.
///
/// # Panics
/// The lengths do not fit each other.
pub fn channels_backward<T: Operand>(
    isa: Isa,
    normalised: &Tiles<T>,
    inverse: &[f32],
    scale: &[f32],
    grad: &[f32],
    out: &mut [f32],
) {
    let width = normalised.columns();
    let lengths = [normalised.rows() * width, grad.len(), out.len()];
    assert!(lengths.iter().all(|l| *l == inverse.len() * width), "rows of {width}: {lengths:?}");
    assert_eq!(scale.len(), width, "a scale for rows of {width}");
    carry_back(isa, normalised, inverse, scale, grad, &[], out);
}

/// The two above, with lengths that fit; `scale` and `skip` may be empty.
fn carry_back<T: Operand>(
    isa: Isa,
    normalised: &Tiles<T>,
    inverse: &[f32],
    scale: &[f32],
    grad: &[f32],
    skip: &[f32],
    out: &mut [f32],
) {
    let width = normalised.columns();
    let out = SharedMut::new(out);
    ranges(inverse.len(), 1, 2, |rows| {
        let values = rows.start * width..rows.end * width;
        dispatch(
            isa,
            Backward {
                normalised,
                first: rows.start,
                inverse: &inverse[rows],
                scale,
                grad: &grad[values.clone()],
                skip: if skip.is_empty() { &[] } else { &skip[values.clone()] },
                // SAFETY: ranges do not overlap.
                out: unsafe { out.part(values) },
                width,
            },
        );
    });
}

struct Backward<'a, T> {
    normalised: &'a Tiles<T>,
    first: usize,
    inverse: &'a [f32],
    scale: &'a [f32],
    grad: &'a [f32],
    skip: &'a [f32],
    out: &'a mut [f32],
    width: usize,
}

/// The gradient of normalised values, from `column` on.
#[inline(always)]
fn scaled<S: Simd>(s: S, grad: &[f32], scale: &[f32], column: usize) -> S::F {
    let g = s.load(grad);
    if scale.is_empty() { g } else { s.mul(g, s.load(&scale[column..column + grad.len()])) }
}

impl<T: Operand> Kernel for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.width;
        for (r, inverse) in self.inverse.iter().enumerate() {
            let row = r * width..(r + 1) * width;
            let g = &self.grad[row.clone()];
            let skip = if self.skip.is_empty() { &[] } else { &self.skip[row.clone()] };
            let (mut sum, mut projection) = (s.splat(0.0), s.splat(0.0));
            for (i, g) in g.chunks(LANES).enumerate() {
                let y = self.normalised.load(s, self.first + r, i * LANES, g.len());
                let g = scaled(s, g, self.scale, i * LANES);
                sum = s.add(sum, g);
                projection = s.mul_add(g, y, projection);
            }
            let scale = inverse / width as f32;
            let (mean, projection) = (s.splat(-s.sum(sum) * scale), s.splat(-s.sum(projection) * scale));
            let inverse = s.splat(*inverse);
            for (i, (g, out)) in g.chunks(LANES).zip(self.out[row].chunks_mut(LANES)).enumerate() {
                let (column, count) = (i * LANES, g.len());
                let y = self.normalised.load(s, self.first + r, column, count);
                let around =
                    if skip.is_empty() { s.splat(0.0) } else { s.load(&skip[column..column + count]) };
                let v = s.mul_add(scaled(s, g, self.scale, column), inverse, around);
                s.store(out, s.mul_add(y, projection, s.add(v, mean)));
            }
        }
    }
}

/// Sum over samples: `out[i] = Σ_b x[b · out.len() + i]`, the gradient of a prompt added to each.
///
/// # Panics
/// `x` is not made of whole samples.
pub fn sum_samples(isa: Isa, x: &[f32], out: &mut [f32]) {
    let size = out.len();
    assert!(size > 0 && x.len().is_multiple_of(size), "{} values in samples of {size}", x.len());
    let out = SharedMut::new(out);
    ranges(size, LANES, 1, |range| {
        // SAFETY: ranges do not overlap.
        let out = unsafe { out.part(range.clone()) };
        dispatch(isa, SumSamples { x, size, start: range.start, out });
    });
}

struct SumSamples<'a> {
    x: &'a [f32],
    size: usize,
    start: usize,
    out: &'a mut [f32],
}

impl Kernel for SumSamples<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // So few at a time that the sums stay in the first-level cache while the samples pass.
        const PART: usize = 2048;
        for (i, out) in self.out.chunks_mut(PART).enumerate() {
            out.fill(0.0);
            let start = self.start + i * PART;
            for sample in self.x.chunks_exact(self.size) {
                let x = &sample[start..start + out.len()];
                for (out, x) in out.chunks_mut(LANES).zip(x.chunks(LANES)) {
                    let sum = s.add(s.load(out), s.load(x));
                    s.store(out, sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Sweep, assert_close, sweep, values, wide};

    struct Rows(usize, usize);

    impl Sweep for Rows {
        fn check<T: Operand>(&self, isa: Isa, rounding: f64) {
            let &Self(rows, width) = self;
            let what = format!("{isa:?} {rows} x {width}");
            // Far from zero, as residual streams are.
            let x: Vec<f32> = values(rows * width, 1).iter().map(|v| 3.0 * v + 20.0).collect();
            let prompt = values(if rows > 1 { width * rows.div_ceil(2) } else { 0 }, 2);
            let (mut out, mut inverse) = (Tiles::<T>::new(rows, width), vec![0.0; rows]);
            forward(isa, &x, &prompt, 1e-6, &mut out, &mut inverse);
            let mut expected = Vec::new();
            let mut sigmas = Vec::new();
            for r in 0..rows {
                let row: Vec<f64> = (0..width)
                    .map(|i| {
                        let p = if prompt.is_empty() { 0.0 } else { prompt[(r * width + i) % prompt.len()] };
                        f64::from(x[r * width + i] + p)
                    })
                    .collect();
                let mean = row.iter().sum::<f64>() / width as f64;
                let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
                sigmas.push(1.0 / (var + 1e-6).sqrt());
                expected.extend(row.iter().map(|v| (v - mean) * sigmas[r]));
            }
            // 20 ± 3 in f32 leaves 2e-6 / 3 of a difference.
            let tolerance = rounding + 1e-5;
            assert_close(&out.to_rows(), &expected, tolerance, &what);
            assert_close(&inverse, &sigmas, 1e-5, &what);

            let (grad, skip) = (values(x.len(), 3), values(x.len(), 4));
            let mut back = vec![0.0_f32; x.len()];
            backward(isa, &out, &inverse, &grad, &skip, &mut back);
            let y = wide(&out.to_rows());
            let mut expected = Vec::new();
            for r in 0..rows {
                let row = r * width..(r + 1) * width;
                let g: Vec<f64> = grad[row.clone()].iter().map(|v| f64::from(*v)).collect();
                let mean = g.iter().sum::<f64>() / width as f64;
                let projection =
                    g.iter().zip(&y[row.clone()]).map(|(g, y)| g * y).sum::<f64>() / width as f64;
                expected.extend(row.clone().zip(&g).map(|(i, g)| {
                    f64::from(skip[i]) + f64::from(inverse[r]) * (g - mean - y[i] * projection)
                }));
            }
            assert_close(&back, &expected, 1e-5, &what);
        }
    }

    #[test]
    fn rows_of_any_width_agree_with_f64() {
        for (rows, width) in [(1, 3), (1, 16), (2, 5), (5, 33), (4, 192), (7, 768)] {
            sweep(&Rows(rows, width));
        }
        sweep(&Rows(0, 8));
    }

    /// A feature map's pixels, normalised over channels to f32.
    struct Pixels([usize; 3], usize);

    impl Sweep for Pixels {
        fn check<T: Operand>(&self, isa: Isa, rounding: f64) {
            let &Self([images, height, width], channels) = self;
            let (rows, eps) = (images * height * width, 1e-6);
            let what = format!("{isa:?} {rows} pixels of {channels}");
            let x: Vec<f32> = values(rows * channels, 1).iter().map(|v| 2.0 * v - 5.0).collect();
            let (scale, shift) = (values(channels, 2), values(channels, 3));
            let (mut out, mut inverse) = (vec![9.0_f32; x.len()], vec![0.0; rows]);
            let mut kept = Tiles::<T>::new(rows, channels);
            let affine = [&scale[..], &shift];
            super::channels(isa, &x, affine, eps, Some(&mut kept), &mut out, &mut inverse);
            let (mut y, mut sigmas) = (Vec::new(), Vec::new());
            for pixel in x.chunks_exact(channels) {
                let mean = pixel.iter().map(|v| f64::from(*v)).sum::<f64>() / channels as f64;
                let squares = pixel.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>();
                sigmas.push(1.0 / (squares / channels as f64 + f64::from(eps)).sqrt());
                y.extend(pixel.iter().map(|v| (f64::from(*v) - mean) * sigmas[sigmas.len() - 1]));
            }
            let expected: Vec<f64> = (0..y.len())
                .map(|i| y[i] * f64::from(scale[i % channels]) + f64::from(shift[i % channels]))
                .collect();
            assert_close(&out, &expected, 1e-5, &what);
            assert_close(&inverse, &sigmas, 1e-5, &what);
            assert_close(&kept.to_rows(), &y, rounding + 1e-5, &what);
            let mut again = vec![9.0_f32; x.len()];
            super::channels::<T>(isa, &x, affine, eps, None, &mut again, &mut inverse);
            assert_eq!(out, again, "{what}");

            let grad = values(x.len(), 4);
            let mut back = vec![9.0_f32; x.len()];
            channels_backward(isa, &kept, &inverse, &scale, &grad, &mut back);
            let y = wide(&kept.to_rows());
            let mut expected = Vec::new();
            for r in 0..rows {
                let g: Vec<f64> =
                    (0..channels).map(|c| f64::from(grad[r * channels + c]) * f64::from(scale[c])).collect();
                let y = &y[r * channels..(r + 1) * channels];
                let mean = g.iter().sum::<f64>() / channels as f64;
                let projection = g.iter().zip(y).map(|(g, y)| g * y).sum::<f64>() / channels as f64;
                let inverse = f64::from(inverse[r]);
                expected.extend(g.iter().zip(y).map(|(g, y)| inverse * (g - mean - y * projection)));
            }
            assert_close(&back, &expected, 1e-5, &what);
        }
    }

    #[test]
    fn channel_norm_of_feature_maps_agrees_with_f64() {
        for (size, channels) in [([1, 1, 1], 5), ([2, 3, 3], 16), ([1, 5, 7], 33), ([0, 4, 4], 8)] {
            sweep(&Pixels(size, channels));
        }
    }

    #[test]
    fn samples_are_summed() {
        for isa in Isa::available() {
            let x = values(3 * 37, 5);
            let mut out = [0.0; 37];
            sum_samples(*isa, &x, &mut out);
            let expected: Vec<f64> =
                (0..37).map(|i| (0..3).map(|b| f64::from(x[b * 37 + i])).sum()).collect();
            assert_close(&out, &expected, 1e-6, "sums");
        }
    }
}
