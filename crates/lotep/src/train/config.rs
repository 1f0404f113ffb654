//! Everything that decides a training run, as one serialisable value.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::optim::OptimizerKind;
use super::papers::{Comparison, paper};
use super::schedule::Schedule;
use crate::backbone::{Architecture, Loaded};
use crate::data::{Augment, ClassSplit, Known, OnCorrupt};
use crate::head::{Head, Mapping};
use crate::method::{MethodConfig, Site};
use crate::ops::Precision;
use crate::{Result, bail};

/// Which epoch's weights are kept. The test split is never looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Select {
    /// The last.
    #[default]
    Last,
    /// The one that did best on held-out training images (or the data's own validation split); the earlier of two
    /// equals.
    BestVal,
}

/// A training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Hub directory, weight file or (with `random_weights`) architecture.
    pub backbone: String,
    /// Architecture of a bare weight file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// Made-up weights, for trying things out.
    #[serde(default)]
    pub random_weights: bool,
    /// Side of the square input, where the family allows another than the checkpoint's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// Directory of the images.
    pub data: PathBuf,
    /// The original download of a known data set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<Known>,
    /// Train on the data set's validation images too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub join_val: bool,
    /// Train on a stratified sample of about this many images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subset: Option<usize>,
    /// Train on so many images of each class, drawn by the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shots: Option<usize>,
    /// Which of the classes are learnt and tested.
    #[serde(default)]
    pub class_split: ClassSplit,
    /// Random changes of training images; where it is not given, none, and for methods that score classes by their names
    /// those of their papers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub augment: Option<Augment>,
    /// Share of the images held out for testing where the data has no test split of its own.
    pub test_fraction: f64,
    /// Share of the training images held out for validation where the data has no validation split of its own.
    pub val_fraction: f64,
    /// Which epoch is kept.
    pub select: Select,
    /// Also measure the test split after every epoch, for comparison with papers that report its best epoch. It is
    /// never used to choose.
    pub test_every_epoch: bool,
    /// Passes over the training images.
    pub epochs: usize,
    /// Images a step.
    pub batch_size: usize,
    /// Parts a batch is computed in, to save memory; the step is the same.
    pub accumulate: usize,
    /// Update rule; `None` takes what suits the method and the network's family, as for both learning rates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<OptimizerKind>,
    /// Learning rate of the classifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Learning rate of the prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_lr: Option<f64>,
    /// Momentum of SGD.
    pub momentum: f64,
    /// Weight decay of the classifier.
    pub weight_decay: f64,
    /// Weight decay of the prompts.
    pub prompt_weight_decay: f64,
    /// How learning rates fall, a step at a time.
    pub schedule: Schedule,
    /// Epochs (or parts) over which they rise from zero first.
    pub warmup_epochs: f64,
    /// What both learning rates are instead while they would rise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup_lr: Option<f64>,
    /// Seed of everything random: initial values, split, order.
    pub seed: u64,
    /// What matrix products round to; where it is not given (or `auto`), what is faster on the device.
    #[serde(default, deserialize_with = "given_precision", skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// Keep only each block's input for the backward pass, and compute the block again there.
    pub recompute: bool,
    /// Where to compute.
    pub device: String,
    /// What to do with images that can't be decoded.
    pub on_corrupt: OnCorrupt,
    /// Threads that decode images; 0 is one a core.
    pub workers: usize,
    /// Megabytes of decoded, resized images kept for later epochs.
    pub cache_mb: u64,
    /// Steps between checkpoints inside an epoch; one is written after every epoch in any case.
    pub checkpoint_steps: usize,
    /// How class scores come about; where it is not given, as in the method's paper.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapping: Option<Mapping>,
    /// Source classes whose scores a class averages, for mappings that match classes.
    pub sources_per_class: usize,
    /// Epochs between two matches of an iterative mapping.
    pub mapping_every: usize,
    /// The method and its settings. Last, because TOML wants tables after values.
    pub method: MethodConfig,
}

/// `auto` leaves the choice open.
fn given_precision<'de, D: serde::Deserializer<'de>>(
    source: D,
) -> std::result::Result<Option<Precision>, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Given {
        Auto,
        F32,
        Bf16,
    }
    Ok(match Given::deserialize(source)? {
        Given::Auto => None,
        Given::F32 => Some(Precision::F32),
        Given::Bf16 => Some(Precision::Bf16),
    })
}

impl TrainConfig {
    /// The recommended settings for `method` on `backbone` and `data`.
    pub fn new(backbone: impl Into<String>, data: impl Into<PathBuf>, method: MethodConfig) -> Self {
        let usual = usual(&method);
        Self {
            backbone: backbone.into(),
            arch: None,
            random_weights: false,
            image_size: None,
            data: data.into(),
            dataset: None,
            join_val: false,
            subset: None,
            shots: None,
            class_split: ClassSplit::All,
            augment: None,
            test_fraction: 0.2,
            val_fraction: 0.1,
            select: Select::Last,
            test_every_epoch: false,
            epochs: usual.epochs,
            batch_size: usual.batch_size,
            accumulate: 1,
            optimizer: None,
            lr: None,
            prompt_lr: None,
            momentum: 0.9,
            weight_decay: 1e-4,
            prompt_weight_decay: usual.prompt_weight_decay,
            schedule: Schedule::Cosine,
            warmup_epochs: usual.warmup_epochs,
            // What CLIP's methods warm up at.
            warmup_lr: (usual.warmup_epochs > 0.0).then_some(1e-5),
            seed: 0,
            precision: None,
            recompute: false,
            device: "auto".into(),
            on_corrupt: OnCorrupt::Fail,
            workers: 0,
            cache_mb: 1024,
            checkpoint_steps: 200,
            mapping: None,
            sources_per_class: 1,
            mapping_every: 1,
            method,
        }
    }

    /// How class scores come about.
    pub(crate) fn head(&self) -> Head {
        let mapping = self.mapping.unwrap_or(self.method.default_mapping());
        Head { mapping, sources: self.sources_per_class }
    }

    /// Write what depends on method and network into the settings, so that a record says what was run.
    pub(crate) fn resolve(&mut self, loaded: &Loaded) {
        let architecture = &loaded.config.architecture;
        self.precision = Some(loaded.precision);
        self.method.resolve(&Site::of(loaded));
        self.mapping = Some(self.head().mapping);
        let optimizer = *self.optimizer.get_or_insert(default_optimizer(&self.method, architecture));
        let [lr, prompt_lr] = default_rates(&self.method, architecture, optimizer);
        self.lr.get_or_insert(lr);
        let named = self.head().mapping == Mapping::Text;
        self.augment.get_or_insert(if named { Augment::CropFlip } else { Augment::None });
        self.prompt_lr.get_or_insert(prompt_lr);
    }

    /// Check what can be checked before anything is loaded.
    ///
    /// # Errors
    /// Names the option that is out of range and its range.
    pub fn validate(&self) -> Result<()> {
        let positive = |name: &str, value: usize| match value {
            0 => Err(crate::input_error!("{name} is 0; 1 at least")),
            _ => Ok(()),
        };
        positive("epochs", self.epochs)?;
        positive("batch-size", self.batch_size)?;
        positive("accumulate", self.accumulate)?;
        positive("checkpoint-steps", self.checkpoint_steps)?;
        positive("sources-per-class", self.sources_per_class)?;
        positive("mapping-every", self.mapping_every)?;
        positive("subset", self.subset.unwrap_or(1))?;
        self.check_mapping()?;
        positive("shots", self.shots.unwrap_or(1))?;
        if !self.batch_size.is_multiple_of(self.accumulate) {
            bail!("accumulate {} does not divide batch-size {}", self.accumulate, self.batch_size);
        }
        for (name, value, limit) in [
            ("lr", self.lr.unwrap_or(0.0), 1e6),
            ("prompt-lr", self.prompt_lr.unwrap_or(0.0), 1e6),
            ("warmup-lr", self.warmup_lr.unwrap_or(0.0), 1e6),
            ("weight-decay", self.weight_decay, 1e3),
            ("prompt-weight-decay", self.prompt_weight_decay, 1e3),
            ("warmup-epochs", self.warmup_epochs, self.epochs as f64),
        ] {
            if !(0.0..=limit).contains(&value) {
                bail!("{name} is {value}; 0 to {limit} is expected");
            }
        }
        if !(0.0..1.0).contains(&self.momentum) {
            bail!("momentum is {}; 0 to below 1 is expected", self.momentum);
        }
        for (name, value) in [("val-fraction", self.val_fraction), ("test-fraction", self.test_fraction)] {
            if !(0.0..=0.9).contains(&value) {
                bail!("{name} is {value}; 0 to 0.9 is expected");
            }
        }
        Ok(())
    }
}

impl TrainConfig {
    /// Settings that no mapping but some would read are refused, not passed over.
    fn check_mapping(&self) -> Result<()> {
        let mapping = self.head().mapping;
        let name = serde_json::to_value(mapping).unwrap_or_default();
        let name = name.as_str().unwrap_or_default();
        if mapping == Mapping::Text && matches!(self.method, MethodConfig::Full(_)) {
            bail!(
                "mapping text means nothing with method full: names score what the pretrained image tower sees; \
                 clip-lora learns weights of both towers"
            );
        }
        if self.sources_per_class != 1 && matches!(mapping, Mapping::Linear | Mapping::Full) {
            bail!(
                "sources-per-class {} means nothing with mapping {name}: only first, random, frequency and iterative \
                 match own classes with yours",
                self.sources_per_class
            );
        }
        if self.mapping_every != 1 && mapping != Mapping::Iterative {
            bail!(
                "mapping-every {} means nothing with mapping {name}: only iterative is found again",
                self.mapping_every
            );
        }
        Ok(())
    }
}

/// What depends on the method alone.
struct Usual {
    epochs: usize,
    batch_size: usize,
    warmup_epochs: f64,
    prompt_weight_decay: f64,
}

/// The lengths and batches of CLIP's methods' papers, or of LoR-VP's.
fn usual(method: &MethodConfig) -> Usual {
    let (epochs, batch_size, warmup_epochs, prompt_weight_decay) = match method {
        // At the border's rate decay would be most of what it learns; the frames' papers have none either.
        MethodConfig::Border(_)
        | MethodConfig::IlmVp(_)
        | MethodConfig::AutoVp(_)
        | MethodConfig::VptPad(_)
        | MethodConfig::VptBelow(_) => (20, 64, 0.0, 0.0),
        method => match paper(method, Comparison::None, 0, None) {
            Some(p) => (p.alone(), p.batch_size, p.warmup_epochs, p.weight_decay),
            None => (20, 64, 0.0, 1e-4),
        },
    };
    Usual { epochs, batch_size, warmup_epochs, prompt_weight_decay }
}

/// The update rule that suits a method on a family, where none is asked for: on ResNets, prompts learn little by SGD
/// (`records/defaults` has the search on held-out images).
fn default_optimizer(method: &MethodConfig, architecture: &Architecture) -> OptimizerKind {
    match (method, architecture) {
        (MethodConfig::LinearProbe(_) | MethodConfig::Border(_), _) => OptimizerKind::Sgd,
        // Adam in the papers of the image's frames.
        (
            MethodConfig::Full(_)
            | MethodConfig::IlmVp(_)
            | MethodConfig::AutoVp(_)
            | MethodConfig::VptPad(_)
            | MethodConfig::VptBelow(_)
            | MethodConfig::ClipLora(_),
            _,
        )
        | (_, Architecture::ResNet(_)) => OptimizerKind::AdamW,
        // Searched on a ViT; the other families are unsearched and take what is less likely to hurt.
        (_, _) => OptimizerKind::Sgd,
    }
}

/// The learning rates that suit a method and an update rule on a family: the classifier's and the prompts'.
fn default_rates(method: &MethodConfig, architecture: &Architecture, optimizer: OptimizerKind) -> [f64; 2] {
    if let Some(paper) = paper(method, Comparison::None, 0, None) {
        return [paper.rate; 2];
    }
    let lotep = matches!(method, MethodConfig::LotepCp(_) | MethodConfig::LotepTk(_));
    match (method, optimizer, architecture) {
        // Both from held-out images (`records/README.md`, figures of LoTeP and rates of the methods on a ViT).
        (MethodConfig::Full(_), _, Architecture::ResNet(_)) => [0.002, 0.001],
        (MethodConfig::Full(_), _, _) => [0.002, 1e-4],
        // The paper's, for steps through the scores of source classes.
        (MethodConfig::Border(_), _, _) => [0.02, 40.0],
        (MethodConfig::IlmVp(_), _, _) => [0.02, 0.1],
        (MethodConfig::AutoVp(_), _, _) => [0.01, 0.001],
        // A value of its own for every place: Adam moves each as far as a factor of a product.
        (MethodConfig::NaiveDeep(_) | MethodConfig::Grouped(_), OptimizerKind::AdamW, _) => [0.002, 0.0005],
        (_, OptimizerKind::AdamW, _) => [0.002, if lotep { 0.02 } else { 0.005 }],
        (_, OptimizerKind::Sgd, Architecture::ResNet(_)) => [0.02, if lotep { 0.1 } else { 0.02 }],
        // Tokens begin small, where a norm makes their gradients large.
        (MethodConfig::VptShallow(_) | MethodConfig::VptDeep(_), _, _) => [0.005, 0.002],
        (MethodConfig::E2vpt(_), _, _) => [0.005, 0.0005],
        (_, OptimizerKind::Sgd, _) => [0.005, 0.02],
    }
}
