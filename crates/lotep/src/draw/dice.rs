//! Chance and angles that come out the same on every machine.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The random choices of one image.
pub(super) struct Dice(ChaCha8Rng);

impl Dice {
    /// One independent stream for each (seed, task, index): an image never depends on those drawn before it.
    pub(super) fn new(seed: u64, task: u64, index: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&task.to_le_bytes());
        key[16..24].copy_from_slice(&index.to_le_bytes());
        Self(ChaCha8Rng::from_seed(key))
    }

    /// A value of `[low, high)`, evenly.
    pub(super) fn between(&mut self, low: f32, high: f32) -> f32 {
        // 24 bits are what an f32 holds exactly.
        low + (high - low) * ((self.0.next_u32() >> 8) as f32 / 16_777_216.0)
    }

    pub(super) fn chance(&mut self, probability: f32) -> bool {
        self.between(0.0, 1.0) < probability
    }

    /// -1 or 1.
    pub(super) fn sign(&mut self) -> f32 {
        if self.chance(0.5) { 1.0 } else { -1.0 }
    }

    /// A bell-shaped value of mean 0 and standard deviation 1: the sum of four bytes, which is near enough.
    pub(super) fn bell(&mut self) -> f32 {
        let sum: u32 = self.0.next_u32().to_le_bytes().iter().map(|byte| u32::from(*byte)).sum();
        (sum as f32 - 510.0) / 147.8
    }
}

/// Cosine and sine of an angle in turns.
///
/// The standard library's call the platform's own, which differ in the last bit between systems; sums and
/// products do not.
pub(super) fn turn(turns: f32) -> (f32, f32) {
    let quarters = turns * 4.0;
    let nearest = (quarters + 0.5).floor();
    let angle = (quarters - nearest) * std::f32::consts::FRAC_PI_2;
    let square = angle * angle;
    // Taylor series; on an eighth of a turn either way they are good to 4e-7.
    let sin = angle * (1.0 - square * (1.0 / 6.0 - square * (1.0 / 120.0 - square / 5040.0)));
    let cos = 1.0 - square * (0.5 - square * (1.0 / 24.0 - square * (1.0 / 720.0 - square / 40320.0)));
    match (nearest as i32).rem_euclid(4) {
        0 => (cos, sin),
        1 => (-sin, cos),
        2 => (-cos, -sin),
        _ => (sin, -cos),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turn_agrees_with_the_standard_library() {
        for step in -300..300i16 {
            let turns = f32::from(step) / 97.0;
            let (cos, sin) = turn(turns);
            let angle = f64::from(turns) * std::f64::consts::TAU;
            let error = (f64::from(cos) - angle.cos()).abs().max((f64::from(sin) - angle.sin()).abs());
            assert!(error < 3e-6, "{turns} turns: {cos} {sin}");
        }
    }

    #[test]
    fn draws_have_the_promised_spread() {
        let mut dice = Dice::new(1, 2, 3);
        let bells: Vec<f32> = (0..20_000).map(|_| dice.bell()).collect();
        let mean = bells.iter().sum::<f32>() / 20_000.0;
        let variance = bells.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.04, "{mean} {variance}");
        let ups = (0..3000).filter(|_| dice.sign() > 0.0).count();
        assert!((1350..1650).contains(&ups), "{ups} of 3000");
    }
}
