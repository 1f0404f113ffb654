//! Epilogues of a residual stream that stays in tiles: where a branch joins it, and backwards where it parts.
//!
//! In bfloat16 a value of the stream is so rounded once for each block, where it is stored; the sum that is rounded, with
//! its bias, its ReLU and the next block's prompt, is one of f32.

use super::epilogue::{Epilogue, Output, Plain, add, add_bias, check_bias, mask_words, selected};
use super::line;
use crate::repeated::Period;
use crate::simd::{LANES, Simd};
use crate::tiles::at;
use crate::{Operand, SharedMut, SharedTiles, Tiles};

/// Store `max(0, x + sums + bias) + prompt`: what a residual block puts out and the next one takes in.
#[derive(Clone, Copy)]
pub struct Join<'a, T, O> {
    x: &'a Tiles<T>,
    bias: &'a [f32],
    /// One sample's rows, and how to find them.
    prompt: Option<(&'a Tiles<T>, Period)>,
    mask: Option<SharedMut<'a, u16>>,
    out: O,
}

impl<'a, T: Operand> Join<'a, T, SharedTiles<'a, T>> {
    /// Into tiles; `x` is what goes around the branch.
    pub fn tiles(x: &'a Tiles<T>, bias: &'a [f32], out: &'a mut Tiles<T>) -> Self {
        Self { x, bias, prompt: None, mask: None, out: out.share() }
    }
}

impl<'a, T: Operand> Join<'a, T, Plain<'a>> {
    /// Into rows of f32, one after another.
    pub fn rows(x: &'a Tiles<T>, bias: &'a [f32], out: &'a mut [f32]) -> Self {
        Self { x, bias, prompt: None, mask: None, out: Plain::new(out, x.columns()) }
    }
}

impl<'a, T: Operand, O> Join<'a, T, O> {
    /// Add one sample's rows, repeated, behind the ReLU, where there are some.
    #[must_use]
    pub fn prompt(mut self, prompt: Option<&'a Tiles<T>>) -> Self {
        self.prompt = prompt.map(|prompt| (prompt, Period::new(prompt.rows())));
        self
    }

    /// Of each row, a bit a column tells where the ReLU let through: sixteen to a word. `mask` may be empty if nobody
    /// will ask. (A prompt hides it from the result.)
    #[must_use]
    pub fn mask(mut self, mask: &'a mut [u16]) -> Self {
        self.mask = (!mask.is_empty()).then(|| SharedMut::new(mask));
        self
    }
}

fn check_tiles<T: Operand>(tiles: &Tiles<T>, rows: usize, columns: usize) {
    assert_eq!((tiles.rows(), tiles.columns()), (rows, columns), "rows and columns of the stream");
}

fn check_mask(words: usize, rows: usize, columns: usize) {
    assert!(words == 0 || words == rows * mask_words(columns), "{words} words of a mask of {rows} rows");
}

/// The values where the mask's bits are set, zero elsewhere; all of them without a mask.
///
/// # Safety
/// The mask is empty or has this row and these columns.
#[inline(always)]
unsafe fn masked<S: Simd>(
    s: S,
    mask: &[u16],
    words: usize,
    row: usize,
    column: usize,
    count: usize,
    v: [S::F; 2],
) -> [S::F; 2] {
    if mask.is_empty() {
        return v;
    }
    let word = row * words + column / LANES;
    // SAFETY: the caller's.
    selected(s, unsafe { mask.get_unchecked(word..word + count.div_ceil(LANES)) }, v)
}

impl<T: Operand, O: Output> Epilogue for Join<'_, T, O> {
    fn check(&self, rows: usize, columns: usize) {
        check_bias(self.bias, columns);
        check_tiles(self.x, rows, columns);
        self.out.check(rows, columns);
        if let Some((prompt, period)) = &self.prompt {
            let own = prompt.rows();
            assert!(own > 0 && rows.is_multiple_of(own), "a prompt of {own} rows for {rows}");
            check_tiles(prompt, own, columns);
            period.check(rows);
        }
        check_mask(self.mask.map_or(0, |mask| mask.len()), rows, columns);
    }

    #[inline(always)]
    fn expect<S: Simd>(&self, s: S, row: usize, rows: usize, column: usize) {
        self.out.expect(s, row, rows, column);
        self.x.expect(s, row, rows, column);
        if let Some((prompt, period)) = &self.prompt {
            let (mut row, end) = (row, row + rows);
            while row < end {
                let own = period.index(row);
                let here = (prompt.rows() - own).min(end - row);
                prompt.expect(s, own, here, column);
                row += here;
            }
        }
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, sums: [S::F; 2]) {
        // SAFETY: everything was checked for these rows and columns, the prompt's rows being found modulo their
        // number; each element comes once.
        unsafe {
            let x = self.x.load_panel(s, row, column, count);
            let mut v = add(s, add_bias(s, self.bias, column, count, sums), x);
            if let Some(mask) = &self.mask {
                let word = row * mask_words(self.x.columns()) + column / LANES;
                let words = mask.part_unchecked(word, count.div_ceil(LANES));
                words[0] = s.positive(v[0]);
                if count > LANES {
                    words[1] = s.positive(v[1]);
                }
            }
            v = [s.max(s.splat(0.0), v[0]), s.max(s.splat(0.0), v[1])];
            if let Some((prompt, period)) = &self.prompt {
                v = add(s, v, prompt.load_panel(s, period.in_tile(row), column, count));
            }
            self.out.put(s, row, column, count, v);
        }
    }
}

/// Store `sums + around` where the mask's bit is set and zero elsewhere: the gradient of a branch joins the one that went
/// around it, and goes on behind the ReLU of the block before.
#[derive(Clone, Copy)]
pub struct Part<'a, T, O> {
    around: Option<&'a Tiles<T>>,
    mask: &'a [u16],
    /// Of a row's mask.
    words: usize,
    out: O,
}

impl<'a, T: Operand> Part<'a, T, SharedTiles<'a, T>> {
    /// Into tiles. Nothing goes around where a convolution does ([`AddTo`] adds its gradient); `mask` as
    /// [`Join::mask`] wrote it, empty where no ReLU is.
    pub fn tiles(around: Option<&'a Tiles<T>>, mask: &'a [u16], out: &'a mut Tiles<T>) -> Self {
        Self { around, mask, words: mask_words(out.columns()), out: out.share() }
    }
}

impl<'a, T: Operand> Part<'a, T, Plain<'a>> {
    /// Into rows of f32, one after another, without a mask.
    pub fn rows(around: &'a Tiles<T>, out: &'a mut [f32]) -> Self {
        Self { around: Some(around), mask: &[], words: 0, out: Plain::new(out, around.columns()) }
    }
}

impl<T: Operand, O: Output> Epilogue for Part<'_, T, O> {
    fn check(&self, rows: usize, columns: usize) {
        self.out.check(rows, columns);
        if let Some(around) = self.around {
            check_tiles(around, rows, columns);
        }
        check_mask(self.mask.len(), rows, columns);
    }

    #[inline(always)]
    fn expect<S: Simd>(&self, s: S, row: usize, rows: usize, column: usize) {
        self.out.expect(s, row, rows, column);
        if let Some(around) = self.around {
            around.expect(s, row, rows, column);
        }
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, sums: [S::F; 2]) {
        // SAFETY: everything was checked for these rows and columns, a mask being that of tiles of as many; each element
        // comes once.
        unsafe {
            let mut v = sums;
            if let Some(around) = self.around {
                v = add(s, v, around.load_panel(s, row, column, count));
            }
            v = masked(s, self.mask, self.words, row, column, count, v);
            self.out.put(s, row, column, count, v);
        }
    }
}

/// Add the sums to what lies in tiles, where the mask's bit is set.
#[derive(Clone, Copy)]
pub struct AddTo<'a, T> {
    mask: &'a [u16],
    out: SharedTiles<'a, T>,
}

impl<'a, T: Operand> AddTo<'a, T> {
    /// `mask` as that of the [`Part`] that wrote `out`.
    pub fn new(mask: &'a [u16], out: &'a mut Tiles<T>) -> Self {
        Self { mask, out: out.share() }
    }
}

impl<T: Operand> Epilogue for AddTo<'_, T> {
    fn check(&self, rows: usize, columns: usize) {
        Output::check(&self.out, rows, columns);
        check_mask(self.mask.len(), rows, columns);
    }

    #[inline(always)]
    fn expect<S: Simd>(&self, s: S, row: usize, rows: usize, column: usize) {
        self.out.expect(s, row, rows, column);
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, sums: [S::F; 2]) {
        // SAFETY: checked for these rows and columns; each element comes once.
        unsafe {
            let v = add(s, sums, stored(s, &self.out, row, column, count));
            let words = mask_words(self.out.columns());
            self.out.store_panel(s, row, column, count, masked(s, self.mask, words, row, column, count, v));
        }
    }
}

/// Load `count` (1 to 32) elements of a row that is being written, from `column` on, a multiple of 32.
///
/// # Safety
/// The matrix has these elements, and nobody else uses them at the same time.
#[inline(always)]
pub(crate) unsafe fn stored<T: Operand, S: Simd>(
    s: S,
    tiles: &SharedTiles<'_, T>,
    row: usize,
    column: usize,
    count: usize,
) -> [S::F; 2] {
    let low = at::<T>(tiles.per_row, row, column);
    // SAFETY: the caller's; a panel is a line of bfloat16 or two lines of f32, of which the second may be missing.
    unsafe {
        let first = T::load(s, tiles.data.part_unchecked(low, count.min(LANES)));
        if count <= LANES {
            return [first, s.splat(0.0)];
        }
        let high =
            if line::<T>() == 2 * LANES { low + LANES } else { at::<T>(tiles.per_row, row, column + LANES) };
        [first, T::load(s, tiles.data.part_unchecked(high, count - LANES))]
    }
}
