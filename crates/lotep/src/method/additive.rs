//! Prompts that are added: one to the image, one to the entrance of each of the first blocks.

use burn::tensor::Tensor;

use crate::backbone::Hooks;

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

    fn prompt(&self, block: usize) -> Option<Tensor<3>> {
        self.blocks.get(block).cloned().flatten()
    }
}
