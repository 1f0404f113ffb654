//! Look over a data set: what it holds, and what is broken in it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde::Serialize;

use super::dataset::{Dataset, Sample, Source, Split, Splits};
use super::decode::{Header, decode_bytes, header};
use crate::{Error, Result, input_error};

/// What a data set holds.
#[derive(Clone, Debug, Serialize)]
pub struct DataReport {
    /// How the data set was recognised, in one sentence.
    pub layout: String,
    /// The class names.
    pub classes: Vec<String>,
    /// Its parts, in the order train, val, test.
    pub splits: Vec<SplitReport>,
}

/// What one part of a data set holds.
#[derive(Clone, Debug, Serialize)]
pub struct SplitReport {
    /// Which part.
    pub split: Split,
    /// How many images it lists, broken ones included.
    pub images: usize,
    /// How many of them each class has, in the order of the classes.
    pub per_class: Vec<(String, usize)>,
    /// Widths of the images that are not broken; none where all are.
    pub width: Option<Spread>,
    /// Heights, likewise.
    pub height: Option<Spread>,
    /// How many images there are of each format, by content: `jpeg`, `png`, `webp`, `bmp`, or `raw` for pixels that
    /// need no decoding.
    pub formats: BTreeMap<String, usize>,
    /// Name and reason for each image that cannot be used.
    pub broken: Vec<(String, String)>,
}

/// The range of a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// The smallest.
    pub min: u32,
    /// The middle one; of two middle ones the larger.
    pub median: u32,
    /// The largest.
    pub max: u32,
}

/// Look at every image of a data set with `workers` threads. With `decode`, each is decoded in full, which finds
/// what is broken inside; without, only headers are looked at.
///
/// A broken image is a finding, not an error.
///
/// # Errors
/// Where a worker thread fails.
pub fn check(splits: &Splits, decode: bool, workers: usize) -> Result<DataReport> {
    let classes = splits.parts().next().map(|(_, data)| data.classes.clone()).unwrap_or_default();
    let splits_reports: Result<_> =
        splits.parts().map(|(split, data)| check_split(split, data, decode, workers)).collect();
    Ok(DataReport { layout: splits.layout.clone(), classes, splits: splits_reports? })
}

fn check_split(split: Split, data: &Dataset, decode: bool, workers: usize) -> Result<SplitReport> {
    let mut counts = vec![0; data.classes.len()];
    for sample in &data.samples {
        if let Some(count) = counts.get_mut(sample.label) {
            *count += 1;
        }
    }
    let (mut widths, mut heights) = (Vec::new(), Vec::new());
    let (mut formats, mut broken) = (BTreeMap::new(), Vec::new());
    for (sample, found) in data.samples.iter().zip(look_at_all(&data.samples, decode, workers)?) {
        match found {
            Ok(header) => {
                widths.push(header.width);
                heights.push(header.height);
                *formats.entry(header.format.to_owned()).or_insert(0) += 1;
            }
            Err(error) => broken.push((sample.name(), reason(&error, &sample.name()))),
        }
    }
    let per_class = data.classes.iter().cloned().zip(counts).collect();
    let (width, height) = (Spread::of(widths), Spread::of(heights));
    Ok(SplitReport { split, images: data.samples.len(), per_class, width, height, formats, broken })
}

/// Look at every sample; the results are in the samples' order.
fn look_at_all(samples: &[Sample], decode: bool, workers: usize) -> Result<Vec<Result<Header>>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        while let Some((index, sample)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            samples.get(index).map(|sample| (index, sample))
        } {
            found.push((index, look_at(sample, decode)));
        }
        found
    };
    let mut found = thread::scope(|scope| {
        let threads: Vec<_> = (0..workers.max(1)).map(|_| scope.spawn(work)).collect();
        let mut found = Vec::with_capacity(samples.len());
        for thread in threads {
            found.extend(thread.join().map_err(|_| input_error!("a thread that checks images failed"))?);
        }
        Ok::<_, Error>(found)
    })?;
    found.sort_unstable_by_key(|(index, _)| *index);
    Ok(found.into_iter().map(|(_, result)| result).collect())
}

fn look_at(sample: &Sample, decode: bool) -> Result<Header> {
    let bytes = match &sample.source {
        Source::File(path) => std::fs::read(path).map_err(Error::io("read", path))?,
        Source::Packed(packed) => packed.read()?.into_owned(),
        Source::Raw(raw) => {
            let [height, width] = raw.size();
            raw.read()?;
            return Ok(Header { format: "raw", width, height });
        }
        Source::Pixels { width, height, .. } => {
            return Ok(Header { format: "raw", width: *width, height: *height });
        }
    };
    let header = header(&bytes, &sample.name())?;
    if decode {
        decode_bytes(&bytes, &sample.name())?;
    }
    Ok(header)
}

/// The error without the image's name, which stands beside it.
fn reason(error: &Error, name: &str) -> String {
    let text = error.to_string();
    text.split_once(&format!("{name}: ")).map_or(text.clone(), |(_, reason)| reason.to_owned())
}

impl Spread {
    fn of(mut values: Vec<u32>) -> Option<Self> {
        values.sort_unstable();
        let (&min, &max) = (values.first()?, values.last()?);
        Some(Self { min, median: values[values.len() / 2], max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::open;
    use crate::data::test_files::{shared, write_bytes, write_image};

    #[test]
    fn broken_images_are_found_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["train/a/1.png", "train/a/2.bmp", "train/b/1.png", "train/b/2.png", "test/b/1.jpg"] {
            write_image(dir.path().join(file), 77);
        }
        write_bytes(dir.path().join("train/a/3.jpg"), b"");
        // A whole header, then nothing.
        let whole = std::fs::read(dir.path().join("train/b/2.png")).unwrap();
        write_bytes(dir.path().join("train/b/2.png"), &whole[..45]);
        // A PNG under another name is told by its content.
        write_bytes(dir.path().join("train/b/3.jpeg"), &whole);
        let splits = open(dir.path(), None).unwrap();
        for workers in [0, 1, 5] {
            let report = check(&splits, true, workers).unwrap();
            let train = &report.splits[0];
            assert_eq!((train.split, train.images), (Split::Train, 6));
            assert_eq!(train.per_class, [("a".to_owned(), 3), ("b".to_owned(), 3)]);
            assert_eq!(train.formats, BTreeMap::from([("bmp".to_owned(), 1), ("png".to_owned(), 3)]));
            assert_eq!(train.width, Some(Spread { min: 8, median: 8, max: 8 }));
            let broken: Vec<_> =
                train.broken.iter().map(|(name, why)| (&name[name.len() - 7..], why)).collect();
            assert_eq!(broken[0], ("a/3.jpg", &"the file is empty".to_owned()));
            assert_eq!((broken[1].0, broken.len()), ("b/2.png", 2));
            assert_eq!(report.splits[1].per_class[0].1, 0);
        }
        let headers_only = check(&splits, false, 2).unwrap();
        assert_eq!(headers_only.splits[0].broken.len(), 1, "the cut is after the header");
        let json = serde_json::to_value(headers_only).unwrap();
        assert_eq!(json["splits"][1]["split"], "test");
    }

    #[test]
    fn a_spread_is_sorted() {
        assert_eq!(Spread::of(vec![5, 1, 9, 3]), Some(Spread { min: 1, median: 5, max: 9 }));
        assert_eq!(Spread::of(vec![]), None);
    }

    #[test]
    fn real_sizes_are_reported() {
        let Some(path) = shared("data/images/dtd10") else { return };
        let report = check(&open(&path, None).unwrap(), false, 2).unwrap();
        let train = &report.splits[0];
        assert_eq!((train.images, train.broken.len(), train.formats["jpeg"]), (800, 0, 800));
        let short = train.width.unwrap().min.min(train.height.unwrap().min);
        assert_eq!(short, 232);
    }
}
