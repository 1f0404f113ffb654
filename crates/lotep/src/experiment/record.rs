//! `experiment.json`: what a directory of runs is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::grid::{Run, Scale};
use super::grow::grown;
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
    /// How much of it is done here: what every run is, and the seeds in the order in which they came.
    pub scale: Scale,
    /// The runs, in the order of the recipe.
    pub runs: Vec<Run>,
}

const FORMAT: u32 = 1;

impl Record {
    /// A new one.
    pub fn new(recipe: Recipe, scale: Scale, runs: Vec<Run>) -> Self {
        Self { format: FORMAT, recipe, scale, runs }
    }

    /// Seeds, in the order in which they came.
    pub fn seeds(&self) -> &[u64] {
        if self.scale.seeds.is_empty() { &self.recipe.seeds } else { &self.scale.seeds }
    }

    /// What is otherwise than the recipe says, in words: empty if nothing.
    pub fn scaled(&self) -> Vec<String> {
        let mut said = self.scale.said(&self.recipe);
        let of = |value: &dyn Fn(&Run) -> String| self.runs.iter().map(value).collect::<BTreeSet<_>>();
        let seeds: BTreeSet<u64> = self.runs.iter().map(|run| run.seed).collect();
        if seeds != self.recipe.seeds.iter().copied().collect() {
            let seeds: Vec<&u64> = self.seeds().iter().filter(|seed| seeds.contains(seed)).collect();
            said.push(format!("seeds {seeds:?} (recipe: {:?})", self.recipe.seeds));
        }
        let (recipe, mut product) = (&self.recipe, seeds.len());
        let axes: [(&str, Vec<&str>, BTreeSet<String>); 3] = [
            ("model", recipe.model.iter().map(|m| &*m.name).collect(), of(&|run| run.model.clone())),
            ("data", recipe.data.iter().map(|d| &*d.name).collect(), of(&|run| run.data.clone())),
            ("method", recipe.method.iter().map(|m| &*m.name).collect(), of(&|run| run.method.clone())),
        ];
        for (axis, names, found) in axes {
            // A method comes once for each value.
            product *= if axis == "method" {
                self.runs.iter().map(|run| (&run.method, &run.variant)).collect::<BTreeSet<_>>().len()
            } else {
                found.len()
            };
            if found.len() < names.len() {
                let left = names.into_iter().filter(|name| found.contains(*name));
                said.extend(left.map(|name| format!("only {axis}={name}")));
            }
        }
        if self.runs.len() < product {
            said.push(format!("{} of the {product} runs that all of these make together", self.runs.len()));
        }
        said
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

/// What `dir` will hold when the runs of `record` are there as well as its own; nothing is written. `data_root` is where the
/// recipe's data sets are.
///
/// # Errors
/// The directory holds something else, another experiment, or runs of this one that are of another kind.
pub fn join(record: &Record, dir: &Path, data_root: &Path) -> Result<Record> {
    free(dir, EXPERIMENT)?;
    let here = dir.display();
    if Record::path(dir).exists() {
        let found = open(dir)?;
        if found.recipe.title != record.recipe.title {
            bail!("{here} holds another experiment, \"{}\": choose another --output", found.recipe.title);
        }
        return grown(&found, record, data_root)
            .map_err(|how| input_error!("{here} holds this experiment with {how}: choose another --output"));
    }
    let mut entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(record.clone()),
        read => read.map_err(Error::io("read", dir))?,
    };
    if let Some(Ok(entry)) = entries.next() {
        bail!(
            "{here} is not empty ({}) and holds no experiment: choose another --output",
            entry.file_name().to_string_lossy()
        );
    }
    Ok(record.clone())
}

/// Begin an experiment in `dir`, or go on with it, and return all that it is then. Runs that are not there yet are added.
///
/// # Errors
/// As [`join`]: nothing is written then.
pub fn begin(record: &Record, dir: &Path, data_root: &Path) -> Result<Record> {
    let whole = join(record, dir, data_root)?;
    if !Record::path(dir).exists() || open(dir)? != whole {
        write_json(&whole, &Record::path(dir))?;
    }
    Ok(whole)
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

    type Change = fn(&mut Recipe);

    #[test]
    fn a_directory_is_one_experiment() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("e");
        let begin = |record: &Record| begin(record, &dir, Path::new("root"));
        let whole = record(Scale::default());
        assert_eq!(begin(&whole).unwrap(), whole);
        assert!(whole.scaled().is_empty());
        let refused = |record: &Record, words: &[&str]| {
            let error = begin(record).unwrap_err().to_string();
            assert!(words.iter().all(|words| error.contains(words)), "{error}");
            assert_eq!(open(&dir).unwrap().runs, whole.runs);
        };
        let scaled = |scale: Scale| record(scale);
        refused(&scaled(Scale { epochs: Some(1), ..Scale::default() }), &["epochs = 4, not 1"]);
        refused(&scaled(Scale { subset: Some(9), ..Scale::default() }), &["subset = unset, not 9"]);
        // Though none of these runs is there.
        let new = Scale { seeds: vec![5], set: vec!["method.rank=9".into()], ..Scale::default() };
        refused(&scaled(new), &["method.rank = unset, not 9"]);
        let new = Scale { seeds: vec![5], model: vec!["Net=else".into()], ..Scale::default() };
        refused(&scaled(new), &["backbone = nets/a, not else", "--model"]);
        let changes: [(Change, &str); 9] = [
            (|r| r.title = "Else".into(), "another experiment, \"A small <table>\""),
            (|r| r.protocol = "the best epoch".into(), "protocol = the last epoch, not the best epoch"),
            (|r| r.args = vec!["--fast".into()], "args = [], not [\"--fast\"]"),
            (|r| r.settings = toml::toml! { epochs = 5 }, "settings.epochs = 4, not 5"),
            (|r| r.method[1].with = toml::toml! { rank = 7 }, "[[method]] `LoTeP` with.rank = 6, not 7"),
            (|r| r.data[1].path = "d".into(), "[[data]] `C` path = c, not d"),
            (|r| r.method.truncate(1), "[[method]] `LoTeP`, which the recipe has no more"),
            (|r| r.vary.as_mut().unwrap().values.truncate(1), "vary.values 3, which the recipe has no more"),
            (
                |r| r.vary.as_mut().unwrap().set = "method.steps".into(),
                "vary.set = method.rank, not method.steps",
            ),
        ];
        for (change, words) in changes {
            let mut recipe = small();
            change(&mut recipe);
            // Another seed, so that no run is there.
            let scale = Scale { seeds: vec![5], ..Scale::default() };
            let runs = expand(&recipe, &scale, Path::new("root")).unwrap();
            refused(&Record::new(recipe, scale, runs), &[words]);
        }
        let runs = expand(&small(), &Scale::default(), Path::new("elsewhere")).unwrap();
        let error = super::begin(&Record::new(small(), Scale::default(), runs), &dir, Path::new("elsewhere"));
        assert!(
            error.unwrap_err().to_string().contains("data = root/ab, not elsewhere/ab (another --data-root")
        );
    }

    #[test]
    fn runs_may_be_added() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("e");
        let begin = |record: &Record| begin(record, &dir, Path::new("root"));
        let only = |seeds: &[u64], only: &[&str]| {
            let only = only.iter().map(|text| (*text).to_owned()).collect();
            Scale { seeds: seeds.to_vec(), only, epochs: Some(1), ..Scale::default() }
        };
        let first = begin(&record(only(&[2], &["method=LoTeP", "data=C"]))).unwrap();
        assert_eq!(first.runs.len(), 2);
        // What says the same otherwise is the same; runs that are there come once.
        let same = Scale { set: vec!["epochs=1".into()], epochs: None, ..only(&[1, 2], &["method=LoTeP"]) };
        let second = begin(&record(same)).unwrap();
        let ids = |record: &Record| record.runs.iter().map(|run| run.id.clone()).collect::<Vec<_>>();
        let expected: Vec<String> = ["a-b-lotep-2", "a-b-lotep-3", "c-lotep-2", "c-lotep-3"]
            .iter()
            .flat_map(|run| [2, 1].map(|seed| format!("net-{run}-s{seed}")))
            .collect();
        assert_eq!(ids(&second), expected, "in the recipe's order, and the first seed first");
        // Another method and value, with their own seeds.
        let mut recipe = small();
        recipe
            .method
            .insert(0, crate::experiment::MethodRow { name: "Full".into(), ..recipe.method[0].clone() });
        recipe.vary.as_mut().unwrap().values.push(toml::Value::Integer(4));
        let scale = only(&[3], &["data=A & B"]);
        let runs = expand(&recipe, &scale, Path::new("root")).unwrap();
        let third = begin(&Record::new(recipe, scale, runs)).unwrap();
        assert_eq!(third.runs.len(), 8 + 5);
        assert_eq!(third.seeds(), [2, 1, 3]);
        assert_eq!(
            (ids(&third)[0].as_str(), ids(&third)[1].as_str()),
            ("net-a-b-full-s3", "net-a-b-probe-s3")
        );
        let said = third.scaled().join("; ");
        assert!(said.contains("seeds [2, 1, 3] (recipe: [1, 2])"), "{said}");
        // Two sets, five methods with their values, three seeds.
        assert!(said.contains("13 of the 30 runs") && !said.contains("only"), "{said}");
        assert_eq!(open(&dir).unwrap(), third);
        // An earlier command goes on as before.
        let mut again = record(only(&[2], &["method=LoTeP", "data=C"]));
        again.recipe = third.recipe.clone();
        assert_eq!(begin(&again).unwrap().runs, third.runs);
    }

    #[test]
    fn nothing_else_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.txt"), "mine").unwrap();
        let error = begin(&record(Scale::default()), dir.path(), Path::new("root")).unwrap_err().to_string();
        assert!(error.contains("thesis.txt"), "{error}");
        assert!(open(dir.path()).unwrap_err().to_string().contains("holds no experiment"));
        std::fs::write(dir.path().join("experiment.json"), "{\"format\": 1, \"rec").unwrap();
        assert!(open(dir.path()).unwrap_err().to_string().contains("damaged"));
        std::fs::write(dir.path().join("experiment.json"), "{\"format\": 2}").unwrap();
        assert!(open(dir.path()).unwrap_err().to_string().contains("upgrade"));
    }
}
