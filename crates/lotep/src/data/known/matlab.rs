//! Data sets that come with MATLAB's files: SVHN, Oxford Flowers, Stanford Cars and Dogs.

use std::path::Path;
use std::sync::Arc;

use crate::data::dataset::{Dataset, Sample, Source, Split, Splits, name_of};
use crate::data::files::listed;
use crate::data::gather::{Named, by_name, numbered};
use crate::data::mat::{Kind, Value, read};
use crate::{Result, bail, input_error};

const SIDE: usize = 32;
const IMAGE: usize = SIDE * SIDE * 3;

/// Street View House Numbers, cropped digits. The digit 0 has label 10 in the files.
pub(super) fn svhn(dir: &Path) -> Result<Splits> {
    let [train, test] = [digits(dir, "train_32x32.mat")?, digits(dir, "test_32x32.mat")?];
    Ok(Splits { train: Some(train), val: None, test: Some(test), layout: "SVHN's cropped digits".into() })
}

fn digits(dir: &Path, file: &str) -> Result<Dataset> {
    let path = dir.join(file);
    let [pixels, labels] = read(&path, ["X", "y"])?;
    let Value::Numbers { dims, kind: Kind::U8, bytes } = &pixels else {
        bail!("{}: X is no array of bytes", path.display());
    };
    let [SIDE, SIDE, 3, count] = dims[..] else {
        bail!("{}: X is {dims:?}; 32 x 32 x 3 x N is expected", path.display());
    };
    let labels = labels.wholes().filter(|labels| labels.len() == count).ok_or_else(|| {
        input_error!("{}: y does not hold a label for each of {count} images", path.display())
    })?;
    let mut samples = Vec::with_capacity(count);
    for (index, (image, label)) in bytes.chunks_exact(IMAGE).zip(labels).enumerate() {
        if !(1..=10).contains(&label) {
            bail!("{}: image {index} has label {label}, but labels are 1 to 10", path.display());
        }
        // Column by column, a colour after the other.
        let at = |i: usize| {
            let (row, column, colour) = (i / 3 / SIDE, i / 3 % SIDE, i % 3);
            image[(colour * SIDE + column) * SIDE + row]
        };
        let rgb: Arc<[u8]> = (0..IMAGE).map(at).collect();
        let source =
            Source::Pixels { file: path.clone(), index, rgb, width: SIDE as u32, height: SIDE as u32 };
        samples.push(Sample { source, label: label % 10 });
    }
    samples.sort_by_key(|sample| sample.label);
    Ok(Dataset::new(name_of(dir), (0..10).map(|digit: u8| digit.to_string()).collect(), samples))
}

/// Oxford Flowers 102 with its own split.
pub(super) fn flowers(dir: &Path) -> Result<Splits> {
    let (list, sets) = (dir.join("imagelabels.mat"), dir.join("setid.mat"));
    let [labels] = read(&list, ["labels"])?;
    let labels = labels.wholes().ok_or_else(|| input_error!("{}: labels are no numbers", list.display()))?;
    let parts = read(&sets, ["trnid", "valid", "tstid"])?;
    let mut images = Named::new();
    for (split, ids) in [Split::Train, Split::Val, Split::Test].into_iter().zip(parts) {
        let ids = ids.wholes().ok_or_else(|| input_error!("{}: images are no numbers", sets.display()))?;
        for id in ids {
            let Some(label) = id.checked_sub(1).and_then(|at| labels.get(at)) else {
                bail!(
                    "{} names image {id}, and {} has {} labels",
                    sets.display(),
                    list.display(),
                    labels.len()
                );
            };
            let file = listed(&sets, &dir.join("jpg"), &format!("image_{id:05}.jpg"))?;
            images.push((split, Source::File(file), label.to_string()));
        }
    }
    by_name(name_of(dir), "Oxford Flowers with its authors' split".into(), images)
}

/// Stanford Dogs.
pub(super) fn dogs(dir: &Path) -> Result<Splits> {
    let mut images = Named::new();
    for (split, name) in [(Split::Train, "train_list.mat"), (Split::Test, "test_list.mat")] {
        let path = [dir.join(name), dir.join("lists").join(name)].into_iter().find(|p| p.is_file());
        let path = path.unwrap_or_else(|| dir.join(name));
        let [files] = read(&path, ["file_list"])?;
        let files =
            files.texts().ok_or_else(|| input_error!("{}: file_list is no list of names", path.display()))?;
        for file in files {
            let Some((class, _)) = file.split_once('/') else {
                bail!("{} names `{file}`, which is in no class folder", path.display());
            };
            images.push((split, Source::File(listed(&path, &dir.join("Images"), file)?), class.to_owned()));
        }
    }
    let mut splits = by_name(name_of(dir), "Stanford Dogs with its authors' lists".into(), images)?;
    for part in [&mut splits.train, &mut splits.test].into_iter().flatten() {
        // Folders are sorted by WordNet's identifiers, which then have done their work.
        for class in &mut part.classes {
            *class = class.split_once('-').map_or(class.as_str(), |(_, name)| name).replace('_', " ");
        }
    }
    Ok(splits)
}

/// Stanford Cars.
pub(super) fn cars(dir: &Path) -> Result<Splits> {
    let meta = dir.join("devkit/cars_meta.mat");
    let [names] = read(&meta, ["class_names"])?;
    let names =
        names.texts().ok_or_else(|| input_error!("{}: class_names is no list of names", meta.display()))?;
    let classes: Vec<String> = names.into_iter().map(str::to_owned).collect();
    let answers = ["cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat"]
        .map(|name| dir.join(name));
    let Some(answers) = answers.iter().find(|path| path.is_file()) else {
        bail!("{} has no cars_test_annos_withlabels.mat, which says what the test images are", dir.display());
    };
    let mut images = Named::new();
    for (split, path, folder) in [
        (Split::Train, &dir.join("devkit/cars_train_annos.mat"), "cars_train"),
        (Split::Test, answers, "cars_test"),
    ] {
        let [rows] = read(path, ["annotations"])?;
        let Value::Struct(rows) = rows else { bail!("{}: annotations are no structure", path.display()) };
        for row in rows {
            let class = row.get("class").and_then(Value::wholes).and_then(|c| c.first()?.checked_sub(1));
            let (Some(class), Some(file)) =
                (class.and_then(|c| classes.get(c)), row.get("fname").and_then(Value::text))
            else {
                bail!(
                    "{} has an image without a name, or of none of {} classes",
                    path.display(),
                    classes.len()
                );
            };
            images.push((split, Source::File(listed(path, &dir.join(folder), file)?), class.clone()));
        }
    }
    let mut splits = numbered(name_of(dir), "Stanford Cars with its authors' lists".into(), classes, images)?;
    for part in [&mut splits.train, &mut splits.test].into_iter().flatten() {
        part.samples.sort_by_key(|sample| sample.label);
    }
    Ok(splits)
}
