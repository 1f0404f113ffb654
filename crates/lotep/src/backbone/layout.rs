//! Checkpoints that call their weights by other names than timm does.
//!
//! A layout is recognised by a name that only it has, and then every stored weight is given timm's name; what a
//! recipe makes of the stored tensors is no more than joining and turning them.

use std::collections::BTreeMap;

use crate::{Result, bail};

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

fn plain(name: &str, shape: &[usize]) -> Recipe {
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

/// Puts CLIP's image tower together under timm's names.
struct Clip<'a> {
    stored: &'a Shapes,
    found: BTreeMap<String, Recipe>,
}

impl Clip<'_> {
    fn shape(&self, name: &str) -> Result<Vec<usize>> {
        match self.stored.get(name) {
            Some(shape) => Ok(shape.clone()),
            None => bail!("a CLIP checkpoint without `{name}`"),
        }
    }

    fn add(&mut self, timm: impl Into<String>, name: &str) -> Result<()> {
        let shape = self.shape(name)?;
        self.found.insert(timm.into(), plain(name, &shape));
        Ok(())
    }

    /// The same with axes of length one in front.
    fn add_deep(&mut self, timm: &str, name: &str, axes: usize) -> Result<()> {
        let shape = [vec![1; axes], self.shape(name)?].concat();
        self.found.insert(timm.to_owned(), Recipe { shape, ..plain(name, &[]) });
        Ok(())
    }

    /// The projection is timm's classifier, without a bias.
    fn head(&mut self, name: &str, transposed: bool) -> Result<()> {
        let shape = self.shape(name)?;
        let [rows, columns] = shape[..] else {
            bail!("CLIP's `{name}` has shape {shape:?}, a matrix is expected")
        };
        let (shape, turn) =
            if transposed { ([columns, rows], Turn::Transpose) } else { ([rows, columns], Turn::None) };
        let weight = Recipe { parts: vec![name.to_owned()], turn, shape: shape.to_vec() };
        self.found.insert("head.weight".into(), weight);
        let bias = Recipe { parts: Vec::new(), turn: Turn::Zeros, shape: vec![shape[0]] };
        self.found.insert("head.bias".into(), bias);
        Ok(())
    }

    /// Number of blocks whose first norm is there.
    fn blocks(&self, norm: impl Fn(usize) -> String) -> usize {
        (0..self.stored.len()).take_while(|i| self.stored.contains_key(&norm(*i))).count()
    }
}

/// OpenAI's and open_clip's names.
fn openai_clip(stored: &Shapes) -> Result<BTreeMap<String, Recipe>> {
    let mut clip = Clip { stored, found: BTreeMap::new() };
    clip.add("patch_embed.proj.weight", "visual.conv1.weight")?;
    clip.add_deep("cls_token", "visual.class_embedding", 2)?;
    clip.add_deep("pos_embed", "visual.positional_embedding", 1)?;
    for leaf in ["weight", "bias"] {
        clip.add(format!("norm_pre.{leaf}"), &format!("visual.ln_pre.{leaf}"))?;
        clip.add(format!("norm.{leaf}"), &format!("visual.ln_post.{leaf}"))?;
    }
    for i in 0..clip.blocks(|i| format!("visual.transformer.resblocks.{i}.ln_1.weight")) {
        let (timm, theirs) = (format!("blocks.{i}"), format!("visual.transformer.resblocks.{i}"));
        for leaf in ["weight", "bias"] {
            clip.add(format!("{timm}.attn.qkv.{leaf}"), &format!("{theirs}.attn.in_proj_{leaf}"))?;
            for (ours, theirs_leaf) in [
                ("norm1", "ln_1"),
                ("attn.proj", "attn.out_proj"),
                ("norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ] {
                clip.add(format!("{timm}.{ours}.{leaf}"), &format!("{theirs}.{theirs_leaf}.{leaf}"))?;
            }
        }
    }
    clip.head("visual.proj", true)?;
    Ok(clip.found)
}

/// Transformers' names.
fn hugging_face_clip(stored: &Shapes) -> Result<BTreeMap<String, Recipe>> {
    let mut clip = Clip { stored, found: BTreeMap::new() };
    clip.add("patch_embed.proj.weight", "vision_model.embeddings.patch_embedding.weight")?;
    clip.add_deep("cls_token", "vision_model.embeddings.class_embedding", 2)?;
    clip.add_deep("pos_embed", "vision_model.embeddings.position_embedding.weight", 1)?;
    for leaf in ["weight", "bias"] {
        // Their spelling.
        clip.add(format!("norm_pre.{leaf}"), &format!("vision_model.pre_layrnorm.{leaf}"))?;
        clip.add(format!("norm.{leaf}"), &format!("vision_model.post_layernorm.{leaf}"))?;
    }
    for i in 0..clip.blocks(|i| format!("vision_model.encoder.layers.{i}.layer_norm1.weight")) {
        let (timm, theirs) = (format!("blocks.{i}"), format!("vision_model.encoder.layers.{i}"));
        for leaf in ["weight", "bias"] {
            let parts = ["q", "k", "v"].map(|p| format!("{theirs}.self_attn.{p}_proj.{leaf}"));
            let mut shape = clip.shape(&parts[0])?;
            for part in &parts[1..] {
                if clip.shape(part)? != shape {
                    bail!("CLIP's `{part}` and `{}` have different shapes", parts[0]);
                }
            }
            if let Some(rows) = shape.first_mut() {
                *rows *= 3;
            }
            let recipe = Recipe { parts: parts.into(), turn: Turn::None, shape };
            clip.found.insert(format!("{timm}.attn.qkv.{leaf}"), recipe);
            for (ours, theirs_leaf) in [
                ("norm1", "layer_norm1"),
                ("attn.proj", "self_attn.out_proj"),
                ("norm2", "layer_norm2"),
                ("mlp.fc1", "mlp.fc1"),
                ("mlp.fc2", "mlp.fc2"),
            ] {
                clip.add(format!("{timm}.{ours}.{leaf}"), &format!("{theirs}.{theirs_leaf}.{leaf}"))?;
            }
        }
    }
    clip.head("visual_projection.weight", false)?;
    Ok(clip.found)
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
