//! Memory that each thread keeps for its kernels.

use std::cell::RefCell;

use crate::Operand;
use crate::simd::LANES;

/// One row of a tile: 64 bytes, a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u32; 16]);

impl Line {
    pub(crate) const ZERO: Self = Self([0; 16]);
}

/// Lend `sizes[i]` lines as the `i`-th slice, their contents arbitrary. They must not be borrowed twice on one
/// thread: kernels do not nest.
pub(crate) fn with<const N: usize, R>(sizes: [usize; N], f: impl FnOnce([&mut [Line]; N]) -> R) -> R {
    thread_local! {
        static MEMORY: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
    }
    MEMORY.with_borrow_mut(|memory| {
        let total = sizes.iter().sum();
        if memory.len() < total {
            memory.resize(total, Line::ZERO);
        }
        let mut rest = memory.as_mut_slice();
        f(sizes.map(|size| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(size);
            rest = after;
            part
        }))
    })
}

/// Lines as elements.
#[inline(always)]
pub(crate) fn elements<T: Operand>(lines: &[Line]) -> &[T] {
    // SAFETY: a line is 64 bytes aligned to 64, any bits are an f32 or a bf16 (`Operand` is sealed to the two),
    // and the slice covers exactly the lines' bytes.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines) / size_of::<T>()) }
}

/// Lines as elements.
#[inline(always)]
pub(crate) fn elements_mut<T: Operand>(lines: &mut [Line]) -> &mut [T] {
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines) / size_of::<T>()) }
}

/// Lines as rows of sixteen.
#[inline(always)]
pub(crate) fn rows_mut(lines: &mut [Line]) -> &mut [[u32; LANES]] {
    // SAFETY: a line is sixteen u32 and nothing else.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len()) }
}

/// Sixteen lines as a block to transpose.
#[inline(always)]
pub(crate) fn block(lines: &[Line]) -> &[[u32; LANES]; LANES] {
    assert!(lines.len() == LANES);
    // SAFETY: sixteen lines, each sixteen u32 and nothing else.
    unsafe { &*lines.as_ptr().cast() }
}

#[inline(always)]
pub(crate) fn block_mut(lines: &mut [Line]) -> &mut [[u32; LANES]; LANES] {
    rows_mut(lines).try_into().expect("sixteen lines")
}
