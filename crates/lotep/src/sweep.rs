//! Many settings, one choice: trials on the training images, judged on held-out ones among them.
//!
//! Every trial is a training run in a directory of its own, with its checkpoint. With successive halving all of them
//! train for the first part of their epochs, the better ones go on, and so forth; each follows the learning rates of its
//! whole run from the beginning, so that one that goes to the end is the run it would have been alone. The test split is
//! looked at once, for the one that is chosen.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::belongs::{SWEEP, free};
use crate::jobs::{self, affordable_here};
use crate::train::{Event, Observer, Outcome, RunDir, Select, TrainConfig, train, train_epochs};
use crate::{Error, Result, bail, input_error, write_json};

/// Settings to try.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// What distinguishes it from the others, for people.
    pub settings: String,
    /// All of them. Whatever they say, the epoch best on held-out images is kept.
    pub config: TrainConfig,
    /// Which of them somebody chose, by their keys in config.toml, the method's own as `method.KEY`; others are defaults.
    pub given: BTreeSet<String>,
}

/// How a sweep goes about its candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Keep one of so many after each round, 2 or more; without it everyone is trained to the end.
    pub halving: Option<usize>,
    /// Trials that run beside each other, each on its share of the threads; fewer where memory would not do. What comes of
    /// them is the same.
    pub jobs: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self { halving: None, jobs: 1 }
    }
}

/// What became of a candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// What distinguishes it.
    pub settings: String,
    /// All of its settings.
    pub config: TrainConfig,
    /// What came of each round that it took part in.
    pub rounds: Vec<Round>,
}

/// What a trial had reached at the end of a round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// The round, from 1.
    pub round: usize,
    /// Epochs trained.
    pub epochs: usize,
    /// The best of them on held-out images; of equals the earlier.
    pub best: Option<Best>,
    /// How the run diverged, if it did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub diverged: Option<String>,
}

/// An epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its number, from 1.
    pub epoch: usize,
    /// Accuracy on held-out images, in percent.
    pub top1: f64,
}

impl Trial {
    fn round(&self, round: usize) -> Option<&Round> {
        self.rounds.iter().find(|r| r.round == round)
    }

    /// Its score in a round; below all others where it diverged.
    fn score(&self, round: usize) -> f64 {
        let best = self.round(round).filter(|r| r.diverged.is_none()).and_then(|r| r.best);
        best.map_or(f64::NEG_INFINITY, |best| best.top1)
    }

    /// How it diverged, if it did.
    pub fn diverged(&self) -> Option<&str> {
        self.rounds.iter().find_map(|r| r.diverged.as_deref())
    }

    /// The last round that it took part in.
    pub fn last(&self) -> Option<&Round> {
        self.rounds.last()
    }
}

/// `trials.json`: what a sweep is, and how far it has come.
#[derive(Serialize, Deserialize)]
struct State {
    halving: Option<usize>,
    trials: Vec<Trial>,
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
/// A trial whose loss is no longer a number loses its round; any other error ends the sweep.
///
/// # Errors
/// There are no candidates, `dir` holds another sweep, a setting is wrong, every candidate diverges, or the observer
/// stops it (what is done is kept).
pub fn sweep(
    candidates: &[Candidate],
    dir: &Path,
    pace: Pace,
    observer: &mut dyn Observer,
) -> Result<Chosen> {
    let trials = choose(candidates, dir, pace, observer)?;
    let (run, best) = &trials[0];
    observer.event(Event::Plan(&format!("\nchosen: {}", best.settings)));
    let outcome = train(&best.config, run, true, observer).map_err(without_hint)?;
    let run = run.path().to_owned();
    let chosen = Chosen { trials: trials.into_iter().map(|(_, trial)| trial).collect(), run, outcome };
    write_json(&chosen, &dir.join("result.json"))?;
    Ok(chosen)
}

/// Try all candidates, and order them by what they reached: the best first, with its run. The test split is not looked at.
///
/// # Errors
/// As for [`sweep`].
pub(crate) fn choose(
    candidates: &[Candidate],
    dir: &Path,
    pace: Pace,
    observer: &mut dyn Observer,
) -> Result<Vec<(RunDir, Trial)>> {
    let Some(first) = candidates.first() else { bail!("a sweep needs one setting at least") };
    let epochs = first.config.epochs;
    let halving = pace.halving;
    if halving.is_some_and(|by| by < 2) {
        bail!("successive halving keeps one of two at most");
    }
    if halving.is_some() && candidates.iter().any(|c| c.config.epochs != epochs) {
        bail!("successive halving compares runs of the same length: epochs can't vary");
    }
    for c in candidates {
        let config = judged(&c.config);
        let checked = config.validate().and_then(|()| config.check_validation());
        checked.map_err(|e| input_error!("{}: {e}", c.settings))?;
    }
    let mut state = open(candidates, dir, halving)?;
    save(&state, dir)?;
    let rounds = rounds(epochs, candidates.len(), halving);
    // How many at a time, once the first trial has shown what one takes.
    let mut jobs = (pace.jobs <= 1).then_some(1);
    let (mut alive, mut out): (Vec<usize>, Vec<usize>) = ((0..candidates.len()).collect(), Vec::new());
    for (number, &(length, count)) in (1..).zip(&rounds) {
        out.splice(0..0, alive.split_off(count));
        let mut done = 0;
        while done < alive.len() {
            let to_train = |i: &usize| {
                let trial = &state.trials[*i];
                trial.diverged().is_none() && trial.round(number).is_none()
            };
            let pending: Vec<usize> = alive[done..].iter().copied().filter(to_train).collect();
            let (alone, beside) = pending.split_at(pending.len().min(usize::from(jobs.is_none())));
            for (tasks, together) in [(alone, false), (beside, true)] {
                if tasks.is_empty() {
                    continue;
                }
                let at_once = if together {
                    *jobs.get_or_insert_with(|| affordable_here(pace.jobs, observer))
                } else {
                    1
                };
                let trials = state.trials.clone();
                let to = |i: usize| if halving.is_some() { length } else { trials[i].config.epochs };
                let begin = |i: usize| {
                    let of = format!("trial {:03}, round {number} of {}", i + 1, rounds.len());
                    format!("\n{of}, to epoch {}: {}", to(i), trials[i].settings)
                };
                let train = |i: usize, observer: &mut dyn Observer| {
                    train_round(&trials[i], number, &trial_dir(dir, i), to(i), observer)
                };
                let note = |i: usize, round: Round, observer: &mut dyn Observer| {
                    if let (true, Some(best)) = (at_once > 1, round.best) {
                        let line = format!("trial {:03}: {:.2}% in epoch {}", i + 1, best.top1, best.epoch);
                        observer.event(Event::Plan(&line));
                    }
                    state.trials[i].rounds.push(round);
                    save(&state, dir)
                };
                jobs::run(tasks, at_once, observer, begin, train, note).map_err(without_hint)?;
            }
            done = alive.len();
            // The next best of those that were left behind takes the place of survivors that all diverged.
            if alive.iter().all(|i| state.trials[*i].diverged().is_some()) {
                let next = out.iter().position(|i| state.trials[*i].diverged().is_none());
                let Some(next) = next else {
                    let why = state.trials.iter().find_map(Trial::diverged).unwrap_or_default();
                    bail!("every trial failed; the first: {why}");
                };
                alive.push(out.remove(next));
            }
        }
        // Stable: the earlier of two equals stays in front.
        alive.sort_by(|a, b| state.trials[*b].score(number).total_cmp(&state.trials[*a].score(number)));
    }
    Ok(alive.iter().chain(&out).map(|i| (trial_dir(dir, *i), state.trials[*i].clone())).collect())
}

/// Train a trial to the end of a round.
fn train_round(
    trial: &Trial,
    round: usize,
    run: &RunDir,
    epochs: usize,
    observer: &mut dyn Observer,
) -> Result<Round> {
    match train_epochs(&trial.config, run, epochs, observer) {
        Ok(()) => Ok(Round { round, epochs, best: best(run, epochs)?.1, diverged: None }),
        Err(Error::Diverged(why)) => {
            observer.event(Event::Warning(&format!("{}: {why}", trial.settings)));
            let (epochs, best) = best(run, epochs)?;
            Ok(Round { round, epochs, best, diverged: Some(why) })
        }
        Err(other) => Err(without_hint(other)),
    }
}

/// A run's own advice on how to go on is not the sweep's.
pub(crate) fn without_hint(error: Error) -> Error {
    match error {
        Error::Interrupted(_) => {
            Error::Interrupted("stopped, with everything saved: the same command goes on from here".into())
        }
        other => other,
    }
}

/// The settings of a trial: its epoch is chosen on held-out images, as it is itself.
pub(crate) fn judged(config: &TrainConfig) -> TrainConfig {
    TrainConfig { select: Select::BestVal, test_every_epoch: false, ..config.clone() }
}

fn trial_dir(dir: &Path, index: usize) -> RunDir {
    RunDir::new(dir.join("trials").join(format!("{:03}", index + 1)))
}

/// What earlier calls did here, or a new beginning.
fn open(candidates: &[Candidate], dir: &Path, halving: Option<usize>) -> Result<State> {
    let fresh =
        |c: &Candidate| Trial { settings: c.settings.clone(), config: judged(&c.config), rounds: Vec::new() };
    let fresh: Vec<Trial> = candidates.iter().map(fresh).collect();
    free(dir, SWEEP)?;
    let path = dir.join(SWEEP);
    let text = match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(State { halving, trials: fresh }),
        read => read.map_err(Error::io("read", &path))?,
    };
    let state: State =
        serde_json::from_slice(&text).map_err(|e| input_error!("{} is damaged: {e}", path.display()))?;
    let same = |a: &Trial, b: &Trial| a.settings == b.settings && a.config == b.config;
    if state.halving != halving
        || state.trials.len() != fresh.len()
        || !state.trials.iter().zip(&fresh).all(|(a, b)| same(a, b))
    {
        bail!("{} holds another sweep, with other settings: choose another --output", dir.display());
    }
    Ok(state)
}

fn save(state: &State, dir: &Path) -> Result<()> {
    write_json(state, &dir.join(SWEEP))
}

/// How many of a run's first epochs there are, and the best of them.
fn best(run: &RunDir, epochs: usize) -> Result<(usize, Option<Best>)> {
    let path = run.metrics();
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let (mut count, mut best): (usize, Option<Best>) = (0, None);
    for line in text.lines().take(epochs) {
        // Only what is needed: a loss that is no number is written as null.
        let record: serde_json::Value =
            serde_json::from_str(line).map_err(|e| input_error!("{} is damaged: {e}", path.display()))?;
        count += 1;
        let top1 = record["val"]["top1"].as_f64();
        if let Some(top1) = top1.filter(|top1| best.is_none_or(|b| *top1 > b.top1)) {
            best = Some(Best { epoch: count, top1 });
        }
    }
    Ok((count, best))
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
