//! Checkpoints that call their weights by other names than timm does.
//!
//! A layout is recognised by a name that only it has, and then every stored weight is given timm's name; what a
//! recipe makes of the stored tensors is no more than joining and turning them.

use std::collections::BTreeMap;

use super::clip_layout::{hugging_face_clip, openai_clip};
use crate::Result;

/// How one of timm's weights comes out of stored ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recipe {
    /// Stored tensors, joined along their first axis.
    pub(crate) parts: Vec<String>,
    /// What of them is turned.
    pub(crate) turn: Turn,
    /// timm's shape.
    pub(crate) shape: Vec<usize>,
}

/// What is done to a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing, but for axes of length one that timm has and the other has not.
    None,
    /// A matrix is transposed.
    Transpose,
    /// It is not stored: timm has zeros here.
    Zeros,
}

/// Names of stored tensors and their shapes.
pub(crate) type Shapes = BTreeMap<String, Vec<usize>>;

/// timm's names for what a checkpoint stores, and how each is made.
///
/// # Errors
/// Weights of a layout are there, but don't fit each other.
pub(crate) fn recipes(stored: &Shapes) -> Result<BTreeMap<String, Recipe>> {
    let has = |name: &str| stored.contains_key(name);
    if has("visual.conv1.weight") && has("visual.class_embedding") {
        return openai_clip(stored);
    }
    if has("vision_model.embeddings.class_embedding") {
        return hugging_face_clip(stored);
    }
    let swin = has("layers.0.downsample.reduction.weight");
    let convnext = has("downsample_layers.0.0.weight");
    let rename = |name: &str| -> String {
        match (swin, convnext) {
            (true, _) => old_swin(name),
            (_, true) => facebook_convnext(name),
            _ => name.to_owned(),
        }
    };
    Ok(stored.iter().map(|(name, shape)| (rename(name), plain(name, shape))).collect())
}

pub(super) fn plain(name: &str, shape: &[usize]) -> Recipe {
    Recipe { parts: vec![name.to_owned()], turn: Turn::None, shape: shape.to_vec() }
}

/// Microsoft's files, and timm's before 0.9: a stage ends with what halves the map, where ours begins with it.
fn old_swin(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("layers.")
        && let Some((stage, rest)) = rest.split_once(".downsample.")
        && let Ok(stage) = stage.parse::<usize>()
    {
        return format!("layers.{}.downsample.{rest}", stage + 1);
    }
    match name.strip_prefix("head.") {
        Some(leaf) if !leaf.starts_with("fc.") => format!("head.fc.{leaf}"),
        _ => name.to_owned(),
    }
}

/// The files that ConvNeXt was published in.
fn facebook_convnext(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("downsample_layers.") {
        return match rest.strip_prefix("0.") {
            Some(leaf) => format!("stem.{leaf}"),
            None => match rest.split_once('.') {
                Some((stage, leaf)) => format!("stages.{stage}.downsample.{leaf}"),
                None => name.to_owned(),
            },
        };
    }
    if let Some(rest) = name.strip_prefix("stages.")
        && let [stage, block, leaf] = rest.splitn(3, '.').collect::<Vec<_>>()[..]
    {
        let leaf = leaf.replace("dwconv", "conv_dw").replace("pwconv", "mlp.fc");
        return format!("stages.{stage}.blocks.{block}.{leaf}");
    }
    match (name.strip_prefix("norm."), name.strip_prefix("head.")) {
        (Some(leaf), _) => format!("head.norm.{leaf}"),
        (_, Some(leaf)) => format!("head.fc.{leaf}"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_names_become_timms() {
        for (old, new) in [
            ("layers.0.downsample.norm.weight", "layers.1.downsample.norm.weight"),
            ("layers.2.downsample.reduction.weight", "layers.3.downsample.reduction.weight"),
            ("layers.2.blocks.1.attn.qkv.bias", "layers.2.blocks.1.attn.qkv.bias"),
            ("head.weight", "head.fc.weight"),
            ("head.fc.bias", "head.fc.bias"),
        ] {
            assert_eq!(old_swin(old), new);
        }
        for (old, new) in [
            ("downsample_layers.0.1.weight", "stem.1.weight"),
            ("downsample_layers.2.0.bias", "stages.2.downsample.0.bias"),
            ("stages.2.13.dwconv.weight", "stages.2.blocks.13.conv_dw.weight"),
            ("stages.0.1.pwconv2.bias", "stages.0.blocks.1.mlp.fc2.bias"),
            ("stages.0.1.norm.bias", "stages.0.blocks.1.norm.bias"),
            ("stages.0.1.gamma", "stages.0.blocks.1.gamma"),
            ("norm.weight", "head.norm.weight"),
            ("head.bias", "head.fc.bias"),
        ] {
            assert_eq!(facebook_convnext(old), new);
        }
    }
}
