//! From coefficients to samples.

use lotep_kernels::simd::{Kernel, LANES, Simd};

use super::Group;

/// The inverse transform of a row of MCUs.
pub(super) struct Transform<'a> {
    /// Left all zeros.
    pub(super) groups: &'a mut [Group],
    pub(super) quantiser: &'a [i32; 64],
    /// Blocks in a row.
    pub(super) blocks: usize,
    /// Blocks in all.
    pub(super) count: usize,
    /// Rows of `8 * blocks` samples.
    pub(super) out: &'a mut [u8],
}

impl Kernel for Transform<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let stride = self.blocks * 8;
        for (g, group) in self.groups.iter_mut().enumerate() {
            let mut columns = [[[0; LANES]; 8]; 8];
            for x in 0..8 {
                for lane in 0..LANES {
                    let mut values = [0; 8];
                    for y in 0..8 {
                        let at = y * 8 + x;
                        values[y] = i32::from(group[at][lane]).wrapping_mul(self.quantiser[at]);
                        group[at][lane] = 0;
                    }
                    let values = inverse::<11>(values);
                    for y in 0..8 {
                        columns[y][x][lane] = values[y];
                    }
                }
            }
            let here = g * LANES..self.count.min((g + 1) * LANES);
            let mut places = [0; LANES];
            for (place, block) in places.iter_mut().zip(here.clone()) {
                *place = (block / self.blocks) * 8 * stride + (block % self.blocks) * 8;
            }
            for (y, row) in columns.iter().enumerate() {
                // A block's eight samples side by side in one number: turned with shifts, not a byte at a time.
                let mut samples = [[0_u32; LANES]; 2];
                for lane in 0..LANES {
                    let mut values = [0; 8];
                    for x in 0..8 {
                        values[x] = row[x][lane];
                    }
                    let sample = inverse::<18>(values).map(|v| (v + 128).clamp(0, 255) as u32);
                    for (half, x) in samples.iter_mut().zip([0, 4]) {
                        half[lane] =
                            sample[x] | sample[x + 1] << 8 | sample[x + 2] << 16 | sample[x + 3] << 24;
                    }
                }
                for (lane, place) in places[..here.len()].iter().enumerate() {
                    let at = place + y * stride;
                    let both = u64::from(samples[0][lane]) | u64::from(samples[1][lane]) << 32;
                    self.out[at..at + 8].copy_from_slice(&both.to_le_bytes());
                }
            }
        }
    }
}

/// The transform of eight values by Loeffler, Ligtenberg and Moschytz with 13-bit constants, as libjpeg rounds it:
/// the result is scaled down by `2^SHIFT`.
#[inline(always)]
fn inverse<const SHIFT: u32>(v: [i32; 8]) -> [i32; 8] {
    // A damaged file may hold any numbers; sound ones do not overflow.
    let add = i32::wrapping_add;
    let sub = i32::wrapping_sub;
    let mul = i32::wrapping_mul;
    // Even part.
    let z = mul(add(v[2], v[6]), 4433);
    let (t2, t3) = (add(z, mul(v[6], -15137)), add(z, mul(v[2], 6270)));
    let (t0, t1) = (add(v[0], v[4]) << 13, sub(v[0], v[4]) << 13);
    let even = [add(t0, t3), add(t1, t2), sub(t1, t2), sub(t0, t3)];
    // Odd part.
    let (z3, z4) = (add(v[7], v[3]), add(v[5], v[1]));
    let z5 = mul(add(z3, z4), 9633);
    let (z1, z2) = (mul(add(v[7], v[1]), -7373), mul(add(v[5], v[3]), -20995));
    let (z3, z4) = (add(mul(z3, -16069), z5), add(mul(z4, -3196), z5));
    let odd = [
        add(mul(v[1], 12299), add(z1, z4)),
        add(mul(v[3], 25172), add(z2, z3)),
        add(mul(v[5], 16819), add(z2, z4)),
        add(mul(v[7], 2446), add(z1, z3)),
    ];
    let mut out = [0; 8];
    for i in 0..4 {
        let half = 1 << (SHIFT - 1);
        out[i] = add(add(even[i], odd[i]), half) >> SHIFT;
        out[7 - i] = add(sub(even[i], odd[i]), half) >> SHIFT;
    }
    out
}
