//! A residual network's entrance while it is learnt: windows of images as rows, and max pooling behind a norm.

use std::ops::Range;

use crate::batch_norm::Norm;
use crate::conv::Shape;
use crate::gemm::{TILE_ROWS, mask_words};
use crate::parallel::ranges;
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::stem::pooled;
use crate::{Isa, Operand, SharedMut, SharedTiles, Tiles};

/// Windows of the pooling: 3 × 3, stride 2, padding 1.
const SIDE: usize = 3;
const TAPS: usize = SIDE * SIDE;

/// The windows that a convolution of images `[B, C, H, W]` sees, a row for each pixel of its output: `[B · H' · W',
/// C · side · side]`, in the order of its kernel, so that it is a product of these rows.
///
/// # Panics
/// The sizes do not fit each other.
pub fn windows<T: Operand>(isa: Isa, x: &[f32], images: usize, size: [usize; 2], shape: Shape) -> Tiles<T> {
    let Shape { inputs, side, .. } = shape;
    assert_eq!(x.len(), images * inputs * size[0] * size[1], "{images} images of {size:?}");
    let output = shape.output(size);
    let mut tiles = Tiles::new(images * output[0] * output[1], inputs * side * side);
    let out = tiles.share();
    ranges(images * output[0], 1, 4, |rows| dispatch(isa, Windows { x, size, shape, output, rows, out }));
    tiles
}

struct Windows<'a, T> {
    x: &'a [f32],
    size: [usize; 2],
    shape: Shape,
    output: [usize; 2],
    /// Of the output, of all images.
    rows: Range<usize>,
    out: SharedTiles<'a, T>,
}

impl<T: Operand> Kernel for Windows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Values that are copied at a time, the last of a row beyond it: a count that the compiler knows.
        const STEP: usize = 8;
        let Self { x, size: [height, width], shape, output, rows, out } = self;
        let Shape { inputs, side, stride, padding, .. } = shape;
        // The image's rows that a row of windows sees, with their padding.
        let pitch = (width + 2 * padding).max((output[1] - 1) * stride + side) + STEP;
        let mut strip = vec![0.0_f32; inputs * side * pitch];
        let mut window = vec![0.0_f32; inputs * side * side + STEP];
        for row in rows {
            let (image, y) = (row / output[0], row % output[0]);
            for (i, strip) in strip.chunks_exact_mut(pitch).enumerate() {
                let (c, y) = (i / side, (y * stride + i % side).wrapping_sub(padding));
                let to = &mut strip[padding..padding + width];
                if y < height {
                    let from = ((image * inputs + c) * height + y) * width;
                    to.copy_from_slice(&x[from..from + width]);
                } else {
                    to.fill(0.0);
                }
            }
            for column in 0..output[1] {
                for (i, strip) in strip.chunks_exact(pitch).enumerate() {
                    for k in (0..side).step_by(STEP) {
                        let from = &strip[column * stride + k..column * stride + k + STEP];
                        window[i * side + k..i * side + k + STEP].copy_from_slice(from);
                    }
                }
                for (i, part) in window[..inputs * side * side].chunks(LANES).enumerate() {
                    // SAFETY: rows are shared out among the tasks.
                    unsafe { out.store(s, row * output[1] + column, i * LANES, part.len(), s.load(part)) };
                }
            }
        }
    }
}

/// `out = max_pool(relu(norm(x)))` for `images` maps of `size`, windows of 3 × 3, stride 2, padding 1, ties going to the
/// first in scan order; maps are rows of channels. With `keep`, which value of each window won: for each output pixel and
/// sixteen channels a word a tap. Where nothing is above zero, nothing wins.
///
/// # Panics
/// The sizes do not fit each other.
pub fn forward(
    isa: Isa,
    x: &[f32],
    norm: Norm<'_>,
    images: usize,
    size: [usize; 2],
    keep: bool,
    out: &mut [f32],
) -> Vec<u16> {
    let channels = norm.mean.len();
    let [height, width] = pooled(size);
    assert_eq!(x.len(), images * size[0] * size[1] * channels, "{images} maps of {size:?}");
    assert_eq!(out.len(), images * height * width * channels, "{images} pooled maps");
    let words = mask_words(channels) * TAPS;
    let mut winners = vec![0; if keep { images * height * width * words } else { 0 }];
    let (out, shared) = (SharedMut::new(out), SharedMut::new(&mut winners));
    ranges(images * height, 1, 4, |rows| {
        let pixels = rows.start * width..rows.end * width;
        let marked = if keep { pixels.start * words..pixels.end * words } else { 0..0 };
        // SAFETY: ranges do not overlap.
        let (out, winners) =
            unsafe { (out.part(pixels.start * channels..pixels.end * channels), shared.part(marked)) };
        dispatch(isa, Forward { x, norm, size, pooled: [height, width], first: pixels.start, out, winners });
    });
    winners
}

struct Forward<'a> {
    x: &'a [f32],
    norm: Norm<'a>,
    size: [usize; 2],
    pooled: [usize; 2],
    /// First pixel of the output.
    first: usize,
    out: &'a mut [f32],
    winners: &'a mut [u16],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.norm.mean.len();
        let [height, width] = self.size;
        for (i, out) in self.out.chunks_exact_mut(channels).enumerate() {
            let pixel = self.first + i;
            let (image, y, x) = (
                pixel / (self.pooled[0] * self.pooled[1]),
                pixel / self.pooled[1] % self.pooled[0],
                pixel % self.pooled[1],
            );
            for (j, out) in out.chunks_mut(LANES).enumerate() {
                let mut best = s.splat(0.0);
                let mut won = [0_u16; TAPS];
                for tap in 0..TAPS {
                    let (y, x) = ((2 * y + tap / SIDE).wrapping_sub(1), (2 * x + tap % SIDE).wrapping_sub(1));
                    if y >= height || x >= width {
                        continue;
                    }
                    let at = ((image * height + y) * width + x) * channels + j * LANES;
                    let [_, v] = self.norm.apply(s, &self.x[at..at + out.len()], j * LANES);
                    let more = s.positive(s.sub(v, best));
                    best = s.max(best, v);
                    for won in &mut won {
                        *won &= !more;
                    }
                    won[tap] = more;
                }
                s.store(out, best);
                if !self.winners.is_empty() {
                    let at = (i * mask_words(channels) + j) * TAPS;
                    self.winners[at..at + TAPS].copy_from_slice(&won);
                }
            }
        }
    }
}

/// Carry the gradient of the pooled maps back to that of `norm(x)`.
///
/// # Panics
/// The sizes do not fit each other.
pub fn backward<T: Operand>(
    isa: Isa,
    winners: &[u16],
    grad: &[f32],
    images: usize,
    size: [usize; 2],
    out: &mut Tiles<T>,
) {
    let (channels, inner) = (out.columns(), pooled(size));
    let pixels = images * inner[0] * inner[1];
    assert_eq!(out.rows(), images * size[0] * size[1], "{images} maps of {size:?}");
    assert_eq!(grad.len(), pixels * channels, "{images} pooled maps");
    assert_eq!(winners.len(), pixels * mask_words(channels) * TAPS, "winners of {pixels} pixels");
    let (rows, out) = (out.rows(), out.share());
    ranges(rows, TILE_ROWS, 4, |rows| {
        dispatch(isa, Backward { winners, grad, size, pooled: inner, rows, out });
    });
}

struct Backward<'a, T> {
    winners: &'a [u16],
    grad: &'a [f32],
    size: [usize; 2],
    pooled: [usize; 2],
    rows: Range<usize>,
    out: SharedTiles<'a, T>,
}

impl<T: Operand> Kernel for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (channels, words) = (self.out.columns(), mask_words(self.out.columns()));
        let [height, width] = self.size;
        // The windows that a place is in along one axis, each with the tap that meets it there.
        let around = |at: usize, count: usize| {
            (at / 2..=at.div_ceil(2).min(count - 1)).map(move |window| (window, at + 1 - 2 * window))
        };
        for row in self.rows {
            let (image, y, x) = (row / (height * width), row / width % height, row % width);
            for j in 0..words {
                let count = (channels - j * LANES).min(LANES);
                let mut sum = s.splat(0.0);
                for (top, ky) in around(y, self.pooled[0]) {
                    for (left, kx) in around(x, self.pooled[1]) {
                        let pixel = (image * self.pooled[0] + top) * self.pooled[1] + left;
                        let won = self.winners[(pixel * words + j) * TAPS + ky * SIDE + kx];
                        let at = pixel * channels + j * LANES;
                        let grad = s.load(&self.grad[at..at + count]);
                        sum = s.add(sum, s.select(won, grad, s.splat(0.0)));
                    }
                }
                // SAFETY: rows are shared out among the tasks.
                unsafe { self.out.store(s, row, j * LANES, count, sum) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Sweep, assert_close, operands, sweep, values, wide};

    struct Images(Shape, usize, [usize; 2]);

    impl Sweep for Images {
        fn check<T: Operand>(&self, isa: Isa, _rounding: f64) {
            let &Self(shape, images, [h, w]) = self;
            let Shape { inputs, side, stride, padding, .. } = shape;
            let x: Vec<f32> =
                operands::<T>(images * inputs * h * w, 1).into_iter().map(Operand::to_f32).collect();
            let [oh, ow] = shape.output([h, w]);
            let mut expected = Vec::new();
            for (b, oy, ox) in (0..images * oh * ow).map(|i| (i / (oh * ow), i / ow % oh, i % ow)) {
                for (c, ky, kx) in
                    (0..inputs * side * side).map(|i| (i / (side * side), i / side % side, i % side))
                {
                    let (y, x_) = (oy * stride + ky, ox * stride + kx);
                    let inside = (padding..h + padding).contains(&y) && (padding..w + padding).contains(&x_);
                    let at = |y, x_| ((b * inputs + c) * h + y - padding) * w + x_ - padding;
                    expected.push(if inside { f64::from(x[at(y, x_)]) } else { 0.0 });
                }
            }
            let rows = windows::<T>(isa, &x, images, [h, w], shape).to_rows();
            assert_close(&rows, &expected, 0.0, &format!("{isa:?} {shape:?} {h}x{w}"));
        }
    }

    #[test]
    fn windows_are_those_of_a_convolution() {
        for (inputs, side, stride, padding, size) in
            [(3, 7, 2, 3, [13, 10]), (1, 1, 1, 0, [2, 3]), (2, 3, 2, 1, [5, 4]), (3, 9, 4, 2, [12, 11])]
        {
            sweep(&Images(Shape { inputs, outputs: 1, side, stride, padding }, 2, size));
        }
    }

    /// Images, size, channels.
    struct Maps(usize, [usize; 2], usize);

    impl Sweep for Maps {
        fn check<T: Operand>(&self, isa: Isa, _rounding: f64) {
            let &Self(images, [h, w], channels) = self;
            let what = format!("{isa:?} {images} {h}x{w} {channels}");
            let [ph, pw] = pooled([h, w]);
            // Few different values, so that there are ties.
            let x: Vec<f32> =
                values(images * h * w * channels, 1).iter().map(|v| (v * 4.0).round() / 4.0).collect();
            let grad: Vec<f32> =
                operands::<T>(images * ph * pw * channels, 2).into_iter().map(Operand::to_f32).collect();
            let (zeros, ones) = (vec![0.0; channels], vec![1.0; channels]);
            let norm = Norm { mean: &zeros, inverse: &ones, scale: &ones, shift: &zeros };
            let (mut expected, mut back) = (Vec::new(), vec![0.0; x.len()]);
            for (i, g) in grad.iter().enumerate() {
                let (pixel, c) = (i / channels, i % channels);
                let (b, py, px) = (pixel / (ph * pw), pixel / pw % ph, pixel % pw);
                let mut best = (0.0, None);
                for (y, x_) in (0..TAPS).map(|t| (2 * py + t / 3, 2 * px + t % 3)) {
                    if (1..=h).contains(&y) && (1..=w).contains(&x_) {
                        let at = ((b * h + y - 1) * w + x_ - 1) * channels + c;
                        if x[at] > best.0 {
                            best = (x[at], Some(at));
                        }
                    }
                }
                expected.push(f64::from(best.0));
                if let Some(at) = best.1 {
                    back[at] += f64::from(*g);
                }
            }
            let mut out = vec![9.0_f32; expected.len()];
            let winners = forward(isa, &x, norm, images, [h, w], true, &mut out);
            assert_close(&out, &expected, 0.0, &what);
            assert!(forward(isa, &x, norm, images, [h, w], false, &mut out).is_empty());
            let mut tiles = Tiles::<T>::new(images * h * w, channels);
            backward(isa, &winners, &grad, images, [h, w], &mut tiles);
            // A place in several windows has a sum, which may be rounded.
            assert_close(
                &wide(&tiles.to_rows()).iter().map(|v| *v as f32).collect::<Vec<_>>(),
                &back,
                4e-3,
                &what,
            );
        }
    }

    #[test]
    fn pooling_of_any_size_agrees_with_f64() {
        for (images, size, channels) in [(1, [1, 1], 1), (2, [7, 6], 12), (1, [8, 9], 33)] {
            sweep(&Maps(images, size, channels));
        }
    }
}
