//! Architectures by timm's names, and timm's hub `config.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{ResNetConfig, VitConfig};
use crate::data::{Interpolation, Transform};
use crate::{Error, Result, bail, input_error};

const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];
/// Longest side of an input. Far above what any network here takes, far below what fills the memory.
pub(super) const MAX_SIDE: usize = 4096;
/// Classes of the MIIL ImageNet-21K-P checkpoints, which take unnormalised pixels.
const MIIL_CLASSES: usize = 11221;

/// How an image of any shape becomes the network's input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CropMode {
    /// Resize the short side, then cut out the centre.
    #[default]
    Center,
    /// Resize both sides, whatever the aspect.
    Squash,
}

/// How images are prepared for a model's own classifier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// Height and width of the network's input.
    pub image: [usize; 2],
    /// Whether to crop or to squash.
    pub crop_mode: CropMode,
    /// Share of the resized image that the centre crop keeps.
    pub crop_pct: f64,
    /// Resampling filter.
    pub interpolation: Interpolation,
    /// Subtracted from pixels in [0, 1].
    pub mean: [f32; 3],
    /// Then divided by.
    pub std: [f32; 3],
}

impl Preprocess {
    /// timm's evaluation transform, for the model's own classifier.
    pub fn evaluation(&self) -> Transform {
        let ([height, width], interpolation) = (self.image, self.interpolation);
        match self.crop_mode {
            CropMode::Center => {
                Transform::ResizeCrop { height, width, crop_pct: self.crop_pct, interpolation }
            }
            CropMode::Squash => Transform::Squash { height, width, interpolation },
        }
    }

    /// The papers' transform for adaptation: both sides resized, bilinear, nothing cropped.
    pub fn adaptation(&self) -> Transform {
        let [height, width] = self.image;
        Transform::Squash { height, width, interpolation: Interpolation::Bilinear }
    }
}

/// A network of a known family and shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "lowercase")]
pub enum Architecture {
    /// Residual convolutional network.
    ResNet(ResNetConfig),
    /// Vision transformer.
    Vit(VitConfig),
}

impl Architecture {
    /// The architecture of a timm name without its tag (`resnet18`, `vit_base_patch16_224`).
    ///
    /// # Errors
    /// The name is not known; the message lists what is.
    pub fn named(name: &str) -> Result<Self> {
        let resnet = |bottleneck, layers| Ok(Self::ResNet(ResNetConfig::new(bottleneck, layers)));
        match name {
            "resnet18" => resnet(false, [2, 2, 2, 2]),
            "resnet34" => resnet(false, [3, 4, 6, 3]),
            "resnet50" => resnet(true, [3, 4, 6, 3]),
            "resnet101" => resnet(true, [3, 4, 23, 3]),
            _ => vit(name).map(Self::Vit).ok_or_else(|| {
                input_error!("unknown architecture `{name}`; known are {}", architectures().join(", "))
            }),
        }
    }

    /// Apply timm's keyword arguments (`model_args`).
    ///
    /// # Errors
    /// An argument is unknown to this family or has the wrong type.
    pub fn with_args(mut self, args: &Map<String, Value>) -> Result<Self> {
        for (key, value) in args {
            let known = match &mut self {
                Self::ResNet(c) => match key.as_str() {
                    "layers" => set(&mut c.layers, value),
                    "channels" => set(&mut c.channels, value),
                    "block" => block(value).map(|b| c.bottleneck = b),
                    "num_classes" | "in_chans" => Some(()),
                    _ => None,
                },
                Self::Vit(c) => match key.as_str() {
                    "img_size" => side(value).map(|s| c.image = s),
                    "patch_size" => set(&mut c.patch, value),
                    "embed_dim" => set(&mut c.width, value),
                    "depth" => set(&mut c.depth, value),
                    "num_heads" => set(&mut c.heads, value),
                    "qkv_bias" => set(&mut c.qkv_bias, value),
                    "num_classes" | "in_chans" => Some(()),
                    _ => None,
                },
            };
            if known.is_none() {
                bail!("config.json: model_args `{key}` = {value} is not understood for this architecture");
            }
        }
        self.check()?;
        Ok(self)
    }

    fn check(&self) -> Result<()> {
        match self {
            Self::ResNet(c) if c.layers.contains(&0) || c.channels.contains(&0) || c.stem == 0 => {
                bail!("config.json: layers {:?} and channels {:?} must be positive", c.layers, c.channels)
            }
            Self::Vit(c) if c.patch == 0 || c.heads == 0 || c.width % c.heads.max(1) != 0 => bail!(
                "config.json: embed_dim {} must be a multiple of num_heads {}, and patch_size {} positive",
                c.width,
                c.heads,
                c.patch
            ),
            Self::Vit(c) if c.image.iter().any(|s| *s < c.patch || s % c.patch != 0 || *s > MAX_SIDE) => {
                bail!(
                    "config.json: img_size {:?} must be a multiple of patch_size {}, up to {MAX_SIDE}",
                    c.image,
                    c.patch
                )
            }
            _ => Ok(()),
        }
    }

    /// The classifier's name in the checkpoint.
    pub fn classifier(&self) -> &'static str {
        match self {
            Self::ResNet(_) => "fc",
            Self::Vit(_) => "head",
        }
    }

    /// Width of the pooled features.
    pub fn feature_width(&self) -> usize {
        match self {
            Self::ResNet(c) => c.channels[3] * if c.bottleneck { 4 } else { 1 },
            Self::Vit(c) => c.width,
        }
    }

    /// LoTeP's depth ratio for this family (`spec/methods.md` 1.3: 0.8 for ResNets, 0.4 for ViTs).
    pub fn default_depth_ratio(&self) -> f64 {
        match self {
            Self::ResNet(_) => 0.8,
            Self::Vit(_) => 0.4,
        }
    }

    /// What the published weights expect when no `config.json` says it.
    fn preprocess(&self, classes: usize) -> Preprocess {
        let (mean, std) = match self {
            _ if classes == MIIL_CLASSES => ([0.0; 3], [1.0; 3]),
            Self::ResNet(_) => (IMAGENET_MEAN, IMAGENET_STD),
            Self::Vit(c) if !c.qkv_bias => ([0.0; 3], [1.0; 3]),
            Self::Vit(_) => ([0.5; 3], [0.5; 3]),
        };
        match self {
            Self::ResNet(_) => Preprocess {
                image: [224, 224],
                crop_mode: CropMode::Center,
                crop_pct: 0.875,
                interpolation: Interpolation::Bilinear,
                mean,
                std,
            },
            Self::Vit(c) => Preprocess {
                image: c.image,
                crop_mode: CropMode::Center,
                crop_pct: if c.qkv_bias { 0.9 } else { 0.875 },
                interpolation: if c.qkv_bias { Interpolation::Bicubic } else { Interpolation::Bilinear },
                mean,
                std,
            },
        }
    }
}

/// The names [`Architecture::named`] knows.
pub fn architectures() -> Vec<String> {
    let mut names: Vec<String> = ["resnet18", "resnet34", "resnet50", "resnet101"].map(Into::into).into();
    for (size, patch) in [("tiny", 16), ("small", 16), ("small", 32), ("base", 16), ("base", 32)] {
        names.push(format!("vit_{size}_patch{patch}_224"));
    }
    names.push("vit_base_patch16_224_miil".into());
    names
}

/// `vit_SIZE_patchP_IMAGE`, with `_miil` for the variant without a qkv bias.
fn vit(name: &str) -> Option<VitConfig> {
    let (name, qkv_bias) = match name.strip_suffix("_miil") {
        Some(name) => (name, false),
        None => (name, true),
    };
    let (size, rest) = name.strip_prefix("vit_")?.split_once("_patch")?;
    let (patch, image) = rest.split_once('_')?;
    let (patch, image): (usize, usize) = (patch.parse().ok()?, image.parse().ok()?);
    let (width, depth, heads) = match size {
        "tiny" => (192, 12, 3),
        "small" => (384, 12, 6),
        "base" => (768, 12, 12),
        _ => return None,
    };
    let config = VitConfig { image: [image; 2], patch, width, depth, heads, qkv_bias };
    (patch > 0 && image > 0 && image % patch == 0 && image <= MAX_SIDE).then_some(config)
}

fn set<T: serde::de::DeserializeOwned>(slot: &mut T, value: &Value) -> Option<()> {
    *slot = serde_json::from_value(value.clone()).ok()?;
    Some(())
}

fn side(value: &Value) -> Option<[usize; 2]> {
    let mut pair = [0; 2];
    match set(&mut pair, value) {
        Some(()) => Some(pair),
        None => value.as_u64().map(|s| [s as usize; 2]),
    }
}

fn block(value: &Value) -> Option<bool> {
    match value.as_str()?.to_ascii_lowercase().as_str() {
        "bottleneck" => Some(true),
        "basicblock" | "basic" => Some(false),
        _ => None,
    }
}

/// A resolved model: its architecture, class count and preprocessing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// timm's name without a tag.
    pub name: String,
    /// The network.
    pub architecture: Architecture,
    /// Classes of its own classifier.
    pub classes: usize,
    /// Preprocessing for its own classifier.
    pub preprocess: Preprocess,
}

/// The parts of timm's `config.json` that matter here.
#[derive(Debug, Deserialize)]
struct HubConfig {
    architecture: String,
    num_classes: Option<usize>,
    #[serde(default)]
    model_args: Map<String, Value>,
    #[serde(default)]
    pretrained_cfg: Map<String, Value>,
}

impl ModelConfig {
    /// An architecture with its usual preprocessing.
    ///
    /// # Errors
    /// The name is unknown.
    pub fn named(name: &str, classes: usize) -> Result<Self> {
        let bare = name.split('.').next().unwrap_or(name);
        let architecture = Architecture::named(bare)?;
        let preprocess = architecture.preprocess(classes);
        Ok(Self { name: bare.into(), architecture, classes, preprocess })
    }

    /// Read timm's hub `config.json`.
    ///
    /// # Errors
    /// The file can't be read, is not JSON, or holds a value that makes no sense.
    pub fn from_hub(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let hub: HubConfig = serde_json::from_str(&text)
            .map_err(|e| input_error!("{} is not a timm config.json: {e}", path.display()))?;
        let in_file = |e: Error| input_error!("{}: {e}", path.display());
        let architecture = Architecture::named(&hub.architecture)
            .and_then(|a| a.with_args(&hub.model_args))
            .map_err(in_file)?;
        let classes = hub
            .num_classes
            .or_else(|| hub.pretrained_cfg.get("num_classes")?.as_u64().map(|n| n as usize))
            .unwrap_or(1000);
        let mut preprocess = architecture.preprocess(classes);
        let cfg = &hub.pretrained_cfg;
        let read = |key: &str, ok: Option<()>| -> Result<()> {
            ok.ok_or_else(|| {
                input_error!("{}: pretrained_cfg `{key}` = {} makes no sense", path.display(), cfg[key])
            })
        };
        for (key, value) in cfg {
            match key.as_str() {
                "input_size" => {
                    let mut size = [0_usize; 3];
                    let ok = |side: usize| (1..=MAX_SIDE).contains(&side);
                    read(key, set(&mut size, value).filter(|()| size[0] == 3 && ok(size[1]) && ok(size[2])))?;
                    preprocess.image = [size[1], size[2]];
                }
                "crop_pct" => {
                    let ok =
                        value.as_f64().filter(|v| *v > 0.0 && *v <= 4.0).map(|v| preprocess.crop_pct = v);
                    read(key, ok)?;
                }
                "crop_mode" => read(key, set(&mut preprocess.crop_mode, value))?,
                "interpolation" => read(key, set(&mut preprocess.interpolation, value))?,
                // Of pixels in [0, 1]: statistics on the scale of 0 to 255 would silently ruin every prediction.
                "mean" => {
                    let ok = |v: &f32| (0.0..=1.0).contains(v);
                    read(key, set(&mut preprocess.mean, value).filter(|()| preprocess.mean.iter().all(ok)))?;
                }
                "std" => {
                    let ok = |v: &f32| *v > 0.0 && *v <= 1.0;
                    read(key, set(&mut preprocess.std, value).filter(|()| preprocess.std.iter().all(ok)))?;
                }
                _ => {}
            }
        }
        if let Architecture::Vit(c) = &architecture {
            preprocess.image = c.image;
        }
        Ok(Self { name: hub.architecture, architecture, classes, preprocess })
    }

    /// The `config.json` that timm's hub layout wants for this model.
    pub fn to_hub(&self) -> Value {
        let args = match &self.architecture {
            Architecture::ResNet(c) => serde_json::json!({ "layers": c.layers, "channels": c.channels }),
            Architecture::Vit(c) => serde_json::json!({
                "img_size": c.image, "patch_size": c.patch, "embed_dim": c.width, "depth": c.depth,
                "num_heads": c.heads, "qkv_bias": c.qkv_bias,
            }),
        };
        let p = &self.preprocess;
        serde_json::json!({
            "architecture": self.name,
            "num_classes": self.classes,
            "num_features": self.architecture.feature_width(),
            "model_args": args,
            "pretrained_cfg": {
                "input_size": [3, p.image[0], p.image[1]],
                "num_classes": self.classes,
                "crop_pct": p.crop_pct,
                "interpolation": p.interpolation,
                "crop_mode": p.crop_mode,
                "mean": p.mean.map(short),
                "std": p.std.map(short),
                "first_conv": match self.architecture {
                    Architecture::ResNet(_) => "conv1",
                    Architecture::Vit(_) => "patch_embed.proj",
                },
                "classifier": self.architecture.classifier(),
            },
        })
    }
}

/// The decimal number that a person wrote for this f32: 0.485, not 0.48500001430511475.
fn short(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_strictly() {
        for name in architectures() {
            assert!(Architecture::named(&name).is_ok(), "{name}");
        }
        for name in [
            "resnet",
            "vit_base_patch16_clip_224",
            "vit_huge_patch14_224",
            "vit_base_patch0_224",
            "vit_base_patch16_225",
            "",
        ] {
            let error = Architecture::named(name).unwrap_err().to_string();
            assert!(error.contains("resnet18"), "{error}");
        }
    }

    #[test]
    fn timm_arguments_change_the_shape_and_wrong_ones_are_named() {
        let args = |v: Value| v.as_object().cloned().unwrap();
        let vit = Architecture::named("vit_tiny_patch16_224").unwrap();
        let Architecture::Vit(c) = vit
            .clone()
            .with_args(&args(serde_json::json!({"img_size": [48, 64], "embed_dim": 32, "num_heads": 4})))
            .unwrap()
        else {
            panic!()
        };
        assert_eq!((c.image, c.width, c.heads), ([48, 64], 32, 4));
        for (bad, name) in [
            (serde_json::json!({"img_size": 50}), "img_size"),
            (serde_json::json!({"num_heads": 5}), "num_heads"),
            (serde_json::json!({"class_token": false}), "class_token"),
            (serde_json::json!({"depth": "x"}), "depth"),
        ] {
            let error = vit.clone().with_args(&args(bad)).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn hub_config_round_trips() {
        let mut config = ModelConfig::named("resnet50.a1_in1k", 7).unwrap();
        config.preprocess.image = [64, 96];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, config.to_hub().to_string()).unwrap();
        assert_eq!(ModelConfig::from_hub(&path).unwrap(), config);
    }
}
