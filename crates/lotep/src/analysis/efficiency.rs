//! What adapting cost: LoTeP's table 4 (`spec/methods.md` 0 and 1.4) for finished runs, from their result files, with the
//! latency of predictions measured here and now.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::train::{Outcome, RunDir};
use crate::{Error, Result, bail, input_error};

/// A finished run.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its directory.
    pub dir: PathBuf,
    /// What came out.
    pub outcome: Outcome,
}

/// Read the result of the run in `dir`.
///
/// # Errors
/// There is none (the run has not ended, or is none), or it is damaged.
pub fn finished(dir: &Path) -> Result<Finished> {
    let path = RunDir::new(dir).result();
    let text = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let begun = RunDir::new(dir).config().exists();
            if begun {
                bail!("{} holds a run that has not ended: continue it with --resume", dir.display());
            }
            bail!("{} holds no run: a directory that `lotep train` wrote is expected", dir.display());
        }
        read => read.map_err(Error::io("read", &path))?,
    };
    let outcome = serde_json::from_str(&text)
        .map_err(|e| input_error!("{} is damaged, or not a result of lotep: {e}", path.display()))?;
    Ok(Finished { dir: dir.to_owned(), outcome })
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// The run's directory.
    pub run: String,
    /// The network.
    pub backbone: String,
    /// The method.
    pub method: String,
    /// Epochs trained.
    pub epochs: usize,
    /// Images a step.
    pub batch_size: usize,
    /// Seconds of training.
    pub seconds: f64,
    /// Trainable parameters.
    pub parameters: usize,
    /// Of these, in prompts.
    pub prompt_parameters: usize,
    /// Peak resident memory in training.
    pub peak_rss_mb: Option<f64>,
    /// Median time of a prediction, where it was measured.
    pub latency_ms: Option<f64>,
    /// Test accuracy in percent.
    pub top1: Option<f64>,
    /// How it came about.
    pub protocol: String,
}

impl From<&Finished> for Cost {
    fn from(f: &Finished) -> Self {
        let (run, train) = (&f.outcome.run, &f.outcome.train);
        Self {
            run: f.dir.display().to_string(),
            backbone: run.backbone.clone(),
            method: run.config.method.name().into(),
            epochs: run.config.epochs,
            batch_size: run.config.batch_size,
            seconds: train.seconds,
            parameters: train.trainable_parameters,
            prompt_parameters: train.prompt_parameters,
            peak_rss_mb: train.peak_rss_mb,
            latency_ms: None,
            top1: train.test.map(|a| a.top1),
            protocol: run.protocol.clone(),
        }
    }
}
