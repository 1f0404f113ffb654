//! The entrance of a convolutional network: a convolution of images with few channels, ReLU, and max pooling.
//!
//! Images are laid out again, channels last, so that a window's row is one stretch of memory and those of neighbouring outputs
//! whole groups apart: products read them where they are. The convolution's output exists a few rows
//! at a time, until it is pooled.

mod backward;
mod forward;

use std::sync::OnceLock;

use crate::conv::Shape;
use crate::gemm::{Matrix, TILE_ROWS, line};
use crate::parallel::ranges;
use crate::scratch;
use crate::simd::{LANES, dispatch};
use crate::{Isa, Operand, SharedMut, Tiles};

/// Windows of the pooling: 3 × 3, stride 2, padding 1.
const TAPS: usize = 9;

/// Output size of the pooling.
pub fn pooled(size: [usize; 2]) -> [usize; 2] {
    size.map(|s| (s - 1) / 2 + 1)
}

/// Where the pooling found its maxima: for each output pixel and sixteen channels, a word for each tap, with the
/// bits of the channels that it won. Where nothing is above zero, nothing wins.
#[derive(Debug)]
pub struct Winners(Vec<u16>);

/// A frozen convolution of images `[B, C, H, W]`, ReLU and max pooling.
#[derive(Debug)]
pub struct ImageConv<T> {
    shape: Shape,
    /// Summed over the kernel's rows, each of `row` values: columns, and channels within a column.
    matrix: Matrix<T>,
    transposed: OnceLock<Matrix<T>>,
}

/// Values of a pixel as it is laid out: its channels, and no more where windows so begin with whole groups. (Of three channels,
/// seven pixels with a stride of two are eleven groups of bfloat16 instead of fourteen.)
fn pixel<T: Operand>(shape: &Shape) -> usize {
    let whole = (shape.stride * shape.inputs).is_multiple_of(T::GROUP);
    if whole { shape.inputs } else { shape.inputs.next_multiple_of(T::GROUP) }
}

/// Values of a kernel's row along the summed axis: whole lines.
fn row<T: Operand>(shape: &Shape) -> usize {
    (shape.side * pixel::<T>(shape)).next_multiple_of(line::<T>())
}

impl<T: Operand> ImageConv<T> {
    /// Pack a kernel `[outputs, inputs, side, side]`.
    ///
    /// # Panics
    /// The kernel has another number of values.
    pub fn new(shape: Shape, kernel: &[f32]) -> Self {
        let Shape { inputs, outputs, side, .. } = shape;
        assert_eq!(kernel.len(), outputs * inputs * side * side, "kernel of {shape:?}");
        let (pixel, row) = (pixel::<T>(&shape), row::<T>(&shape));
        let matrix = Matrix::pack(side * row, outputs, |k, n| {
            let (ky, kx, c) = (k / row, k % row / pixel, k % row % pixel);
            if kx < side && c < inputs { kernel[((n * inputs + c) * side + ky) * side + kx] } else { 0.0 }
        });
        Self { shape, matrix, transposed: OnceLock::new() }
    }

    /// Its geometry.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// `out = max_pool(relu(conv(x) + bias))`: windows of 3 × 3, stride 2, padding 1, ties going to the first in scan order;
    /// channels last. With `keep` the winners are kept.
    ///
    /// # Panics
    /// The sizes do not fit each other.
    pub fn forward(
        &self,
        isa: Isa,
        x: &[f32],
        [images, height, width]: [usize; 3],
        bias: &[f32],
        keep: bool,
        out: &mut [f32],
    ) -> Winners {
        let size = [height, width];
        let (inner, channels) = (self.shape.output(size), self.shape.outputs);
        let pooled = pooled(inner);
        let image = self.shape.inputs * height * width;
        assert_eq!(x.len(), images * image, "images of {size:?}");
        assert_eq!(bias.len(), channels, "bias");
        assert_eq!(out.len(), images * pooled[0] * pooled[1] * channels, "pixels of {pooled:?}");
        let words = TAPS * channels.div_ceil(LANES);
        let mut winners = vec![0; if keep { images * pooled[0] * pooled[1] * words } else { 0 }];
        let (out, kept) = (SharedMut::new(out), SharedMut::new(&mut winners));
        let sizes = forward::Sizes::new::<T>(&self.shape, size);
        // Neighbouring bands compute a row of the convolution twice: few bands, but enough for all threads.
        let bands = (4 * rayon::current_num_threads()).div_ceil(images.max(1)).min(pooled[0]);
        ranges(images * bands, 1, 4, |tasks| {
            for task in tasks {
                let (i, band) = (task / bands, task % bands);
                let rows = band * pooled[0] / bands..(band + 1) * pooled[0] / bands;
                scratch::with(sizes.scratch(rows.len()), |lines| {
                    let x = &x[i * image..(i + 1) * image];
                    let matrix = &self.matrix;
                    let winners = keep.then_some(kept);
                    let kernel =
                        forward::Band { sizes: &sizes, x, matrix, bias, i, rows, out, winners, lines };
                    dispatch(isa, kernel);
                });
            }
        });
        Winners(winners)
    }

    /// The gradient of the images, given that of the pooled pixels.
    ///
    /// # Panics
    /// The sizes do not fit each other.
    pub fn backward(
        &self,
        isa: Isa,
        winners: &Winners,
        grad: &[f32],
        [images, height, width]: [usize; 3],
        out: &mut [f32],
    ) {
        let inner = self.shape.output([height, width]);
        let grad = unpooled::<T>(isa, winners, grad, images, inner, self.shape.outputs);
        self.carry_back(isa, &grad, [images, height, width], out);
    }

    /// The gradient of the images, given that of the convolution's pixels.
    fn carry_back(&self, isa: Isa, grad: &Tiles<T>, [images, height, width]: [usize; 3], out: &mut [f32]) {
        let sizes = backward::Sizes::new::<T>(&self.shape, [height, width]);
        let image = self.shape.inputs * height * width;
        let inner = self.shape.output([height, width]);
        let expected = (images * inner[0] * inner[1], self.shape.outputs);
        assert_eq!((grad.rows(), grad.columns()), expected, "pixels and channels");
        assert_eq!(out.len(), images * image, "images of {height} x {width}");
        let transposed = self.transposed.get_or_init(|| {
            let (row, pixel, reach) = (row::<T>(&self.shape), pixel::<T>(&self.shape), sizes.reach());
            Matrix::pack(self.shape.outputs, self.shape.side * reach, |o, n| {
                let (ky, x) = (n / reach, n % reach);
                if x < self.shape.side * pixel { self.matrix.get(ky * row + x, o) } else { 0.0 }
            })
        });
        let shared = SharedMut::new(out);
        // Windows overlap, so an image is one thread's.
        ranges(images, 1, 2, |images| {
            for i in images {
                // SAFETY: ranges do not overlap.
                let out = unsafe { shared.part(i * image..(i + 1) * image) };
                scratch::with(sizes.scratch(transposed), |lines| {
                    dispatch(isa, backward::Image { sizes: &sizes, grad, transposed, i, out, lines });
                });
            }
        });
    }
}

/// The gradient of what was pooled, through the ReLU before it.
fn unpooled<T: Operand>(
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
    ranges(images * size[0] * size[1], TILE_ROWS, 4, |pixels| {
        dispatch(isa, backward::PoolBackward { winners: &winners.0, grad, size, pixels, out: shared });
    });
    out
}

#[cfg(test)]
mod tests;
