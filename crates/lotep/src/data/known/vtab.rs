//! VTAB-1k: 800 images to learn from, 200 to choose with, and the whole test set.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::originals;
use super::text_lists::{self, Lists, labelled};
use crate::data::dataset::{Dataset, Sample, Source, Splits};
use crate::data::split::shuffle;
use crate::{Error, Result, bail, input_error};

/// File of the lists by the names that TensorFlow's data sets give the images.
pub(super) const NAMES: &str = "vtab_trainval_splits.json";
/// A file of the prepared form.
pub(super) const PREPARED: &str = "train800.txt";

/// Images to learn from, and to choose with.
const LEARNT: usize = 800;
const CHOSEN_WITH: usize = 200;
/// The generator's stream.
const DRAWN: u64 = u64::MAX - 3;

static LISTS: Lists = Lists {
    title: "VTAB-1k's 800 and 200 images",
    parts: [&[PREPARED], &["val200.txt"], &["test.txt"]],
    images: "",
    line: labelled,
};

/// A task whose images are chosen from its authors' download.
pub(super) struct Task {
    /// What the file of lists calls it; `None` where it is not there, or its names tell no images apart.
    list: Option<&'static str>,
    /// All images to choose from, and those to test on where the authors say.
    read: fn(&Path) -> Result<Splits>,
    /// What the lists call an image.
    name: fn(&Sample) -> String,
    /// How many images are tested on.
    test: usize,
}

const fn listed(
    list: &'static str,
    read: fn(&Path) -> Result<Splits>,
    name: fn(&Sample) -> String,
    test: usize,
) -> Task {
    Task { list: Some(list), read, name, test }
}

const fn drawn(read: fn(&Path) -> Result<Splits>, test: usize) -> Task {
    Task { list: None, read, name: Sample::name, test }
}

pub(super) static CIFAR: Task =
    listed("cifar(num_classes=100)", |dir| originals::known("cifar100", dir), place_in_file, 10_000);
pub(super) static CALTECH: Task = drawn(originals::caltech101, 6_084);
pub(super) static DTD: Task = listed("dtd", |dir| originals::known("dtd", dir), file_name, 1_880);
pub(super) static FLOWERS: Task =
    listed("oxford_flowers102", |dir| originals::known("flowers102", dir), file_name, 6_149);
pub(super) static PETS: Task =
    listed("oxford_iiit_pet", |dir| originals::known("pets", dir), file_name, 3_669);
pub(super) static SVHN: Task = drawn(originals::svhn, 26_032);
pub(super) static SUN: Task = listed("sun397", originals::sun397, originals::sun_listed, 21_750);
pub(super) static EUROSAT: Task = listed("eurosat", originals::eurosat, file_name, 5_400);
pub(super) static RESISC: Task = listed("resisc45", originals::resisc45, file_name, 6_300);
pub(super) static RETINOPATHY: Task =
    listed("diabetic_retinopathy(config=\"btgraham-300\")", originals::retinopathy, originals::stem, 42_670);
pub(super) static CLEVR_COUNT: Task =
    listed("clevr(task=\"count_all\")", originals::clevr_count, file_name, 15_000);
pub(super) static CLEVR_DIST: Task =
    listed("clevr(task=\"closest_object_distance\")", originals::clevr_dist, file_name, 15_000);
pub(super) static KITTI: Task =
    listed("kitti(task=\"closest_vehicle_distance\")", originals::kitti, file_name, 711);
pub(super) static NORB_AZIMUTH: Task = drawn(originals::norb_azimuth, 12_150);
pub(super) static NORB_ELEVATION: Task = drawn(originals::norb_elevation, 12_150);

/// Read a task's prepared folder.
pub(super) fn prepared(dir: &Path) -> Result<Splits> {
    text_lists::read_numbered(dir, &LISTS)
}

/// Read a prepared folder, or choose the task's images from the original download in `dir`: by the lists of names there, and
/// at random, the same each time, where there are none. What TensorFlow Datasets tests on of a set without parts is in no
/// list either.
pub(super) fn choose(dir: &Path, task: &Task) -> Result<Splits> {
    if dir.join(PREPARED).is_file() {
        return prepared(dir);
    }
    let lists = task.list.map(|list| lists(dir, list)).transpose()?;
    let whole = (task.read)(dir)?;
    let of = whole.layout.clone();
    // Their own validation images are to choose from as well.
    let whole = whole.join_val();
    let Some(all) = &whole.train else { bail!("{} has no training images", dir.display()) };
    let mut order: Vec<usize> = (0..all.samples.len()).collect();
    shuffle(&mut order, 0, DRAWN);
    let take = |places: &[usize]| all.with_samples(places.iter().map(|&i| all.samples[i].clone()).collect());
    let (train, val, mut said) = if let Some(lists) = &lists {
        let [train, val] = by_names(dir, lists, task, all)?;
        order.retain(|i| !train.contains(i) && !val.contains(i));
        (take(&train), take(&val), vec!["VTAB-1k's 800 and 200 images".to_owned()])
    } else {
        if order.len() <= LEARNT + CHOSEN_WITH {
            bail!("{} has {} training images: more than 1000 are expected", dir.display(), order.len());
        }
        let mut sorted = |count: usize| {
            let mut places: Vec<usize> = order.drain(..count).collect();
            places.sort_unstable();
            take(&places)
        };
        let said = "800 and 200 images drawn here, since VTAB-1k's own are in no list";
        (sorted(LEARNT), sorted(CHOSEN_WITH), vec![said.to_owned()])
    };
    // Of which images those to test on are drawn, where the authors leave that open.
    let mut draw = |from: &Dataset, mut order: Vec<usize>| {
        order.truncate(task.test);
        order.sort_unstable();
        let count = order.len();
        said.push(format!("{count} images to test on drawn here, since VTAB-1k's own are in no list"));
        from.with_samples(order.into_iter().map(|i| from.samples[i].clone()).collect())
    };
    let test = match &whole.test {
        Some(test) if test.samples.len() > task.test => {
            let mut order: Vec<usize> = (0..test.samples.len()).collect();
            shuffle(&mut order, 0, DRAWN);
            draw(test, order)
        }
        Some(test) => test.clone(),
        None => draw(all, order),
    };
    if test.samples.is_empty() {
        bail!("{} leaves no images to test on", dir.display());
    }
    let layout = format!("{} ({of})", said.join("; "));
    Ok(Splits { train: Some(train), val: Some(val), test: Some(test), layout })
}

/// The names of a task's images to learn from and to choose with.
fn lists(dir: &Path, task: &str) -> Result<[Vec<String>; 2]> {
    let path = dir.join(NAMES);
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let mut tasks: BTreeMap<String, BTreeMap<String, Vec<String>>> = serde_json::from_str(&text)
        .map_err(|e| input_error!("{} is no file of VTAB-1k's lists: {e}", path.display()))?;
    let Some(mut lists) = tasks.remove(task) else { bail!("{} has no task `{task}`", path.display()) };
    let mut part = |name: &str| {
        lists.remove(name).ok_or_else(|| input_error!("{}: `{task}` has no {name}", path.display()))
    };
    Ok([part("train")?, part("val")?])
}

/// Places among `all` of what lists name.
fn by_names(dir: &Path, lists: &[Vec<String>; 2], task: &Task, all: &Dataset) -> Result<[Vec<usize>; 2]> {
    let places: HashMap<String, usize> =
        all.samples.iter().enumerate().map(|(i, sample)| ((task.name)(sample), i)).collect();
    let part = |names: &Vec<String>| -> Result<Vec<usize>> {
        let place = |name: &String| {
            // DTD's names begin with the class folder, which the file's own name repeats.
            let found = places.get(name).or_else(|| places.get(name.rsplit('/').next()?));
            found.copied().ok_or_else(|| {
                let list = task.list.unwrap_or_default();
                input_error!(
                    "{}: `{name}` is no training image of {list} in {}",
                    dir.join(NAMES).display(),
                    dir.display()
                )
            })
        };
        names.iter().map(place).collect()
    };
    Ok([part(&lists[0])?, part(&lists[1])?])
}

/// An image's file's name.
pub(super) fn file_name(sample: &Sample) -> String {
    match &sample.source {
        Source::File(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        _ => sample.name(),
    }
}

/// An image's place among CIFAR's training images.
fn place_in_file(sample: &Sample) -> String {
    match &sample.source {
        Source::Pixels { index, .. } => format!("train_{index:05}"),
        _ => sample.name(),
    }
}
