//! One optimisation step: forward, loss, gradients of prompts and head, update.

use burn::tensor::Tensor;

use super::loss::{cross_entropy_sum, label_ranks};
use super::optim::{Optim, Rates};
use crate::head::linear;
use crate::method::{Method, MethodConfig, Site};
use crate::model::Frozen;
use crate::params::Params;

/// What goes into a step: pixels `[B, 3, H, W]`, or features `[B, F]` that no prompt changes.
pub(crate) enum Input {
    Pixels(Tensor<4>),
    Features(Tensor<2>),
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
    site: Site<'a>,
    grads: Option<Vec<Tensor<1>>>,
    pub(crate) sums: StepSums,
}

impl<'a> Stepper<'a> {
    pub(crate) fn new(frozen: &'a Frozen, method: &'a MethodConfig, site: Site<'a>) -> Self {
        Self { frozen, method, site, grads: None, sums: StepSums::default() }
    }

    /// Add the gradient of the summed loss of some images.
    pub(crate) fn accumulate(&mut self, params: &Params, input: Input, labels: &[usize]) {
        let leaves = params.leaves();
        let features = match input {
            Input::Pixels(pixels) => {
                // Prompts are part of the graph, so they are built anew from the leaves at every step.
                let prompts = self.method.prompts(&self.site, &leaves);
                self.frozen.features(pixels, &prompts)
            }
            Input::Features(features) => features,
        };
        let logits = linear::logits(&leaves, features.autodiff());
        let loss = cross_entropy_sum(logits.clone(), labels);
        let classes = logits.dims()[1];
        let scores: Vec<f32> = logits.without_autodiff().into_data().iter::<f32>().collect();
        self.sums.correct += label_ranks(&scores, classes, labels).iter().filter(|r| **r == 0).count();
        self.sums.loss += loss.clone().without_autodiff().into_data().iter::<f64>().sum::<f64>();
        self.sums.images += labels.len();
        if !self.sums.loss.is_finite() {
            return;
        }
        let mut tape = loss.backward();
        let grads: Vec<_> = leaves
            .iter()
            .map(|leaf| {
                let zeros = || leaf.value.clone().without_autodiff().zeros_like();
                leaf.value.grad_remove(&mut tape).unwrap_or_else(zeros)
            })
            .collect();
        self.grads = Some(match self.grads.take() {
            None => grads,
            Some(sum) => sum.into_iter().zip(grads).map(|(a, b)| a + b).collect(),
        });
    }

    /// Update the parameters with the mean gradient, unless there were no images or the loss was not finite.
    pub(crate) fn finish(self, optim: &mut Optim, rates: Rates, params: &mut Params) -> StepSums {
        if let Some(grads) = self.grads.filter(|_| self.sums.loss.is_finite()) {
            let scale = 1.0 / self.sums.images as f64;
            optim.step(rates, params, grads.into_iter().map(|g| g * scale).collect());
        }
        self.sums
    }
}

