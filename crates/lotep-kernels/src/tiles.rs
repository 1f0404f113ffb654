//! Matrices as products read and write them.

use std::marker::PhantomData;

use crate::depthwise::{Pixels, Rows};
use crate::gemm::{TILE_ROWS, line, mask_words};
use crate::memory::uncleared_lines;
use crate::parallel::ranges;
use crate::scratch::{Line, elements, elements_mut};
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::{Isa, Operand, SharedMut};

/// A matrix of operands in tiles of 16 rows, each tile a sequence of blocks of one line (64 bytes) a row.
///
/// So a product reads its rows without packing them, and a block of results is a kibibyte or two of consecutive
/// memory, where rows one after another would put it into as many pages. Columns beyond the last, in its line, are
/// zero; rows beyond the last are arbitrary.
pub struct Tiles<T> {
    lines: Vec<Line>,
    rows: usize,
    columns: usize,
    element: PhantomData<T>,
}

impl<T: Operand> Tiles<T> {
    /// A matrix of that size, its elements arbitrary.
    pub fn new(rows: usize, columns: usize) -> Self {
        let per_row = columns.div_ceil(line::<T>());
        let mut lines = uncleared_lines(rows.div_ceil(TILE_ROWS) * per_row * TILE_ROWS);
        if !columns.is_multiple_of(line::<T>()) {
            lines.fill(Line::ZERO);
        }
        Self { lines, rows, columns, element: PhantomData }
    }

    /// Take rows of `columns` elements one after another.
    ///
    /// # Panics
    /// `x` is not made of whole rows.
    pub fn from_rows(x: &[T], columns: usize) -> Self {
        assert!(columns > 0 && x.len().is_multiple_of(columns), "{} values in rows of {columns}", x.len());
        let mut tiles = Self::new(x.len() / columns, columns);
        for (i, v) in x.iter().enumerate() {
            let at = tiles.index(i / columns, i % columns);
            elements_mut::<T>(&mut tiles.lines)[at] = *v;
        }
        tiles
    }

    /// Round rows of f32, `prompt` (one sample's rows, repeated; may be empty) added first, and with a `mask` of
    /// bits ([`crate::gemm::Join::mask`]; may be empty) only where it is set.
    ///
    /// # Panics
    /// The lengths do not fit each other.
    pub fn rounded(isa: Isa, x: &[f32], prompt: &[f32], mask: &[u16], columns: usize) -> Self {
        let prompt = (!prompt.is_empty()).then(|| Rows::new(prompt, columns));
        Self::entered(isa, x, prompt.as_ref(), mask, columns)
    }

    /// The same with the prompt's rows in any form, if there is one.
    ///
    /// # Panics
    /// The sizes do not fit each other.
    pub fn entered<P: Pixels>(isa: Isa, x: &[f32], prompt: Option<&P>, mask: &[u16], columns: usize) -> Self {
        assert!(columns > 0 && x.len().is_multiple_of(columns), "{} values in rows of {columns}", x.len());
        let rows = x.len() / columns;
        let (pixels, width) = prompt.map_or((rows, columns), Pixels::shape);
        assert_eq!(width, columns, "columns of a prompt");
        assert!(pixels == 0 || rows.is_multiple_of(pixels), "{rows} rows of samples of {pixels}");
        assert!(mask.is_empty() || mask.len() == rows * mask_words(columns), "words of the mask");
        let mut tiles = Self::new(rows, columns);
        let out = tiles.share();
        ranges(pixels, TILE_ROWS, 2, |part| dispatch(isa, Round { x, prompt, mask, pixels, part, out }));
        tiles
    }

    /// The elements row by row.
    pub fn to_rows(&self) -> Vec<T> {
        let x = elements::<T>(&self.lines);
        (0..self.rows * self.columns).map(|i| x[self.index(i / self.columns, i % self.columns)]).collect()
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Lines of a row.
    pub(crate) fn per_row(&self) -> usize {
        self.columns.div_ceil(line::<T>())
    }

    /// The lines of whole tiles.
    pub(crate) fn tiles(&self, range: std::ops::Range<usize>) -> &[Line] {
        let tile = self.per_row() * TILE_ROWS;
        &self.lines[range.start * tile..range.end * tile]
    }

    #[inline(always)]
    fn index(&self, row: usize, column: usize) -> usize {
        at::<T>(self.per_row(), row, column)
    }

    /// Load `count` (up to sixteen) elements of a row from `column` on; further lanes are zero.
    #[inline(always)]
    pub fn load<S: Simd>(&self, s: S, row: usize, column: usize, count: usize) -> S::F {
        let x = elements::<T>(&self.lines);
        let here = (line::<T>() - column % line::<T>()).min(count);
        let first = self.index(row, column);
        if here == count {
            return T::load(s, &x[first..first + count]);
        }
        let mut values = [T::default(); LANES];
        values[..here].copy_from_slice(&x[first..first + here]);
        let next = self.index(row, column + here);
        values[here..count].copy_from_slice(&x[next..next + count - here]);
        T::load(s, &values)
    }

    /// Load `count` (1 to 32) elements of a row from `column` on, a multiple of 32; further lanes are zero.
    ///
    /// # Safety
    /// The matrix has these elements.
    #[inline(always)]
    pub(crate) unsafe fn load_panel<S: Simd>(
        &self,
        s: S,
        row: usize,
        column: usize,
        count: usize,
    ) -> [S::F; 2] {
        debug_assert!(row < self.rows && column + count <= self.columns && column.is_multiple_of(2 * LANES));
        let x = elements::<T>(&self.lines);
        let low = self.index(row, column);
        // A panel is a line of bfloat16 or two lines of f32.
        let high = if line::<T>() == 2 * LANES { low + LANES } else { low + TILE_ROWS * LANES };
        let (first, rest) = (count.min(LANES), count.saturating_sub(LANES));
        // SAFETY: the caller's; columns from `column` on lie where they are looked for.
        unsafe {
            let second = if rest > 0 { x.get_unchecked(high..high + rest) } else { &[] };
            [T::load(s, x.get_unchecked(low..low + first)), T::load(s, second)]
        }
    }

    /// Ask for the memory of `rows` rows of a panel, which need not be there, to read it soon.
    #[inline(always)]
    pub(crate) fn expect<S: Simd>(&self, s: S, row: usize, rows: usize, column: usize) {
        let x = elements::<T>(&self.lines);
        expected::<T>(self.per_row(), row, rows, column, |at| s.prefetch_read(x, at));
    }

    /// Ask for the memory of a row, which need not be there, to read it soon.
    #[inline(always)]
    pub(crate) fn expect_row<S: Simd>(&self, s: S, row: usize) {
        for i in 0..self.per_row() {
            s.prefetch_read(&self.lines, self.index(row, i * line::<T>()) / line::<T>());
        }
    }

    /// All lines, those of each tile after another.
    pub(crate) fn all_lines(&self) -> &[Line] {
        &self.lines
    }

    /// All lines, to write them.
    pub(crate) fn lines_mut(&mut self) -> &mut [Line] {
        &mut self.lines
    }

    /// Line `i` of a row, in groups.
    #[inline(always)]
    pub(crate) fn row_line(&self, row: usize, i: usize) -> &Line {
        &self.lines[self.index(row, i * line::<T>()) / line::<T>()]
    }

    /// The sixteen elements of a row from `column` on, a multiple of sixteen, counted from line `i`.
    #[inline(always)]
    pub(crate) fn sixteen(&self, row: usize, i: usize, column: usize) -> &[T; LANES] {
        let from = column % line::<T>();
        self.line(row, i + column / line::<T>())[from..from + LANES].try_into().expect("sixteen elements")
    }

    /// Line `i` of a row.
    #[inline(always)]
    pub(crate) fn line(&self, row: usize, i: usize) -> &[T] {
        let from = self.index(row, i * line::<T>());
        &elements::<T>(&self.lines)[from..from + line::<T>()]
    }

    /// Copy part of a row.
    #[inline(always)]
    pub(crate) fn copy(&self, row: usize, column: usize, out: &mut [T]) {
        let x = elements::<T>(&self.lines);
        let mut done = 0;
        while done < out.len() {
            let here = (line::<T>() - (column + done) % line::<T>()).min(out.len() - done);
            let from = self.index(row, column + done);
            out[done..done + here].copy_from_slice(&x[from..from + here]);
            done += here;
        }
    }

    /// Share it for writing in parts.
    pub fn share(&mut self) -> SharedTiles<'_, T> {
        let (rows, columns, per_row) = (self.rows, self.columns, self.per_row());
        SharedTiles { data: SharedMut::new(elements_mut(&mut self.lines)), rows, columns, per_row }
    }
}

impl<T: Operand> std::fmt::Debug for Tiles<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tiles<{}>[{}, {}]", std::any::type_name::<T>(), self.rows, self.columns)
    }
}

/// Where an element lies.
#[inline(always)]
pub(crate) fn at<T: Operand>(per_row: usize, row: usize, column: usize) -> usize {
    let tile = row / TILE_ROWS * per_row + column / line::<T>();
    (tile * TILE_ROWS + row % TILE_ROWS) * line::<T>() + column % line::<T>()
}

/// Where the lines of some rows of a panel begin.
#[inline(always)]
fn expected<T: Operand>(per_row: usize, row: usize, rows: usize, column: usize, ask: impl Fn(usize)) {
    let (mut row, end) = (row, row + rows);
    while row < end {
        // A tile's rows lie one after another.
        let here = (TILE_ROWS - row % TILE_ROWS).min(end - row);
        let first = at::<T>(per_row, row, column);
        for i in 0..here {
            ask(first + i * line::<T>());
            if line::<T>() < 2 * LANES {
                ask(first + (TILE_ROWS + i) * LANES);
            }
        }
        row += here;
    }
}

/// A matrix that several threads write in different places.
#[derive(Clone, Copy)]
pub struct SharedTiles<'a, T> {
    pub(crate) data: SharedMut<'a, T>,
    rows: usize,
    columns: usize,
    pub(crate) per_row: usize,
}

impl<T: Operand> SharedTiles<'_, T> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Ask for the memory of `rows` rows of a panel, to write it soon.
    #[inline(always)]
    pub(crate) fn expect<S: Simd>(&self, s: S, row: usize, rows: usize, column: usize) {
        expected::<T>(self.per_row, row, rows, column, |at| s.prefetch(&self.data, at));
    }

    /// The line of a row that an element lies in, as groups.
    ///
    /// # Safety
    /// The matrix has it, and nobody else uses it at the same time.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // as with `SharedMut`
    pub(crate) unsafe fn row_line_mut(&self, row: usize, column: usize) -> &mut [u32; LANES] {
        debug_assert!(row < self.rows && column < self.columns);
        let first = at::<T>(self.per_row, row, column / line::<T>() * line::<T>());
        // SAFETY: the caller's; lines are whole and aligned, and any bits are groups.
        unsafe { &mut *self.data.part_unchecked(first, line::<T>()).as_mut_ptr().cast() }
    }

    /// Store `count` (1 to 32) elements of a row from `column` on, a multiple of 32.
    ///
    /// # Safety
    /// The matrix has these elements, and nobody else uses them at the same time.
    #[inline(always)]
    pub(crate) unsafe fn store_panel<S: Simd>(
        &self,
        s: S,
        row: usize,
        column: usize,
        count: usize,
        v: [S::F; 2],
    ) {
        debug_assert!(row < self.rows && column + count <= self.columns && column.is_multiple_of(2 * LANES));
        let low = at::<T>(self.per_row, row, column);
        // SAFETY: the caller's; a panel is a line of bfloat16 or two lines of f32, of which the second may be
        // missing.
        unsafe {
            if line::<T>() == 2 * LANES {
                T::store_pair(s, self.data.part_unchecked(low, count), v);
            } else {
                T::store(s, self.data.part_unchecked(low, count.min(LANES)), v[0]);
                if count > LANES {
                    T::store(s, self.data.part_unchecked(low + TILE_ROWS * LANES, count - LANES), v[1]);
                }
            }
        }
    }

    /// Store the first `count` (up to sixteen) lanes in a row from `column` on.
    ///
    /// # Panics
    /// The matrix has no such elements.
    ///
    /// # Safety
    /// Nobody else writes or reads them at the same time.
    #[inline(always)]
    pub unsafe fn store<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, v: S::F) {
        assert!(row < self.rows && column + count <= self.columns, "an element outside its matrix");
        let here = (line::<T>() - column % line::<T>()).min(count);
        let first = at::<T>(self.per_row, row, column);
        if here == count {
            // SAFETY: the caller's.
            return T::store(s, unsafe { self.data.part(first..first + count) }, v);
        }
        let mut values = [T::default(); LANES];
        T::store(s, &mut values, v);
        let next = at::<T>(self.per_row, row, column + here);
        // SAFETY: the caller's.
        unsafe {
            self.data.part(first..first + here).copy_from_slice(&values[..here]);
            self.data.part(next..next + count - here).copy_from_slice(&values[here..count]);
        }
    }
}

struct Round<'a, T, P> {
    x: &'a [f32],
    prompt: Option<&'a P>,
    mask: &'a [u16],
    /// Rows of a sample, and which of them.
    pixels: usize,
    part: std::ops::Range<usize>,
    out: SharedTiles<'a, T>,
}

impl<T: Operand, P: Pixels> Kernel for Round<'_, T, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Values of a prompt that the samples pass by while they are in the first-level cache.
        const PROMPT: usize = 4096;
        let (columns, words) = (self.out.columns, mask_words(self.out.columns));
        let samples = (self.x.len() / columns).checked_div(self.pixels).unwrap_or(0);
        let step = if self.prompt.is_none() { self.pixels } else { PROMPT / columns }.max(1);
        for first in self.part.clone().step_by(step) {
            let pixels = first..(first + step).min(self.part.end);
            for (sample, pixel) in (0..samples).flat_map(|s| pixels.clone().map(move |p| (s, p))) {
                let row = sample * self.pixels + pixel;
                for (i, x) in self.x[row * columns..(row + 1) * columns].chunks(LANES).enumerate() {
                    let mut v = s.load(x);
                    if let Some(prompt) = self.prompt {
                        v = s.add(v, prompt.load(s, pixel, i * LANES, x.len()));
                    }
                    if !self.mask.is_empty() {
                        v = s.select(self.mask[row * words + i], v, s.splat(0.0));
                    }
                    // SAFETY: rows are shared out among the tasks.
                    unsafe { self.out.store(s, row, i * LANES, x.len(), v) };
                }
            }
        }
    }
}

/// Matrices whose rows are sums of another's: each of the sum of some of a sample's rows, times a factor. What every
/// sample's rows are summed from is the same.
#[derive(Clone, Debug)]
pub struct RowSums {
    /// Rows of a sample that are read.
    from: usize,
    /// Where each row's summands begin in `of`; their number at the end.
    starts: Vec<usize>,
    of: Vec<u32>,
    factors: Vec<f32>,
}

impl RowSums {
    /// Each row's summands among the `from` rows of a sample, and its factor. `from` itself stands for the row that follows
    /// all samples'; a row of no summands is zero.
    ///
    /// # Panics
    /// A summand is no row.
    pub fn new(from: usize, rows: impl IntoIterator<Item = (Vec<u32>, f32)>) -> Self {
        let mut sums = Self { from, starts: vec![0], of: Vec::new(), factors: Vec::new() };
        for (of, factor) in rows {
            assert!(of.iter().all(|row| *row as usize <= from), "a row of {from}");
            sums.of.extend(of);
            sums.starts.push(sums.of.len());
            sums.factors.push(factor);
        }
        sums
    }

    /// Rows of a sample that are made.
    pub fn rows(&self) -> usize {
        self.factors.len()
    }

    /// Sum the rows of `samples` samples.
    ///
    /// # Panics
    /// `x` is not made of as many.
    pub fn run<T: Operand>(&self, isa: Isa, x: &Tiles<T>, samples: usize) -> Tiles<T> {
        let beyond = usize::from(self.of.iter().any(|row| *row as usize == self.from));
        assert!(x.rows() >= samples * self.from + beyond, "{} rows of {samples} samples", x.rows());
        let rows = samples * self.rows();
        let mut tiles = Tiles::new(rows, x.columns);
        let out = tiles.share();
        ranges(rows, TILE_ROWS, 2, |rows| dispatch(isa, Sum { x, sums: self, samples, rows, out }));
        tiles
    }
}

struct Sum<'a, T> {
    x: &'a Tiles<T>,
    sums: &'a RowSums,
    samples: usize,
    rows: std::ops::Range<usize>,
    out: SharedTiles<'a, T>,
}

impl<T: Operand> Kernel for Sum<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (RowSums { from, starts, of, factors }, columns) = (self.sums, self.out.columns);
        for row in self.rows {
            let (sample, i) = (row / factors.len(), row % factors.len());
            let (of, factor) = (&of[starts[i]..starts[i + 1]], s.splat(factors[i]));
            for column in (0..columns).step_by(LANES) {
                let count = (columns - column).min(LANES);
                let mut sum = s.splat(0.0);
                for place in of.iter().map(|row| *row as usize) {
                    let row = if place == *from { self.samples * from } else { sample * from + place };
                    sum = s.add(sum, self.x.load(s, row, column, count));
                }
                // SAFETY: rows are shared out among the tasks.
                unsafe { self.out.store(s, row, column, count, s.mul(sum, factor)) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16;
    use crate::testing::values;

    #[test]
    fn rows_are_summed_sample_by_sample() {
        // Of three rows a sample: the last two added and halved, none, the first, and the row behind all samples.
        let sums = RowSums::new(3, [(vec![1, 2], 0.5), (vec![], 1.0), (vec![0], 1.0), (vec![3], 2.0)]);
        for (isa, columns) in Isa::available().iter().flat_map(|isa| [1, 33, 70].map(|c| (*isa, c))) {
            let x = values(7 * columns, 1);
            let found = sums.run(isa, &Tiles::from_rows(&x, columns), 2).to_rows();
            let row = |r: usize| x[r * columns..][..columns].to_vec();
            let added = |a: usize, b: usize| row(a).iter().zip(row(b)).map(|(a, b)| (a + b) * 0.5).collect();
            let last: Vec<f32> = row(6).iter().map(|v| v * 2.0).collect();
            let zeros = vec![0.0; columns];
            let rows: [Vec<f32>; 8] =
                [added(1, 2), zeros.clone(), row(0), last.clone(), added(4, 5), zeros, row(3), last];
            assert_eq!(found, rows.concat(), "{isa:?} {columns}");
        }
    }

    #[test]
    fn rows_go_in_and_out() {
        for (rows, columns) in [(1, 1), (5, 33), (16, 32), (35, 70)] {
            let x = values(rows * columns, 1);
            assert_eq!(Tiles::from_rows(&x, columns).to_rows(), x);
            let half: Vec<bf16> = x.iter().map(|v| bf16::from_f32(*v)).collect();
            assert_eq!(Tiles::from_rows(&half, columns).to_rows(), half);
        }
    }

    /// Parts of rows that cross lines, loaded, copied and stored.
    #[test]
    fn parts_of_rows_may_cross_lines() {
        struct Parts;
        impl Kernel for Parts {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(self, s: S) {
                let (rows, columns) = (18, 50);
                let x = values(rows * columns, 2);
                let from = Tiles::from_rows(&x, columns);
                let mut to = Tiles::<f32>::new(rows, columns);
                let shared = to.share();
                for row in 0..rows {
                    for column in (0..columns).step_by(7) {
                        let count = (columns - column).min(7);
                        // SAFETY: one thread, one part at a time.
                        unsafe { shared.store(s, row, column, count, from.load(s, row, column, count)) };
                        let mut copied = [0.0; 7];
                        from.copy(row, column, &mut copied[..count]);
                        assert_eq!(copied[..count], x[row * columns + column..][..count]);
                    }
                }
                assert_eq!(to.to_rows(), x);
            }
        }
        for isa in Isa::available() {
            dispatch(*isa, Parts);
        }
    }
}
