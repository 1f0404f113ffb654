//! A backbone with its pixels in and its logits out: normalisation, prompts and classifier around the network.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};

use crate::backbone::{Backbone, Hooks, Loaded};
use crate::data::{Batch, Transform};
use crate::head::{Head, SharedTexts, unit};
use crate::method::{Method, MethodConfig, Prompts, Site};
use crate::ops::{Linear, Normalise, Precision};
use crate::params::Params;
use crate::safetensors::NamedTensor;
use crate::{Result, bail, input_error};

/// Pixels of a batch as a tensor `[B, 3, H, W]` in [0, 1].
pub fn pixels(batch: Batch, transform: &Transform, device: &Device) -> Tensor<4> {
    let (height, width) = transform.size();
    Tensor::from_data(TensorData::new(batch.pixels, [batch.size, 3, height, width]), device)
}

/// The frozen part: normalisation and network.
#[derive(Clone)]
pub struct Frozen {
    network: Arc<dyn Backbone>,
    normalise: Normalise,
}

impl Frozen {
    /// The frozen part of a loaded backbone.
    pub fn new(loaded: &Loaded) -> Self {
        let p = &loaded.config.preprocess;
        Self { network: loaded.network.clone(), normalise: Normalise::new(p.mean, p.std, &loaded.device) }
    }

    /// The same around another network.
    pub(crate) fn with_network(&self, network: Arc<dyn Backbone>) -> Self {
        Self { network, ..self.clone() }
    }

    /// The network.
    pub(crate) fn network(&self) -> &dyn Backbone {
        self.network.as_ref()
    }

    /// Pooled features `[B, F]` of pixels `[B, 3, H, W]` in [0, 1].
    pub fn features(&self, pixels: Tensor<4>, hooks: &dyn Hooks) -> Tensor<2> {
        self.network.features(self.normalise.forward(hooks.pixels(pixels), hooks.image()), hooks)
    }

    /// The same behind the network's own classifier; CLIP's is the projection to where texts are.
    pub(crate) fn projected(&self, pixels: Tensor<4>, hooks: &dyn Hooks) -> Tensor<2> {
        let features = self.features(pixels, hooks);
        match self.network.head() {
            Some(projection) => projection.forward(features),
            None => features,
        }
    }
}

/// The network that `method` works with.
pub(crate) fn network(loaded: &Loaded, method: &MethodConfig, params: &Params) -> Result<Arc<dyn Backbone>> {
    let changed = method.weights(&Site::of(loaded), params)?;
    if changed.is_empty() {
        return Ok(loaded.network.clone());
    }
    loaded.build(&loaded.weights()?.with(changed))
}

/// A model ready to score images: prompts built once and folded where the network allows it.
#[derive(Clone)]
pub struct Predictor {
    frozen: Frozen,
    prompts: Prompts,
    scores: Scores,
    device: Device,
}

/// How features become scores.
#[derive(Clone)]
enum Scores {
    Linear(Linear),
    /// Cosines with each class's vector `[classes, F]`.
    Names(SharedTexts, Tensor<2>),
    /// The same where each image has vectors of its own.
    OwnNames(SharedTexts, MethodConfig, Params),
}

/// Prompts that cannot become weights of a checkpoint, by their names, and the weights that can.
pub struct Merge {
    /// Weights that changed.
    pub changed: Vec<NamedTensor>,
    /// Prompts that stay additions.
    pub left: Vec<String>,
}

impl Predictor {
    /// The network with the classifier it was trained with.
    ///
    /// # Errors
    /// It has none.
    pub fn own(loaded: &Loaded) -> Result<Self> {
        let head = loaded.network.head().ok_or_else(|| {
            input_error!("{} has no classifier of its own: give an adapter", loaded.config.name)
        })?;
        Ok(Self {
            frozen: Frozen::new(loaded),
            prompts: Prompts::default(),
            scores: Scores::Linear(head.clone()),
            device: loaded.device.clone(),
        })
    }

    /// A network adapted by `method` and `head` with learnt `params`; `texts` are about the classes, where their names
    /// score them.
    ///
    /// # Errors
    /// The parameters are not this network's, or texts are missing.
    pub fn adapted(
        loaded: &Loaded,
        method: &MethodConfig,
        head: Head,
        params: &Params,
        texts: Option<&SharedTexts>,
    ) -> Result<Self> {
        let network = network(loaded, method, params)?;
        let prompts = method.prompts(&Site::of(loaded), params);
        if texts.is_none() && method.text_plan(head)?.is_some() {
            bail!("{} scores classes by their names, and texts about them are not there", method.name());
        }
        let scores = if let Some(texts) = texts {
            Self::names(loaded, method, params, &prompts, texts)
        } else {
            let (weight, bias) = head.classifier(network.as_ref(), params);
            Scores::Linear(Linear::new(weight, Some(bias), Precision::F32))
        };
        Ok(Self::with_prompts(loaded, network, prompts, scores).0)
    }

    fn names(
        loaded: &Loaded,
        method: &MethodConfig,
        params: &Params,
        prompts: &Prompts,
        texts: &SharedTexts,
    ) -> Scores {
        let features = loaded.network.head().map_or(0, |head| head.dims()[1]);
        if method.conditioned(params, Tensor::zeros([1, features], &loaded.device)).is_some() {
            return Scores::OwnNames(texts.clone(), method.clone(), params.clone());
        }
        Scores::Names(texts.clone(), texts.prompted_vectors(prompts))
    }

    /// The same with the classifier that the network was trained with.
    ///
    /// # Errors
    /// It has none.
    pub(crate) fn with_own_classifier(self, loaded: &Loaded) -> Result<Self> {
        Ok(Self { scores: Self::own(loaded)?.scores, ..self })
    }

    /// What of an adaptation can be written into the network's own weights.
    ///
    /// # Errors
    /// The parameters are not this network's.
    pub fn merge(loaded: &Loaded, method: &MethodConfig, head: Head, params: &Params) -> Result<Merge> {
        if method.text_plan(head)?.is_some() {
            bail!(
                "{} scores classes by their names, which no classifier of timm's layout does: keep the adapter beside \
                 the backbone instead",
                method.name()
            );
        }
        let network = network(loaded, method, params)?;
        let prompts = method.prompts(&Site::of(loaded), params);
        let (weight, bias) = head.classifier(network.as_ref(), params);
        let name = loaded.config.architecture.classifier();
        let tensor = |leaf: &str, shape: &[usize], values: TensorData| NamedTensor {
            name: format!("{name}.{leaf}"),
            shape: shape.to_vec(),
            values: values.iter::<f32>().collect(),
        };
        let classifier = [
            tensor("weight", &weight.dims(), weight.to_data()),
            tensor("bias", &bias.dims(), bias.to_data()),
        ];
        let learnt = Scores::Linear(Linear::new(weight, Some(bias), Precision::F32));
        let mut merge = Self::with_prompts(loaded, network, prompts, learnt).1;
        let own = method.weights(&Site::of(loaded), params)?;
        // What was folded changed last, and the classifier is a new one.
        merge.changed = own.into_iter().chain(merge.changed).chain(classifier).collect();
        Ok(merge)
    }

    fn with_prompts(
        loaded: &Loaded,
        network: Arc<dyn Backbone>,
        mut prompts: Prompts,
        scores: Scores,
    ) -> (Self, Merge) {
        let mut frozen = Frozen { network, ..Frozen::new(loaded) };
        // They are in the network's weights.
        prompts.updates.clear();
        prompts.conv_updates.clear();
        let image = prompts.image.as_ref().map(|image| frozen.normalise.linear_part(image.clone()));
        let first = prompts.blocks.first().cloned().flatten();
        let mut changed = Vec::new();
        if let Some(folded) = frozen.network.fold(image, first) {
            frozen.network = folded.network;
            prompts.image = None;
            if folded.first {
                prompts.blocks[0] = None;
            }
            changed = folded.changed;
        }
        let mut left: Vec<String> = Vec::new();
        // A checkpoint has no place for what else is done to the image.
        if prompts.image.is_some() || prompts.canvas.is_some() || prompts.scale.is_some() {
            left.push("image".into());
        }
        if prompts.below.is_some() {
            left.push("channels below the image".into());
        }
        let blocks = prompts.blocks.iter().zip(&loaded.blocks);
        left.extend(blocks.filter(|(p, _)| p.is_some()).map(|(_, b)| b.name.clone()));
        let blocks = prompts.tokens.iter().zip(&loaded.blocks);
        left.extend(blocks.map(|(_, b)| format!("tokens of {}", b.name)));
        let blocks = prompts.keys_values.iter().zip(&loaded.blocks).filter(|(own, _)| own.is_some());
        left.extend(blocks.map(|(_, b)| format!("keys and values of {}", b.name)));
        let predictor = Self { frozen, prompts, scores, device: loaded.device.clone() };
        (predictor, Merge { changed, left })
    }

    /// Scores `[B, classes]` of pixels `[B, 3, H, W]` in [0, 1].
    pub fn logits(&self, pixels: Tensor<4>) -> Tensor<2> {
        match &self.scores {
            Scores::Linear(classifier) => classifier.forward(self.frozen.features(pixels, &self.prompts)),
            Scores::Names(texts, vectors) => texts.logits(self.images(pixels), vectors.clone()),
            Scores::OwnNames(texts, method, params) => {
                let images = self.images(pixels);
                // One by one: each has as many texts as there are classes.
                let rows = (0..images.dims()[0]).map(|i| {
                    let image = images.clone().narrow(0, i, 1);
                    match method.conditioned(params, image.clone()) {
                        Some(words) => texts.own_logits(image, texts.conditioned(words)),
                        None => unreachable!("asked when this was made"),
                    }
                });
                Tensor::cat(rows.collect(), 0)
            }
        }
    }

    /// Images' features, of length one, where texts have theirs.
    fn images(&self, pixels: Tensor<4>) -> Tensor<2> {
        unit(self.frozen.projected(pixels, &self.prompts))
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

#[cfg(test)]
impl Frozen {
    /// A network whose input is normalised already.
    pub(crate) fn bare(network: Arc<dyn Backbone>, device: &Device) -> Self {
        Self { network, normalise: Normalise::new([0.0; 3], [1.0; 3], device) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::parity::architecture;
    use crate::backbone::{LoadOptions, load, made_up};
    use crate::fixtures::assert_close;
    use crate::params::{Group, normal};
    use crate::train::setup::init_params;
    use rand::SeedableRng;

    fn random_backbone(name: &str, image: Option<[usize; 2]>) -> Loaded {
        let options = LoadOptions { random_weights: true, image, ..LoadOptions::plain(name) };
        load(&options, &mut ()).unwrap()
    }

    /// Folding prompts into constants, and preparing those that stay, changes nothing but rounding, and says what it could not
    /// fold: the same comes of an image that is added by hand and of whole prompts.
    #[test]
    fn folded_prompts_are_the_added_ones() {
        let resnet = random_backbone("resnet18", Some([64, 96]));
        let vit = random_backbone("vit_tiny_patch16_224", None);
        let small = |name: &str, image: [usize; 2]| made_up(architecture(name), image);
        let (convnext, swin) = (small("convnext", [32, 64]), small("swin_rect", [24, 56]));
        let (coatnet, clip) = (small("coatnet2", [64, 96]), small("clip_visual_timm", [32, 32]));
        for (loaded, method, left) in [
            (&resnet, "lor-vp", vec!["image"]),
            (
                &resnet,
                "lotep-tk",
                vec!["image", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1"],
            ),
            (&resnet, "linear-probe", vec![]),
            (&vit, "lor-vp", vec![]),
            (&vit, "lotep-cp", vec!["blocks.1", "blocks.2", "blocks.3"]),
            (&vit, "lora", vec![]),
            (&swin, "lora", vec![]),
            (&coatnet, "lora", vec![]),
            (
                &clip,
                "e2vpt",
                ["tokens", "keys and values"]
                    .iter()
                    .flat_map(|what| (0..3).map(move |l| format!("{what} of blocks.{l}")))
                    .map(|name| &*name.leak())
                    .collect(),
            ),
            (&vit, "border", vec![]),
            (&vit, "ilm-vp", vec!["image"]),
            (&vit, "auto-vp", vec!["image"]),
            (&resnet, "ilm-vp", vec!["image"]),
            (&vit, "vpt-shallow", vec!["tokens of blocks.0"]),
            (&clip, "vpt-deep", vec!["tokens of blocks.0", "tokens of blocks.1", "tokens of blocks.2"]),
            (&coatnet, "grouped", vec!["image", "stages.0.blocks.0"]),
            (&clip, "lor-vp", vec![]),
            (&clip, "lotep-cp", vec!["blocks.0"]),
            (&convnext, "lotep-tk", vec!["image", "stages.0.blocks.0"]),
            (&swin, "lotep-cp", vec!["image", "layers.0.blocks.0"]),
            (&coatnet, "lotep-tk", vec!["image", "stages.0.blocks.0"]),
        ] {
            let mut method = MethodConfig::named(method).unwrap();
            match &mut method {
                MethodConfig::IlmVp(m) => m.size = 40,
                MethodConfig::Lora(m) => m.rank = 3,
                _ => {}
            }
            let head = Head { mapping: method.default_mapping(), sources: 1 };
            let mut params = init_params(loaded, &method, head, 5, 0).unwrap();
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
            for param in params.iter_mut().filter(|p| p.group != Group::Fixed) {
                let n = param.value.dims()[0];
                let values = normal(n, 0.3, &mut rng);
                param.value = Tensor::from_data(TensorData::new(values, [n]), &loaded.device);
            }
            let [h, w] = method.input(loaded.config.preprocess.image);
            // Not drawn: tests beside this one draw from the same source.
            let values = (0..2 * 3 * h * w).map(|i| 0.5 + 0.5 * (i as f32 * 0.37).sin()).collect();
            let pixels = Tensor::from_data(TensorData::new::<f32, _>(values, [2, 3, h, w]), &loaded.device);
            let mut prompts = method.prompts(&Site::of(loaded), &params);
            let changed = prompts.pixels(pixels.clone());
            (prompts.scale, prompts.canvas) = (None, None);
            let changed = match prompts.image.take() {
                Some(image) => changed + image.unsqueeze(),
                None => changed,
            };
            for prompt in prompts.blocks.iter_mut().flatten() {
                *prompt = prompt.clone().whole().into();
            }
            let features = Frozen::new(loaded).features(changed, &prompts);
            let added = head.logits(loaded.network.as_ref(), &params, features);
            let folded = Predictor::adapted(loaded, &method, head, &params, None).unwrap().logits(pixels);
            let values = |t: Tensor<2>| t.into_data().iter::<f32>().collect::<Vec<_>>();
            assert_close(&values(folded), &values(added), 2e-5, method.name());
            assert_eq!(
                Predictor::merge(loaded, &method, head, &params).unwrap().left,
                left,
                "{}",
                method.name()
            );
        }
    }
}
