//! ResNet-18, -34, -50, -101 as timm and torchvision store them.
//!
//! A block's entrance is what enters both its first convolution and its shortcut; it comes out of a ReLU, so
//! a prompt can make it negative and no ReLU may be skipped or moved.

use std::sync::Arc;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Activation, Backbone, Folded, Hooks, Weights};
use crate::Result;
use crate::ops::{BatchNorm, Compute, ConvNorm, ImageStem, Linear, Precision, ResidualBlock};

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
}

/// A ResNet with its batch norms folded.
#[derive(Clone)]
pub struct ResNet {
    stem: ImageStem,
    blocks: Vec<(String, ResidualBlock)>,
    head: Option<Linear>,
    width: usize,
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
            let channels = [shape[0]];
            let take = |leaf: &str| weights.take(&format!("{bn}.{leaf}"), channels);
            let norm = BatchNorm {
                weight: take("weight")?,
                bias: take("bias")?,
                mean: take("running_mean")?,
                var: take("running_var")?,
                eps: BN_EPS,
            };
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
                let convs = (1..)
                    .zip(plan)
                    .map(|(i, [o, c, k, s])| {
                        conv(&format!("{name}.conv{i}"), &format!("{name}.bn{i}"), [o, c, k, k], s)
                    })
                    .collect::<Result<_>>()?;
                let shortcut = (stride != 1 || input != output)
                    .then(|| {
                        let (c, n) = (format!("{name}.downsample.0"), format!("{name}.downsample.1"));
                        conv(&c, &n, [output, input, 1, 1], stride)
                    })
                    .transpose()?;
                blocks.push((name, ResidualBlock::new(convs, shortcut, compute)));
                input = output;
            }
        }
        let head = (classes > 0)
            .then(|| -> Result<Linear> {
                let weight = weights.take("fc.weight", [classes, input])?;
                Ok(Linear::new(weight, Some(weights.take("fc.bias", [classes])?), Precision::F32))
            })
            .transpose()?;
        Ok(Self { stem: ImageStem::new(stem, compute), blocks, head, width: input })
    }
}

impl Backbone for ResNet {
    fn features(&self, x: Tensor<4>, hooks: &dyn Hooks) -> Tensor<2> {
        let mut x = self.stem.forward(x);
        for (l, (_, block)) in self.blocks.iter().enumerate() {
            let Activation::Map(entered) = hooks.entrance(l, Activation::Map(x)) else {
                unreachable!("a hook keeps the layout")
            };
            x = block.forward(entered, hooks.prompt(l));
            hooks.exit(l, &Activation::Map(x.clone()));
        }
        let [b, c, _, _] = x.dims();
        x.mean_dims(&[2, 3]).reshape([b, c])
    }

    fn block_names(&self) -> Vec<String> {
        self.blocks.iter().map(|b| b.0.clone()).collect()
    }

    fn feature_width(&self) -> usize {
        self.width
    }

    fn head(&self) -> Option<&Linear> {
        self.head.as_ref()
    }

    fn fold(&self, image: Option<Tensor<4>>, _first: Option<Tensor<3>>) -> Folded {
        let changed = image.is_none().then(Vec::new);
        let stem = image.map_or_else(|| self.stem.clone(), |image| self.stem.with_added(image));
        let network = Self { stem, ..self.clone() };
        // The first block's prompt enters behind the stem's ReLU: it stays an addition there.
        Folded { network: Arc::new(network), first: false, changed }
    }

    fn grid(&self, _image: [usize; 2]) -> [usize; 2] {
        [0, 0]
    }
}
