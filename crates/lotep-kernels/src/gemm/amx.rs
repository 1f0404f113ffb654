//! Tile instructions of AMX-BF16, by inline assembly (Rust's intrinsics for them are not stable).
//!
//! `tdpbf16ps` adds to a 16 × 16 tile of f32 the product of 16 rows of 32 bfloat16 and 16 groups of 16 columns.
//! Eight tile registers: a 2 × 2 block of sums and two tiles of either operand, so each load serves two products.

use std::arch::asm;

use super::{GROUPS, PANEL, TILE_ROWS};
use crate::scratch::Line;

/// This thread's tile registers, configured; released when dropped, so that the kernel has no tile state to save
/// when it switches threads.
pub(crate) struct Tiles {
    /// Not to be sent to another thread: its registers would not be configured.
    not_send: std::marker::PhantomData<*const ()>,
}

#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    /// Configure all eight as 16 rows of 64 bytes.
    ///
    /// # Safety
    /// The machine has AMX-BF16 and the kernel has granted its use.
    #[inline]
    pub(crate) unsafe fn configure() -> Self {
        let mut c = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            bytes_per_row: [0; 16],
            rows: [0; 16],
        };
        c.bytes_per_row[..8].fill(64);
        c.rows[..8].fill(16);
        // SAFETY: the instruction exists, as the caller promises, and reads the 64 bytes of `c`.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const c, options(nostack, readonly, preserves_flags)) };
        Self { not_send: std::marker::PhantomData }
    }

    /// `sums = a b`, or with `add` `sums += a b`: one or two tiles of rows over as many lines as the panel `b` has, into
    /// rows `stride` apart.
    #[inline(always)]
    pub(crate) fn product(&self, a: [&[Line]; 2], b: &[Line], sums: &mut [f32], stride: usize, add: bool) {
        let lines = b.len() / (2 * GROUPS);
        let two = !a[1].is_empty();
        assert!(lines > 0 && a[0].len() >= lines * TILE_ROWS && stride >= PANEL);
        assert!(!two || a[1].len() >= lines * TILE_ROWS);
        let rows = if two { 2 * TILE_ROWS } else { TILE_ROWS };
        assert!(sums.len() >= (rows - 1) * stride + PANEL);
        let (sums, stride) = (sums.as_mut_ptr(), stride * size_of::<f32>());
        let a = a.map(<[Line]>::as_ptr);
        if two {
            // SAFETY: `self` is the proof that tiles are configured. Two tiles of rows and a panel are as long as
            // the loop reads, and the sums have 32 rows of 128 bytes, as just checked.
            unsafe { two_tiles(a, lines, b.as_ptr(), sums, stride, add) }
        } else {
            // SAFETY: as above, with one tile of rows.
            unsafe { one_tile(a[0], lines, b.as_ptr(), sums, stride, add) }
        }
    }

    /// The same for 32 rows `row` groups apart, whose lines begin at `starts`.
    #[inline(always)]
    pub(crate) fn product_at(
        &self,
        a: &[u32],
        starts: &[usize],
        row: usize,
        b: &[Line],
        sums: &mut [f32],
        stride: usize,
    ) {
        let rows = 2 * TILE_ROWS;
        let last = starts.iter().max().map_or(usize::MAX, |s| *s);
        assert!(a.len() >= last && a.len() - last >= (rows - 1) * row + GROUPS);
        assert!(b.len() >= 2 * starts.len() * GROUPS);
        assert!(stride >= PANEL && sums.len() >= (rows - 1) * stride + PANEL);
        // SAFETY: tiles are configured; rows of `a`, the panel and the sums reach as far as is read and written, as
        // just checked.
        unsafe { strided_tiles(a.as_ptr(), starts, 4 * row, b.as_ptr(), sums.as_mut_ptr(), 4 * stride) }
    }
}

impl Drop for Tiles {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: `configure` ran on this thread.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// # Safety
/// Tiles are configured; both of `a` have `lines · 16` lines, `b` has twice as many; `lines > 0`; `sums` has 32 rows of
/// 128 bytes, `stride` bytes apart.
#[inline(always)]
unsafe fn two_tiles(
    a: [*const Line; 2],
    lines: usize,
    b: *const Line,
    sums: *mut f32,
    stride: usize,
    add: bool,
) {
    // SAFETY: reads and writes within what the caller promises: a step takes one tile (1 KiB) of each row tile
    // and two of the panel. All tile registers are declared clobbered.
    unsafe {
        asm!(
            "test {add:e}, {add:e}",
            "jnz 3f",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "jmp 2f",
            "3:",
            "tileloadd tmm0, [{c} + {row}*1]",
            "tileloadd tmm1, [{c} + {row}*1 + 64]",
            "tileloadd tmm2, [{d} + {row}*1]",
            "tileloadd tmm3, [{d} + {row}*1 + 64]",
            "2:",
            "tileloadd tmm4, [{a0} + {line}*1]",
            "tileloadd tmm6, [{b} + {line}*1]",
            "tileloadd tmm7, [{b} + {line}*1 + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{a1} + {line}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a0}, 1024",
            "add {a1}, 1024",
            "add {b}, 2048",
            "dec {n}",
            "jnz 2b",
            "tilestored [{c} + {row}*1], tmm0",
            "tilestored [{c} + {row}*1 + 64], tmm1",
            "tilestored [{d} + {row}*1], tmm2",
            "tilestored [{d} + {row}*1 + 64], tmm3",
            a0 = inout(reg) a[0] => _,
            a1 = inout(reg) a[1] => _,
            b = inout(reg) b => _,
            n = inout(reg) lines => _,
            add = in(reg) u32::from(add),
            line = in(reg) 64_usize,
            row = in(reg) stride,
            c = in(reg) sums,
            d = in(reg) sums.byte_add(TILE_ROWS * stride),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// # Safety
/// As [`two_tiles`], with `a` of `lines · 16` lines and 16 rows of sums.
#[inline(always)]
unsafe fn one_tile(a: *const Line, lines: usize, b: *const Line, sums: *mut f32, stride: usize, add: bool) {
    // SAFETY: as above.
    unsafe {
        asm!(
            "test {add:e}, {add:e}",
            "jnz 3f",
            "tilezero tmm0",
            "tilezero tmm1",
            "jmp 2f",
            "3:",
            "tileloadd tmm0, [{c} + {row}*1]",
            "tileloadd tmm1, [{c} + {row}*1 + 64]",
            "2:",
            "tileloadd tmm4, [{a} + {line}*1]",
            "tileloadd tmm6, [{b} + {line}*1]",
            "tileloadd tmm7, [{b} + {line}*1 + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a}, 1024",
            "add {b}, 2048",
            "dec {n}",
            "jnz 2b",
            "tilestored [{c} + {row}*1], tmm0",
            "tilestored [{c} + {row}*1 + 64], tmm1",
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            n = inout(reg) lines => _,
            add = in(reg) u32::from(add),
            line = in(reg) 64_usize,
            row = in(reg) stride,
            c = in(reg) sums,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// # Safety
/// Tiles are configured; `a` holds 64 bytes at `starts[l]` u32s plus `r · row` bytes for each line `l` and `r < 32`;
/// `b` has `2 · starts.len() · 16` lines; `starts` is not empty; `sums` has 32 rows of 128 bytes, `stride` bytes
/// apart.
#[inline(always)]
unsafe fn strided_tiles(
    a: *const u32,
    starts: &[usize],
    row: usize,
    b: *const Line,
    sums: *mut f32,
    stride: usize,
) {
    // SAFETY: reads and writes within what the caller promises: a step takes two tiles of `a` at a line's start
    // and two of the panel. All tile registers are declared clobbered.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "mov {at}, [{starts}]",
            "lea {first}, [{a0} + {at}*4]",
            "lea {at}, [{a1} + {at}*4]",
            "tileloadd tmm4, [{first} + {row}*1]",
            "tileloadd tmm6, [{b} + {line}*1]",
            "tileloadd tmm7, [{b} + {line}*1 + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{at} + {row}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {starts}, 8",
            "add {b}, 2048",
            "dec {n}",
            "jnz 2b",
            "tilestored [{c} + {stride}*1], tmm0",
            "tilestored [{c} + {stride}*1 + 64], tmm1",
            "tilestored [{d} + {stride}*1], tmm2",
            "tilestored [{d} + {stride}*1 + 64], tmm3",
            a0 = in(reg) a,
            a1 = in(reg) a.byte_add(TILE_ROWS * row),
            at = out(reg) _,
            first = out(reg) _,
            starts = inout(reg) starts.as_ptr() => _,
            b = inout(reg) b => _,
            n = inout(reg) starts.len() => _,
            line = in(reg) 64_usize,
            row = in(reg) row,
            stride = in(reg) stride,
            c = in(reg) sums,
            d = in(reg) sums.byte_add(TILE_ROWS * stride),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
