//! Vision transformers as timm stores them: class token, learnt position embedding, pre-norm blocks.

use std::sync::Arc;

use burn::tensor::{Tensor, activation::gelu};
use serde::{Deserialize, Serialize};

use super::{Activation, Backbone, Folded, Hooks, Weights};
use crate::Result;
use crate::ops::{Conv2d, LayerNorm, Linear, Precision, attention, token_rows};
use crate::safetensors::NamedTensor;

const LN_EPS: f64 = 1e-6;

/// The shape of a vision transformer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VitConfig {
    /// Image height and width.
    pub image: [usize; 2],
    /// Side of a patch.
    pub patch: usize,
    /// Width of a token.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Whether the query-key-value projection has a bias (MIIL's has none).
    pub qkv_bias: bool,
}

impl VitConfig {
    fn tokens(&self) -> usize {
        1 + (self.image[0] / self.patch) * (self.image[1] / self.patch)
    }
}

#[derive(Clone)]
struct VitBlock {
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

/// A vision transformer.
#[derive(Clone)]
pub struct Vit {
    config: VitConfig,
    precision: Precision,
    patches: Conv2d,
    class_token: Tensor<3>,
    positions: Tensor<3>,
    blocks: Vec<VitBlock>,
    norm: LayerNorm,
    head: Option<Linear>,
}

impl Vit {
    /// Load from weights named as in timm; `classes` is what the classifier has, 0 for none.
    ///
    /// # Errors
    /// A weight is missing or of another shape.
    pub fn load(config: &VitConfig, classes: usize, weights: &Weights, precision: Precision) -> Result<Self> {
        let (width, patch) = (config.width, config.patch);
        let linear = |name: &str, out: usize, inputs: usize, bias: bool| -> Result<Linear> {
            let weight = weights.take(&format!("{name}.weight"), [out, inputs])?;
            let bias = bias.then(|| weights.take(&format!("{name}.bias"), [out])).transpose()?;
            Ok(Linear::new(weight, bias, precision))
        };
        let norm = |name: &str| -> Result<LayerNorm> {
            let take = |leaf: &str| weights.take(&format!("{name}.{leaf}"), [width]);
            Ok(LayerNorm::new(take("weight")?, take("bias")?, LN_EPS))
        };
        let patches = Conv2d::new(
            weights.take("patch_embed.proj.weight", [width, 3, patch, patch])?,
            Some(weights.take("patch_embed.proj.bias", [width])?),
            patch,
            0,
            precision,
        );
        let blocks = (0..config.depth)
            .map(|i| {
                Ok(VitBlock {
                    norm1: norm(&format!("blocks.{i}.norm1"))?,
                    qkv: linear(&format!("blocks.{i}.attn.qkv"), 3 * width, width, config.qkv_bias)?,
                    proj: linear(&format!("blocks.{i}.attn.proj"), width, width, true)?,
                    norm2: norm(&format!("blocks.{i}.norm2"))?,
                    fc1: linear(&format!("blocks.{i}.mlp.fc1"), 4 * width, width, true)?,
                    fc2: linear(&format!("blocks.{i}.mlp.fc2"), width, 4 * width, true)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            precision,
            patches,
            class_token: weights.take("cls_token", [1, 1, width])?,
            positions: weights.take("pos_embed", [1, config.tokens(), width])?,
            blocks,
            norm: norm("norm")?,
            head: (classes > 0).then(|| linear("head", classes, width, true)).transpose()?,
            config: config.clone(),
        })
    }
}

/// A map `[B, C, H, W]` as tokens `[B, H·W, C]`, row by row.
fn tokens(map: Tensor<4>) -> Tensor<3> {
    map.flatten::<3>(2, 3).swap_dims(1, 2)
}

impl Backbone for Vit {
    fn features(&self, x: Tensor<4>, hooks: &dyn Hooks) -> Tensor<2> {
        let batch = x.dims()[0];
        let patches = tokens(self.patches.forward(x));
        let class_token = self.class_token.clone().repeat_dim(0, batch);
        let mut x = Tensor::cat(vec![class_token, patches], 1) + self.positions.clone();
        for (l, block) in self.blocks.iter().enumerate() {
            let Activation::Tokens(entered) = hooks.entrance(l, Activation::Tokens(x)) else {
                unreachable!("a hook keeps the layout")
            };
            let qkv = block.qkv.forward(block.norm1.forward(entered.clone()));
            let attended = block.proj.forward(attention(qkv, self.config.heads, self.precision));
            let y = entered + attended;
            let hidden = gelu(block.fc1.forward(block.norm2.forward(y.clone())));
            x = y + block.fc2.forward(hidden);
            hooks.exit(l, &Activation::Tokens(x.clone()));
        }
        // The norm acts on each token alone, so only the class token, which is all that is read, needs it.
        self.norm.forward(x.narrow(1, 0, 1).squeeze_dim::<2>(1))
    }

    fn block_names(&self) -> Vec<String> {
        (0..self.blocks.len()).map(|i| format!("blocks.{i}")).collect()
    }

    fn feature_width(&self) -> usize {
        self.config.width
    }

    fn head(&self) -> Option<&Linear> {
        self.head.as_ref()
    }

    fn fold(&self, image: Option<Tensor<4>>, first: Option<Tensor<3>>) -> Folded {
        let [_, count, width] = self.positions.dims();
        let mut positions = self.positions.clone();
        if let Some(image) = image {
            let patches = tokens(self.patches.linear_part(image));
            let class_token = Tensor::zeros([1, 1, width], &positions.device());
            positions = positions + Tensor::cat(vec![class_token, patches], 1);
        }
        let folded_first = first.is_some();
        if let Some(prompt) = first {
            positions = positions + token_rows(prompt, count).unsqueeze();
        }
        let changed = NamedTensor {
            name: "pos_embed".into(),
            shape: vec![1, count, width],
            values: positions.to_data().iter::<f32>().collect(),
        };
        let network = Self { positions, ..self.clone() };
        Folded { network: Arc::new(network), first: folded_first, changed: Some(vec![changed]) }
    }

    fn grid(&self, image: [usize; 2]) -> [usize; 2] {
        image.map(|side| side / self.config.patch)
    }
}
