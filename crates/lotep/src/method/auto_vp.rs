//! AutoVP (Tsao et al., ICLR 2024; `spec/methods.md` 5): the image, made small and scaled by a learnt factor, in a frame
//! of learnt pixels. Its choice of mapping, size and scale is a sweep.

use burn::tensor::{Tensor, activation::sigmoid};
use serde::{Deserialize, Serialize};

use super::frame::Frame;
use super::ilm_vp::check_size;
use super::{Method, Prompts, Site};
use crate::params::{Group, Params};
use crate::{Result, bail};

/// The factor's name in an adapter.
const SCALE: &str = "scale";
/// How far it may go.
const RANGE: [f64; 2] = [0.1, 5.0];

/// AutoVP's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoVp {
    /// Side of the image inside the frame.
    pub size: usize,
    /// Factor by which it is scaled there, about its middle, at the start: above 1 its edge is cut off, below 1 black
    /// surrounds it.
    pub scale: f64,
    /// Whether the factor is learnt.
    pub train_scale: bool,
}

impl Default for AutoVp {
    fn default() -> Self {
        Self { size: 128, scale: 1.0, train_scale: true }
    }
}

impl AutoVp {
    fn frame(&self, site: &Site<'_>) -> Frame {
        Frame { outer: site.image, inner: [self.size; 2] }
    }
}

impl Method for AutoVp {
    fn init(&self, site: &Site<'_>, _seed: u64) -> Result<Params> {
        check_size("auto-vp", self.size, site.image)?;
        let [least, most] = RANGE;
        if !(least..=most).contains(&self.scale) {
            bail!("auto-vp: scale {} is out of range; {least} to {most}", self.scale);
        }
        let mut params = self.frame(site).init(site.device, |count| vec![0.0; count]);
        if self.train_scale {
            params.push(SCALE, &[1], Group::Prompt, vec![self.scale as f32], site.device);
        }
        Ok(params)
    }

    fn prompts(&self, site: &Site<'_>, params: &Params) -> Prompts {
        let scale = if self.train_scale {
            Some(params.get::<1>(SCALE))
        } else {
            let other = (self.scale - 1.0).abs() > f64::EPSILON;
            other.then(|| Tensor::from_floats([self.scale as f32], site.device))
        };
        Prompts {
            image: Some(self.frame(site).build(params, sigmoid)),
            canvas: Some(site.image),
            scale: scale.map(|s| s.clamp(RANGE[0], RANGE[1])),
            ..Prompts::default()
        }
    }

    fn input(&self, _image: [usize; 2]) -> [usize; 2] {
        [self.size; 2]
    }
}
