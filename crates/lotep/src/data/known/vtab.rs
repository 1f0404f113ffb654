//! VTAB-1k: 800 images to learn from, 200 to choose with, and the whole test set.

use std::collections::BTreeMap;
use std::path::Path;

use super::Known;
use super::text_lists::{self, Lists, labelled};
use crate::data::dataset::{Dataset, Sample, Source, Splits};
use crate::{Error, Result, bail, input_error};

/// File of the lists by the names that TensorFlow's data sets give the images.
pub(super) const NAMES: &str = "vtab_trainval_splits.json";

static PREPARED: Lists = Lists {
    title: "VTAB-1k's 800 and 200 images",
    parts: [&["train800.txt"], &["val200.txt"], &["test.txt"]],
    images: "",
    line: labelled,
};

/// Read a task's prepared folder.
pub(super) fn prepared(dir: &Path) -> Result<Splits> {
    text_lists::read_numbered(dir, &PREPARED)
}

/// Read a prepared folder, or choose the images of task `task` from the original download of `known` in `dir` by the lists
/// of names there.
pub(super) fn named(dir: &Path, task: &str, known: &str) -> Result<Splits> {
    if dir.join("train800.txt").is_file() {
        return prepared(dir);
    }
    let path = dir.join(NAMES);
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let tasks: BTreeMap<String, BTreeMap<String, Vec<String>>> = serde_json::from_str(&text)
        .map_err(|e| input_error!("{} is no file of VTAB-1k's lists: {e}", path.display()))?;
    let Some(lists) = tasks.get(task) else { bail!("{} has no task `{task}`", path.display()) };
    let known: Known = known.parse()?;
    let whole = (known.about().read)(&known.find(dir)?)?.join_val();
    let Some(all) = &whole.train else { bail!("{known} in {} has no training images", dir.display()) };
    let by_name: BTreeMap<String, &Sample> = all.samples.iter().map(|s| (tfds_name(s), s)).collect();
    let part = |name: &str| -> Result<Option<Dataset>> {
        let names =
            lists.get(name).ok_or_else(|| input_error!("{}: `{task}` has no {name}", path.display()))?;
        let sample = |name: &String| {
            // DTD's names begin with the class folder, which the file's own name repeats.
            let file = name.rsplit('/').next().unwrap_or(name);
            by_name.get(file).map(|s| (*s).clone()).ok_or_else(|| {
                input_error!(
                    "{}: `{name}` is no training image of {known} in {}",
                    path.display(),
                    dir.display()
                )
            })
        };
        let samples = names.iter().map(sample).collect::<Result<_>>()?;
        Ok(Some(Dataset::new(all.name.clone(), all.classes.clone(), samples)))
    };
    let layout = format!("VTAB-1k's 800 and 200 images of {known}");
    Ok(Splits { train: part("train")?, val: part("val")?, test: whole.test, layout })
}

/// What TensorFlow's data sets call an image: its file's name, or its place among CIFAR's training images.
fn tfds_name(sample: &Sample) -> String {
    match &sample.source {
        Source::File(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        Source::Pixels { index, .. } => format!("train_{index:05}"),
        Source::Packed(packed) => packed.name(),
    }
}
