//! `experiment.json`: what a directory of runs is.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::grid::{Run, Scale};
use super::recipe::Recipe;
use crate::belongs::{EXPERIMENT, free};
use crate::{Error, Result, bail, input_error, write_json};

/// What an experiment's directory is: from it and the result files of its runs everything else is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this format.
    pub format: u32,
    /// The recipe.
    pub recipe: Recipe,
    /// How much of it is done here.
    pub scale: Scale,
    /// The runs.
    pub runs: Vec<Run>,
}

const FORMAT: u32 = 1;

impl Record {
    /// A new one.
    pub fn new(recipe: Recipe, scale: Scale, runs: Vec<Run>) -> Self {
        Self { format: FORMAT, recipe, scale, runs }
    }

    fn path(dir: &Path) -> PathBuf {
        dir.join(EXPERIMENT)
    }

    /// What an adapter was measured to do on the recipe's `also[index]`.
    pub fn also_file(dir: &Path, run: &Run, index: usize) -> PathBuf {
        dir.join("also").join(&run.id).join(format!("{}.json", index + 1))
    }

    /// The directory of a run.
    pub fn run_dir(dir: &Path, run: &Run) -> PathBuf {
        dir.join("runs").join(&run.id)
    }
}

/// Read what the directory `dir` is.
///
/// # Errors
/// It holds no experiment, or its record is damaged or of a newer version.
pub fn open(dir: &Path) -> Result<Record> {
    let path = Record::path(dir);
    let text = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => bail!(
            "{} holds no experiment: a directory that `lotep experiment run` wrote is expected",
            dir.display()
        ),
        read => read.map_err(Error::io("read", &path))?,
    };
    let version = serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|v| v["format"].as_u64());
    if let Some(version) = version.filter(|v| *v > u64::from(FORMAT)) {
        bail!("{}: `format` is {version}, this lotep reads up to {FORMAT}: upgrade lotep", path.display());
    }
    serde_json::from_str(&text).map_err(|e| input_error!("{} is damaged: {e}", path.display()))
}

/// Begin an experiment in `dir`, or go on with it.
///
/// # Errors
/// The directory holds something else, another experiment, or the same of another scale: nothing is written then.
pub fn begin(record: &Record, dir: &Path) -> Result<()> {
    free(dir, EXPERIMENT)?;
    if Record::path(dir).exists() {
        let found = open(dir)?;
        let here = dir.display();
        if found.recipe != record.recipe {
            bail!(
                "{here} holds another experiment, \"{}\" (or an earlier version of this recipe): choose another --output",
                found.recipe.title
            );
        }
        if found.scale != record.scale {
            let said = |scale: &Scale| {
                let said = scale.said(&record.recipe);
                if said.is_empty() { "the whole recipe".to_owned() } else { said.join(", ") }
            };
            bail!(
                "{here} holds this experiment with {}, not with {}: choose another --output",
                said(&found.scale),
                said(&record.scale)
            );
        }
        if found.runs != record.runs {
            bail!(
                "{here} holds this experiment with other runs (another --data-root?): choose another --output"
            );
        }
        return Ok(());
    }
    let mut entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return write_json(record, &Record::path(dir)),
        read => read.map_err(Error::io("read", dir))?,
    };
    if let Some(Ok(entry)) = entries.next() {
        bail!(
            "{} is not empty ({}) and holds no experiment: choose another --output",
            dir.display(),
            entry.file_name().to_string_lossy()
        );
    }
    write_json(record, &Record::path(dir))
}

#[cfg(test)]
mod tests {
    use super::super::recipe::tests::small;
    use super::super::{Scale, expand};
    use super::*;

    fn record(scale: Scale) -> Record {
        let runs = expand(&small(), &scale, Path::new("root")).unwrap();
        Record::new(small(), scale, runs)
    }

    #[test]
    fn a_directory_is_one_experiment() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("e");
        let whole = record(Scale::default());
        begin(&whole, &dir).unwrap();
        begin(&whole, &dir).unwrap();
        assert_eq!(open(&dir).unwrap(), whole);
        let less =
            begin(&record(Scale { epochs: Some(1), ..Scale::default() }), &dir).unwrap_err().to_string();
        assert!(less.contains("with the whole recipe, not with epochs 1 (recipe: 4)"), "{less}");
        let mut other = whole.clone();
        other.recipe.title = "Else".into();
        let other = begin(&other, &dir).unwrap_err().to_string();
        assert!(other.contains("another experiment, \"A small <table>\""), "{other}");
        assert_eq!(open(&dir).unwrap(), whole);
    }

    #[test]
    fn nothing_else_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.txt"), "mine").unwrap();
        let error = begin(&record(Scale::default()), dir.path()).unwrap_err().to_string();
        assert!(error.contains("thesis.txt"), "{error}");
        assert!(open(dir.path()).unwrap_err().to_string().contains("holds no experiment"));
        std::fs::write(dir.path().join("experiment.json"), "{\"format\": 1, \"rec").unwrap();
        assert!(open(dir.path()).unwrap_err().to_string().contains("damaged"));
        std::fs::write(dir.path().join("experiment.json"), "{\"format\": 2}").unwrap();
        assert!(open(dir.path()).unwrap_err().to_string().contains("upgrade"));
    }
}
