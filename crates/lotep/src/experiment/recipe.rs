//! Recipes: an experiment of a paper as a file.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::protocol::Target;
use crate::{Error, Result, bail, input_error};

/// What every run of an experiment is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Program {
    /// `lotep train`.
    #[default]
    Train,
    /// `lotep prune`.
    Prune,
    /// `lotep protocol base-to-novel`.
    BaseToNovel,
    /// `lotep protocol few-shot`.
    FewShot,
    /// `lotep protocol cross-data`.
    CrossData,
}

/// What the columns of the tables are; methods are rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Columns {
    /// Data sets, a table a model.
    #[default]
    Data,
    /// Models, a table a data set.
    Model,
    /// Values of what varies, a table a model and data set.
    Variant,
}

/// A network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// What the tables call it.
    pub name: String,
    /// As `lotep train --backbone` takes it.
    pub backbone: String,
    /// Settings of its runs.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub settings: Table,
}

/// A data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// What the tables call it.
    pub name: String,
    /// Where it is, under the data root; left out, the root itself, under which a known set is found by its name.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub path: PathBuf,
    /// Its name, as `lotep train --dataset` takes it, where it is read as it was downloaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// Data sets of one group have a column of their mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Settings of its runs.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub settings: Table,
}

/// A method with its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodRow {
    /// What the tables call it.
    pub name: String,
    /// lotep's name.
    pub method: String,
    /// Whether it has what varies; else it is run once, to compare with.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub vary: bool,
    /// The method's own settings.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub with: Table,
    /// Settings of its runs.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub settings: Table,
}

impl Data {
    /// Where it is.
    pub fn place(&self, root: &Path) -> PathBuf {
        if is_empty(&self.path) { root.to_owned() } else { root.join(&self.path) }
    }

    /// The same as a protocol's target.
    ///
    /// # Errors
    /// There is no data set of that name.
    pub fn target(&self, root: &Path) -> Result<Target> {
        let dataset = self.dataset.as_deref().map(str::parse).transpose()?;
        Ok(Target { name: self.name.clone(), data: self.place(root), dataset })
    }
}

fn is_empty(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

fn yes() -> bool {
    true
}

/// A setting that varies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vary {
    /// What the plots call it.
    pub name: String,
    /// Its key as in config.toml; a method's own begin with `method.`.
    pub set: String,
    /// Its values.
    pub values: Vec<Value>,
}

/// What a paper reports. An axis that is left out is the recipe's only entry there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// A model's name, or `mean` over all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A data set's name, a group's, or `mean` over all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// A method's name.
    pub method: String,
    /// The value of what varies, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Which number, where runs give several: `base`, `novel`, `harmonic mean`, a number of shots or a data set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measure: Option<String>,
    /// Accuracy in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top1: Option<f64>,
    /// Trainable parameters of the row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<f64>,
    /// Hours of training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours: Option<f64>,
    /// Peak memory in GB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_gb: Option<f64>,
    /// Milliseconds a prediction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
}

/// A comparison of features after the runs: every method with each of `against`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CkaPlan {
    /// `base`, the frozen network, or methods of the recipe.
    pub against: Vec<String>,
    /// Images of the test split.
    #[serde(default = "cka_images")]
    pub images: u64,
    /// Images of each minibatch.
    #[serde(default = "cka_batch")]
    pub batch_size: u64,
}

fn cka_images() -> u64 {
    512
}

fn cka_batch() -> u64 {
    32
}

/// An experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What it is.
    pub title: String,
    /// Paper, and table or figure.
    pub source: String,
    /// What was chosen on which images, how long is trained: said beside every number.
    pub protocol: String,
    /// What else should be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What every run is.
    #[serde(default)]
    pub run: Program,
    /// More arguments of each run's command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// What the columns are.
    #[serde(default)]
    pub columns: Columns,
    /// Data sets whose test split every adapter is measured on as well, under the data root; for `train`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Data>,
    /// Data sets that are tested but not learnt, under the data root; for `cross-data`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<Data>,
    /// Every run is repeated with each.
    pub seeds: Vec<u64>,
    /// Settings of all runs, as in config.toml. Those of a model win over them, then those of the data, of the method, and
    /// what varies.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub settings: Table,
    /// Networks.
    pub model: Vec<Model>,
    /// Data sets.
    pub data: Vec<Data>,
    /// Methods.
    pub method: Vec<MethodRow>,
    /// A setting that varies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vary: Option<Vary>,
    /// What the paper reports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected: Vec<Expected>,
    /// A comparison of features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cka: Option<CkaPlan>,
}

/// The mean over an axis, in [`Expected`] and as a column.
pub(super) const MEAN: &str = "mean";
/// The frozen network, in [`CkaPlan`].
pub(super) const BASE: &str = "base";

impl Recipe {
    /// What a row is called: the method, and what varies with its value.
    pub fn row_name(&self, method: &str, variant: Option<&str>) -> String {
        let what = self.vary.as_ref().map_or("", |v| v.name.as_str());
        variant.map_or_else(|| method.to_owned(), |variant| format!("{method}, {what} {variant}"))
    }

    /// Read a recipe.
    ///
    /// # Errors
    /// It can't be read, is no recipe, or names something that it has not got.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let recipe: Self = toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            let why = e.message().trim().replace('\n', " ");
            input_error!("{} is not a recipe: line {line}: {why}", path.display())
        })?;
        recipe.check().map_err(|e| input_error!("{}: {e}", path.display()))?;
        Ok(recipe)
    }

    /// Check that what is named is there.
    fn check(&self) -> Result<()> {
        let models: Vec<&str> = self.model.iter().map(|m| m.name.as_str()).collect();
        let data: Vec<&str> = self.data.iter().map(|d| d.name.as_str()).collect();
        let methods: Vec<&str> = self.method.iter().map(|m| m.name.as_str()).collect();
        for (axis, names) in [("model", &models), ("data", &data), ("method", &methods)] {
            if names.is_empty() {
                bail!("no [[{axis}]] is named");
            }
            let twice = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name));
            if let Some((_, name)) = twice {
                bail!("[[{axis}]] `{name}` comes twice");
            }
        }
        if self.seeds.is_empty() {
            bail!("seeds is empty: one at least is needed");
        }
        for (table, of) in self.tables() {
            let key = table
                .keys()
                .find(|k| ["backbone", "data", "dataset", "method", "seed"].contains(&k.as_str()));
            if let Some(key) = key {
                bail!("settings of {of} set `{key}`, which the recipe's own entries do");
            }
        }
        if let Some(vary) = &self.vary
            && vary.values.is_empty()
        {
            bail!("[vary] has no values");
        }
        if self.columns == Columns::Variant && self.vary.is_none() {
            bail!("columns is variant, but there is no [vary]");
        }
        if (self.run == Program::CrossData) == self.targets.is_empty() {
            bail!("[[targets]] are what run = \"cross-data\" is for: one goes with the other");
        }
        if self.run != Program::Train && !self.also.is_empty() {
            bail!("[[also]] is for run = \"train\"");
        }
        for (table, rows) in [("also", &self.also), ("targets", &self.targets)] {
            for row in rows {
                if row.group.is_some() || !row.settings.is_empty() {
                    bail!("[[{table}]] `{}`: group and settings are for what is learnt, [[data]]", row.name);
                }
                // Columns of a protocol's table are told from places by the sign.
                if row.name.is_empty() || row.name.contains('=') {
                    bail!("[[{table}]] `{}`: a name without = is expected", row.name);
                }
            }
        }
        let groups: Vec<&str> = self.data.iter().filter_map(|d| d.group.as_deref()).collect();
        for e in &self.expected {
            let one = |axis: &str, given: &Option<String>, names: &[&str], more: &[&str]| match given {
                None if names.len() > 1 => {
                    Err(input_error!("[[expected]] of {} says no {axis}: a name or `{MEAN}`", e.method))
                }
                Some(name)
                    if name != MEAN && !names.contains(&name.as_str()) && !more.contains(&name.as_str()) =>
                {
                    Err(input_error!(
                        "[[expected]] names the {axis} `{name}`, which is not one of: {}",
                        names.join(", ")
                    ))
                }
                _ => Ok(()),
            };
            one("model", &e.model, &models, &[])?;
            one("data", &e.data, &data, &groups)?;
            one("method", &Some(e.method.clone()), &methods, &[])?;
        }
        for name in self.cka.iter().flat_map(|c| &c.against) {
            if name != BASE && !methods.contains(&name.as_str()) {
                bail!(
                    "[cka] against `{name}`, which is neither `{BASE}` nor a method: {}",
                    methods.join(", ")
                );
            }
        }
        if self.cka.is_some() && self.run != Program::Train {
            bail!("[cka] compares runs of `lotep train` only");
        }
        Ok(())
    }

    fn tables(&self) -> Vec<(&Table, String)> {
        let mut all = vec![(&self.settings, "all runs".to_owned())];
        all.extend(self.model.iter().map(|m| (&m.settings, m.name.clone())));
        all.extend(self.data.iter().map(|d| (&d.settings, d.name.clone())));
        all.extend(self.method.iter().map(|m| (&m.settings, m.name.clone())));
        all
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Two models, two sets, two methods and two ranks of one of them.
    pub(in crate::experiment) const SMALL: &str = r#"
title = "A small <table>"
source = "A paper, table 9"
protocol = "the last epoch"
seeds = [1, 2]
[settings]
epochs = 4
[[model]]
name = "Net"
backbone = "nets/a"
[[data]]
name = "A & B"
path = "ab"
settings = { batch_size = 8 }
[[data]]
name = "C"
path = "c"
[[method]]
name = "Probe"
method = "linear-probe"
vary = false
[[method]]
name = "LoTeP"
method = "lotep-tk"
with = { rank = 6 }
[vary]
name = "rank"
set = "method.rank"
values = [2, 3]
[[expected]]
data = "mean"
method = "Probe"
top1 = 70.5
"#;

    pub(in crate::experiment) fn small() -> Recipe {
        let recipe: Recipe = toml::from_str(SMALL).unwrap();
        recipe.check().unwrap();
        recipe
    }

    #[test]
    fn wrong_recipes_say_what_is_wrong() {
        for (from, to, words) in [
            ("seeds = [1, 2]", "seeds = []", "seeds is empty"),
            ("name = \"C\"", "name = \"A & B\"", "[[data]] `A & B` comes twice"),
            ("data = \"mean\"", "data = \"D\"", "names the data `D`"),
            ("data = \"mean\"\n", "", "says no data"),
            ("epochs = 4", "seed = 4", "set `seed`"),
            ("values = [2, 3]", "values = []", "no values"),
            ("source = ", "sauce = ", "sauce"),
            ("[settings]", "run = \"cross-data\"\n[settings]", "one goes with the other"),
            ("[settings]", "[[targets]]\nname = \"T\"\n[settings]", "one goes with the other"),
            ("[settings]", "[[also]]\nname = \"T\"\ngroup = \"g\"\n[settings]", "[[also]] `T`: group"),
            ("[settings]", "[[also]]\nname = \"T=1\"\n[settings]", "without ="),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("r.toml");
            std::fs::write(&path, SMALL.replace(from, to)).unwrap();
            let error = Recipe::read(&path).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("r.toml") && !error.contains('\n'), "{error}");
        }
    }

    /// The recipes that are delivered are recipes, and their methods are lotep's.
    #[test]
    fn delivered_recipes_are_sound() {
        let mut found = Vec::new();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/papers");
        for dir in [root.clone(), root.join("small")] {
            found.extend(std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()));
        }
        found.retain(|p| p.extension().is_some_and(|e| e == "toml"));
        assert!(found.len() > 15, "{found:?}");
        for path in found {
            let recipe = Recipe::read(&path).unwrap();
            for m in &recipe.method {
                crate::method::MethodConfig::named(&m.method)
                    .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            }
            super::super::expand(&recipe, &super::super::Scale::default(), Path::new("data"))
                .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
    }
}
