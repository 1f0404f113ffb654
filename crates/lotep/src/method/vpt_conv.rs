//! VPT on convolutional networks (Jia et al., ECCV 2022, its appendix; `spec/methods.md` 6): a border of learnt pixels around
//! the image, which the network sees as a larger one ("pad"), or learnt channels beside the image's colours, with a slice
//! of their own in the first kernel ("below").

use std::collections::BTreeSet;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::frame::Frame;
use super::{Method, Prompts, Site, seeded};
use crate::backbone::{Architecture, Below, Loaded};
use crate::params::{Group, Params, uniform};
use crate::{Result, bail};

/// Settings of the border around the image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VptPad {
    /// Pixels on each side.
    pub border: usize,
}

impl Default for VptPad {
    fn default() -> Self {
        // An image of 224 pixels becomes one of 256, which every stage halves evenly.
        Self { border: 16 }
    }
}

/// Settings of the channels beside the image's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VptBelow {
    /// How many.
    pub channels: usize,
}

impl Default for VptBelow {
    fn default() -> Self {
        Self { channels: 1 }
    }
}

/// More than any network's stem is wide.
const MOST: usize = 256;
/// How often a ConvNeXt halves its image's sides.
const STEPS: usize = 32;

const CHANNELS: &str = "below.channels";
const KERNEL: &str = "below.kernel";

/// The network, which must be one that takes images of any size by convolutions alone.
fn convolutional<'a>(method: &str, site: &Site<'a>) -> Result<&'a Loaded> {
    let Some(loaded) = site.loaded else { bail!("{method}: a network with its weights is needed") };
    match loaded.config.architecture {
        Architecture::ResNet(_) | Architecture::ConvNext(_) => Ok(loaded),
        _ => bail!(
            "{method}: a ResNet or a ConvNeXt is needed, {} is none; vpt-shallow and vpt-deep are for ViTs and Swins",
            loaded.config.name
        ),
    }
}

impl VptPad {
    fn frame(&self, site: &Site<'_>) -> Frame {
        Frame { outer: site.image.map(|side| side + 2 * self.border), inner: site.image }
    }
}

impl Method for VptPad {
    fn init(&self, site: &Site<'_>, seed: u64) -> Result<Params> {
        let loaded = convolutional("vpt-pad", site)?;
        if !(1..=MOST).contains(&self.border) {
            bail!("vpt-pad: border {} is out of range; 1 to {MOST}", self.border);
        }
        let frame = self.frame(site);
        let whole = |border: usize| site.image.iter().all(|side| (side + 2 * border).is_multiple_of(STEPS));
        if matches!(loaded.config.architecture, Architecture::ConvNext(_)) && !whole(self.border) {
            let [h, w] = frame.outer;
            let fits = (1..=MOST).filter(|b| whole(*b)).min_by_key(|b| b.abs_diff(self.border));
            let better = fits.map_or(String::new(), |b| format!("; {b} is the nearest that does"));
            bail!(
                "vpt-pad: border {} makes images of {h}x{w}, which {STEPS} does not divide{better}",
                self.border
            );
        }
        let mut stream = 0;
        // As pixels, from black to white.
        Ok(frame.init(site.device, |count| {
            stream += 1;
            uniform(count, 0.5, &mut seeded(seed, stream)).into_iter().map(|v| v + 0.5).collect()
        }))
    }

    fn prompts(&self, site: &Site<'_>, params: &Params) -> Prompts {
        let frame = self.frame(site);
        let image = frame.build(params, |strip| strip);
        Prompts { image: Some(image), canvas: Some(frame.outer), ..Prompts::default() }
    }
}

impl Method for VptBelow {
    fn init(&self, site: &Site<'_>, seed: u64) -> Result<Params> {
        let loaded = convolutional("vpt-below", site)?;
        if !(1..=MOST).contains(&self.channels) {
            bail!("vpt-below: channels {} is out of range; 1 to {MOST}", self.channels);
        }
        let [height, width] = site.image;
        let mut params = Params::default();
        let values = uniform(self.channels * height * width, 0.5, &mut seeded(seed, 0));
        let values = values.into_iter().map(|v| v + 0.5).collect();
        params.push(CHANNELS, &[self.channels, height, width], Group::Prompt, values, site.device);
        let first = format!("{}.weight", loaded.config.architecture.first_conv());
        let shape = loaded.values(&BTreeSet::from([first]))?.remove(0).shape;
        let (outputs, colours, side) = (shape[0], shape[1], shape[2]);
        // Glorot's bound for the kernel with all its inputs.
        let fans = (colours + self.channels + outputs) * side * side;
        let shape = [outputs, self.channels, side, side];
        let values = uniform(shape.iter().product(), (6.0 / fans as f64).sqrt(), &mut seeded(seed, 1));
        params.push(KERNEL, &shape, Group::Fixed, values, site.device);
        Ok(params)
    }

    fn prompts(&self, site: &Site<'_>, params: &Params) -> Prompts {
        // Normalised as grey pixels are on average.
        let mean = |of: [f32; 3]| of.iter().sum::<f32>() / 3.0;
        let pixels = site.loaded.map(|loaded| &loaded.config.preprocess);
        let (shift, scale) = pixels.map_or((0.0, 1.0), |p| (mean(p.mean), mean(p.std)));
        let channels: Tensor<3> = (params.get::<3>(CHANNELS) - shift) / scale;
        Prompts { below: Some(Below { channels, kernel: params.get(KERNEL) }), ..Prompts::default() }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::backbone::parity::architecture;
    use crate::backbone::{Hooks, NoHooks, Weights, made_up};
    use crate::fixtures::assert_close;
    use crate::model::Frozen;
    use crate::params::normal;

    fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
        x.into_data().iter::<f32>().collect()
    }

    fn image(loaded: &Loaded, [h, w]: [usize; 2]) -> Tensor<4> {
        let values = normal(2 * 3 * h * w, 0.3, &mut seeded(5, 0));
        Tensor::from_data(TensorData::new(values, [2, 3, h, w]), &loaded.device)
    }

    /// 12 p (S + p) pixels for a square image, 6 p (H + W + 2 p) in general.
    #[test]
    fn a_padded_image_is_seen_as_a_larger_one() {
        let loaded = made_up(architecture("resnet18"), [64, 96]);
        let site = Site::of(&loaded);
        let pad = VptPad { border: 3 };
        let params = pad.init(&site, 0).unwrap();
        assert_eq!(params.count(Group::Prompt), 6 * 3 * (64 + 96 + 2 * 3));
        let prompts = pad.prompts(&site, &params);
        let frame = prompts.image.clone().unwrap();
        let padded = prompts.pixels(image(&loaded, [64, 96])) + frame.unsqueeze();
        assert_eq!(padded.dims(), [2, 3, 70, 102]);
        let all = values(padded.clone());
        let inside = padded.clone().slice([0..2, 0..3, 3..67, 3..99]);
        assert_eq!(values(inside), values(image(&loaded, [64, 96])));
        assert!(all[..102 * 3].iter().all(|v| (0.0..=1.0).contains(v)) && (all[0] - all[1]).abs() > 0.0);
        let frozen = Frozen::new(&loaded);
        let found = frozen.features(image(&loaded, [64, 96]), &prompts);
        assert_eq!(values(found), values(frozen.features(padded, &NoHooks)));
        let convnext = made_up(architecture("convnext"), [32, 64]);
        let refused = pad.init(&Site::of(&convnext), 0).unwrap_err().to_string();
        assert!(refused.contains("38x70") && refused.contains("; 16 is the nearest"), "{refused}");
        assert!(VptPad { border: 16 }.init(&Site::of(&convnext), 0).is_ok());
        let vit = made_up(architecture("vit_b16"), [48, 64]);
        for refused in [pad.init(&Site::of(&vit), 0), VptBelow::default().init(&Site::of(&vit), 0)] {
            assert!(refused.unwrap_err().to_string().contains("vpt-deep"));
        }
    }

    /// Channels with a slice of zeros change nothing; else they are what a kernel with more inputs makes of them.
    #[test]
    fn channels_below_have_a_slice_of_the_kernel() {
        for (name, size) in [("resnet18", [64, 96]), ("convnext", [32, 64])] {
            let loaded = made_up(architecture(name), size);
            let site = Site::of(&loaded);
            let below = VptBelow { channels: 2 };
            let mut params = below.init(&site, 0).unwrap();
            assert_eq!(params.count(Group::Prompt), 2 * size[0] * size[1]);
            let features = |params: &Params| {
                let prompts = below.prompts(&site, params);
                values(loaded.network.features(image(&loaded, size), &prompts))
            };
            let plain = values(loaded.network.features(image(&loaded, size), &NoHooks));
            let found = features(&params);
            assert!(found.iter().zip(&plain).any(|(a, b)| (a - b).abs() > 1e-3), "{name}");
            // The image's own colours as channels, with the kernel's own slice, count twice: as an image of twice its values.
            let first = format!("{}.weight", loaded.config.architecture.first_conv());
            let kernel = loaded.values(&BTreeSet::from([first])).unwrap().remove(0);
            let own = image(&loaded, size).narrow(0, 0, 1);
            let hooks = Prompts {
                below: Some(Below {
                    channels: own.clone().squeeze_dim(0),
                    kernel: Tensor::<1>::from_floats(kernel.values.as_slice(), &loaded.device)
                        .reshape(<[usize; 4]>::try_from(kernel.shape.clone()).unwrap()),
                }),
                ..Prompts::default()
            };
            let twice = values(loaded.network.features(own.clone() * 2.0, &NoHooks));
            assert_close(&values(loaded.network.features(own, &hooks)), &twice, 1e-5, name);
            for param in params.iter_mut().filter(|p| p.name == KERNEL) {
                param.value = param.value.zeros_like();
            }
            assert_close(&features(&params), &plain, 1e-5, name);
            let portable = loaded.build(&Weights::random(0, &loaded.device).tracked()).unwrap();
            assert_close(&values(portable.features(image(&loaded, size), &NoHooks)), &plain, 1e-4, name);
        }
    }
}
