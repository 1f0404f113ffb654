//! Swin transformers as timm stores them: attention within windows, shifted in every other block.
//!
//! What halves the map between stages is no block: a stage's first block sees the halved map.

use std::sync::Arc;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::family::{Family, set, set_sides};
use super::positions::{biases, take_size};
use super::preprocess::{IMAGENET, MAX_SIDE, MAX_WIDTH, Preprocess};
use super::{Backbone, Hooks, Weights, enter_map, inside, leave_map, map, rows};
use crate::data::Interpolation;
use crate::ops::{
    Compute, LayerNorm, Linear, Nonlinearity, PatchMerge, PatchStem, Scope, TransformerBlock,
    TransformerWeights, Windows, token_rows,
};
use crate::{Result, bail};

const LN_EPS: f64 = 1e-5;
/// Share of the samples whose last block is left out in training; it grows linearly from none at the first.
const DROP_PATH: f64 = 0.1;

/// The shape of a Swin transformer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwinConfig {
    /// Image height and width.
    pub image: [usize; 2],
    /// Side of the patches that the image is cut into.
    pub patch: usize,
    /// Channels of the first stage; each further one has twice as many.
    pub width: usize,
    /// Blocks of each stage.
    pub depths: Vec<usize>,
    /// Attention heads of each stage.
    pub heads: Vec<usize>,
    /// Side of a window.
    pub window: usize,
    /// The image size that the stored position biases are for, if it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<[usize; 2]>,
}

impl SwinConfig {
    /// `swin_SIZE_patch4_windowW_IMAGE`.
    pub(super) fn named(name: &str) -> Option<Self> {
        let (size, rest) = name.strip_prefix("swin_")?.split_once("_patch4_window")?;
        let (window, image) = rest.split_once('_')?;
        let (window, image): (usize, usize) = (window.parse().ok()?, image.parse().ok()?);
        let (width, third, heads) = match size {
            "tiny" => (96, 6, 3),
            "small" => (96, 18, 3),
            "base" => (128, 18, 4),
            "large" => (192, 18, 6),
            _ => return None,
        };
        let config = Self {
            image: [image; 2],
            patch: 4,
            width,
            depths: vec![2, 2, third, 2],
            heads: vec![heads, 2 * heads, 4 * heads, 8 * heads],
            window,
            stored: None,
        };
        config.check().ok().map(|()| config)
    }

    /// Height and width of a stage's map.
    fn stage_size(&self, stage: usize) -> [usize; 2] {
        let halve = |side: usize| (0..stage).fold(side / self.patch, |side, _| side.div_ceil(2));
        self.image.map(halve)
    }

    /// A stage's windows and their shift in every other block: a window is no larger than the map, and one that
    /// covers it has nowhere to go.
    fn windows(&self, stage: usize) -> [[usize; 2]; 2] {
        let size = self.stage_size(stage);
        let shift = size.map(|side| if side <= self.window { 0 } else { self.window / 2 });
        [size.map(|side| side.min(self.window)), shift]
    }
}

impl Family for SwinConfig {
    fn set(&mut self, key: &str, value: &Value) -> Option<()> {
        match key {
            "img_size" => set_sides(&mut self.image, value),
            "patch_size" => set(&mut self.patch, value),
            "embed_dim" => set(&mut self.width, value),
            "depths" => set(&mut self.depths, value),
            "num_heads" => set(&mut self.heads, value),
            "window_size" => set(&mut self.window, value),
            _ => None,
        }
    }

    fn check(&self) -> Result<()> {
        let stages = self.depths.len();
        if stages == 0 || stages > 8 || self.heads.len() != stages || self.depths.contains(&0) {
            bail!(
                "config.json: depths {:?} and num_heads {:?} must name the same stages, with blocks in each",
                self.depths,
                self.heads
            );
        }
        let fits = |(i, heads): (usize, &usize)| *heads > 0 && (self.width << i).is_multiple_of(*heads);
        if !(1..=MAX_WIDTH).contains(&self.width) || !self.heads.iter().enumerate().all(fits) {
            bail!("config.json: embed_dim {} doesn't divide among num_heads {:?}", self.width, self.heads);
        }
        if self.patch == 0
            || self.image.iter().any(|s| *s < self.patch || s % self.patch != 0 || *s > MAX_SIDE)
        {
            bail!(
                "config.json: img_size {:?} must be a multiple of patch_size {}, up to {MAX_SIDE}",
                self.image,
                self.patch
            );
        }
        // What the masks of shifted windows take, up to a gigabyte.
        let tokens = self.image[0] / self.patch * (self.image[1] / self.patch);
        if !(1..=64).contains(&self.window) || tokens * self.window * self.window > 1 << 28 {
            bail!("config.json: window_size {} is out of range for this image: 1 to 64", self.window);
        }
        Ok(())
    }

    fn args(&self) -> Value {
        json!({
            "img_size": self.image, "patch_size": self.patch, "embed_dim": self.width,
            "depths": self.depths, "num_heads": self.heads, "window_size": self.window,
        })
    }

    fn preprocess(&self, _classes: usize) -> Preprocess {
        // The networks for larger images were evaluated on all of them.
        let crop = if self.image[0] > 224 { 1.0 } else { 0.9 };
        Preprocess { image: self.image, ..Preprocess::centre(crop, Interpolation::Bicubic, IMAGENET) }
    }

    fn image(&self) -> Option<[usize; 2]> {
        Some(self.image)
    }

    fn resize(&mut self, image: [usize; 2]) -> Result<()> {
        let [h, w] = image;
        if image.iter().any(|s| s % self.patch != 0) {
            bail!("--image-size {h}x{w}: multiples of the patches' side, {}, are expected", self.patch);
        }
        take_size(&mut self.image, &mut self.stored, image);
        self.check()
    }

    fn classifier(&self) -> &'static str {
        "head.fc"
    }

    fn first_conv(&self) -> &'static str {
        "patch_embed.proj"
    }

    fn feature_width(&self) -> usize {
        self.width << (self.depths.len() - 1)
    }

    fn size(&self) -> [usize; 2] {
        let mut count = (3 * self.patch * self.patch + 3) * self.width + 2 * self.feature_width();
        for (i, (depth, heads)) in self.depths.iter().zip(&self.heads).enumerate() {
            let (c, [[h, w], _]) = (self.width << i, self.windows(i));
            let biases = (2 * h - 1) * (2 * w - 1) * heads;
            count += depth * (12 * c * c + 13 * c + biases);
            count += if i > 0 { 2 * c * c + 4 * c } else { 0 };
        }
        [self.depths.iter().sum(), count]
    }

    fn depth_ratio(&self) -> f64 {
        0.2
    }

    fn load(&self, classes: usize, weights: &Weights, compute: Compute) -> Result<Arc<dyn Backbone>> {
        Ok(Arc::new(Swin::load(self, classes, weights, compute)?))
    }
}

/// A Swin transformer.
#[derive(Clone)]
pub struct Swin {
    config: SwinConfig,
    stem: PatchStem,
    stages: Vec<Stage>,
    norm: LayerNorm,
    head: Option<Linear>,
}

#[derive(Clone)]
struct Stage {
    merge: Option<PatchMerge>,
    size: [usize; 2],
    blocks: Vec<(String, TransformerBlock)>,
}

impl Swin {
    /// Load from weights named as in timm; `classes` is what the classifier has, 0 for none.
    ///
    /// # Errors
    /// A weight is missing or of another shape.
    pub fn load(
        config: &SwinConfig,
        classes: usize,
        weights: &Weights,
        compute: impl Into<Compute>,
    ) -> Result<Self> {
        let compute = compute.into();
        let (patch, first) = (config.patch, config.width);
        let stem = PatchStem::new(
            weights.take("patch_embed.proj.weight", [first, 3, patch, patch])?,
            weights.take("patch_embed.proj.bias", [first])?,
            weights.norm("patch_embed.norm", first)?,
            LN_EPS,
            compute,
        );
        let stage = |i: usize| -> Result<Stage> {
            let (width, heads, size) = (config.width << i, config.heads[i], config.stage_size(i));
            let merge = format!("layers.{i}.downsample");
            let merge = (i > 0)
                .then(|| -> Result<PatchMerge> {
                    let norm = weights.norm(&format!("{merge}.norm"), 2 * width)?;
                    let weight = weights.take(&format!("{merge}.reduction.weight"), [width, 2 * width])?;
                    Ok(PatchMerge::new(norm, LN_EPS, weight, compute))
                })
                .transpose()?;
            let [window, shift] = config.windows(i);
            let windows = [[0; 2], shift].map(|shift| Arc::new(Windows::new(size, window, shift)));
            let learnt = config.stored.unwrap_or(config.image);
            let [learnt, _] = SwinConfig { image: learnt, ..config.clone() }.windows(i);
            let before: usize = config.depths[..i].iter().sum();
            let last = (config.depths.iter().sum::<usize>() - 1).max(1);
            let block = |j: usize| -> Result<(String, TransformerBlock)> {
                let name = format!("layers.{i}.blocks.{j}");
                let linear = |leaf: &str, outputs: usize, inputs: usize| {
                    weights.linear(&format!("{name}.{leaf}"), outputs, inputs)
                };
                let table = format!("{name}.attn.relative_position_bias_table");
                let qkv = linear("attn.qkv", 3 * width, width)?;
                let block = TransformerWeights {
                    heads,
                    eps: LN_EPS,
                    nonlinearity: Nonlinearity::Gelu,
                    scope: Scope {
                        bias: Some(biases(weights, &table, heads, [learnt, window])?),
                        windows: Some(windows[j % 2].clone()),
                    },
                    norm1: weights.norm(&format!("{name}.norm1"), width)?,
                    qkv: (qkv.0, Some(qkv.1)),
                    proj: linear("attn.proj", width, width)?,
                    norm2: weights.norm(&format!("{name}.norm2"), width)?,
                    fc1: linear("mlp.fc1", 4 * width, width)?,
                    fc2: linear("mlp.fc2", width, 4 * width)?,
                    shrink: None,
                    drop_path: weights.drop_path(DROP_PATH * (before + j) as f64 / last as f64),
                };
                Ok((name, TransformerBlock::new(block, compute)))
            };
            Ok(Stage { merge, size, blocks: (0..config.depths[i]).map(block).collect::<Result<_>>()? })
        };
        let stages = (0..config.depths.len()).map(stage).collect::<Result<_>>()?;
        let [scale, shift] = weights.norm("norm", config.feature_width())?;
        let norm = LayerNorm::new(scale, shift, LN_EPS);
        let head = weights.head("head.fc", classes, config.feature_width())?;
        Ok(Self { config: config.clone(), stem, stages, norm, head })
    }
}

impl Backbone for Swin {
    fn features(&self, x: Tensor<4>, hooks: &dyn Hooks) -> Tensor<2> {
        let samples = x.dims()[0];
        let mut x = map(self.stem.forward(x, None), self.config.stage_size(0));
        let mut prompts: Option<Tensor<3>> = None;
        let mut l = 0;
        for stage in &self.stages {
            if let Some(merge) = &stage.merge {
                x = merge.forward(x);
            }
            let size = stage.size[0] * stage.size[1];
            for (i, (name, block)) in stage.blocks.iter().enumerate() {
                let merge = stage.merge.as_ref().filter(|_| i == 0);
                prompts = hooks.window_tokens(l, samples).or_else(|| {
                    let before = prompts.take()?;
                    Some(merge.map_or(before.clone(), |merge| merge.prompts(before)))
                });
                let own = prompts.as_ref().map_or(0, |prompts| prompts.dims()[1]);
                let entering = prompts.iter().cloned().chain([rows(enter_map(hooks, l, x))]);
                let entering = Tensor::cat(entering.collect::<Vec<_>>(), 1);
                let prompt = hooks.prompt(l).map(|prompt| token_rows(prompt.whole(), own + size));
                let inside = inside(hooks, l, name);
                let y = block.forward(entering, prompt, &inside);
                prompts = prompts.map(|_| y.clone().narrow(1, 0, own));
                x = map(if own > 0 { y.narrow(1, own, size) } else { y }, stage.size);
                leave_map(hooks, l, &x);
                l += 1;
            }
        }
        self.norm.forward(rows(x)).mean_dim(1).squeeze_dim(1)
    }

    fn block_names(&self) -> Vec<String> {
        self.stages.iter().flat_map(|s| s.blocks.iter().map(|b| b.0.clone())).collect()
    }

    fn feature_width(&self) -> usize {
        self.config.feature_width()
    }

    fn heads(&self, block: usize) -> Option<usize> {
        let stages = self.stages.iter().zip(&self.config.heads);
        stages.flat_map(|(stage, heads)| stage.blocks.iter().map(|_| *heads)).nth(block)
    }

    fn head(&self) -> Option<&Linear> {
        self.head.as_ref()
    }
}
