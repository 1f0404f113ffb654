//! CoCoOp (Zhou et al., CVPR 2022; `spec/methods.md` 10): CoOp's words, moved for each image by what a small network makes
//! of its features.

use burn::tensor::{Tensor, activation::relu};
use serde::{Deserialize, Serialize};

use super::texts::{check_tokens, clip, first_words, words_name};
use super::{Method, Prompts, Site, TextPlan, seeded};
use crate::Result;
use crate::params::{Group, Params, uniform};

/// CoCoOp's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoCoOp {
    /// Learnt words.
    pub tokens: usize,
    /// The words that they start as; drawn at random where it is empty.
    pub context: String,
}

impl Default for CoCoOp {
    fn default() -> Self {
        Self { tokens: 4, context: "a photo of a".into() }
    }
}

/// The small network's inside is so much narrower than its input.
const NARROWER: usize = 16;

impl Method for CoCoOp {
    fn init(&self, site: &Site<'_>, seed: u64) -> Result<Params> {
        let (_, words) = clip("cocoop", site)?;
        check_tokens("cocoop", self.tokens, words)?;
        let values = first_words("cocoop", site, &self.context, self.tokens, seed)?;
        let (features, width) = (words.config.features, words.config.width);
        let inside = (features / NARROWER).max(1);
        let mut params = Params::default();
        params.push(words_name(0), &[self.tokens, width], Group::Prompt, values, site.device);
        for (stream, (name, outputs, inputs)) in
            (1..).zip([("meta.0", inside, features), ("meta.1", width, inside)])
        {
            // PyTorch's own start of a layer.
            let (mut rng, bound) = (seeded(seed, stream), (inputs as f64).powf(-0.5));
            let weight = uniform(outputs * inputs, bound, &mut rng);
            let bias = uniform(outputs, bound, &mut rng);
            params.push(format!("{name}.weight"), &[outputs, inputs], Group::Prompt, weight, site.device);
            params.push(format!("{name}.bias"), &[outputs], Group::Prompt, bias, site.device);
        }
        Ok(params)
    }

    fn prompts(&self, _site: &Site<'_>, _params: &Params) -> Prompts {
        Prompts::default()
    }

    fn texts(&self) -> Option<TextPlan> {
        Some(TextPlan::learnt(&self.context, self.tokens))
    }

    fn conditioned(&self, params: &Params, images: Tensor<2>) -> Option<Tensor<3>> {
        let layer = |x: Tensor<2>, name: &str| {
            let weight: Tensor<2> = params.get(&format!("{name}.weight"));
            x.matmul(weight.transpose()) + params.get::<1>(&format!("{name}.bias")).unsqueeze()
        };
        let moved = layer(relu(layer(images, "meta.0")), "meta.1");
        let words: Tensor<2> = params.get(&words_name(0));
        Some(words.unsqueeze_dim::<3>(0) + moved.unsqueeze_dim::<3>(1))
    }
}
