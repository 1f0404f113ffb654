//! What a protocol tests besides the classes that were learnt: opened and checked before anything is learnt.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Protocol;
use crate::adapter::Adapter;
use crate::backbone::{Loaded, load};
use crate::data::{Augment, ClassSplit, Dataset, Known, Loader, LoaderConfig, Split, Splits, nameless, open};
use crate::eval::evaluate;
use crate::head::ClassTexts;
use crate::model::Predictor;
use crate::sweep::Candidate;
use crate::text::templates;
use crate::train::{Downloads, Event, Observer, RunDir, TrainConfig, class_texts};
use crate::{Error, Result, device, input_error, write_json};

/// A data set that is tested but not learnt. As text it is `PLACE`, `DATASET:PLACE` or either behind `NAME=`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// What its column is called.
    pub name: String,
    /// Where it is, as `train --data` takes it.
    pub data: PathBuf,
    /// Its name, where it is read in its authors' form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<Known>,
}

impl Target {
    /// Its test images.
    fn open(&self, test_fraction: f64) -> Result<Dataset> {
        let mut splits = open(&self.data, self.dataset)?;
        splits.hold_out_test(test_fraction);
        test_images(splits)
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, rest) = match text.split_once('=') {
            Some((name, rest)) => (Some(name.trim()), rest),
            None => (None, text),
        };
        let known =
            rest.split_once(':').and_then(|(known, place)| Some((known.parse::<Known>().ok()?, place)));
        let (dataset, place) = known.map_or((None, rest), |(known, place)| (Some(known), place));
        if place.is_empty() || name == Some("") {
            return Err(input_error!(
                "`{text}` is no data set to test on: PLACE, NAME=PLACE or NAME=DATASET:PLACE is expected"
            ));
        }
        let path = Path::new(place);
        let own = || match dataset {
            Some(known) => known.to_string(),
            None => path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        };
        Ok(Self { name: name.map_or_else(own, str::to_owned), data: path.to_owned(), dataset })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.name)?;
        if let Some(known) = self.dataset {
            write!(f, "{known}:")?;
        }
        write!(f, "{}", self.data.display())
    }
}

/// Classes that are tested but not learnt.
pub(super) struct Other {
    /// What their column is called.
    pub(super) column: String,
    data: Arc<Dataset>,
    /// What is wrong with their names, if anything is.
    warning: Option<String>,
}

impl Other {
    fn new(column: &str, data: Dataset, place: &Path, known: Option<Known>) -> Result<Self> {
        templates::check_names(&data.classes)?;
        let warning = nameless(place, known, &data.classes).map(|line| format!("{column}: {line}"));
        Ok(Self { column: column.to_owned(), data: Arc::new(data), warning })
    }
}

/// The test images of `splits`, with only those classes that are answers.
fn test_images(splits: Splits) -> Result<Dataset> {
    let data = splits.get(Split::Test)?.answers();
    if data.samples.is_empty() {
        return Err(input_error!("it has no test images ({})", splits.layout));
    }
    Ok(data)
}

/// What a protocol tests besides what was learnt with `config`.
fn of(protocol: &Protocol, config: &TrainConfig) -> Result<Vec<Other>> {
    let mut missing = Vec::new();
    let mut found = Vec::new();
    match protocol {
        Protocol::FewShot { .. } => {}
        Protocol::BaseToNovel { .. } => {
            let data = test_images(config.splits(ClassSplit::Novel)?)
                .map_err(|e| input_error!("{}: {e}", config.data.display()))?;
            found.push(Other::new("novel", data, &config.data, config.dataset)?);
        }
        Protocol::CrossData { targets, .. } => {
            for target in targets {
                let other = target
                    .open(config.test_fraction)
                    .and_then(|data| Other::new(&target.name, data, &target.data, target.dataset));
                match other {
                    Ok(other) => found.push(other),
                    Err(error) => missing.push(format!("data set `{}`: {error}", target.name)),
                }
            }
        }
    }
    if missing.is_empty() { Ok(found) } else { Err(Error::Input(missing.join("; "))) }
}

/// What is tested beside each candidate's own classes: all of it is there, and CLIP can read every name.
///
/// # Errors
/// It isn't, or can't.
pub(super) fn all(
    protocol: &Protocol,
    candidates: &[Candidate],
    observer: &mut dyn Observer,
) -> Result<Vec<Arc<[Other]>>> {
    let mut all: Vec<Arc<[Other]>> = Vec::new();
    for (i, Candidate { config, .. }) in candidates.iter().enumerate() {
        // Candidates of a protocol mostly have the same data.
        let before = i.checked_sub(1).map(|before| (&candidates[before].config, all[before].clone()));
        let same = |c: &TrainConfig| {
            (&c.data, c.dataset, c.join_val) == (&config.data, config.dataset, config.join_val)
                && c.test_fraction.to_bits() == config.test_fraction.to_bits()
        };
        all.push(match before {
            Some((before, found)) if same(before) => found,
            _ => of(protocol, config)?.into(),
        });
    }
    let mut warned = Vec::new();
    for line in all.iter().flat_map(|others| others.iter()).filter_map(|other| other.warning.as_ref()) {
        if !warned.contains(&line) {
            observer.event(Event::Warning(line));
            warned.push(line);
        }
    }
    let mut open: Option<(&TrainConfig, Loaded)> = None;
    for (Candidate { config, .. }, others) in candidates.iter().zip(&all) {
        let Some(plan) = config.method.text_plan(config.head())?.filter(|_| !others.is_empty()) else {
            continue;
        };
        let same = |c: &TrainConfig| {
            (&c.backbone, &c.arch, c.random_weights)
                == (&config.backbone, &config.arch, config.random_weights)
        };
        if !open.as_ref().is_some_and(|(c, _)| same(c)) {
            let options = config.load_options(&device::open(&config.device)?);
            open = Some((config, load(&options, &mut Downloads(observer))?));
        }
        if let Some((_, loaded)) = &open {
            for other in others.iter() {
                ClassTexts::check(loaded, &plan, &other.data.classes)
                    .map_err(|e| input_error!("data set `{}`: {e}", other.column))?;
            }
        }
    }
    Ok(all)
}

/// The accuracies of a run's adapter on other classes, by their names, in their order. What is known already, in the run's
/// directory, is not measured again.
///
/// # Errors
/// The adapter or an image can't be read, or the observer stops it.
pub(super) fn measure(
    others: &[Other],
    run: &RunDir,
    config: &TrainConfig,
    observer: &mut dyn Observer,
) -> Result<Vec<f64>> {
    let path = run.path().join("others.json");
    let mut known: BTreeMap<String, f64> = match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
        read => serde_json::from_slice(&read.map_err(Error::io("read", &path))?)
            .map_err(|e| input_error!("{} is damaged: {e}: remove it to measure again", path.display()))?,
    };
    if others.iter().any(|other| !known.contains_key(&other.column)) {
        let device = device::open(&config.device)?;
        let loaded = load(&config.load_options(&device), &mut Downloads(observer))?;
        let adapter = Adapter::load(&run.adapter(), &loaded)?;
        for other in others {
            if !known.contains_key(&other.column) {
                known.insert(other.column.clone(), top1(other, &loaded, &adapter, config, observer)?);
                write_json(&known, &path)?;
            }
        }
    }
    Ok(others.iter().map(|other| known[&other.column]).collect())
}

/// The accuracy of an adapter on other classes.
fn top1(
    other: &Other,
    loaded: &Loaded,
    adapter: &Adapter,
    config: &TrainConfig,
    observer: &mut dyn Observer,
) -> Result<f64> {
    let (method, head) = (&adapter.config.method, adapter.config.head);
    let texts = class_texts(loaded, method, head, &other.data.classes)?;
    for line in texts.iter().flat_map(|texts| texts.warnings()) {
        observer.event(Event::Warning(line));
    }
    let predictor = Predictor::adapted(loaded, method, head, &adapter.params, texts.as_ref())?;
    let transform = adapter.config.input.transform.clone();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let loader = Loader::new(
        other.data.clone(),
        LoaderConfig {
            batch_size: 32,
            transform: transform.clone(),
            augment: Augment::None,
            workers: if config.workers == 0 { cores } else { config.workers },
            prefetch: 2,
            on_corrupt: config.on_corrupt,
            cache_bytes: 0,
            drop_last: false,
        },
    );
    observer.event(Event::Begin { what: &other.column, images: other.data.samples.len(), done: 0 });
    let accuracy = evaluate(&predictor, &loader, &transform, |done| {
        observer.event(Event::Advance { done, running: None });
        !observer.stop()
    });
    for name in loader.skipped() {
        observer.event(Event::Warning(&format!("skipped corrupt image {name}")));
    }
    match accuracy {
        Err(Error::Interrupted(why)) => {
            Err(Error::Interrupted(format!("{why}: give the same command again to go on")))
        }
        other => Ok(other?.top1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_places_with_names_and_data_sets() {
        let target = |text: &str| text.parse::<Target>().unwrap();
        for (text, name, data, dataset) in [
            ("flowers", "flowers", "flowers", None),
            ("sets/split_zhou_X.json", "split_zhou_X", "sets/split_zhou_X.json", None),
            ("Flowers=sets/flowers", "Flowers", "sets/flowers", None),
            ("clip-pets:sets", "clip-pets", "sets", Some("clip-pets")),
            ("Pets=clip-pets:sets/a=b", "Pets", "sets/a=b", Some("clip-pets")),
            ("C:/sets", "sets", "C:/sets", None),
        ] {
            let found = target(text);
            let known = dataset.map(|known| known.parse::<Known>().unwrap());
            assert_eq!(found, Target { name: name.into(), data: data.into(), dataset: known }, "{text}");
            assert_eq!(target(&found.to_string()), found, "{text}");
        }
        for text in ["", "=x", "x=", "x=clip-pets:"] {
            assert!(text.parse::<Target>().unwrap_err().to_string().contains("NAME=DATASET:PLACE"), "{text}");
        }
    }
}
