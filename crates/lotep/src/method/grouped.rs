//! Prompts without a shared low rank, LoTeP's reference baselines (`spec/methods.md` 1.1): groups of successive channels
//! share one map, full or a product of two thin matrices. With a group for each channel and full maps this is naive deep
//! visual prompting; with a group for each channel and products, deep LoR-VP.

use burn::tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::rank::prompted_blocks;
use super::{Method, Prompts, Site, check_scale, factor, seeded};
use crate::backbone::Block;
use crate::params::{Group, Params, normal};
use crate::{Result, bail};

/// Settings of grouped prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grouped {
    /// Groups of channels that share a map; more than there are channels is one a channel.
    pub groups: usize,
    /// Rank of each map, at most its shorter side; `None` leaves maps full.
    pub rank: Option<usize>,
    /// Share ρ of the blocks that are prompted, from the first; `None` takes LoTeP's for the family.
    pub depth_ratio: Option<f64>,
    /// Whether the image is prompted too.
    pub input_prompt: bool,
    /// Standard deviation of a product's right factor; the left one, and full maps, start at zero.
    pub spatial_std: f64,
}

impl Default for Grouped {
    fn default() -> Self {
        Self { groups: 8, rank: None, depth_ratio: None, input_prompt: true, spatial_std: 0.01 }
    }
}

/// Settings of naive deep prompts: a full map for each channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NaiveDeep {
    /// Share ρ of the blocks that are prompted, from the first; `None` takes LoTeP's for the family.
    pub depth_ratio: Option<f64>,
    /// Whether the image is prompted too.
    pub input_prompt: bool,
}

impl Default for NaiveDeep {
    fn default() -> Self {
        Self { depth_ratio: None, input_prompt: true }
    }
}

/// Settings of deep LoR-VP: a product of thin matrices for each channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeepLorVp {
    /// Rank of each channel's product, at most a map's shorter side.
    pub rank: usize,
    /// Share ρ of the blocks that are prompted, from the first; `None` takes LoTeP's for the family.
    pub depth_ratio: Option<f64>,
    /// Whether the image is prompted too.
    pub input_prompt: bool,
    /// Standard deviation of the right factor; the left one starts at zero.
    pub spatial_std: f64,
}

impl Default for DeepLorVp {
    fn default() -> Self {
        Self { rank: 4, depth_ratio: None, input_prompt: true, spatial_std: 0.01 }
    }
}

impl From<&NaiveDeep> for Grouped {
    fn from(m: &NaiveDeep) -> Self {
        let NaiveDeep { depth_ratio, input_prompt } = *m;
        Self { groups: usize::MAX, rank: None, depth_ratio, input_prompt, ..Self::default() }
    }
}

impl From<&DeepLorVp> for Grouped {
    fn from(m: &DeepLorVp) -> Self {
        let DeepLorVp { rank, depth_ratio, input_prompt, spatial_std } = *m;
        Self { groups: usize::MAX, rank: Some(rank), depth_ratio, input_prompt, spatial_std }
    }
}

/// One prompt's name and geometry.
type Place = (String, [usize; 3]);

impl Grouped {
    /// The image's prompt, if it has one, and those of the blocks.
    fn places(&self, site: &Site<'_>) -> (Option<Place>, Vec<Place>) {
        let [h, w] = site.image;
        let image = self.input_prompt.then(|| ("image".to_owned(), [3, h, w]));
        let depth = prompted_blocks(site.blocks.len(), self.depth_ratio.unwrap_or(site.default_depth_ratio));
        let blocks = site.blocks.iter().take(depth).enumerate();
        let block = |(l, b): (usize, &Block)| (format!("block.{l}"), [b.channels, b.height, b.width]);
        (image, blocks.map(block).collect())
    }

    fn prompt(&self, params: &Params, (name, [channels, ..]): &Place) -> Tensor<3> {
        let map: Tensor<3> = match self.rank {
            Some(_) => {
                factor::per_channel(params.get(&format!("{name}.left")), params.get(&format!("{name}.right")))
            }
            None => params.get(&format!("{name}.map")),
        };
        let [groups, ..] = map.dims();
        if groups == *channels {
            return map;
        }
        let members: Vec<i64> = (0..*channels).map(|c| (c * groups / channels) as i64).collect();
        let device = map.device().without_autodiff();
        map.select(0, Tensor::<1, Int>::from_data(TensorData::new(members, [*channels]), &device))
    }
}

impl Method for Grouped {
    fn init(&self, site: &Site<'_>, seed: u64) -> Result<Params> {
        if self.groups == 0 {
            bail!("deep prompts: groups 0 is out of range; 1 at least");
        }
        if let Some(ratio) = self.depth_ratio.filter(|r| !(0.0..=1.0).contains(r)) {
            bail!("deep prompts: depth_ratio {ratio} is out of range; 0 to 1");
        }
        if self.rank == Some(0) {
            bail!("deep prompts: rank 0 is out of range; 1 at least");
        }
        check_scale("deep prompts", "spatial_std", self.spatial_std)?;
        let (image, blocks) = self.places(site);
        if image.is_none() && blocks.is_empty() {
            bail!("deep prompts: no block is prompted and input_prompt is off, so nothing would be learnt");
        }
        let mut params = Params::default();
        for (index, (name, [channels, h, w])) in image.into_iter().chain(blocks).enumerate() {
            let groups = self.groups.min(channels);
            let mut push = |leaf: &str, shape: [usize; 3], values| {
                params.push(format!("{name}.{leaf}"), &shape, Group::Prompt, values, site.device);
            };
            match self.rank {
                Some(r) => {
                    let r = r.min(h).min(w);
                    let right = normal(groups * r * w, self.spatial_std, &mut seeded(seed, index as u64));
                    push("left", [groups, h, r], vec![0.0; groups * h * r]);
                    push("right", [groups, r, w], right);
                }
                None => push("map", [groups, h, w], vec![0.0; groups * h * w]),
            }
        }
        Ok(params)
    }

    fn prompts(&self, site: &Site<'_>, params: &Params) -> Prompts {
        let (image, blocks) = self.places(site);
        Prompts {
            image: image.map(|place| self.prompt(params, &place)),
            blocks: blocks.iter().map(|place| Some(self.prompt(params, place).into())).collect(),
            ..Prompts::default()
        }
    }
}
