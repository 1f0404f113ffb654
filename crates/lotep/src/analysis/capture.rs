//! A network, adapted or as it is, watched while images go through it.

use std::sync::{Mutex, PoisonError};

use burn::tensor::{Device, Tensor};

use super::cka::Gram;
use crate::Result;
use crate::adapter::Adapter;
use crate::backbone::{Activation, Below, ConvUpdate, Hooks, Loaded, LowRank, Preprocess, Prompt};
use crate::data::Transform;
use crate::method::{Method, Prompts, Site};
use crate::model::{Frozen, network};

/// A network whose blocks' outputs are looked at.
pub struct Watched {
    frozen: Frozen,
    prompts: Prompts,
    device: Device,
    /// timm's names of its blocks.
    pub blocks: Vec<String>,
    /// How images are prepared for it.
    pub transform: Transform,
}

impl Watched {
    /// A loaded network, with an adapter or as it is. Without one it sees images as those of the tasks that it is adapted
    /// to are seen: resized whole.
    ///
    /// # Errors
    /// The adapter is not this network's, or the weights can no longer be read.
    pub fn new(loaded: &Loaded, adapter: Option<&Adapter>) -> Result<Self> {
        let mut frozen = Frozen::new(loaded);
        let mut prompts = Prompts::default();
        if let Some(adapter) = adapter {
            let (method, params) = (&adapter.config.method, &adapter.params);
            frozen = frozen.with_network(network(loaded, method, params)?);
            prompts = method.prompts(&Site::of(loaded), params);
            // They are in the network's weights.
            prompts.updates.clear();
            prompts.conv_updates.clear();
        }
        let transform = match adapter {
            Some(adapter) => adapter.config.input.transform.clone(),
            None => Preprocess::adaptation(loaded.config.preprocess.image),
        };
        let blocks = loaded.blocks.iter().map(|b| b.name.clone()).collect();
        Ok(Self { frozen, prompts, device: loaded.device.clone(), blocks, transform })
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// For each block, how alike what it puts out is for the images of a batch `[B, 3, H, W]` in [0, 1].
    ///
    /// # Errors
    /// There are fewer than four images.
    pub fn grams(&self, pixels: Tensor<4>) -> Result<Vec<Gram>> {
        let samples = pixels.dims()[0];
        let watching = Watching { prompts: &self.prompts, seen: Mutex::default() };
        self.frozen.features(pixels, &watching);
        let mut seen = watching.seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        seen.sort_by_key(|(block, from, _)| (*block, *from));
        let mut grams = Vec::with_capacity(self.blocks.len());
        for block in 0..self.blocks.len() {
            let parts = seen.iter().filter(|(b, ..)| *b == block).map(|(.., x)| x.clone()).collect();
            let x = Tensor::cat(parts, 0);
            // Centred first: what the estimator takes away anyway would cost most of f32's digits.
            let x = x.clone() - x.mean_dim(0);
            let products = x.clone().matmul(x.transpose()).into_data();
            grams.push(Gram::new(products.iter::<f64>().collect(), samples)?);
        }
        Ok(grams)
    }
}

/// The prompts, and what was seen behind each block: the block, which part of the batch it is of, `[B, all features]`.
struct Watching<'a> {
    prompts: &'a Prompts,
    seen: Mutex<Vec<(usize, usize, Tensor<2>)>>,
}

impl Hooks for Watching<'_> {
    fn pixels(&self, x: Tensor<4>) -> Tensor<4> {
        self.prompts.pixels(x)
    }

    fn image(&self) -> Option<Tensor<3>> {
        self.prompts.image()
    }

    fn prompt(&self, block: usize) -> Option<Prompt> {
        self.prompts.prompt(block)
    }

    fn entrance(&self, block: usize, x: Activation) -> Activation {
        self.prompts.entrance(block, x)
    }

    fn window_tokens(&self, block: usize, samples: usize) -> Option<Tensor<3>> {
        self.prompts.window_tokens(block, samples)
    }

    fn below(&self) -> Option<Below> {
        self.prompts.below()
    }

    fn keys_values(&self, block: usize) -> Option<[Tensor<2>; 2]> {
        self.prompts.keys_values(block)
    }

    fn low_rank(&self, name: &str) -> Option<LowRank> {
        self.prompts.low_rank(name)
    }

    fn conv_update(&self, name: &str) -> Option<ConvUpdate> {
        self.prompts.conv_update(name)
    }

    fn watches(&self) -> bool {
        true
    }

    fn exit(&self, block: usize, x: &Activation) {
        let flat = match x {
            Activation::Map(x) => x.clone().flatten(1, 3),
            Activation::Tokens(x) => x.clone().flatten(1, 2),
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let from = seen.iter().filter(|(b, ..)| *b == block).count();
        seen.push((block, from, flat));
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;

    use super::*;
    use crate::analysis::cka::Cka;
    use crate::backbone::made_up;
    use crate::backbone::parity::architecture;
    use crate::head::Head;
    use crate::method::MethodConfig;
    use crate::train::setup::init_params;

    /// Of one network, every block is its own like; an adapted one departs where its prompts are, not before.
    #[test]
    fn a_network_is_like_itself_and_adapted_ones_are_not() {
        for (name, image, method) in [
            ("resnet18", [32, 32], "lotep-cp"),
            ("resnet18", [32, 32], "vpt-below"),
            ("vit_b16", [48, 64], "lotep-cp"),
            ("vit_b16", [48, 64], "vpt-deep"),
            ("swin_rect", [24, 56], "lotep-cp"),
            ("swin_rect", [24, 56], "vpt-deep"),
        ] {
            let loaded = made_up(architecture(name), image);
            let method = MethodConfig::named(method).unwrap();
            let mut params = init_params(&loaded, &method, Head::default(), 3, 0).unwrap();
            for param in params.iter_mut() {
                param.value = param.value.clone() + 0.3;
            }
            let adapter =
                Adapter::new(&loaded, method, Head::default(), vec!["a".into(); 3], params).unwrap();
            let plain = Watched::new(&loaded, None).unwrap();
            let adapted = Watched::new(&loaded, Some(&adapter)).unwrap();
            loaded.device.seed(1);
            let pixels = Tensor::<4>::random(
                [9, 3, image[0], image[1]],
                Distribution::Uniform(0.0, 1.0),
                plain.device(),
            );
            let a = plain.grams(pixels.clone()).unwrap();
            assert_eq!(a.len(), loaded.blocks.len(), "{name}");
            let mut same = Cka::default();
            same.add(&a, &plain.grams(pixels.clone()).unwrap());
            let mut other = Cka::default();
            other.add(&a, &adapted.grams(pixels).unwrap());
            for l in 0..a.len() {
                let (same, other) = (same.matrix()[l][l].unwrap(), other.matrix()[l][l].unwrap());
                assert!((same - 1.0).abs() < 1e-4, "{name}, block {l}: {same}");
                assert!(other < 0.9999, "{name}, block {l}: {other}");
            }
        }
    }
}
