//! Write an adapted network as a plain checkpoint in timm's hub layout, where that is possible.

use std::collections::BTreeMap;
use std::path::Path;

use crate::adapter::Adapter;
use crate::backbone::{Checkpoint, CropMode, Loaded};
use crate::data::Transform;
use crate::model::Predictor;
use crate::safetensors::{NamedTensor, serialize};
use crate::{Result, bail, input_error, write_atomic};

/// Merge `adapter` into the weights of `loaded` and write `config.json` and `model.safetensors` to `output`.
///
/// The classifier always merges. A ViT's image prompt and first block's prompt become part of its position
/// embedding; deeper prompts, and a ResNet's, have no place in timm's checkpoint.
///
/// # Errors
/// Something can't be merged (the message says what), the backbone has no file, or `output` can't be written.
pub fn merge(loaded: &Loaded, adapter: &Adapter, output: &Path) -> Result<()> {
    let Some(file) = &loaded.file else { bail!("a network of random weights can't be exported") };
    let merged = Predictor::merge(loaded, &adapter.config.method, adapter.config.head, &adapter.params)?;
    if !merged.left.is_empty() {
        bail!(
            "timm's layout has no place for the prompts of {} at: {}; keep the adapter beside the backbone instead \
             (prompts that merge: a ViT's image prompt and first block's)",
            adapter.config.method.name(),
            merged.left.join(", ")
        );
    }
    let changed: BTreeMap<String, NamedTensor> =
        loaded.resampled.iter().cloned().chain(merged.changed).map(|t| (t.name.clone(), t)).collect();
    let source = Checkpoint::open(file)?;
    let mut tensors = Vec::new();
    for (name, shape) in source.shapes() {
        // timm counts these afresh when they are absent, and they must not be stored as floats.
        // It has no text towers.
        let text = name.starts_with("text.") || name == "logit_scale";
        if text || name.ends_with("num_batches_tracked") || changed.contains_key(&name) {
            continue;
        }
        let values = source.read(&name)?;
        tensors.push(NamedTensor { name, shape, values });
    }
    tensors.extend(changed.into_values());
    let mut config = loaded.config.clone();
    config.classes = adapter.config.classes.len();
    let (interpolation, crop_mode) = match adapter.config.input.transform {
        Transform::Squash { interpolation, .. } => (interpolation, CropMode::Squash),
        Transform::ResizeCrop { interpolation, .. } => (interpolation, CropMode::Center),
    };
    config.preprocess.interpolation = interpolation;
    config.preprocess.crop_mode = crop_mode;
    config.preprocess.crop_pct = 1.0;
    let mut json = config.to_hub();
    json["pretrained_cfg"]["label_names"] = adapter.config.classes.clone().into();
    let json = serde_json::to_vec_pretty(&json).map_err(|e| input_error!("cannot write config.json: {e}"))?;
    write_atomic(&output.join("model.safetensors"), &serialize(&tensors, Some(("format", "pt".into())))?)?;
    write_atomic(&output.join("config.json"), &json)
}
