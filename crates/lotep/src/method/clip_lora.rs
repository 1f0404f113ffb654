//! CLIP-LoRA (Zanella & Ben Ayed, 2024; `spec/methods.md` 9): low-rank additions to the queries, keys and values of all
//! blocks of both of CLIP's towers.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::lora::{PARTS, among_parts, product, together, with_added};
use super::texts::{IMAGE_STREAM, clip};
use super::vpt::check_dropout;
use super::{Method, Prompts, Site, TextPlan, seeded};
use crate::backbone::{Backbone, Loaded, LowRank};
use crate::ops::Training;
use crate::params::{Group, Params, uniform};
use crate::safetensors::NamedTensor;
use crate::{Result, bail};

/// CLIP-LoRA's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClipLora {
    /// Rank of each addition.
    pub rank: usize,
    /// The additions are scaled by `alpha / sqrt(rank)`.
    pub alpha: f64,
    /// Share of what the additions see that is dropped while training.
    pub dropout: f64,
}

impl Default for ClipLora {
    fn default() -> Self {
        Self { rank: 2, alpha: 1.0, dropout: 0.25 }
    }
}

/// The fused projections of both towers with their widths: the image tower's by timm's names.
fn layers(site: &Site<'_>, text: [usize; 2]) -> Vec<(u64, String, usize)> {
    let image = |(l, block): (usize, &crate::backbone::Block)| {
        (IMAGE_STREAM + l as u64, format!("blocks.{l}.attn.qkv"), block.channels)
    };
    let [depth, width] = text;
    let text = (0..depth).map(|l| (l as u64, format!("text.blocks.{l}.attn.qkv"), width));
    text.chain(site.blocks.iter().enumerate().map(image)).collect()
}

impl ClipLora {
    fn layers(site: &Site<'_>) -> Vec<(u64, String, usize)> {
        let words = site.loaded.and_then(|loaded| loaded.words.as_ref());
        words.map_or_else(Vec::new, |w| layers(site, [w.config.depth, w.config.width]))
    }

    fn updates(&self, site: &Site<'_>, params: &Params) -> BTreeMap<String, LowRank> {
        let scale = self.alpha / (self.rank as f64).sqrt();
        let update = |(_, layer, _): (u64, String, usize)| {
            let get = |part: &str, factor: &str| -> Tensor<2> {
                params.get(&format!("lora.{layer}.{part}.{factor}"))
            };
            let parts = PARTS.iter().enumerate().map(|(i, part)| LowRank {
                down: get(part, "a"),
                up: among_parts(get(part, "b") * scale, i),
            });
            (layer.clone(), together(parts.collect()))
        };
        Self::layers(site).into_iter().map(update).collect()
    }
}

impl Method for ClipLora {
    fn init(&self, site: &Site<'_>, seed: u64) -> Result<Params> {
        clip("clip-lora", site)?;
        if !(self.alpha > 0.0 && self.alpha <= 1e6) {
            bail!("clip-lora: alpha {} is out of range; above 0, up to 1000000", self.alpha);
        }
        check_dropout("clip-lora", self.dropout)?;
        let mut params = Params::default();
        for (stream, layer, width) in Self::layers(site) {
            if !(1..=width).contains(&self.rank) {
                bail!("clip-lora: rank {} is out of range; 1 to {width} for {layer}", self.rank);
            }
            let (mut rng, bound) = (seeded(seed, stream), (width as f64).powf(-0.5));
            for part in PARTS {
                let values = uniform(self.rank * width, bound, &mut rng);
                let name = |factor: &str| format!("lora.{layer}.{part}.{factor}");
                params.push(name("a"), &[self.rank, width], Group::Prompt, values, site.device);
                let zeros = vec![0.0; self.rank * width];
                params.push(name("b"), &[width, self.rank], Group::Prompt, zeros, site.device);
            }
        }
        Ok(params)
    }

    fn prompts(&self, site: &Site<'_>, params: &Params) -> Prompts {
        Prompts { updates: self.updates(site, params), update_dropout: self.dropout, ..Prompts::default() }
    }

    /// Fused blocks know no dropout inside: with some, both towers are trained in their portable form.
    fn training_network(
        &self,
        loaded: &Loaded,
        _leaves: &Params,
        _training: &Training,
    ) -> Result<Option<Arc<dyn Backbone>>> {
        if self.dropout == 0.0 {
            return Ok(None);
        }
        let blocks: Vec<String> = loaded.blocks.iter().map(|block| block.name.clone()).collect();
        loaded.unpacked(&blocks).map(Some)
    }

    /// The image tower's: the text tower has spoken before anything is predicted.
    fn weights(&self, site: &Site<'_>, params: &Params) -> Result<Vec<NamedTensor>> {
        let Some(loaded) = site.loaded else { return Ok(Vec::new()) };
        let image = self.updates(site, params).into_iter().filter(|(layer, _)| !layer.starts_with("text."));
        with_added(
            loaded,
            image.map(|(layer, update)| (format!("{layer}.weight"), product(update))).collect(),
        )
    }

    fn texts(&self) -> Option<TextPlan> {
        Some(TextPlan { updated: true, ..TextPlan::plain(vec!["a photo of a {}".into()]) })
    }
}
