//! Data sets that are folders: one directory a class, perhaps under `train`, `val` and `test`.

use std::path::{Path, PathBuf};

use super::dataset::{Dataset, Sample, Source, Splits, name_of};
use super::files::{EXTENSIONS, Entries, entries, walk};
use crate::{Result, bail, input_error};

const TRAIN: &[&str] = &["train"];
const VAL: &[&str] = &["val", "valid", "validation"];
const TEST: &[&str] = &["test"];

/// Read a directory of class folders, or of `train`, `val` and `test` folders that hold them.
pub(super) fn read(root: &Path) -> Result<Splits> {
    let top = entries(root)?;
    let [train, val, test] = [part(&top, TRAIN)?, part(&top, VAL)?, part(&top, TEST)?];
    let Some(first) = train.or(test).or(val) else { return class_folders(root, &top) };

    let reference = Part::read(first)?;
    reference.no_empty_class()?;
    let mut others = reference.others;
    let mut named = Vec::new();
    let mut dataset = |dir: Option<&Path>| -> Result<Option<Dataset>> {
        let Some(dir) = dir else { return Ok(None) };
        named.push(format!("{}/", name_of_given(dir)));
        let samples = if dir == first {
            reference.samples(&reference.classes)?
        } else {
            let part = Part::read(dir)?;
            others += part.others;
            part.samples(&reference.classes)?
        };
        Ok(Some(Dataset::new(name_of(root), reference.classes.clone(), samples)))
    };
    let (train, val, test) = (dataset(train)?, dataset(val)?, dataset(test)?);
    let layout = format!("class folders under {}{}", named.join(", "), ignored(others));
    Ok(Splits { train, val, test, layout })
}

/// `CLASS/*` without further parts.
fn class_folders(root: &Path, top: &Entries) -> Result<Splits> {
    // The parent of a data set would otherwise pass for one, with the data sets as its classes.
    for dir in &top.dirs {
        if part(&entries(dir)?, TRAIN)?.is_some() {
            bail!(
                "{} holds a data set, {}, rather than class folders: did you mean --data {}?",
                root.display(),
                name_of_given(dir),
                dir.display()
            );
        }
    }
    let part = Part::read(root)?;
    part.no_empty_class()?;
    let samples = part.samples(&part.classes)?;
    let layout = format!("class folders{}", ignored(part.others));
    let train = Some(Dataset::new(name_of(root), part.classes, samples));
    Ok(Splits { train, val: None, test: None, layout })
}

/// Find the sub-directory with one of these names, in any case: `Train` beside `Test` are parts, not two classes.
fn part<'a>(top: &'a Entries, names: &[&str]) -> Result<Option<&'a Path>> {
    let is_named = |dir: &&PathBuf| names.iter().any(|name| name.eq_ignore_ascii_case(&name_of_given(dir)));
    let mut found = top.dirs.iter().filter(is_named);
    match (found.next(), found.next()) {
        (Some(one), Some(two)) => {
            bail!("{} and {} mean the same part of the data set: keep one", one.display(), two.display())
        }
        (one, _) => Ok(one.map(PathBuf::as_path)),
    }
}

fn name_of_given(dir: &Path) -> String {
    dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned()
}

fn ignored(others: usize) -> String {
    match others {
        0 => String::new(),
        1 => "; 1 file that is not an image ignored".into(),
        n => format!("; {n} files that are not images ignored"),
    }
}

/// A directory of class folders.
struct Part {
    dir: PathBuf,
    classes: Vec<String>,
    /// One list a class.
    images: Vec<Vec<PathBuf>>,
    others: usize,
}

impl Part {
    fn read(dir: &Path) -> Result<Self> {
        let found = entries(dir)?;
        let mut part = Self { dir: dir.into(), classes: vec![], images: vec![], others: found.others };
        if found.dirs.is_empty() {
            match found.images.len() {
                0 => bail!("{} is empty: it should hold a folder of images for each class", dir.display()),
                n => bail!(
                    "{} holds {n} images but no class folders: put the images of each class in a folder of its own",
                    dir.display()
                ),
            }
        }
        // Images beside the class folders have no label.
        part.others += found.images.len();
        for class in found.dirs {
            let name = class.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
                input_error!("the name of class folder {} is not UTF-8: rename it", class.display())
            })?;
            part.classes.push(name.to_owned());
            let mut images = Vec::new();
            part.others += walk(&class, &mut images)?;
            part.images.push(images);
        }
        if part.images.iter().all(Vec::is_empty) {
            let endings = EXTENSIONS.join(", ");
            bail!("no image under {}: looked for files ending in {endings} in its folders", dir.display());
        }
        Ok(part)
    }

    fn no_empty_class(&self) -> Result<()> {
        match self.images.iter().position(Vec::is_empty) {
            Some(at) => bail!(
                "class folder {} holds no image (files ending in {}): add images or remove it",
                self.dir.join(&self.classes[at]).display(),
                EXTENSIONS.join(", ")
            ),
            None => Ok(()),
        }
    }

    /// Label the images by their class's place in `classes`, the training part's.
    fn samples(&self, classes: &[String]) -> Result<Vec<Sample>> {
        let mut samples = Vec::with_capacity(self.images.iter().map(Vec::len).sum());
        for (class, images) in self.classes.iter().zip(&self.images) {
            let Ok(label) = classes.binary_search(class) else {
                let path = self.dir.join(class);
                bail!(
                    "{} is a class that the training images do not have: remove or rename it",
                    path.display()
                );
            };
            samples.extend(images.iter().map(|path| Sample { source: Source::File(path.clone()), label }));
        }
        Ok(samples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::test_files::{write_bytes, write_image};

    /// A directory with these files; those that end in an image's ending are images.
    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            if file.contains(".txt") {
                write_bytes(dir.path().join(file), b"");
            } else {
                write_image(dir.path().join(file), 1);
            }
        }
        dir
    }

    fn names(data: &Dataset, root: &Path) -> Vec<String> {
        let strip = |s: &Sample| s.name().strip_prefix(&format!("{}/", root.display())).unwrap().to_owned();
        data.samples.iter().map(strip).collect()
    }

    fn message(files: &[&str]) -> String {
        let dir = tree(files);
        read(dir.path()).unwrap_err().to_string().replace(&dir.path().display().to_string(), "DIR")
    }

    #[test]
    fn parts_and_classes_are_found_in_order() {
        let dir = tree(&[
            "train/cat/2.png",
            "train/cat/1.PNG",
            "train/ant/x.bmp",
            "train/ant/nested/y.webp",
            "train/ant/readme.txt",
            "Validation/cat/1.jpg",
            "test/ant/1.jpeg",
            "beside/1.png",
            "train/.cache/1.png",
        ]);
        let splits = read(dir.path()).unwrap();
        let train = splits.train.unwrap();
        assert_eq!(train.classes, ["ant", "cat"]);
        assert_eq!(
            names(&train, dir.path()),
            ["train/ant/x.bmp", "train/ant/nested/y.webp", "train/cat/1.PNG", "train/cat/2.png"]
        );
        assert_eq!(train.samples.iter().map(|s| s.label).collect::<Vec<_>>(), [0, 0, 1, 1]);
        let val = splits.val.unwrap();
        assert_eq!((val.classes.len(), val.samples[0].label), (2, 1), "labels are train's");
        assert_eq!(names(&splits.test.unwrap(), dir.path()), ["test/ant/1.jpeg"]);
        assert_eq!(
            splits.layout,
            "class folders under train/, Validation/, test/; 1 file that is not an image ignored"
        );
    }

    #[test]
    fn class_folders_alone_are_all_train() {
        let dir = tree(&["b/1.png", "a/1.png", "a/日本.png", "stray.png", "notes.txt"]);
        let splits = read(dir.path()).unwrap();
        assert!(splits.val.is_none() && splits.test.is_none());
        let train = splits.train.unwrap();
        assert_eq!(train.classes, ["a", "b"]);
        assert_eq!(names(&train, dir.path()), ["a/1.png", "a/日本.png", "b/1.png"]);
        assert_eq!(splits.layout, "class folders; 2 files that are not images ignored");
    }

    #[test]
    fn a_test_part_alone_is_enough_to_evaluate() {
        let dir = tree(&["test/b/1.png", "test/a/1.png"]);
        let splits = read(dir.path()).unwrap();
        assert!(splits.train.is_none());
        assert_eq!(splits.test.unwrap().classes, ["a", "b"]);
    }

    #[test]
    fn a_directory_named_like_an_image_is_a_directory() {
        let dir = tree(&["a/x.png/1.png", "b.jpg/1.png"]);
        assert_eq!(read(dir.path()).unwrap().train.unwrap().classes, ["a", "b.jpg"]);
    }

    #[test]
    fn each_mistake_has_its_own_message() {
        assert_eq!(message(&[]), "DIR is empty: it should hold a folder of images for each class");
        assert_eq!(
            message(&["1.png", "2.png"]),
            "DIR holds 2 images but no class folders: put the images of each class in a folder of its own"
        );
        assert!(
            message(&["train/1.png", "test/a/1.png"]).starts_with("DIR/train holds 1 images but no class")
        );
        assert!(message(&["a/x.txt", "b/y.txt"]).starts_with("no image under DIR: looked for"));
        assert!(message(&["a/1.png", "b/y.txt"]).starts_with("class folder DIR/b holds no image"));
        assert!(
            message(&["train/a/1.png", "train/b/y.txt"]).starts_with("class folder DIR/train/b holds no")
        );
        assert_eq!(
            message(&["train/a/1.png", "test/a/1.png", "test/z/1.png"]),
            "DIR/test/z is a class that the training images do not have: remove or rename it"
        );
        assert!(message(&["train/a/1.png", "val/a/1.png", "valid/a/1.png"]).ends_with("keep one"));
        assert_eq!(
            message(&["pets/train/a/1.png"]),
            "DIR holds a data set, pets, rather than class folders: did you mean --data DIR/pets?"
        );
    }
}
