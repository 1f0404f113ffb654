//! One optimisation step: forward, loss, gradients of prompts and head, update.

use burn::tensor::{Gradients, Tensor};

use super::loss::{cross_entropy_sum, label_ranks};
use super::optim::{Optim, Rates};
use super::text_step::TextStage;
use crate::Result;
use crate::backbone::NoHooks;
use crate::head::{ClassTexts, Head, linear};
use crate::method::{Method, MethodConfig, Site, full};
use crate::model::Frozen;
use crate::ops::{Training, is_cpu};
use crate::params::Params;

/// Images that go through the network together on the CPU.
const MICRO_BATCH: usize = 8;

/// What goes into a step: pixels `[B, 3, H, W]`, or features `[B, F]` that no prompt changes.
pub(crate) enum Input {
    Pixels(Tensor<4>),
    Features(Tensor<2>),
}

/// The images that go through the network together, with their labels.
fn parts<'l>(pixels: &Tensor<4>, labels: &'l [usize]) -> impl Iterator<Item = (Tensor<4>, &'l [usize])> {
    let size = if is_cpu(&pixels.device()) { MICRO_BATCH } else { labels.len().max(1) };
    let part =
        move |(i, labels): (usize, &'l [usize])| (pixels.clone().narrow(0, i * size, labels.len()), labels);
    labels.chunks(size).enumerate().map(part)
}

/// Run the network forward and backward to the pixels themselves, with nothing adapted and the classifier a
/// constant: what a step costs before any method adds to it.
pub(crate) fn pixel_gradient(frozen: &Frozen, classifier: &Params, pixels: &Tensor<4>, labels: &[usize]) {
    for (part, labels) in parts(pixels, labels) {
        let leaf = part.autodiff().require_grad();
        let logits = linear::logits(classifier, frozen.features(leaf.clone(), &NoHooks));
        let mut tape = cross_entropy_sum(logits, labels).backward();
        drop(leaf.grad_remove(&mut tape));
    }
}

/// Sums over the images of a step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StepSums {
    pub(crate) loss: f64,
    pub(crate) correct: usize,
    pub(crate) images: usize,
}

/// Gradients of a step's images, accumulated over its parts.
pub(crate) struct Stepper<'a> {
    frozen: &'a Frozen,
    method: &'a MethodConfig,
    head: Head,
    site: Site<'a>,
    /// Texts about the classes, where names score them; and what was said of them in this step.
    texts: Option<&'a ClassTexts>,
    stage: Option<TextStage<'a>>,
    /// What batch norms see and paths are dropped by, where the network's own weights are learnt.
    training: Training,
    /// The step's seed for what is dropped; nothing is without.
    dropping: Option<u64>,
    grads: Option<Vec<Tensor<1>>>,
    pub(crate) sums: StepSums,
}

impl<'a> Stepper<'a> {
    /// For gradients of the model as it is used: nothing of the prompts is dropped.
    pub(crate) fn new(frozen: &'a Frozen, method: &'a MethodConfig, head: Head, site: Site<'a>) -> Self {
        Self { dropping: None, ..Self::seeded(frozen, method, head, site, 0) }
    }

    /// For a training step, with a seed for what is left to chance in it.
    pub(crate) fn seeded(
        frozen: &'a Frozen,
        method: &'a MethodConfig,
        head: Head,
        site: Site<'a>,
        seed: u64,
    ) -> Self {
        let training = Training::new(seed);
        let (dropping, sums) = (Some(seed), StepSums::default());
        Self { frozen, method, head, site, texts: None, stage: None, training, dropping, grads: None, sums }
    }

    /// The same for classes that are scored by their names, where there are texts.
    #[must_use]
    pub(crate) fn with_texts(self, texts: Option<&'a ClassTexts>) -> Self {
        Self { texts, ..self }
    }

    /// Add the gradient of the summed loss of some images.
    ///
    /// On the CPU a few at a time: what is kept for the backward pass then stays small, and mostly in the cache,
    /// however large the batch is. Nothing in a frozen network couples the images of a batch.
    ///
    /// # Errors
    /// The parameters are not those of the network.
    pub(crate) fn accumulate(&mut self, params: &Params, input: Input, labels: &[usize]) -> Result<()> {
        match input {
            // Batch norms couple images.
            Input::Pixels(pixels) if !matches!(self.method, MethodConfig::Full(_)) => {
                for (part, labels) in parts(&pixels, labels) {
                    self.accumulate_part(params, Input::Pixels(part), labels)?;
                }
                Ok(())
            }
            input => self.accumulate_part(params, input, labels),
        }
    }

    fn accumulate_part(&mut self, params: &Params, input: Input, labels: &[usize]) -> Result<()> {
        let leaves = params.leaves();
        let own = match self.site.loaded {
            Some(loaded) => self.method.training_network(loaded, &leaves, &self.training)?,
            None => None,
        };
        let own = own.map(|network| self.frozen.with_network(network));
        let frozen = own.as_ref().unwrap_or(self.frozen);
        let features = match input {
            Input::Pixels(pixels) => {
                // Prompts are part of the graph, so they are built anew from the leaves at every step.
                let mut prompts = self.method.prompts(&self.site, &leaves);
                if let Some(seed) = self.dropping {
                    prompts = prompts.training(seed, self.sums.images);
                }
                if let Some(texts) = self.texts {
                    let stage = if let Some(stage) = &self.stage {
                        stage
                    } else {
                        let stage = TextStage::new(texts, self.method, self.site, params, self.dropping)?;
                        self.stage.insert(stage)
                    };
                    let part = stage.images(frozen, &leaves, &prompts, pixels, labels);
                    if let Some(mut tape) = self.count(part.loss, part.logits, labels) {
                        let said = part.said.and_then(|said| said.grad_remove(&mut tape));
                        if let Some(stage) = &mut self.stage {
                            stage.collect(said);
                        }
                        self.collect(&leaves, &mut tape);
                    }
                    return Ok(());
                }
                frozen.features(pixels, &prompts)
            }
            Input::Features(features) => features,
        };
        let logits = self.head.logits(frozen.network(), &leaves, features);
        let loss = cross_entropy_sum(logits.clone(), labels);
        if let Some(mut tape) = self.count(loss, logits, labels) {
            self.collect(&leaves, &mut tape);
        }
        Ok(())
    }

    /// Note a part's loss and right answers; its backward pass, if the loss is finite so far.
    fn count(&mut self, loss: Tensor<1>, logits: Tensor<2>, labels: &[usize]) -> Option<Gradients> {
        let classes = logits.dims()[1];
        let scores: Vec<f32> = logits.without_autodiff().into_data().iter::<f32>().collect();
        self.sums.correct += label_ranks(&scores, classes, labels).iter().filter(|r| **r == 0).count();
        self.sums.loss += loss.clone().without_autodiff().into_data().iter::<f64>().sum::<f64>();
        self.sums.images += labels.len();
        (self.sums.loss.is_finite() && loss.is_autodiff()).then(|| loss.backward())
    }

    /// Add a part's gradients.
    fn collect(&mut self, leaves: &Params, tape: &mut Gradients) {
        let grads: Vec<_> = leaves
            .learnt()
            .map(|leaf| {
                let zeros = || leaf.value.clone().without_autodiff().zeros_like();
                leaf.value.grad_remove(tape).unwrap_or_else(zeros)
            })
            .collect();
        self.grads = Some(match self.grads.take() {
            None => grads,
            Some(sum) => sum.into_iter().zip(grads).map(|(a, b)| a + b).collect(),
        });
    }

    /// Add what comes through the text tower.
    fn finish_texts(&mut self) {
        let Some(stage) = self.stage.take() else { return };
        if !self.sums.loss.is_finite() || self.sums.images == 0 {
            return;
        }
        let (grads, added) = stage.finish(self.sums.images);
        self.sums.loss += added;
        for (sum, grad) in self.grads.iter_mut().flatten().zip(grads) {
            if let Some(grad) = grad {
                *sum = sum.clone() + grad;
            }
        }
    }

    /// The gradients of the mean loss over the images so far, of what is learnt; none if there were no images or the loss
    /// was not finite.
    pub(crate) fn mean_gradients(self) -> impl Iterator<Item = Tensor<1>> {
        self.loss_and_gradients().1
    }

    /// The mean loss over the images so far, and the same gradients.
    pub(crate) fn loss_and_gradients(mut self) -> (f64, impl Iterator<Item = Tensor<1>>) {
        self.finish_texts();
        let scale = 1.0 / self.sums.images.max(1) as f64;
        (self.sums.loss * scale, self.grads.into_iter().flatten().map(move |grad| grad * scale))
    }

    /// Update the parameters with the mean gradient, unless there were no images or the loss was not finite.
    pub(crate) fn finish(mut self, optim: &mut Optim, rates: Rates, params: &mut Params) -> StepSums {
        self.finish_texts();
        if let Some(grads) = self.grads.filter(|_| self.sums.loss.is_finite()) {
            let scale = 1.0 / self.sums.images as f64;
            optim.step(rates, params, grads.into_iter().map(|g| g * scale).collect());
            full::store_statistics(params, &self.training);
        }
        self.sums
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::backbone::{Backbone, Checkpoint, ResNet, ResNetConfig, Vit, VitConfig, Weights, blocks};
    use crate::fixtures::{self, assert_close};
    use crate::method::{Lotep, MethodConfig};
    use crate::ops::Precision;
    use crate::params::Group;
    use crate::train::Schedule;
    use crate::train::optim::OptimizerKind;

    /// Our factor for each of the fixture's.
    fn factors(kind: &str) -> &'static [(&'static str, &'static str)] {
        match kind {
            "cp" => &[("channel", "a"), ("row", "b"), ("column", "c")],
            _ => &[("channel", "u"), ("row", "v"), ("column", "w"), ("core", "core")],
        }
    }

    /// Six steps of SGD on prompts and head, as PyTorch took them in float64.
    fn six_steps(backbone: &str, kind: &str, parts: usize) {
        let Some(run) = fixtures::open(&format!("methods/lotep_{backbone}_{kind}.safetensors")) else {
            return;
        };
        let Some(base) = fixtures::open(&format!("{backbone}.safetensors")) else { return };
        let device = Device::flex();
        let weights = Weights::from_file(Checkpoint::open(base.0.path()).unwrap(), &device);
        let (network, head): (Arc<dyn Backbone>, _) = if backbone == "resnet18" {
            let config =
                ResNetConfig { bottleneck: false, layers: [2; 4], stem: 12, channels: [12, 16, 20, 24] };
            (Arc::new(ResNet::load(&config, 0, &weights, Precision::F32).unwrap()), "fc")
        } else {
            let config = VitConfig::new([48, 64], 16, 32, 3, 4);
            (Arc::new(Vit::load(&config, 0, &weights, Precision::F32).unwrap()), "head")
        };
        let input = base.tensor::<4>("_fx.input", &device);
        let [batch, _, h, w] = input.dims();
        let labels: Vec<usize> = base.values("_fx.target").iter().map(|v| *v as usize).collect();
        let blocks = blocks(network.as_ref(), [h, w], &device);
        let site = Site {
            image: [h, w],
            blocks: &blocks,
            std: [1.0; 3],
            default_depth_ratio: 0.8,
            device: &device,
            loaded: None,
        };
        let lotep = Lotep { rank: 4, input_prompt: false, ..Lotep::default() };
        let method = if kind == "cp" { MethodConfig::LotepCp(lotep) } else { MethodConfig::LotepTk(lotep) };
        let mut params = method.init(&site, 0).unwrap();
        params.extend({
            let mut p = Params::default();
            let width = network.feature_width();
            p.push(linear::WEIGHT, &[7, width], Group::Head, base.values(&format!("{head}.weight")), &device);
            p.push(linear::BIAS, &[7], Group::Head, base.values(&format!("{head}.bias")), &device);
            p
        });
        // The fixture's name of one of our parameters.
        let theirs = |name: &str| match name.strip_prefix("block.") {
            Some(rest) => {
                let (l, leaf) = rest.split_once('.').unwrap();
                format!("{l}.{}", factors(kind).iter().find(|f| f.0 == leaf).unwrap().1)
            }
            None => name.replace("head", head),
        };
        for param in params.iter_mut().filter(|p| p.group == Group::Prompt) {
            let (values, shape) = run.0.read(&format!("init.{}", theirs(&param.name))).unwrap();
            assert_eq!(shape, param.shape, "{}", param.name);
            let n = values.len();
            param.value = Tensor::from_data(TensorData::new(values, [n]), &device);
        }
        let frozen = Frozen::bare(network.clone(), &device);
        let decay = Rates { prompt: 1e-4, head: 1e-4 };
        let mut optim = Optim::new(OptimizerKind::Sgd, 0.9, decay, params.learnt().count());
        let losses = run.values("losses");
        for (step, expected) in losses.iter().enumerate() {
            let mut stepper = Stepper::new(&frozen, &method, Head::default(), site);
            for part in 0..parts {
                let size = batch / parts;
                let pixels = input.clone().narrow(0, part * size, size);
                stepper.accumulate(&params, Input::Pixels(pixels), &labels[part * size..][..size]).unwrap();
            }
            if step == 0 {
                for (param, grad) in params.iter().zip(stepper.grads.as_ref().unwrap()) {
                    let grad: Vec<f32> = (grad.clone() / batch as f64).into_data().iter::<f32>().collect();
                    let name = theirs(&param.name);
                    let expected = run.values(&format!("step0.grad.{name}"));
                    match name.strip_suffix("core") {
                        // The ViT's second core is one value. Its gradient is Σ v · dv / core, whatever the other factors,
                        // whose terms cancel to a thirteenth: their size counts.
                        Some(prompt) if backbone == "vit_b16" && expected.len() == 1 => {
                            let of = |what: &str, leaf: &str| run.values(&format!("{what}.{prompt}{leaf}"));
                            let (v, dv) = (of("init", "v"), of("step0.grad", "v"));
                            let terms: f32 = v.iter().zip(&dv).map(|(v, dv)| (v * dv).abs()).sum();
                            let (error, scale) =
                                ((grad[0] - expected[0]).abs(), terms / of("init", "core")[0].abs());
                            assert!(error <= 2e-5 * scale, "{name}: {} against {}", grad[0], expected[0]);
                        }
                        _ => assert_close(&grad, &expected, 5e-5, &name),
                    }
                }
            }
            let rate = 0.02 * Schedule::Cosine.factor(step, 6, 0);
            let sums = stepper.finish(&mut optim, Rates { prompt: rate, head: rate }, &mut params);
            let loss = sums.loss / sums.images as f64;
            assert!(
                (loss - f64::from(*expected)).abs() < 2e-5 * loss,
                "step {step}: {loss} against {expected}"
            );
        }
        for param in params.iter() {
            let value: Vec<f32> = param.value.to_data().iter::<f32>().collect();
            let name = format!("final.{}", theirs(&param.name));
            assert_close(&value, &run.values(&name), 5e-5, &name);
        }
    }

    #[test]
    fn six_steps_as_pytorch_takes_them() {
        for backbone in ["resnet18", "vit_b16"] {
            for kind in ["cp", "tucker"] {
                six_steps(backbone, kind, 1);
            }
        }
    }

    #[test]
    fn accumulating_parts_is_the_same_step() {
        six_steps("resnet18", "cp", 2);
        six_steps("vit_b16", "tucker", 2);
    }
}
