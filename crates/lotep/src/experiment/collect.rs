//! What has come of a run, from the files it left.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::recipe::Program;
use crate::belongs::{PROTOCOL, PRUNING};
use crate::protocol::Row;
use crate::prune::Pruned;
use crate::train::{Outcome, RunDir, TrainConfig};
use crate::{Error, Result, input_error};

/// What a finished run gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Accuracies in percent, by name; of a training one that is called `top1`.
    pub measures: Vec<(String, f64)>,
    /// The best test epoch, where it was watched.
    pub best_test: Option<f64>,
    /// Trainable parameters.
    pub parameters: usize,
    /// Of these, in prompts.
    pub prompt_parameters: usize,
    /// Seconds of training.
    pub seconds: f64,
    /// Peak resident memory.
    pub peak_rss_mb: Option<f64>,
    /// The rule by which an epoch was kept.
    pub rule: String,
    /// What the images were.
    pub data: String,
    /// The machine.
    pub machine: String,
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Not begun.
    Waiting,
    /// Begun, with so many epochs done.
    Unfinished(usize),
    /// Finished.
    Done(Box<Facts>),
    /// What is there is no run, or a damaged one: the reason.
    Damaged(String),
}

/// What a training's accuracy is called among measures.
pub(super) const TOP1: &str = "top1";

/// Look at a run's directory.
pub fn state(dir: &Path, program: Program) -> State {
    look(dir, program).unwrap_or_else(|e| State::Damaged(e.to_string()))
}

fn look(dir: &Path, program: Program) -> Result<State> {
    let run = RunDir::new(dir);
    let path = run.result();
    let text = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return unfinished(dir, program),
        read => read.map_err(Error::io("read", &path))?,
    };
    let damaged = |e: serde_json::Error| input_error!("{} is damaged: {e}", path.display());
    let facts = match program {
        Program::Train => {
            let outcome: Outcome = serde_json::from_str(&text).map_err(damaged)?;
            of_training(&outcome, &path)?
        }
        Program::Prune => {
            let pruned: Pruned = serde_json::from_str(&text).map_err(damaged)?;
            let first = pruned.runs.first().ok_or_else(|| input_error!("{} has no runs", path.display()))?;
            let mean = pruned.mean.ok_or_else(|| input_error!("{} has no accuracy", path.display()))?;
            // The search is most of what it costs.
            let seconds = trained(dir).seconds;
            Facts { measures: vec![(TOP1.into(), mean)], seconds, ..of_training(first, &path)? }
        }
        Program::BaseToNovel | Program::FewShot | Program::CrossData => {
            #[derive(Deserialize)]
            struct Found {
                rows: Vec<Row>,
            }
            let found: Found = serde_json::from_str(&text).map_err(damaged)?;
            let [row] = &found.rows[..] else {
                return Err(input_error!("{} has {} rows, not one", path.display(), found.rows.len()));
            };
            of_protocol(row, dir)?
        }
    };
    Ok(State::Done(Box::new(facts)))
}

fn of_training(outcome: &Outcome, path: &Path) -> Result<Facts> {
    let (run, train) = (&outcome.run, &outcome.train);
    let Some(test) = train.test else {
        return Err(input_error!("{} has no accuracy on the test split", path.display()));
    };
    let e = &outcome.environment;
    Ok(Facts {
        measures: vec![(TOP1.into(), test.top1)],
        best_test: train.best_test.map(|(_, a)| a.top1),
        parameters: train.trainable_parameters,
        prompt_parameters: train.prompt_parameters,
        seconds: train.seconds,
        peak_rss_mb: train.peak_rss_mb,
        rule: run.protocol.clone(),
        data: run.data.clone(),
        machine: format!("{}, {} core{}, {}", e.cpu, e.cores, if e.cores == 1 { "" } else { "s" }, e.os),
    })
}

/// A protocol's row, with what its trainings cost together.
fn of_protocol(row: &Row, dir: &Path) -> Result<Facts> {
    let entries = std::fs::read_dir(dir).map_err(Error::io("read", dir))?.flatten();
    let mut places: Vec<_> = entries.map(|entry| entry.path()).collect();
    places.sort();
    let mut parts = Vec::new();
    for place in places {
        if let State::Done(facts) = look(&place, Program::Train).unwrap_or(State::Waiting) {
            parts.push(facts);
        }
    }
    let first = parts.first().ok_or_else(|| input_error!("{} has no finished training", dir.display()))?;
    Ok(Facts {
        measures: row.columns.iter().map(|c| (c.name.clone(), c.mean)).collect(),
        best_test: None,
        parameters: row.parameters,
        seconds: parts.iter().map(|f| f.seconds).sum(),
        peak_rss_mb: parts.iter().filter_map(|f| f.peak_rss_mb).reduce(f64::max),
        data: common(parts.iter().map(|f| f.data.as_str())),
        ..(**first).clone()
    })
}

/// What all of some statements say, of clauses and lists in them: trainings on few images differ in how many.
fn common<'a>(mut statements: impl Iterator<Item = &'a str>) -> String {
    let first = statements.next().unwrap_or_default();
    let mut clauses: Vec<Vec<&str>> = first.split("; ").map(|clause| clause.split(", ").collect()).collect();
    for statement in statements {
        let said =
            |part: &&str| statement.split("; ").flat_map(|clause| clause.split(", ")).any(|p| p == *part);
        for clause in &mut clauses {
            clause.retain(said);
        }
    }
    let clauses = clauses.into_iter().filter(|clause| !clause.is_empty()).map(|clause| clause.join(", "));
    clauses.collect::<Vec<_>>().join("; ")
}

/// A directory without a result.
fn unfinished(dir: &Path, program: Program) -> Result<State> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(State::Waiting),
        read => read.map_err(Error::io("read", dir))?,
    };
    if entries.flatten().next().is_none() {
        return Ok(State::Waiting);
    }
    let run = RunDir::new(dir);
    if program == Program::Train && !run.config().exists() && !run.checkpoint().exists() {
        return Err(input_error!("{} holds something that is no run", dir.display()));
    }
    Ok(State::Unfinished(trained(dir).epochs))
}

/// What the metrics of the trainings in a directory speak of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Trained {
    /// Epochs, of all together.
    pub(super) epochs: usize,
    /// Seconds of training, likewise.
    pub(super) seconds: f64,
}

/// The trainings in a directory: a run, or what a pruning or a protocol is made of.
pub(super) fn trained(dir: &Path) -> Trained {
    /// `degrees/trials/001`.
    const DEPTH: usize = 3;
    fn step(dir: &Path, left: usize, sum: &mut Trained) {
        if let Ok(text) = std::fs::read_to_string(RunDir::new(dir).metrics()) {
            sum.epochs += text.lines().count();
            // Each line has the seconds so far.
            let last = text.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
            sum.seconds += last.and_then(|line| line["seconds"].as_f64()).unwrap_or(0.0);
            return;
        }
        let Some(left) = left.checked_sub(1) else { return };
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                step(&entry.path(), left, sum);
            }
        }
    }
    let mut sum = Trained::default();
    step(dir, DEPTH, &mut sum);
    sum
}

/// The settings that a finished run of `program` in `dir` was made with.
///
/// # Errors
/// They can't be read.
pub fn settings(dir: &Path, program: Program) -> Result<TrainConfig> {
    let (name, place) = match program {
        Program::Train => ("result.json", "/run/config"),
        Program::Prune => (PRUNING, "/config"),
        Program::BaseToNovel | Program::FewShot | Program::CrossData => (PROTOCOL, "/configs/0"),
    };
    let path = dir.join(name);
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let damaged = |e: serde_json::Error| input_error!("{} is damaged: {e}", path.display());
    let whole: Value = serde_json::from_str(&text).map_err(damaged)?;
    serde_json::from_value(whole.pointer(place).cloned().unwrap_or_default()).map_err(damaged)
}

/// The first setting in which a finished run is not what is asked for; what was left open is anything.
pub fn differs(asked: &TrainConfig, done: &TrainConfig) -> Option<String> {
    fn find(path: &str, asked: &Value, done: &Value) -> Option<String> {
        match (asked, done) {
            (Value::Null, _) => None,
            (Value::Object(asked), Value::Object(done)) => asked.iter().find_map(|(key, value)| {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                find(&path, value, done.get(key).unwrap_or(&Value::Null))
            }),
            (asked, done) if asked == done => None,
            (asked, done) => Some(format!("{path} is {done}, {asked} is expected")),
        }
    }
    let json = |config: &TrainConfig| serde_json::to_value(config).unwrap_or_default();
    find("", &json(asked), &json(done))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::MethodConfig;

    #[test]
    fn settings_that_were_left_open_are_anything() {
        let asked = TrainConfig::new("b", "d", MethodConfig::named("lotep-tk").unwrap());
        let mut done = asked.clone();
        done.lr = Some(0.1);
        if let MethodConfig::LotepTk(m) = &mut done.method {
            m.depth_ratio = Some(0.8);
        }
        assert_eq!(differs(&asked, &done), None);
        done.epochs = 7;
        assert_eq!(differs(&asked, &done).unwrap(), "epochs is 7, 20 is expected");
    }

    #[test]
    fn what_is_no_run_is_told_from_what_is_half_done() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert_eq!(state(&at("none"), Program::Train), State::Waiting);
        std::fs::create_dir(at("empty")).unwrap();
        assert_eq!(state(&at("empty"), Program::Train), State::Waiting);
        std::fs::create_dir(at("half")).unwrap();
        std::fs::write(at("half/config.toml"), "").unwrap();
        std::fs::write(at("half/metrics.jsonl"), "{}\n{}\n").unwrap();
        assert_eq!(state(&at("half"), Program::Train), State::Unfinished(2));
        std::fs::create_dir(at("else")).unwrap();
        std::fs::write(at("else/letter.txt"), "").unwrap();
        let State::Damaged(why) = state(&at("else"), Program::Train) else { panic!("it is no run") };
        assert!(why.contains("no run"), "{why}");
        std::fs::write(at("half/result.json"), "{\"run\": ").unwrap();
        for program in [Program::Train, Program::Prune, Program::BaseToNovel] {
            let State::Damaged(why) = state(&at("half"), program) else { panic!("it is damaged") };
            assert!(why.contains("result.json is damaged"), "{why}");
        }
    }

    #[test]
    fn what_is_made_of_trainings_sums_them_up() {
        let dir = tempfile::tempdir().unwrap();
        for (run, seconds) in [("masks", 1.5), ("degrees/trials/001", 2.0), ("degrees/trials/002", 4.0)] {
            let run = dir.path().join(run);
            std::fs::create_dir_all(&run).unwrap();
            let lines = format!("{{\"seconds\": 0.5}}\n{{\"seconds\": {seconds}}}\n");
            std::fs::write(run.join("metrics.jsonl"), lines).unwrap();
        }
        assert_eq!(trained(dir.path()), Trained { epochs: 6, seconds: 7.5 });
        assert_eq!(state(dir.path(), Program::Prune), State::Unfinished(6));
        let said = ["a, b; 1 shot; 8 train, 9 test images", "a, b; 2 shots; 16 train, 9 test images"];
        assert_eq!(common(said.into_iter()), "a, b; 9 test images");
        assert_eq!(common([].into_iter()), "");
    }
}
