//! Vision transformers as timm stores them: class token, learnt position embedding, pre-norm blocks.

use burn::tensor::{Tensor, activation::gelu};
use serde::{Deserialize, Serialize};

use super::{Activation, Backbone, Hooks, Weights};
use crate::Result;
use crate::ops::{Conv2d, LayerNorm, Linear, Precision, attention, lift};

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

struct VitBlock {
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

/// A vision transformer.
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
    pub fn load(
        config: &VitConfig,
        classes: usize,
        weights: &Weights,
        precision: Precision,
    ) -> Result<Self> {
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

    /// Linear map of an image to patch tokens `[B, H·W, C]`, with its bias.
    pub(crate) fn embed(&self, x: Tensor<4>) -> Tensor<3> {
        self.patches.forward(x).flatten::<3>(2, 3).swap_dims(1, 2)
    }

    /// The position embedding `[1, 1 + H·W, C]`.
    pub(crate) fn positions(&self) -> &Tensor<3> {
        &self.positions
    }
}

impl Backbone for Vit {
    fn features(&self, x: Tensor<4>, hooks: &dyn Hooks) -> Tensor<2> {
        let batch = x.dims()[0];
        let patches = self.embed(x);
        let class_token = lift(&self.class_token, &patches).repeat_dim(0, batch);
        let positions = lift(&self.positions, &patches);
        let mut x = Tensor::cat(vec![class_token, patches], 1) + positions;
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

    fn grid(&self, image: [usize; 2]) -> [usize; 2] {
        image.map(|side| side / self.config.patch)
    }
}
