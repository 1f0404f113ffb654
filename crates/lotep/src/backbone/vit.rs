//! Vision transformers as timm stores them: class token, learnt position embedding, pre-norm blocks.

use std::sync::Arc;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::family::{Family, set, set_sides};
use super::positions::{resample, take_size};
use super::preprocess::{CLIP, HALVES, MAX_SIDE, MAX_WIDTH, MIIL_CLASSES, Preprocess, UNCHANGED};
use super::{Activation, Backbone, Folded, Hooks, Prompt, Weights, enter_tokens, inside};
use crate::data::Interpolation;
use crate::ops::{
    Compute, LayerNorm, Linear, Nonlinearity, PatchEmbed, Scope, TransformerBlock, TransformerWeights,
    token_rows,
};
use crate::safetensors::NamedTensor;
use crate::{Result, bail};

/// The shape of a vision transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// CLIP's image tower: no bias at the patches, a norm before the first block.
    #[serde(default)]
    pub clip: bool,
    /// What the perceptrons have inside.
    #[serde(default)]
    pub nonlinearity: Nonlinearity,
    /// The image size that the stored position embeddings are for, if it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<[usize; 2]>,
}

impl VitConfig {
    /// A plain vision transformer.
    pub const fn new(image: [usize; 2], patch: usize, width: usize, depth: usize, heads: usize) -> Self {
        let nonlinearity = Nonlinearity::Gelu;
        Self { image, patch, width, depth, heads, qkv_bias: true, clip: false, nonlinearity, stored: None }
    }

    fn tokens(&self) -> usize {
        1 + (self.image[0] / self.patch) * (self.image[1] / self.patch)
    }

    /// The position embeddings `[tokens, width]`: where the image has another size than when they were learnt, those
    /// of the patches are resampled to its grid.
    fn positions(&self, weights: &Weights) -> Result<Tensor<2>> {
        let grids = [self.stored.unwrap_or(self.image), self.image];
        let [from, to] = grids.map(|image| image.map(|side| side / self.patch));
        let stored = [1, 1 + from[0] * from[1], self.width];
        let fit = (from != to).then_some(|all: Tensor<3>| {
            let (class_token, patches) = (all.clone().narrow(1, 0, 1), all.narrow(1, 1, from[0] * from[1]));
            Tensor::cat(vec![class_token, resample(patches.squeeze_dim(0), from, to).unsqueeze()], 1)
        });
        Ok(weights.take_resampled("pos_embed", stored, fit)?.squeeze_dim(0))
    }

    fn eps(&self) -> f64 {
        if self.clip { 1e-5 } else { 1e-6 }
    }

    /// `vit_SIZE_patchP_IMAGE`, with `_miil` for the variant without a qkv bias; `vit_SIZE_patchP_clip_IMAGE` and
    /// `vit_SIZE_patchP_clip_quickgelu_IMAGE` for CLIP's image tower.
    pub(super) fn named(name: &str) -> Option<Self> {
        let (name, qkv_bias) = match name.strip_suffix("_miil") {
            Some(name) => (name, false),
            None => (name, true),
        };
        let (size, rest) = name.strip_prefix("vit_")?.split_once("_patch")?;
        let (patch, rest) = rest.split_once('_')?;
        let (rest, clip) = match rest.strip_prefix("clip_") {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let (image, nonlinearity) = match rest.strip_prefix("quickgelu_").filter(|_| clip) {
            Some(image) => (image, Nonlinearity::QuickGelu),
            None => (rest, Nonlinearity::Gelu),
        };
        let (patch, image): (usize, usize) = (patch.parse().ok()?, image.parse().ok()?);
        let (width, depth, heads) = match size {
            "tiny" => (192, 12, 3),
            "small" => (384, 12, 6),
            "base" => (768, 12, 12),
            "large" => (1024, 24, 16),
            _ => return None,
        };
        let shape = Self::new([image; 2], patch, width, depth, heads);
        let config = Self { qkv_bias, clip, nonlinearity, ..shape };
        (patch > 0 && image > 0 && image % patch == 0 && image <= MAX_SIDE).then_some(config)
    }
}

impl Family for VitConfig {
    fn set(&mut self, key: &str, value: &Value) -> Option<()> {
        match key {
            "img_size" => set_sides(&mut self.image, value),
            "patch_size" => set(&mut self.patch, value),
            "embed_dim" => set(&mut self.width, value),
            "depth" => set(&mut self.depth, value),
            "num_heads" => set(&mut self.heads, value),
            "qkv_bias" => set(&mut self.qkv_bias, value),
            "pre_norm" => set(&mut self.clip, value),
            "act_layer" => {
                self.nonlinearity = match value.as_str()? {
                    "gelu" => Nonlinearity::Gelu,
                    "quick_gelu" => Nonlinearity::QuickGelu,
                    _ => return None,
                };
                Some(())
            }
            _ => None,
        }
    }

    fn check(&self) -> Result<()> {
        if self.patch == 0
            || self.heads == 0
            || !self.width.is_multiple_of(self.heads)
            || !(1..=MAX_WIDTH).contains(&self.width)
        {
            bail!(
                "config.json: embed_dim {} must be a multiple of num_heads {}, and patch_size {} positive",
                self.width,
                self.heads,
                self.patch
            );
        }
        if self.image.iter().any(|s| *s < self.patch || s % self.patch != 0 || *s > MAX_SIDE) {
            bail!(
                "config.json: img_size {:?} must be a multiple of patch_size {}, up to {MAX_SIDE}",
                self.image,
                self.patch
            );
        }
        Ok(())
    }

    fn args(&self) -> Value {
        let mut args = json!({
            "img_size": self.image, "patch_size": self.patch, "embed_dim": self.width, "depth": self.depth,
            "num_heads": self.heads, "qkv_bias": self.qkv_bias,
        });
        if self.clip {
            args["pre_norm"] = true.into();
        }
        if self.nonlinearity == Nonlinearity::QuickGelu {
            args["act_layer"] = "quick_gelu".into();
        }
        args
    }

    fn preprocess(&self, classes: usize) -> Preprocess {
        let plain = match (self.clip, self.qkv_bias && classes != MIIL_CLASSES) {
            (true, _) => Preprocess::centre(0.9, Interpolation::Bicubic, CLIP),
            (false, true) => Preprocess::centre(0.9, Interpolation::Bicubic, HALVES),
            (false, false) => Preprocess::centre(0.875, Interpolation::Bilinear, UNCHANGED),
        };
        Preprocess { image: self.image, ..plain }
    }

    fn image(&self) -> Option<[usize; 2]> {
        Some(self.image)
    }

    fn resize(&mut self, image: [usize; 2]) -> Result<()> {
        if image.iter().any(|s| s % self.patch != 0) {
            let [h, w] = image;
            bail!("--image-size {h}x{w}: multiples of the patches' side, {}, are expected", self.patch);
        }
        take_size(&mut self.image, &mut self.stored, image);
        Ok(())
    }

    fn classifier(&self) -> &'static str {
        "head"
    }

    fn first_conv(&self) -> &'static str {
        "patch_embed.proj"
    }

    fn feature_width(&self) -> usize {
        self.width
    }

    fn size(&self) -> [usize; 2] {
        let c = self.width;
        let block = 12 * c * c + 10 * c + if self.qkv_bias { 3 * c } else { 0 };
        let entrance = 3 * self.patch * self.patch * c + (1 + self.tokens()) * c;
        // A bias at the patches, or CLIP's norm behind them.
        let rest = if self.clip { 2 * c } else { c };
        [self.depth, entrance + rest + self.depth * block + 2 * c]
    }

    fn depth_ratio(&self) -> f64 {
        0.4
    }

    fn load(&self, classes: usize, weights: &Weights, compute: Compute) -> Result<Arc<dyn Backbone>> {
        Ok(Arc::new(Vit::load(self, classes, weights, compute)?))
    }
}

/// A vision transformer.
#[derive(Clone)]
pub struct Vit {
    config: VitConfig,
    entrance: PatchEmbed,
    /// As in the checkpoint, `[tokens, C]`: what folded prompts are written into.
    positions: Tensor<2>,
    /// CLIP's, behind the positions.
    before: Option<LayerNorm>,
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
        let kernel = weights.take("patch_embed.proj.weight", [width, 3, patch, patch])?;
        let kernel_bias =
            (!config.clip).then(|| weights.take("patch_embed.proj.bias", [width])).transpose()?;
        let class_token: Tensor<2> = weights.take("cls_token", [1, 1, width])?.squeeze_dim(0);
        let positions = config.positions(weights)?;
        let entrance = PatchEmbed::new(kernel, kernel_bias, class_token, positions.clone(), compute);
        let norm = |name: &str| -> Result<LayerNorm> {
            let [scale, shift] = weights.norm(name, width)?;
            Ok(LayerNorm::new(scale, shift, config.eps()))
        };
        let before = config.clip.then(|| norm("norm_pre")).transpose()?;
        let blocks = (0..config.depth)
            .map(|i| {
                let qkv = format!("blocks.{i}.attn.qkv");
                let bias = config.qkv_bias.then(|| weights.take(&format!("{qkv}.bias"), [3 * width]));
                let block = TransformerWeights {
                    heads: config.heads,
                    eps: config.eps(),
                    nonlinearity: config.nonlinearity,
                    scope: Scope::default(),
                    norm1: weights.norm(&format!("blocks.{i}.norm1"), width)?,
                    qkv: (weights.take(&format!("{qkv}.weight"), [3 * width, width])?, bias.transpose()?),
                    proj: weights.linear(&format!("blocks.{i}.attn.proj"), width, width)?,
                    norm2: weights.norm(&format!("blocks.{i}.norm2"), width)?,
                    fc1: weights.linear(&format!("blocks.{i}.mlp.fc1"), 4 * width, width)?,
                    fc2: weights.linear(&format!("blocks.{i}.mlp.fc2"), width, 4 * width)?,
                    shrink: None,
                    drop_path: None,
                };
                Ok(TransformerBlock::new(block, compute))
            })
            .collect::<Result<_>>()?;
        let norm = norm("norm")?;
        let head = weights.head("head", classes, width)?;
        Ok(Self { entrance, positions, before, blocks, norm, head, config: config.clone() })
    }
}

impl Backbone for Vit {
    fn features(&self, x: Tensor<4>, hooks: &dyn Hooks) -> Tensor<2> {
        let mut x = self.entrance.forward(x);
        if let Some(norm) = &self.before {
            x = norm.forward(x);
        }
        for (l, block) in self.blocks.iter().enumerate() {
            let entered = enter_tokens(hooks, l, x);
            let tokens = entered.dims()[1];
            let prompt = hooks.prompt(l).map(|prompt| token_rows(prompt.whole(), tokens));
            let inside = inside(hooks, l, &format!("blocks.{l}"));
            if l + 1 == self.blocks.len() && !hooks.watches() {
                x = block.class_token(entered, prompt, &inside);
                break;
            }
            x = block.forward(entered, prompt, &inside);
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

    fn before_blocks(&self, tokens: Tensor<2>) -> Tensor<2> {
        match &self.before {
            Some(norm) => norm.forward(tokens),
            None => tokens,
        }
    }

    fn heads(&self, _block: usize) -> Option<usize> {
        Some(self.config.heads)
    }

    fn head(&self) -> Option<&Linear> {
        self.head.as_ref()
    }

    fn fold(&self, image: Option<Tensor<4>>, first: Option<Prompt>) -> Option<Folded> {
        let (count, width) = (self.config.tokens(), self.config.width);
        let mut added = Tensor::zeros([count, width], &self.positions.device());
        if let Some(image) = image {
            added = added + self.entrance.linear_part(image);
        }
        // Behind CLIP's first norm a prompt stays an addition.
        let first = first.filter(|_| self.before.is_none());
        let folded_first = first.is_some();
        if let Some(prompt) = first {
            added = added + token_rows(prompt.whole(), count);
        }
        let positions = self.positions.clone() + added.clone();
        let changed = NamedTensor {
            name: "pos_embed".into(),
            shape: vec![1, count, width],
            values: positions.to_data().iter::<f32>().collect(),
        };
        let network = Self { positions, entrance: self.entrance.with_added(added), ..self.clone() };
        Some(Folded { network: Arc::new(network), first: folded_first, changed: vec![changed] })
    }

    fn grid(&self, image: [usize; 2]) -> [usize; 2] {
        image.map(|side| side / self.config.patch)
    }
}
