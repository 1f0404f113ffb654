//! Prompts that are added: one to the image, one to the entrance of each of the first blocks.

use burn::tensor::Tensor;

use crate::backbone::{Activation, Hooks};
use crate::ops::token_rows;

/// Prompts `[C, H, W]`, built once and added to every sample. They are f32 whatever the network computes in.
#[derive(Clone, Debug, Default)]
pub struct AdditivePrompts {
    /// Added to the image, in [0, 1], before it is normalised.
    pub image: Option<Tensor<3>>,
    /// Added to the entrance of block `l`.
    pub blocks: Vec<Option<Tensor<3>>>,
}

impl Hooks for AdditivePrompts {
    fn pixels(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.image {
            Some(prompt) => x + prompt.clone().unsqueeze(),
            None => x,
        }
    }

    fn entrance(&self, block: usize, x: Activation) -> Activation {
        match (self.blocks.get(block), x) {
            (Some(Some(prompt)), Activation::Map(x)) => Activation::Map(x + prompt.clone().unsqueeze()),
            (Some(Some(prompt)), Activation::Tokens(x)) => {
                let rows = token_rows(prompt.clone(), x.dims()[1]);
                Activation::Tokens(x + rows.unsqueeze())
            }
            (_, x) => x,
        }
    }
}
