//! What a run tells whoever watches it.

use serde::{Deserialize, Serialize};

use crate::eval::Accuracy;
use crate::hub::Watch;

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Epoch, from 1.
    pub epoch: usize,
    /// Steps taken in all.
    pub step: usize,
    /// Learning rate of the classifier at its last step.
    pub lr: f64,
    /// Learning rate of the prompts.
    pub prompt_lr: f64,
    /// Mean loss over the epoch's images, while they were trained on.
    pub train_loss: f64,
    /// Share of right predictions among them, in percent.
    pub train_top1: f64,
    /// On held-out images.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub val: Option<Accuracy>,
    /// On the test split, where the user asked to watch it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub test: Option<Accuracy>,
    /// Training images a second.
    pub images_per_second: f64,
    /// Seconds of training so far.
    pub seconds: f64,
}

/// What happens in a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// Something to know before it starts: model, data, method, in order.
    Plan(&'a str),
    /// A part of a file of the backbone's has been downloaded.
    Download {
        /// Its name.
        file: &'a str,
        /// Bytes that are there.
        done: u64,
        /// Bytes in all.
        size: u64,
    },
    /// Work over a number of images begins: an epoch, a pass of evaluation.
    Begin {
        /// What it is called.
        what: &'a str,
        /// How many images.
        images: usize,
        /// How many of them are done already (a resumed epoch).
        done: usize,
    },
    /// Some of it is done.
    Advance {
        /// Images done so far.
        done: usize,
        /// Running loss and accuracy, while training.
        running: Option<(f64, f64)>,
    },
    /// An epoch is over.
    Epoch(&'a EpochRecord, usize),
    /// Something went wrong that does not stop the run.
    Warning(&'a str),
}

/// Watches a run and may stop it.
pub trait Observer {
    /// Hear of an event.
    fn event(&mut self, event: Event<'_>);

    /// Whether to stop at the next safe point.
    fn stop(&self) -> bool {
        false
    }
}

/// Downloads, as a run's observer hears of them.
pub(crate) struct Downloads<'a>(pub(crate) &'a mut dyn Observer);

impl Watch for Downloads<'_> {
    fn download(&mut self, file: &str, done: u64, size: u64) {
        self.0.event(Event::Download { file, done, size });
    }

    fn warn(&mut self, line: &str) {
        self.0.event(Event::Warning(line));
    }

    fn stop(&self) -> bool {
        self.0.stop()
    }
}

/// Hears nothing, stops nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&mut self, _event: Event<'_>) {}
}
