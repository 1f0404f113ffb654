//! What products are made of: f32, or bfloat16 in pairs.

use half::bf16;

use crate::simd::{LANES, Simd};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

/// An element of a product's operands. Both kinds are handled in groups of 32 bits along the summed axis.
pub trait Operand:
    sealed::Sealed + Copy + Default + PartialEq + Send + Sync + std::fmt::Debug + 'static
{
    /// Elements of a group.
    const GROUP: usize;

    /// Round a value.
    fn from_f32(x: f32) -> Self;
    /// The value.
    fn to_f32(self) -> f32;
    /// Load up to sixteen elements.
    fn load<S: Simd>(s: S, x: &[Self]) -> S::F;
    /// Store as many lanes as fit, rounded.
    fn store<S: Simd>(s: S, x: &mut [Self], v: S::F);
    /// Store up to 32 elements, rounded.
    fn store_pair<S: Simd>(s: S, x: &mut [Self], v: [S::F; 2]);
    /// Add the products of two vectors of groups.
    fn dot<S: Simd>(s: S, sum: S::F, a: S::G, b: S::G) -> S::F;
    /// The group of one column and `GROUP` successive rows.
    fn group(rows: [f32; 2]) -> u32;
    /// The values of a group; the second is 0 where it holds one.
    fn ungroup(group: u32) -> [f32; 2];
    /// The groups of sixteen columns of two rows; the second row is ignored where a group holds one.
    fn zip(rows: [&[Self; LANES]; 2], out: &mut [u32; LANES]);
    /// Sixteen such groups side by side; the second row is ignored where a group holds one.
    fn groups<S: Simd>(s: S, rows: [S::F; 2], out: &mut [u32; LANES]);
}

impl Operand for f32 {
    const GROUP: usize = 1;

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[Self]) -> S::F {
        s.load(x)
    }

    #[inline(always)]
    fn store<S: Simd>(s: S, x: &mut [Self], v: S::F) {
        s.store(x, v);
    }

    #[inline(always)]
    fn store_pair<S: Simd>(s: S, x: &mut [Self], v: [S::F; 2]) {
        let (low, high) = x.split_at_mut(x.len().min(LANES));
        s.store(low, v[0]);
        s.store(high, v[1]);
    }

    #[inline(always)]
    fn dot<S: Simd>(s: S, sum: S::F, a: S::G, b: S::G) -> S::F {
        s.dot_f32(sum, a, b)
    }

    #[inline(always)]
    fn group(rows: [f32; 2]) -> u32 {
        rows[0].to_bits()
    }

    #[inline(always)]
    fn ungroup(group: u32) -> [f32; 2] {
        [f32::from_bits(group), 0.0]
    }

    #[inline(always)]
    fn zip(rows: [&[Self; LANES]; 2], out: &mut [u32; LANES]) {
        *out = rows[0].map(f32::to_bits);
    }

    #[inline(always)]
    fn groups<S: Simd>(s: S, rows: [S::F; 2], out: &mut [u32; LANES]) {
        let mut values = [0.0; LANES];
        s.store(&mut values, rows[0]);
        *out = values.map(f32::to_bits);
    }
}

impl Operand for bf16 {
    const GROUP: usize = 2;

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[Self]) -> S::F {
        s.load_bf16(x)
    }

    #[inline(always)]
    fn store<S: Simd>(s: S, x: &mut [Self], v: S::F) {
        s.store_bf16(x, v);
    }

    #[inline(always)]
    fn store_pair<S: Simd>(s: S, x: &mut [Self], v: [S::F; 2]) {
        if x.len() == 2 * LANES {
            return s.store_bf16_pair(x, v);
        }
        let (low, high) = x.split_at_mut(x.len().min(LANES));
        s.store_bf16(low, v[0]);
        s.store_bf16(high, v[1]);
    }

    #[inline(always)]
    fn dot<S: Simd>(s: S, sum: S::F, a: S::G, b: S::G) -> S::F {
        s.dot_bf16(sum, a, b)
    }

    #[inline(always)]
    fn group(rows: [f32; 2]) -> u32 {
        let [low, high] = rows.map(|v| u32::from(bf16::from_f32(v).to_bits()));
        low | high << 16
    }

    #[inline(always)]
    fn ungroup(group: u32) -> [f32; 2] {
        [f32::from_bits(group << 16), f32::from_bits(group & 0xffff_0000)]
    }

    #[inline(always)]
    fn zip(rows: [&[Self; LANES]; 2], out: &mut [u32; LANES]) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = u32::from(rows[0][i].to_bits()) | u32::from(rows[1][i].to_bits()) << 16;
        }
    }

    #[inline(always)]
    fn groups<S: Simd>(s: S, rows: [S::F; 2], out: &mut [u32; LANES]) {
        s.store_groups(out, s.pair(rows[0], rows[1]));
    }
}
