//! Dropout while training, of values that a method learns or of what they see.

use burn::tensor::{Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Dropout (PyTorch's): each value is zero with a probability, and grows otherwise, so that its mean stays.
///
/// Which values are zero depends on a seed, a place in the network and a sample's number in its step alone, so that a step
/// that is computed in parts, or again, is the same step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    rate: f64,
    seed: u64,
    first: u64,
}

impl Dropout {
    /// Drop a share `rate`, below 1, in a step with a seed of its own; `first` is the number in it of the first of the
    /// samples to come. Nothing where nothing is dropped.
    pub fn new(rate: f64, seed: u64, first: u64) -> Option<Self> {
        (rate > 0.0).then_some(Self { rate, seed, first })
    }

    /// The same at another place in the network.
    #[must_use]
    pub fn at(self, place: &str) -> Self {
        // FNV-1a: the same on every machine and in every version.
        let hash = |h: u64, byte: u8| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        Self { seed: self.seed ^ place.bytes().fold(0xcbf2_9ce4_8422_2325, hash), ..self }
    }

    /// The same where each sample counts as `parts`, such as windows.
    #[must_use]
    pub fn in_parts(self, parts: usize) -> Self {
        Self { first: self.first * parts as u64, ..self }
    }

    /// Apply to samples along the first axis.
    pub fn apply<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        let shape = x.dims();
        let each = shape[1..].iter().product::<usize>();
        let kept = (1.0 / (1.0 - self.rate)) as f32;
        let mut factors = Vec::with_capacity(shape[0] * each);
        for sample in 0..shape[0] as u64 {
            let mut dice = ChaCha8Rng::seed_from_u64(self.seed);
            dice.set_stream(self.first + sample);
            let factor = |_| if dice.random_bool(self.rate) { 0.0 } else { kept };
            factors.extend((0..each).map(factor));
        }
        let device = x.device().without_autodiff();
        x * Tensor::from_data(TensorData::new(factors, shape), &device)
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "a factor is exactly one of two")]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn values_are_dropped_sample_by_sample() {
        let factors = |first: u64, samples: usize, place: &str| {
            let x = Tensor::<3>::ones([samples, 40, 50], &Device::flex());
            let dropout = Dropout::new(0.25, 7, first).unwrap().at(place);
            dropout.apply(x).into_data().iter::<f32>().collect::<Vec<_>>()
        };
        let all = factors(0, 4, "a");
        assert!(all.iter().all(|f| *f == 0.0 || *f == 4.0 / 3.0));
        let mean = all.iter().sum::<f32>() / all.len() as f32;
        // Four standard errors of 8,000 values.
        assert!((mean - 1.0).abs() < 4.0 * (1.0 / 3.0_f32 / 8000.0).sqrt(), "{mean}");
        assert_eq!([factors(0, 1, "a"), factors(1, 3, "a")].concat(), all, "parts of a step");
        assert_ne!(factors(0, 4, "b"), all);
        assert_ne!(all[..2000], all[2000..4000]);
        assert!(Dropout::new(0.0, 7, 0).is_none());
    }
}
