//! ILM-VP (Chen et al., CVPR 2023; `spec/methods.md` 4): the image, made small, in a frame of learnt pixels; the source
//! classes that speak for the new ones are found by counting, again and again as the frame changes (`head::Mapping`).

use burn::tensor::activation::sigmoid;
use serde::{Deserialize, Serialize};

use super::frame::Frame;
use super::{Method, Prompts, Site};
use crate::params::Params;
use crate::{Result, bail};

/// ILM-VP's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IlmVp {
    /// Side of the image inside the frame. The paper takes 32 for CIFAR, SVHN and GTSRB, 128 for others.
    pub size: usize,
}

impl Default for IlmVp {
    fn default() -> Self {
        Self { size: 128 }
    }
}

impl IlmVp {
    fn frame(&self, site: &Site<'_>) -> Frame {
        Frame { outer: site.image, inner: [self.size; 2] }
    }
}

/// Check that an image of `size` leaves room for a frame.
pub(super) fn check_size(method: &str, size: usize, [h, w]: [usize; 2]) -> Result<()> {
    if size == 0 || size > h.min(w) || [size; 2] == [h, w] {
        let most = if h == w { h - 1 } else { h.min(w) };
        bail!("{method}: size {size} is out of range; 1 to {most} leaves a frame in {h}x{w} images");
    }
    Ok(())
}

impl Method for IlmVp {
    fn init(&self, site: &Site<'_>, _seed: u64) -> Result<Params> {
        check_size("ilm-vp", self.size, site.image)?;
        // A sigmoid makes grey of it.
        Ok(self.frame(site).init(site.device, |count| vec![0.0; count]))
    }

    fn prompts(&self, site: &Site<'_>, params: &Params) -> Prompts {
        let image = self.frame(site).build(params, sigmoid);
        Prompts { image: Some(image), canvas: Some(site.image), ..Prompts::default() }
    }

    fn input(&self, _image: [usize; 2]) -> [usize; 2] {
        [self.size; 2]
    }
}
