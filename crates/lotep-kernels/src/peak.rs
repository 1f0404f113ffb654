//! What this machine's multipliers reach when nothing but registers is touched: what the benchmarks compare with.

use std::hint::black_box;
use std::marker::PhantomData;
use std::time::Instant;

use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::{Isa, Operand};

/// Registers of sums in flight: more than a multiply-add takes cycles on the machines that start two a cycle.
const SUMS: usize = 12;

/// Operations a second (a multiplication and an addition are two) of all threads together, each running `rounds` of a
/// few independent products of operands `T`, with what the instruction set has for them.
pub fn rate<T: Operand>(isa: Isa, rounds: usize) -> f64 {
    let start = Instant::now();
    let operations: f64 =
        rayon::broadcast(|_| dispatch(isa, Spin::<T> { rounds, element: PhantomData })).iter().sum();
    operations / start.elapsed().as_secs_f64()
}

struct Spin<T> {
    rounds: usize,
    element: PhantomData<T>,
}

impl<T: Operand> Kernel for Spin<T> {
    /// Operations.
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if s.tiles() && T::GROUP == 2 {
            // SAFETY: the token says that tiles may be used.
            let tiles = unsafe { crate::gemm::amx::Tiles::configure() };
            spin_tiles(&tiles, self.rounds);
            // A tile product sums 32 products for each of 16 × 16 elements.
            return (self.rounds * 4 * 2 * 32 * 16 * 16) as f64;
        }
        // Tiny, so that sums stay finite; unknown to the compiler.
        let group = black_box(T::group([1e-9; 2]));
        let (a, b) = (s.splat_group(group), s.splat_group(group));
        let mut sums = [s.splat(0.0); SUMS];
        // A vector is several registers where those are not wide.
        let sums = &mut sums[..if S::WIDE { SUMS } else { SUMS / 2 }];
        for _ in 0..self.rounds {
            for sum in &mut *sums {
                *sum = T::dot(s, *sum, a, b);
            }
        }
        for sum in &*sums {
            black_box(s.sum(*sum));
        }
        (self.rounds * sums.len() * 2 * T::GROUP * LANES) as f64
    }
}

/// `rounds` times four tile products, each with a tile of sums of its own: enough to hide how long one takes.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
fn spin_tiles(_configured: &crate::gemm::amx::Tiles, rounds: usize) {
    if rounds == 0 {
        return;
    }
    // SAFETY: tiles are configured on this thread, as the argument proves (it cannot be sent to another). No memory is
    // touched; all tile registers are declared clobbered. `rounds` is above zero, so the loop ends.
    unsafe {
        std::arch::asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "tilezero tmm4",
            "tilezero tmm5",
            "tilezero tmm6",
            "tilezero tmm7",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {n}",
            "jnz 2b",
            n = inout(reg) rounds => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, nomem),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_multiplier_runs() {
        for isa in Isa::available() {
            for rate in [rate::<f32>(*isa, 10), rate::<half::bf16>(*isa, 10)] {
                assert!(rate > 0.0 && rate.is_finite(), "{isa:?}: {rate}");
            }
        }
    }
}
