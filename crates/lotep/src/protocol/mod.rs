//! The protocols that CLIP's methods are compared by (`spec/methods.md` 10): base to novel classes, few shots, other data
//! sets. Every run is a training of its own in a directory of its own, so that what was stopped goes on.

mod others;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::belongs::{PROTOCOL, belongs};
use crate::data::{ClassSplit, few_shot};
use crate::head::Mapping;
use crate::sweep::Candidate;
use crate::train::{Comparison, Event, Observer, Outcome, RunDir, TrainConfig, train};
use crate::{Result, bail, write_json};
use others::Other;
pub use others::Target;

/// What is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Learn the first half of the classes; test them, and the other half with their own names.
    BaseToNovel {
        /// Training images of each class.
        shots: usize,
    },
    /// Learn all classes from few images.
    FewShot {
        /// Numbers of training images of each class, one after the other.
        shots: Vec<usize>,
    },
    /// Learn all classes of one data set; test it, and others with their own classes.
    CrossData {
        /// Training images of each class.
        shots: usize,
        /// The other data sets.
        targets: Vec<Target>,
    },
}

/// How a number of shots is called.
fn shots_name(shots: usize) -> String {
    if shots == 1 { "1 shot".into() } else { format!("{shots} shots") }
}

/// Accuracies under one heading, a seed each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// What they are of.
    pub name: String,
    /// In percent, in the order of the seeds.
    pub top1: Vec<f64>,
    /// Their mean.
    pub mean: f64,
    /// Their sample standard deviation; none of fewer than two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deviation: Option<f64>,
}

impl Column {
    fn new(name: String, top1: Vec<f64>) -> Self {
        let n = top1.len() as f64;
        let mean = top1.iter().sum::<f64>() / n;
        let squares = top1.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
        let deviation = (top1.len() > 1).then(|| (squares / (n - 1.0)).sqrt());
        Self { name, top1, mean, deviation }
    }
}

/// What came of one candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What distinguishes it.
    pub settings: String,
    /// Trainable parameters.
    pub parameters: usize,
    /// Accuracies.
    pub columns: Vec<Column>,
    /// Of base and novel classes: the harmonic mean of the averages over seeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub harmonic: Option<f64>,
}

/// `2 a b / (a + b)`.
pub fn harmonic_mean(a: f64, b: f64) -> f64 {
    if a + b > 0.0 { 2.0 * a * b / (a + b) } else { 0.0 }
}

/// Run every candidate through the protocol with every seed; what of that is done already in `dir` is not done again.
///
/// All that will be tested is opened before anything is trained. A method is trained as its paper does in this protocol,
/// but for the settings that the candidate was given.
///
/// # Errors
/// There is nothing to run, a setting is wrong, data to test on is missing, a method doesn't know classes that it has not
/// learnt, or the observer stops it (what is done is kept).
pub fn run(
    candidates: &[Candidate],
    protocol: &Protocol,
    seeds: &[u64],
    dir: &Path,
    observer: &mut dyn Observer,
) -> Result<Vec<Row>> {
    if candidates.is_empty() || seeds.is_empty() {
        bail!("a protocol needs settings and a seed at least");
    }
    if let Some((_, twice)) = seeds.iter().enumerate().find(|(i, s)| seeds[..*i].contains(s)) {
        bail!("seed {twice} is given twice");
    }
    protocol.check()?;
    candidates.iter().try_for_each(|candidate| protocol.suits(&candidate.config))?;
    let others = others::all(protocol, candidates, observer)?;
    let configs: Vec<&TrainConfig> = candidates.iter().map(|candidate| &candidate.config).collect();
    let own = serde_json::json!({ "protocol": protocol, "seeds": seeds, "configs": configs });
    belongs(dir, PROTOCOL, &own, "protocol")?;
    let rows = candidates.iter().zip(&others).enumerate().map(|(i, (candidate, others))| {
        let dir = if candidates.len() == 1 { dir.to_owned() } else { dir.join(format!("{:03}", i + 1)) };
        one(candidate, protocol, others, seeds, &dir, observer)
    });
    let rows = rows.collect::<Result<Vec<_>>>()?;
    write_json(
        &serde_json::json!({ "protocol": protocol, "seeds": seeds, "rows": rows }),
        &dir.join("result.json"),
    )?;
    Ok(rows)
}

fn one(
    candidate: &Candidate,
    protocol: &Protocol,
    others: &[Other],
    seeds: &[u64],
    dir: &Path,
    observer: &mut dyn Observer,
) -> Result<Row> {
    let base = &candidate.config;
    let mut columns: Vec<(String, Vec<f64>)> = Vec::new();
    let mut note = |name: String, top1: f64| match columns.iter_mut().find(|(n, _)| *n == name) {
        Some((_, values)) => values.push(top1),
        None => columns.push((name, vec![top1])),
    };
    let mut parameters = 0;
    for &seed in seeds {
        for shots in protocol.shots() {
            let (class_split, column) = match protocol {
                Protocol::BaseToNovel { .. } => (ClassSplit::Base, "base".to_owned()),
                Protocol::FewShot { .. } => (base.class_split, shots_name(shots)),
                Protocol::CrossData { .. } => (base.class_split, SOURCE.to_owned()),
            };
            let mut config = TrainConfig { seed, shots: Some(shots), class_split, ..base.clone() };
            let counted = config.clone();
            let images = || match counted.splits(class_split)?.train {
                Some(train) => Ok(few_shot(&train, shots, seed).samples.len()),
                None => bail!("{} has no training images", counted.data.display()),
            };
            let said = config.as_in_paper(protocol.comparison(), shots, images, &candidate.given)?;
            let run = RunDir::new(dir.join(format!("shots-{shots}-seed-{seed}")));
            let begun = format!("\n{}: {}, seed {seed}", candidate.settings, shots_name(shots));
            observer.event(Event::Plan(&begun));
            if !said.is_empty() {
                observer.event(Event::Plan(&format!("as in its paper: {}", said.join(", "))));
            }
            let outcome = train(&config, &run, true, observer)?;
            parameters = outcome.train.trainable_parameters;
            note(column, tested(&outcome, &config)?);
            for (other, top1) in others.iter().zip(others::measure(others, &run, &config, observer)?) {
                note(other.column.clone(), top1);
            }
        }
    }
    let columns: Vec<Column> = columns.into_iter().map(|(name, top1)| Column::new(name, top1)).collect();
    let harmonic = matches!(protocol, Protocol::BaseToNovel { .. })
        .then(|| harmonic_mean(columns[0].mean, columns[1].mean));
    Ok(Row { settings: candidate.settings.clone(), parameters, columns, harmonic })
}

/// The column of the data set that was learnt, where others are tested.
const SOURCE: &str = "source";

impl Protocol {
    /// Numbers of training images of each class.
    fn shots(&self) -> Vec<usize> {
        match self {
            Self::FewShot { shots } => shots.clone(),
            Self::BaseToNovel { shots } | Self::CrossData { shots, .. } => vec![*shots],
        }
    }

    fn comparison(&self) -> Comparison {
        match self {
            Self::BaseToNovel { .. } => Comparison::BaseToNovel,
            Self::FewShot { .. } => Comparison::FewShot,
            Self::CrossData { .. } => Comparison::CrossData,
        }
    }

    /// Refuse a method that would not know the classes that it is tested on.
    fn suits(&self, config: &TrainConfig) -> Result<()> {
        if !matches!(self, Self::FewShot { .. }) && config.head().mapping != Mapping::Text {
            bail!(
                "{} has a classifier for the classes that it learns and knows no others: a method that scores classes by \
                 their names is expected (`lotep methods`), or the setting mapping=text",
                config.method.name()
            );
        }
        Ok(())
    }

    /// Refuse what would be two columns of one name.
    fn check(&self) -> Result<()> {
        let names: Vec<String> = match self {
            Self::BaseToNovel { .. } => Vec::new(),
            Self::FewShot { shots } => shots.iter().map(|n| shots_name(*n)).collect(),
            Self::CrossData { targets, .. } => {
                std::iter::once(SOURCE.to_owned()).chain(targets.iter().map(|t| t.name.clone())).collect()
            }
        };
        match names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
            Some((_, name)) => {
                bail!("two columns of the table would be called `{name}`: give another name to one")
            }
            None => Ok(()),
        }
    }
}

fn tested(outcome: &Outcome, config: &TrainConfig) -> Result<f64> {
    match outcome.train.test {
        Some(accuracy) => Ok(accuracy.top1),
        None => bail!("{} has no test images: a test fraction above 0 is needed", config.data.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PromptSRC's table: the harmonic mean is of the averages, not the average of harmonic means.
    #[test]
    fn means_are_those_of_the_family() {
        assert!((harmonic_mean(84.26, 76.10) - 79.97).abs() < 0.005);
        assert!((harmonic_mean(84.21, 71.79) - 77.51).abs() < 0.005);
        assert!(harmonic_mean(0.0, 0.0).abs() < 1e-12);
        let column = Column::new("base".into(), vec![80.0, 82.0, 84.0]);
        assert!((column.mean - 82.0).abs() < 1e-12 && (column.deviation.unwrap() - 2.0).abs() < 1e-12);
        assert_eq!(Column::new("base".into(), vec![80.0]).deviation, None);
    }
}
