//! A step of a method that scores classes by their names.
//!
//! What the text tower says does not depend on the images (CoCoOp's words apart), so that it is computed once a step,
//! however many parts the batch is computed in: the parts collect the gradient of what it said, and one backward pass at
//! the end takes that through the tower. Of many classes the tower's pass is made again there, some texts at a time,
//! instead of being kept.

use burn::tensor::Tensor;

use super::loss::cross_entropy_sum;
use crate::Result;
use crate::backbone::NoHooks;
use crate::head::{ClassTexts, unit};
use crate::method::{Consistency, Method, MethodConfig, Prompts, Site};
use crate::model::Frozen;
use crate::params::Params;

/// Texts whose pass is kept for the backward pass; more are computed twice.
const KEPT: usize = 256;

/// The text side of a step.
pub(super) struct TextStage<'a> {
    texts: &'a ClassTexts,
    method: &'a MethodConfig,
    site: Site<'a>,
    plain: Params,
    leaves: Params,
    /// The step's seed for what is dropped inside the tower, where something is.
    dropping: Option<u64>,
    /// The pass over all texts, tracked, where it is kept.
    tracked: Option<Tensor<2>>,
    /// What came out, outside autodiff; nothing where each image has texts of its own.
    said: Option<Tensor<2>>,
    /// The gradient of the images' loss with respect to it.
    grad: Option<Tensor<2>>,
}

/// What some images gave.
pub(super) struct Part {
    /// The summed loss, tracked.
    pub(super) loss: Tensor<1>,
    /// Scores, tracked.
    pub(super) logits: Tensor<2>,
    /// The leaf that stands for what the text tower said, where there is one.
    pub(super) said: Option<Tensor<2>>,
}

impl<'a> TextStage<'a> {
    /// Prompt all texts. `dropping` is the step's seed for what is left to chance in it; nothing is dropped without.
    ///
    /// # Errors
    /// The tower's weights can no longer be read.
    pub(super) fn new(
        texts: &'a ClassTexts,
        method: &'a MethodConfig,
        site: Site<'a>,
        params: &Params,
        dropping: Option<u64>,
    ) -> Result<Self> {
        let leaves = params.leaves();
        let updated = texts.plan().updated;
        let dropping = dropping.filter(|_| updated && method.prompts(&site, params).update_dropout > 0.0);
        if let (Some(_), Some(loaded)) = (dropping, site.loaded) {
            texts.unpack(loaded)?;
        }
        let features = site.loaded.and_then(|l| l.words.as_ref()).map_or(0, |words| words.config.features);
        let own = method.conditioned(params, Tensor::zeros([1, features], site.device)).is_some();
        let mut stage = Self {
            texts,
            method,
            site,
            plain: params.clone(),
            leaves,
            dropping,
            tracked: None,
            said: None,
            grad: None,
        };
        if own {
            return Ok(stage);
        }
        if let Some(vectors) = texts.same() {
            stage.said = Some(vectors.clone());
        } else if texts.texts() <= KEPT {
            let raw = texts.raw(&stage.prompts(&stage.leaves, 0), 0, texts.texts());
            stage.said = Some(raw.clone().without_autodiff());
            stage.tracked = Some(raw);
        } else {
            stage.said = Some(texts.all_raw(|first| stage.prompts(params, first)));
        }
        Ok(stage)
    }

    /// The method's prompts for texts from number `first` on.
    fn prompts(&self, params: &Params, first: usize) -> Prompts {
        let prompts = self.method.prompts(&self.site, params);
        match self.dropping {
            Some(seed) => prompts.training(seed, first),
            None => prompts,
        }
    }

    /// The loss of some images. `prompts` are the method's as this part tracks `leaves`, its parameters.
    pub(super) fn images(
        &self,
        frozen: &Frozen,
        leaves: &Params,
        prompts: &Prompts,
        pixels: Tensor<4>,
        labels: &[usize],
    ) -> Part {
        let images = unit(frozen.projected(pixels.clone(), prompts));
        let said = match (&self.said, self.method.conditioned(leaves, images.clone())) {
            (Some(said), None) => said.clone().autodiff().require_grad(),
            (_, words) => {
                let vectors = words.map(|words| self.texts.conditioned(words));
                let vectors = vectors.expect("a method's words depend on the image always or never");
                let logits = self.texts.own_logits(images, vectors);
                return Part { loss: cross_entropy_sum(logits.clone(), labels), logits, said: None };
            }
        };
        let vectors =
            if self.texts.same().is_some() { said.clone() } else { self.texts.vectors(said.clone()) };
        let logits = self.texts.logits(images.clone(), vectors);
        let mut loss = cross_entropy_sum(logits.clone(), labels);
        let consistency = self.texts.plan().consistency;
        if consistency.sees_images() {
            // The same images: an augmented one is held to what the frozen tower sees in it.
            let seen = unit(frozen.projected(pixels, &NoHooks));
            loss = loss + self.held(consistency, images, &logits, seen);
        }
        Part { loss, logits, said: Some(said) }
    }

    /// What holds images' features `[B, F]` and scores to those of the frozen towers, summed over images
    /// (`spec/methods.md` 10 and 11.3).
    fn held(
        &self,
        weights: Consistency,
        images: Tensor<2>,
        logits: &Tensor<2>,
        seen: Tensor<2>,
    ) -> Tensor<1> {
        let [_, width] = seen.dims();
        let far = (images - seen.clone()).abs().sum() * (weights.image / width as f64);
        let Some(z) = self.texts.frozen().filter(|_| weights.logits > 0.0) else { return far };
        let [_, classes] = logits.dims();
        let log_softmax = |x: Tensor<2>| burn::tensor::activation::log_softmax(x, 1);
        let own = log_softmax(self.texts.logits(seen, z.clone()));
        let divergence = own.clone().exp() * (own - log_softmax(logits.clone()));
        far + divergence.sum() * (weights.logits / classes as f64)
    }

    /// Take the gradient of what was said from a part's backward pass.
    pub(super) fn collect(&mut self, grad: Option<Tensor<2>>) {
        self.grad = match (self.grad.take(), grad) {
            (Some(sum), Some(grad)) => Some(sum + grad),
            (sum, grad) => sum.or(grad),
        };
    }

    /// The gradients of a step of so many images in what is learnt, of the sum over them, as far as they come through the
    /// text tower, in the order of the parameters; and what holding the texts adds to the summed loss.
    pub(super) fn finish(&self, images: usize) -> (Vec<Option<Tensor<1>>>, f64) {
        let mut sums: Vec<Option<Tensor<1>>> = vec![None; self.leaves.learnt().count()];
        let Some(said) = self.said.clone().filter(|_| self.texts.same().is_none()) else {
            return (sums, 0.0);
        };
        let mut upper = self.grad.clone().unwrap_or_else(|| said.zeros_like());
        let (weight, mut added) = (self.texts.plan().consistency.text, 0.0);
        if let Some(z) = self.texts.frozen().filter(|_| weight > 0.0) {
            let leaf = said.clone().autodiff().require_grad();
            let [classes, width] = z.dims();
            let far = (unit(leaf.clone()) - z.clone()).abs().sum();
            let far = far * (weight * images as f64 / (classes * width) as f64);
            added = far.clone().without_autodiff().into_data().iter::<f64>().sum();
            let mut tape = far.backward();
            if let Some(grad) = leaf.grad_remove(&mut tape) {
                upper = upper + grad;
            }
        }
        let mut back = |leaves: &Params, raw: Tensor<2>, upper: Tensor<2>| {
            // Nothing in the text tower is learnt.
            if !raw.is_autodiff() {
                return;
            }
            let mut tape = (raw * upper).sum().backward();
            for (sum, leaf) in sums.iter_mut().zip(leaves.learnt()) {
                let Some(grad) = leaf.value.grad_remove(&mut tape) else { continue };
                *sum = Some(match sum.take() {
                    Some(sum) => sum + grad,
                    None => grad,
                });
            }
        };
        if let Some(raw) = &self.tracked {
            back(&self.leaves, raw.clone(), upper);
            return (sums, added);
        }
        let texts = self.texts.texts();
        for first in (0..texts).step_by(KEPT) {
            let count = KEPT.min(texts - first);
            let leaves = self.plain.leaves();
            let raw = self.texts.raw(&self.prompts(&leaves, first), first, count);
            back(&leaves, raw, upper.clone().narrow(0, first, count));
        }
        (sums, added)
    }
}
