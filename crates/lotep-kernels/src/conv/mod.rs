//! Convolutions of feature maps whose pixels are rows of tiles, forward and back to the input.
//!
//! A convolution is a product: the windows of the input, which the product reads where they lie or gathers while it packs
//! them, with a matrix of the kernel's taps. The input gradient is one, or with a stride of `s` up to `s²` of them, each for
//! the input pixels of one phase (`y mod s`, `x mod s`), which only some of the taps reach: no zeros are multiplied.
//! Those of 3 × 3 are computed in another way where that is quicker, with fewer products ([`Conv::new`]).

mod winograd;

use std::ops::Range;

use crate::gemm::{self, Epilogue, Matrix, NOWHERE, PackedRow, Pieces, Source, TILE_ROWS, line};
use crate::parallel::ranges;
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::{Isa, Operand, SharedTiles, Tiles};
use winograd::Winograd;

/// A square kernel's geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Side of the kernel.
    pub side: usize,
    /// Step between windows.
    pub stride: usize,
    /// Zeros around the input.
    pub padding: usize,
}

impl Shape {
    /// Height and width of the output, given the input's.
    pub fn output(&self, size: [usize; 2]) -> [usize; 2] {
        size.map(|s| (s + 2 * self.padding).saturating_sub(self.side) / self.stride + 1)
    }
}

/// Where the windows of some output pixels lie in the input.
#[derive(Clone, Debug)]
struct Windows {
    /// Offset of each tap from `step` times the output pixel.
    taps: Vec<[isize; 2]>,
    step: usize,
}

/// A convolution, packed.
#[derive(Debug)]
pub struct Conv<T> {
    shape: Shape,
    form: Form<T>,
}

#[derive(Debug)]
enum Form<T> {
    Windows(Windows, Matrix<T>),
    Squares(Winograd<T>),
}

/// The input gradient of a convolution, packed.
#[derive(Debug)]
pub struct ConvBackward<T> {
    shape: Shape,
    form: BackwardForm<T>,
}

#[derive(Debug)]
enum BackwardForm<T> {
    Phases(Vec<Phase<T>>),
    Squares(Winograd<T>),
}

/// The input pixels `s · (y, x) + offset`, and what reaches them.
#[derive(Debug)]
struct Phase<T> {
    offset: [usize; 2],
    windows: Windows,
    matrix: Matrix<T>,
}

/// Summed channels of a tap: whole lines, where another tap follows.
fn per_tap<T: Operand>(taps: usize, channels: usize) -> usize {
    if taps > 1 { channels.next_multiple_of(line::<T>()) } else { channels }
}

impl<T: Operand> Conv<T> {
    /// Pack a kernel `[outputs, inputs, side, side]` in the form that is quickest on maps of 2 × 2 pixels and more. That of 3 × 3
    /// (stride and padding 1, 32 channels or more; not for tile instructions) takes 16/9 of the memory, in bfloat16 it doubles the
    /// error that comes of rounding the kernel, and what is infinite in the input makes NaN; [`Conv::windows`] is without these.
    ///
    /// # Panics
    /// The kernel has another number of values.
    pub fn new(isa: Isa, shape: Shape, kernel: &[f32]) -> Self {
        if !Winograd::<T>::pays(isa, shape) {
            return Self::windows(isa, shape, kernel);
        }
        check_kernel(shape, kernel);
        Self { shape, form: Form::Squares(Winograd::new(isa, shape.inputs, kernel)) }
    }

    /// Pack a kernel `[outputs, inputs, side, side]` as the matrix that windows are multiplied with.
    ///
    /// # Panics
    /// The kernel has another number of values.
    pub fn windows(isa: Isa, shape: Shape, kernel: &[f32]) -> Self {
        let Shape { inputs, outputs, side, stride, padding } = shape;
        check_kernel(shape, kernel);
        let per_tap = per_tap::<T>(side * side, inputs);
        let mut rows = Tiles::<T>::new(outputs, side * side * per_tap);
        let shared = rows.share();
        ranges(outputs, 1, 4, |outputs| {
            dispatch(isa, OfKernel { kernel, shape, per_tap, outputs, rows: shared });
        });
        let offset = |i: usize| i as isize - padding as isize;
        let taps = (0..side * side).map(|t| [offset(t / side), offset(t % side)]).collect();
        Self { shape, form: Form::Windows(Windows { taps, step: stride }, Matrix::of_columns(&rows)) }
    }

    /// Its geometry.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Convolve `images` maps of `size`, rows of `x` being their pixels, and give the output's pixels to an epilogue.
    ///
    /// # Panics
    /// The sizes do not fit each other.
    pub fn run<E: Epilogue>(&self, isa: Isa, x: &Tiles<T>, images: usize, size: [usize; 2], epilogue: &E) {
        check(x, images, size, self.shape.inputs);
        let (windows, matrix) = match &self.form {
            Form::Windows(windows, matrix) => (windows, matrix),
            Form::Squares(winograd) => return winograd.run(isa, x, images, size, epilogue),
        };
        if self.shape.side == 1 && self.shape.stride == 1 && self.shape.padding == 0 {
            return gemm::run(isa, x, matrix, epilogue);
        }
        let output = self.shape.output(size);
        gemm::run(isa, &Gather { x, windows, images, size, output }, matrix, epilogue);
    }

    /// Pack the input gradient.
    pub fn transposed(&self) -> ConvBackward<T> {
        let matrix = match &self.form {
            Form::Windows(_, matrix) => matrix,
            Form::Squares(winograd) => {
                let form = BackwardForm::Squares(winograd.transposed());
                return ConvBackward { shape: self.shape, form };
            }
        };
        let Shape { inputs, outputs, side, stride, padding } = self.shape;
        let lines_in = per_tap::<T>(side * side, inputs) / line::<T>();
        let rows = matrix.to_columns();
        // Taps that reach pixels of this phase along one axis, with the output's offset.
        let reach = |phase: usize| -> Vec<(usize, isize)> {
            let from = |tap: usize| (phase + padding) as isize - tap as isize;
            let whole = |tap: &usize| from(*tap).rem_euclid(stride as isize) == 0;
            (0..side).filter(whole).map(|tap| (tap, from(tap) / stride as isize)).collect()
        };
        let mut phases = Vec::new();
        for (py, px) in (0..stride * stride).map(|p| (p / stride, p % stride)) {
            let pairs: Vec<_> =
                reach(py).into_iter().flat_map(|y| reach(px).into_iter().map(move |x| (y, x))).collect();
            let per_out = per_tap::<T>(pairs.len(), outputs);
            let first: Vec<_> = pairs.iter().map(|((ky, _), (kx, _))| (ky * side + kx) * lines_in).collect();
            let matrix = Matrix::of_blocks(&rows, &first, per_out, inputs);
            let taps = pairs.iter().map(|((_, dy), (_, dx))| [*dy, *dx]).collect();
            phases.push(Phase { offset: [py, px], windows: Windows { taps, step: 1 }, matrix });
        }
        ConvBackward { shape: self.shape, form: BackwardForm::Phases(phases) }
    }
}

impl<T: Operand> ConvBackward<T> {
    /// Carry the gradient of the output's pixels back to `images` maps of `size`; the input's pixels go to an
    /// epilogue. Pixels that no window reaches come as zeros, unless `reached_only`: then they do not come at all.
    ///
    /// # Panics
    /// The sizes do not fit each other.
    pub fn run<E: Epilogue>(
        &self,
        isa: Isa,
        grad: &Tiles<T>,
        images: usize,
        size: [usize; 2],
        reached_only: bool,
        epilogue: &E,
    ) {
        let output = self.shape.output(size);
        check(grad, images, output, self.shape.outputs);
        epilogue.check(images * size[0] * size[1], self.shape.inputs);
        let phases = match &self.form {
            BackwardForm::Phases(phases) => phases,
            BackwardForm::Squares(winograd) => return winograd.run(isa, grad, images, size, epilogue),
        };
        if self.shape.side == 1 && self.shape.stride == 1 && self.shape.padding == 0 {
            return gemm::run(isa, grad, &phases[0].matrix, epilogue);
        }
        for phase in phases {
            if reached_only && phase.windows.taps.is_empty() {
                continue;
            }
            let step = self.shape.stride;
            let part = [0, 1].map(|i| size[i].saturating_sub(phase.offset[i]).div_ceil(step));
            let to = Scattered { inner: *epilogue, offset: phase.offset, step, part, size };
            let from = Gather { x: grad, windows: &phase.windows, images, size: output, output: part };
            gemm::run(isa, &from, &phase.matrix, &to);
        }
    }
}

/// Brings a kernel's values into the order of windows: of each output a row, of each tap the inputs.
struct OfKernel<'a, T> {
    kernel: &'a [f32],
    shape: Shape,
    per_tap: usize,
    outputs: Range<usize>,
    rows: SharedTiles<'a, T>,
}

impl<T: Operand> Kernel for OfKernel<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { kernel, shape: Shape { inputs, side, .. }, per_tap, outputs, rows } = self;
        let taps = side * side;
        for o in outputs {
            let kernel = &kernel[o * inputs * taps..(o + 1) * inputs * taps];
            for first in (0..per_tap).step_by(LANES) {
                let room = (per_tap - first).min(LANES);
                for tap in 0..taps {
                    let values = of_inputs(kernel, taps, tap, first);
                    // SAFETY: outputs are shared out among the tasks.
                    unsafe { rows.store(s, o, tap * per_tap + first, room, s.load(&values)) };
                }
            }
        }
    }
}

/// A tap of an output's kernel `[inputs, taps]`, of sixteen inputs from `first` on; zeros beyond the last.
#[inline(always)]
fn of_inputs(kernel: &[f32], taps: usize, tap: usize, first: usize) -> [f32; LANES] {
    let own = &kernel[(first * taps).min(kernel.len())..((first + LANES) * taps).min(kernel.len())];
    let mut values = [0.0; LANES];
    for (value, of_input) in values.iter_mut().zip(own.chunks_exact(taps)) {
        *value = of_input[tap];
    }
    values
}

fn check_kernel(shape: Shape, kernel: &[f32]) {
    let Shape { inputs, outputs, side, .. } = shape;
    assert_eq!(kernel.len(), outputs * inputs * side * side, "kernel of {shape:?}");
}

fn check<T: Operand>(x: &Tiles<T>, images: usize, size: [usize; 2], channels: usize) {
    let expected = (images * size[0] * size[1], channels);
    assert_eq!((x.rows(), x.columns()), expected, "pixels and channels of {images} maps of {size:?}");
}

/// Windows as rows.
struct Gather<'a, T> {
    x: &'a Tiles<T>,
    windows: &'a Windows,
    images: usize,
    size: [usize; 2],
    output: [usize; 2],
}

impl<T: Operand> Source<T> for Gather<'_, T> {
    fn rows(&self) -> usize {
        self.images * self.output[0] * self.output[1]
    }

    fn depth(&self) -> usize {
        let taps = self.windows.taps.len();
        taps * per_tap::<T>(taps, self.x.columns())
    }

    #[inline(always)]
    fn pack<S: Simd>(&self, _s: S, row: usize, mut out: PackedRow<'_>) {
        let pixels = self.output[0] * self.output[1];
        let (image, pixel) = (row / pixels, row % pixels);
        let (y, x) = (pixel / self.output[1], pixel % self.output[1]);
        let step = self.windows.step;
        let per_tap = self.x.per_row();
        let [height, width] = self.size;
        for (t, [dy, dx]) in self.windows.taps.iter().enumerate() {
            let y = (y * step).wrapping_add_signed(*dy);
            let x = (x * step).wrapping_add_signed(*dx);
            if y < height && x < width {
                let from = (image * height + y) * width + x;
                for i in 0..per_tap {
                    out.line::<T>(t * per_tap + i).copy_from_slice(self.x.line(from, i));
                }
            } else {
                for i in 0..per_tap {
                    out.line::<T>(t * per_tap + i).fill(T::default());
                }
            }
        }
    }

    fn pieces(&self) -> Option<Pieces<'_, T>> {
        Pieces::new(self.x, self.windows.taps.len())
    }

    #[inline(always)]
    fn find(&self, row: usize, starts: &mut [[u32; TILE_ROWS]]) {
        let [height, width] = self.size;
        let pixels = self.output[0] * self.output[1];
        // Of each row its image's first pixel, and where in the image the window is.
        let (mut images, mut ys, mut xs) = ([0; TILE_ROWS], [0; TILE_ROWS], [0; TILE_ROWS]);
        let (mut image, mut y, mut x) =
            (row / pixels, row % pixels / self.output[1], row % pixels % self.output[1]);
        for r in 0..TILE_ROWS {
            images[r] = (image * height * width) as u32;
            ys[r] = (y * self.windows.step) as u32;
            xs[r] = (x * self.windows.step) as u32;
            x += 1;
            if x == self.output[1] {
                (x, y) = (0, y + 1);
            }
            if y == self.output[0] {
                (y, image) = (0, image + 1);
            }
        }
        // Rows that there are not are below every image.
        let count = <Self as Source<T>>::rows(self).saturating_sub(row).min(TILE_ROWS);
        ys[count..].fill(u32::MAX / 2);
        let (tall, per_row) = (TILE_ROWS as u32, self.x.per_row() as u32);
        for (starts, [dy, dx]) in starts.iter_mut().zip(&self.windows.taps) {
            for r in 0..TILE_ROWS {
                // Above and left of the image they wrap around, to beyond its far edges.
                let y = ys[r].wrapping_add(*dy as u32);
                let x = xs[r].wrapping_add(*dx as u32);
                let pixel = images[r].wrapping_add(y.wrapping_mul(width as u32)).wrapping_add(x);
                let within = y < height as u32 && x < width as u32;
                let line = (pixel / tall).wrapping_mul(tall * per_row) + pixel % tall;
                starts[r] = if within { line } else { NOWHERE };
            }
        }
    }
}

/// Pixels of a phase, put among all.
#[derive(Clone, Copy)]
struct Scattered<E> {
    inner: E,
    offset: [usize; 2],
    step: usize,
    part: [usize; 2],
    size: [usize; 2],
}

impl<E> Scattered<E> {
    #[inline(always)]
    fn row(&self, row: usize) -> usize {
        let pixels = self.part[0] * self.part[1];
        let (image, pixel) = (row / pixels, row % pixels);
        let y = pixel / self.part[1] * self.step + self.offset[0];
        let x = pixel % self.part[1] * self.step + self.offset[1];
        (image * self.size[0] + y) * self.size[1] + x
    }
}

impl<E: Epilogue> Epilogue for Scattered<E> {
    fn check(&self, _rows: usize, _columns: usize) {
        // The whole was checked before its phases run.
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, sums: [S::F; 2]) {
        // SAFETY: the caller's; the pixels of all phases are those that the inner epilogue was checked for, each
        // in one phase.
        unsafe { self.inner.put(s, self.row(row), column, count, sums) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::Store;
    use crate::testing::{Sweep, asks_once, assert_close, operands, sweep, wide};

    /// Windows that are packed even where products could read them in place, as they are for tile instructions.
    struct Packing<'a, T>(Gather<'a, T>);

    impl<T: Operand> Source<T> for Packing<'_, T> {
        fn rows(&self) -> usize {
            self.0.rows()
        }

        fn depth(&self) -> usize {
            self.0.depth()
        }

        #[inline(always)]
        fn pack<S: Simd>(&self, s: S, row: usize, out: PackedRow<'_>) {
            self.0.pack(s, row, out);
        }
    }

    struct Maps {
        shape: Shape,
        images: usize,
        size: [usize; 2],
    }

    impl Sweep for Maps {
        fn check<T: Operand>(&self, isa: Isa, _rounding: f64) {
            let &Self { shape, images, size: [h, w] } = self;
            let Shape { inputs, outputs, side, stride, padding } = shape;
            let what = format!("{isa:?} {shape:?} {images} {h}x{w}");
            let kernel: Vec<f32> =
                operands::<T>(outputs * inputs * side * side, 1).into_iter().map(Operand::to_f32).collect();
            let x = operands::<T>(images * h * w * inputs, 2);
            let [oh, ow] = shape.output([h, w]);
            let grad = operands::<T>(images * oh * ow * outputs, 3);
            let (wide_x, wide_grad) = (wide(&x), wide(&grad));
            let mut expected = vec![0.0; grad.len()];
            let mut back = vec![0.0; x.len()];
            for b in 0..images {
                for (oy, ox) in (0..oh * ow).map(|i| (i / ow, i % ow)) {
                    for (ky, kx) in (0..side * side).map(|i| (i / side, i % side)) {
                        let (y, x) = (oy * stride + ky, ox * stride + kx);
                        if y < padding || x < padding || y - padding >= h || x - padding >= w {
                            continue;
                        }
                        let from = ((b * h + y - padding) * w + x - padding) * inputs;
                        let to = ((b * oh + oy) * ow + ox) * outputs;
                        for (o, c) in (0..outputs * inputs).map(|i| (i / inputs, i % inputs)) {
                            let k = f64::from(kernel[((o * inputs + c) * side + ky) * side + kx]);
                            expected[to + o] += k * wide_x[from + c];
                            back[from + c] += k * wide_grad[to + o];
                        }
                    }
                }
            }
            let conv = Conv::<T>::windows(isa, shape, &kernel);
            let x = Tiles::from_rows(&x, inputs);
            let mut out = vec![9.0; expected.len()];
            conv.run(isa, &x, images, [h, w], &Store::new(&mut out, outputs));
            assert_close(&out, &expected, 1e-5, &what);
            asks_once(images * oh * ow, outputs, &what, |asked| conv.run(isa, &x, images, [h, w], asked));
            let mut packed = vec![9.0; expected.len()];
            let Form::Windows(windows, matrix) = &conv.form else { panic!("another form") };
            let windows = Gather { x: &x, windows, images, size: [h, w], output: [oh, ow] };
            gemm::run(isa, &Packing(windows), matrix, &Store::new(&mut packed, outputs));
            assert_eq!(packed, out, "{what}");
            let grad = Tiles::from_rows(&grad, outputs);
            let mut out = vec![9.0; back.len()];
            conv.transposed().run(isa, &grad, images, [h, w], false, &Store::new(&mut out, inputs));
            assert_close(&out, &back, 1e-5, &what);
            if T::GROUP == 1 && (side, stride, padding) == (3, 1, 1) {
                // Fewer products, which in f32 are as good.
                let conv = Conv { shape, form: Form::Squares(Winograd::<T>::new(isa, inputs, &kernel)) };
                let mut out = vec![9.0; expected.len()];
                conv.run(isa, &x, images, [h, w], &Store::new(&mut out, outputs));
                assert_close(&out, &expected, 1e-5, &what);
                let mut out = vec![9.0; back.len()];
                conv.transposed().run(isa, &grad, images, [h, w], false, &Store::new(&mut out, inputs));
                assert_close(&out, &back, 1e-5, &what);
            }
        }
    }

    #[test]
    fn kernels_of_any_geometry_agree_with_f64() {
        for (inputs, outputs, side, stride, padding, images, size) in [
            (1, 1, 1, 1, 0, 1, [1, 1]),
            (5, 7, 1, 2, 0, 2, [5, 6]),
            (33, 20, 3, 1, 1, 1, [6, 5]),
            (16, 33, 3, 2, 1, 2, [7, 8]),
            (4, 6, 3, 2, 1, 1, [4, 3]),
            (3, 8, 7, 2, 3, 1, [13, 10]),
            (8, 8, 4, 4, 0, 1, [9, 8]),
            // Three tiles of rows, whose pieces are multiplied in parts.
            (200, 3, 3, 1, 1, 1, [5, 7]),
            // Pieces of several lines, alone.
            (70, 5, 1, 2, 0, 2, [5, 4]),
        ] {
            let shape = Shape { inputs, outputs, side, stride, padding };
            sweep(&Maps { shape, images, size });
        }
    }

    /// The form is that of few products only where that pays.
    #[test]
    fn the_quickest_form_is_chosen() {
        struct Chosen;
        impl Sweep for Chosen {
            fn check<T: Operand>(&self, isa: Isa, _rounding: f64) {
                let shape = Shape { inputs: 33, outputs: 32, side: 3, stride: 1, padding: 1 };
                let squares = |shape: Shape| {
                    let kernel = vec![0.5; shape.outputs * shape.inputs * shape.side * shape.side];
                    let conv = Conv::<T>::new(isa, shape, &kernel);
                    let squares = matches!(conv.form, Form::Squares(_));
                    let backwards = matches!(conv.transposed().form, BackwardForm::Squares(_));
                    assert_eq!(squares, backwards, "{isa:?} {shape:?}");
                    squares
                };
                assert_eq!(squares(shape), isa.name() != "amx" || T::GROUP == 1, "{isa:?}");
                for shape in [
                    Shape { inputs: 31, ..shape },
                    Shape { outputs: 0, ..shape },
                    Shape { stride: 2, ..shape },
                    Shape { padding: 0, ..shape },
                    Shape { side: 1, padding: 0, ..shape },
                ] {
                    assert!(!squares(shape), "{isa:?} {shape:?}");
                }
            }
        }
        sweep(&Chosen);
    }

    /// Several blocks, the last of an odd number of tiles, on one thread and on three.
    #[test]
    #[cfg_attr(miri, ignore = "too long")]
    fn large_maps_agree_with_f64() {
        let shape = Shape { inputs: 64, outputs: 3, side: 3, stride: 1, padding: 1 };
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| sweep(&Maps { shape, images: 2, size: [81, 81] }));
        }
    }
}
