//! The entrance of a convolutional network: a convolution of images with few channels, ReLU, and max pooling.

use std::sync::OnceLock;

use crate::conv::Shape;
use crate::gemm::{self, Epilogue, Matrix, PANEL, PackedRow, Source, line};
use crate::parallel::ranges;
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::{Isa, Operand, SharedMut, SharedTiles, Tiles};

/// Windows of the pooling: 3 × 3, stride 2, padding 1.
const TAPS: usize = 9;

/// A frozen convolution of images `[B, C, H, W]`.
///
/// With three channels, what lies together in memory is a row of the kernel: the summed axis is made of such rows,
/// each filled up to a multiple of eight.
#[derive(Debug)]
pub struct ImageConv<T> {
    shape: Shape,
    matrix: Matrix<T>,
    transposed: OnceLock<Matrix<T>>,
}

impl<T: Operand> ImageConv<T> {
    /// Pack a kernel `[outputs, inputs, side, side]`.
    ///
    /// # Panics
    /// The kernel has another number of values.
    pub fn new(shape: Shape, kernel: &[f32]) -> Self {
        let Shape { inputs, outputs, side, .. } = shape;
        assert_eq!(kernel.len(), outputs * inputs * side * side, "kernel of {shape:?}");
        let run = run(side);
        let matrix = Matrix::pack(inputs * side * run, outputs, |k, n| {
            let (row, x) = (k / run, k % run);
            if x < side { kernel[(n * inputs * side + row) * side + x] } else { 0.0 }
        });
        Self { shape, matrix, transposed: OnceLock::new() }
    }

    /// Its geometry.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Convolve and give the output's pixels to an epilogue.
    ///
    /// # Panics
    /// The sizes do not fit each other.
    pub fn run<E: Epilogue>(&self, isa: Isa, x: &[f32], images: usize, size: [usize; 2], epilogue: &E) {
        assert_eq!(x.len(), images * self.shape.inputs * size[0] * size[1], "images of {size:?}");
        let windows = Windows { shape: self.shape, size, output: self.shape.output(size) };
        gemm::run(isa, &Images { x, count: images, windows }, &self.matrix, epilogue);
    }

    /// Carry the gradient of the output's pixels back to the images.
    ///
    /// # Panics
    /// The sizes do not fit each other.
    pub fn backward(&self, isa: Isa, grad: &Tiles<T>, images: usize, size: [usize; 2], out: &mut [f32]) {
        let windows = Windows { shape: self.shape, size, output: self.shape.output(size) };
        let (pixels, image) = (windows.output[0] * windows.output[1], self.shape.inputs * size[0] * size[1]);
        assert_eq!(
            (grad.rows(), grad.columns()),
            (images * pixels, self.shape.outputs),
            "pixels and channels"
        );
        assert_eq!(out.len(), images * image, "images of {size:?}");
        let transposed = self.transposed.get_or_init(|| self.matrix.transposed());
        let shared = SharedMut::new(out);
        // Windows overlap, so an image is one thread's.
        ranges(images, 1, 2, |images| {
            for i in images {
                // SAFETY: ranges do not overlap.
                let out = unsafe { shared.part(i * image..(i + 1) * image) };
                out.fill(0.0);
                let rows = RowsOf { tiles: grad, first: i * pixels, count: pixels };
                gemm::run_here(isa, &rows, transposed, &Spread { out: SharedMut::new(out), windows });
            }
        });
    }
}

/// A kernel's row, filled up.
fn run(side: usize) -> usize {
    side.next_multiple_of(8)
}

#[derive(Clone, Copy)]
struct Windows {
    shape: Shape,
    size: [usize; 2],
    output: [usize; 2],
}

impl Windows {
    /// Where in an image the kernel's row `row` over output pixel `pixel` begins, and which of its values lie inside;
    /// `None` if none do.
    #[inline(always)]
    fn row(&self, pixel: usize, row: usize) -> Option<(usize, usize, usize)> {
        let Shape { side, stride, padding, .. } = self.shape;
        let [height, width] = self.size;
        let (channel, ky) = (row / side, row % side);
        let y = pixel / self.output[1] * stride + ky;
        let x = pixel % self.output[1] * stride;
        if y < padding || y - padding >= height {
            return None;
        }
        let (from, to) = (padding.saturating_sub(x), (width + padding).saturating_sub(x).min(side));
        (from < to).then(|| ((channel * height + y - padding) * width + x + from - padding, from, to))
    }
}

struct Images<'a> {
    x: &'a [f32],
    count: usize,
    windows: Windows,
}

impl<T: Operand> Source<T> for Images<'_> {
    fn rows(&self) -> usize {
        self.count * self.windows.output[0] * self.windows.output[1]
    }

    fn depth(&self) -> usize {
        self.windows.shape.inputs * self.windows.shape.side * run(self.windows.shape.side)
    }

    #[inline(always)]
    fn pack<S: Simd>(&self, s: S, row: usize, mut out: PackedRow<'_>) {
        let windows = &self.windows;
        let Shape { inputs, side, .. } = windows.shape;
        let pixels = windows.output[0] * windows.output[1];
        let image = inputs * windows.size[0] * windows.size[1];
        let (start, pixel) = (row / pixels * image, row % pixels);
        let (run, depth) = (run(side), <Self as Source<T>>::depth(self));
        for part in (0..depth.next_multiple_of(line::<T>())).step_by(8) {
            let (r, x) = (part / run, part % run);
            let inside = if part < depth { windows.row(pixel, r) } else { None };
            let v = match inside {
                Some((at, 0, to)) if to > x => s.load(&self.x[start + at + x..start + at + to.min(x + 8)]),
                Some((at, from, to)) => {
                    let mut values = [0.0; 8];
                    for i in from.max(x)..to.min(x + 8) {
                        values[i - x] = self.x[start + at + i - from];
                    }
                    s.load(&values)
                }
                None => s.splat(0.0),
            };
            T::store(s, &mut out.line::<T>(part / line::<T>())[part % line::<T>()..][..8], v);
        }
    }
}

/// Some rows of tiles.
struct RowsOf<'a, T> {
    tiles: &'a Tiles<T>,
    first: usize,
    count: usize,
}

impl<T: Operand> Source<T> for RowsOf<'_, T> {
    fn rows(&self) -> usize {
        self.count
    }

    fn depth(&self) -> usize {
        self.tiles.columns()
    }

    #[inline(always)]
    fn pack<S: Simd>(&self, s: S, row: usize, out: PackedRow<'_>) {
        self.tiles.pack(s, self.first + row, out);
    }
}

/// Adds the gradients of windows into one image.
struct Spread<'a> {
    out: SharedMut<'a, f32>,
    windows: Windows,
}

impl Epilogue for Spread<'_> {
    fn check(&self, rows: usize, columns: usize) {
        let w = &self.windows;
        assert_eq!(rows, w.output[0] * w.output[1]);
        assert_eq!(columns, w.shape.inputs * w.shape.side * run(w.shape.side));
        assert_eq!(self.out.len(), w.shape.inputs * w.size[0] * w.size[1]);
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, sums: [S::F; 2]) {
        let mut values = [0.0; PANEL];
        s.store(&mut values[..LANES], sums[0]);
        s.store(&mut values[LANES..], sums[1]);
        let run = run(self.windows.shape.side);
        for part in (0..count).step_by(8) {
            let (r, x) = ((column + part) / run, (column + part) % run);
            let Some((at, from, to)) = self.windows.row(row, r) else { continue };
            let (first, last) = (from.max(x), to.min(x + 8));
            if first < last {
                let at = at + first - from;
                // SAFETY: one thread has the image, and this is its only borrow.
                let out = unsafe { self.out.part(at..at + last - first) };
                let sum = s.add(s.load(out), s.load(&values[part + first - x..part + last - x]));
                s.store(out, sum);
            }
        }
    }
}

/// Where the pooling found its maxima: for each output pixel and sixteen channels, a word for each tap, with the
/// bits of the channels that it won. Where nothing is above zero, nothing wins.
#[derive(Debug)]
pub struct Winners(Vec<u16>);

/// Output size of the pooling.
pub fn pooled(size: [usize; 2]) -> [usize; 2] {
    size.map(|s| (s - 1) / 2 + 1)
}

/// The largest of each 3 × 3 window and zero, stride 2, padding 1: ReLU and max pooling at once. Ties go to the
/// first in scan order. `out` has the output's pixels, channels last.
///
/// # Panics
/// The sizes do not fit each other.
pub fn max_pool<T: Operand>(
    isa: Isa,
    x: &Tiles<T>,
    images: usize,
    size: [usize; 2],
    keep: bool,
    out: &mut [f32],
) -> Winners {
    let [height, width] = pooled(size);
    let channels = x.columns();
    assert_eq!(x.rows(), images * size[0] * size[1], "pixels of {images} maps of {size:?}");
    assert_eq!(out.len(), images * height * width * channels, "pixels of {height} x {width}");
    let words = TAPS * channels.div_ceil(LANES);
    let mut winners = vec![0; if keep { images * height * width * words } else { 0 }];
    let (out, shared) = (SharedMut::new(out), SharedMut::new(&mut winners));
    ranges(images * height * width, 1, 4, |pixels| {
        dispatch(isa, Pool { x, size, pixels, keep, out, winners: shared });
    });
    Winners(winners)
}

struct Pool<'a, T> {
    x: &'a Tiles<T>,
    size: [usize; 2],
    pixels: std::ops::Range<usize>,
    keep: bool,
    out: SharedMut<'a, f32>,
    winners: SharedMut<'a, u16>,
}

impl<T: Operand> Kernel for Pool<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [height, width] = pooled(self.size);
        let channels = self.x.columns();
        let chunks = channels.div_ceil(LANES);
        for pixel in self.pixels {
            let (image, y, x) = (pixel / (height * width), pixel / width % height, pixel % width);
            for chunk in 0..chunks {
                let column = chunk * LANES;
                let count = (channels - column).min(LANES);
                let mut best = s.splat(0.0);
                // Stays zero as long as all values are numbers.
                let mut probe = s.splat(0.0);
                let mut won = [0_u16; TAPS];
                for tap in 0..TAPS {
                    let (y, x) = (2 * y + tap / 3, 2 * x + tap % 3);
                    if y == 0 || x == 0 || y > self.size[0] || x > self.size[1] {
                        continue;
                    }
                    let from = (image * self.size[0] + y - 1) * self.size[1] + x - 1;
                    let v = self.x.load(s, from, column, count);
                    probe = s.mul_add(v, s.splat(0.0), probe);
                    let larger = s.positive(s.sub(v, best));
                    best = s.select(larger, v, best);
                    for won in &mut won[..tap] {
                        *won &= !larger;
                    }
                    won[tap] = larger;
                }
                let at = pixel * channels + column;
                // SAFETY: pixels are shared out among the tasks.
                unsafe {
                    s.store(self.out.part(at..at + count), s.add(best, probe));
                    if self.keep {
                        let at = (pixel * chunks + chunk) * TAPS;
                        self.winners.part(at..at + TAPS).copy_from_slice(&won);
                    }
                }
            }
        }
    }
}

/// The gradient of the pooling's input, through the ReLU before it.
///
/// # Panics
/// The sizes do not fit each other.
pub fn max_pool_backward<T: Operand>(
    isa: Isa,
    winners: &Winners,
    grad: &[f32],
    images: usize,
    size: [usize; 2],
    channels: usize,
) -> Tiles<T> {
    let [height, width] = pooled(size);
    let pixels = images * height * width;
    assert_eq!(grad.len(), pixels * channels, "pixels of {height} x {width}");
    assert_eq!(winners.0.len(), pixels * TAPS * channels.div_ceil(LANES), "winners");
    let mut out = Tiles::new(images * size[0] * size[1], channels);
    let shared = out.share();
    ranges(images * size[0] * size[1], gemm::TILE_ROWS, 4, |pixels| {
        dispatch(isa, PoolBackward { winners: &winners.0, grad, size, pixels, out: shared });
    });
    out
}

struct PoolBackward<'a, T> {
    winners: &'a [u16],
    grad: &'a [f32],
    size: [usize; 2],
    pixels: std::ops::Range<usize>,
    out: SharedTiles<'a, T>,
}

impl<T: Operand> Kernel for PoolBackward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [height, width] = pooled(self.size);
        let channels = self.out.columns();
        let chunks = channels.div_ceil(LANES);
        for pixel in self.pixels {
            let per_image = self.size[0] * self.size[1];
            let (image, within) = (pixel / per_image, pixel % per_image);
            let (y, x) = (within / self.size[1], within % self.size[1]);
            for chunk in 0..chunks {
                let column = chunk * LANES;
                let count = (channels - column).min(LANES);
                let mut sum = s.splat(0.0);
                for tap in 0..TAPS {
                    // Output `o` reads input `2 o + tap - 1`.
                    let (Some(y), Some(x)) = ((y + 1).checked_sub(tap / 3), (x + 1).checked_sub(tap % 3))
                    else {
                        continue;
                    };
                    let (oy, ox) = (y / 2, x / 2);
                    if y % 2 == 1 || x % 2 == 1 || oy >= height || ox >= width {
                        continue;
                    }
                    let from = (image * height + oy) * width + ox;
                    let won = self.winners[(from * chunks + chunk) * TAPS + tap];
                    let at = from * channels + column;
                    let grad = s.load(&self.grad[at..at + count]);
                    sum = s.add(sum, s.select(won, grad, s.splat(0.0)));
                }
                // SAFETY: pixels are shared out among the tasks.
                unsafe { self.out.store(s, pixel, column, count, sum) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::Store;
    use crate::testing::{Sweep, assert_close, operands, sweep, values, wide};

    struct Photos {
        shape: Shape,
        images: usize,
        size: [usize; 2],
    }

    impl Sweep for Photos {
        fn check<T: Operand>(&self, isa: Isa, _rounding: f64) {
            let &Self { shape, images, size: [h, w] } = self;
            let Shape { inputs, outputs, side, stride, padding } = shape;
            let what = format!("{isa:?} {shape:?} {images} {h}x{w}");
            let exact = |v: Vec<T>| v.into_iter().map(Operand::to_f32).collect::<Vec<f32>>();
            let kernel = exact(operands::<T>(outputs * inputs * side * side, 1));
            let x = exact(operands::<T>(images * h * w * inputs, 2));
            let [oh, ow] = shape.output([h, w]);
            let grad = operands::<T>(images * oh * ow * outputs, 3);
            let wide_grad = wide(&grad);
            let mut expected = vec![0.0; grad.len()];
            let mut back = vec![0.0; x.len()];
            for b in 0..images {
                for (oy, ox) in (0..oh * ow).map(|i| (i / ow, i % ow)) {
                    for (ky, kx) in (0..side * side).map(|i| (i / side, i % side)) {
                        let (py, px) = (oy * stride + ky, ox * stride + kx);
                        if py < padding || px < padding || py - padding >= h || px - padding >= w {
                            continue;
                        }
                        for (o, c) in (0..outputs * inputs).map(|i| (i / inputs, i % inputs)) {
                            let from = ((b * inputs + c) * h + py - padding) * w + px - padding;
                            let to = ((b * oh + oy) * ow + ox) * outputs + o;
                            let k = f64::from(kernel[((o * inputs + c) * side + ky) * side + kx]);
                            expected[to] += k * f64::from(x[from]);
                            back[from] += k * wide_grad[to];
                        }
                    }
                }
            }
            let conv = ImageConv::<T>::new(shape, &kernel);
            let mut out = vec![9.0; expected.len()];
            conv.run(isa, &x, images, [h, w], &Store::new(&mut out, outputs));
            assert_close(&out, &expected, 1e-5, &what);
            let mut out = vec![9.0; back.len()];
            conv.backward(isa, &Tiles::from_rows(&grad, outputs), images, [h, w], &mut out);
            assert_close(&out, &back, 1e-5, &what);
        }
    }

    #[test]
    fn images_of_any_size_agree_with_f64() {
        for (inputs, outputs, side, stride, padding, images, size) in [
            (3, 12, 7, 2, 3, 2, [20, 17]),
            (1, 3, 3, 1, 1, 1, [3, 9]),
            (3, 5, 4, 4, 0, 1, [8, 12]),
            (2, 3, 9, 2, 4, 1, [7, 6]),
        ] {
            sweep(&Photos { shape: Shape { inputs, outputs, side, stride, padding }, images, size });
        }
    }

    struct Maps {
        images: usize,
        size: [usize; 2],
        channels: usize,
    }

    impl Sweep for Maps {
        fn check<T: Operand>(&self, isa: Isa, rounding: f64) {
            let &Self { images, size: [h, w], channels } = self;
            let what = format!("{isa:?} {images} {h}x{w} {channels}");
            // Few different values, so that there are ties, and windows without anything above zero.
            let x: Vec<T> = values(images * h * w * channels, 1)
                .iter()
                .map(|v| T::from_f32((v * 3.0 - 1.5).round()))
                .collect();
            let [oh, ow] = pooled([h, w]);
            let grad = values(images * oh * ow * channels, 2);
            let (mut expected, mut back) = (vec![0.0; grad.len()], vec![0.0; x.len()]);
            for i in 0..grad.len() {
                let (pixel, c) = (i / channels, i % channels);
                let (b, oy, ox) = (pixel / (oh * ow), pixel / ow % oh, pixel % ow);
                let mut best = (0.0, None);
                for (y, x_) in (0..9).map(|t| (2 * oy + t / 3, 2 * ox + t % 3)) {
                    if y > 0 && x_ > 0 && y <= h && x_ <= w {
                        let at = ((b * h + y - 1) * w + x_ - 1) * channels + c;
                        if f64::from(x[at].to_f32()) > best.0 {
                            best = (f64::from(x[at].to_f32()), Some(at));
                        }
                    }
                }
                expected[i] = best.0;
                if let Some(at) = best.1 {
                    back[at] += f64::from(grad[i]);
                }
            }
            let mut out = vec![9.0; grad.len()];
            let tiles = Tiles::from_rows(&x, channels);
            let winners = max_pool(isa, &tiles, images, [h, w], true, &mut out);
            assert_close(&out, &expected, 0.0, &what);
            let found = max_pool_backward::<T>(isa, &winners, &grad, images, [h, w], channels);
            assert_close(&found.to_rows(), &back, rounding, &what);
        }
    }

    #[test]
    fn pooling_agrees_with_its_definition() {
        for (images, size, channels) in [(1, [1, 1], 1), (2, [6, 7], 16), (1, [5, 4], 20), (1, [8, 8], 64)] {
            sweep(&Maps { images, size, channels });
        }
    }
}
