//! Find, check and load a backbone: a hub directory, a weight file with `--arch`, or random weights.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Device, Tensor};
use sha2::{Digest, Sha256};

use super::checkpoint::Checkpoint;
use super::source::{self, Place};
#[cfg(test)]
use super::text::TextHints;
use super::words::Words;
use super::{Architecture, Backbone, Block, Layer, ModelConfig, PUBLISHED, TextTower, Weights, survey};
use crate::hub::Watch;
use crate::ops::{Compute, Precision, auto_precision};
use crate::safetensors::NamedTensor;
use crate::{Result, bail, hash, input_error};

/// What to load and how.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// A directory in timm's hub layout, a weight file, timm's name for published weights (`resnet18.tv_in1k`),
    /// `hf-hub:owner/name`, or (with `random_weights`) an architecture. A name may end in `@revision`.
    pub backbone: String,
    /// The architecture of a bare weight file.
    pub arch: Option<String>,
    /// Make up weights instead of reading a file.
    pub random_weights: bool,
    /// Another input size than the checkpoint's, for families that allow it.
    pub image: Option<[usize; 2]>,
    /// Where to put it.
    pub device: Device,
    /// What matrix products round to; `None` chooses what is faster on the device.
    pub precision: Option<Precision>,
    /// Keep only each block's input for the backward pass.
    pub recompute: bool,
}

impl LoadOptions {
    /// Pretrained weights on the CPU in f32, at the size that they were learnt for.
    pub fn plain(backbone: impl Into<String>) -> Self {
        Self {
            backbone: backbone.into(),
            arch: None,
            random_weights: false,
            image: None,
            device: Device::flex(),
            precision: Some(Precision::F32),
            recompute: false,
        }
    }
}

/// A backbone with everything known about it.
#[derive(Clone)]
pub struct Loaded {
    /// The network.
    pub network: Arc<dyn Backbone>,
    /// Its architecture and preprocessing.
    pub config: ModelConfig,
    /// Its blocks, found by a dry run at `config.preprocess.image`.
    pub blocks: Vec<Block>,
    /// Layers whose weights a method can add to, in the order of the network.
    pub layers: Vec<Layer>,
    /// Parameters without the classifier.
    pub body_parameters: usize,
    /// Parameters of its classifier.
    pub head_parameters: usize,
    /// CLIP's text side, where it is there.
    pub words: Option<Words>,
    /// Weights that were resampled to an image size they were not learnt for, under timm's names.
    pub resampled: Vec<NamedTensor>,
    /// SHA-256 of the weight file; `None` for random weights.
    pub sha256: Option<String>,
    /// The weight file.
    pub file: Option<PathBuf>,
    /// The architecture the user gave for it.
    pub arch: Option<String>,
    /// Where it was found: what the user called it, or of a repository of the hub, its name with the commit.
    pub source: String,
    /// Where it lives.
    pub device: Device,
    /// What its matrix products round to.
    pub precision: Precision,
    /// Whether only each block's input is kept for the backward pass.
    pub recompute: bool,
    /// The network with some blocks in their portable form, once it was asked for.
    unpacked: Arc<Mutex<Option<Unpacked>>>,
}

/// Which blocks, and the network.
type Unpacked = (Vec<String>, Arc<dyn Backbone>);

/// The seeds of made-up weights: the network's, and those of a text tower beside it.
const MADE_UP: u64 = 0;
const MADE_UP_TEXT: u64 = 1;

/// Load a backbone; `watch` sees what has to be downloaded.
///
/// # Errors
/// Nothing is found under that name, or what is found is damaged or does not fit its architecture.
pub fn load(options: &LoadOptions, watch: &mut dyn Watch) -> Result<Loaded> {
    if options.random_weights {
        let config = made_up_config(options.arch.as_deref().unwrap_or(&options.backbone))?;
        let words = Words::made_up(&config);
        return build(config, Weights::random(MADE_UP, &options.device), words, None, options);
    }
    let place = source::find(&options.backbone, watch)?;
    let file = &place.weights;
    let arch = options.arch.as_ref().or(place.arch.as_ref());
    // Without a `config.json` the user's word is enough.
    let config = place.config.as_deref().filter(|path| arch.is_none() || path.is_file());
    let config = config.map(ModelConfig::from_hub).transpose()?;
    let tensors = Checkpoint::open(file)?;
    let config = match (arch, config.flatten()) {
        (None, Some(config)) => config,
        (Some(arch), config) => {
            let named = ModelConfig::named(arch, 1000)?;
            config.filter(|c| c.name == named.name).unwrap_or(named)
        }
        (None, None) => match &place.config {
            Some(config) => bail!(
                "{} has no `architecture`, as timm's has: say what network it is, as in --arch resnet18",
                config.display()
            ),
            None => bail!(
                "{} is a bare weight file: say which architecture it is, as in --arch resnet18",
                file.display()
            ),
        },
    };
    let head = format!("{}.weight", config.architecture.classifier());
    let config = match tensors.shape(&head) {
        None => ModelConfig { classes: 0, ..config },
        Some([classes, _]) if arch.is_some() && *classes != config.classes => {
            // A bare file says by its classifier what it was trained on, and so what pixels it wants.
            ModelConfig::named(&config.name, *classes)?
        }
        Some([classes, _]) => ModelConfig { classes: *classes, ..config },
        Some(shape) => bail!("{}: `{head}` has shape {shape:?}, a matrix is expected", file.display()),
    };
    let paths = tensors.paths().to_vec();
    let words = Words::find(&tensors, &config)?;
    build(config, Weights::from_file(tensors, &options.device), words, Some((&place, &paths)), options)
}

/// What made-up weights are for: a CLIP's projection is as wide as the published one's.
fn made_up_config(name: &str) -> Result<ModelConfig> {
    let config = ModelConfig::named(name, 1000)?;
    let clip = matches!(&config.architecture, Architecture::Vit(vit) if vit.clip);
    match PUBLISHED.iter().find(|p| clip && p.name == config.name) {
        Some(published) => ModelConfig::named(name, published.classes),
        None => Ok(config),
    }
}

fn build(
    mut config: ModelConfig,
    weights: Weights,
    words: Option<Words>,
    file: Option<(&Place, &[PathBuf])>,
    options: &LoadOptions,
) -> Result<Loaded> {
    if let Some(image) = options.image {
        config.architecture = config.architecture.resized(image)?;
        config.preprocess.image = image;
    }
    config.architecture.takes(config.preprocess.image)?;
    let precision = options.precision.unwrap_or(auto_precision(&options.device)?);
    let compute = Compute { precision, portable: false, recompute: options.recompute };
    let network = config.architecture.load(config.classes, &weights, compute)?;
    weights.finish()?;
    let head_parameters = if config.classes > 0 { config.classes * (network.feature_width() + 1) } else { 0 };
    let (blocks, asked) = survey(network.as_ref(), config.preprocess.image, &options.device);
    let taken = weights.taken();
    let layer = |(name, convolution): (String, bool)| {
        Some(Layer { shape: taken.get(&format!("{name}.weight"))?.clone(), name, convolution })
    };
    Ok(Loaded {
        blocks,
        layers: asked.into_iter().filter_map(layer).collect(),
        words,
        body_parameters: weights.parameters() - head_parameters,
        head_parameters,
        resampled: weights.resampled(),
        sha256: file.map(|(_, paths)| hash::files(Sha256::new(), paths)).transpose()?,
        source: file.map_or(&options.backbone, |(place, _)| &place.source).clone(),
        file: file.map(|(place, _)| place.weights.clone()),
        arch: options.arch.clone().or_else(|| file.and_then(|(place, _)| place.arch.clone())),
        device: options.device.clone().without_autodiff(),
        precision,
        recompute: options.recompute,
        unpacked: Arc::default(),
        network,
        config,
    })
}

/// A network with made-up weights, whatever its shape.
#[cfg(test)]
pub(crate) fn made_up(architecture: super::Architecture, image: [usize; 2]) -> Loaded {
    let mut preprocess = architecture.preprocess(5);
    preprocess.image = image;
    let config = ModelConfig {
        name: "made up".into(),
        architecture,
        classes: 5,
        preprocess,
        text: TextHints::default(),
    };
    made_up_model(config, None)
}

/// A CLIP of made-up weights, with texts of made-up tokens.
#[cfg(test)]
pub(crate) fn made_up_clip(image: super::VitConfig, text: super::TextConfig) -> Loaded {
    let image = super::VitConfig { clip: true, nonlinearity: text.nonlinearity, ..image };
    let architecture = Architecture::Vit(image);
    let preprocess = architecture.preprocess(text.features);
    let config = ModelConfig {
        name: "made up".into(),
        architecture,
        classes: text.features,
        preprocess,
        text: TextHints::default(),
    };
    made_up_model(config, Some(Words::new(text, 10.0, None)))
}

#[cfg(test)]
fn made_up_model(config: ModelConfig, words: Option<Words>) -> Loaded {
    let options = LoadOptions { random_weights: true, ..LoadOptions::plain("made up") };
    build(config, Weights::random(MADE_UP, &options.device), words, None, &options).unwrap()
}

impl Loaded {
    /// One line for people: name, size and where it came from.
    pub fn describe(&self) -> String {
        let from = self.file.as_ref().map_or("random weights".into(), |f| f.display().to_string());
        format!(
            "{} ({:.2}M parameters, {} blocks) from {from}",
            self.config.name,
            (self.body_parameters + self.head_parameters) as f64 / 1e6,
            self.blocks.len()
        )
    }

    /// Its weights, to be taken again.
    ///
    /// # Errors
    /// The file is no longer there, or no longer whole.
    pub fn weights(&self) -> Result<Weights> {
        Ok(match &self.file {
            Some(file) => Weights::from_file(Checkpoint::open(file)?, &self.device),
            None => Weights::random(MADE_UP, &self.device),
        })
    }

    /// CLIP's text side.
    ///
    /// # Errors
    /// The network has none.
    pub fn words(&self) -> Result<&Words> {
        self.words.as_ref().ok_or_else(|| {
            input_error!(
                "{} has no text tower, which class names need: CLIP with both towers is expected as --backbone",
                self.config.name
            )
        })
    }

    /// The embeddings of tokens, one after the other.
    ///
    /// # Errors
    /// There is no text tower, or its weights can no longer be read.
    pub fn word_embeddings(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let config = &self.words()?.config;
        let (vocabulary, width) = (config.vocabulary, config.width);
        let table: Tensor<2> =
            self.text_weights()?.take("text.token_embedding.weight", [vocabulary, width])?;
        let rows = tokens.iter().map(|t| table.clone().narrow(0, *t as usize, 1));
        Ok(rows.flat_map(|row| row.into_data().iter::<f32>().collect::<Vec<_>>()).collect())
    }

    fn text_weights(&self) -> Result<Weights> {
        match &self.file {
            Some(_) => self.weights(),
            None => Ok(Weights::random(MADE_UP_TEXT, &self.device)),
        }
    }

    /// The text tower for texts of up to `length` tokens.
    ///
    /// # Errors
    /// There is none, or its weights can no longer be read.
    pub fn text_tower(&self, length: usize) -> Result<TextTower> {
        let config = &self.words()?.config;
        let weights = self.text_weights()?;
        let compute = Compute { precision: self.precision, portable: false, recompute: self.recompute };
        TextTower::load(config, length, &weights, compute)
    }

    /// The same in the portable form, for what the fast one can't learn inside.
    ///
    /// # Errors
    /// As [`text_tower`](Self::text_tower).
    pub(crate) fn unpacked_text_tower(&self, length: usize) -> Result<TextTower> {
        let weights = self.text_weights()?.unpacked(&["text.blocks.".to_owned()]);
        let compute = Compute { precision: self.precision, portable: false, recompute: self.recompute };
        TextTower::load(&self.words()?.config, length, &weights, compute)
    }

    /// Weights by name, in the order of `names`.
    ///
    /// # Errors
    /// The file is no longer there, or has no such weight.
    pub fn values(&self, names: &BTreeSet<String>) -> Result<Vec<NamedTensor>> {
        let weights = self.weights()?.tracked();
        // Made-up weights depend on the order in which they are taken, so all are.
        let Some(file) = &self.file else {
            self.build(&weights)?;
            let (leaves, shapes) = (weights.leaves(), weights.taken());
            let found = names.iter().filter_map(|name| {
                let values = leaves.get(name)?.clone().without_autodiff().into_data().iter::<f32>().collect();
                Some(NamedTensor { name: name.clone(), shape: shapes[name].clone(), values })
            });
            return Ok(found.collect());
        };
        let file = Checkpoint::open(file)?;
        let read = |name: &String| {
            let shape = file.shape(name).map(<[usize]>::to_vec).unwrap_or_default();
            Ok(NamedTensor { values: file.read(name)?, shape, name: name.clone() })
        };
        names.iter().map(read).collect()
    }

    /// The same network of other weights; of tracked ones, in the portable form.
    ///
    /// # Errors
    /// A weight is missing or of another shape.
    pub fn build(&self, weights: &Weights) -> Result<Arc<dyn Backbone>> {
        let compute = Compute { precision: self.precision, portable: false, recompute: self.recompute };
        self.config.architecture.load(self.config.classes, weights, compute)
    }

    /// The same network with these blocks in their portable form, for what the fast one can't learn inside. It is made once.
    ///
    /// # Errors
    /// The weights can no longer be read.
    pub(crate) fn unpacked(&self, blocks: &[String]) -> Result<Arc<dyn Backbone>> {
        let mut made = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, network)) = made.as_ref()
            && of == blocks
        {
            return Ok(network.clone());
        }
        let beginnings: Vec<String> = blocks.iter().map(|name| format!("{name}.")).collect();
        let network = self.build(&self.weights()?.unpacked(&beginnings))?;
        *made = Some((blocks.to_vec(), network.clone()));
        Ok(network)
    }

    /// Check that an adapter trained on `sha256` fits.
    ///
    /// # Errors
    /// The hashes differ.
    pub fn check_identity(&self, name: &str, sha256: Option<&str>) -> Result<()> {
        if self.config.name != name {
            return Err(input_error!(
                "the adapter's `backbone.name` is {name}, the backbone given is {}",
                self.config.name
            ));
        }
        match (&self.sha256, sha256) {
            (Some(have), Some(want)) if have != want => Err(input_error!(
                "the adapter's `backbone.sha256` is {want}, {} has {have}: other weights",
                self.file.as_ref().map_or_else(String::new, |f| f.display().to_string())
            )),
            _ => Ok(()),
        }
    }
}
