//! MaPLe (Khattak et al., CVPR 2023; `spec/methods.md` 10): learnt words in the text tower's first blocks, and for each
//! block a layer that makes the image tower's tokens of them.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::texts::{
    IMAGE_STREAM, check_depth, check_tokens, clip, first_words, image_tokens, push_words, words_name,
};
use super::{Method, Prompts, Site, TextPlan, seeded};
use crate::Result;
use crate::params::{Group, Params, uniform};

/// MaPLe's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaPLe {
    /// Learnt words of a block.
    pub tokens: usize,
    /// Prompted blocks of both towers.
    pub depth: usize,
    /// The words that those of the first block start as; drawn at random where it is empty.
    pub context: String,
}

impl Default for MaPLe {
    fn default() -> Self {
        Self { tokens: 2, depth: 9, context: "a photo of a".into() }
    }
}

fn layer_name(l: usize, leaf: &str) -> String {
    format!("image.{l}.{leaf}")
}

impl Method for MaPLe {
    fn init(&self, site: &Site<'_>, seed: u64) -> Result<Params> {
        let (_, words) = clip("maple", site)?;
        check_tokens("maple", self.tokens, words)?;
        check_depth("maple", self.depth, site, words)?;
        let (width, outputs) = (words.config.width, site.blocks[0].channels);
        let values = first_words("maple", site, &self.context, self.tokens, seed)?;
        let mut params = Params::default();
        params.push(words_name(0), &[self.tokens, width], Group::Prompt, values, site.device);
        push_words(&mut params, site, words, 1..self.depth, self.tokens, seed);
        for l in 0..self.depth {
            // PyTorch's own start of a layer.
            let (mut rng, bound) = (seeded(seed, IMAGE_STREAM + l as u64), (width as f64).powf(-0.5));
            let weight = uniform(outputs * width, bound, &mut rng);
            let bias = uniform(outputs, bound, &mut rng);
            params.push(layer_name(l, "weight"), &[outputs, width], Group::Prompt, weight, site.device);
            params.push(layer_name(l, "bias"), &[outputs], Group::Prompt, bias, site.device);
        }
        Ok(params)
    }

    fn prompts(&self, site: &Site<'_>, params: &Params) -> Prompts {
        let words: Vec<Tensor<2>> = (0..self.depth).map(|l| params.get(&words_name(l))).collect();
        let tokens = |(l, words): (usize, &Tensor<2>)| {
            let weight: Tensor<2> = params.get(&layer_name(l, "weight"));
            words.clone().matmul(weight.transpose()) + params.get::<1>(&layer_name(l, "bias")).unsqueeze()
        };
        let tokens = image_tokens(site, words.iter().enumerate().map(tokens).collect());
        Prompts { tokens, words, ..Prompts::default() }
    }

    fn texts(&self) -> Option<TextPlan> {
        Some(TextPlan::learnt(&self.context, self.tokens))
    }
}
