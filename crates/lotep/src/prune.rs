//! E²VPT's pruning (`spec/methods.md` 7.1): masks over prompt tokens and their segments are learnt with the prompts; what
//! has the least influence on the loss is pruned, to several degrees; what remains is trained anew from where it began,
//! and the degree is chosen on held-out training images. Then all training images are used, the test split once a seed.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::belongs::{PRUNING, belongs};
use crate::method::e2vpt::{SEGMENT_MASK, TOKEN_MASK};
use crate::method::{E2vpt, MethodConfig};
use crate::sweep::{Candidate, Pace, Trial, choose, judged, without_hint};
use crate::train::{
    Event, Observer, Outcome, RunDir, Select, TrainConfig, mean_gradients, train, train_epochs,
};
use crate::{Result, bail, input_error, write_json};

/// How to prune.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PruneOptions {
    /// Percentages of the tokens to prune, each a degree to try.
    pub token_percentages: Vec<usize>,
    /// Percentages of each token's segments; every pair of the two is tried.
    pub segment_percentages: Vec<usize>,
    /// Importance is the mean of the gradient with its sign, as in the published code; else of its magnitude, as in the
    /// paper.
    pub signed: bool,
    /// Every degree begins with other prompts, as in the published code; else with what remains of the first ones.
    pub fresh: bool,
    /// Successive halving among the degrees: train all for a part of their epochs, keep one of so many.
    pub halving: Option<usize>,
    /// Degrees that are trained beside each other; it decides nothing but the time.
    #[serde(skip)]
    pub jobs: usize,
    /// Seeds of the final trainings.
    pub seeds: Vec<u64>,
}

impl Default for PruneOptions {
    fn default() -> Self {
        let tens: Vec<usize> = (1..10).map(|q| 10 * q).collect();
        Self {
            token_percentages: tens.clone(),
            segment_percentages: tens,
            signed: false,
            fresh: false,
            halving: None,
            jobs: 1,
            seeds: vec![42, 44, 82, 100, 800],
        }
    }
}

/// Influence on the loss, by the masks' gradients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Importance {
    /// Of each token.
    pub tokens: Vec<f64>,
    /// Of each token's segments.
    pub segments: Vec<Vec<f64>>,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pruned {
    /// What the degrees were made from.
    pub importance: Importance,
    /// All degrees, best first.
    pub trials: Vec<Trial>,
    /// A run on all training images for each seed, with the best degree.
    pub runs: Vec<Outcome>,
    /// Mean of their test accuracies, in percent.
    pub mean: Option<f64>,
    /// Their sample standard deviation; none of fewer than two.
    pub deviation: Option<f64>,
}

/// At least a quarter of the segments stay.
const LEAST_SEGMENTS: usize = 4;

/// Train with masks, prune to all degrees, choose one, train it for every seed; what of that is done already in `dir` is
/// not done again.
///
/// # Errors
/// The method is not E²VPT with tokens, a setting is wrong, `dir` holds another pruning, or the observer stops it (what
/// is done is kept).
pub fn prune(
    config: &TrainConfig,
    options: &PruneOptions,
    dir: &Path,
    observer: &mut dyn Observer,
) -> Result<Pruned> {
    let MethodConfig::E2vpt(method) = &config.method else {
        bail!("prune: only e2vpt can be pruned, not {}", config.method.name());
    };
    if method.tokens == 0 {
        bail!("prune: tokens is 0: nothing to prune");
    }
    for q in options.token_percentages.iter().chain(&options.segment_percentages) {
        if *q > 99 {
            bail!("prune: {q} % is out of range; 0 to 99");
        }
    }
    if options.seeds.is_empty()
        || options.token_percentages.is_empty()
        || options.segment_percentages.is_empty()
    {
        bail!("prune: a seed and a percentage of each kind at least are needed");
    }
    if let Some((_, twice)) = options.seeds.iter().enumerate().find(|(i, s)| options.seeds[..*i].contains(s))
    {
        bail!("prune: seed {twice} is given twice");
    }
    let own = serde_json::json!({ "config": config, "options": options });
    belongs(dir, PRUNING, &own, "pruning")?;
    let importance = importance(config, method, options, dir, observer)?;
    let degrees = degrees(config, method, options, &importance);
    observer.event(Event::Plan(&format!("\n{} degrees of pruning to try", degrees.len())));
    let pace = Pace { halving: options.halving, jobs: options.jobs };
    let trials = choose(&degrees, &dir.join("degrees"), pace, observer)?;
    let best = &trials[0].1;
    let mut runs = Vec::new();
    for seed in &options.seeds {
        observer.event(Event::Plan(&format!("\nfinal run, seed {seed}: {}", best.settings)));
        let last = TrainConfig { select: Select::Last, seed: *seed, ..best.config.clone() };
        let run = RunDir::new(dir.join("final").join(format!("seed-{seed}")));
        runs.push(train(&last, &run, true, observer).map_err(without_hint)?);
    }
    let tests: Vec<f64> = runs.iter().filter_map(|r| Some(r.train.test?.top1)).collect();
    let count = tests.len() as f64;
    let mean = (!tests.is_empty()).then(|| tests.iter().sum::<f64>() / count);
    let squares = mean.map(|mean| tests.iter().map(|t| (t - mean).powi(2)).sum::<f64>());
    let deviation = squares.filter(|_| tests.len() > 1).map(|s| (s / (count - 1.0)).sqrt());
    let trials = trials.into_iter().map(|(_, trial)| trial).collect();
    let pruned = Pruned { importance, trials, runs, mean, deviation };
    write_json(&pruned, &dir.join("result.json"))?;
    Ok(pruned)
}

/// Train with masks, and see what the loss makes of them.
fn importance(
    config: &TrainConfig,
    method: &E2vpt,
    options: &PruneOptions,
    dir: &Path,
    observer: &mut dyn Observer,
) -> Result<Importance> {
    let path = dir.join("importance.json");
    if let Ok(text) = std::fs::read(&path) {
        return serde_json::from_slice(&text).map_err(|e| input_error!("{} is damaged: {e}", path.display()));
    }
    observer.event(Event::Plan("training with masks"));
    let masked = MethodConfig::E2vpt(E2vpt { masks: true, ..method.clone() });
    // The degrees' held-out images are held out here too.
    let masked = judged(&TrainConfig { method: masked, ..config.clone() });
    let run = RunDir::new(dir.join("masks"));
    train_epochs(&masked, &run, masked.epochs, observer).map_err(without_hint)?;
    let names = [TOKEN_MASK, SEGMENT_MASK];
    let mut found = mean_gradients(&masked, &run, &names, !options.signed, observer).map_err(without_hint)?;
    let segments = found.remove(SEGMENT_MASK).unwrap_or_default();
    let importance = Importance {
        tokens: found.remove(TOKEN_MASK).unwrap_or_default(),
        segments: segments.chunks(method.segments).map(<[f64]>::to_vec).collect(),
    };
    write_json(&importance, &path)?;
    Ok(importance)
}

/// The numbers of the `count` lowest, in order; of equals the first.
fn lowest(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// How many of `total` the percentages take, without repetitions, the fewest first, so that of equals the larger prompt
/// is chosen; `least` stay.
fn counts(percentages: &[usize], total: usize, least: usize) -> Vec<usize> {
    let mut counts: Vec<usize> =
        percentages.iter().map(|q| (total * q / 100).min(total.saturating_sub(least))).collect();
    counts.sort_unstable();
    counts.dedup();
    counts
}

/// Every degree of pruning.
fn degrees(
    config: &TrainConfig,
    method: &E2vpt,
    options: &PruneOptions,
    importance: &Importance,
) -> Vec<Candidate> {
    let mut degrees = Vec::new();
    for tokens in counts(&options.token_percentages, method.tokens, 1) {
        for segments in counts(&options.segment_percentages, method.segments, LEAST_SEGMENTS) {
            let pruned = E2vpt {
                masks: false,
                pruned_tokens: lowest(&importance.tokens, tokens),
                pruned_segments: if segments > 0 {
                    importance.segments.iter().map(|s| lowest(s, segments)).collect()
                } else {
                    Vec::new()
                },
                restart: if options.fresh { degrees.len() as u64 + 1 } else { method.restart },
                ..method.clone()
            };
            let settings = format!(
                "{tokens} of {} tokens and {segments} of {} segments pruned",
                method.tokens, method.segments
            );
            let config = TrainConfig { method: MethodConfig::E2vpt(pruned), ..config.clone() };
            degrees.push(Candidate { settings, config, given: BTreeSet::new() });
        }
    }
    degrees
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The released code's counts.
    #[test]
    fn degrees_are_the_papers() {
        let tens = PruneOptions::default().token_percentages;
        assert_eq!(counts(&tens, 16, LEAST_SEGMENTS), [1, 3, 4, 6, 8, 9, 11, 12]);
        assert_eq!(counts(&tens, 10, 1), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(counts(&tens, 5, 1), [0, 1, 2, 3, 4]);
        assert_eq!(counts(&[90], 1, 1), [0]);
        assert_eq!(lowest(&[0.5, 0.1, 0.5, 0.2], 3), [0, 1, 3]);
        let method = E2vpt { tokens: 3, segments: 4, ..E2vpt::default() };
        let config = TrainConfig::new("", "", MethodConfig::E2vpt(method.clone()));
        let importance =
            Importance { tokens: vec![0.3, 0.1, 0.2], segments: vec![vec![4.0, 3.0, 2.0, 1.0]; 3] };
        let options = PruneOptions {
            token_percentages: vec![40],
            segment_percentages: vec![0, 50],
            fresh: true,
            ..PruneOptions::default()
        };
        let degrees = degrees(&config, &method, &options, &importance);
        // Four segments are the least that stay.
        assert_eq!(degrees.len(), 1);
        let MethodConfig::E2vpt(m) = &degrees[0].config.method else { panic!() };
        assert_eq!((&m.pruned_tokens, m.pruned_segments.len(), m.restart), (&vec![1], 0, 1));
    }
}
