//! What the tests share: awkward values and comparison.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::gemm::{Epilogue, PANEL};
use crate::simd::Simd;
use crate::{Isa, Operand};

/// Repeatable values of order one, without a library.
pub(crate) fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Values rounded to an operand's type.
pub(crate) fn operands<T: Operand>(count: usize, seed: u64) -> Vec<T> {
    values(count, seed).into_iter().map(T::from_f32).collect()
}

/// Values of an operand's type as f64.
pub(crate) fn wide<T: Operand>(x: &[T]) -> Vec<f64> {
    x.iter().map(|v| f64::from(v.to_f32())).collect()
}

/// `max |found - expected| <= tolerance · max |expected|`.
#[track_caller]
pub(crate) fn assert_close<T: Operand>(found: &[T], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    for (i, (f, e)) in wide(found).into_iter().zip(expected).enumerate() {
        let error = (f - e).abs();
        assert!(
            error <= tolerance * largest.max(1e-30),
            "{what}: [{i}] is {f}, expected {e} (largest {largest})"
        );
    }
}

/// Every instruction set of this machine, for f32 and then bfloat16 operands.
pub(crate) trait Sweep {
    fn check<T: Operand>(&self, isa: Isa, rounding: f64);
}

pub(crate) fn sweep(check: &impl Sweep) {
    for isa in Isa::available() {
        check.check::<f32>(*isa, 2e-6);
        check.check::<half::bf16>(*isa, 4e-3);
    }
}

/// Notes which rows of which panels memory was asked for.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// `[rows, panels]`: 1 once it was, 2 once results came.
    seen: &'a [AtomicU8],
    panels: usize,
}

impl Asked<'_> {
    fn step(&self, row: usize, column: usize, from: u8) {
        let before = self.seen[row * self.panels + column / PANEL].swap(from + 1, Relaxed);
        assert_eq!(before, from, "row {row}, column {column}");
    }
}

impl Epilogue for Asked<'_> {
    fn check(&self, _rows: usize, _columns: usize) {}

    #[inline(always)]
    fn expect<S: Simd>(&self, _s: S, row: usize, rows: usize, column: usize) {
        (row..row + rows).for_each(|row| self.step(row, column, 0));
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(&self, _s: S, row: usize, column: usize, _count: usize, _sums: [S::F; 2]) {
        self.step(row, column, 1);
    }
}

/// Check that a product asks for the memory of each of its results once, before it has them.
pub(crate) fn asks_once(rows: usize, columns: usize, what: &str, run: impl FnOnce(&Asked<'_>)) {
    let panels = columns.div_ceil(PANEL);
    let seen: Vec<_> = (0..rows * panels).map(|_| AtomicU8::new(0)).collect();
    run(&Asked { seen: &seen, panels });
    assert!(seen.iter().all(|seen| seen.load(Relaxed) == 2), "{what}: results that did not come");
}
