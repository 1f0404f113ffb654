//! ImageNet, its variants, and Tiny-ImageNet: folders named by WordNet's identifiers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::wnids;
use crate::data::dataset::{Dataset, Sample, Source, Split, Splits, name_of};
use crate::data::files::{entries, listed, walk};
use crate::data::gather::{Named, numbered};
use crate::data::list::records;
use crate::data::mat::{self, Value};
use crate::{Error, Result, bail};

/// ImageNet-1K as it is unpacked: the 50,000 validation images are what is tested on. They are in folders, or flat beside
/// Kaggle's `LOC_val_solution.csv` or the development kit.
pub(super) fn imagenet(dir: &Path) -> Result<Splits> {
    let base = [dir.join("ILSVRC/Data/CLS-LOC"), dir.join("images"), dir.to_owned()];
    let base = base.into_iter().find(|base| base.join("train").is_dir()).unwrap_or_else(|| dir.to_owned());
    let train = folders(&base.join("train"), dir, wnid)?;
    let val = base.join("val");
    let solution = dir.join("LOC_val_solution.csv");
    let kit = ["ILSVRC2012_devkit_t12/data", "data", ""].map(|place| dir.join(place));
    let kit = kit.into_iter().find(|kit| kit.join(GROUND_TRUTH).is_file());
    let flat = entries(&val)?.dirs.is_empty();
    let test = match kit {
        _ if flat && solution.is_file() => solved(&val, &solution, &train)?,
        Some(kit) if flat => numbered_by_kit(&val, &kit, &train)?,
        _ if flat => bail!(
            "{} is flat: class folders, LOC_val_solution.csv or ILSVRC2012_devkit_t12 in {} are expected, to say what its \
             images are",
            val.display(),
            dir.display()
        ),
        _ => folders(&val, dir, wnid)?,
    };
    let layout = "ImageNet-1K, tested on its validation images".into();
    Ok(Splits { train: Some(train), val: None, test: Some(test), layout })
}

/// A variant of ImageNet to test on, in folders named by identifiers.
pub(super) fn variant(dir: &Path) -> Result<Splits> {
    Ok(test_only(folders(dir, dir, wnid)?))
}

/// ImageNet-V2, whose folders are named by the classes' numbers, 0 to 999.
pub(super) fn numbers(dir: &Path) -> Result<Splits> {
    Ok(test_only(folders(dir, dir, |name| name.parse().ok().filter(|n| *n < 1000))?))
}

/// Where only some of the 1,000 classes occur, the others are no answers either.
fn test_only(mut test: Dataset) -> Splits {
    let mut found: Vec<usize> = test.samples.iter().map(|sample| sample.label).collect();
    found.dedup();
    let layout = format!("{} of ImageNet's 1000 classes, by their WordNet identifiers", found.len());
    test.among = (found.len() < test.classes.len()).then(|| found.into());
    Splits { train: None, val: None, test: Some(test), layout }
}

fn wnid(name: &str) -> Option<usize> {
    wnids::all().binary_search(&name).ok()
}

/// Images of class folders, each numbered among ImageNet's 1,000 by `label`.
fn folders(dir: &Path, home: &Path, label: fn(&str) -> Option<usize>) -> Result<Dataset> {
    let mut samples = Vec::new();
    for class in entries(dir)?.dirs {
        let name = class.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(label) = label(&name) else {
            bail!("{} is none of ImageNet-1K's classes: folders are named by them", class.display());
        };
        let mut images = Vec::new();
        walk(&class, &mut images)?;
        samples.extend(images.into_iter().map(|path| Sample { source: Source::File(path), label }));
    }
    if samples.is_empty() {
        bail!("{} holds no class folders with images", dir.display());
    }
    // By number, which is not the order of ImageNet-V2's folder names.
    samples.sort_by_key(|sample| sample.label);
    Ok(Dataset::new(name_of(home), wnids::names(home)?, samples))
}

/// Kaggle's answers: `ILSVRC2012_val_00000001,n01751748 1 2 3 4 …`.
fn solved(val: &Path, solution: &Path, train: &Dataset) -> Result<Dataset> {
    let text = std::fs::read_to_string(solution).map_err(Error::io("read", solution))?;
    let mut samples = Vec::new();
    for row in records(&text, ',').into_iter().skip(1) {
        let [image, answer, ..] = row.as_slice() else {
            bail!("{} has a line without an answer: {}", solution.display(), row.join(","));
        };
        let wnid = answer.split_whitespace().next().unwrap_or_default();
        let Some(label) = self::wnid(wnid) else {
            bail!("{}: {image} is of `{wnid}`, which is none of ImageNet-1K's classes", solution.display());
        };
        let file = listed(solution, val, &format!("{image}.JPEG"))?;
        samples.push(Sample { source: Source::File(file), label });
    }
    samples.sort_by_key(|sample| sample.label);
    Ok(Dataset::new(train.name.clone(), train.classes.clone(), samples))
}

/// What the development kit says of the validation images: a class's number a line.
const GROUND_TRUTH: &str = "ILSVRC2012_validation_ground_truth.txt";

/// The development kit's answers: the challenge's own numbers, which `meta.mat` has the identifiers of.
fn numbered_by_kit(val: &Path, kit: &Path, train: &Dataset) -> Result<Dataset> {
    let meta = kit.join("meta.mat");
    let [synsets] = mat::read(&meta, ["synsets"])?;
    let Value::Struct(synsets) = synsets else { bail!("{}: synsets are no structure", meta.display()) };
    let mut labels: BTreeMap<usize, usize> = BTreeMap::new();
    for synset in &synsets {
        let number = synset.get("ILSVRC2012_ID").and_then(Value::wholes).and_then(|n| n.first().copied());
        let (Some(number), Some(name)) = (number, synset.get("WNID").and_then(Value::text)) else {
            bail!("{} has a synset without ILSVRC2012_ID or WNID", meta.display());
        };
        // Behind the 1,000 classes are the synsets above them.
        labels.extend(wnid(name).map(|label| (number, label)));
    }
    let answers = kit.join(GROUND_TRUTH);
    let text = std::fs::read_to_string(&answers).map_err(Error::io("read", &answers))?;
    let mut samples = Vec::new();
    for (index, line) in text.lines().map(str::trim).filter(|line| !line.is_empty()).enumerate() {
        let Some(&label) = line.parse().ok().and_then(|number: usize| labels.get(&number)) else {
            bail!("{}, line {}: `{line}` is no class of {}", answers.display(), index + 1, meta.display());
        };
        let file = listed(&answers, val, &format!("ILSVRC2012_val_{:08}.JPEG", index + 1))?;
        samples.push(Sample { source: Source::File(file), label });
    }
    samples.sort_by_key(|sample| sample.label);
    Ok(Dataset::new(train.name.clone(), train.classes.clone(), samples))
}

/// Tiny-ImageNet: `train/WNID/images/*` and `val/images/*` with `val/val_annotations.txt`; its test images have no labels, so
/// that the validation images are tested on.
pub(super) fn tiny(dir: &Path) -> Result<Splits> {
    let mut images = Named::new();
    let mut classes = Vec::new();
    for class in entries(&dir.join("train"))?.dirs {
        let name = class.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut files = Vec::new();
        walk(&class, &mut files)?;
        images.extend(files.into_iter().map(|file| (Split::Train, Source::File(file), name.clone())));
        classes.push(name);
    }
    let answers = dir.join("val/val_annotations.txt");
    let text = std::fs::read_to_string(&answers).map_err(Error::io("read", &answers))?;
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let mut cells = line.split('\t');
        let (Some(image), Some(class)) = (cells.next(), cells.next()) else {
            bail!("{} has a line without a class: {line}", answers.display());
        };
        let file: PathBuf = listed(&answers, &dir.join("val/images"), image)?;
        images.push((Split::Test, Source::File(file), class.trim().to_owned()));
    }
    let words = words(&dir.join("words.txt"), &classes)?;
    let mut splits =
        numbered(name_of(dir), "Tiny-ImageNet, tested on its validation images".into(), classes, images)?;
    for part in [&mut splits.train, &mut splits.test].into_iter().flatten() {
        part.classes.clone_from(&words);
        part.samples.sort_by_key(|sample| sample.label);
    }
    Ok(splits)
}

/// The first word for each identifier, followed by the identifier where two classes have the same.
fn words(path: &Path, classes: &[String]) -> Result<Vec<String>> {
    if !path.is_file() {
        return Ok(classes.to_vec());
    }
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let known: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('\t')).collect();
    let first = |wnid: &String| match known.get(wnid.as_str()) {
        Some(words) => words.split(',').next().unwrap_or(words).trim().to_owned(),
        None => wnid.clone(),
    };
    let words: Vec<String> = classes.iter().map(first).collect();
    let twice = |word: &String| words.iter().filter(|w| *w == word).count() > 1;
    let distinct = |(word, wnid): (&String, &String)| {
        if twice(word) { format!("{word} ({wnid})") } else { word.clone() }
    };
    Ok(words.iter().zip(classes).map(distinct).collect())
}
