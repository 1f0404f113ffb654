//! Directories that hold the result of one piece of work.

use std::path::Path;

use serde_json::Value;

use crate::{Error, Result, bail, input_error, write_json};

/// What distinguishes the directories of runs and of what is made of several.
const MARKS: [&str; 4] = ["config.toml", "trials.json", "prune.json", "protocol.json"];

/// Take `dir` for the work that `own` describes, which is kept in its file `mark`; or find that it is that work's already,
/// to go on with. `what` says what it is.
///
/// # Errors
/// Other work is there: nothing of it is written over.
pub(crate) fn belongs(dir: &Path, mark: &str, own: &Value, what: &str) -> Result<()> {
    if let Some(other) = MARKS.iter().find(|other| **other != mark && dir.join(other).exists()) {
        bail!("{} holds other results ({other}): choose another --output", dir.display());
    }
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
