//! What becomes of a product's sums.

use crate::simd::{Simd, gaussian_cdf, logistic};
use crate::{Operand, SharedMut};

/// Takes sums as they are finished. Each element comes once, from whichever thread has it.
pub trait Epilogue: Sync {
    /// Panic unless everything has room for so many rows and columns.
    fn check(&self, rows: usize, columns: usize);
    /// Take `count` (1 to 16) sums of `row`, from `column` on. To be `#[inline(always)]`.
    fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, sums: S::F);
}

/// A bias, if there is one.
#[inline(always)]
fn add_bias<S: Simd>(s: S, bias: &[f32], column: usize, count: usize, v: S::F) -> S::F {
    if bias.is_empty() { v } else { s.add(v, s.load(&bias[column..column + count])) }
}

fn check_bias(bias: &[f32], columns: usize) {
    assert!(bias.is_empty() || bias.len() == columns, "a bias of {} for {columns} columns", bias.len());
}

/// The rows `out` is made of, `stride` apart.
#[derive(Clone, Copy)]
struct Out<'a, T> {
    data: SharedMut<'a, T>,
    stride: usize,
}

impl<'a, T: Operand> Out<'a, T> {
    fn new(data: &'a mut [T], stride: usize) -> Self {
        Self { data: SharedMut::new(data), stride }
    }

    fn check(&self, rows: usize, columns: usize) {
        assert!(columns <= self.stride, "{columns} columns in rows of {}", self.stride);
        let need = rows.checked_sub(1).map_or(0, |full| full * self.stride + columns);
        assert!(self.data.len() >= need, "{} values for {rows} rows of {}", self.data.len(), self.stride);
    }

    #[inline(always)]
    fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, v: S::F) {
        let at = row * self.stride + column;
        // SAFETY: each element comes once ([`Epilogue`]), and rows do not overlap: columns fit the stride.
        T::store(s, unsafe { self.data.part(at..at + count) }, v);
    }
}

/// Store `sums + bias`.
pub struct Store<'a, T> {
    out: Out<'a, T>,
    bias: &'a [f32],
}

impl<'a, T: Operand> Store<'a, T> {
    /// Into rows `stride` apart.
    pub fn new(out: &'a mut [T], stride: usize) -> Self {
        Self { out: Out::new(out, stride), bias: &[] }
    }

    /// With a bias; an empty one is none.
    #[must_use]
    pub fn bias(mut self, bias: &'a [f32]) -> Self {
        self.bias = bias;
        self
    }
}

impl<T: Operand> Epilogue for Store<'_, T> {
    fn check(&self, rows: usize, columns: usize) {
        check_bias(self.bias, columns);
        self.out.check(rows, columns);
    }

    #[inline(always)]
    fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, sums: S::F) {
        self.out.put(s, row, column, count, add_bias(s, self.bias, column, count, sums));
    }
}

/// A function applied to each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)`; its derivative at 0 is 0.
    Relu,
    /// `x Φ(x)`, exact (the error function, not its approximation by tanh).
    Gelu,
    /// `x σ(1.702 x)`, OpenAI CLIP's.
    QuickGelu,
    /// `x σ(x)`.
    Silu,
}

impl Activation {
    /// Its value.
    #[inline(always)]
    pub fn value<S: Simd>(self, s: S, x: S::F) -> S::F {
        match self {
            Self::Relu => s.max(x, s.splat(0.0)),
            Self::Gelu => s.mul(x, gaussian_cdf(s, x).0),
            Self::QuickGelu => s.mul(x, logistic(s, s.mul(x, s.splat(1.702)))),
            Self::Silu => s.mul(x, logistic(s, x)),
        }
    }

    /// Its derivative.
    #[inline(always)]
    pub fn derivative<S: Simd>(self, s: S, x: S::F) -> S::F {
        let sigmoid = |slope: f32| {
            let z = s.mul(x, s.splat(slope));
            let y = logistic(s, z);
            // σ + z σ (1 - σ)
            s.mul(y, s.mul_add(z, s.sub(s.splat(1.0), y), s.splat(1.0)))
        };
        match self {
            Self::Relu => s.select(s.positive(x), s.splat(1.0), s.splat(0.0)),
            Self::Gelu => {
                // 1 / √(2π)
                const DENSITY: f32 = 0.398_942_3;
                let (cdf, bell) = gaussian_cdf(s, x);
                s.mul_add(s.mul(x, s.splat(DENSITY)), bell, cdf)
            }
            Self::QuickGelu => sigmoid(1.702),
            Self::Silu => sigmoid(1.0),
        }
    }
}

/// Store `f(sums + bias)`, and `sums + bias` where the backward pass will ask for it.
pub struct Activate<'a, T> {
    function: Activation,
    out: Out<'a, T>,
    before: Option<Out<'a, T>>,
    bias: &'a [f32],
}

impl<'a, T: Operand> Activate<'a, T> {
    /// Into rows `stride` apart.
    pub fn new(function: Activation, bias: &'a [f32], out: &'a mut [T], stride: usize) -> Self {
        Self { function, out: Out::new(out, stride), before: None, bias }
    }

    /// Keep what the function is applied to, in rows of the same stride.
    #[must_use]
    pub fn keep(mut self, before: &'a mut [T]) -> Self {
        self.before = Some(Out::new(before, self.out.stride));
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
    fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, sums: S::F) {
        let x = add_bias(s, self.bias, column, count, sums);
        if let Some(before) = &self.before {
            before.put(s, row, column, count, x);
        }
        self.out.put(s, row, column, count, self.function.value(s, x));
    }
}

/// Store `sums · f'(before)`: the gradient behind an activation becomes the one before it.
pub struct Multiply<'a, T> {
    function: Activation,
    before: &'a [T],
    out: Out<'a, T>,
}

impl<'a, T: Operand> Multiply<'a, T> {
    /// `before` and `out` in rows `stride` apart.
    pub fn new(function: Activation, before: &'a [T], out: &'a mut [T], stride: usize) -> Self {
        Self { function, before, out: Out::new(out, stride) }
    }
}

impl<T: Operand> Epilogue for Multiply<'_, T> {
    fn check(&self, rows: usize, columns: usize) {
        self.out.check(rows, columns);
        assert!(
            self.before.len() >= self.out.data.len(),
            "fewer values before the activation than behind it"
        );
    }

    #[inline(always)]
    fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, sums: S::F) {
        let at = row * self.out.stride + column;
        let x = T::load(s, &self.before[at..at + count]);
        self.out.put(s, row, column, count, s.mul(sums, self.function.derivative(s, x)));
    }
}

/// Store `x + prompt + sums + bias`: the residual stream behind a branch.
pub struct Residual<'a> {
    x: &'a [f32],
    prompt: &'a [f32],
    bias: &'a [f32],
    out: Out<'a, f32>,
}

impl<'a> Residual<'a> {
    /// `x` and `out` in rows `stride` apart; `prompt` is one sample's rows, repeated, and may be empty.
    pub fn new(x: &'a [f32], prompt: &'a [f32], bias: &'a [f32], out: &'a mut [f32], stride: usize) -> Self {
        Self { x, prompt, bias, out: Out::new(out, stride) }
    }
}

impl Epilogue for Residual<'_> {
    fn check(&self, rows: usize, columns: usize) {
        check_bias(self.bias, columns);
        self.out.check(rows, columns);
        assert!(self.x.len() >= self.out.data.len(), "a residual shorter than the result");
        assert!(self.prompt.len().is_multiple_of(self.out.stride), "a prompt of broken rows");
    }

    #[inline(always)]
    fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, sums: S::F) {
        let stride = self.out.stride;
        let at = row * stride + column;
        let mut v = add_bias(s, self.bias, column, count, sums);
        v = s.add(v, s.load(&self.x[at..at + count]));
        if !self.prompt.is_empty() {
            let at = at % self.prompt.len();
            v = s.add(v, s.load(&self.prompt[at..at + count]));
        }
        self.out.put(s, row, column, count, v);
    }
}
