//! LoR-VP (Jin et al., ICLR 2025): a low-rank prompt per colour channel, added to the whole image.

use serde::{Deserialize, Serialize};

use super::{Method, Prompts, Site, check_scale, factor, seeded};
use crate::params::{Group, Params, normal};
use crate::{Result, bail};

/// LoR-VP's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LorVp {
    /// Rank of each channel's product; the paper's best with a linear head is 4.
    pub rank: usize,
    /// Standard deviation of the right factor; the left one starts at zero.
    pub spatial_std: f64,
}

impl Default for LorVp {
    fn default() -> Self {
        Self { rank: 4, spatial_std: 0.01 }
    }
}

impl Method for LorVp {
    fn init(&self, site: &Site<'_>, seed: u64) -> Result<Params> {
        let ([h, w], r) = (site.image, self.rank);
        if r == 0 || r > h.min(w) {
            bail!("lor-vp: rank {r} is out of range; 1 to {} for {h}x{w} images", h.min(w));
        }
        check_scale("lor-vp", "spatial_std", self.spatial_std)?;
        let mut params = Params::default();
        let right = normal(3 * r * w, self.spatial_std, &mut seeded(seed, 0));
        params.push("image.left", &[3, h, r], Group::Prompt, vec![0.0; 3 * h * r], site.device);
        params.push("image.right", &[3, r, w], Group::Prompt, right, site.device);
        Ok(params)
    }

    fn prompts(&self, _site: &Site<'_>, params: &Params) -> Prompts {
        let image = factor::per_channel(params.get("image.left"), params.get("image.right"));
        Prompts { image: Some(image), ..Prompts::default() }
    }
}
