//! Kernels of 3 × 3 with fewer products: a square of four outputs from sixteen of them instead of thirty-six.
//!
//! This is Winograd's F(2 × 2, 3 × 3) as Lavin and Gray give it (*Fast algorithms for convolutional neural networks*, 2016). The
//! kernel `g` becomes `U = G g Gᵀ`, once where it never changes. The input is cut into squares `d` of 4 × 4 that overlap by two, and
//! `V = Bᵀ d B` has sixteen values of each channel: each of these places has a product of its own, `M = V U`, which sums over the
//! channels. The outputs are `Aᵀ M A`.
//!
//! ```text
//!      1  0 −1  0         1  0  0
//! Bᵀ = 0  1  1  0    G =  ½  ½  ½    Aᵀ = 1  1  1  0
//!      0 −1  1  0         ½ −½  ½         0  1 −1 −1
//!      0  1  0 −1         0  0  1
//! ```
//!
//! The input gradient is such a convolution with the kernel turned by half a turn. That exchanges the first and the last row of
//! `G g`, so its `U` is the same at other places.
//!
//! `U` and `V` are rounded to the operands' type. With values that do not depend on each other `V` has 4 times the variance of the
//! input, `U` 1 or ¾ of the kernel's along either axis, and an output sums nine places: 25/9 of the variance that it has. Where
//! rounding the kernel alone gives an error of `ε` in the mean square, as in bfloat16, where the input is rounded already, the two
//! so give `√2 · 5/3 · ε`, 2.4 of it; made-up values behind a ReLU give 2.0, whether neighbours are alike or not (measured).

use std::ops::Range;

use super::{Shape, of_inputs};
use crate::gemm::micro::Unit;
use crate::gemm::{Cut, Epilogue, GROUPS, Matrix, PANEL, TILE_ROWS, line};
use crate::isa::Kind;
use crate::parallel::ranges;
use crate::scratch::{self, Line, elements, elements_mut};
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::{Isa, Operand, SharedTiles, Tiles};

/// Side of a square of the input.
const SIDE: usize = 4;
/// Its values, each with a product of its own.
const PLACES: usize = SIDE * SIDE;
/// Side of the outputs that it gives.
const STEP: usize = 2;
/// Squares whose values are found and then multiplied. (Measured on Zen 4: half as many are 2 to 15 % slower with 64 to 256 channels,
/// and so are more, whose values do not stay in the second-level cache.)
const SQUARES: usize = 2 * TILE_ROWS;
/// Of them, those that are asked for during each place's product.
const SOON: usize = SQUARES / PLACES;
const _: () = assert!(SQUARES == SOON * PLACES);
/// Sums of a place, those of all squares and a line more, so that places are not all in the same few lines of the cache.
const SUMS: usize = SQUARES * PANEL + LANES;

/// Where a pixel outside the image begins.
const NOWHERE: usize = usize::MAX;

/// Lines of all squares' values at a place, and one more, for the same reason.
fn per_place(lines: usize) -> usize {
    lines * SQUARES + 1
}

/// A packed kernel.
#[derive(Debug)]
pub(super) struct Winograd<T> {
    /// Sixteen blocks below each other, a place each.
    matrix: Matrix<T>,
    inputs: usize,
}

impl<T: Operand> Winograd<T> {
    /// Whether it is quicker than windows on maps of 2 × 2 pixels and more (of 3 × 3 it takes 64 products for 81, of 1 × 1 it would
    /// take 16 for 9). Tile instructions multiply so fast that what comes before and after would not pay. (Measured on Zen 4, eight
    /// images, 64 to 512 channels of 56 × 56 to 7 × 7: with bfloat16 products 1.4 to 1.9 times as quick, in f32 1.4 to 2.0, as AVX2 1.0
    /// to 1.9.)
    pub(super) fn pays(isa: Isa, shape: Shape) -> bool {
        let Shape { inputs, outputs, side, stride, padding } = shape;
        let multiplied = isa.kind() < Kind::Amx || T::GROUP == 1;
        (side, stride, padding) == (3, 1, 1) && inputs.min(outputs) >= 32 && multiplied
    }

    /// Of a kernel `[outputs, inputs, 3, 3]`.
    pub(super) fn new(isa: Isa, inputs: usize, kernel: &[f32]) -> Self {
        let per_place = inputs.next_multiple_of(line::<T>());
        let outputs = kernel.len() / (9 * inputs);
        let mut rows = Tiles::<T>::new(outputs, PLACES * per_place);
        let shared = rows.share();
        ranges(outputs, 1, 4, |outputs| {
            dispatch(isa, OfKernel { kernel, inputs, per_place, outputs, rows: shared });
        });
        Self { matrix: Matrix::of_columns(&rows), inputs }
    }

    /// The input gradient.
    pub(super) fn transposed(&self) -> Self {
        let outputs = self.matrix.columns();
        let turned = |i: usize| [3, 1, 2, 0][i];
        let place = |p: usize| turned(p / SIDE) * SIDE + turned(p % SIDE);
        let lines: Vec<_> = (0..PLACES).map(|p| place(p) * self.lines()).collect();
        let per_place = outputs.next_multiple_of(line::<T>());
        let matrix = Matrix::of_blocks(&self.matrix.to_columns(), &lines, per_place, self.inputs);
        Self { matrix, inputs: outputs }
    }

    /// Of a place.
    fn lines(&self) -> usize {
        self.matrix.lines() / PLACES
    }

    /// Convolve `images` maps of `size`, whose pixels are `x`, and give the output's pixels to an epilogue.
    pub(super) fn run<E: Epilogue>(
        &self,
        isa: Isa,
        x: &Tiles<T>,
        images: usize,
        size: [usize; 2],
        epilogue: &E,
    ) {
        let columns = self.matrix.columns();
        epilogue.check(images * size[0] * size[1], columns);
        let squares = Squares { grid: size.map(|side| side.div_ceil(STEP)), size };
        let count = images * squares.of_image();
        if count == 0 || columns == 0 {
            return;
        }
        let tile = PLACES * self.lines() * TILE_ROWS * size_of::<Line>();
        let cut = Cut::new(count.div_ceil(TILE_ROWS), tile.max(1), false, self.matrix.panels());
        cut.run(|tiles, panels| {
            let own = tiles.start * TILE_ROWS..(tiles.end * TILE_ROWS).min(count);
            let room = [PLACES * per_place(self.lines()), PLACES * SUMS / LANES];
            scratch::with(room, |[values, sums]| {
                let sums = elements_mut(sums);
                dispatch(isa, Task { x, of: self, squares, own, panels, epilogue, values, sums });
            });
        });
    }
}

/// Where squares are.
#[derive(Clone, Copy)]
struct Squares {
    /// Rows and columns of them in an image.
    grid: [usize; 2],
    /// The image's.
    size: [usize; 2],
}

impl Squares {
    fn of_image(self) -> usize {
        self.grid[0] * self.grid[1]
    }

    /// The first pixel of a square's image, and where in the image the square's outputs begin.
    #[inline(always)]
    fn find(self, square: usize) -> (usize, [usize; 2]) {
        let (image, square) = (square / self.of_image(), square % self.of_image());
        let output = [square / self.grid[1] * STEP, square % self.grid[1] * STEP];
        (image * self.size[0] * self.size[1], output)
    }

    /// Ask for the pixels of a square that those before it do not have.
    #[inline(always)]
    fn expect<T: Operand, S: Simd>(self, s: S, x: &Tiles<T>, square: usize) {
        let (image, [top, left]) = self.find(square);
        for (y, column) in [(0, left + 1), (0, left + 2), (1, left + 1), (1, left + 2)] {
            x.expect_row(s, image + (top + 1 + y) * self.size[1] + column);
        }
    }
}

struct Task<'a, T, E> {
    x: &'a Tiles<T>,
    of: &'a Winograd<T>,
    squares: Squares,
    /// Those to do.
    own: Range<usize>,
    panels: Range<usize>,
    epilogue: &'a E,
    /// Of each place, for some squares.
    values: &'a mut [Line],
    /// Of each place, for these and a panel.
    sums: &'a mut [f32],
}

impl<T: Operand, E: Epilogue> Kernel for Task<'_, T, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, of, squares, own, panels, values, sums, .. } = self;
        let (epilogue, lines, columns) = (*self.epilogue, of.lines(), of.matrix.columns());
        let unit = Unit::<T, S>::new(s);
        for first in own.clone().step_by(SQUARES) {
            let here = (own.end - first).min(SQUARES);
            let mut found = [(0, [0; 2]); SQUARES];
            for (r, found) in found[..here].iter_mut().enumerate() {
                *found = squares.find(first + r);
                spread(s, x, squares.size, *found, values, r);
            }
            // One tile of them or two.
            let used = lines * here.next_multiple_of(TILE_ROWS);
            for panel in panels.clone() {
                let column = panel * PANEL;
                let b = of.matrix.panel(panel);
                for place in 0..PLACES {
                    let soon = place * SOON;
                    for (image, [top, left]) in found[..here].iter().skip(soon).take(SOON).copied() {
                        for y in top..(top + STEP).min(squares.size[0]) {
                            let count = (squares.size[1] - left).min(STEP);
                            epilogue.expect(s, image + y * squares.size[1] + left, count, column);
                        }
                    }
                    if panel == panels.start {
                        let next = first + SQUARES + soon;
                        for square in next..(next + SOON).min(own.end) {
                            squares.expect(s, x, square);
                        }
                    }
                    let values = &values[place * per_place(lines)..][..used];
                    let b = &b[place * lines * 2 * GROUPS..(place + 1) * lines * 2 * GROUPS];
                    let sums = &mut sums[place * SUMS..(place + 1) * SUMS];
                    unit.add_part::<false>(values, lines, 0..lines, b, sums, PANEL, true, &|_| ());
                }
                let count = (columns - column).min(PANEL);
                for (r, (image, [top, left])) in found[..here].iter().copied().enumerate() {
                    let sums = &sums[r * PANEL..];
                    let [low, high] = [outputs(s, sums), outputs(s, &sums[LANES..])];
                    for (y, x) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                        if top + y >= squares.size[0] || left + x >= squares.size[1] {
                            continue;
                        }
                        let row = image + (top + y) * squares.size[1] + left + x;
                        let sums = [low[y][x], high[y][x]];
                        // SAFETY: `run` checked the epilogue for all pixels and columns; each pixel is of one square, and
                        // squares and panels are shared out among the tasks.
                        unsafe {
                            if count == PANEL {
                                // The usual case, with the count known to the compiler.
                                epilogue.put(s, row, column, PANEL, sums);
                            } else {
                                epilogue.put(s, row, column, count, sums);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `V` of a square that was [found](Squares::find), as row `r` of each place.
#[inline(always)]
fn spread<T: Operand, S: Simd>(
    s: S,
    x: &Tiles<T>,
    size: [usize; 2],
    (image, [top, left]): (usize, [usize; 2]),
    values: &mut [Line],
    r: usize,
) {
    let lines = x.per_row();
    // Where its pixels begin; zeros surround the image.
    let mut starts = [[NOWHERE; SIDE]; SIDE];
    for y in 0..SIDE {
        for x in 0..SIDE {
            let (row, column) = ((top + y).wrapping_sub(1), (left + x).wrapping_sub(1));
            if row < size[0] && column < size[1] {
                let pixel = image + row * size[1] + column;
                starts[y][x] = pixel / TILE_ROWS * lines * TILE_ROWS + pixel % TILE_ROWS;
            }
        }
    }
    let all = x.all_lines();
    let to = r / TILE_ROWS * lines * TILE_ROWS + r % TILE_ROWS;
    for l in 0..lines {
        let mut pixels = [[&Line::ZERO; SIDE]; SIDE];
        for (pixels, starts) in pixels.iter_mut().zip(&starts) {
            for (pixel, start) in pixels.iter_mut().zip(starts) {
                if *start != NOWHERE {
                    *pixel = &all[start + l * TILE_ROWS];
                }
            }
        }
        for half in (0..line::<T>()).step_by(LANES) {
            let mut d = [[s.splat(0.0); SIDE]; SIDE];
            for (d, pixels) in d.iter_mut().zip(&pixels) {
                for (d, pixel) in d.iter_mut().zip(pixels) {
                    *d = T::load(s, &elements(std::slice::from_ref(*pixel))[half..half + LANES]);
                }
            }
            for x in 0..SIDE {
                let column = of_input(s, [d[0][x], d[1][x], d[2][x], d[3][x]]);
                for y in 0..SIDE {
                    d[y][x] = column[y];
                }
            }
            for y in 0..SIDE {
                let row = of_input(s, d[y]);
                for x in 0..SIDE {
                    let out = &mut values[(y * SIDE + x) * per_place(lines) + to + l * TILE_ROWS];
                    let out = &mut elements_mut::<T>(std::slice::from_mut(out))[half..half + LANES];
                    T::store(s, out, row[x]);
                }
            }
        }
    }
}

/// Spreads kernels: of each output a row, of each place the inputs.
struct OfKernel<'a, T> {
    kernel: &'a [f32],
    inputs: usize,
    per_place: usize,
    outputs: Range<usize>,
    rows: SharedTiles<'a, T>,
}

impl<T: Operand> Kernel for OfKernel<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { kernel, inputs, per_place, outputs, rows } = self;
        for o in outputs {
            let kernel = &kernel[o * inputs * 9..(o + 1) * inputs * 9];
            for first in (0..per_place).step_by(LANES) {
                // Without closures around instructions: those would be compiled without them.
                let mut g = [[s.splat(0.0); SIDE]; 3];
                for (y, g) in g.iter_mut().enumerate() {
                    let mut row = [s.splat(0.0); 3];
                    for (x, tap) in row.iter_mut().enumerate() {
                        *tap = s.load(&of_inputs(kernel, 9, 3 * y + x, first));
                    }
                    *g = of_kernel(s, row);
                }
                for x in 0..SIDE {
                    let u = of_kernel(s, [g[0][x], g[1][x], g[2][x]]);
                    for (y, u) in u.iter().enumerate() {
                        let column = (y * SIDE + x) * per_place + first;
                        // SAFETY: outputs are shared out among the tasks.
                        unsafe { rows.store(s, o, column, LANES, *u) };
                    }
                }
            }
        }
    }
}

/// `G g` of three values.
#[inline(always)]
fn of_kernel<S: Simd>(s: S, [a, b, c]: [S::F; 3]) -> [S::F; SIDE] {
    let half = s.splat(0.5);
    let (ends, middle) = (s.mul(half, s.add(a, c)), s.mul(half, b));
    [a, s.add(ends, middle), s.sub(ends, middle), c]
}

/// `Bᵀ d` of four values.
#[inline(always)]
fn of_input<S: Simd>(s: S, [a, b, c, d]: [S::F; SIDE]) -> [S::F; SIDE] {
    [s.sub(a, c), s.add(b, c), s.sub(c, b), s.sub(b, d)]
}

/// `Aᵀ m` of four values.
#[inline(always)]
fn of_sums<S: Simd>(s: S, [a, b, c, d]: [S::F; SIDE]) -> [S::F; STEP] {
    [s.add(a, s.add(b, c)), s.sub(s.sub(b, c), d)]
}

/// `Aᵀ M A` of each place's first sixteen sums.
#[inline(always)]
fn outputs<S: Simd>(s: S, sums: &[f32]) -> [[S::F; STEP]; STEP] {
    let mut rows = [[s.splat(0.0); SIDE]; STEP];
    for x in 0..SIDE {
        let mut column = [s.splat(0.0); SIDE];
        for (y, m) in column.iter_mut().enumerate() {
            let at = (y * SIDE + x) * SUMS;
            *m = s.load(&sums[at..at + LANES]);
        }
        [rows[0][x], rows[1][x]] = of_sums(s, column);
    }
    [of_sums(s, rows[0]), of_sums(s, rows[1])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::Conv;
    use crate::gemm::{Add, Store};
    use crate::testing::{Sweep, assert_close, operands, sweep, wide};

    struct Maps {
        inputs: usize,
        outputs: usize,
        images: usize,
        size: [usize; 2],
    }

    fn rounded<T: Operand>(v: f32) -> f64 {
        f64::from(T::from_f32(v).to_f32())
    }

    /// `f` of the rows of a square matrix, and then of the columns that they make.
    fn both<const N: usize, const M: usize>(
        a: [[f64; N]; N],
        f: impl Fn([f64; N]) -> [f64; M],
    ) -> [[f64; M]; M] {
        let rows = a.map(&f);
        let columns = std::array::from_fn::<_, M, _>(|x| f(rows.map(|row| row[x])));
        std::array::from_fn(|y| columns.map(|column| column[y]))
    }

    impl Maps {
        /// The convolution in f64 but for the rounding of `U` and `V`, with a kernel `[outputs, inputs, 3, 3]`.
        fn expected<T: Operand>(&self, kernel: &[f32], x: &[T]) -> Vec<f64> {
            let &Self { inputs, outputs, images, size: [h, w] } = self;
            let of_input = |[a, b, c, d]: [f64; 4]| [a - c, b + c, c - b, b - d];
            let of_kernel = |[a, b, c]: [f64; 3]| [a, 0.5 * (a + b + c), 0.5 * (a - b + c), c];
            let of_sums = |[a, b, c, d]: [f64; 4]| [a + b + c, b - c - d];
            let round = |all: [[f64; 4]; 4]| all.map(|row| row.map(|v| rounded::<T>(v as f32)));
            let u: Vec<_> = kernel
                .chunks_exact(9)
                .map(|g| {
                    let g = std::array::from_fn(|y| std::array::from_fn(|x| f64::from(g[y * 3 + x])));
                    // (The three rows of four values that come first make no square.)
                    let rows: [[f64; 4]; 3] = <[[f64; 3]; 3]>::map(g, of_kernel);
                    let columns: [[f64; 4]; 4] =
                        std::array::from_fn(|x| of_kernel([rows[0][x], rows[1][x], rows[2][x]]));
                    round(std::array::from_fn(|y| columns.map(|column| column[y])))
                })
                .collect();
            let x = wide(x);
            let mut out = vec![0.0; images * h * w * outputs];
            let grid = h.div_ceil(2) * w.div_ceil(2);
            for (image, i) in (0..images * grid).map(|i| (i / grid, i % grid)) {
                let (top, left) = (i / w.div_ceil(2) * 2, i % w.div_ceil(2) * 2);
                let v: Vec<_> = (0..inputs)
                    .map(|c| {
                        let at = |y: usize, x_at: usize| {
                            let (y, x_at) = ((top + y).wrapping_sub(1), (left + x_at).wrapping_sub(1));
                            if y < h && x_at < w { x[((image * h + y) * w + x_at) * inputs + c] } else { 0.0 }
                        };
                        let d: [[f64; 4]; 4] = std::array::from_fn(|y| std::array::from_fn(|x| at(y, x)));
                        round(both(d, of_input))
                    })
                    .collect();
                for o in 0..outputs {
                    let mut m = [[0.0; 4]; 4];
                    for (v, u) in v.iter().zip(&u[o * inputs..(o + 1) * inputs]) {
                        for (y, x) in (0..16).map(|p| (p / 4, p % 4)) {
                            m[y][x] += v[y][x] * u[y][x];
                        }
                    }
                    let square = both(m, of_sums);
                    for (y, x) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                        if top + y < h && left + x < w {
                            out[((image * h + top + y) * w + left + x) * outputs + o] = square[y][x];
                        }
                    }
                }
            }
            out
        }
    }

    impl Sweep for Maps {
        fn check<T: Operand>(&self, isa: Isa, _rounding: f64) {
            let &Self { inputs, outputs, images, size: [h, w] } = self;
            let what = format!("{isa:?} {inputs} to {outputs}, {images} of {h}x{w}");
            let kernel: Vec<f32> =
                operands::<T>(outputs * inputs * 9, 1).into_iter().map(Operand::to_f32).collect();
            let winograd = Winograd::<T>::new(isa, inputs, &kernel);
            let x = operands::<T>(images * h * w * inputs, 2);
            let mut out = vec![9.0; images * h * w * outputs];
            let tiles = Tiles::from_rows(&x, inputs);
            winograd.run(isa, &tiles, images, [h, w], &Store::new(&mut out, outputs));
            assert_close(&out, &self.expected(&kernel, &x), 1e-5, &what);
            // Back: the kernel's inputs and outputs exchanged, turned by half a turn.
            let mut turned = vec![0.0; kernel.len()];
            for (i, v) in kernel.iter().enumerate() {
                let (o, c, tap) = (i / (9 * inputs), i / 9 % inputs, i % 9);
                turned[(c * outputs + o) * 9 + 8 - tap] = *v;
            }
            let grad = operands::<T>(images * h * w * outputs, 3);
            let mut back = vec![9.0; x.len()];
            let tiles = Tiles::from_rows(&grad, outputs);
            winograd.transposed().run(isa, &tiles, images, [h, w], &Store::new(&mut back, inputs));
            let backwards = Maps { inputs: outputs, outputs: inputs, ..*self };
            assert_close(&back, &backwards.expected(&turned, &grad), 1e-5, &what);
        }
    }

    #[test]
    fn squares_agree_with_f64() {
        for (inputs, outputs, images, size) in [
            (1, 1, 1, [1, 1]),
            (5, 7, 2, [2, 3]),
            (33, 20, 1, [6, 5]),
            (16, 34, 3, [5, 4]),
            (40, 3, 1, [1, 8]),
            // More squares than are multiplied at once, the last few of them one tile.
            (3, 40, 1, [11, 13]),
            (3, 4, 0, [6, 6]),
            (3, 4, 2, [0, 6]),
        ] {
            sweep(&Maps { inputs, outputs, images, size });
        }
    }

    /// Several tasks, of rows or of panels, on one thread and on three: the same, and each output once.
    #[test]
    #[cfg_attr(miri, ignore = "too long")]
    fn tasks_miss_nothing() {
        struct Once<'a>(&'a Maps);
        impl Sweep for Once<'_> {
            fn check<T: Operand>(&self, isa: Isa, _rounding: f64) {
                let &Maps { inputs, outputs, images, size: [h, w] } = self.0;
                let kernel: Vec<f32> =
                    operands::<T>(outputs * inputs * 9, 1).into_iter().map(Operand::to_f32).collect();
                let winograd = Winograd::<T>::new(isa, inputs, &kernel);
                let x = operands::<T>(images * h * w * inputs, 2);
                let tiles = Tiles::from_rows(&x, inputs);
                let [one, three] = [1, 3].map(|threads| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let mut out = vec![0.0; images * h * w * outputs];
                    pool.install(|| {
                        winograd.run(isa, &tiles, images, [h, w], &Add::new(&mut out, outputs));
                    });
                    out
                });
                assert_close(&one, &self.0.expected(&kernel, &x), 1e-5, &format!("{isa:?}"));
                assert_eq!(one, three, "{isa:?}");
            }
        }
        sweep(&Once(&Maps { inputs: 64, outputs: 3, images: 2, size: [41, 40] }));
        sweep(&Once(&Maps { inputs: 32, outputs: 200, images: 1, size: [7, 7] }));
    }

    /// Against the kernel and the input as they are, behind a ReLU, the error in the mean square is a rounding's, some 1e-7, in f32;
    /// in bfloat16 that of rounding the kernel alone, `ε`, and here twice of it.
    #[test]
    #[cfg_attr(miri, ignore = "too long")]
    fn fewer_products_double_the_error() {
        struct Errors;
        impl Sweep for Errors {
            fn check<T: Operand>(&self, isa: Isa, _rounding: f64) {
                let (inputs, outputs, size) = (64, 32, [8, 8]);
                let shape = Shape { inputs, outputs, side: 3, stride: 1, padding: 1 };
                let kernel = crate::testing::values(outputs * inputs * 9, 1);
                let x: Vec<crate::bf16> = operands(64 * inputs, 2);
                let x: Vec<f32> = x.iter().map(|v| v.to_f32().max(0.0)).collect();
                let squares = crate::conv::Form::Squares(Winograd::new(isa, inputs, &kernel));
                let [direct, winograd] =
                    [Conv::<T>::windows(isa, shape, &kernel), Conv { shape, form: squares }].map(|conv| {
                        let tiles = Tiles::rounded(isa, &x, &[], &[], inputs);
                        let mut out = vec![0.0; 64 * outputs];
                        conv.run(isa, &tiles, 1, size, &Store::new(&mut out, outputs));
                        out
                    });
                let exact = Conv::<f32>::windows(Isa::best(), shape, &kernel);
                let mut expected = vec![0.0; 64 * outputs];
                let tiles = Tiles::rounded(isa, &x, &[], &[], inputs);
                exact.run(Isa::best(), &tiles, 1, size, &Store::new(&mut expected, outputs));
                let norm =
                    |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
                let error = |found: &[f32]| {
                    norm(&mut found.iter().zip(&expected).map(|(f, e)| f - e))
                        / norm(&mut expected.iter().copied())
                };
                let (direct, winograd) = (error(&direct), error(&winograd));
                if T::GROUP == 1 {
                    assert!(winograd < 1e-6, "{isa:?} {winograd}");
                } else {
                    let ratio = winograd / direct;
                    assert!((1.5..2.4).contains(&ratio), "{isa:?} {winograd} of {direct}");
                    assert!(winograd < 4e-3, "{isa:?} {winograd}");
                }
            }
        }
        sweep(&Errors);
    }
}
