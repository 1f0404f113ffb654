//! The training run, from first to last line.

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Device;

use super::checkpoint::{Progress, State};
use super::config::{Select, TrainConfig};
use super::features::FeatureCache;
use super::observe::{EpochRecord, Event, Observer};
use super::optim::{Optim, Rates};
use super::records::{Outcome, Records};
use super::setup::Setup;
use super::step::{Input, Stepper};
use crate::adapter::Adapter;
use crate::belongs::{RUN, free};
use crate::data::Loader;
use crate::eval::{Accuracy, evaluate};
use crate::head::{Counts, Mapping};
use crate::method::{MethodConfig, Site};
use crate::model::{Frozen, Predictor, pixels};
use crate::params::{Group, Params};
use crate::{Claim, Error, Result, bail, claim, remove_leftovers, system};

/// The files of a run.
#[derive(Clone, Debug)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// A run in `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }
    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.0.join(RUN)
    }
    /// A line an epoch.
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }
    /// What came out.
    pub fn result(&self) -> PathBuf {
        self.0.join("result.json")
    }
    /// The last checkpoint.
    pub fn checkpoint(&self) -> PathBuf {
        self.0.join("checkpoints").join("last.safetensors")
    }
    /// The trained adapter.
    pub fn adapter(&self) -> PathBuf {
        self.0.join("adapter")
    }
}

/// Train, evaluate on the test split once, and write the adapter and the records.
///
/// # Errors
/// The user's input is wrong, the loss is no longer a number, a file can't be written, or the observer stopped
/// the run (a checkpoint is written first).
pub fn train(
    config: &TrainConfig,
    dir: &RunDir,
    resume: bool,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    free(dir.path(), RUN)?;
    if !resume && (dir.checkpoint().exists() || dir.result().exists()) {
        bail!(
            "{} already holds a run: continue it with --resume, or choose another --output",
            dir.path().display()
        );
    }
    let mut run = open(config, dir, observer)?;
    run.fit(run.config().epochs, observer)?;
    run.finish(dir, observer)
}

/// Train up to the end of an epoch, going on from the checkpoint in `dir` if there is one, and leave a checkpoint there;
/// the test split stays untouched.
///
/// # Errors
/// As for [`train`].
pub fn train_epochs(
    config: &TrainConfig,
    dir: &RunDir,
    epochs: usize,
    observer: &mut dyn Observer,
) -> Result<()> {
    free(dir.path(), RUN)?;
    open(config, dir, observer)?.fit(epochs.min(config.epochs), observer)
}

/// Set up a run, at its checkpoint if it has one.
pub(super) fn open(config: &TrainConfig, dir: &RunDir, observer: &mut dyn Observer) -> Result<Run> {
    let checkpoint = dir.checkpoint();
    for directory in [dir.path(), &dir.adapter(), checkpoint.parent().unwrap_or(dir.path())] {
        remove_leftovers(directory);
    }
    system::reset_peak_rss();
    let setup = Setup::new(config, observer)?;
    let decay = Rates { prompt: setup.config.prompt_weight_decay, head: setup.config.weight_decay };
    let optim = Optim::new(
        setup.config.optimizer.unwrap_or_default(),
        setup.config.momentum,
        decay,
        setup.params.learnt().count(),
    );
    let params = setup.params.clone();
    let mut state = State { progress: Progress::default(), params, optim, best: None, mean: None };
    let claim = claim(dir.path())?;
    if checkpoint.exists() {
        state.load(&checkpoint, &setup.config)?;
        let p = &state.progress;
        observer.event(Event::Plan(&format!("resuming  after epoch {}, batch {}", p.epoch, p.batch)));
    }
    let records = Records::open(dir, &setup.config, state.progress.epoch)?;
    Ok(Run { frozen: Frozen::new(&setup.loaded), setup, state, checkpoint, records, _claim: claim })
}

pub(super) struct Run {
    pub(super) setup: Setup,
    pub(super) frozen: Frozen,
    pub(super) state: State,
    checkpoint: PathBuf,
    records: Records,
    /// Nobody else writes there meanwhile.
    _claim: Claim,
}

impl Run {
    fn config(&self) -> &TrainConfig {
        &self.setup.config
    }

    /// The learning rates, which the set-up resolved.
    fn full_rates(&self) -> Rates {
        let c = self.config();
        Rates { prompt: c.prompt_lr.unwrap_or_default(), head: c.lr.unwrap_or_default() }
    }

    fn save(&self) -> Result<()> {
        self.state.save(&self.checkpoint, self.config())
    }

    /// Train to the end of epoch `last`.
    fn fit(&mut self, last: usize, observer: &mut dyn Observer) -> Result<()> {
        // Zero-shot classification has nothing to learn.
        if self.state.progress.epoch >= last || self.state.params.total() == 0 {
            return Ok(());
        }
        let started = Instant::now();
        let cache = self.feature_cache(observer)?;
        if cache.is_some() {
            // The one pass through the network is most of what a linear probe costs.
            self.state.progress.seconds += started.elapsed().as_secs_f64();
        }
        while self.state.progress.epoch < last {
            let record = match self.epoch(cache.as_ref(), observer) {
                Err(Error::Interrupted(why)) => return Err(self.interrupted(&why)),
                other => other?,
            };
            self.records.epoch(&record)?;
            observer.event(Event::Epoch(&record, self.config().epochs));
            self.save()?;
        }
        Ok(())
    }

    /// A method without prompts leaves the features alone: compute them once.
    fn feature_cache(&self, observer: &mut dyn Observer) -> Result<Option<FeatureCache>> {
        if self.state.params.count(Group::Prompt) > 0 || self.setup.texts.is_some() {
            return Ok(None);
        }
        let loader = &self.setup.images.train;
        let images = loader.dataset().samples.len();
        observer.event(Event::Begin { what: "features", images, done: 0 });
        let (transform, device) = (&self.setup.images.transform, &self.setup.device);
        FeatureCache::build(&self.frozen, loader, transform, device, |done| {
            observer.event(Event::Advance { done, running: None });
            !observer.stop()
        })
        .map(Some)
    }

    /// Learning rates of a step of the whole run.
    fn rates(&self, step: usize, steps_per_epoch: usize) -> Rates {
        let c = self.config();
        let warmup = (c.warmup_epochs * steps_per_epoch as f64).round() as usize;
        if let Some(rate) = c.warmup_lr.filter(|_| step < warmup) {
            return Rates { prompt: rate, head: rate };
        }
        let factor = c.schedule.factor(step, c.epochs * steps_per_epoch, warmup);
        let full = self.full_rates();
        Rates { prompt: full.prompt * factor, head: full.head * factor }
    }

    fn epoch(&mut self, cache: Option<&FeatureCache>, observer: &mut dyn Observer) -> Result<EpochRecord> {
        let (started, before) = (Instant::now(), self.state.progress.seconds);
        self.match_classes(observer)?;
        let (batch_size, parts) = (self.config().batch_size, self.config().accumulate);
        let order = self.setup.images.train.shuffled(self.config().seed, self.state.progress.epoch as u64);
        let batches = order.len().div_ceil(batch_size);
        let (epoch, total) = (self.state.progress.epoch + 1, self.config().epochs);
        let first = self.state.progress.batch;
        let what = format!("epoch {epoch}/{total}");
        observer.event(Event::Begin { what: &what, images: order.len(), done: first * batch_size });
        let rest = order[(first * batch_size).min(order.len())..].to_vec();
        let (train, seed) = (&self.setup.images.train, self.config().seed);
        let drawn = || train.drawn_epoch(rest.clone(), seed, self.state.progress.epoch as u64);
        let mut loaded = cache.is_none().then(drawn);
        let mut trained = 0;
        for chunk in rest.chunks(batch_size) {
            let rates = self.rates(self.state.progress.step, batches);
            let site = Site::of(&self.setup.loaded);
            // Another one for every step, and the same for a step that is taken again.
            let seed = self.config().seed ^ (self.state.progress.step as u64).rotate_left(32);
            let mut stepper =
                Stepper::seeded(&self.frozen, &self.setup.config.method, self.config().head(), site, seed)
                    .with_texts(self.setup.texts.as_deref());
            for part in chunk.chunks(batch_size / parts) {
                if let Some((input, labels)) = next_input(part, cache, loaded.as_mut(), &self.setup)? {
                    stepper.accumulate(&self.state.params, input, &labels)?;
                }
            }
            let sums = stepper.finish(&mut self.state.optim, rates, &mut self.state.params);
            if !sums.loss.is_finite() {
                return Err(self.not_finite(sums.loss));
            }
            let p = &mut self.state.progress;
            p.step += 1;
            p.batch += 1;
            p.loss_sum += sums.loss;
            p.correct += sums.correct;
            p.images += sums.images;
            p.seconds = before + started.elapsed().as_secs_f64();
            trained += sums.images;
            let n = p.images.max(1) as f64;
            let running = Some((p.loss_sum / n, 100.0 * p.correct as f64 / n));
            observer.event(Event::Advance { done: (p.batch * batch_size).min(order.len()), running });
            self.records.step(self.state.progress.step, sums.loss / sums.images.max(1) as f64, rates)?;
            if observer.stop() {
                let step = self.state.progress.step;
                return Err(Error::Interrupted(format!("stopped in epoch {epoch} after step {step}")));
            }
            if self.state.progress.batch.is_multiple_of(self.config().checkpoint_steps) {
                self.save()?;
            }
        }
        if self.state.progress.images == 0 {
            bail!("no training image could be decoded");
        }
        let speed = trained as f64 / started.elapsed().as_secs_f64().max(1e-9);
        let rates = self.rates(self.state.progress.step.saturating_sub(1), batches);
        self.end_epoch(rates, speed, observer)
    }

    /// Match classes by what the training images are now taken for, at the epochs that ask for it. A run that was stopped
    /// inside an epoch has that epoch's match in its checkpoint.
    fn match_classes(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let (head, epoch) = (self.config().head(), self.state.progress.epoch);
        let due = match head.mapping {
            Mapping::Frequency => epoch == 0,
            Mapping::Iterative => epoch.is_multiple_of(self.config().mapping_every),
            _ => false,
        };
        if !due || self.state.progress.batch > 0 {
            return Ok(());
        }
        let (loaded, params) = (&self.setup.loaded, &self.state.params);
        let predictor = Predictor::adapted(loaded, &self.config().method, head, params, None)?;
        let predictor = predictor.with_own_classifier(loaded)?;
        let (train, transform) = (&self.setup.images.train, &self.setup.images.transform);
        let images = train.dataset().samples.len();
        observer.event(Event::Begin { what: "matching classes", images, done: 0 });
        let own = loaded.config.classes;
        let (mut counts, mut done) = (Counts::new(own, self.setup.images.classes.len()), 0);
        for batch in train.in_order() {
            let batch = batch?;
            if batch.size == 0 {
                continue;
            }
            let labels = batch.labels.clone();
            let x = pixels(batch, transform, &self.setup.device);
            // A few dozen at a time, as for evaluation, however large a batch is.
            let chunks = (0..labels.len()).step_by(64).map(|first| (first, 64.min(labels.len() - first)));
            let scores: Vec<f32> = chunks
                .flat_map(|(first, count)| {
                    let scores = predictor.logits(x.clone().narrow(0, first, count));
                    scores.into_data().iter::<f32>().collect::<Vec<_>>()
                })
                .collect();
            for (row, label) in scores.chunks_exact(own).zip(&labels) {
                let most = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
                counts.add(most.map_or(0, |(source, _)| source), *label);
            }
            done += labels.len();
            observer.event(Event::Advance { done, running: None });
            if observer.stop() {
                return Err(Error::Interrupted("stopped while matching classes".into()));
            }
        }
        head.rematch(&mut self.state.params, &counts);
        Ok(())
    }

    /// Evaluate, choose, and turn the epoch's sums into a record.
    fn end_epoch(&mut self, rates: Rates, speed: f64, observer: &mut dyn Observer) -> Result<EpochRecord> {
        let epoch = self.state.progress.epoch + 1;
        let val = match (&self.setup.images.val, self.config().select) {
            (Some(loader), Select::BestVal) => {
                Some(self.evaluate("val", loader, &self.state.params, observer)?)
            }
            _ => None,
        };
        let test = match &self.setup.images.test {
            Some(loader) if self.config().test_every_epoch => {
                Some(self.evaluate("test", loader, &self.state.params, observer)?)
            }
            _ => None,
        };
        let better =
            |new: &Accuracy, old: &Option<(usize, Accuracy)>| old.is_none_or(|(_, o)| new.top1 > o.top1);
        if let Some(accuracy) = val.filter(|a| better(a, &self.state.progress.best)) {
            self.state.progress.best = Some((epoch, accuracy));
            self.state.best = Some(self.state.params.clone());
        }
        if let Some(accuracy) = test.filter(|a| better(a, &self.state.progress.best_test)) {
            self.state.progress.best_test = Some((epoch, accuracy));
        }
        let p = &mut self.state.progress;
        let n = p.images as f64;
        let record = EpochRecord {
            epoch,
            step: p.step,
            lr: rates.head,
            prompt_lr: rates.prompt,
            train_loss: p.loss_sum / n,
            train_top1: 100.0 * p.correct as f64 / n,
            val,
            test,
            images_per_second: speed,
            seconds: p.seconds,
        };
        (p.epoch, p.batch, p.loss_sum, p.correct, p.images) = (epoch, 0, 0.0, 0, 0);
        if let MethodConfig::PromptSrc(m) = &self.config().method
            && let Some(shares) = m.shares(self.config().epochs)
        {
            self.state.add_to_mean(shares[epoch - 1]);
        }
        self.note_skipped(observer);
        Ok(record)
    }

    fn evaluate(
        &self,
        what: &str,
        loader: &Loader,
        params: &Params,
        observer: &mut dyn Observer,
    ) -> Result<Accuracy> {
        let (config, setup) = (self.config(), &self.setup);
        let texts = setup.texts.as_ref();
        let predictor = Predictor::adapted(&setup.loaded, &config.method, config.head(), params, texts)?;
        observer.event(Event::Begin { what, images: loader.dataset().samples.len(), done: 0 });
        evaluate(&predictor, loader, &self.setup.images.transform, |done| {
            observer.event(Event::Advance { done, running: None });
            !observer.stop()
        })
    }

    /// Tell of corrupt images that no one has heard of yet, and remember them over a resume.
    fn note_skipped(&mut self, observer: &mut dyn Observer) {
        let images = &self.setup.images;
        let loaders = [Some(&images.train), images.val.as_ref(), images.test.as_ref()];
        for name in loaders.into_iter().flatten().flat_map(Loader::skipped) {
            if self.state.progress.skipped.insert(name.clone()) {
                observer.event(Event::Warning(&format!("skipped corrupt image {name}")));
            }
        }
    }

    /// Save, so that what was interrupted can go on, and say how.
    fn interrupted(&self, why: &str) -> Error {
        if let Err(error) = self.save() {
            return error;
        }
        let saved = self.checkpoint.display();
        Error::Interrupted(format!("{why}; saved to {saved}: continue with --resume"))
    }

    fn not_finite(&self, loss: f64) -> Error {
        let kept = if self.checkpoint.exists() {
            format!("the last good checkpoint is {}", self.checkpoint.display())
        } else {
            "nothing had been saved yet".into()
        };
        let Rates { head: lr, prompt: prompt_lr } = self.full_rates();
        Error::Diverged(format!(
            "the loss became {loss} at step {} (lr {lr}, prompt-lr {prompt_lr}): training stopped, {kept}; \
             try a lower learning rate or a warm-up",
            self.state.progress.step + 1
        ))
    }

    fn finish(mut self, dir: &RunDir, observer: &mut dyn Observer) -> Result<Outcome> {
        // An average over all epochs knows no best one.
        let state = &self.state;
        let params = state.mean.as_ref().or(state.best.as_ref()).unwrap_or(&state.params).clone();
        let test =
            self.setup.images.test.as_ref().map(|loader| self.evaluate("test", loader, &params, observer));
        let test = match test.transpose() {
            Err(Error::Interrupted(why)) => return Err(self.interrupted(&why)),
            other => other?,
        };
        self.note_skipped(observer);
        let outcome = self.records.finish(&self.setup, &self.state, &params, test)?;
        let (loaded, method) = (&self.setup.loaded, self.config().method.clone());
        let mut adapter =
            Adapter::new(loaded, method, self.config().head(), self.setup.images.classes.clone(), params)?;
        adapter.config.metrics = outcome.metrics();
        adapter.save(&dir.adapter())?;
        outcome.save(&dir.result())?;
        Ok(outcome)
    }
}

/// The next part of a batch, as pixels or as cached features; `None` if every image in it is corrupt.
fn next_input(
    part: &[usize],
    cache: Option<&FeatureCache>,
    loaded: Option<&mut crate::data::Epoch>,
    setup: &Setup,
) -> Result<Option<(Input, Vec<usize>)>> {
    let device: &Device = &setup.device;
    if let Some(cache) = cache {
        return Ok(cache.batch(part, device).map(|(x, labels)| (Input::Features(x), labels)));
    }
    let Some(batch) = loaded.and_then(Iterator::next).transpose()? else { return Ok(None) };
    if batch.size == 0 {
        return Ok(None);
    }
    let labels = batch.labels.clone();
    Ok(Some((Input::Pixels(pixels(batch, &setup.images.transform, device)), labels)))
}
