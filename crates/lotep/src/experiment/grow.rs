//! More runs of an experiment: what a directory that has some may be given, and what it may not.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;
use toml::{Table, Value};

use super::grid::{Run, Scale, expand, is_target, value_text};
use super::recipe::{CkaPlan, Recipe, Vary};
use super::record::Record;
use crate::{Result, bail, input_error};

/// The record of an experiment with the runs of `more` beside its own, in the order of `more`'s recipe. Which runs there are may
/// differ between the two: seeds, what `--only` leaves, models, data sets, methods and values that the recipe has got since. What a
/// run is may not.
///
/// # Errors
/// They are runs of different kinds; the first difference, as `NAME = THERE, not HERE`.
pub(super) fn grown(there: &Record, more: &Record, data_root: &Path) -> Result<Record> {
    if let Some(how) = other(there, more, data_root)? {
        bail!("{how}");
    }
    let (own, new) = (there.seeds(), more.seeds());
    let seeds: Vec<u64> = own.iter().chain(new.iter().filter(|seed| !own.contains(seed))).copied().collect();
    let mut runs = there.runs.clone();
    for run in &more.runs {
        match runs.iter().find(|r| r.id == run.id) {
            None => runs.push(run.clone()),
            Some(same) if same == run => {}
            Some(_) => bail!("a run that is called {} but is another one", run.id),
        }
    }
    runs.sort_by_key(|run| place(run, &more.recipe, &seeds));
    let mut scale = Scale { seeds, ..more.scale.clone() };
    // What there is can be seen from the runs; what they were tested on can not.
    scale.only.retain(|text| is_target(text));
    let elsewhere = there.scale.model.iter().filter(|text| !more.scale.model.contains(text));
    scale.model.extend(elsewhere.cloned());
    Ok(Record { scale, runs, ..more.clone() })
}

/// Where a run stands in the grid.
fn place(run: &Run, recipe: &Recipe, seeds: &[u64]) -> [usize; 5] {
    let at = |found: Option<usize>| found.unwrap_or(usize::MAX);
    let values = recipe.vary.iter().flat_map(|vary| &vary.values);
    [
        at(recipe.model.iter().position(|m| m.name == run.model)),
        at(recipe.data.iter().position(|d| d.name == run.data)),
        at(recipe.method.iter().position(|m| m.name == run.method)),
        at(values.map(value_text).position(|value| Some(value) == run.variant)),
        at(seeds.iter().position(|seed| *seed == run.seed)),
    ]
}

/// In what the runs are of different kinds.
fn other(there: &Record, more: &Record, data_root: &Path) -> Result<Option<String>> {
    let (a, b) = (&there.recipe, &more.recipe);
    let targets = |record: &Record| record.scale.targets(&record.recipe).cloned().collect::<Vec<_>>();
    let found = differs("protocol", &a.protocol, &b.protocol)?
        .or(differs("run", &a.run, &b.run)?)
        .or(differs("args", &a.args, &b.args)?)
        .or(differs("settings", &a.settings, &b.settings)?)
        .or(fewer("model", &a.model, &b.model, |m| &m.name)?)
        .or(fewer("data", &a.data, &b.data, |d| &d.name)?)
        .or(fewer("method", &a.method, &b.method, |m| &m.name)?)
        .or(varied(a.vary.as_ref(), b.vary.as_ref())?)
        .or(differs("targets", &targets(there), &targets(more))?)
        // Their results are kept by number.
        .or(differs("also", &a.also, &b.also.iter().take(a.also.len()).collect::<Vec<_>>())?)
        .or(compared(a.cka.as_ref(), b.cka.as_ref())?);
    if found.is_some() {
        return Ok(found);
    }
    // The new runs as they would be at the scale of those that are there: options that say the same differently are no difference.
    let Scale { epochs, batch_size, subset, ref set, .. } = there.scale;
    let scale = Scale { epochs, batch_size, subset, set: set.clone(), ..more.scale.clone() };
    for (own, new) in expand(b, &scale, data_root)?.iter().zip(&more.runs) {
        if let Some(how) = differs("", &own.settings, &new.settings)? {
            return Ok(Some(how));
        }
    }
    // One network and one data set of a name, wherever they were found.
    for new in &more.runs {
        let part = |run: &Run, keys: [&str; 2]| -> Table {
            keys.iter().filter_map(|key| Some(((*key).to_owned(), run.settings.get(*key)?.clone()))).collect()
        };
        let model =
            there.runs.iter().find(|run| run.model == new.model).map(|run| (run, ["backbone", "arch"]));
        let data = there.runs.iter().find(|run| run.data == new.data).map(|run| (run, ["data", "dataset"]));
        for (run, keys) in model.into_iter().chain(data) {
            if let Some(how) = differs("", &part(run, keys), &part(new, keys))? {
                return Ok(Some(format!("{how} (another --data-root or --model?)")));
            }
        }
    }
    Ok(None)
}

/// An axis from which an entry is gone, or one that is not what it was.
fn fewer<T: Serialize>(
    axis: &str,
    there: &[T],
    here: &[T],
    name: impl Fn(&T) -> &str,
) -> Result<Option<String>> {
    for entry in there {
        let own = name(entry);
        let Some(same) = here.iter().find(|other| name(other) == own) else {
            return Ok(Some(format!(
                "[[{axis}]] `{own}`, which the recipe has no more (--only leaves it out)"
            )));
        };
        if let Some(how) = differs(&format!("[[{axis}]] `{own}` "), entry, same)? {
            return Ok(Some(how));
        }
    }
    Ok(None)
}

/// What varies: values may be added.
fn varied(there: Option<&Vary>, here: Option<&Vary>) -> Result<Option<String>> {
    let values = |vary: Option<&Vary>| vary.map(|v| v.values.clone()).unwrap_or_default();
    let (old, new) = (values(there), values(here));
    let set = |vary: Option<&Vary>| vary.map_or(String::new(), |v| v.set.clone());
    let gone = old.iter().find(|value| !new.contains(value));
    Ok(differs("vary.set", &set(there), &set(here))?
        .or(gone.map(|value| format!("vary.values {}, which the recipe has no more", value_text(value)))))
}

/// A comparison of features: more to compare with may be added.
fn compared(there: Option<&CkaPlan>, here: Option<&CkaPlan>) -> Result<Option<String>> {
    let (Some(old), Some(new)) = (there, here) else { return Ok(None) };
    Ok(differs("cka.images", &old.images, &new.images)?.or(differs(
        "cka.batch_size",
        &old.batch_size,
        &new.batch_size,
    )?))
}

/// The first place at which two values differ.
fn differs<T: Serialize, U: Serialize>(path: &str, there: &T, here: &U) -> Result<Option<String>> {
    fn find(path: &str, there: Option<&Value>, here: Option<&Value>) -> Option<String> {
        if let (Some(Value::Table(a)), Some(Value::Table(b))) = (there, here) {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            return keys.into_iter().find_map(|key| {
                let gap = if path.is_empty() || path.ends_with(' ') { "" } else { "." };
                find(&format!("{path}{gap}{key}"), a.get(key), b.get(key))
            });
        }
        let said = |value: Option<&Value>| value.map_or_else(|| "unset".to_owned(), value_text);
        (there != here).then(|| format!("{path} = {}, not {}", said(there), said(here)))
    }
    let value = |e: toml::ser::Error| input_error!("{path} cannot be described: {e}");
    let there = Value::try_from(there).map_err(value)?;
    let here = Value::try_from(here).map_err(value)?;
    Ok(find(path, Some(&there), Some(&here)))
}
