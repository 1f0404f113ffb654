//! Memory that each thread keeps for its kernels.

use std::cell::RefCell;

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
