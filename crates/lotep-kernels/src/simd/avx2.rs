//! Lanes as two 256-bit registers.

use std::arch::x86_64::*;

use half::bf16;

use super::{LANES, Simd};
use crate::SharedMut;

/// AVX2 with FMA.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// Make the token.
    ///
    /// # Safety
    /// The machine must have AVX2 and FMA.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

/// Eight lanes.
const HALF: usize = LANES / 2;

/// `f` of each half. Not a closure: that would be compiled without the instructions.
macro_rules! halves {
    ($f:expr, $($v:expr),+) => { [$f($($v[0]),+), $f($($v[1]),+)] };
}

// SAFETY of every block here: the token proves that the instructions exist. Loads and stores go to arrays of the
// registers' size, or to slices found to be long enough; unaligned forms are used throughout.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    type F = [__m256; 2];
    type G = [__m256i; 2];

    const WIDE: bool = false;

    #[inline(always)]
    fn tiles(self) -> bool {
        false
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
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> Self::F {
        if x.len() == HALF {
            return unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_setzero_ps()] };
        }
        let mut whole = [0.0; LANES];
        let x = if x.len() >= LANES {
            x
        } else {
            whole[..x.len()].copy_from_slice(x);
            &whole
        };
        unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(HALF))] }
    }

    #[inline(always)]
    fn store(self, x: &mut [f32], v: Self::F) {
        if x.len() == HALF {
            return unsafe { _mm256_storeu_ps(x.as_mut_ptr(), v[0]) };
        }
        let mut whole = [0.0; LANES];
        let to = if x.len() >= LANES { x.as_mut_ptr() } else { whole.as_mut_ptr() };
        unsafe {
            _mm256_storeu_ps(to, v[0]);
            _mm256_storeu_ps(to.add(HALF), v[1]);
        }
        if x.len() < LANES {
            x.copy_from_slice(&whole[..x.len()]);
        }
    }

    #[inline(always)]
    fn load_bf16(self, x: &[bf16]) -> Self::F {
        let mut whole = [bf16::ZERO; LANES];
        let x = if x.len() >= LANES {
            x
        } else {
            whole[..x.len()].copy_from_slice(x);
            &whole
        };
        unsafe { [widened(x.as_ptr()), widened(x.as_ptr().add(HALF))] }
    }

    #[inline(always)]
    fn store_bf16(self, x: &mut [bf16], v: Self::F) {
        let mut whole = [bf16::ZERO; LANES];
        let to = if x.len() >= LANES { x.as_mut_ptr() } else { whole.as_mut_ptr() };
        unsafe {
            // Packing goes by the registers' quarters: put them in order.
            let packed = _mm256_packus_epi32(upper(v[0]), upper(v[1]));
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            _mm256_storeu_si256(to.cast(), packed);
        }
        if x.len() < LANES {
            x.copy_from_slice(&whole[..x.len()]);
        }
    }

    #[inline(always)]
    fn pair(self, even: Self::F, odd: Self::F) -> Self::G {
        unsafe { halves!(paired, even, odd) }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { halves!(_mm256_add_ps, a, b) }
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { halves!(_mm256_sub_ps, a, b) }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { halves!(_mm256_mul_ps, a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { halves!(_mm256_fmadd_ps, a, b, c) }
    }

    #[inline(always)]
    fn recip(self, a: Self::F) -> Self::F {
        unsafe {
            let one = [_mm256_set1_ps(1.0); 2];
            halves!(_mm256_div_ps, one, a)
        }
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { halves!(_mm256_max_ps, a, b) }
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { halves!(_mm256_min_ps, a, b) }
    }

    #[inline(always)]
    fn scale_by_power(self, a: Self::F, n: Self::F) -> Self::F {
        unsafe { halves!(scaled, a, n) }
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        unsafe { halves!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>, a) }
    }

    #[inline(always)]
    fn positive(self, a: Self::F) -> u16 {
        unsafe {
            let zero = [_mm256_setzero_ps(); 2];
            let above = halves!(_mm256_cmp_ps::<_CMP_GT_OQ>, a, zero);
            (_mm256_movemask_ps(above[0]) | _mm256_movemask_ps(above[1]) << HALF) as u16
        }
    }

    #[inline(always)]
    fn select(self, mask: u16, a: Self::F, b: Self::F) -> Self::F {
        unsafe {
            let low = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let bits = [low, _mm256_slli_epi32::<8>(low)];
            let mask = [_mm256_set1_epi32(i32::from(mask)); 2];
            let set = halves!(_mm256_cmpeq_epi32, halves!(_mm256_and_si256, mask, bits), bits);
            halves!(_mm256_blendv_ps, b, a, halves!(_mm256_castsi256_ps, set))
        }
    }

    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        unsafe {
            let eight = _mm256_add_ps(a[0], a[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        unsafe {
            let eight = _mm256_max_ps(a[0], a[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    fn load_groups(self, x: &[u32; LANES]) -> Self::G {
        unsafe { [_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().add(HALF).cast())] }
    }

    #[inline(always)]
    fn store_groups(self, x: &mut [u32; LANES], v: Self::G) {
        unsafe {
            _mm256_storeu_si256(x.as_mut_ptr().cast(), v[0]);
            _mm256_storeu_si256(x.as_mut_ptr().add(HALF).cast(), v[1]);
        }
    }

    #[inline(always)]
    fn splat_group(self, x: u32) -> Self::G {
        unsafe { [_mm256_set1_epi32(x as i32); 2] }
    }

    #[inline(always)]
    fn dot_f32(self, sum: Self::F, a: Self::G, b: Self::G) -> Self::F {
        unsafe {
            let [a, b] = [halves!(_mm256_castsi256_ps, a), halves!(_mm256_castsi256_ps, b)];
            halves!(_mm256_fmadd_ps, a, b, sum)
        }
    }

    #[inline(always)]
    fn dot_bf16(self, sum: Self::F, a: Self::G, b: Self::G) -> Self::F {
        unsafe { halves!(dot_pairs, sum, a, b) }
    }

    #[inline(always)]
    fn unpair(self, x: Self::G) -> [Self::F; 2] {
        unsafe {
            let high = [_mm256_set1_epi32(0xffff_0000_u32 as i32); 2];
            let even = halves!(_mm256_slli_epi32::<16>, x);
            let odd = halves!(_mm256_and_si256, x, high);
            [halves!(_mm256_castsi256_ps, even), halves!(_mm256_castsi256_ps, odd)]
        }
    }

    #[inline(always)]
    fn keep_bf16(self, words: [u16; 2], x: Self::G) -> Self::G {
        unsafe {
            let bits = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, i16::MIN];
            let bits = _mm256_loadu_si256(bits.as_ptr().cast());
            let word = [_mm256_set1_epi16(words[0] as i16), _mm256_set1_epi16(words[1] as i16)];
            let bits = [bits; 2];
            let set = halves!(_mm256_cmpeq_epi16, halves!(_mm256_and_si256, word, bits), bits);
            halves!(_mm256_and_si256, x, set)
        }
    }

    #[inline(always)]
    fn interleave(self, even: Self::F, odd: Self::F) -> [Self::F; 2] {
        unsafe { [interleaved(even[0], odd[0]), interleaved(even[1], odd[1])] }
    }

    /// By quarters, each a square of eight.
    #[inline(always)]
    fn transpose(self, rows: &[[u32; LANES]; LANES], out: &mut [[u32; LANES]; LANES]) {
        for (r, c) in [(0, 0), (0, HALF), (HALF, 0), (HALF, HALF)] {
            unsafe {
                // Four columns of row `i % 4` and, in the upper half, of the row four below; the next four columns from 4 on.
                let mut square = [_mm256_setzero_ps(); HALF];
                for (i, v) in square.iter_mut().enumerate() {
                    let from = |row: usize| rows[r + row].as_ptr().add(c + i / 4 * 4).cast::<f32>();
                    let low = _mm256_castps128_ps256(_mm_loadu_ps(from(i % 4)));
                    *v = _mm256_insertf128_ps::<1>(low, _mm_loadu_ps(from(i % 4 + 4)));
                }
                for (i, row) in transposed(square).into_iter().enumerate() {
                    _mm256_storeu_ps(out[c + i].as_mut_ptr().add(r).cast(), row);
                }
            }
        }
    }
}

/// In either half of the registers, and of the array, rows and columns of squares of four exchanged.
#[inline(always)]
unsafe fn transposed(a: [__m256; HALF]) -> [__m256; HALF] {
    // SAFETY: called with the token at hand.
    unsafe {
        let mut b = a;
        for i in [0, 4] {
            let pairs = [
                _mm256_unpacklo_ps(a[i], a[i + 1]),
                _mm256_unpackhi_ps(a[i], a[i + 1]),
                _mm256_unpacklo_ps(a[i + 2], a[i + 3]),
                _mm256_unpackhi_ps(a[i + 2], a[i + 3]),
            ];
            b[i] = _mm256_shuffle_ps::<0b01_00_01_00>(pairs[0], pairs[2]);
            b[i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(pairs[0], pairs[2]);
            b[i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(pairs[1], pairs[3]);
            b[i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(pairs[1], pairs[3]);
        }
        b
    }
}

// SAFETY of the following: called with the token at hand.

/// The lanes of both, alternating.
#[inline(always)]
unsafe fn interleaved(even: __m256, odd: __m256) -> [__m256; 2] {
    // SAFETY: as above.
    unsafe {
        let (low, high) = (_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd));
        [_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high)]
    }
}

/// Eight bfloat16 as f32.
#[inline(always)]
unsafe fn widened(x: *const bf16) -> __m256 {
    // SAFETY: and `x` points to eight of them.
    unsafe {
        let half = _mm_loadu_si128(x.cast());
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)))
    }
}

/// Rounded to bfloat16, in the lower halves.
#[inline(always)]
unsafe fn upper(v: __m256) -> __m256i {
    // SAFETY: as above.
    unsafe { _mm256_srli_epi32::<16>(rounded(v)) }
}

/// Both rounded to bfloat16, side by side.
#[inline(always)]
unsafe fn paired(even: __m256, odd: __m256) -> __m256i {
    // SAFETY: as above.
    unsafe {
        let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
        _mm256_or_si256(upper(even), _mm256_and_si256(rounded(odd), high))
    }
}

/// `a · 2^n`.
#[inline(always)]
unsafe fn scaled(a: __m256, n: __m256) -> __m256 {
    // SAFETY: as above.
    unsafe {
        let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
    }
}

/// The products of pairs of bfloat16 added.
#[inline(always)]
unsafe fn dot_pairs(sum: __m256, a: __m256i, b: __m256i) -> __m256 {
    // SAFETY: as above.
    unsafe {
        let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
        let low = _mm256_fmadd_ps(
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)),
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b)),
            sum,
        );
        _mm256_fmadd_ps(
            _mm256_castsi256_ps(_mm256_and_si256(a, high)),
            _mm256_castsi256_ps(_mm256_and_si256(b, high)),
            low,
        )
    }
}

/// Bits of `v` rounded to nearest even at bit 16, the lower half left dirty; NaNs stay NaNs.
#[inline(always)]
unsafe fn rounded(v: __m256) -> __m256i {
    // SAFETY: as above.
    unsafe {
        let bits = _mm256_castps_si256(v);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
        _mm256_blendv_epi8(up, quiet, nan)
    }
}
