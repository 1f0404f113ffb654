//! Arguments that name a model, shared by the commands that use one.

use std::path::PathBuf;

use lotep::adapter::Adapter;
use lotep::backbone::{LoadOptions, Loaded, load};
use lotep::data::Transform;
use lotep::head::Mapping;
use lotep::model::Predictor;
use lotep::ops::Precision;
use lotep::params::Params;
use lotep::{Result, bail, device};

use super::names::{HEAD, Named};
use crate::ui::{Ui, Watcher};

/// Which model, and where it computes.
#[derive(clap::Args)]
pub(crate) struct ModelArgs {
    /// The frozen network: a directory with config.json and model.safetensors, a weight file, timm's name
    /// (resnet18.tv_in1k, downloaded once) or hf-hub:OWNER/NAME, either with @REVISION. With --adapter it defaults to
    /// the one the adapter was trained on.
    #[arg(long, value_name = "PATH|NAME")]
    pub(crate) backbone: Option<String>,
    /// Architecture of a bare weight file, by timm's name.
    #[arg(long, value_name = "NAME")]
    pub(crate) arch: Option<String>,
    /// An adapter directory, as `train` writes to RUN/adapter.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// Where to compute: auto, cpu, cuda, cuda:N or wgpu.
    #[arg(long, default_value = "auto")]
    pub(crate) device: String,
    /// What matrix products round to.
    #[arg(long, default_value = "auto", value_parser = ["auto", "f32", "bf16"])]
    pub(crate) precision: String,
}

/// A loaded model.
pub(crate) struct Model {
    pub(crate) loaded: Loaded,
    pub(crate) adapter: Option<Adapter>,
    /// Its classes by their names, where those score.
    pub(crate) named: Option<Named>,
}

impl ModelArgs {
    /// Load the backbone, and the adapter if there is one.
    pub(crate) fn load(&self, ui: &Ui) -> Result<Model> {
        self.load_in(precision(&self.precision), ui)
    }

    /// The same for classes by their names, where there are any: with the adapter's prompts, or with nothing learnt.
    pub(crate) fn load_for(&self, names: Option<Vec<String>>, template: &[String], ui: &Ui) -> Result<Model> {
        let Some(names) = names else { return self.load(ui) };
        let mut model = self.unnamed(precision(&self.precision), ui)?;
        model.score_by(names, template, ui)?;
        Ok(model)
    }

    /// The same in a precision of the caller's choice.
    pub(crate) fn load_in(&self, precision: Option<Precision>, ui: &Ui) -> Result<Model> {
        let mut model = self.unnamed(precision, ui)?;
        if let Some(adapter) = model.adapter.as_ref().filter(|a| a.config.head.mapping == Mapping::Text) {
            model.score_by(adapter.config.classes.clone(), &[], ui)?;
        }
        Ok(model)
    }

    /// Where names score, they have not been read yet.
    fn unnamed(&self, precision: Option<Precision>, ui: &Ui) -> Result<Model> {
        let config = self.adapter.as_deref().map(Adapter::read_config).transpose()?;
        let Some(backbone) = self.backbone.clone().or(config.as_ref().map(|c| c.backbone.source.clone()))
        else {
            bail!("which model? give --backbone PATH, --adapter DIR, or both");
        };
        let options = LoadOptions {
            backbone,
            // A bare weight file says nothing of itself; the adapter remembers what it was taken for.
            arch: self.arch.clone().or(config.as_ref().and_then(|c| c.backbone.arch.clone())),
            random_weights: false,
            image: config.as_ref().map(|c| c.input.network()),
            device: device::open(&self.device)?,
            precision,
            recompute: false,
        };
        let loaded = load(&options, &mut Watcher(ui))?;
        let adapter = self.adapter.as_deref().map(|dir| Adapter::load(dir, &loaded)).transpose()?;
        Ok(Model { loaded, adapter, named: None })
    }
}

/// `auto` leaves the choice to the loader.
pub(crate) fn precision(name: &str) -> Option<Precision> {
    match name {
        "bf16" => Some(Precision::Bf16),
        "f32" => Some(Precision::F32),
        _ => None,
    }
}

impl Model {
    /// Ready to score images: with the adapter, or with the network's own classifier.
    pub(crate) fn predictor(&self) -> Result<Predictor> {
        match (&self.adapter, &self.named) {
            (Some(a), named) => {
                let texts = named.as_ref().map(|named| &named.texts);
                Predictor::adapted(&self.loaded, &a.config.method, a.config.head, &a.params, texts)
            }
            (None, Some(n)) => {
                Predictor::adapted(&self.loaded, &n.method, HEAD, &Params::default(), Some(&n.texts))
            }
            (None, None) => Predictor::own(&self.loaded),
        }
    }

    /// How images are prepared for it.
    pub(crate) fn transform(&self) -> Transform {
        match (&self.adapter, &self.named) {
            (Some(a), _) => a.config.input.transform.clone(),
            (None, Some(_)) => self.loaded.config.preprocess.clip(),
            (None, None) => self.loaded.config.preprocess.evaluation(),
        }
    }

    /// Names of its classes, if it knows them.
    pub(crate) fn classes(&self) -> Option<&[String]> {
        let named = self.named.as_ref().map(|named| named.names.as_slice());
        named.or(self.adapter.as_ref().map(|a| a.config.classes.as_slice()))
    }
}

/// Arguments about reading images, shared likewise.
#[derive(clap::Args)]
pub(crate) struct ReadArgs {
    /// Images computed at a time.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=65536))]
    pub(crate) batch_size: u64,
    /// What to do with an image that can't be decoded.
    #[arg(long, default_value = "fail", value_parser = ["skip", "fail"])]
    pub(crate) on_corrupt: String,
    /// Threads that decode images; 0 is one a core.
    #[arg(long, default_value_t = 0)]
    pub(crate) workers: usize,
}

impl ReadArgs {
    /// A loader's configuration for one pass.
    pub(crate) fn loader(&self, transform: Transform) -> Result<lotep::data::LoaderConfig> {
        Ok(lotep::data::LoaderConfig {
            batch_size: self.batch_size as usize,
            transform,
            augment: lotep::data::Augment::None,
            workers: workers(self.workers),
            prefetch: 2,
            on_corrupt: self.on_corrupt.parse()?,
            cache_bytes: 0,
            drop_last: false,
        })
    }
}

/// One worker a core unless told otherwise.
pub(crate) fn workers(asked: usize) -> usize {
    match asked {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n => n,
    }
}
