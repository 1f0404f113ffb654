//! What the registry asks of each family of networks, and the registry itself: timm's names.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::preprocess::{MAX_SIDE, MIIL_CLASSES, Preprocess};
use super::{Backbone, CoAtNetConfig, ConvNextConfig, ResNetConfig, SwinConfig, VitConfig, Weights};
use crate::ops::Compute;
use crate::{Result, bail, input_error};

/// The shape of a network of one family.
pub(crate) trait Family {
    /// Apply one of timm's keyword arguments; `None` if the family does not know it, or not with such a value.
    fn set(&mut self, key: &str, value: &Value) -> Option<()>;

    /// Refuse shapes that can't be built.
    fn check(&self) -> Result<()>;

    /// timm's keyword arguments for this shape.
    fn args(&self) -> Value;

    /// What published weights with so many classes expect of images, where no `config.json` says it.
    fn preprocess(&self, classes: usize) -> Preprocess;

    /// The image size that the weights are for; `None` where they fit any.
    fn image(&self) -> Option<[usize; 2]>;

    /// Another image size than the weights were made for.
    fn resize(&mut self, image: [usize; 2]) -> Result<()>;

    /// The classifier's name in the checkpoint.
    fn classifier(&self) -> &'static str;

    /// The first convolution's name in the checkpoint.
    fn first_conv(&self) -> &'static str;

    /// Width of the pooled features.
    fn feature_width(&self) -> usize;

    /// Number of blocks, and of parameters without the classifier's.
    fn size(&self) -> [usize; 2];

    /// LoTeP's share of prompted blocks (`spec/methods.md` 1.3).
    fn depth_ratio(&self) -> f64;

    /// Build the network; `classes` is what its classifier has, 0 for none.
    fn load(&self, classes: usize, weights: &Weights, compute: Compute) -> Result<Arc<dyn Backbone>>;
}

/// A network of a known family and shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "lowercase")]
pub enum Architecture {
    /// Residual convolutional network.
    ResNet(ResNetConfig),
    /// Vision transformer, CLIP's image tower among them.
    Vit(VitConfig),
    /// ConvNeXt.
    ConvNext(ConvNextConfig),
    /// Swin transformer.
    Swin(SwinConfig),
    /// CoAtNet, timm's `rw` variants.
    CoAtNet(CoAtNetConfig),
}

impl Architecture {
    /// The architecture of a timm name without its tag (`resnet18`, `vit_base_patch16_224`).
    ///
    /// # Errors
    /// The name is not known; the message lists what is.
    pub fn named(name: &str) -> Result<Self> {
        let found = ResNetConfig::named(name)
            .map(Self::ResNet)
            .or_else(|| VitConfig::named(name).map(Self::Vit))
            .or_else(|| ConvNextConfig::named(name).map(Self::ConvNext))
            .or_else(|| SwinConfig::named(name).map(Self::Swin))
            .or_else(|| CoAtNetConfig::named(name).map(Self::CoAtNet));
        found.ok_or_else(|| {
            input_error!("unknown architecture `{name}`; known are {}", architectures().join(", "))
        })
    }

    fn family(&self) -> &dyn Family {
        match self {
            Self::ResNet(c) => c,
            Self::Vit(c) => c,
            Self::ConvNext(c) => c,
            Self::Swin(c) => c,
            Self::CoAtNet(c) => c,
        }
    }

    fn family_mut(&mut self) -> &mut dyn Family {
        match self {
            Self::ResNet(c) => c,
            Self::Vit(c) => c,
            Self::ConvNext(c) => c,
            Self::Swin(c) => c,
            Self::CoAtNet(c) => c,
        }
    }

    /// Apply timm's keyword arguments (`model_args`).
    ///
    /// # Errors
    /// An argument is unknown to this family or has the wrong type.
    pub fn with_args(mut self, args: &Map<String, Value>) -> Result<Self> {
        for (key, value) in args {
            let known = match key.as_str() {
                "num_classes" | "in_chans" => Some(()),
                key => self.family_mut().set(key, value),
            };
            if known.is_none() {
                bail!("config.json: model_args `{key}` = {value} is not understood for this architecture");
            }
        }
        self.family().check()?;
        Ok(self)
    }

    /// timm's keyword arguments for this shape.
    pub fn args(&self) -> Value {
        self.family().args()
    }

    /// What published weights with so many classes expect of images, where no `config.json` says it.
    pub(crate) fn preprocess(&self, classes: usize) -> Preprocess {
        self.family().preprocess(classes)
    }

    /// The image size that the weights are for; `None` where they fit any.
    pub fn image(&self) -> Option<[usize; 2]> {
        self.family().image()
    }

    /// The same for images of another size.
    ///
    /// # Errors
    /// The network can't take images of that size.
    pub fn resized(mut self, image: [usize; 2]) -> Result<Self> {
        if image.iter().any(|s| !(32..=MAX_SIDE).contains(s)) {
            bail!("--image-size {}x{} is out of range: 32 to {MAX_SIDE}", image[0], image[1]);
        }
        self.family_mut().resize(image)?;
        Ok(self)
    }

    /// Check that the network can take images of this size.
    pub(super) fn takes(&self, image: [usize; 2]) -> Result<()> {
        self.clone().family_mut().resize(image)
    }

    /// The classifier's name in the checkpoint.
    pub fn classifier(&self) -> &'static str {
        self.family().classifier()
    }

    /// The first convolution's name in the checkpoint.
    pub fn first_conv(&self) -> &'static str {
        self.family().first_conv()
    }

    /// Width of the pooled features.
    pub fn feature_width(&self) -> usize {
        self.family().feature_width()
    }

    /// Number of blocks, and of parameters without the classifier's.
    pub fn size(&self) -> [usize; 2] {
        self.family().size()
    }

    /// LoTeP's depth ratio for this family (`spec/methods.md` 1.3: 0.8 for ResNets, 0.4 for ViTs, 0.2 for others).
    pub fn default_depth_ratio(&self) -> f64 {
        self.family().depth_ratio()
    }

    /// Build the network; `classes` is what its classifier has, 0 for none.
    ///
    /// # Errors
    /// A weight is missing or of another shape.
    pub fn load(&self, classes: usize, weights: &Weights, compute: Compute) -> Result<Arc<dyn Backbone>> {
        self.family().load(classes, weights, compute)
    }
}

/// A checkpoint that people publish under timm's name and tag, as `timm/NAME.TAG` on the hub.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Published {
    /// The architecture.
    pub name: &'static str,
    /// Which weights: those of the papers where they use the architecture, timm's usual ones elsewhere.
    pub tag: &'static str,
    /// Classes of its classifier.
    pub classes: usize,
}

const fn published(name: &'static str, tag: &'static str, classes: usize) -> Published {
    Published { name, tag, classes }
}

/// Checkpoints by name. More shapes are understood than have a line here (`--arch`, `model_args`).
pub const PUBLISHED: [Published; 36] = [
    published("resnet18", "tv_in1k", 1000),
    published("resnet34", "a1_in1k", 1000),
    published("resnet50", "tv2_in1k", 1000),
    published("resnet101", "a1h_in1k", 1000),
    published("convnext_tiny", "fb_in22k", 21841),
    published("convnext_small", "fb_in22k", 21841),
    published("convnext_base", "fb_in22k", 21841),
    published("convnext_large", "fb_in22k", 21841),
    published("convnext_xlarge", "fb_in22k", 21841),
    published("vit_tiny_patch16_224", "augreg_in21k_ft_in1k", 1000),
    published("vit_small_patch16_224", "augreg_in21k_ft_in1k", 1000),
    published("vit_small_patch32_224", "augreg_in21k_ft_in1k", 1000),
    published("vit_base_patch16_224", "augreg2_in21k_ft_in1k", 1000),
    published("vit_base_patch32_224", "augreg_in21k_ft_in1k", 1000),
    published("vit_large_patch16_224", "augreg_in21k_ft_in1k", 1000),
    published("vit_base_patch16_224_miil", "in21k", MIIL_CLASSES),
    published("vit_base_patch16_clip_quickgelu_224", "openai", 512),
    published("vit_base_patch32_clip_quickgelu_224", "openai", 512),
    published("vit_large_patch14_clip_quickgelu_224", "openai", 768),
    published("swin_tiny_patch4_window7_224", "ms_in22k", 21841),
    published("swin_small_patch4_window7_224", "ms_in22k", 21841),
    published("swin_base_patch4_window7_224", "ms_in22k", 21841),
    published("swin_large_patch4_window7_224", "ms_in22k", 21841),
    published("swin_base_patch4_window12_384", "ms_in22k", 21841),
    published("swin_large_patch4_window12_384", "ms_in22k", 21841),
    published("coatnet_nano_rw_224", "sw_in1k", 1000),
    published("coatnet_0_rw_224", "sw_in1k", 1000),
    published("coatnet_bn_0_rw_224", "sw_in1k", 1000),
    published("coatnet_1_rw_224", "sw_in1k", 1000),
    published("coatnet_2_rw_224", "sw_in12k", 11821),
    published("coatnet_3_rw_224", "sw_in12k", 11821),
    published("coatnet_rmlp_nano_rw_224", "sw_in1k", 1000),
    published("coatnet_rmlp_1_rw_224", "sw_in1k", 1000),
    published("coatnet_rmlp_1_rw2_224", "sw_in12k", 11821),
    published("coatnet_rmlp_2_rw_224", "sw_in12k", 11821),
    published("coatnet_rmlp_2_rw_384", "sw_in12k_ft_in1k", 1000),
];

/// The names of published checkpoints' architectures.
pub fn architectures() -> Vec<String> {
    PUBLISHED.iter().map(|p| p.name.to_owned()).collect()
}

/// Put a JSON value where it belongs, if it has the right type.
pub(super) fn set<T: serde::de::DeserializeOwned>(slot: &mut T, value: &Value) -> Option<()> {
    *slot = serde_json::from_value(value.clone()).ok()?;
    Some(())
}

/// An image size: a pair, or one number for both.
pub(super) fn set_sides(slot: &mut [usize; 2], value: &Value) -> Option<()> {
    set(slot, value).or_else(|| {
        *slot = value.as_u64().map(|s| [s as usize; 2])?;
        Some(())
    })
}
