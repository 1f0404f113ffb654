//! Train a small network from nothing on drawn images: the recipe behind the demonstration's backbone.
//!
//! The batch norms stay at mean 0 and variance 1, so that they are plain scales and shifts: with the last one of
//! every block starting at zero, a network this shallow trains well without batch statistics.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};

use crate::backbone::{Backbone, ModelConfig, NoHooks, ResNet, Weights};
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
