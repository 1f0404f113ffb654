//! How long a training step or a prediction takes, and how much memory.

use std::time::Instant;

use burn::tensor::{Distribution, Tensor};
use serde::Serialize;

use crate::backbone::Loaded;
use crate::method::{MethodConfig, Site};
use crate::model::{Frozen, Predictor};
use crate::system;
use crate::train::optim::{Optim, OptimizerKind, Rates};
use crate::train::setup::init_params;
use crate::train::step::{Input, Stepper};
use crate::{Error, Result};

/// What to measure.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// The method in the network.
    pub method: MethodConfig,
    /// Images a step.
    pub batch_size: usize,
    /// Classes of the new classifier.
    pub classes: usize,
    /// Counted steps.
    pub steps: usize,
    /// Steps before, not counted.
    pub warmup: usize,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// The network.
    pub backbone: String,
    /// The method.
    pub method: &'static str,
    /// `train` or `infer`.
    pub mode: &'static str,
    /// Images a step.
    pub batch_size: usize,
    /// Median time of a step in milliseconds.
    pub step_ms: f64,
    /// The quickest step.
    pub step_ms_min: f64,
    /// The slowest step.
    pub step_ms_max: f64,
    /// At the median.
    pub images_per_second: f64,
    /// Peak resident memory of the process, weights included.
    pub peak_rss_mb: Option<f64>,
}

/// Time training steps (forward, backward to prompts and head, update) on made-up images.
///
/// # Errors
/// The method does not fit, or `progress` stopped it.
pub fn train(
    loaded: &Loaded,
    options: &BenchOptions,
    progress: impl FnMut(usize) -> bool,
) -> Result<BenchReport> {
    let mut params = init_params(loaded, &options.method, options.classes, 0)?;
    let zero = Rates { prompt: 0.0, head: 0.0 };
    let mut optim = Optim::new(OptimizerKind::Sgd, 0.9, zero, params.iter().count());
    let frozen = Frozen::new(loaded);
    let pixels = made_up(loaded, options.batch_size);
    let labels: Vec<usize> = (0..options.batch_size).map(|i| i % options.classes).collect();
    // A tiny rate, so that prompts are not exactly zero and nothing diverges.
    let rates = Rates { prompt: 1e-4, head: 1e-4 };
    measure(loaded, options, "train", progress, || {
        let mut stepper = Stepper::new(&frozen, &options.method, Site::of(loaded));
        stepper.accumulate(&params, Input::Pixels(pixels.clone()), &labels);
        stepper.finish(&mut optim, rates, &mut params);
        // Reading one value back waits for the device.
        let first = params.iter().next().map(|p| p.value.clone().narrow(0, 0, 1).into_data());
        drop(first);
    })
}

/// Time predictions on made-up images, prompts built and folded beforehand.
///
/// # Errors
/// The method does not fit, or `progress` stopped it.
pub fn infer(
    loaded: &Loaded,
    options: &BenchOptions,
    progress: impl FnMut(usize) -> bool,
) -> Result<BenchReport> {
    let params = init_params(loaded, &options.method, options.classes, 0)?;
    let predictor = Predictor::adapted(loaded, &options.method, &params);
    let pixels = made_up(loaded, options.batch_size);
    measure(loaded, options, "infer", progress, || {
        drop(predictor.logits(pixels.clone()).into_data());
    })
}

fn made_up(loaded: &Loaded, batch: usize) -> Tensor<4> {
    let [h, w] = loaded.config.preprocess.image;
    loaded.device.seed(0);
    Tensor::random([batch, 3, h, w], Distribution::Uniform(0.0, 1.0), &loaded.device)
}

fn measure(
    loaded: &Loaded,
    options: &BenchOptions,
    mode: &'static str,
    mut progress: impl FnMut(usize) -> bool,
    mut step: impl FnMut(),
) -> Result<BenchReport> {
    let mut times = Vec::with_capacity(options.steps);
    for i in 0..options.warmup + options.steps {
        let start = Instant::now();
        step();
        if i >= options.warmup {
            times.push(1000.0 * start.elapsed().as_secs_f64());
        }
        if !progress(i + 1) {
            return Err(Error::Interrupted("benchmark was stopped".into()));
        }
    }
    times.sort_by(f64::total_cmp);
    let step_ms = f64::midpoint(times[(times.len() - 1) / 2], times[times.len() / 2]);
    Ok(BenchReport {
        backbone: loaded.config.name.clone(),
        method: options.method.name(),
        mode,
        batch_size: options.batch_size,
        step_ms,
        step_ms_min: times[0],
        step_ms_max: times[times.len() - 1],
        images_per_second: 1000.0 * options.batch_size as f64 / step_ms,
        peak_rss_mb: system::peak_rss_mb(),
    })
}
