//! Data sets in a few large files, whose names begin with the part that they hold.

use std::path::{Path, PathBuf};

use super::dataset::Split;
use super::gather::part;
use crate::{Error, Result, bail};

/// Files by part.
pub(super) struct Parts(pub(super) Vec<(Split, PathBuf)>);

impl Parts {
    /// One file; its name may say which part it is.
    pub(super) fn one(path: &Path) -> Self {
        Self(vec![(named(path).unwrap_or(Split::Train), path.to_owned())])
    }

    /// How many there are of what, for a layout's sentence.
    pub(super) fn count(&self, what: &str) -> String {
        let n = self.0.len();
        format!("{n} {what}{}", if n == 1 { "" } else { "s" })
    }
}

/// `train-00000-of-00002.parquet` and the like: the word before the first mark.
fn named(path: &Path) -> Option<Split> {
    let stem = path.file_stem()?.to_str()?;
    part(stem.split(|c: char| !c.is_ascii_alphabetic()).next()?)
}

/// The files of a directory that end in `ending`, or those of its folder `data`, in order. None where there are none.
///
/// # Errors
/// Some of the files name a part and others don't.
pub(super) fn find(dir: &Path, ending: &str) -> Result<Option<Parts>> {
    for dir in [dir.to_owned(), dir.join("data")] {
        if !dir.is_dir() {
            continue;
        }
        let listed = std::fs::read_dir(&dir).map_err(Error::io("read", &dir))?;
        let is_wanted = |p: &PathBuf| {
            let hidden = p.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            p.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending)) && p.is_file() && !hidden
        };
        let mut files: Vec<PathBuf> = listed.flatten().map(|e| e.path()).filter(is_wanted).collect();
        files.sort();
        if files.is_empty() {
            continue;
        }
        let splits: Vec<Option<Split>> = files.iter().map(|f| named(f)).collect();
        if splits.iter().any(Option::is_some)
            && let Some(at) = splits.iter().position(Option::is_none)
        {
            bail!(
                "{} does not say which part it is: beside files that begin with train, val or test it should begin so",
                files[at].display()
            );
        }
        let split = |(file, split): (PathBuf, Option<Split>)| (split.unwrap_or(Split::Train), file);
        return Ok(Some(Parts(files.into_iter().zip(splits).map(split).collect())));
    }
    Ok(None)
}
