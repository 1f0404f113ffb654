//! LoTeP: a low-rank tensor added to the entrance of the image and of each of the first blocks.
//!
//! `X_{l+1} = f_l(X_l + P_l)`, with P_l in CP form (eq. 7) or Tucker form (eq. 5), its rank decaying with depth
//! (eq. 8). The channel factor starts at zero, so that training starts from the unchanged network; then only
//! that factor has a gradient at the first step.

use serde::{Deserialize, Serialize};

use super::rank::{RankDenominator, RankSchedule, prompted_blocks, ranks};
use super::{Method, Prompts, Site, check_scale, seeded};
use crate::backbone::{Factors, Layout};
use crate::params::{Group, Params, normal};
use crate::{Result, bail};

/// Which tensor form the prompts take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Canonical polyadic: a sum of rank-one tensors.
    Cp,
    /// Tucker: a core and a factor per axis.
    Tucker,
}

/// How a prompt covers the tokens of a ViT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VitGeometry {
    /// `[C, H, W]` over the patch grid; the class token is left alone.
    #[default]
    Grid,
    /// `[C, 1, 1 + H·W]` over all tokens with the class token.
    Sequence,
}

/// LoTeP's settings, the same for CP and Tucker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lotep {
    /// Rank r₀ of the image prompt and of the first block's.
    pub rank: usize,
    /// Share ρ of the blocks that are prompted, from the first; `None` takes the family's default.
    pub depth_ratio: Option<f64>,
    /// How the rank decays.
    pub rank_schedule: RankSchedule,
    /// What the block index is divided by in the schedule.
    pub rank_denominator: RankDenominator,
    /// Whether the image is prompted too.
    pub input_prompt: bool,
    /// How ViT tokens are covered.
    pub vit_geometry: VitGeometry,
    /// Norm of each spatial factor at the start, in expectation: entries are `N(0, scale²/length)`. The step
    /// that a prompt takes at a given learning rate then does not depend on the size of the feature map.
    pub spatial_scale: f64,
    /// Standard deviation of the Tucker core; `None` is 1/rank, which gives a Tucker prompt the CP one's scale.
    pub core_std: Option<f64>,
}

impl Default for Lotep {
    fn default() -> Self {
        Self {
            rank: 6,
            depth_ratio: None,
            rank_schedule: RankSchedule::default(),
            rank_denominator: RankDenominator::default(),
            input_prompt: true,
            vit_geometry: VitGeometry::default(),
            spatial_scale: 1.0,
            core_std: None,
        }
    }
}

/// One prompt: its name, where it goes (`None` is the image), its geometry and its rank.
struct Plan {
    name: String,
    block: Option<usize>,
    shape: [usize; 3],
    rank: usize,
}

impl Lotep {
    fn plan(&self, site: &Site<'_>) -> Vec<Plan> {
        let [h, w] = site.image;
        let image = self.input_prompt.then(|| Plan {
            name: "image".into(),
            block: None,
            shape: [3, h, w],
            rank: self.rank,
        });
        let ratio = self.depth_ratio.unwrap_or(site.default_depth_ratio);
        let depth = prompted_blocks(site.blocks.len(), ratio);
        let ranks = ranks(self.rank_schedule, self.rank_denominator, self.rank, depth);
        let blocks = site.blocks.iter().zip(ranks).enumerate().map(|(l, (block, rank))| Plan {
            name: format!("block.{l}"),
            block: Some(l),
            shape: match (block.layout, self.vit_geometry) {
                (Layout::Tokens, VitGeometry::Sequence) => {
                    [block.channels, 1, 1 + block.height * block.width]
                }
                _ => [block.channels, block.height, block.width],
            },
            rank,
        });
        image.into_iter().chain(blocks).collect()
    }
}

/// LoTeP in one of its forms, as a method.
pub(super) struct LotepMethod<'a>(pub(super) &'a Lotep, pub(super) Form);

impl Method for LotepMethod<'_> {
    fn init(&self, site: &Site<'_>, seed: u64) -> Result<Params> {
        let Self(config, form) = self;
        if config.rank == 0 || config.rank > 1024 {
            bail!("lotep: rank {} is out of range; 1 to 1024", config.rank);
        }
        if let Some(ratio) = config.depth_ratio.filter(|r| !(0.0..=1.0).contains(r)) {
            bail!("lotep: depth_ratio {ratio} is out of range; 0 to 1");
        }
        check_scale("lotep", "spatial_scale", config.spatial_scale)?;
        check_scale("lotep", "core_std", config.core_std.unwrap_or(1.0))?;
        let plan = config.plan(site);
        if plan.is_empty() {
            bail!(
                "lotep: depth_ratio {} of {} blocks prompts none and input_prompt is off, so nothing would be learnt",
                config.depth_ratio.unwrap_or(site.default_depth_ratio),
                site.blocks.len()
            );
        }
        let mut params = Params::default();
        for (index, Plan { name, shape: [c, h, w], rank: r, .. }) in plan.into_iter().enumerate() {
            let mut rng = seeded(seed, index as u64);
            let mut spatial = |length: usize| {
                normal(r * length, config.spatial_scale * (length as f64).powf(-0.5), &mut rng)
            };
            let (rows, columns) = (spatial(h), spatial(w));
            let mut push = |leaf: &str, shape: &[usize], values| {
                params.push(format!("{name}.{leaf}"), shape, Group::Prompt, values, site.device);
            };
            push("channel", &[r, c], vec![0.0; r * c]);
            push("row", &[r, h], rows);
            push("column", &[r, w], columns);
            if *form == Form::Tucker {
                let std = config.core_std.unwrap_or(1.0 / r as f64);
                push("core", &[r, r, r], normal(r * r * r, std, &mut rng));
            }
        }
        Ok(params)
    }

    fn prompts(&self, site: &Site<'_>, params: &Params) -> Prompts {
        let Self(config, form) = self;
        let mut prompts = Prompts::default();
        for plan in config.plan(site) {
            let get = |leaf: &str| params.get::<2>(&format!("{}.{leaf}", plan.name));
            let core = (*form == Form::Tucker).then(|| params.get(&format!("{}.core", plan.name)));
            let factors = Factors { core, channel: get("channel"), row: get("row"), column: get("column") };
            match plan.block {
                None => prompts.image = Some(factors.image()),
                Some(_) => prompts.blocks.push(Some(factors.block())),
            }
        }
        prompts
    }
}
