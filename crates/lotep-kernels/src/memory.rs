//! Memory for programs that compute with large buffers.
//!
//! A training step asks for the same few hundred megabytes again and again. Given back to the system each time,
//! they cost a page fault and a cleared page for every 4 KiB touched; and products walk over their rows with
//! strides of a page or more, which misses the address translation caches. [`LargePages`] serves large requests from
//! one stretch of pages of 2 MiB, which it keeps. Small requests go to the system's allocator, which glibc's is told, with the first
//! large one, to keep its heap as well (`mallopt`, for the whole process).

use std::alloc::{GlobalAlloc, Layout, System};
#[cfg(target_os = "linux")]
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::scratch::Line;

/// So many values, arbitrary until they are written: for results that a kernel writes whole, which `vec![0.0; len]` would
/// clear first (5 % of a ResNet-50's training step, in a profile).
pub fn uncleared(len: usize) -> Vec<f32> {
    // SAFETY: any bits are an f32.
    unsafe { arbitrary(len) }.unwrap_or_else(|| vec![0.0; len])
}

/// The same of lines.
pub(crate) fn uncleared_lines(len: usize) -> Vec<Line> {
    // SAFETY: any bits are sixteen u32.
    unsafe { arbitrary(len) }.unwrap_or_else(|| vec![Line::ZERO; len])
}

/// Values of arbitrary bits; `None` where they can't be had without clearing them.
///
/// # Safety
/// Any bits are a `T`.
#[allow(clippy::unnecessary_wraps)] // not on other processors
unsafe fn arbitrary<T>(len: usize) -> Option<Vec<T>> {
    #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
    {
        let mut values = Vec::<T>::with_capacity(len);
        // SAFETY: the vector has room for `len` values, and any bits are one, as the caller promises. Memory that was
        // never written has no value in Rust, so the assembly, which the compiler cannot look into, stands for writing
        // each value: what it writes are the bits that the machine has there already, so there is nothing for it to do.
        unsafe {
            std::arch::asm!("/* {} */", in(reg) values.as_mut_ptr(), options(nostack, preserves_flags));
            values.set_len(len);
        }
        Some(values)
    }
    #[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri))))]
    {
        let _ = len;
        None
    }
}

/// The allocator; a program adopts it by `#[global_allocator]`.
#[derive(Debug)]
pub struct LargePages {
    #[cfg(target_os = "linux")]
    arena: Mutex<Arena>,
}

impl LargePages {
    /// The allocator.
    pub const fn new() -> Self {
        Self {
            #[cfg(target_os = "linux")]
            arena: Mutex::new(Arena::none(false)),
        }
    }
}

impl Default for LargePages {
    fn default() -> Self {
        Self::new()
    }
}

/// Requests from this size on are served in large pages.
#[cfg(target_os = "linux")]
const THRESHOLD: usize = 1 << 20;
#[cfg(target_os = "linux")]
const PAGE: usize = 2 << 20;
#[cfg(target_os = "linux")]
const WORD: usize = u64::BITS as usize;
#[cfg(target_os = "linux")]
const ACCESS: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

/// A stretch of addresses as large as the machine's memory, of which only what was once in use has memory behind it. A
/// block is a run of its pages, the lowest that is long enough: blocks of all sizes so share the same memory, and
/// no more of it is ever touched than was about in use at once.
#[cfg(target_os = "linux")]
#[derive(Debug)]
struct Arena {
    /// Its address; 0 before the first request, and where none could be had.
    start: usize,
    pages: usize,
    /// A bit for each page, set while it is in use; none are if there is no arena.
    used: &'static mut [u64],
    /// No page before this one is free.
    lowest: usize,
    /// No page from this one on was ever in use, so that these are zeros.
    touched: usize,
    /// Whether the system was asked for it.
    asked: bool,
}

#[cfg(target_os = "linux")]
impl Arena {
    const fn none(asked: bool) -> Self {
        Self { start: 0, pages: 0, used: &mut [], lowest: 0, touched: 0, asked }
    }

    /// Addresses for all of the machine's memory, or for as much as the system gives.
    fn new() -> Self {
        // SAFETY: two questions about the machine.
        let [count, size] =
            [libc::_SC_PHYS_PAGES, libc::_SC_PAGESIZE].map(|name| unsafe { libc::sysconf(name) });
        let memory = usize::try_from(count).unwrap_or(0).saturating_mul(usize::try_from(size).unwrap_or(0));
        let mut pages = (memory / PAGE).next_multiple_of(WORD);
        while pages >= WORD {
            if let Some(arena) = Self::of_pages(pages) {
                keep_heap();
                return arena;
            }
            pages = pages / 2 / WORD * WORD;
        }
        Self::none(true)
    }

    fn of_pages(pages: usize) -> Option<Self> {
        let map = |size: usize, access: libc::c_int| {
            let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            // SAFETY: an anonymous mapping of our own.
            let start = unsafe { libc::mmap(std::ptr::null_mut(), size, access, kind, -1, 0) };
            (start != libc::MAP_FAILED).then_some(start)
        };
        let words = pages / WORD;
        let used = map(words * size_of::<u64>(), ACCESS)?.cast::<u64>();
        let whole = (pages + 1) * PAGE;
        // Without access until they are needed, addresses count against no limit of memory.
        let Some(start) = map(whole, libc::PROT_NONE) else {
            // SAFETY: ours, of that size, and nobody has seen it.
            unsafe { libc::munmap(used.cast(), words * size_of::<u64>()) };
            return None;
        };
        // SAFETY: a mapping of our own. Refused, this costs speed and nothing else.
        unsafe { libc::madvise(start, whole, libc::MADV_HUGEPAGE) };
        // SAFETY: `words` zeros, ours for good.
        let used = unsafe { std::slice::from_raw_parts_mut(used, words) };
        let start = (start as usize).next_multiple_of(PAGE);
        Some(Self { start, pages, used, lowest: 0, touched: 0, asked: true })
    }

    /// A run of that many pages, and whether it was never in use and so is all zeros.
    fn take(&mut self, count: usize) -> Option<(*mut u8, bool)> {
        if !self.asked {
            *self = Self::new();
        }
        let first = self.find(count)?;
        let fresh = first >= self.touched;
        self.touch(first + count)?;
        for page in first..first + count {
            self.used[page / WORD] |= 1 << (page % WORD);
        }
        if first == self.lowest {
            self.lowest = first + count;
        }
        // Only the address is known here, not what it was made from.
        Some((std::ptr::with_exposed_provenance_mut(self.start + first * PAGE), fresh))
    }

    /// Make the pages before `end` ones that can be used; `None` where the system refuses.
    fn touch(&mut self, end: usize) -> Option<()> {
        if end > self.touched {
            let from = std::ptr::with_exposed_provenance_mut(self.start + self.touched * PAGE);
            // SAFETY: pages of the arena's mapping that nobody has been given yet.
            if unsafe { libc::mprotect(from, (end - self.touched) * PAGE, ACCESS) } != 0 {
                return None;
            }
            self.touched = end;
        }
        Some(())
    }

    /// The first of the lowest `count` free pages in a row.
    fn find(&self, count: usize) -> Option<usize> {
        let (mut page, mut run) = (self.lowest, 0);
        while page < self.pages {
            let rest = WORD - page % WORD;
            let word = self.used[page / WORD] >> (page % WORD);
            let free = (word.trailing_zeros() as usize).min(rest);
            run += free;
            page += free;
            if run >= count {
                return Some(page - run);
            }
            if free < rest {
                page += (word >> free).trailing_ones() as usize;
                run = 0;
            }
        }
        None
    }

    fn give_back(&mut self, block: *mut u8, count: usize) {
        let first = (block.addr() - self.start) / PAGE;
        for page in first..first + count {
            self.used[page / WORD] &= !(1 << (page % WORD));
        }
        self.lowest = self.lowest.min(first);
    }

    fn has(&self, block: *mut u8) -> bool {
        (self.start..self.start + self.pages * PAGE).contains(&block.addr())
    }
}

/// Have the system's allocator keep what it was given, too: by itself it returns the free end of its heap, once that is a few
/// hundred KiB long, and gets cleared pages for it the next time. (Measured: a ResNet-50's training step of batch 8 met 1,450 page
/// faults more, and took 1 to 2 % longer.) A thread's own heap, of which glibc makes 64 MiB at most, then stays with it.
#[cfg(target_os = "linux")]
fn keep_heap() {
    #[cfg(target_env = "gnu")]
    {
        const KEPT: libc::c_int = 256 << 20;
        // SAFETY: two words of the allocator's settings. Other threads may be reading them, which glibc's manual warns of; they get
        // the old value or the new one, both of which are right. Refused, this costs speed and nothing else.
        unsafe {
            // What the arena serves; smaller blocks come from the heap.
            libc::mallopt(libc::M_MMAP_THRESHOLD, 2 * THRESHOLD as libc::c_int);
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        }
    }
}

#[cfg(target_os = "linux")]
impl LargePages {
    fn is_large(layout: Layout) -> bool {
        layout.size() >= THRESHOLD && layout.align() <= PAGE
    }

    fn arena(&self) -> MutexGuard<'_, Arena> {
        self.arena.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pages for a large request, and whether they are zeros; `None` where there is no room, or the request is small.
    fn take(&self, layout: Layout) -> Option<(*mut u8, bool)> {
        if !Self::is_large(layout) {
            return None;
        }
        self.arena().take(layout.size().div_ceil(PAGE))
    }
}

#[cfg(target_os = "linux")]
// SAFETY: a large block is a run of pages that nobody else has until it is given back, aligned to 2 MiB and as long as
// was asked for; whatever else is served by the system's allocator. Where a block came from its address tells.
unsafe impl GlobalAlloc for LargePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        self.take(layout).map_or_else(|| unsafe { System.alloc(layout) }, |(block, _)| block)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some((block, zeros)) = self.take(layout) else {
            // SAFETY: as the caller promises.
            return unsafe { System.alloc_zeroed(layout) };
        };
        if !zeros {
            // SAFETY: the block has at least this size.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if Self::is_large(layout) {
            let mut arena = self.arena();
            if arena.has(block) {
                return arena.give_back(block, layout.size().div_ceil(PAGE));
            }
        }
        // SAFETY: as the caller promises; the block is the system allocator's.
        unsafe { System.dealloc(block, layout) };
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises a valid size for this alignment.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        if !Self::is_large(layout) && !Self::is_large(new) {
            // SAFETY: as the caller promises; both are the system allocator's.
            return unsafe { System.realloc(block, layout, new_size) };
        }
        let same = [layout, new].map(|layout| (Self::is_large(layout), layout.size().div_ceil(PAGE)));
        if same[0] == same[1] && self.arena().has(block) {
            return block;
        }
        // SAFETY: a new block, at least as large as what is copied, and the old one freed with its layout.
        unsafe {
            let moved = self.alloc(new);
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(block, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

#[cfg(not(target_os = "linux"))]
// SAFETY: the system's allocator.
unsafe impl GlobalAlloc for LargePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }
}

#[cfg(all(test, target_os = "linux", not(miri)))]
mod tests {
    use super::*;

    /// Blocks of all sizes at once, each filled with its own byte, and given back in another order than they came.
    #[test]
    fn blocks_are_apart_and_what_is_asked_for_zeroed_is_zero() {
        let memory = LargePages::new();
        let mut held: Vec<(*mut u8, Layout, u8)> = Vec::new();
        let mut dice = 1_u64;
        for round in 0..400 {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let pick = (dice >> 33) as usize;
            if held.len() > 12 || (held.len() > 3 && pick.is_multiple_of(2)) {
                let (block, layout, byte) = held.swap_remove(pick / 2 % held.len());
                // SAFETY: a block of this layout, held.
                unsafe {
                    for at in [0, layout.size() / 2, layout.size() - 1] {
                        assert_eq!(*block.add(at), byte, "{layout:?}");
                    }
                    memory.dealloc(block, layout);
                }
                continue;
            }
            let layout = Layout::from_size_align(1 + pick % (9 << 20), 64).unwrap();
            // SAFETY: the size is not zero.
            unsafe {
                let block = memory.alloc_zeroed(layout);
                assert!(!block.is_null() && (block.addr()).is_multiple_of(64));
                let bytes = std::slice::from_raw_parts_mut(block, layout.size());
                assert!(bytes.iter().step_by(509).all(|b| *b == 0), "{layout:?}");
                bytes.fill(round as u8);
                held.push((block, layout, round as u8));
            }
        }
        let touched = memory.arena().touched * PAGE;
        assert!(touched <= 14 * (10 << 20), "{touched} bytes for at most thirteen blocks");
        for (block, layout, _) in held {
            // SAFETY: held.
            unsafe { memory.dealloc(block, layout) };
        }
        assert!(memory.arena().used.iter().all(|word| *word == 0));
    }

    /// A block that grows or shrinks keeps what is in it, across both allocators.
    #[test]
    fn blocks_keep_their_contents_as_they_change_size() {
        let memory = LargePages::new();
        let layout = |size| Layout::from_size_align(size, 8).unwrap();
        let mut size = 1000;
        // SAFETY: each block is used with its own layout, within its size.
        unsafe {
            let mut block = memory.alloc(layout(size));
            block.write_bytes(7, size);
            for new in [THRESHOLD - 1, THRESHOLD, PAGE, PAGE + 1, 5 * PAGE, 3 * PAGE, 10] {
                block = memory.realloc(block, layout(size), new);
                let both = size.min(new);
                assert!(std::slice::from_raw_parts(block, both).iter().all(|b| *b == 7), "{size} to {new}");
                block.write_bytes(7, new);
                size = new;
            }
            memory.dealloc(block, layout(size));
        }
    }

    #[test]
    fn the_lowest_run_that_is_long_enough_is_found() {
        let used = Box::into_raw(vec![u64::MAX, 0b1011, 0, 0].into_boxed_slice());
        let found = {
            // SAFETY: nobody else has it, and it is freed behind the arena.
            let arena = Arena { pages: 4 * WORD, used: unsafe { &mut *used }, ..Arena::none(true) };
            [1, 2, 60, 61, 124, 188, 189].map(|count| arena.find(count))
        };
        // SAFETY: from `into_raw`.
        drop(unsafe { Box::from_raw(used) });
        assert_eq!(found, [Some(66), Some(68), Some(68), Some(68), Some(68), Some(68), None]);
    }
}
