//! Sixteen f32 lanes on any machine, and functions over them.
//!
//! A kernel is written once, against [`Simd`], and compiled once for each implementation inside a function that
//! has the instructions switched on ([`dispatch`]). Everything in between is `#[inline(always)]`.

mod array;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod avx2;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod avx512;
mod math;

use half::bf16;

use crate::SharedMut;
use crate::isa::{Isa, Kind};
use array::Array;

pub use math::{
    coarse_exp2, coarse_gaussian_cdf, coarse_gelu_derivative, coarse_logistic, exp, exp2, gaussian_cdf,
    logistic,
};

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Sixteen f32 values at a time. The token's existence proves that the machine has the instructions.
pub trait Simd: Copy + Send + Sync {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen 32-bit groups, each one f32 or two bfloat16: what products are made of.
    type G: Copy;

    /// Whether registers hold the sums of eight rows and two vectors beside what is added to them; products keep fewer sums
    /// at once where they don't.
    const WIDE: bool;

    /// Whether tile instructions may be used too.
    fn tiles(self) -> bool;

    /// Ask for the cache line of element `at`, to write it soon.
    fn prefetch<T>(self, x: &SharedMut<'_, T>, at: usize);
    /// Ask for the cache line of element `at`, which need not be there, to read it soon.
    fn prefetch_read<T>(self, x: &[T], at: usize);

    /// All lanes the same.
    fn splat(self, x: f32) -> Self::F;
    /// Load up to sixteen values; lanes beyond are zero.
    fn load(self, x: &[f32]) -> Self::F;
    /// Store as many lanes as fit.
    fn store(self, x: &mut [f32], v: Self::F);
    /// Load up to sixteen bfloat16; lanes beyond are zero.
    fn load_bf16(self, x: &[bf16]) -> Self::F;
    /// Store as many lanes as fit, rounded to nearest even.
    fn store_bf16(self, x: &mut [bf16], v: Self::F);
    /// Store 32 values, rounded likewise.
    #[inline(always)]
    fn store_bf16_pair(self, x: &mut [bf16], v: [Self::F; 2]) {
        let (low, high) = x.split_at_mut(LANES);
        self.store_bf16(low, v[0]);
        self.store_bf16(high, v[1]);
    }
    /// Round two vectors to bfloat16, lane `i` of `even` and `odd` side by side in group `i`.
    fn pair(self, even: Self::F, odd: Self::F) -> Self::G;

    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `1 / a`, to 1e-7 relative.
    fn recip(self, a: Self::F) -> Self::F;
    /// The larger of each lane; `b` where either is no number.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of each lane; `b` where either is no number.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · 2^n`, with `n` an integer in `-126..=127` stored as f32.
    fn scale_by_power(self, a: Self::F, n: Self::F) -> Self::F;
    /// To the nearest integer, ties to even, for magnitudes below 2^22.
    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        // Adding 1.5 · 2^23 leaves no bits for a fraction.
        let shift = self.splat(12_582_912.0);
        self.sub(self.add(a, shift), shift)
    }
    /// Bit `i` is set where lane `i` of `a` is above zero.
    fn positive(self, a: Self::F) -> u16;
    /// `a` where the bit is set, else `b`.
    fn select(self, mask: u16, a: Self::F, b: Self::F) -> Self::F;
    /// Sum of the lanes.
    fn sum(self, a: Self::F) -> f32;
    /// Largest lane.
    fn largest(self, a: Self::F) -> f32;

    /// Sixteen groups as they lie in memory.
    fn load_groups(self, x: &[u32; LANES]) -> Self::G;
    /// Write sixteen groups.
    fn store_groups(self, x: &mut [u32; LANES], v: Self::G);
    /// The same group in every lane.
    fn splat_group(self, x: u32) -> Self::G;
    /// Add the product of groups of one f32.
    fn dot_f32(self, sum: Self::F, a: Self::G, b: Self::G) -> Self::F;
    /// Add both products of groups of two bfloat16.
    fn dot_bf16(self, sum: Self::F, a: Self::G, b: Self::G) -> Self::F;
    /// Of groups of two bfloat16, the first of each and the second: what [`Simd::pair`] put together.
    fn unpair(self, x: Self::G) -> [Self::F; 2];
    /// Of 32 bfloat16 in groups, those whose bits are set, the first sixteen in the first word; zero elsewhere.
    fn keep_bf16(self, words: [u16; 2], x: Self::G) -> Self::G;
    /// Lanes of both vectors, alternating: those of the lower eight of each, then of the upper eight.
    fn interleave(self, even: Self::F, odd: Self::F) -> [Self::F; 2];
    /// Exchange rows and columns of sixteen rows of sixteen groups.
    fn transpose(self, rows: &[[u32; LANES]; LANES], out: &mut [[u32; LANES]; LANES]);
}

/// Something to run with whatever lanes the machine has.
pub trait Kernel: Sized {
    /// Its result.
    type Output;
    /// Run it. To be `#[inline(always)]`, with all it calls.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// A kernel's forms for each instruction set. Methods, since the compiler shares out its work by the modules that
/// methods' types are of: as functions, all kernels' forms would be compiled by one thread.
trait Forms: Kernel {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2(self) -> Self::Output {
        // SAFETY: this function is only called where these features were detected.
        self.run(unsafe { avx2::Avx2::new() })
    }

    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn avx512(self) -> Self::Output {
        // SAFETY: this function is only called where these features were detected.
        self.run(unsafe { avx512::Avx512::<false>::new(false) })
    }

    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn avx512bf16(self, tiles: bool) -> Self::Output {
        // SAFETY: as above, with avx512bf16; `tiles` is true only where tiles were detected.
        self.run(unsafe { avx512::Avx512::<true>::new(tiles) })
    }

    fn portable(self) -> Self::Output {
        // On AArch64 the multiply-add is one of the instructions that are always there.
        self.run(Array::<{ cfg!(target_arch = "aarch64") }>)
    }
}

impl<K: Kernel> Forms for K {}

/// Run a kernel with an instruction set.
pub fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa.kind() {
        Kind::Portable => kernel.portable(),
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: an `Isa` exists only where its instructions were detected, the weaker ones included.
        kind => unsafe {
            match kind {
                Kind::Portable | Kind::Avx2 => kernel.avx2(),
                Kind::Avx512 => kernel.avx512(),
                Kind::Avx512Bf16 => kernel.avx512bf16(false),
                Kind::Amx => kernel.avx512bf16(true),
            }
        },
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        _ => kernel.portable(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation of every implementation against plain arithmetic.
    #[test]
    fn lanes_compute_what_their_names_say() {
        struct Check;
        impl Kernel for Check {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(self, s: S) {
                let a: [f32; LANES] = std::array::from_fn(|i| i as f32 * 1.375 - 9.5);
                let b: [f32; LANES] = std::array::from_fn(|i| 3.25 - i as f32 * 0.625);
                let (va, vb) = (s.load(&a), s.load(&b));
                let check = |v: S::F, what: &dyn Fn(f32, f32) -> f32| {
                    let mut out = [0.0; LANES];
                    s.store(&mut out, v);
                    for i in 0..LANES {
                        let expected = what(a[i], b[i]);
                        assert!((out[i] - expected).abs() <= 2e-7 * expected.abs(), "{} {expected}", out[i]);
                    }
                };
                check(s.add(va, vb), &|a, b| a + b);
                check(s.sub(va, vb), &|a, b| a - b);
                check(s.mul(va, vb), &|a, b| a * b);
                check(s.mul_add(va, vb, va), &|a, b| a.mul_add(b, a));
                check(s.recip(va), &|a, _| 1.0 / a);
                check(s.max(va, vb), &f32::max);
                check(s.min(va, vb), &f32::min);
                check(s.scale_by_power(va, s.splat(-3.0)), &|a, _| a / 8.0);
                check(s.select(s.positive(vb), va, vb), &|a, b| if b > 0.0 { a } else { b });
                check(s.select(s.positive(va), va, vb), &|a, b| if a > 0.0 { a } else { b });
                check(s.round(va), &|a, _| a.round_ties_even());
                // What is no number: the second of two.
                let none = s.splat(f32::NAN);
                check(s.max(none, va), &|a, _| a);
                check(s.min(none, va), &|a, _| a);
                let mut out = [0.0; LANES];
                s.store(&mut out, s.max(va, none));
                assert!(out.iter().all(|v| v.is_nan()));
                assert!((s.sum(va) - a.iter().sum::<f32>()).abs() < 1e-4);
                for lane in 0..LANES {
                    let mut peak = [-1.0; LANES];
                    peak[lane] = 0.5;
                    assert_eq!(s.largest(s.load(&peak)).to_bits(), 0.5_f32.to_bits());
                    assert_eq!(s.positive(s.load(&peak)), 1 << lane);
                }
                // Fewer values than lanes.
                let mut short = [7.0; 5];
                s.store(&mut short, s.load(&a[..3]));
                assert_eq!(short.map(f32::to_bits), [a[0], a[1], a[2], 0.0, 0.0].map(f32::to_bits));
                // Half of them, and nothing beyond.
                let mut half = [7.0; LANES];
                s.store(&mut half[..LANES / 2], s.load(&a[..LANES / 2]));
                for (i, v) in half.iter().enumerate() {
                    let expected: f32 = if i < LANES / 2 { a[i] } else { 7.0 };
                    assert_eq!(v.to_bits(), expected.to_bits(), "lane {i} of half as many");
                }
                s.store(&mut half, s.load(&a[..LANES / 2]));
                assert!(half[LANES / 2..].iter().all(|v| v.to_bits() == 0), "{half:?}");
                // bfloat16, ties to even.
                let x = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -2.5, 0.0, 1e30];
                let mut rounded = [bf16::ZERO; 5];
                s.store_bf16(&mut rounded, s.load(&x));
                assert_eq!(rounded, x.map(bf16::from_f32));
                let mut back = [1.0; 7];
                s.store(&mut back, s.load_bf16(&rounded));
                assert_eq!(back[..5], rounded.map(f32::from));
                assert_eq!(back[5..], [0.0; 2]);
                // All lanes, the ends of the range among them.
                let mut ends = a;
                ends[..4].copy_from_slice(&[f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE]);
                let mut rounded = [bf16::ZERO; LANES];
                s.store_bf16(&mut rounded, s.load(&ends));
                assert_eq!(rounded, ends.map(bf16::from_f32));
                let mut back = [0.0; LANES];
                s.store(&mut back, s.load_bf16(&rounded));
                assert_eq!(back.map(f32::to_bits), rounded.map(|v| f32::from(v).to_bits()));
                s.store_bf16(&mut rounded, none);
                assert!(rounded.iter().all(|v| v.is_nan()));
                // Products of groups.
                let mut groups = [0; LANES];
                s.store_groups(&mut groups, s.pair(va, vb));
                for i in 0..LANES {
                    let bits = |v: f32| u32::from(bf16::from_f32(v).to_bits());
                    assert_eq!(groups[i], bits(a[i]) | bits(b[i]) << 16);
                }
                let g = s.load_groups(&groups);
                let [even, odd] = s.unpair(g);
                let rounded = |v: f32| bf16::from_f32(v).to_f32();
                check(even, &|a, _| rounded(a));
                check(odd, &|_, b| rounded(b));
                for words in [[0, 0xffff], [0x8001, 0x5a3c]] {
                    let mut kept = [7; LANES];
                    s.store_groups(&mut kept, s.keep_bf16(words, g));
                    let bits = u32::from(words[0]) | u32::from(words[1]) << 16;
                    for i in 0..LANES {
                        let half = |place: usize| if bits >> place & 1 == 1 { 0xffff } else { 0 };
                        assert_eq!(kept[i], groups[i] & (half(2 * i) | half(2 * i + 1) << 16), "group {i}");
                    }
                }
                let mut both = [0.0; 2 * LANES];
                let [low, high] = s.interleave(va, vb);
                s.store(&mut both[..LANES], low);
                s.store(&mut both[LANES..], high);
                for (i, pair) in both.chunks_exact(2).enumerate() {
                    assert_eq!(
                        [pair[0], pair[1]].map(f32::to_bits),
                        [a[i], b[i]].map(f32::to_bits),
                        "lane {i}"
                    );
                }
                check(s.dot_bf16(va, g, s.splat_group(groups[2])), &|x, y| {
                    x + rounded(x) * rounded(a[2]) + rounded(y) * rounded(b[2])
                });
                let f = s.load_groups(&a.map(f32::to_bits));
                check(s.dot_f32(va, f, s.splat_group(2.0_f32.to_bits())), &|x, _| x + 2.0 * x);
                let rows: [[u32; LANES]; LANES] =
                    std::array::from_fn(|r| std::array::from_fn(|c| (r * 100 + c) as u32));
                let mut out = [[0; LANES]; LANES];
                s.transpose(&rows, &mut out);
                for r in 0..LANES {
                    for c in 0..LANES {
                        assert_eq!(out[c][r], rows[r][c]);
                    }
                }
            }
        }
        for isa in Isa::available() {
            dispatch(*isa, Check);
        }
        // What other processors' forms are made of.
        Check.run(Array::<true>);
    }
}
