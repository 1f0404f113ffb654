//! Backward: through the pooling by its winners, then image by image through the convolution.

use super::{TAPS, pixel, pooled};
use crate::conv::Shape;
use crate::gemm::micro::Unit;
use crate::gemm::{Matrix, PANEL, PackedRow, Source, TILE_ROWS};
use crate::scratch::{Line, elements_mut};
use crate::simd::{Kernel, LANES, Simd};
use crate::{Operand, SharedTiles, Tiles};

pub(super) struct Sizes {
    shape: Shape,
    size: [usize; 2],
    inner: [usize; 2],
    /// Values of a pixel as it is laid out.
    pixel: usize,
}

impl Sizes {
    pub(super) fn new<T: Operand>(shape: &Shape, size: [usize; 2]) -> Self {
        Self { shape: *shape, size, inner: shape.output(size), pixel: pixel::<T>(shape) }
    }

    /// Values of a stride's pixels.
    fn step(&self) -> usize {
        self.shape.stride * self.pixel
    }

    /// Values of a window's row, in whole strides.
    pub(super) fn reach(&self) -> usize {
        (self.shape.side * self.pixel).next_multiple_of(self.step())
    }

    /// Strides of a row of the padded image, windows that reach over its end included.
    fn strides(&self) -> usize {
        let windows = self.inner[1] + self.reach() / self.step() - 1;
        windows.max((self.size[1] + self.shape.padding).div_ceil(self.shape.stride))
    }

    fn rows(&self) -> usize {
        ((self.inner[0] - 1) * self.shape.stride + self.shape.side).max(self.size[0] + self.shape.padding)
    }

    /// Lines of a packed row of pixels, of their windows' gradients, and of the padded image.
    pub(super) fn scratch<T: Operand>(&self, transposed: &Matrix<T>) -> [usize; 3] {
        let width = self.inner[1].next_multiple_of(TILE_ROWS);
        let columns = transposed.columns().next_multiple_of(PANEL);
        let windows = (width + TILE_ROWS) * columns;
        [
            width * transposed.lines(),
            windows / LANES,
            (self.rows() * self.strides() * self.step()).div_ceil(LANES),
        ]
    }
}

/// One image's gradient.
pub(super) struct Image<'a, T> {
    pub(super) sizes: &'a Sizes,
    /// Of all images' convolved pixels.
    pub(super) grad: &'a Tiles<T>,
    pub(super) transposed: &'a Matrix<T>,
    pub(super) i: usize,
    pub(super) out: &'a mut [f32],
    pub(super) lines: [&'a mut [Line]; 3],
}

impl<T: Operand> Kernel for Image<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { sizes, grad, transposed, i, out, lines: [packed, windows, sum] } = self;
        let Sizes { shape, size: [height, width], inner, pixel } = *sizes;
        let lines = transposed.lines();
        let tile = lines * TILE_ROWS;
        let columns = transposed.columns().next_multiple_of(PANEL);
        let (step, reach, strides) = (sizes.step(), sizes.reach(), sizes.strides());
        let windows = elements_mut::<f32>(windows);
        let sum = elements_mut::<f32>(sum);
        sum.fill(0.0);
        let unit = Unit::<T, S>::new(s);
        for y in 0..inner[0] {
            for x in 0..inner[1] {
                let at = x / TILE_ROWS * tile + x % TILE_ROWS;
                let row = PackedRow::new(&mut packed[at..(x / TILE_ROWS + 1) * tile]);
                grad.pack(s, (i * inner[0] + y) * inner[1] + x, row);
            }
            let tiles = inner[1].div_ceil(TILE_ROWS);
            for panel in 0..transposed.panels() {
                for first in (0..tiles).step_by(2) {
                    let pair = &packed[first * tile..(first + 2).min(tiles) * tile];
                    let to = &mut windows[first * TILE_ROWS * columns + panel * PANEL..];
                    unit.product_into(pair, lines, transposed.panel(panel), to, columns);
                }
            }
            // Windows of neighbours overlap. Those that don't come one after the other, then the ones beside them, because
            // loads that overlap the latest stores would have to wait for them.
            let apart = reach / step;
            for ky in 0..shape.side {
                let row = &mut sum[(y * shape.stride + ky) * strides * step..][..strides * step];
                for x in (0..apart).flat_map(|first| (first..inner[1]).step_by(apart)) {
                    let to = row[x * step..x * step + reach].chunks_mut(LANES);
                    let from = windows[x * columns + ky * reach..][..reach].chunks(LANES);
                    for (to, from) in to.zip(from) {
                        let v = s.add(s.load(to), s.load(from));
                        s.store(to, v);
                    }
                }
            }
        }
        for (c, plane) in out.chunks_exact_mut(height * width).enumerate() {
            for (y, row) in plane.chunks_exact_mut(width).enumerate() {
                let from = (y + shape.padding) * strides * step + shape.padding * pixel + c;
                for (v, sum) in row.iter_mut().zip(sum[from..].iter().step_by(pixel)) {
                    *v = *sum;
                }
            }
        }
    }
}

/// Along an axis, which of `count` windows of the pooling read row `i`, and at which of their three taps: window `o` reads row
/// `2 o + tap - 1`.
#[inline(always)]
fn readers(i: usize, count: usize) -> impl Iterator<Item = (usize, usize)> {
    let pairs = if i.is_multiple_of(2) { [(i / 2, 1), (count, 0)] } else { [(i / 2 + 1, 0), (i / 2, 2)] };
    pairs.into_iter().filter(move |(window, _)| *window < count)
}

pub(super) struct PoolBackward<'a, T> {
    pub(super) winners: &'a [u16],
    pub(super) grad: &'a [f32],
    pub(super) size: [usize; 2],
    pub(super) pixels: std::ops::Range<usize>,
    pub(super) out: SharedTiles<'a, T>,
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
            // Windows that read this pixel, and at which tap: one, two or four of them.
            let (mut windows, mut found) = ([(0, 0); 4], 0);
            for (oy, ty) in readers(y, height) {
                for (ox, tx) in readers(x, width) {
                    windows[found] = ((image * height + oy) * width + ox, 3 * ty + tx);
                    found += 1;
                }
            }
            for chunk in 0..chunks {
                let column = chunk * LANES;
                let count = (channels - column).min(LANES);
                let mut sum = s.splat(0.0);
                for (from, tap) in &windows[..found] {
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
