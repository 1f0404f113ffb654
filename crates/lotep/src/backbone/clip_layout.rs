//! CLIP's checkpoints under OpenAI's, open_clip's and transformers' names: both towers.
//!
//! The image tower gets timm's names. timm has no text tower, so that its names are ours: as timm would call them,
//! behind `text.`.

use std::collections::BTreeMap;

use super::layout::{Recipe, Shapes, Turn, plain};
use crate::{Result, bail};

/// Puts CLIP's towers together.
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

    /// Weight and bias of a layer or a norm.
    fn both(&mut self, timm: &str, name: &str) -> Result<()> {
        ["weight", "bias"]
            .into_iter()
            .try_for_each(|leaf| self.add(format!("{timm}.{leaf}"), &format!("{name}.{leaf}")))
    }

    /// The same with axes of length one in front.
    fn add_deep(&mut self, timm: &str, name: &str, axes: usize) -> Result<()> {
        let shape = [vec![1; axes], self.shape(name)?].concat();
        self.found.insert(timm.to_owned(), Recipe { shape, ..plain(name, &[]) });
        Ok(())
    }

    /// A projection `[out, in]`, stored as it is or transposed; its number of outputs.
    fn projection(&mut self, timm: &str, name: &str, transposed: bool) -> Result<usize> {
        let shape = self.shape(name)?;
        let [rows, columns] = shape[..] else {
            bail!("CLIP's `{name}` has shape {shape:?}, a matrix is expected")
        };
        let (shape, turn) =
            if transposed { ([columns, rows], Turn::Transpose) } else { ([rows, columns], Turn::None) };
        let weight = Recipe { parts: vec![name.to_owned()], turn, shape: shape.to_vec() };
        self.found.insert(timm.into(), weight);
        Ok(shape[0])
    }

    /// The image tower's projection is timm's classifier, without a bias.
    fn head(&mut self, name: &str, transposed: bool) -> Result<()> {
        let outputs = self.projection("head.weight", name, transposed)?;
        let bias = Recipe { parts: Vec::new(), turn: Turn::Zeros, shape: vec![outputs] };
        self.found.insert("head.bias".into(), bias);
        Ok(())
    }

    /// Number of blocks whose first norm is there.
    fn blocks(&self, norm: impl Fn(usize) -> String) -> usize {
        (0..self.stored.len()).take_while(|i| self.stored.contains_key(&norm(*i))).count()
    }

    /// A tower's blocks under OpenAI's names.
    fn openai_blocks(&mut self, timm: &str, theirs: &str) -> Result<()> {
        for i in 0..self.blocks(|i| format!("{theirs}.{i}.ln_1.weight")) {
            let (timm, theirs) = (format!("{timm}.{i}"), format!("{theirs}.{i}"));
            for leaf in ["weight", "bias"] {
                self.add(format!("{timm}.attn.qkv.{leaf}"), &format!("{theirs}.attn.in_proj_{leaf}"))?;
            }
            for (ours, leaf) in [
                ("norm1", "ln_1"),
                ("attn.proj", "attn.out_proj"),
                ("norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ] {
                self.both(&format!("{timm}.{ours}"), &format!("{theirs}.{leaf}"))?;
            }
        }
        Ok(())
    }

    /// A tower's blocks under transformers' names, where queries, keys and values are apart.
    fn hugging_face_blocks(&mut self, timm: &str, theirs: &str) -> Result<()> {
        for i in 0..self.blocks(|i| format!("{theirs}.{i}.layer_norm1.weight")) {
            let (timm, theirs) = (format!("{timm}.{i}"), format!("{theirs}.{i}"));
            for leaf in ["weight", "bias"] {
                let parts = ["q", "k", "v"].map(|p| format!("{theirs}.self_attn.{p}_proj.{leaf}"));
                let mut shape = self.shape(&parts[0])?;
                for part in &parts[1..] {
                    if self.shape(part)? != shape {
                        bail!("CLIP's `{part}` and `{}` have different shapes", parts[0]);
                    }
                }
                if let Some(rows) = shape.first_mut() {
                    *rows *= 3;
                }
                let recipe = Recipe { parts: parts.into(), turn: Turn::None, shape };
                self.found.insert(format!("{timm}.attn.qkv.{leaf}"), recipe);
            }
            for (ours, leaf) in [
                ("norm1", "layer_norm1"),
                ("attn.proj", "self_attn.out_proj"),
                ("norm2", "layer_norm2"),
                ("mlp.fc1", "mlp.fc1"),
                ("mlp.fc2", "mlp.fc2"),
            ] {
                self.both(&format!("{timm}.{ours}"), &format!("{theirs}.{leaf}"))?;
            }
        }
        Ok(())
    }
}

/// OpenAI's and open_clip's names.
pub(super) fn openai_clip(stored: &Shapes) -> Result<BTreeMap<String, Recipe>> {
    let mut clip = Clip { stored, found: BTreeMap::new() };
    clip.add("patch_embed.proj.weight", "visual.conv1.weight")?;
    clip.add_deep("cls_token", "visual.class_embedding", 2)?;
    clip.add_deep("pos_embed", "visual.positional_embedding", 1)?;
    clip.both("norm_pre", "visual.ln_pre")?;
    clip.both("norm", "visual.ln_post")?;
    clip.openai_blocks("blocks", "visual.transformer.resblocks")?;
    clip.head("visual.proj", true)?;
    // open_clip's later models have the text tower one level down. A file of the image tower alone is one, too.
    let Some(level) =
        ["", "text."].into_iter().find(|l| stored.contains_key(&format!("{l}token_embedding.weight")))
    else {
        return Ok(clip.found);
    };
    clip.add("text.token_embedding.weight", &format!("{level}token_embedding.weight"))?;
    clip.add("text.pos_embed", &format!("{level}positional_embedding"))?;
    clip.openai_blocks("text.blocks", &format!("{level}transformer.resblocks"))?;
    clip.both("text.norm", &format!("{level}ln_final"))?;
    clip.projection("text.head.weight", &format!("{level}text_projection"), true)?;
    clip.add("logit_scale", "logit_scale")?;
    Ok(clip.found)
}

/// Transformers' names.
pub(super) fn hugging_face_clip(stored: &Shapes) -> Result<BTreeMap<String, Recipe>> {
    let mut clip = Clip { stored, found: BTreeMap::new() };
    clip.add("patch_embed.proj.weight", "vision_model.embeddings.patch_embedding.weight")?;
    clip.add_deep("cls_token", "vision_model.embeddings.class_embedding", 2)?;
    clip.add_deep("pos_embed", "vision_model.embeddings.position_embedding.weight", 1)?;
    // Their spelling.
    clip.both("norm_pre", "vision_model.pre_layrnorm")?;
    clip.both("norm", "vision_model.post_layernorm")?;
    clip.hugging_face_blocks("blocks", "vision_model.encoder.layers")?;
    clip.head("visual_projection.weight", false)?;
    if !stored.contains_key("text_model.embeddings.token_embedding.weight") {
        return Ok(clip.found);
    }
    clip.add("text.token_embedding.weight", "text_model.embeddings.token_embedding.weight")?;
    clip.add("text.pos_embed", "text_model.embeddings.position_embedding.weight")?;
    clip.hugging_face_blocks("text.blocks", "text_model.encoder.layers")?;
    clip.both("text.norm", "text_model.final_layer_norm")?;
    clip.projection("text.head.weight", "text_projection.weight", false)?;
    clip.add("logit_scale", "logit_scale")?;
    Ok(clip.found)
}
