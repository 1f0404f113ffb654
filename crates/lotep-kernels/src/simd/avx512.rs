//! Lanes as one 512-bit register.

use std::arch::x86_64::*;

use half::bf16;

use super::{LANES, Simd};
use crate::SharedMut;

/// `BF16`: whether AVX512-BF16's conversions and products are there. The field says whether tiles are.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const BF16: bool>(bool);

impl<const BF16: bool> Avx512<BF16> {
    /// Make the token.
    ///
    /// # Safety
    /// The machine must have AVX-512 F, BW, DQ and VL; with `BF16` also AVX512-BF16; with `tiles` AMX-BF16, with
    /// the kernel's permission.
    #[inline(always)]
    pub(super) unsafe fn new(tiles: bool) -> Self {
        Self(tiles)
    }
}

/// The first `n` lanes, fewer than all.
#[inline(always)]
fn first(n: usize) -> u16 {
    (1 << n) - 1
}

// SAFETY of every block here: the token proves that the instructions exist. Loads and stores are masked to the
// slices' lengths, or their arrays have the register's size; unaligned forms are used throughout.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const BF16: bool> Simd for Avx512<BF16> {
    type F = __m512;
    type G = __m512i;

    const WIDE: bool = true;

    #[inline(always)]
    fn tiles(self) -> bool {
        self.0
    }

    #[inline(always)]
    fn prefetch<T>(self, x: &SharedMut<'_, T>, at: usize) {
        // SAFETY (and below): a prefetch never faults, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(x.address(at).cast()) }
    }

    #[inline(always)]
    fn prefetch_read<T>(self, x: &[T], at: usize) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(at).cast()) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> Self::F {
        unsafe {
            if x.len() >= LANES {
                _mm512_loadu_ps(x.as_ptr())
            } else {
                _mm512_maskz_loadu_ps(first(x.len()), x.as_ptr())
            }
        }
    }

    #[inline(always)]
    fn store(self, x: &mut [f32], v: Self::F) {
        unsafe {
            if x.len() >= LANES {
                _mm512_storeu_ps(x.as_mut_ptr(), v);
            } else {
                _mm512_mask_storeu_ps(x.as_mut_ptr(), first(x.len()), v);
            }
        }
    }

    #[inline(always)]
    fn load_bf16(self, x: &[bf16]) -> Self::F {
        unsafe {
            let half = if x.len() >= LANES {
                _mm256_loadu_si256(x.as_ptr().cast())
            } else {
                _mm256_maskz_loadu_epi16(first(x.len()), x.as_ptr().cast())
            };
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
        }
    }

    #[inline(always)]
    fn store_bf16(self, x: &mut [bf16], v: Self::F) {
        unsafe {
            let half = if BF16 {
                std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v))
            } else {
                _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded(v)))
            };
            if x.len() >= LANES {
                _mm256_storeu_si256(x.as_mut_ptr().cast(), half);
            } else {
                _mm256_mask_storeu_epi16(x.as_mut_ptr().cast(), first(x.len()), half);
            }
        }
    }

    #[inline(always)]
    fn store_bf16_pair(self, x: &mut [bf16], v: [Self::F; 2]) {
        if BF16 && x.len() >= 2 * LANES {
            unsafe {
                let both = _mm512_cvtne2ps_pbh(v[1], v[0]);
                _mm512_storeu_si512(x.as_mut_ptr().cast(), std::mem::transmute::<__m512bh, __m512i>(both));
            }
        } else {
            let (low, high) = x.split_at_mut(LANES);
            self.store_bf16(low, v[0]);
            self.store_bf16(high, v[1]);
        }
    }

    #[inline(always)]
    fn pair(self, even: Self::F, odd: Self::F) -> Self::G {
        unsafe {
            // Rounding each to a whole number of bfloat16s leaves the upper halves to be put together.
            let (even, odd) = if BF16 {
                let wide = |v| {
                    let half = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v));
                    _mm512_cvtepu16_epi32(half)
                };
                (wide(even), _mm512_slli_epi32::<16>(wide(odd)))
            } else {
                let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
                (_mm512_srli_epi32::<16>(rounded(even)), _mm512_and_si512(rounded(odd), high))
            };
            _mm512_or_si512(even, odd)
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn recip(self, a: Self::F) -> Self::F {
        unsafe {
            // 14 bits, doubled by one step of Newton's.
            let guess = _mm512_rcp14_ps(a);
            let error = _mm512_fnmadd_ps(a, guess, _mm512_set1_ps(1.0));
            _mm512_fmadd_ps(guess, error, guess)
        }
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn scale_by_power(self, a: Self::F, n: Self::F) -> Self::F {
        unsafe { _mm512_scalef_ps(a, n) }
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        unsafe { _mm512_roundscale_ps::<0>(a) }
    }

    #[inline(always)]
    fn positive(self, a: Self::F) -> u16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, _mm512_setzero_ps()) }
    }

    #[inline(always)]
    fn select(self, mask: u16, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_mask_blend_ps(mask, b, a) }
    }

    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        unsafe { _mm512_reduce_add_ps(a) }
    }

    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        unsafe { _mm512_reduce_max_ps(a) }
    }

    #[inline(always)]
    fn load_groups(self, x: &[u32; LANES]) -> Self::G {
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store_groups(self, x: &mut [u32; LANES], v: Self::G) {
        unsafe { _mm512_storeu_si512(x.as_mut_ptr().cast(), v) }
    }

    #[inline(always)]
    fn splat_group(self, x: u32) -> Self::G {
        unsafe { _mm512_set1_epi32(x as i32) }
    }

    #[inline(always)]
    fn dot_f32(self, sum: Self::F, a: Self::G, b: Self::G) -> Self::F {
        unsafe { _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum) }
    }

    #[inline(always)]
    fn dot_bf16(self, sum: Self::F, a: Self::G, b: Self::G) -> Self::F {
        unsafe {
            if BF16 {
                let cast = |g| std::mem::transmute::<__m512i, __m512bh>(g);
                return _mm512_dpbf16_ps(sum, cast(a), cast(b));
            }
            let ([a_even, a_odd], [b_even, b_odd]) = (self.unpair(a), self.unpair(b));
            _mm512_fmadd_ps(a_odd, b_odd, _mm512_fmadd_ps(a_even, b_even, sum))
        }
    }

    #[inline(always)]
    fn unpair(self, x: Self::G) -> [Self::F; 2] {
        unsafe {
            let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)), _mm512_castsi512_ps(_mm512_and_si512(x, high))]
        }
    }

    #[inline(always)]
    fn keep_bf16(self, words: [u16; 2], x: Self::G) -> Self::G {
        unsafe { _mm512_maskz_mov_epi16(u32::from(words[0]) | u32::from(words[1]) << 16, x) }
    }

    #[inline(always)]
    fn interleave(self, even: Self::F, odd: Self::F) -> [Self::F; 2] {
        unsafe {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(LANES as i32 / 2));
            [_mm512_permutex2var_ps(even, low, odd), _mm512_permutex2var_ps(even, high, odd)]
        }
    }

    /// By doubling: neighbouring groups, pairs, then the registers' quarters.
    #[inline(always)]
    fn transpose(self, rows: &[[u32; LANES]; LANES], out: &mut [[u32; LANES]; LANES]) {
        unsafe {
            let mut a = [_mm512_setzero_si512(); LANES];
            for (v, row) in a.iter_mut().zip(rows) {
                *v = self.load_groups(row);
            }
            let mut b = a;
            for i in 0..8 {
                b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
                b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
            }
            for i in 0..4 {
                for j in 0..2 {
                    let (x, y) = (b[4 * i + j], b[4 * i + j + 2]);
                    a[4 * i + 2 * j] = _mm512_unpacklo_epi64(x, y);
                    a[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(x, y);
                }
            }
            // a[4 i + j]: column 4 q + j of rows 4 i .. 4 i + 4 in quarter q.
            for j in 0..4 {
                let (x0, x1) = (a[j], a[4 + j]);
                let (x2, x3) = (a[8 + j], a[12 + j]);
                let low01 = _mm512_shuffle_i32x4::<0x88>(x0, x1);
                let high01 = _mm512_shuffle_i32x4::<0xdd>(x0, x1);
                let low23 = _mm512_shuffle_i32x4::<0x88>(x2, x3);
                let high23 = _mm512_shuffle_i32x4::<0xdd>(x2, x3);
                self.store_groups(&mut out[j], _mm512_shuffle_i32x4::<0x88>(low01, low23));
                self.store_groups(&mut out[8 + j], _mm512_shuffle_i32x4::<0xdd>(low01, low23));
                self.store_groups(&mut out[4 + j], _mm512_shuffle_i32x4::<0x88>(high01, high23));
                self.store_groups(&mut out[12 + j], _mm512_shuffle_i32x4::<0xdd>(high01, high23));
            }
        }
    }
}

/// Bits of `v` rounded to nearest even at bit 16, the lower half left dirty; NaNs stay NaNs.
#[inline(always)]
unsafe fn rounded(v: __m512) -> __m512i {
    // SAFETY: called with the token at hand.
    unsafe {
        let bits = _mm512_castps_si512(v);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
        _mm512_mask_blend_epi32(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v), up, quiet)
    }
}
