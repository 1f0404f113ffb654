//! Gradients of kernels: products of two maps' pixels, summed over all of them.
//!
//! `out[o, c, tap] = Σ grad[p, o] · x[p + tap, c]`, over the pixels `p` of a convolution's output. Both maps are
//! rearranged a block of pixels at a time into groups along the summed axis, so that a tile of sums (eight outputs, 32
//! inputs) stays in registers while the block's pixels pass.
//!
//! How the work is cut depends on the sizes alone, and so does the order of sums: the number of threads changes nothing.

use std::ops::Range;

use rayon::prelude::*;

use crate::conv::Shape;
use crate::gemm::PANEL;
use crate::scratch::{self, Line};
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::{Isa, Operand, Tiles};

/// Pixels whose products are summed in registers before they join the total: so many that a panel of them stays in the
/// first-level cache; and a total of hundreds of thousands loses less when it is summed in steps.
const BLOCK: usize = 256;
/// Outputs whose sums are held in registers at once, two vectors each; half as many, one each, where registers are not wide.
const ROWS: usize = 8;
/// Outputs of a task. A block of them stays in the second-level cache while the taps pass, with the sums.
const OUTPUTS: usize = 256;
/// Units, a tap of a panel of inputs each, of a task: the more, the less often the gradient is rearranged.
const UNITS: usize = 9;
/// Tasks to come to, by sharing out pixels where there are too few others.
const TASKS: usize = 32;

/// The gradient `[outputs, inputs, side, side]` of a convolution's kernel: `x` are the pixels of `images` maps of `size`,
/// `grad` is the gradient of the output's.
///
/// # Panics
/// The sizes do not fit each other.
pub fn kernel_gradient<T: Operand>(
    isa: Isa,
    shape: Shape,
    x: &Tiles<T>,
    grad: &Tiles<T>,
    images: usize,
    size: [usize; 2],
    out: &mut [f32],
) {
    let Shape { inputs, outputs, side, .. } = shape;
    let (output, taps) = (shape.output(size), side * side);
    let rows = images * output[0] * output[1];
    assert_eq!((x.rows(), x.columns()), (images * size[0] * size[1], inputs), "pixels of {images} maps");
    assert_eq!((grad.rows(), grad.columns()), (rows, outputs), "gradients of {images} maps");
    assert_eq!(out.len(), outputs * inputs * taps, "the gradient of {shape:?}");
    if rows == 0 || out.is_empty() {
        return out.fill(0.0);
    }
    let (all_units, blocks) = (inputs.div_ceil(PANEL) * taps, rows.div_ceil(BLOCK));
    let [units, parts] = [all_units.div_ceil(UNITS), outputs.div_ceil(OUTPUTS)];
    let segments = TASKS.div_ceil(units * parts).min(blocks);
    let strips = outputs.min(OUTPUTS).div_ceil(ROWS);
    let held = UNITS.min(all_units) * strips * ROWS * PANEL;
    let mut sums = vec![0.0_f32; segments * units * parts * held];
    sums.par_chunks_mut(held).with_max_len(1).enumerate().for_each(|(i, sums)| {
        let (segment, part, unit) = (i / parts / units, i / units % parts, i % units);
        let task = Task {
            shape,
            x,
            grad,
            size,
            output,
            rows,
            blocks: blocks * segment / segments..blocks * (segment + 1) / segments,
            units: unit * UNITS..((unit + 1) * UNITS).min(all_units),
            outputs: part * OUTPUTS..((part + 1) * OUTPUTS).min(outputs),
            sums,
            panel: &mut [],
            strips: &mut [],
        };
        let groups = BLOCK / T::GROUP;
        scratch::with([2 * groups, strips * groups / 2], |[panel, strips]| {
            dispatch(isa, Task { panel, strips, ..task });
        });
    });
    let segment = parts * units * held;
    out.par_chunks_mut(inputs * taps).enumerate().for_each(|(o, out)| {
        let (part, row) = (o / OUTPUTS, o % OUTPUTS);
        // Where a task's outputs are fewer, so are its strips, but not the room it has.
        let own = (outputs - part * OUTPUTS).min(OUTPUTS).div_ceil(ROWS);
        for unit in 0..all_units {
            let (first, tap) = (unit / taps * PANEL, unit % taps);
            let task = part * units + unit / UNITS;
            let from = task * held + (unit % UNITS * own * ROWS + row) * PANEL;
            // Its segments' sums, in their order.
            let mut totals = [0.0; PANEL];
            for at in (from..sums.len()).step_by(segment) {
                for (total, sum) in totals.iter_mut().zip(&sums[at..at + PANEL]) {
                    *total += sum;
                }
            }
            for (out, total) in out.chunks_exact_mut(taps).skip(first).zip(totals) {
                out[tap] = total;
            }
        }
    });
}

struct Task<'a, T> {
    shape: Shape,
    x: &'a Tiles<T>,
    grad: &'a Tiles<T>,
    size: [usize; 2],
    output: [usize; 2],
    rows: usize,
    blocks: Range<usize>,
    units: Range<usize>,
    outputs: Range<usize>,
    /// `[units, strips, ROWS, PANEL]`
    sums: &'a mut [f32],
    /// A unit's inputs of a block, two lines a group.
    panel: &'a mut [Line],
    /// The gradients of a block, for each eight outputs half a line a group.
    strips: &'a mut [Line],
}

/// Where the windows of a block's pixels begin in the input.
#[derive(Clone, Copy)]
struct Corner {
    /// The image's first row of `x`.
    image: usize,
    y: isize,
    x: isize,
}

impl<T: Operand> Kernel for Task<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { shape, x, grad, size, output, rows, blocks, units, outputs, sums, panel, strips } = self;
        let taps = shape.side * shape.side;
        let own = outputs.len().div_ceil(ROWS);
        let mut corners = [Corner { image: 0, y: 0, x: 0 }; BLOCK];
        let mut met = [None; BLOCK];
        for block in blocks {
            let pixels = block * BLOCK..rows.min((block + 1) * BLOCK);
            // Whole lines of the gradient: two groups each.
            let groups = pixels.len().div_ceil(T::GROUP).next_multiple_of(2);
            pack_strips(grad, &pixels, &outputs, groups, strips);
            let corners = &mut corners[..pixels.len()];
            find(shape, output, size, pixels.start, corners);
            for (unit, sums) in units.clone().zip(sums.chunks_exact_mut(own * ROWS * PANEL)) {
                let (first, tap) = (unit / taps * PANEL, unit % taps);
                let tap = [(tap / shape.side) as isize, (tap % shape.side) as isize];
                for (met, corner) in met.iter_mut().zip(&*corners) {
                    *met = corner.meet(tap, size);
                }
                pack_panel(x, &met[..corners.len()], first, groups, panel);
                let strips = strips.chunks_exact(groups / 2).take(own);
                for (strip, sums) in strips.zip(sums.chunks_exact_mut(ROWS * PANEL)) {
                    add_products::<T, S>(s, strip, &panel[..2 * groups], sums);
                }
            }
        }
    }
}

/// The corners of a block's windows, from pixel `first` of the output on.
#[inline(always)]
fn find(shape: Shape, output: [usize; 2], size: [usize; 2], first: usize, corners: &mut [Corner]) {
    let [height, width] = output;
    let (image, pixel) = (first / (height * width), first % (height * width));
    let (mut image, mut y, mut x) = (image, pixel / width, pixel % width);
    let at = |i: usize| (i * shape.stride) as isize - shape.padding as isize;
    for corner in corners {
        *corner = Corner { image: image * size[0] * size[1], y: at(y), x: at(x) };
        x += 1;
        if x == width {
            (x, y) = (0, y + 1);
        }
        if y == height {
            (y, image) = (0, image + 1);
        }
    }
}

impl Corner {
    /// The row of the pixel that a tap meets; none in the padding.
    #[inline(always)]
    fn meet(self, tap: [isize; 2], size: [usize; 2]) -> Option<usize> {
        // Below zero they become larger than any size.
        let (y, x) = ((self.y + tap[0]) as usize, (self.x + tap[1]) as usize);
        (y < size[0] && x < size[1]).then(|| self.image + y * size[1] + x)
    }
}

/// The gradients of some pixels in groups of pixels, eight outputs of two groups a line.
#[inline(always)]
fn pack_strips<T: Operand>(
    grad: &Tiles<T>,
    pixels: &Range<usize>,
    outputs: &Range<usize>,
    groups: usize,
    strips: &mut [Line],
) {
    let zeros = [T::default(); LANES];
    let half = groups / 2;
    for (i, column) in outputs.clone().step_by(LANES).enumerate() {
        let has_second = column + ROWS < outputs.end;
        for g in 0..groups {
            let row = |k: usize| {
                let pixel = pixels.start + g * T::GROUP + k;
                if pixel < pixels.end { grad.sixteen(pixel, 0, column) } else { &zeros }
            };
            let mut both = [0; LANES];
            T::zip([row(0), row(T::GROUP - 1)], &mut both);
            let (at, lanes) = (2 * i * half + g / 2, g % 2 * ROWS..g % 2 * ROWS + ROWS);
            strips[at].0[lanes.clone()].copy_from_slice(&both[..ROWS]);
            if has_second {
                strips[at + half].0[lanes].copy_from_slice(&both[ROWS..]);
            }
        }
    }
}

/// The 32 inputs from `first` on of the pixels that a tap met, in groups of pixels.
#[inline(always)]
fn pack_panel<T: Operand>(
    x: &Tiles<T>,
    met: &[Option<usize>],
    first: usize,
    groups: usize,
    panel: &mut [Line],
) {
    let zeros = [T::default(); LANES];
    let has_second = first + LANES < x.columns();
    for (g, lines) in panel.chunks_exact_mut(2).take(groups).enumerate() {
        let row = |k: usize| met.get(g * T::GROUP + k).copied().flatten();
        let rows = [row(0), row(T::GROUP - 1)];
        let at = |column: usize| rows.map(|row| row.map_or(&zeros, |row| x.sixteen(row, 0, column)));
        T::zip(at(first), &mut lines[0].0);
        if has_second {
            T::zip(at(first + LANES), &mut lines[1].0);
        } else {
            lines[1] = Line::ZERO;
        }
    }
}

/// Add the products of eight outputs with 32 inputs.
#[inline(always)]
fn add_products<T: Operand, S: Simd>(s: S, strip: &[Line], panel: &[Line], sums: &mut [f32]) {
    if S::WIDE {
        add_block::<T, S, ROWS, 2>(s, strip, panel, sums, [0, 0]);
    } else {
        for first in [[0, 0], [ROWS / 2, 0], [0, 1], [ROWS / 2, 1]] {
            add_block::<T, S, { ROWS / 2 }, 1>(s, strip, panel, sums, first);
        }
    }
}

/// The same of `R` outputs and `V` vectors of inputs from the `first` on.
#[inline(always)]
fn add_block<T: Operand, S: Simd, const R: usize, const V: usize>(
    s: S,
    strip: &[Line],
    panel: &[Line],
    sums: &mut [f32],
    [row, vector]: [usize; 2],
) {
    let mut totals = [[s.splat(0.0); V]; R];
    for (outputs, inputs) in strip.iter().zip(panel.as_chunks::<4>().0) {
        for (half, inputs) in inputs.as_chunks::<2>().0.iter().enumerate() {
            let mut groups = [s.splat_group(0); V];
            for (group, inputs) in groups.iter_mut().zip(&inputs[vector..]) {
                *group = s.load_groups(&inputs.0);
            }
            for (r, totals) in totals.iter_mut().enumerate() {
                let output = s.splat_group(outputs.0[half * ROWS + row + r]);
                for (total, group) in totals.iter_mut().zip(&groups) {
                    *total = T::dot(s, *total, output, *group);
                }
            }
        }
    }
    for (sums, totals) in sums.as_chunks_mut::<PANEL>().0[row..].iter_mut().zip(&totals) {
        for (sums, total) in sums.chunks_exact_mut(LANES).skip(vector).zip(totals) {
            let total = s.add(s.load(sums), *total);
            s.store(sums, total);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Sweep, assert_close, operands, sweep, wide};

    struct Maps {
        shape: Shape,
        images: usize,
        size: [usize; 2],
    }

    impl Sweep for Maps {
        fn check<T: Operand>(&self, isa: Isa, _rounding: f64) {
            let &Self { shape, images, size: [h, w] } = self;
            let Shape { inputs, outputs, side, stride, padding } = shape;
            let [oh, ow] = shape.output([h, w]);
            let x = operands::<T>(images * h * w * inputs, 1);
            let grad = operands::<T>(images * oh * ow * outputs, 2);
            let (wide_x, wide_grad) = (wide(&x), wide(&grad));
            let mut expected = vec![0.0; outputs * inputs * side * side];
            for (b, oy, ox) in (0..images * oh * ow).map(|i| (i / (oh * ow), i / ow % oh, i % ow)) {
                for (ky, kx) in (0..side * side).map(|i| (i / side, i % side)) {
                    let (y, x) = (oy * stride + ky, ox * stride + kx);
                    if y < padding || x < padding || y - padding >= h || x - padding >= w {
                        continue;
                    }
                    let from = ((b * h + y - padding) * w + x - padding) * inputs;
                    let to = ((b * oh + oy) * ow + ox) * outputs;
                    for (o, c) in (0..outputs * inputs).map(|i| (i / inputs, i % inputs)) {
                        expected[((o * inputs + c) * side + ky) * side + kx] +=
                            wide_grad[to + o] * wide_x[from + c];
                    }
                }
            }
            let (x, grad) = (Tiles::from_rows(&x, inputs), Tiles::from_rows(&grad, outputs));
            let mut out = vec![9.0_f32; expected.len()];
            kernel_gradient(isa, shape, &x, &grad, images, [h, w], &mut out);
            assert_close(&out, &expected, 1e-5, &format!("{isa:?} {shape:?} {images} {h}x{w}"));
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
        ] {
            let shape = Shape { inputs, outputs, side, stride, padding };
            sweep(&Maps { shape, images, size });
        }
        // More blocks of pixels than one, and more outputs than a task has.
        if !cfg!(miri) {
            let shape = Shape { inputs: 40, outputs: 267, side: 1, stride: 1, padding: 0 };
            sweep(&Maps { shape, images: 3, size: [15, 20] });
        }
    }

    /// Threads share out tasks, and their number is nobody's business.
    #[test]
    #[cfg_attr(miri, ignore = "too long")]
    fn gradients_do_not_depend_on_threads() {
        let shape = Shape { inputs: 20, outputs: 12, side: 3, stride: 1, padding: 1 };
        let x = Tiles::<half::bf16>::from_rows(&operands(2 * 400 * 20, 1), 20);
        let grad = Tiles::from_rows(&operands(2 * 400 * 12, 2), 12);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut out = vec![9.0; 20 * 12 * 9];
            let of = |out: &mut [f32]| kernel_gradient(Isa::best(), shape, &x, &grad, 2, [20, 20], out);
            pool.install(|| of(&mut out));
            out
        };
        let alone = with(1);
        for threads in [2, 3, 5] {
            assert_eq!(with(threads), alone, "{threads} threads");
        }
    }
}
