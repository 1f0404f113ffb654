//! Directories that hold the result of one piece of work.

use std::path::Path;

use serde_json::Value;

use crate::{Error, Result, bail, input_error, write_json};

/// What distinguishes the directories of runs and of what is made of several: a file, and what that makes it.
const MARKS: [(&str, &str); 5] = [
    (RUN, "a training run"),
    (SWEEP, "a sweep"),
    (PRUNING, "a pruning"),
    (PROTOCOL, "a protocol's runs"),
    (EXPERIMENT, "an experiment"),
];

/// A run's settings.
pub(crate) const RUN: &str = "config.toml";
/// A sweep's trials.
pub(crate) const SWEEP: &str = "trials.json";
/// What a pruning is.
pub(crate) const PRUNING: &str = "prune.json";
/// What a protocol is.
pub(crate) const PROTOCOL: &str = "protocol.json";
/// What an experiment is.
pub(crate) const EXPERIMENT: &str = "experiment.json";

/// Check that `dir` holds nothing but what is marked by the file `mark`, if anything.
///
/// # Errors
/// Other work is there.
pub(crate) fn free(dir: &Path, mark: &str) -> Result<()> {
    if let Some((other, what)) = MARKS.iter().find(|(other, _)| *other != mark && dir.join(other).exists()) {
        bail!("{} holds {what} ({other}): choose another --output", dir.display());
    }
    // All of them end with this file; a run may do so without its settings, which it can be continued from.
    if mark != RUN && !dir.join(mark).exists() && dir.join("result.json").exists() {
        bail!("{} holds other results (result.json): choose another --output", dir.display());
    }
    Ok(())
}

/// Take `dir` for the work that `own` describes, which is kept in its file `mark`; or find that it is that work's already,
/// to go on with. `what` says what it is.
///
/// # Errors
/// Other work is there: nothing of it is written over.
pub(crate) fn belongs(dir: &Path, mark: &str, own: &Value, what: &str) -> Result<()> {
    free(dir, mark)?;
    let path = dir.join(mark);
    match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => write_json(own, &path),
        read => {
            let text = read.map_err(Error::io("read", &path))?;
            let there: Value = serde_json::from_slice(&text)
                .map_err(|e| input_error!("{} is damaged: {e}", path.display()))?;
            if there != *own {
                bail!("{} holds another {what}, with other settings: choose another --output", dir.display());
            }
            Ok(())
        }
    }
}
