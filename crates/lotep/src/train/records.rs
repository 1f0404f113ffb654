//! What a run leaves behind: configuration, a line an epoch, TensorBoard events, the result.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::checkpoint::State;
use super::config::{Select, TrainConfig};
use super::observe::EpochRecord;
use super::optim::Rates;
use super::run::RunDir;
use super::setup::Setup;
use super::tensorboard::EventWriter;
use crate::eval::Accuracy;
use crate::params::{Group, Params};
use crate::system::{self, Environment};
use crate::{Error, Result, input_error, write_atomic};

/// `result.json`: run, train and environment facts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// What was run.
    pub run: RunFacts,
    /// What came out.
    pub train: TrainFacts,
    /// Where.
    pub environment: Environment,
}

/// What was run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunFacts {
    /// The resolved configuration.
    pub config: TrainConfig,
    /// The backbone's timm name.
    pub backbone: String,
    /// SHA-256 of its weight file.
    pub backbone_sha256: Option<String>,
    /// Where the images of each split came from.
    pub data: String,
    /// The classes, in the order of the logits.
    pub classes: Vec<String>,
    /// Which epoch was kept and why, and that the test split had no say.
    pub protocol: String,
}

/// What came out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainFacts {
    /// The epoch whose parameters were kept, from 1.
    pub epoch: usize,
    /// Steps taken.
    pub steps: usize,
    /// On held-out images, at that epoch.
    pub val: Option<Accuracy>,
    /// On the test split, at that epoch.
    pub test: Option<Accuracy>,
    /// The best test accuracy of any epoch, where it was watched: what papers that choose on the test split report.
    pub best_test: Option<(usize, Accuracy)>,
    /// Trainable parameters.
    pub trainable_parameters: usize,
    /// Of these, in prompts.
    pub prompt_parameters: usize,
    /// Of these, in the classifier.
    pub head_parameters: usize,
    /// Parameters of the frozen network without its classifier.
    pub frozen_parameters: usize,
    /// Seconds of training, evaluation not counted.
    pub seconds: f64,
    /// Training images a second over the whole run.
    pub images_per_second: f64,
    /// Peak resident memory of the process.
    pub peak_rss_mb: Option<f64>,
    /// Corrupt images left out.
    pub skipped: Vec<String>,
}

impl Outcome {
    /// The part that an adapter carries with it.
    pub(super) fn metrics(&self) -> serde_json::Value {
        let t = &self.train;
        json!({
            "protocol": self.run.protocol, "epoch": t.epoch, "seed": self.run.config.seed,
            "val": t.val, "test": t.test, "best_test": t.best_test,
        })
    }

    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let json =
            serde_json::to_vec_pretty(self).map_err(|e| input_error!("cannot write the result: {e}"))?;
        write_atomic(path, &json)
    }
}

pub(super) struct Records {
    metrics: std::path::PathBuf,
    events: EventWriter,
}

impl Records {
    /// Start or continue the records of a run of which `epochs` are done: later lines belong to work that is done
    /// again.
    pub(super) fn open(dir: &RunDir, config: &TrainConfig, epochs: usize) -> Result<Self> {
        let text =
            toml::to_string(config).map_err(|e| input_error!("cannot write the configuration: {e}"))?;
        write_atomic(&dir.config(), text.as_bytes())?;
        let metrics = dir.metrics();
        let old = std::fs::read_to_string(&metrics).unwrap_or_default();
        let kept: String = old.lines().take(epochs).flat_map(|line| [line, "\n"]).collect();
        write_atomic(&metrics, kept.as_bytes())?;
        Ok(Self { metrics, events: EventWriter::create(dir.path())? })
    }

    pub(super) fn step(&mut self, step: usize, loss: f64, rates: Rates) -> Result<()> {
        self.events.scalar("step/loss", step as u64, loss)?;
        self.events.scalar("step/lr", step as u64, rates.head)?;
        self.events.scalar("step/prompt_lr", step as u64, rates.prompt)
    }

    pub(super) fn epoch(&mut self, record: &EpochRecord) -> Result<()> {
        let step = record.epoch as u64;
        self.events.scalar("train/loss", step, record.train_loss)?;
        self.events.scalar("train/top1", step, record.train_top1)?;
        self.events.scalar("train/images_per_second", step, record.images_per_second)?;
        for (name, accuracy) in [("val", &record.val), ("test", &record.test)] {
            if let Some(a) = accuracy {
                self.events.scalar(&format!("{name}/top1"), step, a.top1)?;
                self.events.scalar(&format!("{name}/loss"), step, a.loss)?;
            }
        }
        self.events.flush()?;
        let line = serde_json::to_string(record).map_err(|e| input_error!("cannot write a record: {e}"))?;
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(&self.metrics)
            .map_err(Error::io("open", &self.metrics))?;
        file.write_all(format!("{line}\n").as_bytes()).map_err(Error::io("write", &self.metrics))
    }

    pub(super) fn finish(
        &mut self,
        setup: &Setup,
        state: &State,
        params: &Params,
        test: Option<Accuracy>,
    ) -> Result<Outcome> {
        self.events.flush()?;
        let (config, progress) = (&setup.config, &state.progress);
        let images = progress.epoch * setup.images.train.dataset().samples.len();
        let (epoch, val, rule) = match (config.select, progress.best) {
            _ if state.mean.is_some() => {
                (progress.epoch, None, "the epochs' mean, weighted by a Gaussian, was kept".to_owned())
            }
            (Select::BestVal, Some((epoch, val))) => {
                (epoch, Some(val), "the epoch best on held-out images was kept".to_owned())
            }
            _ => (progress.epoch, None, "the last epoch was kept".to_owned()),
        };
        Ok(Outcome {
            run: RunFacts {
                config: config.clone(),
                backbone: setup.loaded.config.name.clone(),
                backbone_sha256: setup.loaded.sha256.clone(),
                data: setup.images.protocol.clone(),
                classes: setup.images.classes.clone(),
                protocol: format!("{rule}; the test split was used for nothing but the final number"),
            },
            train: TrainFacts {
                epoch,
                steps: progress.step,
                val,
                test,
                best_test: progress.best_test,
                trainable_parameters: params.total(),
                prompt_parameters: params.count(Group::Prompt),
                head_parameters: params.count(Group::Head),
                frozen_parameters: setup.loaded.body_parameters,
                seconds: progress.seconds,
                images_per_second: images as f64 / progress.seconds.max(1e-9),
                peak_rss_mb: system::peak_rss_mb(),
                skipped: progress.skipped.iter().cloned().collect(),
            },
            environment: system::environment(),
        })
    }
}
