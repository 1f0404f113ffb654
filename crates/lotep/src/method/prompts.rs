//! What methods put into a network: built once a step while learning, once for all afterwards.

use std::collections::BTreeMap;

use burn::tensor::ops::PadMode;
use burn::tensor::{Int, Tensor, activation::relu};

use super::frame::around;
use crate::backbone::{Activation, Below, ConvUpdate, Dropout, Hooks, LowRank, Prompt};

/// Prompts, shared by all samples. They are f32 whatever the network computes in.
#[derive(Clone, Debug, Default)]
pub struct Prompts {
    /// Added to the image, in [0, 1], before it is normalised, `[3, H, W]`.
    pub image: Option<Tensor<3>>,
    /// Added to the entrance of block `l`.
    pub blocks: Vec<Option<Prompt>>,
    /// Tokens `[n, C]` that stand between the class token and the patches in block `l`, or before the tokens of each of its
    /// windows: those of the first block are put in, those of later ones take the place of what became of the ones before.
    pub tokens: Vec<Tensor<2>>,
    /// Share of the tokens' values that is dropped while training.
    pub token_dropout: f64,
    /// Words `[n, C]` in the place of those behind the start of CLIP's texts, in block `l` of the text tower.
    pub words: Vec<Tensor<2>>,
    /// Added to the weights of layers, by the checkpoint's names.
    pub updates: BTreeMap<String, LowRank>,
    /// The same, of convolutions.
    pub conv_updates: BTreeMap<String, ConvUpdate>,
    /// Share that is dropped, while training, of what these additions see.
    pub update_dropout: f64,
    /// Channels beside the image's.
    pub below: Option<Below>,
    /// Keys and values `[m, C]` that stand before the tokens' own in block `l`.
    pub keys_values: Vec<Option<[Tensor<2>; 2]>>,
    /// Height and width of the network's input, in whose middle smaller images are put, zeros around them.
    pub canvas: Option<[usize; 2]>,
    /// Factor `[1]` by which images are scaled about their middle before, each keeping its size.
    pub scale: Option<Tensor<1>>,
    /// While training: the step's seed, and the number in the step of the first of the samples to come.
    pub training: Option<(u64, u64)>,
}

impl Prompts {
    /// As they are while training: a step with a seed of its own drops what is to be dropped; `first` is the number in it of
    /// the first of the samples to come.
    #[must_use]
    pub(crate) fn training(self, seed: u64, first: usize) -> Self {
        Self { training: Some((seed, first as u64)), ..self }
    }

    fn dropping(&self, rate: f64) -> Option<Dropout> {
        self.training.and_then(|(seed, first)| Dropout::new(rate, seed, first))
    }

    /// The tokens that are put into block `l`, for each of some samples.
    fn fresh(&self, l: usize, samples: usize) -> Option<Tensor<3>> {
        let tokens = self.tokens.get(l)?;
        let [count, width] = tokens.dims();
        let tokens = tokens.clone().unsqueeze::<3>().expand([samples, count, width]);
        Some(match self.dropping(self.token_dropout) {
            Some(dropout) => dropout.at(&format!("tokens of block {l}")).apply(tokens),
            None => tokens,
        })
    }
}

impl Hooks for Prompts {
    fn pixels(&self, x: Tensor<4>) -> Tensor<4> {
        let x = match &self.scale {
            Some(scale) => scaled(x, scale),
            None => x,
        };
        match self.canvas {
            Some(outer) => framed(x, outer),
            None => x,
        }
    }

    fn image(&self) -> Option<Tensor<3>> {
        self.image.clone()
    }

    fn prompt(&self, block: usize) -> Option<Prompt> {
        self.blocks.get(block).cloned().flatten()
    }

    fn keys_values(&self, block: usize) -> Option<[Tensor<2>; 2]> {
        self.keys_values.get(block).cloned().flatten()
    }

    fn words(&self, block: usize) -> Option<Tensor<3>> {
        self.words.get(block).map(|words| words.clone().unsqueeze())
    }

    fn low_rank(&self, name: &str) -> Option<LowRank> {
        self.updates.get(name).cloned()
    }

    fn dropout(&self) -> Option<Dropout> {
        self.dropping(self.update_dropout)
    }

    fn below(&self) -> Option<Below> {
        self.below.clone()
    }

    fn window_tokens(&self, block: usize, samples: usize) -> Option<Tensor<3>> {
        self.fresh(block, samples).filter(|tokens| tokens.dims()[1] > 0)
    }

    fn conv_update(&self, name: &str) -> Option<ConvUpdate> {
        self.conv_updates.get(name).cloned()
    }

    fn entrance(&self, block: usize, x: Activation) -> Activation {
        let Activation::Tokens(sequence) = &x else { return x };
        let Some(tokens) = self.fresh(block, sequence.dims()[0]) else { return x };
        let (x, [_, have, _], [_, count, _]) = (sequence, sequence.dims(), tokens.dims());
        let first = if block == 0 { 1 } else { 1 + count };
        let class_token = x.clone().narrow(1, 0, 1);
        let patches = x.clone().narrow(1, first, have - first);
        Activation::Tokens(Tensor::cat(vec![class_token, tokens, patches], 1))
    }
}

/// Images in the middle of larger ones that are zero elsewhere.
fn framed(x: Tensor<4>, outer: [usize; 2]) -> Tensor<4> {
    let [_, _, h, w] = x.dims();
    let [rows, columns] = [around(outer[0], h), around(outer[1], w)];
    x.pad([(rows[0], rows[1]), (columns[0], columns[1])], PadMode::Constant(0.0))
}

/// Images scaled about their middle by a factor, between pixels in proportion, zero outside; the size stays.
///
/// Rows and columns are products with matrices, through which the factor has its gradient.
fn scaled(x: Tensor<4>, scale: &Tensor<1>) -> Tensor<4> {
    let [_, _, h, w] = x.dims();
    taps(h, scale).unsqueeze::<4>().matmul(x).matmul(taps(w, scale).transpose().unsqueeze())
}

/// What each of `side` pixels takes from which: `[side, side]`, pixel `i` from around `c + (i − c) / scale`.
fn taps(side: usize, scale: &Tensor<1>) -> Tensor<2> {
    let device = scale.device().without_autodiff();
    let at = Tensor::<1, Int>::arange(0..side as i64, &device).float();
    let middle = (side as f64 - 1.0) / 2.0;
    let from = (at.clone() - middle).unsqueeze_dim::<2>(1) / scale.clone().unsqueeze() + middle;
    relu((from - at.unsqueeze_dim(0)).abs().neg() + 1.0)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    #[test]
    fn images_are_scaled_about_their_middle() {
        let row = |scale: f32| {
            let x = TensorData::new(vec![1.0_f32, 2.0, 3.0, 4.0, 5.0], [1, 1, 1, 5]);
            let x = Tensor::<4>::from_data(x, &Device::flex());
            let scale = Tensor::from_floats([scale], &Device::flex());
            scaled(x, &scale).into_data().iter::<f32>().collect::<Vec<_>>()
        };
        assert_eq!(row(1.0), [1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(row(2.0), [2.0, 2.5, 3.0, 3.5, 4.0]);
        // Every second pixel, and zero where there is none.
        assert_eq!(row(0.5), [0.0, 1.0, 3.0, 5.0, 0.0]);
    }

    #[test]
    fn small_images_stand_in_the_middle() {
        let x = Tensor::<4>::ones([1, 1, 1, 2], &Device::flex());
        let framed: Vec<f32> = framed(x, [2, 5]).into_data().iter::<f32>().collect();
        assert_eq!(framed, [0., 1., 1., 0., 0., 0., 0., 0., 0., 0.]);
    }
}
