//! timm's hub `config.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::family::set;
use super::preprocess::MAX_SIDE;
use super::text::TextHints;
use super::{Architecture, Preprocess, clip_config};
use crate::{Error, Result, input_error};

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
    /// What is known of a text tower beside its weights.
    #[serde(default)]
    pub text: TextHints,
}

/// The parts of timm's `config.json` that matter here.
#[derive(Debug, Deserialize)]
struct HubConfig {
    architecture: Option<String>,
    num_classes: Option<usize>,
    #[serde(default)]
    model_args: Map<String, Value>,
    #[serde(default)]
    pretrained_cfg: Map<String, Value>,
    /// Ours: `num_heads` and `act_layer` of a CLIP's text tower.
    #[serde(default)]
    text_args: Option<Value>,
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
        Ok(Self { name: bare.into(), architecture, classes, preprocess, text: TextHints::default() })
    }

    /// Read timm's hub `config.json`, or what transformers or open_clip write of a CLIP; `None` if it is of another
    /// model.
    ///
    /// # Errors
    /// The file can't be read, is not JSON, or holds a value that makes no sense.
    pub fn from_hub(path: &Path) -> Result<Option<Self>> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let not_one = |e| input_error!("{} is not a timm config.json: {e}", path.display());
        let json: Value = serde_json::from_str(&text).map_err(not_one)?;
        let in_file = |e: Error| input_error!("{}: {e}", path.display());
        let hub: HubConfig = serde_json::from_value(json.clone()).map_err(not_one)?;
        let Some(name) = hub.architecture else { return clip_config::read(&json).map_err(in_file) };
        let text = match &hub.text_args {
            Some(args) => clip_config::hints(args)
                .ok_or_else(|| input_error!("{}: `text_args` = {args} makes no sense", path.display()))?,
            None => TextHints::default(),
        };
        let architecture =
            Architecture::named(&name).and_then(|a| a.with_args(&hub.model_args)).map_err(in_file)?;
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
        if let Some(image) = architecture.image() {
            preprocess.image = image;
        }
        Ok(Some(Self { name, architecture, classes, preprocess, text }))
    }

    /// The `config.json` that timm's hub layout wants for this model.
    pub fn to_hub(&self) -> Value {
        let p = &self.preprocess;
        let mut json = serde_json::json!({
            "architecture": self.name,
            "num_classes": self.classes,
            "num_features": self.architecture.feature_width(),
            "model_args": self.architecture.args(),
            "pretrained_cfg": {
                "input_size": [3, p.image[0], p.image[1]],
                "num_classes": self.classes,
                "crop_pct": p.crop_pct,
                "interpolation": p.interpolation,
                "crop_mode": p.crop_mode,
                "mean": p.mean.map(short),
                "std": p.std.map(short),
                "first_conv": self.architecture.first_conv(),
                "classifier": self.architecture.classifier(),
            },
        });
        if self.text != TextHints::default() {
            json["text_args"] = clip_config::to_args(self.text);
        }
        json
    }
}

/// The decimal number that a person wrote for this f32: 0.485, not 0.48500001430511475.
fn short(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::architectures;

    #[test]
    fn names_are_parsed_strictly() {
        for name in architectures() {
            assert!(Architecture::named(&name).is_ok(), "{name}");
        }
        for name in [
            "resnet",
            "swin_base_patch4_window7_225",
            "coatnet_9_rw_224",
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
    fn shapes_beyond_reason_are_refused() {
        let huge = u64::MAX;
        for (name, bad) in [
            ("resnet18", serde_json::json!({"channels": [huge, 8, 8, 8]})),
            ("vit_tiny_patch16_224", serde_json::json!({"embed_dim": huge, "num_heads": 1})),
            ("convnext_tiny", serde_json::json!({"dims": [8, 8, 8, huge]})),
            ("convnext_tiny", serde_json::json!({"patch_size": huge})),
            ("swin_tiny_patch4_window7_224", serde_json::json!({"embed_dim": huge})),
            (
                "swin_tiny_patch4_window7_224",
                serde_json::json!({"img_size": 4096, "patch_size": 1, "window_size": 64}),
            ),
            ("swin_tiny_patch4_window7_224", serde_json::json!({"depths": [2, 2], "num_heads": [3]})),
            ("swin_tiny_patch4_window7_224", serde_json::json!({"num_heads": [3, 0, 3, 3]})),
            ("coatnet_2_rw_224", serde_json::json!({"embed_dim": [128, 256, 512, huge]})),
            ("coatnet_2_rw_224", serde_json::json!({"img_size": 200})),
        ] {
            let args = bad.as_object().cloned().unwrap();
            let error = Architecture::named(name).unwrap().with_args(&args).unwrap_err().to_string();
            let key = args.keys().find(|key| error.contains(key.as_str()));
            assert!(key.is_some(), "{name} {bad}: {error}");
        }
        assert!(Architecture::named("convnext_tiny").unwrap().takes([31, 224]).is_err());
    }

    #[test]
    fn hub_config_round_trips() {
        let mut config = ModelConfig::named("resnet50.a1_in1k", 7).unwrap();
        config.preprocess.image = [64, 96];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, config.to_hub().to_string()).unwrap();
        assert_eq!(ModelConfig::from_hub(&path).unwrap(), Some(config));
    }
}
