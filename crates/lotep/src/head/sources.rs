//! Which source classes speak for a target class.

use std::collections::BTreeSet;

use burn::tensor::{Device, Tensor, TensorData};
use rand::seq::index;
use rand_chacha::ChaCha8Rng;

use crate::ops::Linear;
use crate::params::{Group, Params};
use crate::{Result, bail};

/// Name of the match in an adapter: the source classes of each target class, `[classes, sources]`.
const SOURCES: &str = "head.sources";

/// `count` different ones of `own` source classes.
pub(super) fn random(own: usize, count: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    index::sample(rng, own, count).into_vec()
}

/// As a parameter, which is kept but not learnt. An f32 holds all whole numbers up to 2^24.
pub(super) fn layout(matched: &[usize], classes: usize, device: &Device) -> Params {
    let mut params = Params::default();
    let values = matched.iter().map(|s| *s as f32).collect();
    params.push(SOURCES, &[classes, matched.len() / classes], Group::Fixed, values, device);
    params
}

/// Put another match in the place of the old one.
pub(super) fn store(params: &mut Params, matched: &[usize]) {
    for param in params.iter_mut().filter(|p| p.name == SOURCES) {
        let values: Vec<f32> = matched.iter().map(|s| *s as f32).collect();
        param.value = Tensor::from_data(TensorData::new(values, [matched.len()]), &param.value.device());
    }
}

/// Check that the match names different ones of `own` source classes.
pub(super) fn check(params: &Params, own: usize) -> Result<()> {
    let mut seen = BTreeSet::new();
    for value in params.get::<2>(SOURCES).into_data().iter::<f32>() {
        let source = value as usize;
        #[allow(clippy::float_cmp, reason = "a class's number is a whole one")]
        if source as f32 != value || source >= own || !seen.insert(source) {
            bail!(
                "`{SOURCES}` has {value}: different numbers of classes, from 0 to {}, are expected",
                own - 1
            );
        }
    }
    Ok(())
}

/// The mean of the matched rows of the network's classifier.
pub(super) fn select(params: &Params, own: &Linear) -> (Tensor<2>, Tensor<1>) {
    let matched: Tensor<2> = params.get(SOURCES);
    let [classes, quota] = matched.dims();
    let (weight, bias) = own.weights();
    let width = weight.dims()[1];
    let rows = matched.reshape([classes * quota]).int();
    let weight = weight.select(0, rows.clone()).reshape([classes, quota, width]);
    let bias = bias.select(0, rows).reshape([classes, quota]);
    (weight.mean_dim(1).squeeze_dim(1), bias.mean_dim(1).squeeze_dim(1))
}

/// How often images of each target class were taken for each source class.
#[derive(Clone, Debug)]
pub struct Counts {
    classes: usize,
    /// Source by source, a number for each target.
    of: Vec<u32>,
}

impl Counts {
    /// None yet, for so many source and target classes.
    pub fn new(own: usize, classes: usize) -> Self {
        Self { classes, of: vec![0; own * classes] }
    }

    /// An image of class `target` was taken for `source`.
    pub fn add(&mut self, source: usize, target: usize) {
        self.of[source * self.classes + target] += 1;
    }

    /// ILM-VP's greedy match: the most frequent pair of all is taken, its source class serves no other, and a target
    /// class with `quota` of them asks no more; then the next. Of equals the one with the lower source, then target. The
    /// result is in the order of targets, `quota` sources each, the most frequent first.
    pub fn assign(&self, quota: usize) -> Vec<usize> {
        let own = self.of.len() / self.classes;
        let mut seen: Vec<usize> = (0..self.of.len()).filter(|pair| self.of[*pair] > 0).collect();
        seen.sort_by_key(|pair| std::cmp::Reverse(self.of[*pair]));
        let mut matched = vec![Vec::with_capacity(quota); self.classes];
        let mut taken = vec![false; own];
        // Pairs that never occurred come last, in order; of each source only the first target that still asks counts.
        for pair in seen {
            let (source, target) = (pair / self.classes, pair % self.classes);
            if !taken[source] && matched[target].len() < quota {
                taken[source] = true;
                matched[target].push(source);
            }
        }
        for source in (0..own).filter(|s| !taken[*s]) {
            let Some(asking) = matched.iter_mut().find(|m| m.len() < quota) else { break };
            asking.push(source);
        }
        matched.concat()
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// The definition, step by step.
    fn by_definition(counts: &Counts, quota: usize) -> Vec<usize> {
        let own = counts.of.len() / counts.classes;
        let mut open: Vec<Option<u32>> = counts.of.iter().map(|c| Some(*c)).collect();
        let mut matched = vec![Vec::new(); counts.classes];
        for _ in 0..counts.classes * quota {
            let most = open.iter().flatten().max().copied().unwrap();
            let pair = open.iter().position(|c| *c == Some(most)).unwrap();
            let (source, target) = (pair / counts.classes, pair % counts.classes);
            matched[target].push(source);
            (0..counts.classes).for_each(|t| open[source * counts.classes + t] = None);
            if matched[target].len() == quota {
                (0..own).for_each(|s| open[s * counts.classes + target] = None);
            }
        }
        matched.concat()
    }

    #[test]
    fn the_match_is_the_greedy_one() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for round in 0..200 {
            let (classes, quota) = (rng.random_range(1..5), rng.random_range(1..4));
            let own = classes * quota + rng.random_range(0..4);
            let mut counts = Counts::new(own, classes);
            for _ in 0..rng.random_range(0..40) {
                counts.add(rng.random_range(0..own), rng.random_range(0..classes));
            }
            assert_eq!(counts.assign(quota), by_definition(&counts, quota), "{round}");
        }
    }

    #[test]
    fn a_class_without_images_gets_what_is_left() {
        let mut counts = Counts::new(3, 3);
        counts.add(2, 1);
        counts.add(0, 1);
        counts.add(0, 2);
        counts.add(0, 2);
        assert_eq!(counts.assign(1), [1, 2, 0]);
    }
}
