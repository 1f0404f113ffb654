//! Train a small CLIP from nothing on drawn pictures and sentences about them, so that what its methods do can be seen
//! where no published weights are.
//!
//! A step takes as many classes as there are images, each once: no sentence fits another image. Sentences are the sixty
//! that consistency asks the frozen tower for, so that it knows their words.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use rand::seq::index;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::backbone::{
    Architecture, Backbone, ModelConfig, NoHooks, TextConfig, TextHints, TextTower, Vit, VitConfig, Weights,
};
use crate::draw::{Task, picture};
use crate::eval::{Accuracy, Tally};
use crate::head::unit;
use crate::ops::{Nonlinearity, Precision};
use crate::params::{Group, Params};
use crate::safetensors::{NamedTensor, serialize};
use crate::text::{Tokenizer, learn, templates};
use crate::train::loss::cross_entropy_sum;
use crate::train::optim::{Optim, OptimizerKind, Rates};
use crate::train::{Event, Observer, Schedule};
use crate::{Error, Result, bail, input_error, write_atomic};

/// How to pretrain.
#[derive(Clone, Copy, Debug)]
pub struct ClipOptions {
    /// Steps.
    pub steps: usize,
    /// Pictures with their sentences a step, up to the number of classes.
    pub batch_size: usize,
    /// Peak learning rate of AdamW.
    pub lr: f64,
    /// Seed of weights, pictures and sentences.
    pub seed: u64,
}

/// The image tower: 16 patches of 8 × 8 pixels.
const SIDE: usize = 32;
const FEATURES: usize = 48;
const WIDTH: usize = 64;
/// OpenAI's start of the scale, and the most it may be.
const SCALE: [f64; 2] = [1.0 / 0.07, 100.0];
/// Pictures drawn for training have lower numbers.
const HELD_OUT: u64 = 1 << 40;

fn image_tower() -> VitConfig {
    let shape = VitConfig::new([SIDE; 2], 8, WIDTH, 4, 4);
    VitConfig { clip: true, nonlinearity: Nonlinearity::QuickGelu, ..shape }
}

/// Both towers' shapes and their words.
struct Towers {
    image: VitConfig,
    text: TextConfig,
    sentences: Vec<String>,
    tokenizer: Tokenizer,
    merges: Vec<(String, String)>,
}

impl Towers {
    fn new(dir: &Path) -> Result<Self> {
        let sentences = templates::sixty();
        let names = Task::Words.classes();
        let texts: Vec<String> = sentences
            .iter()
            .map(String::as_str)
            .chain(names.iter().copied())
            .map(|t| t.replace("{}", ""))
            .collect();
        let words =
            texts.iter().flat_map(|t| t.split(|c: char| !c.is_alphabetic())).filter(|w| !w.is_empty());
        let merges = learn::merges(words);
        learn::write(&merges, dir)?;
        let text = TextConfig {
            vocabulary: learn::size(&merges),
            context: 24,
            width: WIDTH,
            depth: 3,
            heads: 4,
            features: FEATURES,
            nonlinearity: Nonlinearity::QuickGelu,
        };
        let tokenizer = Tokenizer::open(dir, text.vocabulary)?;
        Ok(Self { image: image_tower(), text, sentences, tokenizer, merges })
    }

    fn build(&self, weights: &Weights) -> Result<(Vit, TextTower)> {
        let image = Vit::load(&self.image, FEATURES, weights, Precision::F32)?;
        Ok((image, TextTower::load(&self.text, self.text.context, weights, Precision::F32)?))
    }

    fn texts(&self, tower: &TextTower, texts: &[String]) -> Result<Tensor<2>> {
        let tokens =
            texts.iter().map(|t| self.tokenizer.encode(t, self.text.context)).collect::<Result<Vec<_>>>()?;
        let ends: Vec<usize> = tokens.iter().map(|t| t.len() - 1).collect();
        Ok(unit(tower.features(tower.embed(&tokens), &ends, &NoHooks)))
    }
}

fn images(tower: &Vit, pixels: Tensor<4>) -> Result<Tensor<2>> {
    let head = tower.head().ok_or_else(|| input_error!("the image tower has no projection"))?;
    Ok(unit(head.forward(tower.features(pixels, &NoHooks))))
}

/// The name of the scale's logarithm, and of the bias that CLIP's projection has not.
const LOGIT_SCALE: &str = "logit_scale";
const NO_BIAS: &str = "head.bias";

/// Train, write a directory that loads as any CLIP does, and give the accuracy of zero-shot classification of pictures not
/// trained on.
///
/// # Errors
/// The loss diverges, the observer stops it, or `output` can't be written.
pub fn pretrain_clip(options: &ClipOptions, output: &Path, observer: &mut dyn Observer) -> Result<Accuracy> {
    let names = Task::Words.classes();
    if !(2..=names.len()).contains(&options.batch_size) {
        bail!(
            "batches of {} pictures; 2 to {}, the number of classes, are possible",
            options.batch_size,
            names.len()
        );
    }
    // Towers and words are the same for every seed: what is written first is nothing that was learnt.
    std::fs::create_dir_all(output).map_err(Error::io("create", output))?;
    let towers = Towers::new(output)?;
    let device = Device::flex();
    let initial = Weights::random(options.seed, &device).tracked();
    towers.build(&initial)?;
    let shapes = initial.taken();
    let mut params = Params::default();
    for (name, leaf) in initial.leaves() {
        let mut values: Vec<f32> = leaf.without_autodiff().into_data().iter::<f32>().collect();
        let group = if name == NO_BIAS { Group::Fixed } else { Group::Head };
        if group == Group::Fixed {
            values.fill(0.0);
        }
        params.push(name.clone(), &shapes[&name], group, values, &device);
    }
    params.push(LOGIT_SCALE, &[1], Group::Head, vec![SCALE[0].ln() as f32], &device);
    let weights = |params: &Params, device: &Device| {
        let tensors: BTreeMap<_, _> = params.iter().map(|p| (p.name.clone(), p.value.clone())).collect();
        Weights::from_tensors(tensors, device)
    };
    let decay = Rates { prompt: 0.0, head: 0.05 };
    let mut optim = Optim::new(OptimizerKind::AdamW, 0.9, decay, params.learnt().count());
    let autodiff = device.clone().autodiff();
    let total = options.steps * options.batch_size;
    observer.event(Event::Begin { what: "pretrain", images: total, done: 0 });
    let (mut loss_mean, mut top1) = (0.0, 0.0);
    let labels: Vec<usize> = (0..options.batch_size).collect();
    for step in 0..options.steps {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        rng.set_stream(step as u64 + 1);
        let classes = index::sample(&mut rng, names.len(), options.batch_size).into_vec();
        let sentence = |class: &usize| {
            let template = &towers.sentences[rng.random_range(0..towers.sentences.len())];
            templates::fill(template, names[*class])
        };
        let texts: Vec<String> = classes.iter().map(sentence).collect();
        let pixels = draw(options.seed, step as u64, &classes, &autodiff);
        let leaves = params.leaves();
        let (image, text) = towers.build(&weights(&leaves, &autodiff))?;
        let (image, text) = (images(&image, pixels)?, towers.texts(&text, &texts)?);
        let scale = leaves.get::<1>(LOGIT_SCALE).exp();
        let logits = image.matmul(text.transpose()) * scale.unsqueeze();
        let both = cross_entropy_sum(logits.clone(), &labels)
            + cross_entropy_sum(logits.clone().transpose(), &labels);
        let loss = both / (2 * options.batch_size) as f64;
        let value = loss.clone().without_autodiff().into_data().iter::<f64>().sum::<f64>();
        if !value.is_finite() {
            bail!("the loss became {value} at step {}: lower the learning rate of {}", step + 1, options.lr);
        }
        let mut tally = Tally::default();
        let scores: Vec<f32> = logits.without_autodiff().into_data().iter::<f32>().collect();
        tally.add(&scores, options.batch_size, &labels);
        let keep = if step == 0 { 0.0 } else { 0.95 };
        loss_mean = keep * loss_mean + (1.0 - keep) * value;
        top1 = keep * top1 + (1.0 - keep) * tally.accuracy().top1;
        let mut tape = loss.backward();
        let grads = leaves
            .learnt()
            .map(|p| {
                let zeros = || p.value.clone().without_autodiff().zeros_like();
                p.value.grad_remove(&mut tape).unwrap_or_else(zeros)
            })
            .collect();
        let rate = options.lr * Schedule::Cosine.factor(step + 1, options.steps + 1, options.steps / 20);
        optim.step(Rates { prompt: rate, head: rate }, &mut params, grads);
        for scale in params.iter_mut().filter(|p| p.name == LOGIT_SCALE) {
            scale.value = scale.value.clone().clamp_max(SCALE[1].ln());
        }
        let done = (step + 1) * options.batch_size;
        observer.event(Event::Advance { done, running: Some((loss_mean, top1)) });
        if observer.stop() {
            return Err(Error::Interrupted("pretraining was stopped; no network was written".into()));
        }
    }
    let accuracy = zero_shot(options, &towers, &weights(&params, &device), &device)?;
    write(&params, &towers, output)?;
    Ok(accuracy)
}

/// Pictures of these classes, normalised; those of other steps are others.
fn draw(seed: u64, step: u64, classes: &[usize], device: &Device) -> Tensor<4> {
    use rayon::prelude::*;
    let count = classes.len();
    let drawn: Vec<_> = classes
        .par_iter()
        .enumerate()
        .map(|(i, class)| picture(seed, step * count as u64 + i as u64, *class, SIDE))
        .collect();
    let p = Architecture::Vit(image_tower()).preprocess(FEATURES);
    let mut values = Vec::with_capacity(count * 3 * SIDE * SIDE);
    for image in &drawn {
        for channel in 0..3 {
            let normal = |v: &u8| (f32::from(*v) / 255.0 - p.mean[channel]) / p.std[channel];
            values.extend(image.rgb.iter().skip(channel).step_by(3).map(normal));
        }
    }
    Tensor::from_data(TensorData::new(values, [count, 3, SIDE, SIDE]), device)
}

/// Accuracy on eight pictures of each class that were not trained on.
fn zero_shot(options: &ClipOptions, towers: &Towers, weights: &Weights, device: &Device) -> Result<Accuracy> {
    let names = Task::Words.classes();
    let (image, text) = towers.build(weights)?;
    let sentences: Vec<String> = names.iter().map(|name| templates::fill(templates::PLAIN, name)).collect();
    let vectors = towers.texts(&text, &sentences)?.transpose();
    let classes: Vec<usize> = (0..names.len()).collect();
    let mut tally = Tally::default();
    for step in 0..8 {
        let features = images(&image, draw(options.seed, HELD_OUT + step, &classes, device))?;
        let scores: Vec<f32> = features.matmul(vectors.clone()).into_data().iter::<f32>().collect();
        tally.add(&scores, names.len(), &classes);
    }
    Ok(tally.accuracy())
}

fn write(params: &Params, towers: &Towers, output: &Path) -> Result<()> {
    let mut tensors: Vec<NamedTensor> = params.to_named();
    for tensor in tensors.iter_mut().filter(|t| t.name == LOGIT_SCALE) {
        tensor.shape.clear();
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let architecture = Architecture::Vit(towers.image.clone());
    let mut preprocess = architecture.preprocess(FEATURES);
    preprocess.crop_pct = 1.0;
    let hints = TextHints { heads: Some(towers.text.heads), nonlinearity: None };
    let name = format!("vit_tiny_patch8_clip_quickgelu_{SIDE}");
    let config = ModelConfig { name, architecture, classes: FEATURES, preprocess, text: hints };
    let json = serde_json::to_vec_pretty(&config.to_hub())
        .map_err(|e| input_error!("cannot write config.json: {e}"))?;
    learn::write(&towers.merges, output)?;
    write_atomic(&output.join("model.safetensors"), &serialize(&tensors, Some(("format", "pt".into())))?)?;
    write_atomic(&output.join("config.json"), &json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::{LoadOptions, load};
    use crate::train::Silent;

    /// What is written loads as any CLIP, and reads every word of its sentences as one token.
    #[test]
    fn what_is_written_is_a_clip() {
        let dir = tempfile::tempdir().unwrap();
        let options = ClipOptions { steps: 2, batch_size: 4, lr: 0.001, seed: 0 };
        let accuracy = pretrain_clip(&options, dir.path(), &mut Silent).unwrap();
        assert_eq!(accuracy.images, 8 * 80);
        let loaded = load(&LoadOptions::plain(dir.path().to_string_lossy()), &mut ()).unwrap();
        let words = loaded.words().unwrap();
        assert!((f64::from(words.scale) - SCALE[0]).abs() < 0.2, "{}", words.scale);
        let texts: Vec<String> =
            templates::sixty().iter().map(|t| templates::fill(t, "pink trio of rings")).collect();
        for (text, tokens) in texts.iter().zip(words.encode(&texts).unwrap()) {
            let words = text.replace('-', " - ").replace('.', " . ").split_whitespace().count();
            assert_eq!(tokens.len(), words + 2, "{text}");
        }
        let refused = ClipOptions { batch_size: 81, ..options };
        let error = pretrain_clip(&refused, dir.path(), &mut Silent).unwrap_err().to_string();
        assert!(error.contains("2 to 80"), "{error}");
    }
}
