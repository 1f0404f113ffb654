//! From images with the names of their classes to a data set with numbered classes.

use std::collections::{BTreeMap, BTreeSet};

use super::dataset::{Dataset, Sample, Source, Split, Splits};
use crate::{Result, bail};

/// Images by part, with what names their class.
pub(super) type Named = Vec<(Split, Source, String)>;

/// Number the classes by name, those whose names are all numbers by value.
///
/// # Errors
/// There are no images, or another part has a class that the training images lack.
pub(super) fn by_name(name: String, layout: String, images: Named) -> Result<Splits> {
    let trained = images.iter().any(|(split, ..)| *split == Split::Train);
    let counted = images.iter().filter(|(split, ..)| !trained || *split == Split::Train);
    let found: BTreeSet<&str> = counted.map(|(.., class)| class.as_str()).collect();
    let mut classes: Vec<String> = found.into_iter().map(str::to_owned).collect();
    if classes.iter().all(|class| class.parse::<u64>().is_ok()) {
        classes.sort_by_key(|class| class.parse::<u64>().unwrap_or_default());
    }
    numbered(name, layout, classes, images)
}

/// Number the classes as they are given.
///
/// # Errors
/// There are no images, or one is of another class.
pub(super) fn numbered(name: String, layout: String, classes: Vec<String>, images: Named) -> Result<Splits> {
    let places: BTreeMap<&str, usize> = classes.iter().enumerate().map(|(i, c)| (c.as_str(), i)).collect();
    if places.len() < classes.len() {
        let twice = classes.iter().enumerate().find(|(i, class)| places[class.as_str()] != *i);
        bail!("{name}: two classes are called `{}`", twice.map_or("", |(_, class)| class));
    }
    let mut parts = [vec![], vec![], vec![]];
    for (split, source, class) in images {
        let Some(&label) = places.get(class.as_str()) else {
            let sample = Sample { source, label: 0 };
            bail!("{name}: {} is of class `{class}`, which the training images do not have", sample.name());
        };
        let part = match split {
            Split::Val => 1,
            Split::Test => 2,
            Split::Train | Split::All => 0,
        };
        parts[part].push(Sample { source, label });
    }
    if parts.iter().all(Vec::is_empty) {
        bail!("{name} ({layout}) holds no images");
    }
    let [train, val, test] = parts
        .map(|samples| (!samples.is_empty()).then(|| Dataset::new(name.clone(), classes.clone(), samples)));
    Ok(Splits { train, val, test, layout })
}

/// The part that a word names.
pub(super) fn part(word: &str) -> Option<Split> {
    match word.to_ascii_lowercase().as_str() {
        "train" | "training" => Some(Split::Train),
        "val" | "valid" | "validation" | "dev" => Some(Split::Val),
        "test" | "testing" => Some(Split::Test),
        _ => None,
    }
}
