//! An allocator for programs that compute with large buffers.
//!
//! A training step asks for the same few hundred megabytes again and again. Given back to the system each time,
//! they cost a page fault and a cleared page for every 4 KiB touched; and products walk over their rows with
//! strides of a page or more, which misses the address translation caches. [`LargePages`] keeps large blocks for
//! the next request of about their size, and asks the system for pages of 2 MiB. Small requests go to the system's
//! allocator.

use std::alloc::{GlobalAlloc, Layout, System};
#[cfg(target_os = "linux")]
use std::sync::Mutex;

/// So many values, arbitrary until they are written: for results that a kernel writes whole, which `vec![0.0; len]` would
/// clear first (5 % of a ResNet-50's training step, in a profile).
pub fn uncleared(len: usize) -> Vec<f32> {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        let mut values = Vec::<f32>::with_capacity(len);
        // SAFETY: the vector has room for `len` values, and any bits are an f32. Memory that was never written has no
        // value in Rust, so the assembly, which the compiler cannot look into, stands for writing each value: what it
        // writes are the bits that the machine has there already, so there is nothing for it to do.
        unsafe {
            std::arch::asm!("/* {} */", in(reg) values.as_mut_ptr(), options(nostack, preserves_flags));
            values.set_len(len);
        }
        values
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    vec![0.0; len]
}

/// The allocator; a program adopts it by `#[global_allocator]`.
#[derive(Debug)]
pub struct LargePages {
    #[cfg(target_os = "linux")]
    free: Mutex<Free>,
}

/// Requests from this size on are served in large pages.
#[cfg(target_os = "linux")]
const THRESHOLD: usize = 1 << 20;
#[cfg(target_os = "linux")]
const PAGE: usize = 2 << 20;
/// Blocks kept at most.
#[cfg(target_os = "linux")]
const SLOTS: usize = 128;

/// Freed blocks, each with its size. An array, because an allocator cannot allocate.
#[cfg(target_os = "linux")]
#[derive(Debug)]
struct Free {
    blocks: [(usize, usize); SLOTS],
    count: usize,
}

impl LargePages {
    /// The allocator.
    pub const fn new() -> Self {
        Self {
            #[cfg(target_os = "linux")]
            free: Mutex::new(Free { blocks: [(0, 0); SLOTS], count: 0 }),
        }
    }
}

impl Default for LargePages {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(target_os = "linux")]
impl LargePages {
    /// What a request takes: whole large pages.
    fn rounded(layout: Layout) -> usize {
        layout.size().next_multiple_of(PAGE)
    }

    fn is_large(layout: Layout) -> bool {
        layout.size() >= THRESHOLD && layout.align() <= PAGE
    }

    /// A block of exactly this size, kept or new, and whether it is new and so all zeros.
    fn take(&self, size: usize) -> (*mut u8, bool) {
        if let Ok(mut free) = self.free.lock() {
            let count = free.count;
            if let Some(i) = free.blocks[..count].iter().position(|b| b.1 == size) {
                let block = free.blocks[i];
                free.blocks[i] = free.blocks[count - 1];
                free.count -= 1;
                return (block.0 as *mut u8, false);
            }
        }
        (map(size), true)
    }
}

/// Fresh memory aligned to large pages, or null.
#[cfg(target_os = "linux")]
fn map(size: usize) -> *mut u8 {
    // SAFETY: an anonymous mapping of our own; what is not aligned at its ends is given back at once.
    unsafe {
        let whole = libc::mmap(
            std::ptr::null_mut(),
            size + PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if whole == libc::MAP_FAILED {
            return std::ptr::null_mut();
        }
        let skip = (whole as usize).next_multiple_of(PAGE) - whole as usize;
        let start = whole.byte_add(skip);
        if skip > 0 {
            libc::munmap(whole, skip);
        }
        libc::munmap(start.byte_add(size), PAGE - skip);
        // Refused, it costs speed and nothing else.
        libc::madvise(start, size, libc::MADV_HUGEPAGE);
        start.cast()
    }
}

#[cfg(target_os = "linux")]
// SAFETY: large blocks are mappings of `rounded(layout)` bytes aligned to 2 MiB, owned by one holder at a time: a
// block leaves the list when it is handed out. Whether a block is large depends on its layout alone, so `dealloc`
// and `realloc` find the same answer as `alloc`.
unsafe impl GlobalAlloc for LargePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if Self::is_large(layout) {
            return self.take(Self::rounded(layout)).0;
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if Self::is_large(layout) {
            let (block, fresh) = self.take(Self::rounded(layout));
            if !fresh && !block.is_null() {
                // SAFETY: the block has at least this size.
                unsafe { block.write_bytes(0, layout.size()) };
            }
            return block;
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if !Self::is_large(layout) {
            // SAFETY: as the caller promises.
            return unsafe { System.dealloc(block, layout) };
        }
        let size = Self::rounded(layout);
        if let Ok(mut free) = self.free.lock() {
            let count = free.count;
            if count < SLOTS {
                free.blocks[count] = (block as usize, size);
                free.count += 1;
                return;
            }
        }
        // SAFETY: a mapping of this size, ours.
        unsafe { libc::munmap(block.cast(), size) };
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises a valid size for this alignment.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        match (Self::is_large(layout), Self::is_large(new)) {
            // SAFETY: as the caller promises.
            (false, false) => unsafe { System.realloc(block, layout, new_size) },
            (true, true) if Self::rounded(layout) == Self::rounded(new) => block,
            // SAFETY: a new block, at least as large as what is copied, and the old one freed with its layout.
            _ => unsafe {
                let moved = self.alloc(new);
                if !moved.is_null() {
                    moved.copy_from_nonoverlapping(block, layout.size().min(new_size));
                    self.dealloc(block, layout);
                }
                moved
            },
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
