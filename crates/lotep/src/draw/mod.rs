//! Images that the program draws itself, for the demonstration without a network and for tests.
//!
//! Two tasks, so that a model can be pretrained on one and adapted to the other: [`Task::Pretrain`] has
//! 16 classes of figures and textures, [`Task::Adapt`] 8 other figures behind a film that is the same on all
//! its images. The same seed, index and size give the same bytes on every machine.

mod canvas;
mod dice;
mod scenes;
mod shapes;
mod words;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use rayon::prelude::*;

use crate::{Error, Result};

/// The smallest side in pixels at which the figures can be told apart.
const SMALLEST: usize = 16;

/// A drawn image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drawn {
    /// Width and height in pixels.
    pub size: usize,
    /// Red, green and blue of each pixel, `[H, W, 3]`.
    pub rgb: Vec<u8>,
}

/// A classification task whose images are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Task {
    /// The source task, to pretrain a model on: 16 classes of figures and textures.
    Pretrain,
    /// The target task, to adapt the model to: 8 other figures, with a domain shift.
    Adapt,
    /// For a CLIP: 80 classes that are a colour and a shape, a texture or a number of shapes, with the same domain shift;
    /// [`picture`] draws them without.
    Words,
}

impl Task {
    /// Return the names of the classes, in the order of their labels.
    pub fn classes(self) -> &'static [&'static str] {
        match self {
            Self::Pretrain => &scenes::PRETRAIN,
            Self::Adapt => &scenes::ADAPT,
            Self::Words => &words::WORDS,
        }
    }

    /// Draw image number `index`, and return it with its label, `index` modulo the number of classes.
    ///
    /// Images of one index and different `size` show the same scene. Below 16 pixels a side the figures
    /// cannot be told apart.
    pub fn image(self, seed: u64, index: u64, size: usize) -> (Drawn, usize) {
        let label = (index % self.classes().len() as u64) as usize;
        let drawn = match self {
            Self::Pretrain => scenes::pretrain(&mut dice::Dice::new(seed, 0, index), label, size),
            Self::Adapt => scenes::adapt(&mut dice::Dice::new(seed, 1, index), label, size),
            Self::Words => words::picture(&mut dice::Dice::new(seed, 2, index), label, size, true),
        };
        (drawn, label)
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pretrain => "pretrain",
            Self::Adapt => "adapt",
            Self::Words => "words",
        })
    }
}

impl FromStr for Task {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "pretrain" => Ok(Self::Pretrain),
            "adapt" => Ok(Self::Adapt),
            "words" => Ok(Self::Words),
            _ => crate::bail!("there is no drawn task `{name}`: it is `pretrain`, `adapt` or `words`"),
        }
    }
}

/// Draw picture number `index` of class `label` of [`Task::Words`], without its domain shift: what a CLIP is trained on.
pub fn picture(seed: u64, index: u64, label: usize, size: usize) -> Drawn {
    words::picture(&mut dice::Dice::new(seed, 3, index), label, size, false)
}

/// Draw a data set of `size` × `size` PNG images under `dir`: `train/CLASS/0000.png`, `test/CLASS/0000.png`, …
///
/// The test images are none of the training images. Directories are made where missing; other files that
/// are there already stay.
///
/// # Errors
///
/// [`Error::Input`] where `size` is below 16, [`Error::Io`] where a file cannot be written.
pub fn write_dataset(
    task: Task,
    dir: &Path,
    size: usize,
    train_per_class: usize,
    test_per_class: usize,
    seed: u64,
) -> Result<()> {
    if size < SMALLEST {
        crate::bail!("the image size is {size}; drawn images need at least {SMALLEST} pixels a side");
    }
    // Test images are numbered from so high up that no training set reaches them.
    for (split, first, per_class) in [("train", 0, train_per_class), ("test", 1 << 32, test_per_class)] {
        let classes = task.classes();
        let folders: Vec<PathBuf> = classes.iter().map(|class| dir.join(split).join(class)).collect();
        if per_class > 0 {
            folders.iter().try_for_each(|folder| {
                std::fs::create_dir_all(folder).map_err(Error::io("create", folder))
            })?;
        }
        (0..per_class * classes.len()).into_par_iter().try_for_each(|number| {
            // `first` is a multiple of every task's number of classes, so the label follows from `number`.
            let (drawn, label) = task.image(seed, first + number as u64, size);
            let path = folders[label].join(format!("{:04}.png", number / classes.len()));
            drawn.save(&path)
        })?;
    }
    Ok(())
}

impl Drawn {
    /// Write the image to `path` as PNG.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut png = Vec::new();
        let side = self.size as u32;
        PngEncoder::new(&mut png)
            .write_image(&self.rgb, side, side, ExtendedColorType::Rgb8)
            .map_err(std::io::Error::other)
            .and_then(|()| std::fs::write(path, &png))
            .map_err(Error::io("write", path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    const TASKS: [Task; 2] = [Task::Pretrain, Task::Adapt];

    #[test]
    fn names_read_back() {
        for task in TASKS {
            assert_eq!(task.to_string().parse::<Task>().unwrap(), task);
        }
        let message = "adopt".parse::<Task>().unwrap_err().to_string();
        assert!(message.contains("`adopt`") && message.contains("`adapt`"), "{message}");
    }

    /// Published figures of the demonstration hold only as long as these bytes do, on every machine.
    #[test]
    fn bytes_are_pinned() {
        for (task, expected) in TASKS.into_iter().zip([0x482f_e1fb_6bd5_8d70, 0x949a_a2a9_f7c0_d54a]) {
            let mut hash = Sha256::new();
            (0..48).for_each(|index| hash.update(task.image(7, index, 24).0.rgb));
            let found = u64::from_be_bytes(hash.finalize()[..8].try_into().unwrap());
            assert_eq!(found, expected, "{task}: {found:#x}");
        }
    }

    #[test]
    fn seeds_tasks_and_indices_differ() {
        let [a, b, c, d] = [(0, 0, 0), (0, 1, 0), (0, 0, 16), (0, 0, 1 << 32)]
            .map(|(task, seed, index)| TASKS[task].image(seed, index, 24).0.rgb);
        let distinct: std::collections::HashSet<_> = [a, b, c, d, Task::Adapt.image(0, 0, 24).0.rgb].into();
        assert_eq!(distinct.len(), 5);
    }

    /// The film is what the images of the target task have in common, and it must not be lost to clipping.
    #[test]
    fn the_target_task_has_a_constant_shift() {
        let average = |task: Task, pixel: usize| {
            let sum: u32 = (0..600).map(|index| u32::from(task.image(3, index, 20).0.rgb[pixel])).sum();
            f64::from(sum) / 600.0
        };
        // Blue against red in the middle pixel.
        let middle = (10 * 20 + 10) * 3;
        assert!((average(Task::Pretrain, middle + 2) - average(Task::Pretrain, middle)).abs() < 15.0);
        let cast = average(Task::Adapt, middle + 2) - average(Task::Adapt, middle);
        assert!((35.0..55.0).contains(&cast), "cast {cast}");
    }

    #[test]
    fn a_data_set_lies_in_class_folders() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("new/data");
        write_dataset(Task::Adapt, &dir, 16, 3, 2, 5).unwrap();
        for (split, count, first) in [("train", 3, 0), ("test", 2, 1u64 << 32)] {
            for (label, class) in Task::Adapt.classes().iter().enumerate() {
                let folder = dir.join(split).join(class);
                assert_eq!(std::fs::read_dir(&folder).unwrap().count(), count, "{split}/{class}");
                let (drawn, expected) = Task::Adapt.image(5, first + 8 + label as u64, 16);
                let read = image::open(folder.join("0001.png")).unwrap().to_rgb8();
                assert_eq!((read.dimensions(), expected), ((16, 16), label));
                assert_eq!(read.into_raw(), drawn.rgb, "{split}/{class}");
            }
        }
        assert!(matches!(write_dataset(Task::Adapt, &dir, 8, 1, 1, 5), Err(Error::Input(_))));
    }
}
