//! From a recipe to its runs.

use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::recipe::{Data, MethodRow, Recipe};
use crate::{Result, bail, input_error};

/// How much of a recipe is done here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scale {
    /// Epochs, in the place of the recipe's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u64>,
    /// Images a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<u64>,
    /// Training images, about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subset: Option<u64>,
    /// Seeds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub seeds: Vec<u64>,
    /// Other settings, `KEY=VALUE` as in config.toml.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<String>,
    /// Names of models, data sets, methods and sets to test on that are left, `AXIS=NAME`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<String>,
    /// Other places of models, `NAME=PATH`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub model: Vec<String>,
}

impl Scale {
    /// What every run has different from the recipe, in words.
    pub(super) fn said(&self, recipe: &Recipe) -> Vec<String> {
        let own = |key: &str| recipe.settings.get(key).map_or(String::new(), |v| format!(" (recipe: {v})"));
        let mut said = Vec::new();
        let numbers = [("epochs", self.epochs), ("batch_size", self.batch_size), ("subset", self.subset)];
        for (key, value) in numbers {
            if let Some(value) = value {
                said.push(format!("{key} {value}{}", own(key)));
            }
        }
        for (what, list) in [("set", &self.set), ("model", &self.model)] {
            said.extend(list.iter().map(|text| format!("{what} {text}")));
        }
        if !recipe.targets.is_empty() && self.only.iter().any(|text| is_target(text)) {
            said.extend(self.targets(recipe).map(|target| format!("only {TO}={}", target.name)));
        }
        said
    }

    /// The data sets that are tested but not learnt, `cross-data`'s.
    pub fn targets<'a>(&self, recipe: &'a Recipe) -> impl Iterator<Item = &'a Data> {
        let only = self.only.iter().filter_map(|text| split(text, "only").ok());
        let only: Vec<String> =
            only.filter(|(axis, _)| *axis == TO).map(|(_, name)| name.to_owned()).collect();
        recipe.targets.iter().filter(move |target| only.is_empty() || only.contains(&target.name))
    }
}

/// What `--only` calls them.
const TO: &str = "to";

/// Whether a text of `--only` is about them.
pub(super) fn is_target(text: &str) -> bool {
    split(text, "only").is_ok_and(|(axis, _)| axis == TO)
}

/// One run of the grid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its directory's name.
    pub id: String,
    /// The model's name.
    pub model: String,
    /// The data set's.
    pub data: String,
    /// The method's, in the recipe.
    pub method: String,
    /// The value of what varies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Its seed.
    pub seed: u64,
    /// Its settings, as in config.toml, with the method's own under `method`.
    pub settings: Table,
}

/// A name as part of a directory's.
fn slug(name: &str) -> String {
    let mut slug = String::new();
    for c in name.to_lowercase().chars() {
        if c.is_ascii_alphanumeric() || c == '.' {
            slug.push(c);
        } else if !slug.ends_with('-') && !slug.is_empty() {
            slug.push('-');
        }
    }
    slug.trim_matches(['-', '.']).to_owned()
}

/// A value as a table shows it.
pub(super) fn value_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Put `value` where `key` says, in the settings or in those of the method.
fn put(settings: &mut Table, method: &mut Table, key: &str, value: Value) {
    match key.strip_prefix("method.") {
        Some(key) => method.insert(key.to_owned(), value),
        None => settings.insert(key.to_owned(), value),
    };
}

fn split<'a>(text: &'a str, option: &str) -> Result<(&'a str, &'a str)> {
    let parts = text.split_once('=').map(|(k, v)| (k.trim(), v.trim()));
    parts
        .filter(|(k, v)| !k.is_empty() && !v.is_empty())
        .ok_or_else(|| input_error!("--{option} {text}: a name and a value with = between them are expected"))
}

/// All runs of a recipe, in the order of models, data, methods, values and seeds.
///
/// # Errors
/// The scale names something that the recipe has not got, nothing is left, or two runs would have one directory.
pub fn expand(recipe: &Recipe, scale: &Scale, data_root: &Path) -> Result<Vec<Run>> {
    let mut only: [Vec<&str>; 4] = Default::default();
    for text in &scale.only {
        let (axis, name) = split(text, "only")?;
        let (slot, names): (usize, Vec<&str>) = match axis {
            "model" => (0, recipe.model.iter().map(|m| m.name.as_str()).collect()),
            "data" => (1, recipe.data.iter().map(|d| d.name.as_str()).collect()),
            "method" => (2, recipe.method.iter().map(|m| m.name.as_str()).collect()),
            TO => (3, recipe.targets.iter().map(|t| t.name.as_str()).collect()),
            _ => bail!("--only {text}: model=NAME, data=NAME, method=NAME or to=NAME is expected"),
        };
        if !names.contains(&name) {
            bail!("--only {text}: the recipe has no such {axis}; it has {}", names.join(", "));
        }
        only[slot].push(name);
    }
    let left = |slot: usize, name: &str| only[slot].is_empty() || only[slot].contains(&name);
    let mut places: Vec<(&str, &str)> = Vec::new();
    for text in &scale.model {
        let (name, place) = split(text, "model")?;
        if !recipe.model.iter().any(|m| m.name == name) {
            let names: Vec<&str> = recipe.model.iter().map(|m| m.name.as_str()).collect();
            bail!("--model {text}: the recipe has no such model; it has {}", names.join(", "));
        }
        places.push((name, place));
    }
    let sets = scale.set.iter().map(|text| split(text, "set")).collect::<Result<Vec<_>>>()?;
    let seeds = if scale.seeds.is_empty() { &recipe.seeds } else { &scale.seeds };
    let mut runs: Vec<Run> = Vec::new();
    for model in recipe.model.iter().filter(|m| left(0, &m.name)) {
        // Beside the data sets, or wherever `train` would find it.
        let beside = data_root.join(&model.backbone);
        let own =
            if beside.exists() { beside.to_string_lossy().into_owned() } else { model.backbone.clone() };
        let place = places.iter().find(|(name, _)| *name == model.name).map_or(&*own, |(_, p)| *p);
        for data in recipe.data.iter().filter(|d| left(1, &d.name)) {
            for row in recipe.method.iter().filter(|m| left(2, &m.name)) {
                for variant in variants(recipe, row) {
                    let mut settings = recipe.settings.clone();
                    for more in [&model.settings, &data.settings, &row.settings] {
                        settings.extend(more.clone());
                    }
                    let mut method = row.with.clone();
                    if let (Some(vary), Some(value)) = (&recipe.vary, variant) {
                        put(&mut settings, &mut method, &vary.set, value.clone());
                    }
                    for (key, value) in
                        [("epochs", scale.epochs), ("batch_size", scale.batch_size), ("subset", scale.subset)]
                    {
                        if let Some(value) = value {
                            settings.insert(key.into(), Value::Integer(value as i64));
                        }
                    }
                    for (key, value) in &sets {
                        put(&mut settings, &mut method, key, parse(value));
                    }
                    settings.insert("backbone".into(), place.into());
                    let path = data.place(data_root);
                    settings.insert("data".into(), path.to_string_lossy().into_owned().into());
                    if let Some(dataset) = &data.dataset {
                        settings.insert("dataset".into(), dataset.clone().into());
                    }
                    method.insert("method".into(), row.method.clone().into());
                    settings.insert("method".into(), Value::Table(method));
                    let variant = variant.map(value_text);
                    let parts = [Some(&model.name), Some(&data.name), Some(&row.name), variant.as_ref()];
                    let parts: Vec<String> = parts.into_iter().flatten().map(|p| slug(p)).collect();
                    for &seed in seeds {
                        let id = format!("{}-s{seed}", parts.join("-"));
                        if runs.iter().any(|r| r.id == id) {
                            bail!(
                                "two runs of the recipe would be called {id}: other names or seeds are needed"
                            );
                        }
                        let mut settings = settings.clone();
                        settings.insert("seed".into(), Value::Integer(seed as i64));
                        runs.push(Run {
                            id,
                            model: model.name.clone(),
                            data: data.name.clone(),
                            method: row.name.clone(),
                            variant: variant.clone(),
                            seed,
                            settings,
                        });
                    }
                }
            }
        }
    }
    Ok(runs)
}

/// What varies, for a method that has it.
fn variants<'a>(recipe: &'a Recipe, row: &MethodRow) -> Vec<Option<&'a Value>> {
    match &recipe.vary {
        Some(vary) if row.vary => vary.values.iter().map(Some).collect(),
        _ => vec![None],
    }
}

/// As TOML would read it, and else as text.
fn parse(value: &str) -> Value {
    let line = format!("v = {value}");
    let read = line.parse::<Table>().ok().and_then(|mut table| table.remove("v"));
    read.unwrap_or_else(|| Value::String(value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::Record;
    use super::super::recipe::tests::small;
    use super::*;

    #[test]
    fn a_recipe_becomes_its_grid() {
        let runs = expand(&small(), &Scale::default(), Path::new("root")).unwrap();
        // Two sets, two seeds, and one method once, the other for each rank.
        assert_eq!(runs.len(), 2 * 2 * 3);
        let ids: Vec<&str> = runs.iter().take(6).map(|r| r.id.as_str()).collect();
        assert_eq!(
            ids,
            [
                "net-a-b-probe-s1",
                "net-a-b-probe-s2",
                "net-a-b-lotep-2-s1",
                "net-a-b-lotep-2-s2",
                "net-a-b-lotep-3-s1",
                "net-a-b-lotep-3-s2"
            ]
        );
        let run = &runs[5];
        assert_eq!(run.settings["method"]["rank"].as_integer(), Some(3));
        assert_eq!(run.settings["batch_size"].as_integer(), Some(8));
        assert_eq!(run.settings["data"].as_str(), Some("root/ab"));
        assert_eq!(runs[11].settings.get("batch_size"), None);
    }

    #[test]
    fn what_is_done_here_may_be_less() {
        let scale = Scale {
            epochs: Some(1),
            seeds: vec![7],
            only: vec!["data=C".into(), "method=LoTeP".into()],
            set: vec!["method.depth_ratio=0.5".into(), "lr=0.1".into()],
            model: vec!["Net=here".into()],
            ..Scale::default()
        };
        let runs = expand(&small(), &scale, Path::new("")).unwrap();
        assert_eq!(runs.len(), 2);
        let s = &runs[0].settings;
        assert_eq!((s["epochs"].as_integer(), s["lr"].as_float()), (Some(1), Some(0.1)));
        assert_eq!(s["method"]["depth_ratio"].as_float(), Some(0.5));
        assert_eq!(s["backbone"].as_str(), Some("here"));
        let said = Record::new(small(), scale, runs).scaled().join("; ");
        assert_eq!(
            said,
            "epochs 1 (recipe: 4); set method.depth_ratio=0.5; set lr=0.1; model Net=here; seeds [7] (recipe: [1, 2]); \
             only data=C; only method=LoTeP"
        );
        let whole = expand(&small(), &Scale::default(), Path::new("")).unwrap();
        assert!(Record::new(small(), Scale::default(), whole).scaled().is_empty());
        for (wrong, words) in
            [("data=D", "it has A & B, C"), ("colour=red", "model=NAME"), ("data", "= between")]
        {
            let scale = Scale { only: vec![wrong.into()], ..Scale::default() };
            let error = expand(&small(), &scale, Path::new("")).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
