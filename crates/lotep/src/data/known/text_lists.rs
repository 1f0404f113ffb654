//! Data sets whose parts are text files with an image a line.

use std::path::Path;

use crate::data::dataset::{Source, Split, Splits, name_of};
use crate::data::files::listed;
use crate::data::gather::{Named, by_name, numbered};
use crate::{Error, Result, bail};

/// Where the lists are, where the images are, and what a line says.
pub(super) struct Lists {
    pub(super) title: &'static str,
    /// Lists of train, val and test, from the data set's directory.
    pub(super) parts: [&'static [&'static str]; 3],
    /// The images' directory, likewise.
    pub(super) images: &'static str,
    /// From a line to an image's path and its class.
    pub(super) line: fn(&str) -> Option<(String, String)>,
}

/// Read all parts; classes are numbered by name.
pub(super) fn read(dir: &Path, lists: &Lists) -> Result<Splits> {
    Ok(by_class(by_name(name_of(dir), lists.title.into(), gather(dir, lists)?)?))
}

/// Read all parts, whose classes are numbers already: 0 to the largest, whether or not each has an image to learn from.
pub(super) fn read_numbered(dir: &Path, lists: &Lists) -> Result<Splits> {
    /// More than any data set's; a larger number is no label.
    const MOST: usize = 100_000;
    let images = gather(dir, lists)?;
    let largest = images.iter().filter_map(|(.., class)| class.parse::<usize>().ok()).max().unwrap_or(0);
    if largest > MOST {
        bail!("{} has an image of class {largest}: is it a label?", dir.display());
    }
    let classes = (0..=largest).map(|class| class.to_string()).collect();
    Ok(by_class(numbered(name_of(dir), lists.title.into(), classes, images)?))
}

fn by_class(mut splits: Splits) -> Splits {
    for part in [&mut splits.train, &mut splits.val, &mut splits.test].into_iter().flatten() {
        part.samples.sort_by_key(|sample| sample.label);
    }
    splits
}

fn gather(dir: &Path, lists: &Lists) -> Result<Named> {
    let root = dir.join(lists.images);
    let mut images = Named::new();
    for (split, files) in [Split::Train, Split::Val, Split::Test].into_iter().zip(lists.parts) {
        for file in files {
            let path = dir.join(file);
            let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
            for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
            {
                let Some((image, class)) = (lists.line)(line) else {
                    bail!("{} has a line that names no image and class: {line}", path.display());
                };
                images.push((split, Source::File(listed(&path, &root, &image)?), class));
            }
        }
    }
    Ok(images)
}

/// `CLASS/IMAGE.jpg`.
pub(super) fn folder(line: &str) -> Option<(String, String)> {
    let (class, _) = line.split_once('/')?;
    Some((line.to_owned(), class.to_owned()))
}

/// `CLASS/IMAGE` without the ending.
pub(super) fn folder_stem(line: &str) -> Option<(String, String)> {
    let (class, _) = line.split_once('/')?;
    Some((format!("{line}.jpg"), class.replace('_', " ")))
}

/// Pets: `Abyssinian_100 1 1 1`; the class is what comes before the last underscore.
pub(super) fn pet(line: &str) -> Option<(String, String)> {
    let stem = line.split_whitespace().next()?;
    let (class, _) = stem.rsplit_once('_')?;
    Some((format!("{stem}.jpg"), class.replace('_', " ").to_lowercase()))
}

/// Aircraft: `1025794 707-320`; the class may have spaces.
pub(super) fn variant(line: &str) -> Option<(String, String)> {
    let (image, class) = line.split_once(' ')?;
    Some((format!("{image}.jpg"), class.trim().to_owned()))
}

/// `PATH LABEL`, as VTAB-1k's prepared lists have it.
pub(super) fn labelled(line: &str) -> Option<(String, String)> {
    let (image, label) = line.rsplit_once(' ')?;
    let label: u32 = label.parse().ok()?;
    Some((image.trim_start_matches("./").to_owned(), label.to_string()))
}
