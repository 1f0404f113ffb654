//! ResNet-18, -34, -50, -101 as timm and torchvision store them.
//!
//! A block's entrance is what enters both its first convolution and its shortcut; it comes out of a ReLU, so
//! a prompt can make it negative and no ReLU may be skipped or moved.

use std::sync::Arc;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::family::{Family, set};
use super::preprocess::{IMAGENET, MAX_WIDTH, MIIL_CLASSES, Preprocess, UNCHANGED};
use super::{Backbone, Hooks, Weights, enter_map, leave_map};
use crate::data::Interpolation;
use crate::ops::{Compute, ConvNorm, ImageStem, Linear, ResidualBlock, ResidualUpdates, mean_pixels};
use crate::{Result, bail};

const BN_EPS: f64 = 1e-5;

/// The shape of a ResNet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResNetConfig {
    /// Bottleneck blocks (1×1, 3×3, 1×1) instead of basic ones (3×3, 3×3).
    pub bottleneck: bool,
    /// Blocks of each stage.
    pub layers: [usize; 4],
    /// Width of the stem's convolution.
    pub stem: usize,
    /// Inner width of each stage's blocks; a bottleneck puts out four times as many channels.
    pub channels: [usize; 4],
}

impl ResNetConfig {
    /// A network of the paper's widths.
    pub const fn new(bottleneck: bool, layers: [usize; 4]) -> Self {
        Self { bottleneck, layers, stem: 64, channels: [64, 128, 256, 512] }
    }

    fn expansion(&self) -> usize {
        if self.bottleneck { 4 } else { 1 }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "resnet18" => Self::new(false, [2, 2, 2, 2]),
            "resnet34" => Self::new(false, [3, 4, 6, 3]),
            "resnet50" => Self::new(true, [3, 4, 6, 3]),
            "resnet101" => Self::new(true, [3, 4, 23, 3]),
            _ => return None,
        })
    }
}

impl Family for ResNetConfig {
    fn set(&mut self, key: &str, value: &Value) -> Option<()> {
        match key {
            "layers" => set(&mut self.layers, value),
            "channels" => set(&mut self.channels, value),
            "block" => {
                self.bottleneck = match value.as_str()?.to_ascii_lowercase().as_str() {
                    "bottleneck" => true,
                    "basicblock" | "basic" => false,
                    _ => return None,
                };
                Some(())
            }
            _ => None,
        }
    }

    fn check(&self) -> Result<()> {
        let fits = |c: &usize| (1..=MAX_WIDTH).contains(c);
        if self.layers.contains(&0) || !self.channels.iter().all(fits) || self.stem == 0 {
            bail!(
                "config.json: layers {:?} and channels {:?} must be positive and within reason",
                self.layers,
                self.channels
            );
        }
        Ok(())
    }

    fn args(&self) -> Value {
        json!({ "layers": self.layers, "channels": self.channels })
    }

    fn preprocess(&self, classes: usize) -> Preprocess {
        let pixels = if classes == MIIL_CLASSES { UNCHANGED } else { IMAGENET };
        Preprocess::centre(0.875, Interpolation::Bilinear, pixels)
    }

    fn image(&self) -> Option<[usize; 2]> {
        None
    }

    fn resize(&mut self, _image: [usize; 2]) -> Result<()> {
        Ok(())
    }

    fn classifier(&self) -> &'static str {
        "fc"
    }

    fn first_conv(&self) -> &'static str {
        "conv1"
    }

    fn feature_width(&self) -> usize {
        self.channels[3] * self.expansion()
    }

    fn size(&self) -> [usize; 2] {
        let norm = |channels: usize| 2 * channels;
        let (mut count, mut input) = (3 * 49 * self.stem + norm(self.stem), self.stem);
        for (stage, (&blocks, &inner)) in self.layers.iter().zip(&self.channels).enumerate() {
            let output = inner * self.expansion();
            for index in 0..blocks {
                let strides = index == 0 && stage > 0;
                count += if self.bottleneck {
                    inner * (input + 9 * inner + output) + 2 * norm(inner) + norm(output)
                } else {
                    9 * inner * (input + output) + norm(inner) + norm(output)
                };
                count += if strides || input != output { output * input + norm(output) } else { 0 };
                input = output;
            }
        }
        [self.layers.iter().sum(), count]
    }

    fn depth_ratio(&self) -> f64 {
        0.8
    }

    fn load(&self, classes: usize, weights: &Weights, compute: Compute) -> Result<Arc<dyn Backbone>> {
        Ok(Arc::new(ResNet::load(self, classes, weights, compute)?))
    }
}

/// A ResNet with its batch norms folded.
#[derive(Clone)]
pub struct ResNet {
    stem: ImageStem,
    blocks: Vec<Block>,
    head: Option<Linear>,
    width: usize,
}

#[derive(Clone)]
struct Block {
    name: String,
    residual: ResidualBlock,
    /// The names of its convolutions.
    convs: Vec<String>,
    /// That of the one on the shortcut.
    shortcut: Option<String>,
}

impl Block {
    fn updates(&self, hooks: &dyn Hooks) -> ResidualUpdates {
        let update = |name: &String| hooks.conv_update(name);
        ResidualUpdates {
            convs: self.convs.iter().map(update).collect(),
            shortcut: self.shortcut.as_ref().and_then(update),
            dropout: hooks.dropout().map(|dropout| dropout.at(&self.name)),
        }
    }
}

impl ResNet {
    /// Load from weights named as in timm; `classes` is what the classifier has, 0 for none.
    ///
    /// # Errors
    /// A weight is missing or of another shape.
    pub fn load(
        config: &ResNetConfig,
        classes: usize,
        weights: &Weights,
        compute: impl Into<Compute>,
    ) -> Result<Self> {
        let compute = compute.into();
        let conv = |conv: &str, bn: &str, shape: [usize; 4], stride: usize| -> Result<ConvNorm> {
            let norm = weights.batch_norm(bn, shape[0], BN_EPS)?;
            let kernel = weights.take(&format!("{conv}.weight"), shape)?;
            Ok(ConvNorm { kernel, norm, stride })
        };
        let stem = conv("conv1", "bn1", [config.stem, 3, 7, 7], 2)?;
        let mut blocks = Vec::new();
        let mut input = config.stem;
        for (stage, (&count, &inner)) in config.layers.iter().zip(&config.channels).enumerate() {
            let output = inner * config.expansion();
            for index in 0..count {
                let name = format!("layer{}.{index}", stage + 1);
                let stride = if index == 0 && stage > 0 { 2 } else { 1 };
                // [out, in, kernel, stride]; a bottleneck strides in its 3×3 ("v1.5").
                let plan = if config.bottleneck {
                    vec![[inner, input, 1, 1], [inner, inner, 3, stride], [output, inner, 1, 1]]
                } else {
                    vec![[inner, input, 3, stride], [output, inner, 3, 1]]
                };
                let names: Vec<_> = (1..=plan.len()).map(|i| format!("{name}.conv{i}")).collect();
                let convs = (1..)
                    .zip(plan)
                    .zip(&names)
                    .map(|((i, [o, c, k, s]), leaf)| conv(leaf, &format!("{name}.bn{i}"), [o, c, k, k], s))
                    .collect::<Result<_>>()?;
                let around = (stride != 1 || input != output).then(|| format!("{name}.downsample.0"));
                let norm = format!("{name}.downsample.1");
                let shortcut = around
                    .as_ref()
                    .map(|leaf| conv(leaf, &norm, [output, input, 1, 1], stride))
                    .transpose()?;
                let residual = ResidualBlock::new(convs, shortcut, compute);
                blocks.push(Block { name, residual, convs: names, shortcut: around });
                input = output;
            }
        }
        let head = weights.head("fc", classes, input)?;
        Ok(Self { stem: ImageStem::new(stem, compute), blocks, head, width: input })
    }
}

impl Backbone for ResNet {
    fn features(&self, x: Tensor<4>, hooks: &dyn Hooks) -> Tensor<2> {
        let mut x = self.stem.forward(x, hooks.below().as_ref());
        let updates: Vec<_> = self.blocks.iter().map(|block| block.updates(hooks)).collect();
        let (count, watched) = (self.blocks.len(), hooks.watches());
        let plain = |l: &usize| !watched && updates[*l].is_empty();
        let mut l = 0;
        while l < count {
            x = enter_map(hooks, l, x);
            if !plain(&l) {
                x = self.blocks[l].residual.forward(x, hooks.prompt(l), &updates[l]);
                leave_map(hooks, l, &x);
                l += 1;
                continue;
            }
            // All that nobody looks between.
            let stretch = l..(l..count).find(|l| !plain(l)).unwrap_or(count);
            let blocks: Vec<_> = self.blocks[stretch.clone()].iter().map(|block| &block.residual).collect();
            let prompts = stretch.clone().map(|l| hooks.prompt(l)).collect();
            if stretch.end == count {
                return ResidualBlock::stretch_to_mean(&blocks, x, prompts);
            }
            x = ResidualBlock::stretch(&blocks, x, prompts);
            l = stretch.end;
        }
        mean_pixels(x)
    }

    fn block_names(&self) -> Vec<String> {
        self.blocks.iter().map(|b| b.name.clone()).collect()
    }

    fn feature_width(&self) -> usize {
        self.width
    }

    fn head(&self) -> Option<&Linear> {
        self.head.as_ref()
    }
}
