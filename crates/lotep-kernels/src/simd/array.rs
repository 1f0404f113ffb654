//! Lanes as a plain array, for the compiler to make of it what the target allows.

use half::bf16;

use super::{LANES, Simd};
use crate::SharedMut;

/// `FMA`: whether a fused multiply-add is one instruction (else it would be a library call).
#[derive(Clone, Copy)]
pub(super) struct Array<const FMA: bool>;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for (i, o) in out.iter_mut().enumerate() {
        *o = f(i);
    }
    out
}

/// To nearest, ties to even.
#[inline(always)]
fn round_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() { (bits >> 16) | 0x40 } else { (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 }
}

impl<const FMA: bool> Simd for Array<FMA> {
    type F = [f32; LANES];
    type G = [u32; LANES];

    const WIDE: bool = false;

    #[inline(always)]
    fn tiles(self) -> bool {
        false
    }

    #[inline(always)]
    fn prefetch<T>(self, _x: &SharedMut<'_, T>, _at: usize) {}

    #[inline(always)]
    fn prefetch_read<T>(self, _x: &[T], _at: usize) {}

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> Self::F {
        if let Ok(full) = x.try_into() {
            return full;
        }
        let mut out = [0.0; LANES];
        out[..x.len()].copy_from_slice(x);
        out
    }

    #[inline(always)]
    fn store(self, x: &mut [f32], v: Self::F) {
        let n = x.len().min(LANES);
        x[..n].copy_from_slice(&v[..n]);
    }

    #[inline(always)]
    fn load_bf16(self, x: &[bf16]) -> Self::F {
        let mut out = [0.0; LANES];
        for (o, v) in out.iter_mut().zip(x) {
            *o = f32::from_bits(u32::from(v.to_bits()) << 16);
        }
        out
    }

    #[inline(always)]
    fn store_bf16(self, x: &mut [bf16], v: Self::F) {
        for (o, v) in x.iter_mut().zip(v) {
            *o = bf16::from_bits(round_bits(v) as u16);
        }
    }

    #[inline(always)]
    fn pair(self, even: Self::F, odd: Self::F) -> Self::G {
        let mut out = [0; LANES];
        for i in 0..LANES {
            out[i] = round_bits(even[i]) | round_bits(odd[i]) << 16;
        }
        out
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        if FMA { each(|i| a[i].mul_add(b[i], c[i])) } else { each(|i| a[i] * b[i] + c[i]) }
    }

    #[inline(always)]
    fn recip(self, a: Self::F) -> Self::F {
        each(|i| 1.0 / a[i])
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn scale_by_power(self, a: Self::F, n: Self::F) -> Self::F {
        each(|i| a[i] * f32::from_bits(((n[i] as i32 + 127) << 23) as u32))
    }

    #[inline(always)]
    fn positive(self, a: Self::F) -> u16 {
        let mut mask = 0;
        for (i, v) in a.iter().enumerate() {
            mask |= u16::from(*v > 0.0) << i;
        }
        mask
    }

    #[inline(always)]
    fn select(self, mask: u16, a: Self::F, b: Self::F) -> Self::F {
        each(|i| if mask >> i & 1 == 1 { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        // By halves, as vectors would.
        let eight: [f32; 8] = std::array::from_fn(|i| a[i] + a[i + 8]);
        let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }

    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, |m, v| if v > m { v } else { m })
    }

    #[inline(always)]
    fn load_groups(self, x: &[u32; LANES]) -> Self::G {
        *x
    }

    #[inline(always)]
    fn store_groups(self, x: &mut [u32; LANES], v: Self::G) {
        *x = v;
    }

    #[inline(always)]
    fn splat_group(self, x: u32) -> Self::G {
        [x; LANES]
    }

    #[inline(always)]
    fn dot_f32(self, sum: Self::F, a: Self::G, b: Self::G) -> Self::F {
        self.mul_add(a.map(f32::from_bits), b.map(f32::from_bits), sum)
    }

    #[inline(always)]
    fn dot_bf16(self, sum: Self::F, a: Self::G, b: Self::G) -> Self::F {
        let ([a_even, a_odd], [b_even, b_odd]) = (self.unpair(a), self.unpair(b));
        self.mul_add(a_odd, b_odd, self.mul_add(a_even, b_even, sum))
    }

    #[inline(always)]
    fn unpair(self, x: Self::G) -> [Self::F; 2] {
        [each(|i| f32::from_bits(x[i] << 16)), each(|i| f32::from_bits(x[i] & 0xffff_0000))]
    }

    #[inline(always)]
    fn keep_bf16(self, words: [u16; 2], x: Self::G) -> Self::G {
        let mut out = x;
        for i in 0..2 * LANES {
            if words[i / LANES] >> (i % LANES) & 1 == 0 {
                out[i / 2] &= if i % 2 == 0 { 0xffff_0000 } else { 0x0000_ffff };
            }
        }
        out
    }

    #[inline(always)]
    fn interleave(self, even: Self::F, odd: Self::F) -> [Self::F; 2] {
        let turns =
            |first: usize| each(|i| if i % 2 == 0 { even[first + i / 2] } else { odd[first + i / 2] });
        [turns(0), turns(LANES / 2)]
    }

    #[inline(always)]
    fn transpose(self, rows: &[[u32; LANES]; LANES], out: &mut [[u32; LANES]; LANES]) {
        for (r, row) in rows.iter().enumerate() {
            for (c, v) in row.iter().enumerate() {
                out[c][r] = *v;
            }
        }
    }
}
