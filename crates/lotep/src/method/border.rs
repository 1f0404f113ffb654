//! The padding prompt of Bahng et al. (2022; `spec/methods.md` 3): a border of learnt pixels over the edge of the image,
//! added behind the normalisation.

use serde::{Deserialize, Serialize};

use super::frame::Frame;
use super::{Method, Prompts, Site, check_scale, seeded};
use crate::params::{Params, normal};
use crate::{Result, bail};

/// The border's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Border {
    /// Width in pixels, of the normalised network's input.
    pub border: usize,
    /// Standard deviation of the pixels at the start; the paper's is 1.
    pub spatial_std: f64,
}

impl Default for Border {
    fn default() -> Self {
        Self { border: 30, spatial_std: 1.0 }
    }
}

impl Border {
    fn frame(&self, site: &Site<'_>) -> Frame {
        Frame { outer: site.image, inner: site.image.map(|side| side.saturating_sub(2 * self.border)) }
    }
}

impl Method for Border {
    fn init(&self, site: &Site<'_>, seed: u64) -> Result<Params> {
        let [h, w] = site.image;
        let most = (h.min(w) - 1) / 2;
        if !(1..=most).contains(&self.border) {
            bail!("border: border {} is out of range; 1 to {most} for {h}x{w} images", self.border);
        }
        check_scale("border", "spatial_std", self.spatial_std)?;
        let mut rng = seeded(seed, 0);
        Ok(self.frame(site).init(site.device, |count| normal(count, self.spatial_std, &mut rng)))
    }

    fn prompts(&self, site: &Site<'_>, params: &Params) -> Prompts {
        // What is added before the division by a standard deviation has to be as many times larger.
        let std = burn::tensor::Tensor::<1>::from_floats(site.std, site.device).reshape([3, 1, 1]);
        let image = self.frame(site).build(params, |strip| strip) * std;
        Prompts { image: Some(image), ..Prompts::default() }
    }
}
