//! Forward: bands of pooled rows, each from its own stretch of the image.

use std::ops::Range;

use super::{TAPS, pixel, pooled, row};
use crate::conv::Shape;
use crate::gemm::micro::Unit;
use crate::gemm::{Matrix, PANEL};
use crate::scratch::{Line, elements_mut, rows_mut};
use crate::simd::{Kernel, LANES, Simd};
use crate::{Operand, SharedMut};

/// Rows of the convolution that a pooling window spans.
const RING: usize = 3;

pub(super) struct Sizes {
    shape: Shape,
    size: [usize; 2],
    inner: [usize; 2],
    pooled: [usize; 2],
    /// Values of a pixel as it is laid out.
    pixel: usize,
    /// Groups (32 bits) between windows, and of a row of pixels.
    step: usize,
    pitch: usize,
    /// Where each line of the summed axis begins, in groups from a window's first, and how many of its groups are a window's.
    starts: Vec<usize>,
    counts: Vec<usize>,
    /// Output channels in whole panels, and output pixels in whole blocks.
    channels: usize,
    width: usize,
}

impl Sizes {
    pub(super) fn new<T: Operand>(shape: &Shape, size: [usize; 2]) -> Self {
        let inner = shape.output(size);
        let (pixel, row) = (pixel::<T>(shape), row::<T>(shape) / T::GROUP);
        let step = shape.stride * pixel / T::GROUP;
        let width = inner[1].next_multiple_of(PANEL);
        // The last block's last window, and its last line, end here; the image may reach further.
        let need = ((width - 1) * step + row).max(((size[1] + shape.padding) * pixel).div_ceil(T::GROUP));
        let pitch = need.next_multiple_of(LANES);
        let per_row = row / LANES;
        let starts = (0..shape.side * per_row).map(|l| l / per_row * pitch + l % per_row * LANES).collect();
        let counts = (0..shape.side * per_row)
            .map(|l| ((shape.side * pixel).div_ceil(T::GROUP) - l % per_row * LANES).min(LANES))
            .collect();
        let channels = shape.outputs.next_multiple_of(PANEL);
        Self {
            shape: *shape,
            size,
            inner,
            pooled: pooled(inner),
            pixel,
            step,
            pitch,
            starts,
            counts,
            channels,
            width,
        }
    }

    /// Rows of the convolution, and of the image with its padding, that pooled rows need.
    fn spans(&self, rows: &Range<usize>) -> (Range<usize>, Range<usize>) {
        let conv = (2 * rows.start).saturating_sub(1)..(2 * rows.end).min(self.inner[0]);
        let image = conv.start * self.shape.stride..(conv.end - 1) * self.shape.stride + self.shape.side;
        (conv, image)
    }

    /// Lines of the laid out image and of the ring of convolved rows, for so many pooled rows.
    pub(super) fn scratch(&self, rows: usize) -> [usize; 2] {
        let image = 2 * rows * self.shape.stride + self.shape.side;
        [image * self.pitch / LANES, RING * self.width * self.channels / LANES]
    }
}

pub(super) struct Band<'a, T> {
    pub(super) sizes: &'a Sizes,
    /// The image.
    pub(super) x: &'a [f32],
    pub(super) matrix: &'a Matrix<T>,
    pub(super) bias: &'a [f32],
    /// The image's place among all.
    pub(super) i: usize,
    /// Pooled rows.
    pub(super) rows: Range<usize>,
    pub(super) out: SharedMut<'a, f32>,
    pub(super) winners: Option<SharedMut<'a, u16>>,
    pub(super) lines: [&'a mut [Line]; 2],
}

impl<T: Operand> Kernel for Band<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { sizes, matrix, .. } = self;
        let [image, ring] = self.lines;
        let (conv, rows) = sizes.spans(&self.rows);
        lay_out::<T, S>(s, sizes, self.x, rows.clone(), image);
        let image = rows_mut(image).as_flattened_mut();
        let ring = elements_mut::<f32>(ring);
        let unit = Unit::<T, S>::new(s);
        let pool = Pool { sizes, bias: self.bias, i: self.i, out: self.out, winners: self.winners };
        let mut next = conv.start;
        let row_size = sizes.width * sizes.channels;
        for pooled in self.rows.clone() {
            for y in next..(2 * pooled + 2).min(conv.end) {
                let from = (y * sizes.shape.stride - rows.start) * sizes.pitch;
                let to = &mut ring[y % RING * row_size..(y % RING + 1) * row_size];
                for x in (0..sizes.inner[1]).step_by(PANEL) {
                    let windows = &image[from + x * sizes.step..];
                    for panel in 0..matrix.panels() {
                        let to = &mut to[x * sizes.channels + panel * PANEL..];
                        unit.product_at(
                            windows,
                            &sizes.starts,
                            &sizes.counts,
                            sizes.step,
                            matrix.panel(panel),
                            to,
                            sizes.channels,
                        );
                    }
                }
            }
            next = (2 * pooled + 2).min(conv.end);
            pool.row(s, pooled, ring);
        }
    }
}

/// Some rows of a padded image, channels last; what a window reads beyond them is zero.
#[inline(always)]
fn lay_out<T: Operand, S: Simd>(s: S, sizes: &Sizes, x: &[f32], rows: Range<usize>, out: &mut [Line]) {
    let Shape { inputs, padding, .. } = sizes.shape;
    let [height, width] = sizes.size;
    for (row, out) in rows.zip(out.chunks_exact_mut(sizes.pitch / LANES)) {
        out.fill(Line::ZERO);
        if row < padding || row - padding >= height {
            continue;
        }
        let out = elements_mut::<T>(out);
        for first in (0..width).step_by(LANES) {
            let count = (width - first).min(LANES);
            for c in 0..inputs {
                let at = (c * height + row - padding) * width + first;
                let mut values = [T::default(); LANES];
                T::store(s, &mut values, s.load(&x[at..at + count]));
                let out = &mut out[(padding + first) * sizes.pixel + c..];
                for (out, value) in out.iter_mut().step_by(sizes.pixel).zip(&values[..count]) {
                    *out = *value;
                }
            }
        }
    }
}

struct Pool<'a> {
    sizes: &'a Sizes,
    bias: &'a [f32],
    i: usize,
    out: SharedMut<'a, f32>,
    winners: Option<SharedMut<'a, u16>>,
}

impl Pool<'_> {
    /// One row of pooled pixels. Bias and ReLU come behind the maximum, which they leave where it is.
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, pooled: usize, ring: &[f32]) {
        let Sizes { inner, channels, width, .. } = *self.sizes;
        let outputs = self.sizes.shape.outputs;
        let chunks = outputs.div_ceil(LANES);
        for x in 0..self.sizes.pooled[1] {
            let pixel = (self.i * self.sizes.pooled[0] + pooled) * self.sizes.pooled[1] + x;
            for chunk in 0..chunks {
                let column = chunk * LANES;
                let count = (outputs - column).min(LANES);
                let mut taps = [s.splat(f32::MIN); TAPS];
                // Stays zero as long as all values are numbers.
                let mut probe = s.splat(0.0);
                let mut best = s.splat(f32::MIN);
                for (tap, value) in taps.iter_mut().enumerate() {
                    let (y, x) = (2 * pooled + tap / 3, 2 * x + tap % 3);
                    if y > 0 && x > 0 && y <= inner[0] && x <= inner[1] {
                        let at = ((y - 1) % RING * width + x - 1) * channels + column;
                        *value = s.load(&ring[at..at + LANES]);
                        probe = s.mul_add(*value, s.splat(0.0), probe);
                        best = s.max(best, *value);
                    }
                }
                let sum = s.add(best, s.load(&self.bias[column..column + count]));
                let at = pixel * outputs + column;
                // SAFETY: pixels are shared out among the tasks.
                unsafe {
                    let out = s.add(s.max(s.splat(0.0), sum), probe);
                    s.store(self.out.part(at..at + count), out);
                    if let Some(winners) = &self.winners {
                        let words = winners
                            .part((pixel * chunks + chunk) * TAPS..(pixel * chunks + chunk + 1) * TAPS);
                        let mut open = s.positive(sum);
                        for (word, value) in words.iter_mut().zip(taps) {
                            let won = open & !s.positive(s.sub(best, value));
                            *word = won;
                            open &= !won;
                        }
                    }
                }
            }
        }
    }
}
