//! Checkpoints: everything a run needs to go on to the same bits, in one atomically written file.
//!
//! The frozen backbone is not in it. Random state is not in it either, because there is none: initial values, the
//! split and every epoch's order are functions of the seed and the epoch.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::config::TrainConfig;
use super::optim::Optim;
use crate::eval::Accuracy;
use crate::params::{Group, Params};
use crate::safetensors::{NamedTensor, TensorFile, serialize};
use crate::{Error, Result, bail, input_error, write_atomic};

const BEST: &str = "best.";
const MEAN: &str = "mean.";
/// The metadata entry with everything that is not a tensor.
const FACTS: &str = "lotep";

/// What a checkpoint says besides its tensors.
#[derive(Serialize, Deserialize)]
struct Facts<P, C> {
    progress: P,
    config: C,
}

/// Where a run is, besides its tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Epochs finished.
    pub(super) epoch: usize,
    /// Batches of the next epoch already taken.
    pub(super) batch: usize,
    /// Steps taken in all.
    pub(super) step: usize,
    /// Loss summed over this epoch's images so far.
    pub(super) loss_sum: f64,
    /// Right predictions among them.
    pub(super) correct: usize,
    /// Number of them.
    pub(super) images: usize,
    /// Seconds of training so far, over all sittings.
    pub(super) seconds: f64,
    /// Best validation accuracy and its epoch (1-based).
    pub(super) best: Option<(usize, Accuracy)>,
    /// Best test accuracy seen and its epoch, where the user asked to watch it. Reported, never used.
    pub(super) best_test: Option<(usize, Accuracy)>,
    /// Corrupt images left out so far, by name.
    pub(super) skipped: BTreeSet<String>,
}

/// A run's state.
pub(super) struct State {
    pub(super) progress: Progress,
    pub(super) params: Params,
    pub(super) optim: Optim,
    /// The best epoch's parameters, when they are chosen by validation.
    pub(super) best: Option<Params>,
    /// The weighted sum of the parameters over the epochs so far, where their average is kept.
    pub(super) mean: Option<Params>,
}

impl State {
    /// Add the parameters as they are, with a weight, to their average over epochs.
    pub(super) fn add_to_mean(&mut self, share: f64) {
        let mut mean = self.mean.take().unwrap_or_else(|| {
            let mut zeros = self.params.clone();
            zeros.iter_mut().for_each(|p| p.value = p.value.zeros_like());
            zeros
        });
        for (sum, now) in mean.iter_mut().zip(self.params.iter()) {
            // What is not learnt is no average.
            sum.value = match now.group {
                Group::Fixed => now.value.clone(),
                _ => sum.value.clone() + now.value.clone() * share,
            };
        }
        self.mean = Some(mean);
    }

    /// Write to `path`.
    pub(super) fn save(&self, path: &Path, config: &TrainConfig) -> Result<()> {
        let mut tensors = self.params.to_named();
        tensors.extend(self.optim.to_named(&self.params));
        if let Some(bad) = tensors.iter().find(|t| t.values.iter().any(|v| !v.is_finite())) {
            let kept = if path.exists() {
                format!("the last good checkpoint is {}", path.display())
            } else {
                "nothing had been saved yet".into()
            };
            return Err(Error::Diverged(format!(
                "`{}` is no longer finite after step {} (lr {}, prompt-lr {}): training stopped, {kept}; \
                 try a lower learning rate or a warm-up",
                bad.name,
                self.progress.step,
                config.lr.unwrap_or_default(),
                config.prompt_lr.unwrap_or_default()
            )));
        }
        let best = self.best.iter().flat_map(Params::to_named);
        tensors.extend(best.map(|t| NamedTensor { name: format!("{BEST}{}", t.name), ..t }));
        let mean = self.mean.iter().flat_map(Params::to_named);
        tensors.extend(mean.map(|t| NamedTensor { name: format!("{MEAN}{}", t.name), ..t }));
        let facts = Facts { progress: &self.progress, config };
        let facts =
            serde_json::to_string(&facts).map_err(|e| input_error!("cannot describe the checkpoint: {e}"))?;
        write_atomic(path, &serialize(&tensors, Some((FACTS, facts)))?)
    }

    /// Restore from `path` into a state that was laid out for `config`.
    pub(super) fn load(&mut self, path: &Path, config: &TrainConfig) -> Result<()> {
        let file = TensorFile::open(path)?;
        let what = path.display().to_string();
        let facts = file.metadata().remove(FACTS);
        let facts = facts.ok_or_else(|| input_error!("{what} is not a lotep checkpoint: no `{FACTS}`"))?;
        let facts: Facts<Progress, serde_json::Value> = serde_json::from_str(&facts)
            .map_err(|e| input_error!("{what}: damaged record of the run: {e}"))?;
        check_same_run(&what, &facts.config, config)?;
        self.progress = facts.progress;
        self.params.load(&what, |name| file.read(name))?;
        let read = |name: &String| {
            file.read(name).map(|(values, shape)| NamedTensor { name: name.clone(), shape, values })
        };
        let names: Vec<String> = file.shapes().into_keys().collect();
        let optim = names.iter().filter(|n| n.contains(".optim.")).map(read).collect::<Result<_>>()?;
        self.optim.load(&self.params, optim)?;
        let kept = |prefix: &str| -> Result<Option<Params>> {
            if !names.iter().any(|n| n.starts_with(prefix)) {
                return Ok(None);
            }
            let mut params = self.params.clone();
            params.load(&what, |name| file.read(&format!("{prefix}{name}")))?;
            Ok(Some(params))
        };
        (self.best, self.mean) = (kept(BEST)?, kept(MEAN)?);
        Ok(())
    }
}

/// A run may be continued with another number of workers, cache or checkpoint interval, and nothing else.
fn check_same_run(what: &str, stored: &serde_json::Value, config: &TrainConfig) -> Result<()> {
    const FREE: [&str; 4] = ["workers", "cache_mb", "checkpoint_steps", "device"];
    let wanted = serde_json::to_value(config).map_err(|e| input_error!("cannot describe the run: {e}"))?;
    let (wanted, stored) = (wanted.as_object(), stored.as_object());
    // Either may have settings that the other leaves out.
    for key in stored.into_iter().chain(wanted).flat_map(serde_json::Map::keys) {
        let [was, is] = [stored, wanted].map(|settings| settings.and_then(|s| s.get(key)));
        if !FREE.contains(&key.as_str()) && was != is {
            let [was, is] = [was, is].map(|value| value.map_or_else(|| "absent".into(), ToString::to_string));
            bail!(
                "{what} belongs to another run: `{key}` was {was}, now it is {is}; \
                 resume with the same settings or choose another --output"
            );
        }
    }
    Ok(())
}
