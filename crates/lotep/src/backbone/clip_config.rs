//! CLIP's configuration as transformers and open_clip write it.

use serde::Deserialize;
use serde_json::{Value, json};

use super::family::Family;
use super::text::TextHints;
use super::{Architecture, ModelConfig, Preprocess, VitConfig};
use crate::ops::Nonlinearity;
use crate::{Result, bail, input_error};

/// transformers' `config.json`, as far as it says what weights don't. What it leaves out is the library's default.
#[derive(Deserialize)]
struct HuggingFace {
    vision_config: HuggingFaceImage,
    text_config: HuggingFaceText,
    #[serde(default = "features")]
    projection_dim: usize,
}

const fn features() -> usize {
    512
}

#[derive(Deserialize)]
#[serde(default)]
struct HuggingFaceImage {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    image_size: usize,
    patch_size: usize,
    hidden_act: String,
}

impl Default for HuggingFaceImage {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            hidden_act: "quick_gelu".into(),
        }
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct HuggingFaceText {
    num_attention_heads: usize,
    hidden_act: String,
}

impl Default for HuggingFaceText {
    fn default() -> Self {
        Self { num_attention_heads: 8, hidden_act: "quick_gelu".into() }
    }
}

/// open_clip's `open_clip_config.json`.
#[derive(Deserialize)]
struct OpenClip {
    embed_dim: usize,
    #[serde(default)]
    quick_gelu: bool,
    vision_cfg: OpenClipImage,
    text_cfg: OpenClipText,
}

#[derive(Deserialize)]
struct OpenClipImage {
    image_size: usize,
    /// A list for a ResNet's stages, which is another network.
    layers: Value,
    width: usize,
    #[serde(default)]
    patch_size: Option<usize>,
    #[serde(default = "head_width")]
    head_width: usize,
}

const fn head_width() -> usize {
    64
}

#[derive(Deserialize)]
struct OpenClipText {
    heads: usize,
}

fn nonlinearity(name: &str) -> Result<Nonlinearity> {
    match name {
        "quick_gelu" => Ok(Nonlinearity::QuickGelu),
        "gelu" => Ok(Nonlinearity::Gelu),
        other => bail!("`hidden_act` {other} is not one that CLIP has: quick_gelu or gelu is expected"),
    }
}

/// What a `config.json` of transformers or an `open_clip_config.json` says of a CLIP; `None` if it is of another model.
///
/// # Errors
/// It is of a CLIP that is not understood.
pub(super) fn read(config: &Value) -> Result<Option<ModelConfig>> {
    if config["model_type"] == "clip" {
        let c: HuggingFace = serde_json::from_value(config.clone())
            .map_err(|e| input_error!("not a CLIP of transformers: {e}"))?;
        let (image, text) = (c.vision_config, c.text_config);
        let shape = VitConfig::new(
            [image.image_size; 2],
            image.patch_size,
            image.hidden_size,
            image.num_hidden_layers,
            image.num_attention_heads,
        );
        let hints = TextHints {
            heads: Some(text.num_attention_heads),
            nonlinearity: Some(nonlinearity(&text.hidden_act)?),
        };
        return model(shape, nonlinearity(&image.hidden_act)?, c.projection_dim, hints).map(Some);
    }
    let Some(cfg) = config.get("model_cfg") else { return Ok(None) };
    let c: OpenClip =
        serde_json::from_value(cfg.clone()).map_err(|e| input_error!("not a CLIP of open_clip: {e}"))?;
    let (Some(depth), Some(patch)) = (c.vision_cfg.layers.as_u64(), c.vision_cfg.patch_size) else {
        bail!("the image tower is no vision transformer; of CLIP's, lotep reads those that are");
    };
    let image = c.vision_cfg;
    let heads = image.width / image.head_width.max(1);
    let act = if c.quick_gelu { Nonlinearity::QuickGelu } else { Nonlinearity::Gelu };
    let shape = VitConfig::new([image.image_size; 2], patch, image.width, depth as usize, heads);
    let hints = TextHints { heads: Some(c.text_cfg.heads), nonlinearity: Some(act) };
    let mut found = model(shape, act, c.embed_dim, hints)?;
    let p = &config["preprocess_cfg"];
    let read = |key: &str| serde_json::from_value::<[f32; 3]>(p[key].clone()).ok();
    if let (Some(mean), Some(std)) = (read("mean"), read("std")) {
        (found.preprocess.mean, found.preprocess.std) = (mean, std);
    }
    Ok(Some(found))
}

fn model(
    shape: VitConfig,
    nonlinearity: Nonlinearity,
    classes: usize,
    text: TextHints,
) -> Result<ModelConfig> {
    let shape = VitConfig { clip: true, nonlinearity, ..shape };
    shape.check()?;
    let quick = if nonlinearity == Nonlinearity::QuickGelu { "quickgelu_" } else { "" };
    let size = match shape.width {
        192 => "tiny",
        384 => "small",
        1024 => "large",
        _ => "base",
    };
    let (patch, image) = (shape.patch, shape.image[0]);
    let name = format!("vit_{size}_patch{patch}_clip_{quick}{image}");
    let architecture = Architecture::Vit(shape);
    let preprocess = Preprocess { crop_pct: 1.0, ..architecture.preprocess(classes) };
    Ok(ModelConfig { name, architecture, classes, preprocess, text })
}

/// timm's `config.json` has no word for a text tower; ours is an object beside `model_args`.
pub(super) fn hints(args: &Value) -> Option<TextHints> {
    let mut args = args.as_object()?.clone();
    let heads = args.remove("num_heads").map(|v| v.as_u64().filter(|h| *h > 0));
    let act = args.remove("act_layer").map(|v| v.as_str().and_then(|name| nonlinearity(name).ok()));
    if !args.is_empty() || heads == Some(None) || act == Some(None) {
        return None;
    }
    Some(TextHints { heads: heads.flatten().map(|h| h as usize), nonlinearity: act.flatten() })
}

/// The same the other way about.
pub(super) fn to_args(hints: TextHints) -> Value {
    let mut args = json!({});
    if let Some(heads) = hints.heads {
        args["num_heads"] = heads.into();
    }
    match hints.nonlinearity {
        Some(Nonlinearity::QuickGelu) => args["act_layer"] = "quick_gelu".into(),
        Some(_) => args["act_layer"] = "gelu".into(),
        None => {}
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transformers_and_open_clip_say_the_same() {
        let theirs = read(&json!({
            "model_type": "clip", "projection_dim": 512,
            "text_config": { "model_type": "clip_text_model" },
            "vision_config": { "patch_size": 16, "model_type": "clip_vision_model" },
        }));
        let openai = read(&json!({
            "model_cfg": {
                "embed_dim": 512, "quick_gelu": true,
                "vision_cfg": { "image_size": 224, "layers": 12, "width": 768, "patch_size": 16 },
                "text_cfg": { "context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12 },
            },
            "preprocess_cfg": { "mean": [0.481_454_66, 0.457_827_5, 0.408_210_73] },
        }));
        let named = ModelConfig::named("vit_base_patch16_clip_quickgelu_224", 512).unwrap();
        let (theirs, openai) = (theirs.unwrap().unwrap(), openai.unwrap().unwrap());
        assert_eq!(theirs, openai);
        assert_eq!((&theirs.name, &theirs.architecture), (&named.name, &named.architecture));
        assert_eq!(theirs.text.heads, Some(8));
        assert!((theirs.preprocess.crop_pct - 1.0).abs() < 1e-9);
    }

    #[test]
    fn other_models_and_nonsense_are_told_apart() {
        assert_eq!(read(&json!({ "model_type": "bert" })).unwrap(), None);
        let refused = |config: Value| read(&config).unwrap_err().to_string();
        let silu =
            json!({ "model_type": "clip", "text_config": { "hidden_act": "silu" }, "vision_config": {} });
        assert!(refused(silu).contains("silu"));
        let resnet = json!({ "model_cfg": {
            "embed_dim": 1024, "vision_cfg": { "image_size": 224, "layers": [3, 4, 6, 3], "width": 64 },
            "text_cfg": { "heads": 8 },
        } });
        assert!(refused(resnet).contains("vision transformer"));
        assert_eq!(hints(&json!({ "num_heads": 0 })), None);
        assert_eq!(hints(&json!({ "depth": 3 })), None);
        let given = TextHints { heads: Some(3), nonlinearity: Some(Nonlinearity::QuickGelu) };
        assert_eq!(hints(&to_args(given)), Some(given));
    }
}
