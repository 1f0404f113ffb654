//! ConvNeXt as timm stores it, with linear layers in its blocks (`conv_mlp=False`).
//!
//! What halves the map between stages is no block: a stage's first block sees the halved map.

use std::sync::Arc;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::family::{Family, set};
use super::preprocess::{IMAGENET, MAX_SIDE, MAX_WIDTH, Preprocess};
use super::{Backbone, Hooks, Prompt, Weights, enter_map, leave_map, map};
use crate::data::Interpolation;
use crate::ops::{
    Compute, ConvNextBlock, ConvNextUpdates, ConvNextWeights, LayerNorm, Linear, NormDown, PatchStem,
    mean_pixels,
};
use crate::{Result, bail};

const LN_EPS: f64 = 1e-6;
const KERNEL: usize = 7;

/// The shape of a ConvNeXt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConvNextConfig {
    /// Side of the patches that the image is cut into.
    pub patch: usize,
    /// Blocks of each stage.
    pub depths: [usize; 4],
    /// Channels of each stage.
    pub dims: [usize; 4],
}

impl ConvNextConfig {
    /// `convnext_SIZE`.
    pub(super) fn named(name: &str) -> Option<Self> {
        let (depths, width) = match name.strip_prefix("convnext_")? {
            "tiny" => ([3, 3, 9, 3], 96),
            "small" => ([3, 3, 27, 3], 96),
            "base" => ([3, 3, 27, 3], 128),
            "large" => ([3, 3, 27, 3], 192),
            "xlarge" => ([3, 3, 27, 3], 256),
            _ => return None,
        };
        Some(Self { patch: 4, depths, dims: [width, 2 * width, 4 * width, 8 * width] })
    }
}

impl Family for ConvNextConfig {
    fn set(&mut self, key: &str, value: &Value) -> Option<()> {
        match key {
            "depths" => set(&mut self.depths, value),
            "dims" => set(&mut self.dims, value),
            "patch_size" => set(&mut self.patch, value),
            _ => None,
        }
    }

    fn check(&self) -> Result<()> {
        let fits = |c: &usize| (1..=MAX_WIDTH).contains(c);
        if self.depths.contains(&0) || !self.dims.iter().all(fits) || !(1..=MAX_SIDE).contains(&self.patch) {
            bail!(
                "config.json: depths {:?}, dims {:?} and patch_size {} must be positive and within reason",
                self.depths,
                self.dims,
                self.patch
            );
        }
        Ok(())
    }

    fn args(&self) -> Value {
        json!({ "depths": self.depths, "dims": self.dims, "patch_size": self.patch })
    }

    fn preprocess(&self, _classes: usize) -> Preprocess {
        Preprocess::centre(0.875, Interpolation::Bicubic, IMAGENET)
    }

    fn image(&self) -> Option<[usize; 2]> {
        None
    }

    fn resize(&mut self, image: [usize; 2]) -> Result<()> {
        let least = 8 * self.patch;
        if image.iter().any(|s| *s < least) {
            bail!("images of {}x{}: sides of at least {least} are expected", image[0], image[1]);
        }
        Ok(())
    }

    fn classifier(&self) -> &'static str {
        "head.fc"
    }

    fn first_conv(&self) -> &'static str {
        "stem.0"
    }

    fn feature_width(&self) -> usize {
        self.dims[3]
    }

    fn size(&self) -> [usize; 2] {
        let block = |c: usize| 8 * c * c + (KERNEL * KERNEL + 9) * c;
        let stages = self.depths.iter().zip(self.dims).map(|(depth, c)| depth * block(c));
        let downs = self.dims.windows(2).map(|pair| 2 * pair[0] + 4 * pair[0] * pair[1] + pair[1]);
        let stem = (3 * self.patch * self.patch + 3) * self.dims[0];
        let count = stem + stages.sum::<usize>() + downs.sum::<usize>() + 2 * self.dims[3];
        [self.depths.iter().sum(), count]
    }

    fn depth_ratio(&self) -> f64 {
        0.2
    }

    fn load(&self, classes: usize, weights: &Weights, compute: Compute) -> Result<Arc<dyn Backbone>> {
        Ok(Arc::new(ConvNext::load(self, classes, weights, compute)?))
    }
}

/// A ConvNeXt.
#[derive(Clone)]
pub struct ConvNext {
    patch: usize,
    stem: PatchStem,
    stages: Vec<Stage>,
    /// Behind the mean over the map.
    norm: LayerNorm,
    head: Option<Linear>,
    width: usize,
}

#[derive(Clone)]
struct Stage {
    down: Option<NormDown>,
    blocks: Vec<(String, ConvNextBlock)>,
}

impl ConvNext {
    /// Load from weights named as in timm; `classes` is what the classifier has, 0 for none.
    ///
    /// # Errors
    /// A weight is missing or of another shape.
    pub fn load(
        config: &ConvNextConfig,
        classes: usize,
        weights: &Weights,
        compute: impl Into<Compute>,
    ) -> Result<Self> {
        let compute = compute.into();
        let (patch, first) = (config.patch, config.dims[0]);
        let stem = PatchStem::new(
            weights.take("stem.0.weight", [first, 3, patch, patch])?,
            weights.take("stem.0.bias", [first])?,
            weights.norm("stem.1", first)?,
            LN_EPS,
            compute,
        );
        let stage = |i: usize| -> Result<Stage> {
            let width = config.dims[i];
            let down = format!("stages.{i}.downsample");
            let down = (i > 0)
                .then(|| -> Result<NormDown> {
                    let norm = weights.norm(&format!("{down}.0"), config.dims[i - 1])?;
                    let kernel =
                        weights.take(&format!("{down}.1.weight"), [width, config.dims[i - 1], 2, 2])?;
                    let bias = weights.take(&format!("{down}.1.bias"), [width])?;
                    Ok(NormDown::new(norm, LN_EPS, kernel, bias, compute))
                })
                .transpose()?;
            let block = |j: usize| -> Result<(String, ConvNextBlock)> {
                let name = format!("stages.{i}.blocks.{j}");
                let block = ConvNextWeights {
                    kernel: weights.take(&format!("{name}.conv_dw.weight"), [width, 1, KERNEL, KERNEL])?,
                    bias: weights.take(&format!("{name}.conv_dw.bias"), [width])?,
                    norm: weights.norm(&format!("{name}.norm"), width)?,
                    eps: LN_EPS,
                    fc1: weights.linear(&format!("{name}.mlp.fc1"), 4 * width, width)?,
                    fc2: weights.linear(&format!("{name}.mlp.fc2"), width, 4 * width)?,
                    gamma: Some(weights.take(&format!("{name}.gamma"), [width])?),
                };
                Ok((name, ConvNextBlock::new(block, compute)))
            };
            Ok(Stage { down, blocks: (0..config.depths[i]).map(block).collect::<Result<_>>()? })
        };
        let stages = (0..4).map(stage).collect::<Result<_>>()?;
        let width = config.dims[3];
        let [scale, shift] = weights.norm("head.norm", width)?;
        let norm = LayerNorm::new(scale, shift, LN_EPS);
        let head = weights.head("head.fc", classes, width)?;
        Ok(Self { patch, stem, stages, norm, head, width })
    }
}

impl Backbone for ConvNext {
    fn features(&self, x: Tensor<4>, hooks: &dyn Hooks) -> Tensor<2> {
        let [_, _, height, width] = x.dims();
        let stem = self.stem.forward(x, hooks.below().as_ref());
        let mut x = map(stem, [height / self.patch, width / self.patch]);
        let mut l = 0;
        for stage in &self.stages {
            if let Some(down) = &stage.down {
                x = down.forward(x);
            }
            for (name, block) in &stage.blocks {
                let low_rank = |leaf| hooks.low_rank(&format!("{name}.mlp.{leaf}"));
                let dropout = hooks.dropout().map(|dropout| dropout.at(name));
                let updates = ConvNextUpdates { fc1: low_rank("fc1"), fc2: low_rank("fc2"), dropout };
                x = block.forward(enter_map(hooks, l, x), hooks.prompt(l).map(Prompt::whole), updates);
                leave_map(hooks, l, &x);
                l += 1;
            }
        }
        self.norm.forward(mean_pixels(x))
    }

    fn block_names(&self) -> Vec<String> {
        self.stages.iter().flat_map(|s| s.blocks.iter().map(|b| b.0.clone())).collect()
    }

    fn feature_width(&self) -> usize {
        self.width
    }

    fn head(&self) -> Option<&Linear> {
        self.head.as_ref()
    }
}
