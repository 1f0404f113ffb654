//! Train a small network from nothing on drawn images: the recipe behind the demonstration's backbone.
//!
//! The batch norms stay at mean 0 and variance 1, so that they are plain scales and shifts: with the last one of
//! every block starting at zero, a network this shallow trains well without batch statistics.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use burn::tensor::{Device, Tensor, TensorData};

use crate::backbone::{Activation, Backbone, Hooks, ModelConfig, NoHooks, ResNet, Weights};
use crate::draw::Task;
use crate::eval::{Accuracy, Tally};
use crate::ops::Precision;
use crate::params::{Group, Params};
use crate::safetensors::{NamedTensor, serialize};
use crate::train::loss::cross_entropy_sum;
use crate::train::optim::{Optim, OptimizerKind, Rates};
use crate::train::{Event, Observer, Schedule};
use crate::{Error, Result, bail, input_error, write_atomic};

/// How to pretrain.
#[derive(Clone, Debug)]
pub struct PretrainOptions {
    /// The network; its preprocessing says the image size.
    pub config: ModelConfig,
    /// Steps.
    pub steps: usize,
    /// Images a step, each drawn afresh.
    pub batch_size: usize,
    /// Peak learning rate of AdamW.
    pub lr: f64,
    /// Seed of weights and images.
    pub seed: u64,
}

/// The demonstration's network: a ResNet with narrow blocks, for drawn images of 48 pixels.
///
/// # Errors
/// Never in practice: the arguments are constants.
pub fn demo_network() -> Result<ModelConfig> {
    let mut config = ModelConfig::named("resnet18", Task::Pretrain.classes().len())?;
    let args = serde_json::json!({ "layers": [2, 2, 1, 1], "channels": [24, 32, 48, 80] });
    config.architecture =
        config.architecture.with_args(args.as_object().unwrap_or(&serde_json::Map::new()))?;
    config.preprocess.image = [48, 48];
    config.preprocess.crop_pct = 1.0;
    Ok(config)
}

/// Train on [`Task::Pretrain`], write timm's hub layout to `output`, and give the accuracy on images not trained on.
///
/// # Errors
/// The network is not a ResNet, the loss diverges, the observer stops it, or `output` can't be written.
pub fn pretrain(options: &PretrainOptions, output: &Path, observer: &mut dyn Observer) -> Result<Accuracy> {
    let config = &options.config;
    let crate::backbone::Architecture::ResNet(shape) = &config.architecture else {
        bail!("only a ResNet can be pretrained, not {}", config.name);
    };
    let device = Device::flex();
    let build = |weights: &Weights| ResNet::load(shape, config.classes, weights, Precision::F32);
    let initial = Weights::random(options.seed, &device).tracked();
    build(&initial)?;
    let shapes = initial.taken();
    let (mut params, mut buffers) = (Params::default(), BTreeMap::new());
    for (name, leaf) in initial.leaves() {
        let mut values: Vec<f32> = leaf.without_autodiff().into_data().iter::<f32>().collect();
        if name.contains(".running_") {
            let value = if name.ends_with("var") { 1.0 } else { 0.0 };
            buffers.insert(name, vec![value; values.len()]);
            continue;
        }
        if name.ends_with("bn2.weight") {
            values.fill(0.0);
        }
        params.push(name.clone(), &shapes[&name], Group::Head, values, &device);
    }
    let weights = |params: &Params, device: &Device| {
        let constant = |(name, values): (&String, &Vec<f32>)| {
            let data = TensorData::new(values.clone(), [values.len()]);
            (name.clone(), Tensor::<1>::from_data(data, device))
        };
        let mut tensors: BTreeMap<_, _> = buffers.iter().map(constant).collect();
        tensors.extend(params.iter().map(|p| (p.name.clone(), p.value.clone())));
        Weights::from_tensors(tensors, device)
    };
    let decay = Rates { prompt: 0.0, head: 0.01 };
    let mut optim = Optim::new(OptimizerKind::AdamW, 0.9, decay, params.iter().count());
    let autodiff = device.clone().autodiff();
    observer.event(Event::Begin { what: "pretrain", images: options.steps * options.batch_size, done: 0 });
    let (mut loss_mean, mut top1) = (0.0, 0.0);
    for step in 0..options.steps {
        let leaves = params.leaves();
        let (pixels, labels) =
            draw(options, (step * options.batch_size) as u64, options.batch_size, &autodiff);
        let network = build(&weights(&leaves, &autodiff))?;
        let logits = logits(&network, pixels)?;
        let loss = cross_entropy_sum(logits.clone(), &labels) / labels.len() as f64;
        let value = loss.clone().without_autodiff().into_data().iter::<f64>().sum::<f64>();
        if !value.is_finite() {
            bail!("the loss became {value} at step {}: lower the learning rate of {}", step + 1, options.lr);
        }
        let mut tally = Tally::default();
        let scores: Vec<f32> = logits.without_autodiff().into_data().iter::<f32>().collect();
        tally.add(&scores, config.classes, &labels);
        let keep = if step == 0 { 0.0 } else { 0.95 };
        loss_mean = keep * loss_mean + (1.0 - keep) * value;
        top1 = keep * top1 + (1.0 - keep) * tally.accuracy().top1;
        let mut tape = loss.backward();
        let grads = leaves
            .iter()
            .map(|p| {
                p.value
                    .grad_remove(&mut tape)
                    .unwrap_or_else(|| p.value.clone().without_autodiff().zeros_like())
            })
            .collect();
        let rate = options.lr * Schedule::Cosine.factor(step + 1, options.steps + 1, options.steps / 20);
        optim.step(Rates { prompt: rate, head: rate }, &mut params, grads);
        let done = (step + 1) * options.batch_size;
        observer.event(Event::Advance { done, running: Some((loss_mean, top1)) });
        if observer.stop() {
            return Err(Error::Interrupted("pretraining was stopped; nothing was written".into()));
        }
    }
    let network = build(&weights(&params, &device))?;
    let scales = scales(&network, draw(options, 1 << 41, 256, &device).0);
    rescale(&mut params, &scales);
    let network = build(&weights(&params, &device))?;
    let mut tally = Tally::default();
    for batch in 0..16_u64 {
        // Far above the indices that training draws.
        let (pixels, labels) = draw(options, (1 << 40) + batch * 64, 64, &device);
        let scores: Vec<f32> = logits(&network, pixels)?.into_data().iter::<f32>().collect();
        tally.add(&scores, config.classes, &labels);
    }
    let mut tensors = params.to_named();
    tensors.extend(buffers.into_iter().map(|(name, values)| NamedTensor {
        shape: vec![values.len()],
        name,
        values,
    }));
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let json = serde_json::to_vec_pretty(&config.to_hub())
        .map_err(|e| input_error!("cannot write config.json: {e}"))?;
    write_atomic(&output.join("model.safetensors"), &serialize(&tensors, Some(("format", "pt".into())))?)?;
    write_atomic(&output.join("config.json"), &json)?;
    Ok(tally.accuracy())
}

/// Factors that bring the root mean square of what leaves the stem (first) and each stage to one.
fn scales(network: &ResNet, pixels: Tensor<4>) -> Vec<f64> {
    struct Record(Mutex<Vec<f64>>);
    impl Record {
        fn note(&self, x: &Activation) {
            let Activation::Map(x) = x else { return };
            let mean_square = x.clone().square().mean().into_data().iter::<f64>().sum::<f64>();
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(mean_square.sqrt().recip());
        }
    }
    impl Hooks for Record {
        fn entrance(&self, block: usize, x: Activation) -> Activation {
            if block == 0 {
                self.note(&x);
            }
            x
        }
        fn watches(&self) -> bool {
            true
        }

        fn exit(&self, _block: usize, x: &Activation) {
            self.note(x);
        }
    }
    let record = Record(Mutex::default());
    network.features(pixels, &record);
    let found = record.0.into_inner().unwrap_or_else(PoisonError::into_inner);
    // The blocks of a stage share one scale, the last one's: their shortcuts are identities.
    let mut scales = vec![found[0]; 5];
    for (name, scale) in network.block_names().iter().zip(&found[1..]) {
        scales[stage(name)] = *scale;
    }
    scales
}

/// The stage, from 1, of a block or of a weight in it; 0 for the stem.
fn stage(name: &str) -> usize {
    let digit = name.strip_prefix("layer").and_then(|rest| rest.chars().next());
    digit.and_then(|d| d.to_digit(10)).map_or(0, |d| d as usize)
}

/// Scale the stem's output by `scales[0]` and each stage's by its own factor, logits unchanged.
///
/// Without batch statistics activations grow as training likes; a network that people pretrain has them around one,
/// and learning rates are tuned to that. ReLU networks are homogeneous, so the change is exact: a norm that reads
/// activations scaled by `from` and is to put out `to` takes its weight times `to / from` and its bias times `to`.
fn rescale(params: &mut Params, scales: &[f64]) {
    for param in params.iter_mut() {
        let (stage, name) = (stage(&param.name), param.name.as_str());
        let into = if name.contains(".0.") { scales[stage.saturating_sub(1)] } else { scales[stage] };
        let (from, to) = match name {
            _ if name.contains(".running_") => continue,
            _ if name.starts_with("bn1.") => (1.0, scales[0]),
            _ if name.starts_with("fc.") => (scales[4], 1.0),
            _ if name.contains(".bn1.") => (into, into),
            _ if name.contains(".bn2.") || name.contains(".downsample.1.") => (into, scales[stage]),
            _ => continue,
        };
        let is_bias = name.rsplit('.').next() == Some("bias");
        let factor = if is_bias { to } else { to / from };
        param.value = param.value.clone() * factor;
    }
}

fn logits(network: &ResNet, pixels: Tensor<4>) -> Result<Tensor<2>> {
    let features = network.features(pixels, &NoHooks);
    let head = network.head().ok_or_else(|| input_error!("the network has no classifier to train"))?;
    Ok(head.forward(features))
}

/// Images `first..first + count`, normalised, and their labels.
fn draw(options: &PretrainOptions, first: u64, count: usize, device: &Device) -> (Tensor<4>, Vec<usize>) {
    use rayon::prelude::*;
    let p = &options.config.preprocess;
    let side = p.image[0];
    let images: Vec<_> = (0..count as u64)
        .into_par_iter()
        .map(|i| Task::Pretrain.image(options.seed, first + i, side))
        .collect();
    let mut values = Vec::with_capacity(count * 3 * side * side);
    for (image, _) in &images {
        for channel in 0..3 {
            let normal = |v: &u8| (f32::from(*v) / 255.0 - p.mean[channel]) / p.std[channel];
            values.extend(image.rgb.iter().skip(channel).step_by(3).map(normal));
        }
    }
    let labels = images.iter().map(|(_, label)| *label).collect();
    (Tensor::from_data(TensorData::new(values, [count, 3, side, side]), device), labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::assert_close;
    use crate::params::normal;
    use rand::SeedableRng;

    /// Rescaling leaves the logits alone and brings every stage to one.
    #[test]
    fn rescaling_is_exact() {
        let device = Device::flex();
        let config = demo_network().unwrap();
        let crate::backbone::Architecture::ResNet(shape) = &config.architecture else { panic!() };
        let initial = Weights::random(0, &device).tracked();
        ResNet::load(shape, config.classes, &initial, Precision::F32).unwrap();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        let mut params = Params::default();
        for (name, shape) in initial.taken() {
            let n = shape.iter().product();
            let values = match name.as_str() {
                _ if name.ends_with("running_var") => vec![1.0; n],
                _ if name.ends_with("running_mean") => vec![0.0; n],
                _ => normal(n, 0.3, &mut rng),
            };
            params.push(name, &shape, Group::Head, values, &device);
        }
        let build = |params: &Params| {
            let tensors = params.iter().map(|p| (p.name.clone(), p.value.clone())).collect();
            let weights = Weights::from_tensors(tensors, &device);
            ResNet::load(shape, config.classes, &weights, Precision::F32).unwrap()
        };
        let options = PretrainOptions { config: config.clone(), steps: 1, batch_size: 8, lr: 0.0, seed: 0 };
        let (pixels, _) = draw(&options, 0, 8, &device);
        let values =
            |n: &ResNet| logits(n, pixels.clone()).unwrap().into_data().iter::<f32>().collect::<Vec<_>>();
        let before = build(&params);
        rescale(&mut params, &scales(&before, pixels.clone()));
        let after = build(&params);
        assert_close(&values(&after), &values(&before), 1e-4, "logits");
        let again = scales(&after, pixels.clone());
        assert!(again.iter().all(|s| (s - 1.0).abs() < 1e-3), "{again:?}");
    }
}
