//! Sharing work, and what it writes, among threads.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

/// A slice that several threads write in different places.
#[derive(Clone, Copy)]
pub struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` in parts; whoever takes a part promises that no other thread has it.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Share a slice.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), lifetime: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where element `at` is or would be; for prefetching, never to be read.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    pub(crate) fn address(&self, at: usize) -> *const T {
        self.start.wrapping_add(at)
    }

    /// A part of the slice.
    ///
    /// # Panics
    /// The range is not within it.
    ///
    /// # Safety
    /// While the part lives, nobody else holds an overlapping one.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part of a shared slice");
        // SAFETY: within the slice, as just checked; alone, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// `count` elements from `at` on, for inner loops.
    ///
    /// # Safety
    /// As [`SharedMut::part`], and the slice has them.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part_unchecked(&self, at: usize, count: usize) -> &'a mut [T] {
        debug_assert!(at + count <= self.len, "part of a shared slice");
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), count) }
    }
}

/// Split `count` items into about `per_thread` ranges a thread, each a multiple of `unit`, and run them.
pub(crate) fn ranges(count: usize, unit: usize, per_thread: usize, run: impl Fn(Range<usize>) + Sync) {
    let parts = (rayon::current_num_threads() * per_thread).max(1);
    let size = count.div_ceil(parts).next_multiple_of(unit).max(unit);
    let tasks = count.div_ceil(size);
    let range = |i: usize| i * size..((i + 1) * size).min(count);
    if tasks <= 1 {
        if count > 0 {
            run(0..count);
        }
        return;
    }
    (0..tasks).into_par_iter().with_max_len(1).for_each(|i| run(range(i)));
}
