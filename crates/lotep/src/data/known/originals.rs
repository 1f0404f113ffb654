//! VTAB-1k's data sets in the form in which their authors publish them, where that is simple: all images, of which
//! [`super::vtab`] chooses. What the task asks of an image is said here, as `task_adaptation`'s readers do it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::Known;
use crate::data::dataset::{Dataset, Sample, Source, Split, Splits, name_of};
use crate::data::files::{listed, walk};
use crate::data::folder;
use crate::data::gather::{Named, by_name, numbered};
use crate::data::list::records;
use crate::data::raw::Raw;
use crate::data::shots::few_shot;
use crate::data::split::with;
use crate::mapped::Mapped;
use crate::{Error, Result, bail, input_error};

/// The first of these below `dir` that is there.
fn below(dir: &Path, places: &[&str]) -> Result<PathBuf> {
    places.iter().map(|place| dir.join(place)).find(|place| place.exists()).ok_or_else(|| {
        input_error!(
            "{} holds none of {}, which the authors' archives unpack to",
            dir.display(),
            places.join(", ")
        )
    })
}

/// A data set that is known by itself, from a directory that holds it.
pub(super) fn known(name: &str, dir: &Path) -> Result<Splits> {
    let known: Known = name.parse()?;
    (known.about().read)(&known.find(dir)?)
}

/// Images in class folders, without parts.
fn class_folders(dir: &Path, places: &[&str]) -> Result<Splits> {
    folder::read(&below(dir, places)?)
}

/// EuroSAT's pictures in red, green and blue.
pub(super) fn eurosat(dir: &Path) -> Result<Splits> {
    class_folders(dir, &["2750", "EuroSAT_RGB", "EuroSAT/2750", "eurosat/2750", "eurosat/EuroSAT_RGB"])
}

/// NWPU-RESISC45.
pub(super) fn resisc45(dir: &Path) -> Result<Splits> {
    class_folders(dir, &["NWPU-RESISC45", "resisc45/NWPU-RESISC45"])
}

/// Caltech-101 with its background class: thirty images of each class to learn from, the rest to test on.
pub(super) fn caltech101(dir: &Path) -> Result<Splits> {
    const EACH: usize = 30;
    let places =
        ["101_ObjectCategories", "caltech101/101_ObjectCategories", "caltech-101/101_ObjectCategories"];
    let splits = class_folders(dir, &places)?;
    let Some(all) = splits.train else { bail!("{} holds no class folders", dir.display()) };
    let train = few_shot(&all, EACH, 0);
    let learnt: HashSet<String> = train.samples.iter().map(Sample::name).collect();
    let test = with(&all, |index| !learnt.contains(&all.samples[index].name()));
    Ok(Splits { train: Some(train), val: None, test: Some(test), layout: splits.layout })
}

/// SUN397: `SUN397/a/abbey/*.jpg`. What is tested is TensorFlow Datasets' list, where that is beside it.
pub(super) fn sun397(dir: &Path) -> Result<Splits> {
    let root = below(dir, &["SUN397", "sun397/SUN397"])?;
    let home = root.parent().unwrap_or(dir);
    let list = home.join("sun397_tfds_te.txt");
    let tested: Option<Vec<String>> = if list.is_file() {
        let text = std::fs::read_to_string(&list).map_err(Error::io("read", &list))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        Some(lines.map(|line| line.trim_start_matches('/').to_owned()).collect())
    } else {
        None
    };
    let mut files = Vec::new();
    walk(&root, &mut files)?;
    let test: HashSet<&str> = tested.iter().flatten().map(String::as_str).collect();
    let mut images = Named::new();
    for file in files {
        let name = sun_name(&root, &file);
        // `a/abbey`, `c/church/outdoor`: the letter says nothing.
        let class = name.rsplit_once('/').and_then(|(class, _)| class.split_once('/'));
        let Some((_, class)) = class else {
            bail!("{} is in no class folder, such as a/abbey", file.display());
        };
        let (class, split) = (
            class.replace(['/', '_'], " "),
            if test.contains(name.as_str()) { Split::Test } else { Split::Train },
        );
        images.push((split, Source::File(file), class));
    }
    if let Some(tested) = &tested {
        let found = images.iter().filter(|(split, ..)| *split == Split::Test).count();
        if found < tested.len() {
            bail!(
                "{} names {} images, of which {found} are in {}",
                list.display(),
                tested.len(),
                root.display()
            );
        }
    }
    by_name(name_of(home), "SUN397".into(), images)
}

fn sun_name(root: &Path, file: &Path) -> String {
    let parts = file.strip_prefix(root).unwrap_or(file).components();
    parts.map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// What lists call an image of SUN397: `/c/church/outdoor/sun_….jpg`.
pub(super) fn sun_listed(sample: &Sample) -> String {
    let Source::File(path) = &sample.source else { return sample.name() };
    let root = path.ancestors().find(|above| above.ends_with("SUN397"));
    format!("/{}", sun_name(root.unwrap_or(Path::new("")), path))
}

/// Kaggle's Diabetic Retinopathy: `trainLabels.csv` with `train/*.jpeg`; of `retinopathy_solution.csv` with `test/*.jpeg` the
/// images that counted for the public board to choose with, the others to test on, as TensorFlow Datasets has it.
pub(super) fn retinopathy(dir: &Path) -> Result<Splits> {
    let labels = below(dir, &["trainLabels.csv", "diabetic_retinopathy/trainLabels.csv"])?;
    let home = labels.parent().unwrap_or(dir);
    let answers = home.join("retinopathy_solution.csv");
    let mut images = Named::new();
    for (list, folder) in [(&labels, "train"), (&answers, "test")] {
        let text = std::fs::read_to_string(list).map_err(Error::io("read", list))?;
        for row in records(&text, ',').into_iter().skip(1) {
            let [image, level, rest @ ..] = row.as_slice() else {
                bail!("{} has a line without a level: {}", list.display(), row.join(","));
            };
            let split = match (folder, rest.first().map(|usage| usage.trim())) {
                ("train", _) => Split::Train,
                (_, Some("Public")) => Split::Val,
                (_, Some("Private")) => Split::Test,
                _ => bail!("{}: {image} is neither Public nor Private", list.display()),
            };
            let file = listed(list, &home.join(folder), &format!("{}.jpeg", image.trim()))?;
            images.push((split, Source::File(file), level.trim().to_owned()));
        }
    }
    let classes = (0..5).map(|level: u8| level.to_string()).collect();
    numbered(name_of(home), "Kaggle's images as they are".into(), classes, images)
}

/// A file's stem, as lists call Kaggle's images.
pub(super) fn stem(sample: &Sample) -> String {
    match &sample.source {
        Source::File(path) => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        _ => sample.name(),
    }
}

/// The number of the last threshold below a value, in the order of thresholds.
fn above(value: f64, thresholds: &[f64]) -> usize {
    thresholds.iter().rposition(|threshold| *threshold < value).unwrap_or(0)
}

/// KITTI's training images, by the distance of the closest car, van or truck. Its test images have no labels.
pub(super) fn kitti(dir: &Path) -> Result<Splits> {
    const VEHICLES: [&str; 3] = ["Car", "Van", "Truck"];
    let labels = below(dir, &["training/label_2", "kitti/training/label_2", "KITTI/training/label_2"])?;
    let root = labels.parent().unwrap_or(dir).join("image_2");
    let classes = ["within 8 m", "8 to 20 m", "beyond 20 m", "no vehicle"];
    let mut pictures = Vec::new();
    walk(&root, &mut pictures)?;
    let mut images = Named::new();
    for picture in pictures {
        let path = labels.join(picture.file_name().unwrap_or_default()).with_extension("txt");
        let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let mut closest: f32 = 1000.0;
        for line in text.lines() {
            let cells: Vec<&str> = line.split_whitespace().collect();
            if cells.first().is_some_and(|kind| VEHICLES.contains(kind)) {
                // Type, truncation, occlusion, angle, four of the box, three of the size, then x, y and z.
                let z = cells.get(13).and_then(|z| z.parse::<f32>().ok()).filter(|z| z.is_finite());
                let z = z.ok_or_else(|| {
                    input_error!("{} has a vehicle without a place: {line}", path.display())
                })?;
                closest = closest.min(z);
            }
        }
        let class = classes[above(closest.into(), &[-100.0, 8.0, 20.0, 999.0])];
        images.push((Split::Train, Source::File(picture), class.to_owned()));
    }
    let home = dir.join("kitti");
    let name = name_of(if home.is_dir() { &home } else { dir });
    numbered(name, "KITTI's training images".into(), classes.map(str::to_owned).to_vec(), images)
}

/// A file of CLEVR's scenes, as far as the tasks ask.
#[derive(Deserialize)]
struct Scenes {
    scenes: Vec<Scene>,
}

#[derive(Deserialize)]
struct Scene {
    image_filename: String,
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    /// Column, row and distance.
    pixel_coords: [f32; 3],
}

/// CLEVR by the number of objects, three to ten.
pub(super) fn clevr_count(dir: &Path) -> Result<Splits> {
    let classes: Vec<String> = (3..=10).map(|n: u8| n.to_string()).collect();
    clevr(dir, classes, |objects| objects.len().checked_sub(3))
}

/// CLEVR by the distance of the closest object.
pub(super) fn clevr_dist(dir: &Path) -> Result<Splits> {
    let classes = ["up to 8", "8 to 8.5", "8.5 to 9", "9 to 9.5", "9.5 to 10", "beyond 10"];
    clevr(dir, classes.map(str::to_owned).to_vec(), |objects| {
        let closest = objects.iter().map(|object| object.pixel_coords[2]).reduce(f32::min)?;
        // The last threshold is none that anything is beyond.
        Some(above(closest.into(), &[0.0, 8.0, 8.5, 9.0, 9.5, 10.0]))
    })
}

/// CLEVR's training and validation images, the latter to test on, since its test images have no scenes.
fn clevr(dir: &Path, classes: Vec<String>, label: fn(&[Object]) -> Option<usize>) -> Result<Splits> {
    let home = below(dir, &["CLEVR_v1.0", "clevr/CLEVR_v1.0", "CLEVR/CLEVR_v1.0"])?;
    let mut images = Named::new();
    for (split, part) in [(Split::Train, "train"), (Split::Test, "val")] {
        let path = home.join(format!("scenes/CLEVR_{part}_scenes.json"));
        let file = Mapped::open(&path)?;
        let found: Scenes = serde_json::from_slice(file.bytes())
            .map_err(|e| input_error!("{} is no file of CLEVR's scenes: {e}", path.display()))?;
        let root = home.join("images").join(part);
        for scene in found.scenes {
            let class = label(&scene.objects).and_then(|label| classes.get(label));
            let Some(class) = class else {
                bail!(
                    "{}: {} has {} objects, which is no class",
                    path.display(),
                    scene.image_filename,
                    scene.objects.len()
                );
            };
            let image = listed(&path, &root, &scene.image_filename)?;
            images.push((split, Source::File(image), class.clone()));
        }
    }
    numbered(name_of(&home), "CLEVR, tested on its validation images".into(), classes, images)
}

/// SmallNORB's files begin with these words.
const TRAIN_FILES: &str = "smallnorb-5x46789x9x18x6x2x96x96-training";
const TEST_FILES: &str = "smallnorb-5x01235x9x18x6x2x96x96-testing";
/// What marks its directory.
pub(super) const NORB: &str = "smallnorb-5x46789x9x18x6x2x96x96-training-dat.mat";

/// `SmallNORB` by azimuth, 0 to 340 degrees.
pub(super) fn norb_azimuth(dir: &Path) -> Result<Splits> {
    // Stored as 0, 2, 4 and so on, tens of degrees.
    norb(dir, (0..18).map(|n: u32| (20 * n).to_string()).collect(), |info| {
        usize::try_from(info[2]).ok().filter(|a| a.is_multiple_of(2)).map(|azimuth| azimuth / 2)
    })
}

/// `SmallNORB` by elevation, 30 to 70 degrees.
pub(super) fn norb_elevation(dir: &Path) -> Result<Splits> {
    norb(dir, (0..9).map(|n: u32| (30 + 5 * n).to_string()).collect(), |info| usize::try_from(info[1]).ok())
}

/// The left camera's images; of each also instance, elevation, azimuth and lighting.
fn norb(dir: &Path, classes: Vec<String>, label: fn([i32; 4]) -> Option<usize>) -> Result<Splits> {
    let home = [dir.to_owned(), dir.join("smallnorb")].into_iter().find(|home| home.join(NORB).exists());
    let home = home.unwrap_or_else(|| dir.to_owned());
    let part = |files: &str| -> Result<Dataset> {
        let images = Matrix::open(&home, &format!("{files}-dat.mat"), 0x1E3D_4C55, 1)?;
        let info = Matrix::open(&home, &format!("{files}-info.mat"), 0x1E3D_4C54, 4)?;
        let [count, 2, height, width] = images.shape[..] else {
            bail!("{} is {:?}; images x 2 x rows x columns is expected", images.name(), images.shape);
        };
        if info.shape != [count, 4] {
            bail!("{} is {:?}; [{count}, 4] is expected", info.name(), info.shape);
        }
        let size = [height as u32, width as u32];
        let mut samples = Vec::with_capacity(count);
        for (index, row) in info.values().chunks_exact(16).enumerate() {
            let word = |i: usize| row[4 * i..4 * i + 4].iter().rev().fold(0, |w, b| w << 8 | i32::from(*b));
            let label = label([0, 1, 2, 3].map(word)).filter(|label| *label < classes.len());
            let label = label.ok_or_else(|| {
                input_error!("{}: image {index} is of none of {} classes", info.name(), classes.len())
            })?;
            let start = images.start + 2 * index * height * width;
            samples.push(Sample {
                source: Source::Raw(Raw::new(&images.file, index, start as u64, size)),
                label,
            });
        }
        samples.sort_by_key(|sample| sample.label);
        Ok(Dataset::new(name_of(&home), classes.clone(), samples))
    };
    let (train, test) = (part(TRAIN_FILES)?, part(TEST_FILES)?);
    Ok(Splits { train: Some(train), val: None, test: Some(test), layout: "SmallNORB".into() })
}

/// A file of numbers in `SmallNORB`'s form: a word that says what they are, how many dimensions (three words at least), and
/// the numbers, all with the lowest byte first.
struct Matrix {
    file: Arc<Mapped>,
    shape: Vec<usize>,
    start: usize,
}

impl Matrix {
    fn open(home: &Path, name: &str, kind: u32, bytes: usize) -> Result<Self> {
        let path = home.join(name);
        if !path.exists() && home.join(format!("{name}.gz")).exists() {
            bail!("{}.gz has to be decompressed first", path.display());
        }
        let file = Mapped::open(&path)?;
        let word = |i: usize| -> Option<u32> {
            Some(u32::from_le_bytes(file.bytes().get(4 * i..4 * i + 4)?.try_into().ok()?))
        };
        let no_matrix = |why: &str| input_error!("{} is no file of SmallNORB's: {why}", path.display());
        if word(0) != Some(kind) {
            return Err(no_matrix("it begins with another word"));
        }
        let dimensions =
            word(1).filter(|n| (1..=4).contains(n)).ok_or_else(|| no_matrix("its dimensions"))? as usize;
        let shape: Option<Vec<usize>> = (0..dimensions).map(|i| word(2 + i).map(|n| n as usize)).collect();
        let shape = shape.ok_or_else(|| no_matrix("it is cut short"))?;
        let start = 4 * (2 + dimensions.max(3));
        let size = shape.iter().try_fold(bytes, |size, n| size.checked_mul(*n));
        if size.and_then(|size| size.checked_add(start)) != Some(file.bytes().len()) {
            return Err(no_matrix(&format!("{shape:?} is not its size: it is cut short or damaged")));
        }
        Ok(Self { file: Arc::new(file), shape, start })
    }

    fn name(&self) -> String {
        self.file.path().display().to_string()
    }

    fn values(&self) -> &[u8] {
        self.file.bytes().get(self.start..).unwrap_or_default()
    }
}

/// The digits of SVHN.
pub(super) fn svhn(dir: &Path) -> Result<Splits> {
    known("svhn", dir)
}
