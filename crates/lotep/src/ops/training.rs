//! What networks do differently while their own weights are trained: batch statistics, dropped paths.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::{Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How far running statistics follow those of a batch (PyTorch's default).
const MOMENTUM: f64 = 0.1;

/// The training mode of one network: what its batch norms have seen, and what its dropped paths are drawn from.
#[derive(Clone, Debug)]
pub struct Training(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    statistics: BTreeMap<String, Tensor<1>>,
    dice: ChaCha8Rng,
}

impl Training {
    /// Begin with a seed for what is dropped.
    pub fn new(seed: u64) -> Self {
        let state = State { statistics: BTreeMap::new(), dice: ChaCha8Rng::seed_from_u64(seed) };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Running means and variances as the passes so far have moved them, by the checkpoint's names.
    pub fn statistics(&self) -> BTreeMap<String, Tensor<1>> {
        self.state().statistics.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Move a running statistic, which the checkpoint has as `stored`, towards a batch's.
    fn follow(&self, name: String, stored: &Tensor<1>, batch: Tensor<1>) {
        let mut state = self.state();
        let running = state.statistics.get(&name).unwrap_or(stored).clone().without_autodiff();
        state.statistics.insert(name, running * (1.0 - MOMENTUM) + batch.without_autodiff() * MOMENTUM);
    }
}

/// A batch norm's place in a network that trains.
#[derive(Clone, Debug)]
pub struct BatchStatistics {
    /// The norm's name in the checkpoint.
    pub name: String,
    /// Where its running statistics go.
    pub training: Training,
}

impl BatchStatistics {
    /// Normalise each channel of `[B, C, H, W]` by the batch's mean and biased variance; the running variance follows
    /// the unbiased one.
    pub(super) fn normalise(&self, x: Tensor<4>, running: [&Tensor<1>; 2], eps: f64) -> Tensor<4> {
        let [b, c, h, w] = x.dims();
        let mean = x.clone().mean_dims(&[0, 2, 3]);
        let centred = x - mean.clone();
        let var = (centred.clone() * centred.clone()).mean_dims(&[0, 2, 3]);
        self.follow(running, [mean.reshape([c]), var.clone().reshape([c])], b * h * w);
        centred / (var + eps).sqrt()
    }

    /// Move the running mean and variance towards a batch's, of so many values a channel.
    pub(super) fn follow(&self, running: [&Tensor<1>; 2], batch: [Tensor<1>; 2], count: usize) {
        let [mean, var] = batch;
        let unbiased = var * (count as f64 / (count as f64 - 1.0).max(1.0));
        for (leaf, stored, batch) in [("mean", running[0], mean), ("var", running[1], unbiased)] {
            self.training.follow(format!("{}.running_{leaf}", self.name), stored, batch);
        }
    }
}

/// Stochastic depth: a branch is left out for some samples, and grows for the others so that its mean stays.
#[derive(Clone, Debug)]
pub struct DropPath {
    /// Share of the samples that go without, below 1.
    pub rate: f64,
    /// Where chance comes from.
    pub training: Training,
}

impl DropPath {
    /// Apply to a branch `[B, N, C]`.
    pub(super) fn apply(&self, x: Tensor<3>) -> Tensor<3> {
        let [b, _, _] = x.dims();
        let mut state = self.training.state();
        let factor = |_| if state.dice.random_bool(self.rate) { 0.0 } else { 1.0 / (1.0 - self.rate) as f32 };
        let factors: Vec<f32> = (0..b).map(factor).collect();
        drop(state);
        let device = x.device().without_autodiff();
        x * Tensor::from_data(TensorData::new(factors, [b, 1, 1]), &device)
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "a factor is exactly one of two")]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn dropped_paths_keep_the_mean() {
        let x = Tensor::<3>::ones([4000, 1, 2], &Device::flex());
        let drop = |rate| {
            let y = DropPath { rate, training: Training::new(3) }.apply(x.clone());
            y.into_data().iter::<f32>().collect::<Vec<_>>()
        };
        assert!(drop(0.0).iter().all(|v| *v == 1.0));
        let y = drop(0.25);
        assert!(y.as_chunks::<2>().0.iter().all(|s| s[0] == s[1] && (s[0] == 0.0 || s[0] == 4.0 / 3.0)));
        let mean = y.iter().sum::<f32>() / y.len() as f32;
        // Four standard errors of 4,000 samples.
        assert!((mean - 1.0).abs() < 4.0 * (1.0 / 3.0_f32 / 4000.0).sqrt(), "{mean}");
        assert_eq!(y, drop(0.25), "a seed decides");
    }
}
