//! The adapter on disk: prompts, head, labels, preprocessing and the backbone they belong to.
//!
//! A directory of two files, with PEFT's names: `adapter_config.json` says everything, `adapter_model.safetensors`
//! holds the tensors. The configuration carries the tensors' hash, so that a pair from two different moments is
//! noticed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::backbone::Loaded;
use crate::data::Transform;
use crate::head::Head;
use crate::method::{Method, MethodConfig, Site, full};
use crate::params::Params;
use crate::safetensors::{NamedTensor, TensorFile, serialize};
use crate::train::setup::{init_params, transform};
use crate::{Error, Result, bail, hash, input_error, write_atomic};

/// Version of the format; a reader refuses a newer one.
const FORMAT: u32 = 1;
const CONFIG: &str = "adapter_config.json";
const MODEL: &str = "adapter_model.safetensors";

/// Which backbone an adapter was trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackboneIdentity {
    /// timm's name.
    pub name: String,
    /// The architecture that a bare weight file was taken for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// SHA-256 of its weight file; absent for random weights.
    pub sha256: Option<String>,
    /// Where it was: the path or name that the user gave; of a repository of the hub, with the commit.
    pub source: String,
}

/// How pixels reach the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputSpec {
    /// Geometry.
    pub transform: Transform,
    /// Height and width of the network's own input, where the method puts smaller images into it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canvas: Option<[usize; 2]>,
    /// Subtracted from pixels in [0, 1], after the image prompt.
    pub mean: [f32; 3],
    /// Then divided by.
    pub std: [f32; 3],
}

impl InputSpec {
    /// Height and width of the network's own input.
    pub fn network(&self) -> [usize; 2] {
        self.canvas.unwrap_or(self.transform.size().into())
    }
}

/// Everything about an adapter but its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// Version of this format.
    pub format: u32,
    /// Version of lotep that wrote it.
    pub lotep_version: String,
    /// The method and its settings, defaults resolved.
    pub method: MethodConfig,
    /// How class scores come about.
    #[serde(default)]
    pub head: Head,
    /// The backbone.
    pub backbone: BackboneIdentity,
    /// The class of each logit.
    pub classes: Vec<String>,
    /// Preprocessing.
    pub input: InputSpec,
    /// SHA-256 of the tensor file.
    pub tensors_sha256: String,
    /// Accuracy and protocol of the run that made it.
    #[serde(default)]
    pub metrics: serde_json::Value,
}

/// An adapter in memory.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Its description.
    pub config: AdapterConfig,
    /// Its tensors.
    pub params: Params,
    /// Weights of the network among them that are still what they were, by name: the file goes without.
    unchanged: BTreeSet<String>,
}

impl Adapter {
    /// Describe learnt `params` for `loaded`.
    ///
    /// # Errors
    /// The backbone's own weights can no longer be read.
    pub fn new(
        loaded: &Loaded,
        method: MethodConfig,
        head: Head,
        classes: Vec<String>,
        params: Params,
    ) -> Result<Self> {
        let p = &loaded.config.preprocess;
        let input = method.input(p.image);
        let input = InputSpec {
            transform: transform(p, &method, head),
            canvas: (input != p.image).then_some(p.image),
            mean: p.mean,
            std: p.std,
        };
        let config = AdapterConfig {
            format: FORMAT,
            lotep_version: env!("CARGO_PKG_VERSION").into(),
            method,
            head,
            backbone: BackboneIdentity {
                name: loaded.config.name.clone(),
                arch: loaded.arch.clone(),
                sha256: loaded.sha256.clone(),
                source: loaded.source.clone(),
            },
            classes,
            input,
            tensors_sha256: String::new(),
            metrics: serde_json::Value::Null,
        };
        Ok(Self { unchanged: unchanged(loaded, &config.method, &params)?, config, params })
    }

    /// Write both files.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn save(&mut self, dir: &Path) -> Result<()> {
        let mut tensors = self.params.to_named();
        tensors.retain(|t| !self.unchanged.contains(&t.name));
        let tensors = serialize(&tensors, Some(("format", "pt".into())))?;
        self.config.tensors_sha256 = hash::hex(&Sha256::digest(&tensors));
        write_atomic(&dir.join(MODEL), &tensors)?;
        let json = serde_json::to_vec_pretty(&self.config)
            .map_err(|e| input_error!("cannot describe the adapter: {e}"))?;
        write_atomic(&dir.join(CONFIG), &json)
    }

    /// Read an adapter's description without its tensors.
    ///
    /// # Errors
    /// There is none, or it is damaged or from a newer version.
    pub fn read_config(dir: &Path) -> Result<AdapterConfig> {
        let path = dir.join(CONFIG);
        if !path.exists() {
            bail!(
                "{} has no {CONFIG}: an adapter directory is expected, as `lotep train` writes to RUN/adapter",
                dir.display()
            );
        }
        let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let version: Option<u64> =
            serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|v| v["format"].as_u64());
        if let Some(version) = version.filter(|v| *v > u64::from(FORMAT)) {
            bail!(
                "{}: `format` is {version}, this lotep reads up to {FORMAT}: upgrade lotep",
                path.display()
            );
        }
        serde_json::from_str(&text)
            .map_err(|e| input_error!("{} is not a lotep adapter description: {e}", path.display()))
    }

    /// Read an adapter for `loaded`, checking that they belong together.
    ///
    /// # Errors
    /// Names the field that does not fit, or the damaged file.
    pub fn load(dir: &Path, loaded: &Loaded) -> Result<Self> {
        let config = Self::read_config(dir)?;
        let wrong = |e: Error| input_error!("{}: {e}", dir.join(CONFIG).display());
        loaded.check_identity(&config.backbone.name, config.backbone.sha256.as_deref()).map_err(wrong)?;
        let own = &loaded.config.preprocess;
        let [height, width] = config.input.network();
        if [height, width] != own.image {
            bail!(
                "{}: `input.transform` is {height}x{width}, the backbone takes {}x{} (see --image-size)",
                dir.join(CONFIG).display(),
                own.image[0],
                own.image[1]
            );
        }
        if (config.input.mean, config.input.std) != (own.mean, own.std) {
            bail!(
                "{}: `input.mean` and `input.std` are {:?} and {:?}, the backbone's config.json says {:?} and {:?}",
                dir.join(CONFIG).display(),
                config.input.mean,
                config.input.std,
                own.mean,
                own.std
            );
        }
        if Into::<[usize; 2]>::into(config.input.transform.size()) != config.method.input(own.image) {
            let [height, width] = config.method.input(own.image);
            bail!(
                "{}: `input.transform` does not give the {height}x{width} pixels that {} takes",
                dir.join(CONFIG).display(),
                config.method.name()
            );
        }
        if config.classes.is_empty() {
            bail!("{}: `classes` is empty", dir.join(CONFIG).display());
        }
        let path = dir.join(MODEL);
        let file = TensorFile::open(&path)?;
        if hash::files(Sha256::new(), &[&path])? != config.tensors_sha256 {
            bail!("{} is not the file that {CONFIG} describes (`tensors_sha256` differs)", path.display());
        }
        // Laid out as for training; every value is then replaced.
        let mut params =
            init_params(loaded, &config.method, config.head, config.classes.len(), 0).map_err(wrong)?;
        let what = path.display().to_string();
        let stored = file.shapes();
        let unchanged: BTreeMap<String, NamedTensor> = params
            .iter()
            .filter(|p| p.name.starts_with(full::PREFIX) && !stored.contains_key(&p.name))
            .map(|p| (p.name.clone(), p.to_named()))
            .collect();
        params.load(&what, |name| match unchanged.get(name) {
            Some(own) => Ok((own.values.clone(), own.shape.clone())),
            None => file.read(name),
        })?;
        config.head.check(loaded, &params).map_err(|e| input_error!("{what}: {e}"))?;
        let known: Vec<_> = params.iter().map(|p| p.name.as_str()).collect();
        if let Some(extra) = file.shapes().keys().find(|name| !known.contains(&name.as_str())) {
            bail!("{what}: tensor `{extra}` does not belong to method {}", config.method.name());
        }
        Ok(Self { unchanged: unchanged.into_keys().collect(), config, params })
    }
}

/// The names of the network's weights among `params` that are still what they were.
fn unchanged(loaded: &Loaded, method: &MethodConfig, params: &Params) -> Result<BTreeSet<String>> {
    if !params.iter().any(|p| p.name.starts_with(full::PREFIX)) {
        return Ok(BTreeSet::new());
    }
    let initial = method.init(&Site::of(loaded), 0)?.to_named();
    let initial: BTreeMap<String, Vec<f32>> = initial.into_iter().map(|t| (t.name, t.values)).collect();
    let own = params.to_named().into_iter().filter(|t| t.name.starts_with(full::PREFIX));
    Ok(own.filter(|t| initial.get(&t.name) == Some(&t.values)).map(|t| t.name).collect())
}
