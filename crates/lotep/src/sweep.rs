//! Many settings, one choice: trials on the training images, judged on held-out ones among them.
//!
//! Every trial is a training run in a directory of its own, with its checkpoint. With successive halving all of them
//! train for the first part of their epochs, the better ones go on, and so forth; each follows the learning rates of its
//! whole run from the beginning, so that one that goes to the end is the run it would have been alone. The test split is
//! looked at once, for the one that is chosen.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::eval::Accuracy;
use crate::train::{EpochRecord, Event, Observer, Outcome, RunDir, Select, TrainConfig, train, train_epochs};
use crate::{Error, Result, bail, input_error, write_atomic};

/// Settings to try.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// What distinguishes it from the others, for people.
    pub settings: String,
    /// All of them. Whatever they say, the epoch best on held-out images is kept.
    pub config: TrainConfig,
}

/// What became of a candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// What distinguishes it.
    pub settings: String,
    /// Epochs it was trained for.
    pub epochs: usize,
    /// The best of them, from 1, and its accuracy on held-out images.
    pub best: Option<(usize, Accuracy)>,
    /// Why it could not be trained to there.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failed: Option<String>,
}

impl Trial {
    fn score(&self) -> f64 {
        self.best.filter(|_| self.failed.is_none()).map_or(f64::NEG_INFINITY, |(_, a)| a.top1)
    }
}

/// All trials, best first, and what the best one gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Chosen {
    /// Those that got further come first, then those that did better; of equals the earlier.
    pub trials: Vec<Trial>,
    /// Directory of the best one's run.
    pub run: PathBuf,
    /// Its result, with the accuracy on the test split.
    pub outcome: Outcome,
}

/// Epochs that each round trains to, and the share of the candidates that begin it: the last is the whole run.
fn rounds(epochs: usize, candidates: usize, halving: Option<usize>) -> Vec<(usize, usize)> {
    let Some(by) = halving else { return vec![(epochs, candidates)] };
    let mut rounds = vec![(epochs, 1)];
    let (mut length, mut count) = (epochs, 1);
    while count < candidates && length > 1 {
        (length, count) = (length.div_ceil(by), count * by);
        rounds.push((length, count.min(candidates)));
    }
    rounds.reverse();
    // However few epochs there are, everyone is tried.
    rounds[0].1 = candidates;
    rounds
}

/// Try all candidates and train the best to its end; what of that is done already in `dir` is not done again.
///
/// `halving` keeps one of so many after each round, 2 or more; without it everyone is trained to the end.
///
/// # Errors
/// There are no candidates, `dir` holds another sweep, every candidate fails, or the observer stops it (what is done is
/// kept).
pub fn sweep(
    candidates: &[Candidate],
    dir: &Path,
    halving: Option<usize>,
    observer: &mut dyn Observer,
) -> Result<Chosen> {
    let Some(first) = candidates.first() else { bail!("a sweep needs one setting at least") };
    let epochs = first.config.epochs;
    if halving.is_some() && candidates.iter().any(|c| c.config.epochs != epochs) {
        bail!("successive halving compares runs of the same length: epochs can't vary");
    }
    for c in candidates {
        c.config.validate().map_err(|e| input_error!("{}: {e}", c.settings))?;
    }
    let mut trials = open(candidates, dir)?;
    let last = rounds(epochs, candidates.len(), halving);
    let (mut alive, mut out): (Vec<usize>, Vec<usize>) = ((0..candidates.len()).collect(), Vec::new());
    for (round, &(length, count)) in last.iter().enumerate() {
        out.splice(0..0, alive.split_off(count));
        for (done, &i) in alive.iter().enumerate() {
            let length = if halving.is_some() { length } else { candidates[i].config.epochs };
            let (config, run) = (judged(&candidates[i].config), trial_dir(dir, i));
            if trials[i].failed.is_none() && trials[i].epochs < length {
                let settings = &candidates[i].settings;
                let of = format!("{}/{} of round {}/{}", done + 1, alive.len(), round + 1, last.len());
                observer.event(Event::Plan(&format!("\ntrial {of}, to epoch {length}: {settings}")));
                match train_epochs(&config, &run, length, observer) {
                    Ok(()) => {}
                    Err(Error::Input(why)) => {
                        observer.event(Event::Warning(&format!("{settings}: {why}")));
                        trials[i].failed = Some(why);
                    }
                    Err(other) => return Err(other),
                }
                if trials[i].failed.is_none() {
                    trials[i].best = best(&run, length)?;
                }
                trials[i].epochs = length;
                save(&trials, dir)?;
            }
        }
        if let Some(why) = alive.iter().map(|i| trials[*i].failed.as_ref()).collect::<Option<Vec<_>>>() {
            bail!("every trial failed; the first: {}", why.first().map_or("", |why| why));
        }
        // Stable: the earlier of two equals stays in front.
        alive.sort_by(|a, b| trials[*b].score().total_cmp(&trials[*a].score()));
    }
    let winner = alive[0];
    let run = RunDir::new(trial_dir(dir, winner).path());
    observer.event(Event::Plan(&format!("\nchosen: {}", candidates[winner].settings)));
    let outcome = train(&judged(&candidates[winner].config), &run, true, observer)?;
    let trials = alive.iter().chain(&out).map(|i| trials[*i].clone()).collect();
    let chosen = Chosen { trials, run: run.path().to_owned(), outcome };
    write_json(&chosen, &dir.join("result.json"))?;
    Ok(chosen)
}

/// The settings of a trial: its epoch is chosen on held-out images, as it is itself.
fn judged(config: &TrainConfig) -> TrainConfig {
    TrainConfig { select: Select::BestVal, test_every_epoch: false, ..config.clone() }
}

fn trial_dir(dir: &Path, index: usize) -> RunDir {
    RunDir::new(dir.join("trials").join(format!("{:03}", index + 1)))
}

/// What earlier calls did here, or a new beginning.
fn open(candidates: &[Candidate], dir: &Path) -> Result<Vec<Trial>> {
    let path = dir.join("trials.json");
    let Ok(text) = std::fs::read(&path) else {
        let fresh =
            |c: &Candidate| Trial { settings: c.settings.clone(), epochs: 0, best: None, failed: None };
        return Ok(candidates.iter().map(fresh).collect());
    };
    let trials: Vec<Trial> =
        serde_json::from_slice(&text).map_err(|e| input_error!("{} is damaged: {e}", path.display()))?;
    let same = trials.len() == candidates.len()
        && trials.iter().zip(candidates).all(|(trial, c)| trial.settings == c.settings);
    if !same {
        bail!("{} holds another sweep: choose another --output", dir.display());
    }
    Ok(trials)
}

fn save(trials: &[Trial], dir: &Path) -> Result<()> {
    write_json(&trials, &dir.join("trials.json"))
}

fn write_json(value: &impl Serialize, path: &Path) -> Result<()> {
    let json = serde_json::to_vec_pretty(value).map_err(|e| input_error!("cannot write the sweep: {e}"))?;
    write_atomic(path, &json)
}

/// The best of a run's first epochs on held-out images; of equals the earlier.
fn best(run: &RunDir, epochs: usize) -> Result<Option<(usize, Accuracy)>> {
    let path = run.metrics();
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let mut best: Option<(usize, Accuracy)> = None;
    for line in text.lines().take(epochs) {
        let record: EpochRecord =
            serde_json::from_str(line).map_err(|e| input_error!("{} is damaged: {e}", path.display()))?;
        if let Some(val) = record.val.filter(|val| best.is_none_or(|(_, b)| val.top1 > b.top1)) {
            best = Some((record.epoch, val));
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_grow_by_the_factor_and_end_with_one() {
        assert_eq!(rounds(9, 4, None), [(9, 4)]);
        assert_eq!(rounds(8, 8, Some(2)), [(1, 8), (2, 4), (4, 2), (8, 1)]);
        assert_eq!(rounds(9, 5, Some(3)), [(1, 5), (3, 3), (9, 1)]);
        // Not enough epochs for as many rounds as the candidates would need: the first keeps fewer.
        assert_eq!(rounds(2, 10, Some(2)), [(1, 10), (2, 1)]);
        assert_eq!(rounds(1, 3, Some(2)), [(1, 3)]);
        assert_eq!(rounds(5, 1, Some(2)), [(5, 1)]);
    }
}
