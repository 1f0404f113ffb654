//! What methods put into a network: built once a step while learning, once for all afterwards.

use burn::tensor::Tensor;

use crate::backbone::{Activation, Hooks};

/// Prompts, shared by all samples. They are f32 whatever the network computes in.
#[derive(Clone, Debug, Default)]
pub struct Prompts {
    /// Added to the image, in [0, 1], before it is normalised, `[3, H, W]`.
    pub image: Option<Tensor<3>>,
    /// Added to the entrance of block `l`, `[C, H, W]`.
    pub blocks: Vec<Option<Tensor<3>>>,
    /// Tokens `[n, C]` that stand between the class token and the patches in block `l`: those of the first block are
    /// put in, those of later ones take the place of what became of the ones before.
    pub tokens: Vec<Tensor<2>>,
}

impl Hooks for Prompts {
    fn pixels(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.image {
            Some(prompt) => x + prompt.clone().unsqueeze(),
            None => x,
        }
    }

    fn prompt(&self, block: usize) -> Option<Tensor<3>> {
        self.blocks.get(block).cloned().flatten()
    }

    fn entrance(&self, block: usize, x: Activation) -> Activation {
        let (Activation::Tokens(x), Some(tokens)) = (&x, self.tokens.get(block)) else { return x };
        let ([samples, have, width], [count, _]) = (x.dims(), tokens.dims());
        let first = if block == 0 { 1 } else { 1 + count };
        let class_token = x.clone().narrow(1, 0, 1);
        let patches = x.clone().narrow(1, first, have - first);
        let tokens = tokens.clone().unsqueeze::<3>().expand([samples, count, width]);
        Activation::Tokens(Tensor::cat(vec![class_token, tokens, patches], 1))
    }
}
