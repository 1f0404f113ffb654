//! Vision transformers as timm stores them: class token, learnt position embedding, pre-norm blocks.

use std::sync::Arc;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Activation, Backbone, Folded, Hooks, Weights};
use crate::Result;
use crate::ops::{
    Compute, LayerNorm, Linear, PatchEmbed, Precision, TransformerBlock, TransformerWeights, token_rows,
};
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

/// A vision transformer.
#[derive(Clone)]
pub struct Vit {
    config: VitConfig,
    entrance: PatchEmbed,
    /// As in the checkpoint, `[tokens, C]`: what folded prompts are written into.
    positions: Tensor<2>,
    blocks: Vec<TransformerBlock>,
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
        compute: impl Into<Compute>,
    ) -> Result<Self> {
        let compute = compute.into();
        let (width, patch) = (config.width, config.patch);
        let matrix = |name: String, out: usize, inputs: usize| -> Result<(Tensor<2>, Tensor<1>)> {
            let weight = weights.take(&format!("{name}.weight"), [out, inputs])?;
            Ok((weight, weights.take(&format!("{name}.bias"), [out])?))
        };
        let norm = |name: String| -> Result<[Tensor<1>; 2]> {
            let take = |leaf: &str| weights.take(&format!("{name}.{leaf}"), [width]);
            Ok([take("weight")?, take("bias")?])
        };
        let kernel = weights.take("patch_embed.proj.weight", [width, 3, patch, patch])?;
        let kernel_bias = weights.take("patch_embed.proj.bias", [width])?;
        let class_token: Tensor<2> = weights.take("cls_token", [1, 1, width])?.squeeze_dim(0);
        let positions: Tensor<2> = weights.take("pos_embed", [1, config.tokens(), width])?.squeeze_dim(0);
        let entrance = PatchEmbed::new(kernel, kernel_bias, class_token, positions.clone(), compute);
        let blocks = (0..config.depth)
            .map(|i| {
                let qkv = format!("blocks.{i}.attn.qkv");
                let bias = config.qkv_bias.then(|| weights.take(&format!("{qkv}.bias"), [3 * width]));
                let block = TransformerWeights {
                    heads: config.heads,
                    eps: LN_EPS,
                    norm1: norm(format!("blocks.{i}.norm1"))?,
                    qkv: (weights.take(&format!("{qkv}.weight"), [3 * width, width])?, bias.transpose()?),
                    proj: matrix(format!("blocks.{i}.attn.proj"), width, width)?,
                    norm2: norm(format!("blocks.{i}.norm2"))?,
                    fc1: matrix(format!("blocks.{i}.mlp.fc1"), 4 * width, width)?,
                    fc2: matrix(format!("blocks.{i}.mlp.fc2"), width, 4 * width)?,
                };
                Ok(TransformerBlock::new(block, compute))
            })
            .collect::<Result<_>>()?;
        let [scale, shift] = norm("norm".into())?;
        let head = (classes > 0).then(|| matrix("head".into(), classes, width)).transpose()?;
        Ok(Self {
            entrance,
            positions,
            blocks,
            norm: LayerNorm::new(scale, shift, LN_EPS),
            head: head.map(|(weight, bias)| Linear::new(weight, Some(bias), Precision::F32)),
            config: config.clone(),
        })
    }
}

impl Backbone for Vit {
    fn features(&self, x: Tensor<4>, hooks: &dyn Hooks) -> Tensor<2> {
        let mut x = self.entrance.forward(x);
        for (l, block) in self.blocks.iter().enumerate() {
            let Activation::Tokens(entered) = hooks.entrance(l, Activation::Tokens(x)) else {
                unreachable!("a hook keeps the layout")
            };
            let tokens = entered.dims()[1];
            let prompt = hooks.prompt(l).map(|prompt| token_rows(prompt, tokens));
            if l + 1 == self.blocks.len() && !hooks.watches() {
                x = block.class_token(entered, prompt);
                break;
            }
            x = block.forward(entered, prompt);
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
        let (count, width) = (self.config.tokens(), self.config.width);
        let mut added = Tensor::zeros([count, width], &self.positions.device());
        if let Some(image) = image {
            added = added + self.entrance.linear_part(image);
        }
        let folded_first = first.is_some();
        if let Some(prompt) = first {
            added = added + token_rows(prompt, count);
        }
        let positions = self.positions.clone() + added.clone();
        let changed = NamedTensor {
            name: "pos_embed".into(),
            shape: vec![1, count, width],
            values: positions.to_data().iter::<f32>().collect(),
        };
        let network = Self { positions, entrance: self.entrance.with_added(added), ..self.clone() };
        Folded { network: Arc::new(network), first: folded_first, changed: Some(vec![changed]) }
    }

    fn grid(&self, image: [usize; 2]) -> [usize; 2] {
        image.map(|side| side / self.config.patch)
    }
}
