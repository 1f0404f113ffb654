//! What becomes of a product's sums.

use crate::repeated::Repeated;
use crate::simd::{
    LANES, Simd, coarse_gaussian_cdf, coarse_gelu_derivative, coarse_logistic, gaussian_cdf, logistic,
};
use crate::{Operand, SharedMut, SharedTiles, Tiles};

/// Takes sums as they are finished, a panel's row (32 columns) at a time.
///
/// Each task has a copy, so that what does not change from row to row stays in registers, whatever is written meanwhile.
pub trait Epilogue: Copy + Sync {
    /// Panic unless everything has room for so many rows and columns: what [`Epilogue::put`] relies on.
    fn check(&self, rows: usize, columns: usize);
    /// `rows` rows from `row` on will come soon, in the panel from `column` on: ask for their memory.
    #[inline(always)]
    fn expect<S: Simd>(&self, _s: S, _row: usize, _rows: usize, _column: usize) {}
    /// Take `count` (1 to 32) sums of `row`, from `column` on, a multiple of 32. To be `#[inline(always)]`: where its tile is is
    /// known to the compiler then, for all of the tile's rows at once.
    ///
    /// # Safety
    /// These rows and columns passed [`Epilogue::check`], and each element comes once.
    unsafe fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, sums: [S::F; 2]);
}

/// `count` (1 to 32) values from `at` on; lanes beyond are zero.
///
/// # Safety
/// `x` has them.
#[inline(always)]
pub(crate) unsafe fn load<S: Simd>(s: S, x: &[f32], at: usize, count: usize) -> [S::F; 2] {
    debug_assert!(at + count <= x.len());
    // SAFETY: the caller's.
    let x = unsafe { x.get_unchecked(at..at + count) };
    [s.load(&x[..count.min(LANES)]), s.load(&x[count.min(LANES)..])]
}

#[inline(always)]
pub(super) fn add<S: Simd>(s: S, a: [S::F; 2], b: [S::F; 2]) -> [S::F; 2] {
    [s.add(a[0], b[0]), s.add(a[1], b[1])]
}

/// A bias, if there is one.
///
/// # Safety
/// It is empty or has these columns.
#[inline(always)]
pub(super) unsafe fn add_bias<S: Simd>(
    s: S,
    bias: &[f32],
    column: usize,
    count: usize,
    v: [S::F; 2],
) -> [S::F; 2] {
    // SAFETY: the caller's.
    if bias.is_empty() { v } else { add(s, v, unsafe { load(s, bias, column, count) }) }
}

/// Ask for rows of f32, `stride` apart, that will be read soon, and need not be there.
#[inline(always)]
pub(crate) fn expect_read<S: Simd>(s: S, x: &[f32], stride: usize, row: usize, rows: usize, column: usize) {
    for at in (row..row + rows).map(|row| row * stride + column) {
        s.prefetch_read(x, at);
        s.prefetch_read(x, at + LANES);
    }
}

/// Up to 32 values where the bits of a row's one or two words are set, zero elsewhere.
#[inline(always)]
pub(crate) fn selected<S: Simd>(s: S, words: &[u16], v: [S::F; 2]) -> [S::F; 2] {
    let high = words.get(1).copied().unwrap_or(0);
    [s.select(words[0], v[0], s.splat(0.0)), s.select(high, v[1], s.splat(0.0))]
}

/// Words of a row's mask: a bit a column.
pub(crate) fn mask_words(columns: usize) -> usize {
    columns.div_ceil(LANES)
}

pub(super) fn check_bias(bias: &[f32], columns: usize) {
    assert!(bias.is_empty() || bias.len() == columns, "a bias of {} for {columns} columns", bias.len());
}

/// Where results go.
pub trait Output: Copy + Sync {
    /// Panic unless it has so many rows and columns.
    fn check(&self, rows: usize, columns: usize);
    /// Ask for memory that [`Output::put`] will write soon.
    fn expect<S: Simd>(&self, s: S, row: usize, rows: usize, column: usize);
    /// Store `count` (1 to 32) values from `column` on, a multiple of 32.
    ///
    /// # Safety
    /// These rows and columns passed [`Output::check`], and nobody else uses the elements at the same time.
    unsafe fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, v: [S::F; 2]);
}

impl<T: Operand> Output for SharedTiles<'_, T> {
    fn check(&self, rows: usize, columns: usize) {
        let have = (self.rows(), self.columns());
        assert_eq!(have, (rows, columns), "rows and columns of the result");
    }

    #[inline(always)]
    fn expect<S: Simd>(&self, s: S, row: usize, rows: usize, column: usize) {
        SharedTiles::expect(self, s, row, rows, column);
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, v: [S::F; 2]) {
        // SAFETY: the caller's.
        unsafe { self.store_panel(s, row, column, count, v) };
    }
}

/// Rows of f32, `stride` apart.
#[derive(Clone, Copy)]
pub struct Plain<'a> {
    data: SharedMut<'a, f32>,
    stride: usize,
}

impl<'a> Plain<'a> {
    pub(crate) fn new(data: &'a mut [f32], stride: usize) -> Self {
        Self { data: SharedMut::new(data), stride }
    }
}

impl Output for Plain<'_> {
    fn check(&self, rows: usize, columns: usize) {
        assert!(columns <= self.stride, "{columns} columns in rows of {}", self.stride);
        let need = rows.checked_sub(1).map_or(0, |full| full * self.stride + columns);
        assert!(self.data.len() >= need, "{} values for {rows} rows of {}", self.data.len(), self.stride);
    }

    #[inline(always)]
    fn expect<S: Simd>(&self, s: S, row: usize, rows: usize, column: usize) {
        for row in row..row + rows {
            let at = row * self.stride + column;
            s.prefetch(&self.data, at);
            s.prefetch(&self.data, at + LANES);
        }
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, v: [S::F; 2]) {
        let at = row * self.stride + column;
        // SAFETY: the caller's; rows do not overlap, since columns fit the stride.
        let (low, high) = unsafe { self.data.part_unchecked(at, count) }.split_at_mut(count.min(LANES));
        s.store(low, v[0]);
        s.store(high, v[1]);
    }
}

/// Store `sums + bias`.
#[derive(Clone, Copy)]
pub struct Store<'a, O> {
    out: O,
    bias: &'a [f32],
}

impl<'a> Store<'a, Plain<'a>> {
    /// Into rows of f32, `stride` apart.
    pub fn new(out: &'a mut [f32], stride: usize) -> Self {
        Self { out: Plain::new(out, stride), bias: &[] }
    }
}

impl<'a, T: Operand> Store<'a, SharedTiles<'a, T>> {
    /// Into tiles.
    pub fn tiles(out: &'a mut Tiles<T>) -> Self {
        Self { out: out.share(), bias: &[] }
    }
}

impl<'a, O> Store<'a, O> {
    /// With a bias; an empty one is none.
    #[must_use]
    pub fn bias(mut self, bias: &'a [f32]) -> Self {
        self.bias = bias;
        self
    }
}

impl<O: Output> Epilogue for Store<'_, O> {
    fn check(&self, rows: usize, columns: usize) {
        check_bias(self.bias, columns);
        self.out.check(rows, columns);
    }

    #[inline(always)]
    fn expect<S: Simd>(&self, s: S, row: usize, rows: usize, column: usize) {
        self.out.expect(s, row, rows, column);
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, sums: [S::F; 2]) {
        // SAFETY: the bias and the output were checked for these columns; each element comes once.
        unsafe { self.out.put(s, row, column, count, add_bias(s, self.bias, column, count, sums)) };
    }
}

/// A function applied to each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x`.
    Identity,
    /// `max(0, x)`, and no number of what is none; its derivative at 0 is 0.
    Relu,
    /// `x Φ(x)`, exact (the error function, not its approximation by tanh).
    Gelu,
    /// `x σ(1.702 x)`, OpenAI CLIP's.
    QuickGelu,
    /// `x σ(x)`.
    Silu,
}

impl Activation {
    /// Its value, as exact as `T` can hold.
    #[inline(always)]
    pub fn value<T: Operand, S: Simd>(self, s: S, x: S::F) -> S::F {
        match self {
            Self::Identity => x,
            Self::Relu => s.max(s.splat(0.0), x),
            Self::Gelu if T::GROUP == 2 => s.mul(x, coarse_gaussian_cdf(s, x)),
            Self::Gelu => s.mul(x, gaussian_cdf(s, x).0),
            Self::QuickGelu => s.mul(x, sigmoid::<T, S>(s, s.mul(x, s.splat(1.702)))),
            Self::Silu => s.mul(x, sigmoid::<T, S>(s, x)),
        }
    }

    /// Its derivative, as exact as `T` can hold.
    #[inline(always)]
    pub fn derivative<T: Operand, S: Simd>(self, s: S, x: S::F) -> S::F {
        match self {
            Self::Identity => s.splat(1.0),
            Self::Relu => s.select(s.positive(x), s.splat(1.0), s.splat(0.0)),
            Self::Gelu if T::GROUP == 2 => coarse_gelu_derivative(s, x),
            Self::Gelu => {
                // 1 / √(2π)
                const DENSITY: f32 = 0.398_942_3;
                let (cdf, bell) = gaussian_cdf(s, x);
                s.mul_add(s.mul(x, s.splat(DENSITY)), bell, cdf)
            }
            Self::QuickGelu => swish_derivative::<T, S>(s, s.mul(x, s.splat(1.702))),
            Self::Silu => swish_derivative::<T, S>(s, x),
        }
    }
}

/// `σ(x)`, as exact as `T` can hold.
#[inline(always)]
fn sigmoid<T: Operand, S: Simd>(s: S, x: S::F) -> S::F {
    if T::GROUP == 2 { coarse_logistic(s, x) } else { logistic(s, x) }
}

/// The derivative of `x σ(a x)` at `z = a x`: `σ + z σ (1 - σ)`.
#[inline(always)]
fn swish_derivative<T: Operand, S: Simd>(s: S, z: S::F) -> S::F {
    let y = sigmoid::<T, S>(s, z);
    s.mul(y, s.mul_add(z, s.sub(s.splat(1.0), y), s.splat(1.0)))
}

/// Store `f(sums + bias)`, and `sums + bias` where the backward pass will ask for it.
#[derive(Clone, Copy)]
pub struct Activate<'a, T> {
    function: Activation,
    out: SharedTiles<'a, T>,
    before: Option<SharedTiles<'a, T>>,
    bias: &'a [f32],
}

impl<'a, T: Operand> Activate<'a, T> {
    /// Into tiles.
    pub fn new(function: Activation, bias: &'a [f32], out: &'a mut Tiles<T>) -> Self {
        Self { function, out: out.share(), before: None, bias }
    }

    /// Keep what the function is applied to.
    #[must_use]
    pub fn keep(mut self, before: &'a mut Tiles<T>) -> Self {
        self.before = Some(before.share());
        self
    }
}

impl<T: Operand> Epilogue for Activate<'_, T> {
    fn check(&self, rows: usize, columns: usize) {
        check_bias(self.bias, columns);
        self.out.check(rows, columns);
        if let Some(before) = &self.before {
            before.check(rows, columns);
        }
    }

    #[inline(always)]
    fn expect<S: Simd>(&self, s: S, row: usize, rows: usize, column: usize) {
        self.out.expect(s, row, rows, column);
        if let Some(before) = &self.before {
            before.expect(s, row, rows, column);
        }
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, sums: [S::F; 2]) {
        // SAFETY: everything was checked for these rows and columns; each element comes once.
        unsafe {
            let x = add_bias(s, self.bias, column, count, sums);
            if let Some(before) = &self.before {
                before.store_panel(s, row, column, count, x);
            }
            let f = self.function;
            let y = [f.value::<T, S>(s, x[0]), f.value::<T, S>(s, x[1])];
            self.out.store_panel(s, row, column, count, y);
        }
    }
}

/// Store `sums · f'(before)`: the gradient behind an activation becomes the one before it.
#[derive(Clone, Copy)]
pub struct Multiply<'a, T> {
    function: Activation,
    before: &'a Tiles<T>,
    out: SharedTiles<'a, T>,
}

impl<'a, T: Operand> Multiply<'a, T> {
    /// Into tiles.
    pub fn new(function: Activation, before: &'a Tiles<T>, out: &'a mut Tiles<T>) -> Self {
        Self { function, before, out: out.share() }
    }
}

impl<T: Operand> Epilogue for Multiply<'_, T> {
    fn check(&self, rows: usize, columns: usize) {
        self.out.check(rows, columns);
        assert_eq!(
            (self.before.rows(), self.before.columns()),
            (rows, columns),
            "values before the activation"
        );
    }

    #[inline(always)]
    fn expect<S: Simd>(&self, s: S, row: usize, rows: usize, column: usize) {
        self.out.expect(s, row, rows, column);
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, sums: [S::F; 2]) {
        // SAFETY: both were checked for these rows and columns; each element comes once.
        unsafe {
            let x = self.before.load_panel(s, row, column, count);
            let f = self.function;
            let v = [
                s.mul(sums[0], f.derivative::<T, S>(s, x[0])),
                s.mul(sums[1], f.derivative::<T, S>(s, x[1])),
            ];
            self.out.store_panel(s, row, column, count, v);
        }
    }
}

/// Store `x + prompt + sums + bias`: the residual stream behind a branch; with a ReLU where that is asked for.
#[derive(Clone, Copy)]
pub struct Residual<'a> {
    x: &'a [f32],
    prompt: Repeated<'a>,
    bias: &'a [f32],
    out: Plain<'a>,
}

impl<'a> Residual<'a> {
    /// `x` and `out` in rows `stride` apart; `prompt` is one sample's rows, repeated, and may be empty.
    pub fn new(x: &'a [f32], prompt: &'a [f32], bias: &'a [f32], out: &'a mut [f32], stride: usize) -> Self {
        let prompt = Repeated::rows(prompt, stride);
        Self { x, prompt, bias, out: Plain::new(out, stride) }
    }
}

impl Epilogue for Residual<'_> {
    fn check(&self, rows: usize, columns: usize) {
        check_bias(self.bias, columns);
        self.out.check(rows, columns);
        assert!(self.x.len() >= self.out.data.len(), "a residual shorter than the result");
        self.prompt.check(self.out.data.len());
    }

    #[inline(always)]
    fn expect<S: Simd>(&self, s: S, row: usize, rows: usize, column: usize) {
        self.out.expect(s, row, rows, column);
        expect_read(s, self.x, self.out.stride, row, rows, column);
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, sums: [S::F; 2]) {
        let at = row * self.out.stride + column;
        // SAFETY: everything was checked for these rows and columns, the prompt being made of whole rows; each
        // element comes once.
        unsafe {
            let mut v = add_bias(s, self.bias, column, count, sums);
            v = add(s, v, load(s, self.x, at, count));
            if !self.prompt.is_empty() {
                v = add(s, v, load(s, self.prompt.values(), self.prompt.index(at), count));
            }
            self.out.put(s, row, column, count, v);
        }
    }
}

/// Store `sums + grad` where the mask's bit is set, `sums` elsewhere: a branch's gradient joins the one that went
/// around it, behind the ReLU that both went through.
#[derive(Clone, Copy)]
pub struct Masked<'a> {
    grad: &'a [f32],
    mask: &'a [u16],
    out: Plain<'a>,
}

impl<'a> Masked<'a> {
    /// `grad` and `out` in rows of `columns`, `mask` as [`super::Join::mask`] wrote it.
    pub fn new(grad: &'a [f32], mask: &'a [u16], out: &'a mut [f32], columns: usize) -> Self {
        Self { grad, mask, out: Plain::new(out, columns) }
    }
}

impl Epilogue for Masked<'_> {
    fn check(&self, rows: usize, columns: usize) {
        assert_eq!(columns, self.out.stride, "columns of a masked gradient");
        self.out.check(rows, columns);
        assert!(self.grad.len() == rows * columns && self.mask.len() == rows * mask_words(columns));
    }

    #[inline(always)]
    fn expect<S: Simd>(&self, s: S, row: usize, rows: usize, column: usize) {
        self.out.expect(s, row, rows, column);
        expect_read(s, self.grad, self.out.stride, row, rows, column);
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, sums: [S::F; 2]) {
        let at = row * self.out.stride + column;
        let word = row * mask_words(self.out.stride) + column / LANES;
        // SAFETY: everything was checked for these rows and columns; each element comes once.
        unsafe {
            let words = self.mask.get_unchecked(word..word + count.div_ceil(LANES));
            let kept = selected(s, words, load(s, self.grad, at, count));
            self.out.put(s, row, column, count, add(s, sums, kept));
        }
    }
}

/// Add the sums to what is there.
#[derive(Clone, Copy)]
pub struct Add<'a> {
    out: Plain<'a>,
}

impl<'a> Add<'a> {
    /// To rows `stride` apart.
    pub fn new(out: &'a mut [f32], stride: usize) -> Self {
        Self { out: Plain::new(out, stride) }
    }
}

impl Epilogue for Add<'_> {
    fn check(&self, rows: usize, columns: usize) {
        self.out.check(rows, columns);
    }

    #[inline(always)]
    fn expect<S: Simd>(&self, s: S, row: usize, rows: usize, column: usize) {
        self.out.expect(s, row, rows, column);
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, sums: [S::F; 2]) {
        let at = row * self.out.stride + column;
        // SAFETY: checked for these rows and columns; each element comes once.
        unsafe {
            let old = load(s, self.out.data.part_unchecked(at, count), 0, count);
            self.out.put(s, row, column, count, add(s, sums, old));
        }
    }
}
