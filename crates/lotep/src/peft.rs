//! LoRA adapters as PEFT keeps them: `adapter_config.json` and `adapter_model.safetensors`, layers by timm's names behind
//! `base_model.model.`, the classifier among the modules to save.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::tensor::Tensor;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::adapter::Adapter;
use crate::backbone::{ConvUpdate, Loaded};
use crate::head::{Head, Mapping, linear};
use crate::method::{ConvForm, Lora, MethodConfig, Site};
use crate::safetensors::{NamedTensor, TensorFile, serialize};
use crate::train::setup::init_params;
use crate::{Error, Result, bail, input_error, write_atomic, write_json};

const CONFIG: &str = "adapter_config.json";
const MODEL: &str = "adapter_model.safetensors";
/// What PEFT calls a network wrapped twice.
const WRAPPED: &str = "base_model.model.";
/// The metadata entry with the classes' names, which PEFT has no place for.
const CLASSES: &str = "lotep_classes";

/// Write a LoRA adapter for PEFT and timm: parts of a fused projection become one addition to all of it, of as many times
/// the rank.
///
/// # Errors
/// The adapter is of another method or maps source classes, or `output` can't be written.
pub fn export(loaded: &Loaded, adapter: &Adapter, output: &Path) -> Result<()> {
    let MethodConfig::Lora(lora) = &adapter.config.method else {
        bail!("PEFT's files hold LoRA alone, not {}", adapter.config.method.name());
    };
    if adapter.config.head.mapping != Mapping::Linear {
        bail!(
            "PEFT's files have no place for a mapping of source classes: only --mapping linear can be exported"
        );
    }
    let (scale, site) = (lora.scale(), Site::of(loaded));
    let layer = |name: &str| site.layers().iter().find(|l| l.name == name);
    let mut tensors = Vec::new();
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    let mut names = Vec::new();
    for (name, update) in lora.updates(&site, &adapter.params) {
        let rank = update.down.dims()[0];
        if rank != lora.rank {
            ranks.insert(name.clone(), rank.into());
            alphas.insert(name.clone(), (scale * rank as f64).into());
        }
        // Layers that a checkpoint keeps as convolutions of single pixels are convolutions to PEFT.
        let tail: &[usize] = if layer(&name).is_some_and(|l| l.shape.len() == 4) { &[1, 1] } else { &[] };
        for (side, factor) in [("A", update.down), ("B", update.up / scale)] {
            let mut factor = named(format!("{WRAPPED}{name}.lora_{side}.weight"), factor);
            factor.shape.extend(tail);
            tensors.push(factor);
        }
        names.push(name);
    }
    for (name, update) in lora.conv_updates(&site, &adapter.params) {
        let ConvUpdate::Thin { down, up } = update else {
            bail!(
                "PEFT's convolutions have no place for loralib's form: only --conv-form peft can be exported"
            );
        };
        let mut up = named(format!("{WRAPPED}{name}.lora_B.weight"), up / scale);
        up.shape.extend([1, 1]);
        tensors.extend([named(format!("{WRAPPED}{name}.lora_A.weight"), down), up]);
        names.push(name);
    }
    let classifier = loaded.config.architecture.classifier();
    tensors.push(named(format!("{WRAPPED}{classifier}.weight"), adapter.params.get::<2>(linear::WEIGHT)));
    tensors.push(named(format!("{WRAPPED}{classifier}.bias"), adapter.params.get::<1>(linear::BIAS)));
    let config = json!({
        "peft_type": "LORA", "task_type": null, "auto_mapping": null, "inference_mode": true,
        "base_model_name_or_path": loaded.source, "revision": null,
        "r": lora.rank, "lora_alpha": scale * lora.rank as f64, "rank_pattern": ranks, "alpha_pattern": alphas,
        "target_modules": names, "modules_to_save": [classifier],
        "lora_dropout": lora.dropout, "bias": "none", "fan_in_fan_out": false, "init_lora_weights": true,
        "use_rslora": false, "use_dora": false,
    });
    let classes = serde_json::to_string(&adapter.config.classes)
        .map_err(|e| input_error!("cannot write the classes: {e}"))?;
    write_atomic(&output.join(MODEL), &serialize(&tensors, Some((CLASSES, classes)))?)?;
    write_json(&config, &output.join(CONFIG))
}

fn named<const D: usize>(name: String, x: Tensor<D>) -> NamedTensor {
    NamedTensor { name, shape: x.dims().into(), values: x.into_data().iter::<f32>().collect() }
}

/// What is read of PEFT's configuration.
#[derive(Deserialize)]
struct Config {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    init_lora_weights: Value,
    #[serde(default)]
    rank_pattern: BTreeMap<String, usize>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
}

/// Whether a directory is an adapter of PEFT's.
pub fn is_peft(dir: &Path) -> bool {
    let text = std::fs::read_to_string(dir.join(CONFIG)).unwrap_or_default();
    serde_json::from_str::<Value>(&text).is_ok_and(|v| v.get("peft_type").is_some())
}

/// Read a LoRA adapter that PEFT wrote for a network of timm's. `classes` names the classes; without, the names that
/// [`export`] left, or numbers.
///
/// # Errors
/// It is no LoRA, or of a kind that isn't understood, or it does not fit the network; the message names what.
pub fn import(dir: &Path, loaded: &Loaded, classes: Option<Vec<String>>) -> Result<Adapter> {
    let path = dir.join(CONFIG);
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let config: Config = serde_json::from_str(&text)
        .map_err(|e| input_error!("{} is not PEFT's description of a LoRA: {e}", path.display()))?;
    let not_understood = [
        (config.peft_type != "LORA", "peft_type"),
        (config.use_dora, "use_dora"),
        (config.fan_in_fan_out, "fan_in_fan_out"),
        // Those that begin with a part of the weights change the network that they are for.
        (!matches!(config.init_lora_weights.as_str(), None | Some("gaussian" | "eva")), "init_lora_weights"),
        // PEFT takes the names in it for regular expressions.
        (
            config
                .alpha_pattern
                .keys()
                .any(|key| key.contains(['\\', '^', '$', '*', '+', '?', '(', '[', '{', '|'])),
            "alpha_pattern",
        ),
        (config.bias.as_deref().is_some_and(|b| b != "none"), "bias"),
    ];
    if let Some((_, what)) = not_understood.iter().find(|(is, _)| *is) {
        bail!("{}: `{what}` is of a kind that is not understood: plain LoRA is expected", path.display());
    }
    let path = dir.join(MODEL);
    let file = TensorFile::open(&path)?;
    let what = path.display().to_string();
    let shapes = file.shapes();
    let mut factors: BTreeMap<&str, [Option<&str>; 2]> = BTreeMap::new();
    let mut saved: BTreeMap<&str, &str> = BTreeMap::new();
    for full in shapes.keys() {
        let Some(name) = full.strip_prefix(WRAPPED) else {
            bail!("{what}: tensor `{full}` does not begin with {WRAPPED}");
        };
        // PEFT leaves an adapter's name out when it saves; files written by other means have it.
        let side = ["lora_A", "lora_B"].iter().enumerate().find_map(|(i, side)| {
            let rest = name.strip_suffix(".weight")?;
            let rest = rest.strip_suffix(".default").unwrap_or(rest);
            Some((i, rest.strip_suffix(side)?.strip_suffix('.')?))
        });
        match side {
            Some((i, layer)) => factors.entry(layer).or_default()[i] = Some(full),
            None => {
                saved.insert(name, full);
            }
        }
    }
    let classifier = loaded.config.architecture.classifier();
    let mut own: BTreeMap<&str, &str> = BTreeMap::new();
    for (leaf, ours) in [("weight", linear::WEIGHT), ("bias", linear::BIAS)] {
        let places = [".", ".modules_to_save.", ".modules_to_save.default."];
        let found = places.iter().find_map(|p| saved.remove(format!("{classifier}{p}{leaf}").as_str()));
        let Some(found) = found else {
            bail!(
                "{what} has no `{WRAPPED}{classifier}.{leaf}`: a classifier among modules_to_save is expected"
            );
        };
        own.insert(ours, found);
    }
    if let Some(other) = saved.keys().next() {
        bail!("{what}: `{other}` belongs neither to a LoRA nor to the classifier `{classifier}`");
    }
    let count = shapes[own[linear::WEIGHT]].first().copied().unwrap_or_default();
    let stored = file.metadata().remove(CLASSES);
    let stored = stored.and_then(|text| serde_json::from_str::<Vec<String>>(&text).ok());
    let classes = classes.or(stored).unwrap_or_else(|| (0..count).map(|i| i.to_string()).collect());
    if classes.len() != count {
        bail!("{what}: its classifier has {count} classes, {} names are given", classes.len());
    }
    if classes.iter().collect::<BTreeSet<_>>().len() != count {
        bail!("{what}: a class is named twice");
    }
    let ranks: BTreeSet<usize> =
        factors.values().filter_map(|[a, _]| shapes[(*a)?].first().copied()).collect();
    let mut found = ranks.iter();
    let (Some(&rank), None) = (found.next(), found.next()) else {
        bail!("{what}: additions of one rank are expected, it has {ranks:?}");
    };
    let scale = |layer: &str| {
        let pattern = config.alpha_pattern.iter().find(|(key, _)| {
            layer.strip_suffix(key.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        });
        let alpha = pattern.map_or(config.lora_alpha, |(_, alpha)| *alpha);
        alpha / if config.use_rslora { (rank as f64).sqrt() } else { rank as f64 }
    };
    if config.alpha_pattern.is_empty() && config.rank_pattern.is_empty() && rank != config.r {
        bail!("{what}: additions have rank {rank}, {CONFIG} says {}", config.r);
    }
    // One scale for all; what a layer has beside it goes into its factor.
    let targets: Vec<String> = factors.keys().map(|&name| name.to_owned()).collect();
    let common = scale(&targets[0]);
    let alpha = common * rank as f64;
    let method = MethodConfig::Lora(Lora {
        rank,
        alpha: Some(alpha),
        targets: Some(targets),
        conv_form: ConvForm::Peft,
        dropout: config.lora_dropout,
    });
    let head = Head::default();
    let mut params = init_params(loaded, &method, head, count, 0).map_err(|e| input_error!("{what}: {e}"))?;
    params.load(&what, |name| {
        if let Some(full) = own.get(name) {
            return file.read(full);
        }
        let (layer, side) = Lora::factor_of(name).ok_or_else(|| input_error!("{what}: no `{name}`"))?;
        let full = factors.get(layer).and_then(|f| f[side]);
        let full = full.ok_or_else(|| input_error!("{what}: `{layer}` lacks one of its two factors"))?;
        let (mut values, mut shape) = file.read(full)?;
        let convolution = loaded.layers.iter().any(|l| l.name == layer && l.convolution);
        if shape.len() == 4 && shape[2..] == [1, 1] && (side == 1 || !convolution) {
            shape.truncate(2);
        }
        if side == 1 {
            let more = (scale(layer) / common) as f32;
            for value in &mut values {
                *value *= more;
            }
        }
        if values.iter().any(|v| !v.is_finite()) {
            bail!("{what}: `{full}` has values that are no numbers, or its alpha makes them so");
        }
        Ok((values, shape))
    })?;
    Adapter::new(loaded, method, head, classes, params)
}
