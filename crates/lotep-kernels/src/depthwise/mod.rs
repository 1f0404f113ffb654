//! Depthwise convolutions: each channel of a feature map with a kernel of its own, forward and back to the input.
//!
//! Nothing is summed over channels, so there is no matrix product to make of it. Sixteen channels are a vector, and
//! a tap of the kernel is a multiply-add. A strip of the map's rows, of some channels, is brought into memory of its
//! own, sixteen channels after another, as f32 and with the padding around it: what runs over it meets no edges, whatever
//! the map is stored as. (A kernel of one tap takes the pixels where they lie.) The results go to an [`Epilogue`], as
//! those of products do.
//!
//! The input gradient is a convolution with the kernel turned around, or with a stride of `s` up to `s²` of them,
//! each for the input pixels of one phase (`y mod s`, `x mod s`) and with the taps that reach them: no zeros are
//! multiplied.

mod factors;
mod pixels;

use std::ops::Range;

use rayon::prelude::*;

use self::factors::Factors;
pub use self::pixels::{Pixels, Rows};
use crate::Isa;
use crate::gemm::{Epilogue, PANEL, TILE_ROWS};
use crate::parallel::ranges;
use crate::scratch::{self, Line, elements, elements_mut};
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Results whose sums are held in registers at once: two rows of eight, or of seven, which maps of 224 pixels are
/// halved down to. Enough to keep the multipliers busy while each waits for its last sum. Where registers are not wide, a
/// row of seven, or of half of eight.
const ROWS: usize = 2;
const WIDE: usize = 8;
const NARROW: usize = 7;
/// Vectors of a panel, which epilogues take at once.
const HALVES: usize = PANEL / LANES;
/// Bytes of a strip's input, as f32, to keep in the second-level cache while its channels pass by sixteen at a time.
const STRIP_BYTES: usize = 512 << 10;
/// Rows of results to aim at in a strip, where there are as many.
const HIGH: usize = 16;

/// A square kernel's geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Channels of the input and of the output.
    pub channels: usize,
    /// Side of the kernel.
    pub side: usize,
    /// Step between windows.
    pub stride: usize,
    /// Zeros around the input, fewer than the kernel's side.
    pub padding: usize,
}

impl Shape {
    /// Height and width of the output, given the input's.
    ///
    /// # Panics
    /// The kernel does not fit into the padded input.
    pub fn output(&self, size: [usize; 2]) -> [usize; 2] {
        size.map(|s| {
            let steps = (s + 2 * self.padding).checked_sub(self.side);
            steps.unwrap_or_else(|| panic!("{self:?} on a map of {size:?}")) / self.stride + 1
        })
    }
}

/// A frozen depthwise convolution, and its input gradient.
pub struct Depthwise {
    shape: Shape,
    forward: Pass,
    backward: Vec<Pass>,
}

impl std::fmt::Debug for Depthwise {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Depthwise").field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// Windows that slide over one map and give pixels of another.
struct Pass {
    /// A vector a tap, row by row, for each sixteen channels.
    weights: Vec<Line>,
    /// Height and width of the window.
    window: [usize; 2],
    /// Where the first window lies in the map that is read.
    begin: [isize; 2],
    /// From one window to the next.
    step: usize,
    /// Where the first result lies in the map that is written.
    first: [usize; 2],
    /// From one result to the next.
    spread: usize,
}

/// The kernel's taps in these rows and columns, packed.
fn pack(shape: Shape, kernel: &[f32], rows: &[usize], columns: &[usize]) -> Vec<Line> {
    let Shape { channels, side, .. } = shape;
    let value =
        |c: usize, y: usize, x: usize| if c < channels { kernel[(c * side + y) * side + x] } else { 0.0 };
    let mut weights = Vec::with_capacity(channels.div_ceil(LANES) * rows.len() * columns.len());
    for first in (0..channels).step_by(LANES) {
        for y in rows {
            let vector = |x: &usize| Line(std::array::from_fn(|lane| value(first + lane, *y, *x).to_bits()));
            weights.extend(columns.iter().map(vector));
        }
    }
    weights
}

impl Depthwise {
    /// Pack a kernel `[channels, 1, side, side]`.
    ///
    /// # Panics
    /// The kernel has another number of values; the stride is zero or the padding as large as the kernel.
    pub fn new(shape: Shape, kernel: &[f32]) -> Self {
        let Shape { channels, side, stride, padding } = shape;
        assert!(channels > 0 && stride > 0 && padding < side, "{shape:?}");
        assert_eq!(kernel.len(), channels * side * side, "kernel of {shape:?}");
        let all: Vec<usize> = (0..side).collect();
        let forward = Pass {
            weights: pack(shape, kernel, &all, &all),
            window: [side; 2],
            begin: [-(padding as isize); 2],
            step: stride,
            first: [0; 2],
            spread: 1,
        };
        // Input `y` is read by output `(y + padding - tap) / stride`, where that is whole. Along one axis: the taps
        // that reach the inputs of a phase, and the first such output.
        let reach = |phase: usize| -> (Vec<usize>, isize) {
            let from = |tap: usize| (phase + padding) as isize - tap as isize;
            let taps: Vec<_> =
                (0..side).rev().filter(|tap| from(*tap).rem_euclid(stride as isize) == 0).collect();
            let begin = taps.first().map_or(0, |tap| from(*tap) / stride as isize);
            (taps, begin)
        };
        let phase = |phase: usize| {
            let first = [phase / stride, phase % stride];
            let [(rows, top), (columns, left)] = first.map(reach);
            Pass {
                weights: pack(shape, kernel, &rows, &columns),
                window: [rows.len(), columns.len()],
                begin: [top, left],
                step: 1,
                first,
                spread: stride,
            }
        };
        Self { shape, forward, backward: (0..stride * stride).map(phase).collect() }
    }

    /// Its geometry.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Convolve `images` maps of `size` and give the output's pixels to an epilogue: bias, activation and residual
    /// are those of products.
    ///
    /// # Panics
    /// The sizes do not fit each other, or the epilogue.
    pub fn run<X: Pixels, E: Epilogue>(
        &self,
        isa: Isa,
        x: &X,
        images: usize,
        size: [usize; 2],
        epilogue: &E,
    ) {
        let output = self.shape.output(size);
        self.check(x, images, size);
        epilogue.check(images * output[0] * output[1], self.shape.channels);
        self.forward.run(isa, x, images, [size, output], epilogue);
    }

    /// Carry the gradient of the output's pixels back to `images` maps of `size`, whose pixels go to an epilogue:
    /// all of them, zeros where no window reaches.
    ///
    /// # Panics
    /// The sizes do not fit each other, or the epilogue.
    pub fn backward<X: Pixels, E: Epilogue>(
        &self,
        isa: Isa,
        grad: &X,
        images: usize,
        size: [usize; 2],
        epilogue: &E,
    ) {
        let output = self.shape.output(size);
        self.check(grad, images, output);
        epilogue.check(images * size[0] * size[1], self.shape.channels);
        for phase in &self.backward {
            phase.run(isa, grad, images, [output, size], epilogue);
        }
    }

    fn check<X: Pixels>(&self, x: &X, images: usize, size: [usize; 2]) {
        let expected = (images * size[0] * size[1], self.shape.channels);
        assert_eq!(x.shape(), expected, "pixels and channels of {images} maps of {size:?}");
    }
}

impl Pass {
    /// From maps of one size to maps of another.
    fn run<X: Pixels, E: Epilogue>(
        &self,
        isa: Isa,
        x: &X,
        images: usize,
        sizes: [[usize; 2]; 2],
        epilogue: &E,
    ) {
        let [rows, columns] = [0, 1].map(|i| sizes[1][i].saturating_sub(self.first[i]).div_ceil(self.spread));
        let (_, channels) = x.shape();
        if images == 0 || rows == 0 || columns == 0 {
            return;
        }
        if self.window == [1, 1] && self.step == 1 && self.spread == 1 {
            ranges(images * rows * columns, TILE_ROWS, 4, |pixels| {
                dispatch(isa, Factors { weights: &self.weights, x, epilogue, pixels });
            });
            return;
        }
        let chunks = channels.div_ceil(LANES);
        let block = if self.step > 2 {
            1
        } else if columns.next_multiple_of(WIDE) <= columns.next_multiple_of(NARROW) {
            WIDE
        } else {
            NARROW
        };
        let pitch = (columns.next_multiple_of(block) - 1) * self.step + self.window[1];
        // Strips that the cache holds, of so many channels only that they are high: most of what a low one reads, its neighbours
        // read as well. And enough tasks for all threads, of fewer channels or else of fewer rows.
        let least = self.window[0].max(1);
        let fit = STRIP_BYTES / (pitch * HALVES * size_of::<Line>());
        let panels = channels.div_ceil(PANEL);
        let together = (fit / ((rows.min(HIGH) - 1) * self.step + least)).clamp(1, panels);
        let high = (fit / together).saturating_sub(least) / self.step + 1;
        let (strips, shares) = (rows.div_ceil(high.max(least)), panels.div_ceil(together));
        let tasks = 2 * rayon::current_num_threads();
        let shares = shares.max(tasks.div_ceil(images * strips)).min(panels);
        let strips = strips.max(tasks.div_ceil(images * shares)).min(rows.div_ceil(least));
        let part = |i: usize, parts: usize, all: usize| i * all / parts..(i + 1) * all / parts;
        // The strip is lent here rather than inside the task: a closure there would be compiled without its
        // instructions.
        let run = |i: usize| {
            let (share, strip) = (i % shares, i / shares);
            let (strip, image) = (strip % strips, strip / strips);
            let (rows, panels) = (part(strip, strips, rows), part(share, shares, panels));
            let chunks = panels.start * HALVES..(panels.end * HALVES).min(chunks);
            let height = (rows.len().next_multiple_of(ROWS) - 1) * self.step + self.window[0];
            let sums = HALVES * ROWS * columns.next_multiple_of(block);
            scratch::with([chunks.len() * height * pitch, sums], |[lines, sums]| {
                let (lines, sums) =
                    (elements_mut(lines).as_chunks_mut().0, elements_mut(sums).as_chunks_mut().0);
                let strip = Strip {
                    isa,
                    pass: self,
                    x,
                    epilogue,
                    image,
                    sizes,
                    rows,
                    columns,
                    chunks,
                    block,
                    lines,
                    height,
                    pitch,
                    sums,
                };
                dispatch(isa, strip);
            });
        };
        (0..images * strips * shares).into_par_iter().with_max_len(1).for_each(run);
    }
}

/// Some rows of one image's results, for some of the channels.
struct Strip<'a, X, E> {
    isa: Isa,
    pass: &'a Pass,
    x: &'a X,
    epilogue: &'a E,
    image: usize,
    /// Of the map that is read and of the one that is written.
    sizes: [[usize; 2]; 2],
    /// Results, by their number in the pass.
    rows: Range<usize>,
    columns: usize,
    /// Channels, by sixteen; whole panels.
    chunks: Range<usize>,
    /// Columns of a block.
    block: usize,
    /// What the windows of these rows see, by sixteen channels: `height` rows of width `pitch`, enough for whole
    /// blocks.
    lines: &'a mut [[f32; LANES]],
    height: usize,
    pitch: usize,
    /// Results of `ROWS` rows and a panel, by sixteen channels.
    sums: &'a mut [[f32; LANES]],
}

impl<X: Pixels, E: Epilogue> Kernel for Strip<'_, X, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        self.bring(s);
        self.convolve(s);
    }
}

impl<X: Pixels, E: Epilogue> Strip<'_, X, E> {
    /// Fill `lines`, with zeros where the map ends.
    #[inline(always)]
    fn bring<S: Simd>(&mut self, s: S) {
        let [height, width] = self.sizes[0];
        let [top, left] = self.pass.begin;
        let inside = |x: isize| x.clamp(0, self.pitch as isize) as usize;
        let (from, to) = (inside(-left), inside(width as isize - left));
        let first = top + (self.rows.start * self.pass.step) as isize;
        let (_, channels) = self.x.shape();
        for r in 0..self.height {
            let y = first + r as isize;
            let outside = y < 0 || y >= height as isize || from >= to;
            let (strip_height, pitch) = (self.height, self.pitch);
            let row = |chunk: usize| (chunk * strip_height + r) * pitch;
            for row in (0..self.chunks.len()).map(row) {
                let line = &mut self.lines[row..row + self.pitch];
                line[..if outside { self.pitch } else { from }].fill([0.0; LANES]);
                line[if outside { self.pitch } else { to }..].fill([0.0; LANES]);
            }
            if outside {
                continue;
            }
            // Sixteen pixels with all their channels: near each other in rows as in tiles.
            for column in (from..to).step_by(TILE_ROWS) {
                let pixel = (self.image * height + y as usize) * width + column.wrapping_add_signed(left);
                let pixels = pixel..pixel + (to - column).min(TILE_ROWS);
                for (i, chunk) in self.chunks.clone().enumerate().step_by(HALVES) {
                    let (at, count) = (row(i) + column, (channels - chunk * LANES).min(PANEL));
                    self.x.expect(s, pixels.end, TILE_ROWS, chunk * LANES);
                    if count == PANEL {
                        // The usual case, with the count known to the compiler.
                        self.bring_panel(s, pixels.clone(), chunk, PANEL, at);
                    } else {
                        self.bring_panel(s, pixels.clone(), chunk, count, at);
                    }
                }
            }
        }
    }

    /// `count` channels of pixels that follow each other, to the lines from `at` on and the next chunk's.
    #[inline(always)]
    fn bring_panel<S: Simd>(&mut self, s: S, pixels: Range<usize>, chunk: usize, count: usize, at: usize) {
        let next = at + self.height * self.pitch;
        for (i, pixel) in pixels.enumerate() {
            let v = self.x.load_panel(s, pixel, chunk * LANES, count);
            s.store(&mut self.lines[at + i], v[0]);
            if count > LANES {
                s.store(&mut self.lines[next + i], v[1]);
            }
        }
    }

    /// Slide the window over `lines`, and give the epilogue a panel of channels of some rows at a time.
    #[inline(always)]
    fn convolve<S: Simd>(&mut self, s: S) {
        let Pass { weights, window: [window, taps], step, first, spread, .. } = self.pass;
        let size = window * taps;
        let weights = elements::<f32>(weights).as_chunks::<LANES>().0;
        let [height, width] = self.sizes[1];
        let (_, channels) = self.x.shape();
        let padded = self.columns.next_multiple_of(self.block);
        for row in self.rows.clone().step_by(ROWS) {
            for first_chunk in self.chunks.clone().step_by(HALVES) {
                let count = (channels - first_chunk * LANES).min(PANEL);
                for half in 0..count.div_ceil(LANES) {
                    let chunk = first_chunk + half;
                    let above = (chunk - self.chunks.start) * self.height + (row - self.rows.start) * step;
                    let slide = Slide {
                        lines: &self.lines[above * self.pitch..],
                        pitch: self.pitch,
                        step: *step,
                        weights: &weights[chunk * size..(chunk + 1) * size],
                        taps: *taps,
                        block: self.block,
                        columns: padded,
                        sums: &mut self.sums[half * ROWS * padded..(half + 1) * ROWS * padded],
                    };
                    dispatch(self.isa, slide);
                }
                for (r, row) in (row..self.rows.end).enumerate().take(ROWS) {
                    let y = self.image * height + row * spread + first[0];
                    for column in 0..self.columns {
                        let pixel = y * width + column * spread + first[1];
                        let at = r * padded + column;
                        let v = [s.load(&self.sums[at]), s.load(&self.sums[ROWS * padded + at])];
                        // SAFETY: the epilogue was checked for all pixels and channels; each comes once.
                        unsafe {
                            if count == PANEL {
                                // The usual case, with the count known to the compiler.
                                self.epilogue.put(s, pixel, first_chunk * LANES, PANEL, v);
                            } else {
                                self.epilogue.put(s, pixel, first_chunk * LANES, count, v);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Some rows of sums of sixteen channels. A kernel of its own, because it is the same for all sources and epilogues
/// and long once it is unrolled.
struct Slide<'a> {
    /// Begins with the first row's first window, in rows of `pitch`.
    lines: &'a [[f32; LANES]],
    pitch: usize,
    step: usize,
    weights: &'a [[f32; LANES]],
    /// Columns of the window.
    taps: usize,
    /// Columns of a block, and of all blocks of a row.
    block: usize,
    columns: usize,
    /// `ROWS` rows of `columns`.
    sums: &'a mut [[f32; LANES]],
}

impl Kernel for Slide<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // The usual steps and widths, known to the compiler; as many sums at once as registers hold.
        match (self.step, self.block) {
            (1, WIDE) if S::WIDE => self.slide::<S, ROWS, WIDE>(s, 1),
            (1, NARROW) if S::WIDE => self.slide::<S, ROWS, NARROW>(s, 1),
            (2, WIDE) if S::WIDE => self.slide::<S, ROWS, WIDE>(s, 2),
            (2, NARROW) if S::WIDE => self.slide::<S, ROWS, NARROW>(s, 2),
            (1, WIDE) => self.slide::<S, 1, { WIDE / 2 }>(s, 1),
            (1, NARROW) => self.slide::<S, 1, NARROW>(s, 1),
            (2, WIDE) => self.slide::<S, 1, { WIDE / 2 }>(s, 2),
            (2, NARROW) => self.slide::<S, 1, NARROW>(s, 2),
            (step, _) => self.slide::<S, ROWS, 1>(s, step),
        }
    }
}

impl Slide<'_> {
    #[inline(always)]
    fn slide<S: Simd, const R: usize, const WIDTH: usize>(self, s: S, step: usize) {
        let blocks = (0..ROWS).step_by(R).flat_map(|r| (0..self.columns).step_by(WIDTH).map(move |c| (r, c)));
        for (row, column) in blocks {
            let lines = &self.lines[column * step..];
            let sums = block::<S, R, WIDTH>(s, lines, self.pitch, step, row, self.weights, self.taps);
            for (out, sums) in self.sums.chunks_exact_mut(self.columns).skip(row).zip(sums) {
                for (out, sum) in out[column..column + WIDTH].iter_mut().zip(sums) {
                    s.store(out, sum);
                }
            }
        }
    }
}

/// The sums of neighbouring windows, `step` apart, of `taps` columns, from the `first` row of them on; `lines` begins with the
/// first row's first window, in rows of `pitch`.
///
/// A tap's weights serve the whole block, and its inputs are operands in memory: about one load for each
/// multiply-add, the ratio that processors have units for.
#[inline(always)]
fn block<S: Simd, const R: usize, const WIDTH: usize>(
    s: S,
    lines: &[[f32; LANES]],
    pitch: usize,
    step: usize,
    first: usize,
    weights: &[[f32; LANES]],
    taps: usize,
) -> [[S::F; WIDTH]; R] {
    let mut sums = [[s.splat(0.0); WIDTH]; R];
    let reach = (WIDTH - 1) * step + 1;
    let mut weights = weights;
    let mut y = 0;
    while !weights.is_empty() {
        let (here, rest) = weights.split_at(taps);
        weights = rest;
        let x: [_; R] =
            std::array::from_fn(|r| &lines[(y + (first + r) * step) * pitch..][..taps - 1 + reach]);
        for (t, w) in here.iter().enumerate() {
            let w = s.load(w);
            for (sums, x) in sums.iter_mut().zip(&x) {
                let x = &x[t..t + reach];
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = s.mul_add(s.load(&x[i * step]), w, *sum);
                }
            }
        }
        y += 1;
    }
    sums
}

#[cfg(test)]
mod tests;
