//! What a labelled data set is, and how one on disk is recognised.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::decode::{Rgb8, decode_bytes, decode_file};
use super::known::Known;
use super::packed::Packed;
use super::raw::Raw;
use super::{cifar, coop, folder, list, parquet, shards, tar};
use crate::{Error, Result, bail, input_error};

/// Where an image's pixels come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// An image file.
    File(PathBuf),
    /// An image file inside another file: of a tar archive, of a table.
    Packed(Packed),
    /// Grey pixels inside another file.
    Raw(Raw),
    /// Pixels that are in memory already, as a data set's own binary format gives them.
    Pixels {
        /// The file that they were read from.
        file: PathBuf,
        /// Which of the file's images this is, from 0.
        index: usize,
        /// Rows from the top, three bytes (R, G, B) a pixel.
        rgb: Arc<[u8]>,
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
    },
}

/// One labelled image.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Its pixels.
    pub source: Source,
    /// Its class, an index into [`Dataset::classes`].
    pub label: usize,
}

impl Sample {
    /// Say what an error calls this image: its path, or `FILE#INDEX`.
    pub fn name(&self) -> String {
        match &self.source {
            Source::File(path) => path.display().to_string(),
            Source::Packed(packed) => packed.name(),
            Source::Raw(raw) => raw.name(),
            Source::Pixels { file, index, .. } => format!("{}#{index}", file.display()),
        }
    }

    /// Get the pixels, decoding the file where there is one.
    ///
    /// # Errors
    /// As [`decode_file`].
    pub fn load(&self) -> Result<Rgb8> {
        match &self.source {
            Source::File(path) => decode_file(path),
            Source::Packed(packed) => decode_bytes(&packed.read()?, &packed.name()),
            Source::Raw(raw) => raw.read(),
            Source::Pixels { rgb, width, height, .. } => {
                Ok(Rgb8 { width: *width as usize, height: *height as usize, data: rgb.to_vec() })
            }
        }
    }
}

/// A list of labelled images.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The name of the directory that it was opened from.
    pub name: String,
    /// Class names; a label is an index into them.
    pub classes: Vec<String>,
    /// The images, by class and then by file name.
    pub samples: Vec<Sample>,
    /// The labels that are answers, where those are not all: ImageNet-R's 200 of ImageNet's 1,000, in order.
    pub among: Option<Arc<[usize]>>,
}

impl Dataset {
    /// A data set of these classes and images.
    pub fn new(name: String, classes: Vec<String>, samples: Vec<Sample>) -> Self {
        Self { name, classes, samples, among: None }
    }

    /// The same with other images.
    #[must_use]
    pub fn with_samples(&self, samples: Vec<Sample>) -> Self {
        let (name, classes, among) = (self.name.clone(), self.classes.clone(), self.among.clone());
        Self { name, classes, samples, among }
    }

    /// The same with those classes alone that are answers, labels counted anew: for whoever is told the classes by name.
    #[must_use]
    pub fn answers(self) -> Self {
        let Some(among) = self.among else { return self };
        let classes = among.iter().map(|&label| self.classes[label].clone()).collect();
        let kept = |sample: Sample| {
            let label = among.binary_search(&sample.label).ok()?;
            Some(Sample { label, ..sample })
        };
        let samples = self.samples.into_iter().filter_map(kept).collect();
        Self::new(self.name, classes, samples)
    }
}

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// What is learnt from.
    Train,
    /// What choices are made with.
    Val,
    /// What is reported.
    Test,
    /// All of them together.
    All,
}

impl FromStr for Split {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "train" => Ok(Self::Train),
            "val" => Ok(Self::Val),
            "test" => Ok(Self::Test),
            "all" => Ok(Self::All),
            other => Err(input_error!("split '{other}' is not known: use train, val, test or all")),
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
            Self::All => "all",
        })
    }
}

/// A data set as it lies on disk. All parts have the same classes.
#[derive(Clone, Debug)]
pub struct Splits {
    /// The training images.
    pub train: Option<Dataset>,
    /// The validation images, where the data set has a part of its own for them.
    pub val: Option<Dataset>,
    /// The test images, where the data set has them.
    pub test: Option<Dataset>,
    /// How the data set was recognised, in one sentence.
    pub layout: String,
}

impl Splits {
    /// Join the validation images to the training images, for data sets that are learnt from both.
    #[must_use]
    pub fn join_val(mut self) -> Self {
        if let (Some(train), Some(val)) = (&mut self.train, self.val.take()) {
            self.layout =
                format!("{}; trained on its {} validation images too", self.layout, val.samples.len());
            train.samples.extend(val.samples);
        }
        self
    }

    /// Name the parts that there are, in the order train, val, test.
    pub fn parts(&self) -> impl Iterator<Item = (Split, &Dataset)> {
        [(Split::Train, &self.train), (Split::Val, &self.val), (Split::Test, &self.test)]
            .into_iter()
            .filter_map(|(split, part)| part.as_ref().map(|part| (split, part)))
    }

    /// Where there is no test split, hold `fraction` of the training images out as one. Which images is a property of
    /// the data, not of a run's seed, so that `eval` finds the same ones that `train` left alone.
    pub fn hold_out_test(&mut self, fraction: f64) {
        const SEED: u64 = 0;
        if self.test.is_some() || fraction <= 0.0 {
            return;
        }
        let Some(all) = &self.train else { return };
        let (train, test) = super::stratified_split(all, fraction, SEED);
        if !test.samples.is_empty() {
            let share = (100.0 * fraction).round();
            self.layout = format!("{}; no test split of its own, so {share}% of it is held out", self.layout);
            (self.train, self.test) = (Some(train), Some(test));
        }
    }

    /// Take one part, or all of them joined.
    ///
    /// # Errors
    /// Where the data set has no such part; the message names the parts that it has.
    pub fn get(&self, split: Split) -> Result<Dataset> {
        let mut wanted = self.parts().filter(|(part, _)| split == Split::All || *part == split);
        let Some((_, first)) = wanted.next() else {
            let have: Vec<_> = self.parts().map(|(part, _)| part.to_string()).collect();
            bail!("the data set has no {split} split ({}); it has: {}", self.layout, have.join(", "));
        };
        let mut data = first.clone();
        for (_, more) in wanted {
            data.samples.extend_from_slice(&more.samples);
        }
        Ok(data)
    }
}

/// Open a data set: a directory, a list, a table or an archive.
///
/// With `known`, `path` holds that data set's original download, or is the directory that it was unpacked in. Without,
/// the layouts of a directory, in the order in which they are looked for:
///
/// 1. CIFAR's files, in the directory itself or in the folder that its archive unpacks to.
/// 2. Parquet tables or tar archives, as `train-*.parquet`, `test-*.tar` and so on; also in a folder `data`.
/// 3. `train/CLASS/*`, and beside it `val/CLASS/*` (or `valid`, `validation`) and `test/CLASS/*`. Class folders
///    beside these are not looked at.
/// 4. `CLASS/*`: all of it is [`Splits::train`], for the caller to split.
///
/// A file is told by its ending: `.json` one of CoOp's split files or a list of images, `.jsonl`, `.csv` and `.tsv` lists,
/// `.parquet` and `.tar` a table or an archive alone.
///
/// Classes are sorted by name, images by class and then by path where they are files. Hidden files are ignored, and so are,
/// with a count in [`Splits::layout`], files that do not end in jpg, jpeg, png, webp, bmp or ppm.
///
/// # Errors
/// Where nothing is there, no layout fits, a class of train has no image, another part has a class that train lacks, a
/// file is missing, cut short or inconsistent, or `known` is not what is there.
pub fn open(path: &Path, known: Option<Known>) -> Result<Splits> {
    let kind = std::fs::metadata(path).map_err(Error::io("read", path))?;
    if let Some(known) = known {
        return known.read(path);
    }
    if !kind.is_dir() {
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        return match ending.as_str() {
            "json" if !list::is_list(path)? => coop::read(path),
            "json" | "jsonl" | "csv" | "tsv" => list::read(path),
            "parquet" => parquet::read(path, &shards::Parts::one(path)),
            "tar" => tar::read(path, &shards::Parts::one(path)),
            _ => bail!(
                "{} is a file: --data takes a directory that holds class folders, or a .csv, .json, .parquet or .tar file",
                path.display()
            ),
        };
    }
    if let Some((format, dir)) = cifar::find(path)? {
        return cifar::read(&dir, format);
    }
    if let Some(parts) = shards::find(path, "parquet")? {
        return parquet::read(path, &parts);
    }
    if let Some(parts) = shards::find(path, "tar")? {
        return tar::read(path, &parts);
    }
    folder::read(path)
}

/// The last part of a path, for a data set's name.
pub(super) fn name_of(path: &Path) -> String {
    let resolved = path.canonicalize();
    let path = resolved.as_deref().unwrap_or(path);
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::test_files::{shared, write_image};

    #[test]
    fn words_round_trip() {
        for split in [Split::Train, Split::Val, Split::Test, Split::All] {
            assert_eq!(split.to_string().parse::<Split>().unwrap(), split);
        }
        assert_eq!(
            "dev".parse::<Split>().unwrap_err().to_string(),
            "split 'dev' is not known: use train, val, test or all"
        );
    }

    #[test]
    fn a_path_that_is_no_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("nowhere");
        let message = open(&missing, None).unwrap_err().to_string();
        assert!(message.starts_with(&format!("cannot read {}", missing.display())), "{message}");
        write_image(dir.path().join("a.png"), 1);
        let message = open(&dir.path().join("a.png"), None).unwrap_err().to_string();
        assert!(message.contains("a.png is a file"), "{message}");
    }

    #[test]
    fn parts_are_taken_and_joined() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["train/a/1.png", "train/b/1.png", "test/a/2.png"] {
            write_image(dir.path().join(file), 1);
        }
        let splits = open(dir.path(), None).unwrap();
        assert_eq!(splits.get(Split::Train).unwrap().samples.len(), 2);
        assert_eq!(splits.get(Split::All).unwrap().samples.len(), 3);
        let message = splits.get(Split::Val).unwrap_err().to_string();
        assert!(message.contains("no val split") && message.ends_with("it has: train, test"), "{message}");
    }

    #[test]
    fn classes_that_are_no_answers_can_be_left_out() {
        let sample = |label: usize| Sample { source: Source::File(format!("{label}.png").into()), label };
        let classes: Vec<String> = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        let all = Dataset::new("d".into(), classes, vec![sample(1), sample(3), sample(3)]);
        assert_eq!(all.clone().answers().classes.len(), 4);
        let some = Dataset { among: Some([1, 3].into()), ..all }.answers();
        assert_eq!(some.classes, ["b", "d"]);
        assert_eq!(some.samples.iter().map(|s| s.label).collect::<Vec<_>>(), [0, 1, 1]);
        assert!(some.among.is_none() && some.samples[2].name() == "3.png");
    }

    #[test]
    fn real_folders_are_opened() {
        let Some(images) = shared("data/images") else { return };
        for (name, classes, train, test) in
            [("cifar10", 10, 5000, 2000), ("gtsrb", 43, 4271, 880), ("dtd10", 10, 800, 400)]
        {
            let splits = open(&images.join(name), None).unwrap();
            assert_eq!(splits.get(Split::Train).unwrap().classes.len(), classes);
            assert_eq!(splits.get(Split::Train).unwrap().samples.len(), train, "{name}");
            assert_eq!(splits.get(Split::Test).unwrap().samples.len(), test, "{name}");
        }
        let sample = &open(&images.join("cifar10"), None).unwrap().train.unwrap().samples[0];
        assert_eq!(sample.load().unwrap().data.len(), 32 * 32 * 3);
        let message = open(&images.join("imagenet-samples"), None).unwrap_err().to_string();
        assert!(message.contains("imagenet-samples holds 1000 images but no class folders"), "{message}");
        let message = open(&images, None).unwrap_err().to_string();
        assert!(message.contains("cifar10"), "{message}");
    }
}
