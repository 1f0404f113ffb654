//! How long a training step, a prediction or the reading of images takes, and how much memory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::{Distribution, Tensor};
use serde::Serialize;

use crate::backbone::Loaded;
use crate::data::{
    Augment, Dataset, Loader, LoaderConfig, OnCorrupt, Sample, Source, Transform, list_images,
};
use crate::head::{Head, SharedTexts};
use crate::method::{LinearProbe, Method, MethodConfig, Site};
use crate::model::{Frozen, Predictor};
use crate::system;
use crate::train::optim::{Optim, OptimizerKind, Rates};
use crate::train::setup::{class_texts, init_params};
use crate::train::step::{Input, Stepper, pixel_gradient};
use crate::{Error, Result};

/// What to measure.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// What adapts the network; `None` is the network alone, whose training step goes back to the pixels. Several
    /// take turns, step by step, so that what a shared machine does to one it does to all.
    pub methods: Vec<Option<MethodConfig>>,
    /// Images a step.
    pub batch_size: usize,
    /// Classes of the new classifier.
    pub classes: usize,
    /// Counted steps of each method.
    pub steps: usize,
    /// Steps of each method before, not counted.
    pub warmup: usize,
}

/// What was measured of one method.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// The network.
    pub backbone: String,
    /// The method, or `none`.
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
    /// Peak resident memory of the process in MiB, weights included. Only where one method was measured: a process
    /// does not tell whose memory it is.
    pub peak_rss_mb: Option<f64>,
    /// How the time compares with the first method's; absent from the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<Ratio>,
}

/// Times of steps over those of another method, each pair taken in the same round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// The other method.
    pub to: &'static str,
    /// The median ratio; above 1 is slower.
    pub median: f64,
    /// The lower quartile.
    pub low: f64,
    /// The upper quartile.
    pub high: f64,
}

/// Time training steps (forward, backward to prompts and head, update) on made-up images.
///
/// # Errors
/// A method does not fit, or `progress`, which hears how many steps are done, stopped it.
pub fn train(
    loaded: &Loaded,
    options: &BenchOptions,
    progress: impl FnMut(usize) -> bool,
) -> Result<Vec<BenchReport>> {
    let frozen = Frozen::new(loaded);
    let labels: Vec<usize> = (0..options.batch_size).map(|i| i % options.classes).collect();
    // A tiny rate, so that prompts are not exactly zero and nothing diverges.
    let rates = Rates { prompt: 1e-4, head: 1e-4 };
    let (frozen, labels) = (&frozen, &labels);
    let steps = options.methods.iter().map(|method| -> Result<Step<'_>> {
        let mut params = adapted_params(loaded, method.as_ref(), options)?;
        let pixels = made_up(loaded, method.as_ref(), options.batch_size);
        let Some(method) = method else {
            return Ok(Box::new(move || {
                pixel_gradient(frozen, &params, &pixels, labels);
                Ok(())
            }));
        };
        let texts = texts(loaded, method, options)?;
        let zero = Rates { prompt: 0.0, head: 0.0 };
        let mut optim = Optim::new(OptimizerKind::Sgd, 0.9, zero, params.learnt().count());
        Ok(Box::new(move || {
            let stepper = Stepper::seeded(frozen, method, head(method), Site::of(loaded), 0);
            let mut stepper = stepper.with_texts(texts.as_deref());
            stepper.accumulate(&params, Input::Pixels(pixels.clone()), labels)?;
            stepper.finish(&mut optim, rates, &mut params);
            // Reading one value back waits for the device.
            let first = params.iter().next().map(|p| p.value.clone().narrow(0, 0, 1).into_data());
            drop(first);
            Ok(())
        }))
    });
    measure(loaded, options, "train", steps.collect::<Result<_>>()?, progress)
}

/// Time predictions on made-up images, prompts built and folded beforehand.
///
/// # Errors
/// As [`train`].
pub fn infer(
    loaded: &Loaded,
    options: &BenchOptions,
    progress: impl FnMut(usize) -> bool,
) -> Result<Vec<BenchReport>> {
    let steps = options.methods.iter().map(|method| -> Result<Step<'_>> {
        let params = adapted_params(loaded, method.as_ref(), options)?;
        let pixels = made_up(loaded, method.as_ref(), options.batch_size);
        let method = method.as_ref().unwrap_or(&PLAIN);
        let texts = texts(loaded, method, options)?;
        let predictor = Predictor::adapted(loaded, method, head(method), &params, texts.as_ref())?;
        Ok(Box::new(move || {
            drop(predictor.logits(pixels.clone()).into_data());
            Ok(())
        }))
    });
    measure(loaded, options, "infer", steps.collect::<Result<_>>()?, progress)
}

/// The method that adds nothing to the network but a classifier.
const PLAIN: MethodConfig = MethodConfig::LinearProbe(LinearProbe {});

fn adapted_params(
    loaded: &Loaded,
    method: Option<&MethodConfig>,
    options: &BenchOptions,
) -> Result<crate::params::Params> {
    let method = method.unwrap_or(&PLAIN);
    init_params(loaded, method, head(method), options.classes, 0)
}

/// Texts about made-up classes, where their names score them.
fn texts(loaded: &Loaded, method: &MethodConfig, options: &BenchOptions) -> Result<Option<SharedTexts>> {
    let names: Vec<String> = (0..options.classes).map(|i| format!("thing number {i}")).collect();
    class_texts(loaded, method, head(method), &names)
}

fn head(method: &MethodConfig) -> Head {
    Head { mapping: method.default_mapping(), sources: 1 }
}

fn made_up(loaded: &Loaded, method: Option<&MethodConfig>, batch: usize) -> Tensor<4> {
    let [h, w] = method.unwrap_or(&PLAIN).input(loaded.config.preprocess.image);
    loaded.device.seed(0);
    Tensor::random([batch, 3, h, w], Distribution::Uniform(0.0, 1.0), &loaded.device)
}

/// One step of a method.
type Step<'a> = Box<dyn FnMut() -> Result<()> + 'a>;

fn measure(
    loaded: &Loaded,
    options: &BenchOptions,
    mode: &'static str,
    mut steps: Vec<Step<'_>>,
    mut progress: impl FnMut(usize) -> bool,
) -> Result<Vec<BenchReport>> {
    // A row a method, a column a round.
    let mut times = vec![Vec::with_capacity(options.steps); steps.len()];
    for round in 0..options.warmup + options.steps {
        for turn in 0..steps.len() {
            // To and fro, so that a machine that gets slower favours neither the first nor the last.
            let method = if round % 2 == 0 { turn } else { steps.len() - 1 - turn };
            let start = Instant::now();
            steps[method]()?;
            if round >= options.warmup {
                times[method].push(1000.0 * start.elapsed().as_secs_f64());
            }
            if !progress(round * steps.len() + turn + 1) {
                return Err(Error::Interrupted("benchmark was stopped".into()));
            }
        }
    }
    let name = |method: usize| options.methods[method].as_ref().map_or("none", MethodConfig::name);
    let peak_rss_mb = if steps.len() == 1 { system::peak_rss_mb() } else { None };
    let report = |method: usize| {
        let step_ms = quantile(&times[method], 0.5);
        let ratios: Vec<f64> = times[method].iter().zip(&times[0]).map(|(a, b)| a / b).collect();
        BenchReport {
            backbone: loaded.config.name.clone(),
            method: name(method),
            mode,
            batch_size: options.batch_size,
            step_ms,
            step_ms_min: quantile(&times[method], 0.0),
            step_ms_max: quantile(&times[method], 1.0),
            images_per_second: 1000.0 * options.batch_size as f64 / step_ms,
            peak_rss_mb,
            ratio: (method > 0).then(|| Ratio {
                to: name(0),
                median: quantile(&ratios, 0.5),
                low: quantile(&ratios, 0.25),
                high: quantile(&ratios, 0.75),
            }),
        }
    };
    Ok((0..steps.len()).map(report).collect())
}

/// The value below which a share `q` of `values` lies, between two of them in proportion; NaN if there are none.
fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = q * sorted.len().saturating_sub(1) as f64;
    let (below, share) = (at.floor(), at.fract());
    match sorted.get(below as usize..) {
        Some([low, high, ..]) => low + share * (high - low),
        Some([last]) => *last,
        _ => f64::NAN,
    }
}

/// What reading images took.
#[derive(Clone, Debug, Serialize)]
pub struct DecodeReport {
    /// Always `decode`.
    pub mode: &'static str,
    /// Images in each pass.
    pub images: usize,
    /// Threads that decoded.
    pub threads: usize,
    /// Median over the passes.
    pub images_per_second: f64,
    /// The slowest pass.
    pub images_per_second_min: f64,
    /// The quickest pass.
    pub images_per_second_max: f64,
}

/// Time what training does to image files before the network sees them: read, decode, transform, batch. Files and
/// directories are taken as [`list_images`] does; every number of `threads` takes its turn in each of `passes`, after
/// one pass that is not counted and brings the files into memory.
///
/// # Errors
/// A file cannot be read or decoded, or `progress`, which hears how many images are done, stopped it.
pub fn decode(
    paths: &[PathBuf],
    transform: &Transform,
    threads: &[usize],
    passes: usize,
    mut progress: impl FnMut(usize) -> bool,
) -> Result<Vec<DecodeReport>> {
    const BATCH: usize = 32;
    let sample = |path: PathBuf| Sample { source: Source::File(path), label: 0 };
    let samples: Vec<Sample> = list_images(paths)?.into_iter().map(sample).collect();
    let images = samples.len();
    let data = Arc::new(Dataset::new("images".into(), vec![String::new()], samples));
    let loaders: Vec<Loader> = threads
        .iter()
        .map(|&workers| {
            let config = LoaderConfig {
                batch_size: BATCH,
                transform: transform.clone(),
                augment: Augment::None,
                workers,
                prefetch: 2,
                on_corrupt: OnCorrupt::Fail,
                cache_bytes: 0,
                drop_last: false,
            };
            Loader::new(Arc::clone(&data), config)
        })
        .collect();
    let mut rates = vec![Vec::with_capacity(passes); threads.len()];
    let mut done = 0;
    for pass in 0..=passes {
        for (loader, rates) in loaders.iter().zip(&mut rates) {
            let start = Instant::now();
            for batch in loader.in_order() {
                done += batch?.size;
                if !progress(done) {
                    return Err(Error::Interrupted("benchmark was stopped".into()));
                }
            }
            if pass > 0 {
                rates.push(images as f64 / start.elapsed().as_secs_f64());
            }
        }
    }
    let report = |(&threads, rates): (&usize, &Vec<f64>)| DecodeReport {
        mode: "decode",
        images,
        threads,
        images_per_second: quantile(rates, 0.5),
        images_per_second_min: quantile(rates, 0.0),
        images_per_second_max: quantile(rates, 1.0),
    };
    Ok(threads.iter().zip(&rates).map(report).collect())
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_lie_between_values() {
        for (values, q, want) in [
            (&[3.0, 1.0, 2.0][..], 0.0, 1.0),
            (&[3.0, 1.0, 2.0], 0.25, 1.5),
            (&[3.0, 1.0, 2.0], 1.0, 3.0),
            (&[4.0, 1.0, 2.0, 3.0], 0.5, 2.5),
            (&[7.0], 0.75, 7.0),
        ] {
            assert!((quantile(values, q) - want).abs() < 1e-12, "{values:?} {q}");
        }
        assert!(quantile(&[], 0.5).is_nan());
    }
}
