//! Data sets that are known by name: what each contains, where it is to be had, and how its download is read.

mod birds;
mod class_folders;
mod gtsrb;
mod matlab;
mod originals;
mod table;
mod text_lists;
mod vtab;
mod wnids;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::dataset::{Dataset, Split, Splits};
use crate::{Error, Result, bail, input_error};
use table::TABLE;
pub use wnids::nameless;

/// A data set that is read in the form that its authors publish: a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Known(usize);

/// What is known of a data set.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct About {
    /// What `--dataset` calls it.
    pub name: &'static str,
    /// What its authors call it.
    pub title: &'static str,
    /// How many classes it has.
    pub classes: usize,
    /// How many images: train, val, test. 0 where it has no such part.
    pub images: [usize; 3],
    /// Directories that it may be in, below the one that is given.
    pub folders: &'static [&'static str],
    /// What tells its directory: one of these is in it.
    pub markers: &'static [&'static str],
    /// Where it is to be had.
    pub get: &'static str,
    /// What its directory looks like, and which split that makes.
    pub holds: &'static str,
    #[serde(skip)]
    read: fn(&Path) -> Result<Splits>,
}

impl About {
    /// Directories that it is looked for in, below the one that is given: its name, and those that its archives make.
    pub fn places(&self) -> Vec<&'static str> {
        [self.name].into_iter().chain(self.folders.iter().copied().filter(|f| *f != self.name)).collect()
    }
}

impl Known {
    /// All, in the order of the table.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..TABLE.len()).map(Self)
    }

    /// What is known of it.
    pub fn about(self) -> &'static About {
        &TABLE[self.0]
    }

    /// Find its directory: `path` itself, or the one below that has its name or its archive's.
    ///
    /// # Errors
    /// It is in none of them; the message says what is expected and where to get it.
    pub fn find(self, path: &Path) -> Result<PathBuf> {
        let about = self.about();
        let below = about.places().into_iter().map(|folder| path.join(folder));
        let places: Vec<PathBuf> = [path.to_owned()].into_iter().chain(below).collect();
        // The first form that is anywhere: what is prepared needs nothing else.
        let with = |marker: &&str| places.iter().find(|dir| dir.join(marker).exists());
        about.markers.iter().find_map(with).cloned().ok_or_else(|| {
            input_error!(
                "{} does not hold {} ({}), nor does {} there: expected {}; get it from {} (`lotep datasets {}`)",
                path.display(),
                about.name,
                about.title,
                about.places().join(" or "),
                about.markers.join(" or "),
                about.get,
                about.name
            )
        })
    }

    /// Read it from `path`, its directory or one that holds that. What differs from the published counts is said in the
    /// layout.
    ///
    /// # Errors
    /// It isn't there, or a file of it is missing or damaged.
    pub(super) fn read(self, path: &Path) -> Result<Splits> {
        let mut splits = (self.about().read)(&self.find(path)?)?;
        let differs = self.differs(&splits);
        if !differs.is_empty() {
            splits.layout = format!("{}; NOT as published: {}", splits.layout, differs.join(", "));
        }
        Ok(splits)
    }

    /// What of `splits` differs from the published counts, a clause each; none where all is there.
    pub fn differs(self, splits: &Splits) -> Vec<String> {
        let about = self.about();
        let mut differs = Vec::new();
        // Where a part of the classes is asked for, those are what is counted.
        let count = |data: &Dataset| data.among.as_ref().map_or(data.classes.len(), |among| among.len());
        let classes = splits.parts().next().map_or(0, |(_, data)| count(data));
        if classes != about.classes {
            differs.push(format!("{classes} classes instead of {}", about.classes));
        }
        let parts = [(Split::Train, &splits.train), (Split::Val, &splits.val), (Split::Test, &splits.test)];
        for ((split, data), expected) in parts.into_iter().zip(about.images) {
            let found = data.as_ref().map_or(0, |data| data.samples.len());
            if found != expected {
                differs.push(format!("{found} {split} images instead of {expected}"));
            }
        }
        differs
    }
}

impl FromStr for Known {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match TABLE.iter().position(|about| about.name == text) {
            Some(row) => Ok(Self(row)),
            None => bail!("data set '{text}' is not known: `lotep datasets` lists those that are"),
        }
    }
}

impl TryFrom<String> for Known {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Known> for String {
    fn from(known: Known) -> Self {
        known.to_string()
    }
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.about().name)
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vtab_tests;
