//! Worker threads that load images ahead of the consumer.
//!
//! Workers take single images, not batches: the first batch is then ready as soon as all workers together can load
//! it, and the pixels in flight are those of `prefetch` batches, however many workers there are. Whoever brings the
//! last image of a batch joins it, so that the conversion to f32 is off the consumer's thread too. What is in a batch
//! follows from its place in `order`; timing decides only when it is ready. The threads are plain ones, not Rayon's,
//! whose pool belongs to the arithmetic.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::augment::Draw;
use super::decode::Rgb8;
use super::loader::{Batch, Store, lock};
use crate::{Error, Result, input_error};

/// The batches of one epoch, in order: as many as `order` has runs of `batch_size`, so that a consumer can count them;
/// one whose images are all corrupt is empty. After an error it ends. Dropping it stops the workers: each finishes
/// the image it is at.
pub struct Epoch {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    store: Arc<Store>,
    order: Vec<usize>,
    draw: Draw,
    state: Mutex<State>,
    /// A batch was taken, or the epoch stopped: workers may go on.
    room: Condvar,
    /// A batch was joined, or something failed: the consumer should look.
    ready: Condvar,
}

struct State {
    /// The next position in `order` that no worker has claimed.
    claimed: usize,
    /// Batches handed out.
    taken: usize,
    /// The batches being made; the first is number `taken`.
    window: VecDeque<Slot>,
    stopped: bool,
    /// What keeps the epoch from ever being complete.
    failed: Option<Error>,
}

/// A batch being made.
struct Slot {
    images: Vec<Option<Result<Arc<Rgb8>>>>,
    missing: usize,
    joined: Option<Result<(Batch, Vec<usize>)>>,
}

impl Epoch {
    pub(super) fn start(store: Arc<Store>, mut order: Vec<usize>, draw: Draw) -> Self {
        let images = store.dataset.samples.len();
        let unknown = order.iter().find(|&&index| index >= images);
        let failed = unknown.map(|i| input_error!("image {i} was asked for, but the data set has {images}"));
        if store.config.drop_last {
            order.truncate(order.len() - order.len() % store.config.batch_size.max(1));
        }
        let count = if failed.is_some() { 0 } else { store.config.workers.max(1).min(order.len()) };
        let state = State { claimed: 0, taken: 0, window: VecDeque::new(), stopped: false, failed };
        let (room, ready) = (Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { store, order, draw, state: Mutex::new(state), room, ready });
        let mut workers = Vec::with_capacity(count);
        for _ in 0..count {
            let worker = Arc::clone(&shared);
            match thread::Builder::new().name("lotep-data".into()).spawn(move || worker.work()) {
                Ok(handle) => workers.push(handle),
                // With fewer threads than asked for it is slower, with none it cannot go on.
                Err(_) if !workers.is_empty() => break,
                Err(e) => {
                    lock(&shared.state).failed =
                        Some(input_error!("cannot start a thread that loads data: {e}"));
                    break;
                }
            }
        }
        Self { shared, workers }
    }
}

impl Iterator for Epoch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(match self.shared.take()? {
            Ok((batch, left_out)) => {
                self.shared.store.note_skipped(left_out);
                Ok(batch)
            }
            Err(error) => {
                self.shared.stop();
                Err(error)
            }
        })
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        self.shared.stop();
        for worker in self.workers.drain(..) {
            // A panic has been reported through `failed`, and a drop must not panic in turn.
            drop(worker.join());
        }
    }
}

impl Shared {
    fn work(&self) {
        let _alarm = Alarm(self);
        while let Some(position) = self.claim() {
            let image = self.store.image(self.order[position], self.draw);
            let number = position / self.batch_size();
            if let Some(images) = self.deliver(position, image) {
                let joined = self.store.batch(self.indices(number), images);
                let mut state = lock(&self.state);
                let at = number - state.taken;
                state.window[at].joined = Some(joined);
                self.ready.notify_one();
            }
        }
    }

    fn batch_size(&self) -> usize {
        self.store.config.batch_size.max(1)
    }

    /// The images of batch `number`.
    fn indices(&self, number: usize) -> &[usize] {
        let start = number * self.batch_size();
        &self.order[start..(start + self.batch_size()).min(self.order.len())]
    }

    /// Wait for room, and take the next position to load. None when there is no more to do.
    fn claim(&self) -> Option<usize> {
        let mut state = lock(&self.state);
        loop {
            if state.stopped || state.claimed >= self.order.len() {
                return None;
            }
            let number = state.claimed / self.batch_size();
            if number < state.taken + self.store.config.prefetch.max(1) {
                if number == state.taken + state.window.len() {
                    let missing = self.indices(number).len();
                    let images = (0..missing).map(|_| None).collect();
                    state.window.push_back(Slot { images, missing, joined: None });
                }
                state.claimed += 1;
                return Some(state.claimed - 1);
            }
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Put an image in its place. Returns the batch's images if that was the last one missing.
    fn deliver(&self, position: usize, image: Result<Arc<Rgb8>>) -> Option<Vec<Result<Arc<Rgb8>>>> {
        let mut state = lock(&self.state);
        // The batch is still in the window: it cannot be taken before this image is in it.
        let at = position / self.batch_size() - state.taken;
        let slot = &mut state.window[at];
        slot.images[position % self.batch_size()] = Some(image);
        slot.missing -= 1;
        (slot.missing == 0).then(|| std::mem::take(&mut slot.images).into_iter().flatten().collect())
    }

    /// Wait for the next batch. None at the end.
    fn take(&self) -> Option<Result<(Batch, Vec<usize>)>> {
        let mut state = lock(&self.state);
        loop {
            if state.stopped {
                return None;
            }
            if let Some(joined) = state.window.front_mut().and_then(|slot| slot.joined.take()) {
                state.window.pop_front();
                state.taken += 1;
                self.room.notify_all();
                return Some(joined);
            }
            if let Some(error) = state.failed.take() {
                return Some(Err(error));
            }
            if state.taken * self.batch_size() >= self.order.len() {
                return None;
            }
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn stop(&self) {
        lock(&self.state).stopped = true;
        self.room.notify_all();
    }
}

/// Tells the consumer when a worker panics; it would wait for that worker's image for ever.
struct Alarm<'a>(&'a Shared);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            lock(&self.0.state).failed =
                Some(input_error!("a thread that loads data failed; its message is above"));
            self.0.ready.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::data::augment::Augment;
    use crate::data::dataset::{Dataset, Sample, Source};
    use crate::data::loader::{Loader, LoaderConfig, OnCorrupt};
    use crate::data::resize::Interpolation;
    use crate::data::test_files::shared;
    use crate::data::{Transform, open};

    /// `n` images of one pixel, whose three bytes tell the index. `broken` ones make a worker panic.
    fn loader(n: usize, broken: &[usize], change: impl FnOnce(&mut LoaderConfig)) -> Loader {
        let sample = |index: usize| {
            let (file, rgb) = (PathBuf::from("f"), [index as u8, (index >> 8) as u8, 0].into());
            // Wider than its bytes: slicing a row of it panics.
            let width = if broken.contains(&index) { 9 } else { 1 };
            Sample { source: Source::Pixels { file, index, rgb, width, height: 1 }, label: index % 10 }
        };
        let classes = (0..10).map(|c| c.to_string()).collect();
        let data = Dataset::new("d".into(), classes, (0..n).map(sample).collect());
        let mut config = LoaderConfig {
            batch_size: 7,
            transform: Transform::Squash { height: 1, width: 1, interpolation: Interpolation::Bilinear },
            augment: Augment::None,
            workers: 4,
            prefetch: 3,
            on_corrupt: OnCorrupt::Fail,
            cache_bytes: 0,
            drop_last: false,
        };
        change(&mut config);
        Loader::new(Arc::new(data), config)
    }

    fn decoded(batch: &Batch) -> Vec<usize> {
        let byte = |p: f32| (p * 255.0).round() as usize;
        batch.pixels.chunks_exact(3).map(|p| byte(p[0]) + 256 * byte(p[1])).collect()
    }

    #[test]
    fn batches_follow_the_order_for_any_number_of_workers() {
        for (workers, prefetch, batch_size) in [(1, 1, 7), (4, 3, 7), (16, 1, 3), (3, 50, 1), (0, 0, 0)] {
            let loader = loader(1000, &[], |c| {
                (c.workers, c.prefetch, c.batch_size) = (workers, prefetch, batch_size);
            });
            let order = loader.shuffled(3, 1);
            let mut seen = Vec::new();
            for batch in loader.epoch(order.clone()) {
                let batch = batch.unwrap();
                assert_eq!(batch.indices, decoded(&batch));
                assert!(batch.indices.iter().zip(&batch.labels).all(|(i, l)| i % 10 == *l));
                assert!(batch.size == batch_size.max(1) || seen.len() + batch.size == 1000);
                seen.extend(batch.indices);
            }
            assert_eq!(seen, order);
        }
    }

    #[test]
    fn the_last_batch_may_be_dropped_and_no_images_give_none() {
        let sizes = |n, drop_last| -> Vec<usize> {
            loader(n, &[], |c| c.drop_last = drop_last).in_order().map(|b| b.unwrap().size).collect()
        };
        assert_eq!(sizes(16, false), [7, 7, 2]);
        assert_eq!(sizes(16, true), [7, 7]);
        assert_eq!(sizes(5, true), [0; 0]);
        assert_eq!(sizes(0, false), [0; 0]);
    }

    #[test]
    fn workers_do_not_run_further_ahead_than_asked() {
        let loader =
            loader(1000, &[], |c| (c.workers, c.prefetch, c.batch_size, c.cache_bytes) = (8, 2, 5, 1 << 20));
        let mut epoch = loader.in_order();
        for taken in 1..=5 {
            epoch.next().unwrap().unwrap();
            // The cache tells how many images were loaded. They come that far, and no further.
            let (allowed, start) = ((taken + 2) * 5, Instant::now());
            while loader.cache_stats().0 < allowed && start.elapsed() < Duration::from_secs(20) {
                thread::sleep(Duration::from_millis(1));
            }
            thread::sleep(Duration::from_millis(10));
            assert_eq!(loader.cache_stats().0, allowed);
        }
    }

    #[test]
    fn dropping_an_epoch_stops_it_at_once() {
        for take in [0, 1, 3] {
            let loader = loader(100_000, &[], |c| c.cache_bytes = 1 << 30);
            let start = Instant::now();
            let mut epoch = loader.in_order();
            epoch.by_ref().take(take).for_each(|b| drop(b.unwrap()));
            drop(epoch);
            let loaded = loader.cache_stats().0;
            assert!(loaded <= (take + 3) * 7, "{loaded}");
            assert!(start.elapsed() < Duration::from_secs(5));
            thread::sleep(Duration::from_millis(20));
            assert_eq!(loader.cache_stats().0, loaded, "a worker went on");
        }
    }

    #[test]
    fn a_panic_in_a_worker_ends_the_epoch_with_an_error() {
        for workers in [1, 4] {
            let loader = loader(100, &[30], |c| c.workers = workers);
            let mut epoch = loader.in_order();
            let mut complete = 0;
            let error = loop {
                match epoch.next().expect("an error before the end") {
                    Ok(batch) => complete += batch.size,
                    Err(error) => break error,
                }
            };
            assert!(
                complete <= 28 && error.to_string().contains("a thread that loads data failed"),
                "{complete}"
            );
            assert!(epoch.next().is_none());
        }
    }

    #[test]
    fn an_unknown_index_is_an_error() {
        let loader = loader(10, &[], |_| ());
        let mut epoch = loader.epoch(vec![1, 10]);
        let message = epoch.next().unwrap().unwrap_err().to_string();
        assert_eq!(message, "image 10 was asked for, but the data set has 10");
        assert!(epoch.next().is_none());
    }

    #[test]
    fn real_images_load_the_same_with_one_worker_and_many() {
        let Some(path) = shared("data/images/dtd10") else { return };
        let data = Arc::new(open(&path, None).unwrap().test.unwrap());
        let batches = |workers| -> Vec<Batch> {
            let config = LoaderConfig {
                batch_size: 16,
                transform: Transform::ResizeCrop {
                    height: 64,
                    width: 64,
                    crop_pct: 0.875,
                    interpolation: Interpolation::Bicubic,
                },
                augment: Augment::None,
                workers,
                prefetch: 2,
                on_corrupt: OnCorrupt::Fail,
                cache_bytes: 0,
                drop_last: false,
            };
            Loader::new(Arc::clone(&data), config)
                .epoch((0..400).step_by(10).collect())
                .map(Result::unwrap)
                .collect()
        };
        let one = batches(1);
        assert_eq!(one.iter().map(|b| b.size).collect::<Vec<_>>(), [16, 16, 8]);
        assert_eq!(one, batches(5));
    }
}
