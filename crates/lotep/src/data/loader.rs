//! Batches of pixels from a data set: configuration, cache, and what is remembered between epochs.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::augment::{Augment, Draw};
use super::dataset::Dataset;
use super::decode::Rgb8;
use super::packed;
use super::pipeline::Epoch;
use super::split::{shuffle, shuffle_window};
use super::transform::Transform;
use crate::{Error, Result, input_error};

/// What to do with an image that cannot be decoded. A file that cannot be *read* always ends the epoch: a disk that
/// went away is no reason to train on fewer images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCorrupt {
    /// Leave it out of its batch, which gets smaller, and remember its name.
    Skip,
    /// Return the error.
    #[default]
    Fail,
}

impl FromStr for OnCorrupt {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "skip" => Ok(Self::Skip),
            "fail" => Ok(Self::Fail),
            other => Err(input_error!("'{other}' is no way to treat corrupt images: use skip or fail")),
        }
    }
}

impl fmt::Display for OnCorrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Skip => "skip",
            Self::Fail => "fail",
        })
    }
}

/// Images that the next one is drawn from where they are read from front to back: many more than a batch, and few
/// enough to be in the system's cache from one epoch's draw to the next.
const WINDOW: usize = 8192;

/// How a [`Loader`] makes batches.
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    /// Images in a batch; the last one may have fewer. 0 is taken as 1.
    pub batch_size: usize,
    /// From the decoded image to the network's input size.
    pub transform: Transform,
    /// What is changed at random on the way.
    pub augment: Augment,
    /// Threads that decode. 0 is taken as 1.
    pub workers: usize,
    /// Batches that are made ahead of the consumer. 0 is taken as 1.
    pub prefetch: usize,
    /// What to do with an image that cannot be decoded.
    pub on_corrupt: OnCorrupt,
    /// Bytes of resized pixels that are kept for later epochs, or of those of the files where they are changed at random.
    /// 0 keeps none.
    pub cache_bytes: u64,
    /// Leave out a last batch that is not full. (A batch that corrupt images made smaller stays.)
    pub drop_last: bool,
}

/// Some images, ready for a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `[B, 3, H, W]` with values in [0, 1].
    pub pixels: Vec<f32>,
    /// B, the number of images.
    pub size: usize,
    /// Each image's class.
    pub labels: Vec<usize>,
    /// Each image's place in the data set.
    pub indices: Vec<usize>,
}

/// Makes batches from a data set, epoch after epoch.
pub struct Loader {
    store: Arc<Store>,
}

impl Loader {
    /// Prepare to load; no file is read yet.
    pub fn new(dataset: Arc<Dataset>, config: LoaderConfig) -> Self {
        let cache = Mutex::new(Cache::default());
        Self { store: Arc::new(Store { dataset, config, cache, skipped: Mutex::default() }) }
    }

    /// Load the images with these indices, in exactly this order; the batches are its successive runs of
    /// `batch_size`. Workers begin at once, and end when the returned value is dropped.
    ///
    /// An index that the data set does not have is the epoch's first and only result, an error.
    pub fn epoch(&self, order: Vec<usize>) -> Epoch {
        self.drawn_epoch(order, 0, 0)
    }

    /// The same, random changes being those of an epoch of a seed.
    pub fn drawn_epoch(&self, order: Vec<usize>, seed: u64, epoch: u64) -> Epoch {
        Epoch::start(Arc::clone(&self.store), order, Draw { seed, epoch })
    }

    /// Load the whole data set in its own order.
    pub fn in_order(&self) -> Epoch {
        self.epoch((0..self.store.dataset.samples.len()).collect())
    }

    /// Compute the random order of an epoch, to give to [`epoch`](Self::epoch). It depends on the seed, the epoch
    /// and the number of images alone, so that a resumed run needs no saved state.
    ///
    /// Images that lie in archives or tables are shuffled by a window, so that those files are read from front to back.
    pub fn shuffled(&self, seed: u64, epoch: u64) -> Vec<usize> {
        if let Some(groups) = packed::groups(&self.store.dataset.samples) {
            return shuffle_window(groups, WINDOW, seed, epoch);
        }
        let mut order: Vec<usize> = (0..self.store.dataset.samples.len()).collect();
        shuffle(&mut order, seed, epoch);
        order
    }

    /// Name the corrupt images that were left out of the batches handed out so far, each once, in the data set's
    /// order.
    pub fn skipped(&self) -> Vec<String> {
        lock(&self.store.skipped).iter().map(|&index| self.store.dataset.samples[index].name()).collect()
    }

    /// Count the images in the cache and the bytes of their pixels.
    pub fn cache_stats(&self) -> (usize, u64) {
        let cache = lock(&self.store.cache);
        (cache.images.len(), cache.bytes)
    }

    /// The data set that is loaded from.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.store.dataset
    }
}

/// What the loader and its workers share.
pub(super) struct Store {
    pub(super) dataset: Arc<Dataset>,
    pub(super) config: LoaderConfig,
    cache: Mutex<Cache>,
    skipped: Mutex<BTreeSet<usize>>,
}

/// Resized images by index. Nothing is ever evicted: every image is used once an epoch, so that no choice of what to
/// keep is better than another.
#[derive(Default)]
struct Cache {
    images: HashMap<usize, Arc<Rgb8>>,
    bytes: u64,
}

impl Store {
    /// Get one transformed image, from the cache or its file.
    pub(super) fn image(&self, index: usize, draw: Draw) -> Result<Arc<Rgb8>> {
        let (kept, LoaderConfig { augment, transform, .. }) = (self.kept(index)?, &self.config);
        Ok(match augment {
            Augment::None => kept,
            Augment::CropFlip => Arc::new(augment.apply(&kept, transform, draw, index)),
        })
    }

    /// What is the same in every epoch: the transformed image, or where that changes, the file's.
    fn kept(&self, index: usize) -> Result<Arc<Rgb8>> {
        if let Some(image) = lock(&self.cache).images.get(&index) {
            return Ok(Arc::clone(image));
        }
        let mut image = self.dataset.samples[index].load()?;
        if self.config.augment == Augment::None {
            image = self.config.transform.apply(&image);
        }
        image.data.shrink_to_fit();
        let (size, image) = (image.data.len() as u64, Arc::new(image));
        let mut cache = lock(&self.cache);
        if cache.bytes + size <= self.config.cache_bytes && !cache.images.contains_key(&index) {
            cache.images.insert(index, Arc::clone(&image));
            cache.bytes += size;
        }
        Ok(image)
    }

    /// Join the images of a batch. Returns it with the indices of the images that were left out.
    pub(super) fn batch(
        &self,
        indices: &[usize],
        images: Vec<Result<Arc<Rgb8>>>,
    ) -> Result<(Batch, Vec<usize>)> {
        let (mut kept, mut loaded, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
        for (&index, image) in indices.iter().zip(images) {
            match image {
                Ok(image) => {
                    kept.push(index);
                    loaded.push(image);
                }
                Err(Error::Input(_)) if self.config.on_corrupt == OnCorrupt::Skip => left_out.push(index),
                Err(error) => return Err(error),
            }
        }
        let (height, width) = self.config.transform.size();
        let mut pixels = Vec::with_capacity(kept.len() * 3 * height * width);
        for image in &loaded {
            image.append_chw(&mut pixels);
        }
        let labels = kept.iter().map(|&index| self.dataset.samples[index].label).collect();
        Ok((Batch { pixels, size: kept.len(), labels, indices: kept }, left_out))
    }

    pub(super) fn note_skipped(&self, indices: Vec<usize>) {
        lock(&self.skipped).extend(indices);
    }
}

/// Lock, whatever a thread that panicked while it held the lock may have left: every change made under these locks
/// is complete in itself.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::open;
    use crate::data::resize::Interpolation;
    use crate::data::test_files::{write_bytes, write_image};

    fn config() -> LoaderConfig {
        LoaderConfig {
            batch_size: 4,
            transform: Transform::Squash { height: 2, width: 2, interpolation: Interpolation::Bilinear },
            augment: Augment::None,
            workers: 3,
            prefetch: 2,
            on_corrupt: OnCorrupt::Fail,
            cache_bytes: 0,
            drop_last: false,
        }
    }

    /// `n` images whose grey value is their index, in one class.
    fn greys(n: u8) -> (tempfile::TempDir, Arc<Dataset>) {
        let dir = tempfile::tempdir().unwrap();
        (0..n).for_each(|i| write_image(dir.path().join(format!("c/{i:03}.png")), i));
        let data = open(dir.path(), None).unwrap().train.unwrap();
        (dir, Arc::new(data))
    }

    #[test]
    fn the_cache_keeps_to_its_limit_and_saves_decoding() {
        let (dir, data) = greys(10);
        let limit = LoaderConfig { cache_bytes: 12 * 6 + 11, ..config() };
        let loader = Loader::new(Arc::clone(&data), limit);
        let first: Vec<_> = loader.in_order().map(Result::unwrap).collect();
        assert_eq!(loader.cache_stats(), (6, 72));
        assert_eq!(loader.in_order().map(Result::unwrap).collect::<Vec<_>>(), first);
        assert_eq!(loader.cache_stats(), (6, 72));

        let loader = Loader::new(Arc::clone(&data), LoaderConfig { cache_bytes: 1 << 20, ..config() });
        loader.in_order().for_each(|batch| drop(batch.unwrap()));
        assert_eq!(loader.cache_stats(), (10, 120));
        drop(dir);
        let again: Vec<_> =
            loader.in_order().map(|b| b.expect("the files are gone, the cache is not")).collect();
        assert_eq!(again, first);

        let none = Loader::new(data, config());
        assert!(none.in_order().next().unwrap().is_err());
        assert_eq!(none.cache_stats(), (0, 0));
    }

    #[test]
    fn corrupt_images_are_left_out_or_fail() {
        let (dir, _) = greys(12);
        // One of the first batch, all of the second.
        write_bytes(dir.path().join("c/001.png"), b"");
        for i in 4..8 {
            write_bytes(dir.path().join(format!("c/{i:03}.png")), b"garbage");
        }
        let data = Arc::new(open(dir.path(), None).unwrap().train.unwrap());
        let loader = Loader::new(Arc::clone(&data), LoaderConfig { on_corrupt: OnCorrupt::Skip, ..config() });
        for _ in 0..2 {
            let batches: Vec<_> = loader.in_order().map(Result::unwrap).collect();
            let indices: Vec<_> = batches.iter().map(|b| b.indices.clone()).collect();
            assert_eq!(
                indices,
                [vec![0, 2, 3], vec![], vec![8, 9, 10, 11]],
                "an empty batch keeps its place"
            );
            assert_eq!((batches[0].size, batches[0].pixels.len(), batches[0].labels.len()), (3, 36, 3));
            assert!(batches[0].pixels[12..24].iter().all(|p| p.to_bits() == (2.0_f32 / 255.0).to_bits()));
        }
        let skipped = loader.skipped();
        assert_eq!(skipped.len(), 5, "each once");
        assert!(skipped[0].ends_with("001.png") && skipped[4].ends_with("007.png"));

        let mut epoch = Loader::new(data, config()).in_order();
        let message = epoch.next().unwrap().unwrap_err().to_string();
        assert!(message.contains("001.png: the file is empty"), "{message}");
        assert!(epoch.next().is_none(), "nothing after an error");
    }

    #[test]
    fn a_file_that_is_gone_fails_even_when_skipping() {
        let (dir, data) = greys(3);
        std::fs::remove_file(dir.path().join("c/002.png")).unwrap();
        let loader = Loader::new(data, LoaderConfig { on_corrupt: OnCorrupt::Skip, ..config() });
        let error = loader.in_order().next().unwrap().unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }

    #[test]
    fn an_order_depends_on_seed_and_epoch_alone() {
        let (_dir, data) = greys(50);
        let loader = Loader::new(Arc::clone(&data), config());
        let other = Loader::new(data, LoaderConfig { workers: 1, batch_size: 7, ..config() });
        assert_eq!(loader.shuffled(1, 3), other.shuffled(1, 3));
        assert_ne!(loader.shuffled(1, 3), loader.shuffled(1, 4));
        assert_ne!(loader.shuffled(1, 3), loader.shuffled(2, 3));
        let mut all = loader.shuffled(1, 3);
        all.sort_unstable();
        assert!(all.into_iter().eq(0..50));
    }

    #[test]
    fn words_round_trip() {
        for word in [OnCorrupt::Skip, OnCorrupt::Fail] {
            assert_eq!(word.to_string().parse::<OnCorrupt>().unwrap(), word);
        }
        assert!("ignore".parse::<OnCorrupt>().unwrap_err().to_string().contains("use skip or fail"));
    }
}
