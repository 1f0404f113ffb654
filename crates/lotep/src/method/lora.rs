//! LoRA (Hu et al., 2022; `spec/methods.md` 9): low-rank additions to the weights of chosen layers, merged into them for
//! predictions.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::vpt::check_dropout;
use super::{Method, Prompts, Site, seeded};
use crate::backbone::{Architecture, Backbone, Block, ConvUpdate, Layer, Loaded, LowRank};
use crate::ops::Training;
use crate::params::{Group, Params, uniform};
use crate::safetensors::NamedTensor;
use crate::{Result, bail};

/// LoRA's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lora {
    /// Rank of each addition.
    pub rank: usize,
    /// The additions are scaled by alpha / rank; the rank where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Ends of layers' names, `qkv` or `attn.proj`; `q`, `k` and `v` are parts of a fused `qkv`. Where they are not given: `q`
    /// and `v`, or the layers of the perceptrons, or all layers, whichever the network has first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Vec<String>>,
    /// How an addition to a convolution is made.
    pub conv_form: ConvForm,
    /// Share of what the additions see that is dropped while training.
    pub dropout: f64,
}

/// How an addition to a convolution of k × k pixels is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConvForm {
    /// PEFT's: a convolution to the rank, and one of single pixels behind it; r (in k² + out) parameters.
    #[default]
    Peft,
    /// loralib's: a product of matrices `[out k, r k]` and `[r k, in k]`, read as a kernel; r k² (in + out).
    Loralib,
}

impl Default for Lora {
    fn default() -> Self {
        Self { rank: 8, alpha: None, targets: None, conv_form: ConvForm::Peft, dropout: 0.0 }
    }
}

/// Parts of a fused projection, in their order.
pub(super) const PARTS: [&str; 3] = ["q", "k", "v"];

/// An addition to some outputs of a layer.
struct Addition<'a> {
    layer: &'a Layer,
    /// Which third of the outputs, of a fused projection; all without.
    part: Option<usize>,
}

impl Addition<'_> {
    /// What its factors are called.
    fn name(&self, factor: &str) -> String {
        let part = self.part.map_or(String::new(), |p| format!(".{}", PARTS[p]));
        format!("lora.{}{part}.{factor}", self.layer.name)
    }

    fn outputs(&self) -> usize {
        self.layer.shape[0] / if self.part.is_some() { 3 } else { 1 }
    }
}

/// Whether a layer's name ends like that, at a point.
fn ends(name: &str, target: &str) -> bool {
    name.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl Lora {
    /// Defaults that depend on the network.
    pub(super) fn resolve(&mut self, site: &Site<'_>) {
        let has = |end: &str| site.layers().iter().any(|l| ends(&l.name, end));
        let own = |ends: &[&str]| ends.iter().map(|&e| e.to_owned()).collect();
        let targets = match (has("attn.qkv"), interleaved(site)) {
            (true, false) => own(&["q", "v"]),
            (true, true) => own(&["qkv"]),
            (false, _) if has("mlp.fc1") => own(&["fc1", "fc2"]),
            (false, _) => site.layers().iter().map(|l| l.name.clone()).collect(),
        };
        self.targets.get_or_insert(targets);
    }

    /// The layer of a factor by its name in an adapter, and which of the two it is, where the factor is of a whole layer.
    pub(crate) fn factor_of(name: &str) -> Option<(&str, usize)> {
        let name = name.strip_prefix("lora.")?;
        let side = |(i, side)| Some((name.strip_suffix(side)?, i));
        [".a", ".b"].into_iter().enumerate().find_map(side)
    }

    /// What the product of the factors is multiplied by.
    pub(crate) fn scale(&self) -> f64 {
        self.alpha.unwrap_or(self.rank as f64) / self.rank as f64
    }

    /// All additions, layer by layer.
    fn additions<'a>(&self, site: &Site<'a>) -> Vec<Addition<'a>> {
        let mut resolved = self.clone();
        resolved.resolve(site);
        let targets = resolved.targets.unwrap_or_default();
        let mut found = Vec::new();
        for layer in site.layers() {
            if targets.iter().any(|t| ends(&layer.name, t)) {
                found.push(Addition { layer, part: None });
            } else if ends(&layer.name, "qkv") {
                let parts = (0..3).filter(|p| targets.iter().any(|t| t == PARTS[*p]));
                found.extend(parts.map(|part| Addition { layer, part: Some(part) }));
            }
        }
        found
    }

    /// Shapes of an addition's two factors.
    fn shapes(&self, addition: &Addition<'_>) -> [Vec<usize>; 2] {
        let (layer, r, outputs) = (addition.layer, self.rank, addition.outputs());
        let inputs = layer.shape[1];
        match (layer.convolution, self.conv_form) {
            (false, _) => [vec![r, inputs], vec![outputs, r]],
            (true, ConvForm::Peft) => {
                let side = layer.shape[2];
                [vec![r, inputs, side, side], vec![outputs, r]]
            }
            (true, ConvForm::Loralib) => {
                let side = layer.shape[2];
                [vec![r * side, inputs * side], vec![outputs * side, r * side]]
            }
        }
    }

    /// The additions to each convolution.
    pub(crate) fn conv_updates(&self, site: &Site<'_>, params: &Params) -> BTreeMap<String, ConvUpdate> {
        let additions = self.additions(site).into_iter().filter(|a| a.layer.convolution);
        let update = |addition: Addition<'_>| {
            let [down, up] = ["a", "b"].map(|factor| addition.name(factor));
            let up = params.get::<2>(&up) * self.scale();
            let update = match self.conv_form {
                ConvForm::Peft => ConvUpdate::Thin { down: params.get(&down), up },
                ConvForm::Loralib => {
                    let [outputs, inputs, side] = [0, 1, 2].map(|i| addition.layer.shape[i]);
                    let kernel = up.matmul(params.get::<2>(&down));
                    ConvUpdate::Kernel(kernel.reshape([outputs, inputs, side, side]))
                }
            };
            (addition.layer.name.clone(), update)
        };
        additions.map(update).collect()
    }

    /// The additions to the weight of each layer that is no convolution.
    pub(crate) fn updates(&self, site: &Site<'_>, params: &Params) -> BTreeMap<String, LowRank> {
        let mut updates: BTreeMap<String, LowRank> = BTreeMap::new();
        for addition in self.additions(site).into_iter().filter(|a| !a.layer.convolution) {
            let down: Tensor<2> = params.get(&addition.name("a"));
            let up = params.get::<2>(&addition.name("b")) * self.scale();
            let up = match addition.part {
                Some(part) => among_parts(up, part),
                None => up,
            };
            let name = addition.layer.name.clone();
            let update = LowRank { down, up };
            let update = match updates.remove(&name) {
                Some(other) => together(vec![other, update]),
                None => update,
            };
            updates.insert(name, update);
        }
        updates
    }
}

/// Whether a fused projection has the queries, keys and values of each head together.
fn interleaved(site: &Site<'_>) -> bool {
    site.loaded.is_some_and(|l| matches!(l.config.architecture, Architecture::CoAtNet(_)))
}

/// What an addition adds to a weight.
pub(super) fn product(addition: LowRank) -> TensorData {
    addition.up.matmul(addition.down).into_data()
}

/// Several additions to a layer as one.
pub(super) fn together(additions: Vec<LowRank>) -> LowRank {
    let (downs, ups) = additions.into_iter().map(|addition| (addition.down, addition.up)).unzip();
    LowRank { down: Tensor::cat(downs, 0), up: Tensor::cat(ups, 1) }
}

/// Rows of one third of a fused projection, the others zero.
pub(super) fn among_parts(up: Tensor<2>, part: usize) -> Tensor<2> {
    let zeros = up.zeros_like().without_autodiff();
    Tensor::cat((0..3).map(|p| if p == part { up.clone() } else { zeros.clone() }).collect::<Vec<_>>(), 0)
}

impl Method for Lora {
    fn init(&self, site: &Site<'_>, seed: u64) -> Result<Params> {
        let Some(loaded) = site.loaded else { bail!("lora: a network with its layers is needed") };
        let names = || {
            let mut ends: Vec<_> =
                site.layers().iter().map(|l| l.name.rsplit('.').next().unwrap_or("")).collect();
            ends.sort_unstable();
            ends.dedup();
            ends.join(", ")
        };
        if let Some(alpha) = self.alpha.filter(|a| !(*a > 0.0 && *a <= 1e6)) {
            bail!(
                "lora: alpha {alpha} is out of range; above 0, up to 1000000, as the rank, {}, which scales additions by 1",
                self.rank
            );
        }
        check_dropout("lora", self.dropout)?;
        if interleaved(site) && self.targets.iter().flatten().any(|t| PARTS.contains(&t.as_str())) {
            bail!(
                "lora: targets q, k and v: the queries of {} are not apart from its keys; take qkv",
                loaded.config.name
            );
        }
        let additions = self.additions(site);
        let known = |target: &&String| {
            additions
                .iter()
                .any(|a| ends(&a.layer.name, target) || a.part.is_some_and(|p| PARTS[p] == target.as_str()))
        };
        let targets = || self.targets.iter().flatten();
        let unknown = targets().find(|t| !known(t));
        if let Some(part) = unknown.filter(|t| PARTS.contains(&t.as_str()))
            && let Some(whole) = targets().find(|t| {
                additions
                    .iter()
                    .any(|a| a.part.is_none() && ends(&a.layer.name, t) && ends(&a.layer.name, "qkv"))
            })
        {
            bail!(
                "lora: targets {part} and {whole}: {part} is a part of {whole}, which is added to as a whole; take one of the two"
            );
        }
        if let Some(unknown) = unknown {
            bail!(
                "lora: targets {unknown}: no such layer in {}, whose layers end in {}",
                loaded.config.name,
                names()
            );
        }
        if additions.is_empty() {
            bail!("lora: {} has no layer that it knows how to add to", loaded.config.name);
        }
        let mut params = Params::default();
        for (stream, addition) in (0..).zip(&additions) {
            let (inputs, outputs) = (addition.layer.shape[1], addition.outputs());
            if self.rank == 0 || self.rank > inputs.min(outputs) {
                bail!(
                    "lora: rank {} is out of range; 1 to {} for {}",
                    self.rank,
                    inputs.min(outputs),
                    addition.layer.name
                );
            }
            let [down, up] = self.shapes(addition);
            // PyTorch's own start of a layer (Kaiming with a = √5).
            let bound = (down[1..].iter().product::<usize>() as f64).powf(-0.5);
            let values = uniform(down.iter().product(), bound, &mut seeded(seed, stream));
            params.push(addition.name("a"), &down, Group::Prompt, values, site.device);
            let zeros = vec![0.0; up.iter().product()];
            params.push(addition.name("b"), &up, Group::Prompt, zeros, site.device);
        }
        Ok(params)
    }

    fn prompts(&self, site: &Site<'_>, params: &Params) -> Prompts {
        Prompts {
            updates: self.updates(site, params),
            conv_updates: self.conv_updates(site, params),
            update_dropout: self.dropout,
            ..Prompts::default()
        }
    }

    /// Fused blocks of linear layers know no dropout inside: those that are added to take their portable form.
    fn training_network(
        &self,
        loaded: &Loaded,
        _leaves: &Params,
        _training: &Training,
    ) -> Result<Option<Arc<dyn Backbone>>> {
        if self.dropout == 0.0 {
            return Ok(None);
        }
        let additions = self.additions(&Site::of(loaded));
        let linear: Vec<_> = additions.iter().filter(|a| !a.layer.convolution).collect();
        let touched = |block: &&Block| {
            let inside = |a: &&Addition<'_>| {
                a.layer.name.strip_prefix(&block.name).is_some_and(|rest| rest.starts_with('.'))
            };
            linear.iter().any(inside)
        };
        let blocks: Vec<String> = loaded.blocks.iter().filter(touched).map(|b| b.name.clone()).collect();
        if blocks.is_empty() { Ok(None) } else { loaded.unpacked(&blocks).map(Some) }
    }

    fn weights(&self, site: &Site<'_>, params: &Params) -> Result<Vec<NamedTensor>> {
        let Some(loaded) = site.loaded else { return Ok(Vec::new()) };
        let linear = self.updates(site, params).into_iter().map(|(name, u)| (name, product(u)));
        let conv = self.conv_updates(site, params).into_iter().map(|(name, update)| {
            let added = match update {
                ConvUpdate::Thin { down, up } => up.matmul(down.flatten(1, 3)).into_data(),
                ConvUpdate::Kernel(kernel) => kernel.into_data(),
            };
            (name, added)
        });
        let added: BTreeMap<String, TensorData> =
            linear.chain(conv).map(|(name, added)| (format!("{name}.weight"), added)).collect();
        with_added(loaded, added)
    }
}

/// Weights of a network by their names, in whose order they come, each with what is added to it.
///
/// # Errors
/// They can't be read, or the network has none of the name.
pub(super) fn with_added(loaded: &Loaded, added: BTreeMap<String, TensorData>) -> Result<Vec<NamedTensor>> {
    let mut weights = loaded.values(&added.keys().cloned().collect())?;
    for (weight, added) in weights.iter_mut().zip(added.into_values()) {
        for (value, added) in weight.values.iter_mut().zip(added.iter::<f32>()) {
            *value += added;
        }
    }
    Ok(weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::made_up;
    use crate::backbone::parity::architecture;

    #[test]
    fn targets_are_ends_of_names() {
        assert!(
            ends("blocks.3.attn.qkv", "qkv") && ends("blocks.3.attn.qkv", "attn.qkv") && ends("fc1", "fc1")
        );
        assert!(
            !ends("blocks.3.attn.qkv", "kv")
                && !ends("blocks.3.attn.qkv", "3.attn")
                && !ends("fc1", "mlp.fc1")
        );
    }

    /// `r (in + out)` for each layer, of the parts asked for: at full size 294,912 for ViT-B/16 either way.
    #[test]
    fn counts_and_refusals() {
        let loaded = made_up(architecture("vit_b16"), [48, 64]);
        let site = Site::of(&loaded);
        let width = 32;
        let count = |lora: &Lora| lora.init(&site, 0).map(|p| p.count(Group::Prompt));
        let with = |targets: &[&str]| Lora {
            targets: Some(targets.iter().map(|t| (*t).to_owned()).collect()),
            ..Lora::default()
        };
        assert_eq!(count(&Lora::default()).unwrap(), 3 * 2 * 8 * (width + width));
        assert_eq!(count(&with(&["qkv"])).unwrap(), 3 * 8 * (width + 3 * width));
        assert_eq!(
            count(&with(&["attn.proj", "fc1", "k"])).unwrap(),
            3 * 8 * (2 * width + 5 * width + 2 * width)
        );
        assert_eq!(count(&with(&["blocks.1.mlp.fc2"])).unwrap(), 8 * 5 * width);
        let refused = |lora: &Lora| count(lora).unwrap_err().to_string();
        assert!(refused(&with(&["query"])).contains("fc1, fc2, proj, qkv"));
        let both = refused(&with(&["qkv", "q"]));
        assert!(both.contains("q is a part of qkv") && both.contains("one of the two"), "{both}");
        assert!(refused(&Lora { dropout: 1.0, ..Lora::default() }).contains("dropout 1"));
        assert!(refused(&Lora { rank: 33, ..Lora::default() }).contains("rank 33 is out of range; 1 to 32"));
        assert!(refused(&Lora { alpha: Some(-1.0), ..Lora::default() }).contains("alpha -1"));
        let resnet = made_up(architecture("resnet18"), [64, 96]);
        let convs = |conv_form| {
            let lora = Lora { rank: 2, conv_form, ..with(&["layer2.0.conv1", "downsample.0"]) };
            lora.init(&Site::of(&resnet), 0).unwrap().count(Group::Prompt)
        };
        // 12 to 16 channels with 3 x 3, and three shortcuts of single pixels.
        let shortcuts = 2 * (12 + 16 + 16 + 20 + 20 + 24);
        assert_eq!(convs(ConvForm::Peft), 2 * (12 * 9 + 16) + shortcuts);
        assert_eq!(convs(ConvForm::Loralib), 2 * 9 * (12 + 16) + shortcuts);
        let coatnet = made_up(architecture("coatnet2"), [64, 96]);
        let fused = with(&["q"]).init(&Site::of(&coatnet), 0).unwrap_err().to_string();
        assert!(fused.contains("take qkv"), "{fused}");
    }
}
