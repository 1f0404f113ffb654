//! CIFAR-10 and CIFAR-100 as their authors publish them ("binary version").
//!
//! A file is a run of records: the label (for CIFAR-100 the coarse one, then the fine one), then 3072 bytes, the
//! 32 x 32 red plane first, then green, then blue.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::dataset::{Dataset, Sample, Source, Splits, name_of};
use crate::{Error, Result, bail};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;

/// What distinguishes the two downloads.
pub(super) struct Format {
    name: &'static str,
    /// What the archive unpacks to.
    folder: &'static str,
    train: &'static [&'static str],
    test: &'static str,
    names: &'static str,
    classes: usize,
    /// Bytes before the pixels; the last of them is the label that is used.
    labels: usize,
    /// A file of the Python version of the same download, which is a common mistake.
    python: &'static str,
}

/// CIFAR-10.
pub(super) static TEN: Format = Format {
    name: "cifar10",
    folder: "cifar-10-batches-bin",
    train: &[
        "data_batch_1.bin",
        "data_batch_2.bin",
        "data_batch_3.bin",
        "data_batch_4.bin",
        "data_batch_5.bin",
    ],
    test: "test_batch.bin",
    names: "batches.meta.txt",
    classes: 10,
    labels: 1,
    python: "batches.meta",
};

/// CIFAR-100, with its fine labels.
pub(super) static HUNDRED: Format = Format {
    name: "cifar100",
    folder: "cifar-100-binary",
    train: &["train.bin"],
    test: "test.bin",
    names: "fine_label_names.txt",
    classes: 100,
    labels: 2,
    python: "meta",
};

impl Format {
    /// The folder with the files, which is `dir` or the archive's folder in it. Two of the files tell it, so that a
    /// download which lost one is recognised, and the missing file named.
    fn folder(&self, dir: &Path) -> Option<PathBuf> {
        [dir.to_path_buf(), dir.join(self.folder)].into_iter().find(|dir| {
            let files = self.train.iter().chain([&self.test, &self.names]);
            files.filter(|file| dir.join(file).is_file()).count() >= 2
        })
    }
}

/// Tell whether `dir` holds a CIFAR download, and where its files are.
pub(super) fn find(dir: &Path) -> Result<Option<(&'static Format, PathBuf)>> {
    match (TEN.folder(dir), HUNDRED.folder(dir)) {
        (Some(ten), Some(hundred)) => {
            bail!("{} holds {} and {}: say which", dir.display(), ten.display(), hundred.display())
        }
        (ten, hundred) => Ok(ten.map(|dir| (&TEN, dir)).or(hundred.map(|dir| (&HUNDRED, dir)))),
    }
}

/// Read the download that `dir` has to hold.
pub(super) fn read_from(dir: &Path, format: &'static Format) -> Result<Splits> {
    if let Some(folder) = format.folder(dir).or_else(|| format.folder(&dir.join(format.name))) {
        return read(&folder, format);
    }
    let python = dir.join(format.python).is_file();
    bail!(
        "{} does not hold {}: expected {}, {} and {}, or the folder {} with them{}",
        dir.display(),
        format.name,
        format.train.join(", "),
        format.test,
        format.names,
        format.folder,
        if python { "; this is the Python version: get the binary version" } else { "" },
    );
}

/// Read the whole download into memory: 180 MB for 60,000 images.
pub(super) fn read(dir: &Path, format: &Format) -> Result<Splits> {
    let classes = class_names(&dir.join(format.names), format)?;
    let part = |files: &[&str]| -> Result<Dataset> {
        let mut samples = Vec::new();
        for file in files {
            records(&dir.join(file), format, &mut samples)?;
        }
        // Classes come mixed; the order by class is every data set's (the sort is stable).
        samples.sort_by_key(|sample| sample.label);
        Ok(Dataset::new(name_of(dir), classes.clone(), samples))
    };
    let (train, test) = (part(format.train)?, part(&[format.test])?);
    let layout = format!("the binary version of {}", format.name);
    Ok(Splits { train: Some(train), val: None, test: Some(test), layout })
}

fn class_names(path: &Path, format: &Format) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    let names: Vec<_> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
    if names.len() != format.classes {
        bail!("{} names {} classes: it should name {}", path.display(), names.len(), format.classes);
    }
    Ok(names)
}

fn records(path: &Path, format: &Format, samples: &mut Vec<Sample>) -> Result<()> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let size = format.labels + 3 * PLANE;
    if bytes.is_empty() || bytes.len() % size != 0 {
        bail!(
            "{} has {} bytes, which is not a number of {size}-byte images: the download is incomplete or damaged",
            path.display(),
            bytes.len()
        );
    }
    for (index, record) in bytes.chunks_exact(size).enumerate() {
        let (labels, planes) = record.split_at(format.labels);
        let label = usize::from(labels[format.labels - 1]);
        if label >= format.classes {
            bail!(
                "{}: image {index} has label {label}, but labels are 0 to {}: is the file damaged?",
                path.display(),
                format.classes - 1
            );
        }
        let rgb: Arc<[u8]> =
            (0..PLANE).flat_map(|i| [planes[i], planes[PLANE + i], planes[2 * PLANE + i]]).collect();
        let source =
            Source::Pixels { file: path.into(), index, rgb, width: SIDE as u32, height: SIDE as u32 };
        samples.push(Sample { source, label });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::open;
    use crate::data::known::Known;
    use crate::data::test_files::write_bytes;

    fn known(name: &str) -> Known {
        name.parse().unwrap()
    }

    fn record(labels: &[u8], shade: u8) -> Vec<u8> {
        let mut bytes = labels.to_vec();
        for plane in 0..3_u8 {
            bytes.extend((0..PLANE).map(|i| shade.wrapping_add(plane * 50).wrapping_add(i as u8)));
        }
        bytes
    }

    fn cifar10(dir: &Path) {
        let names: Vec<_> = (0..10).map(|c| format!("class{c}\n")).collect();
        write_bytes(dir.join("batches.meta.txt"), format!("{}\n", names.concat()).as_bytes());
        for batch in 1..=5_u8 {
            let bytes = [record(&[9 - batch], batch), record(&[batch], 100 + batch)].concat();
            write_bytes(dir.join(format!("data_batch_{batch}.bin")), &bytes);
        }
        write_bytes(dir.join("test_batch.bin"), &record(&[3], 7));
    }

    fn cifar100(dir: &Path) {
        let names: Vec<_> = (0..100).map(|c| format!("fine{c}\n")).collect();
        write_bytes(dir.join("fine_label_names.txt"), names.concat().as_bytes());
        write_bytes(dir.join("train.bin"), &[record(&[19, 99], 1), record(&[0, 5], 2)].concat());
        write_bytes(dir.join("test.bin"), &record(&[19, 42], 3));
    }

    #[test]
    fn cifar10_is_recognised_and_interleaved() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("cifar-10-batches-bin");
        cifar10(&dir);
        for (path, known) in [(root.path(), None), (&dir, None), (&dir, Some(known("cifar10")))] {
            let splits = open(path, known).unwrap();
            assert!(splits.layout.starts_with("the binary version of cifar10"));
            assert_eq!(splits.layout.contains("10 train images instead of 50000"), known.is_some());
            let (train, test) = (splits.train.unwrap(), splits.test.unwrap());
            assert_eq!((train.samples.len(), test.samples.len(), train.classes.len()), (10, 1, 10));
            assert!(train.samples.is_sorted_by_key(|s| s.label));
            assert_eq!(test.classes[test.samples[0].label], "class3");
            assert!(test.samples[0].name().ends_with("test_batch.bin#0"));
            let image = test.samples[0].load().unwrap();
            assert_eq!((image.width, image.height), (32, 32));
            assert_eq!(image.data[..6], [7, 57, 107, 8, 58, 108]);
            assert_eq!(image.data[32 * 3], 7 + 32, "rows follow each other");
        }
    }

    #[test]
    fn cifar100_uses_the_fine_label() {
        let root = tempfile::tempdir().unwrap();
        cifar100(root.path());
        let splits = open(root.path(), None).unwrap();
        let labels: Vec<_> = splits.train.unwrap().samples.iter().map(|s| s.label).collect();
        assert_eq!(labels, [5, 99]);
        assert_eq!(splits.test.unwrap().samples[0].label, 42);
    }

    #[test]
    fn damage_is_named() {
        let root = tempfile::tempdir().unwrap();
        cifar10(root.path());
        let message = || open(root.path(), None).unwrap_err().to_string();
        let good = record(&[1], 0);
        for bytes in [&good[..3000], &[], &[good.clone(), vec![0; 5]].concat()] {
            write_bytes(root.path().join("data_batch_3.bin"), bytes);
            let size = format!("data_batch_3.bin has {} bytes", bytes.len());
            assert!(message().contains(&size), "{}", message());
        }
        write_bytes(root.path().join("data_batch_3.bin"), &[good.clone(), record(&[10], 0)].concat());
        assert!(message().contains("data_batch_3.bin: image 1 has label 10, but labels are 0 to 9"));
        fs::remove_file(root.path().join("data_batch_3.bin")).unwrap();
        assert!(message().starts_with("cannot read") && message().contains("data_batch_3.bin"));
        write_bytes(root.path().join("data_batch_3.bin"), &good);
        write_bytes(root.path().join("batches.meta.txt"), b"one\ntwo\n");
        assert!(message().ends_with("batches.meta.txt names 2 classes: it should name 10"), "{}", message());
    }

    #[test]
    fn the_wrong_directory_is_named() {
        let root = tempfile::tempdir().unwrap();
        let message = |known| open(root.path(), Some(known)).unwrap_err().to_string();
        assert!(message(known("cifar100")).contains("does not hold cifar100: expected train.bin"));
        write_bytes(root.path().join("batches.meta"), b"pickle");
        assert!(message(known("cifar10")).ends_with("this is the Python version: get the binary version"));
        cifar10(&root.path().join("cifar-10-batches-bin"));
        cifar100(&root.path().join("cifar-100-binary"));
        assert!(open(root.path(), None).unwrap_err().to_string().ends_with("say which"));
        assert_eq!(open(root.path(), Some(known("cifar100"))).unwrap().test.unwrap().classes.len(), 100);
    }
}
