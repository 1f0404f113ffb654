//! From a configuration to everything a run needs: backbone, images, parameters.

use std::sync::Arc;

use burn::tensor::Device;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::config::{Select, TrainConfig};
use super::observe::{Downloads, Event, Observer};
use crate::backbone::{LoadOptions, Loaded, Preprocess, load};
use crate::data::{
    Augment, ClassSplit, Dataset, Loader, LoaderConfig, Splits, Transform, few_shot, nameless, open,
    stratified_split, subset,
};
use crate::head::{ClassTexts, Head, Mapping, SharedTexts};
use crate::method::{Method, MethodConfig, Site};
use crate::ops::Precision;
use crate::params::{Group, Params};
use crate::{Result, bail, device};

/// Distinguishes the random streams drawn from one seed.
const HEAD_STREAM: u64 = u64::MAX;

/// The images of a run.
pub(super) struct Images {
    pub(super) classes: Vec<String>,
    pub(super) transform: Transform,
    pub(super) train: Loader,
    pub(super) val: Option<Loader>,
    pub(super) test: Option<Loader>,
    /// How each split came to be, for the record.
    pub(super) protocol: String,
}

/// Everything a run is made of; its configuration has all defaults resolved.
pub(super) struct Setup {
    pub(super) config: TrainConfig,
    pub(super) device: Device,
    pub(super) loaded: Loaded,
    pub(super) images: Images,
    pub(super) params: Params,
    /// Texts about the classes, where their names score them.
    pub(super) texts: Option<SharedTexts>,
}

impl TrainConfig {
    /// The images of this run, of these of the classes.
    ///
    /// # Errors
    /// They aren't there, or have no validation images to join.
    pub(crate) fn splits(&self, classes: ClassSplit) -> Result<Splits> {
        let mut splits = open(&self.data, self.dataset)?;
        splits.hold_out_test(self.test_fraction);
        let splits = splits.with_classes(classes)?;
        if self.join_val && splits.val.is_none() {
            bail!("{} has no validation images to join to the training images", self.data.display());
        }
        Ok(if self.join_val { splits.join_val() } else { splits })
    }

    /// Refuse to choose an epoch by validation images that are neither there nor to be held out.
    ///
    /// # Errors
    /// So it is, or the data can't be opened.
    pub(crate) fn check_validation(&self) -> Result<()> {
        let none = self.select == Select::BestVal && self.val_fraction == 0.0;
        if none && self.splits(self.class_split)?.val.is_none() {
            bail!(
                "select best-val needs validation images: val-fraction is 0, and {} has none of its own",
                self.data.display()
            );
        }
        Ok(())
    }

    /// How the backbone is loaded for this run.
    pub fn load_options(&self, device: &Device) -> LoadOptions {
        // Of all weights the gradients are learnt from, not those of a few prompts: unless told otherwise, whole. (In the
        // portable form, which only ResNets and ViTs on the CPU do without, rounding would cost time as well.)
        let full = matches!(self.method, MethodConfig::Full(_)).then_some(Precision::F32);
        LoadOptions {
            backbone: self.backbone.clone(),
            arch: self.arch.clone(),
            random_weights: self.random_weights,
            image: self.image_size.map(|s| [s; 2]),
            device: device.clone(),
            precision: self.precision.or(full),
            recompute: self.recompute,
        }
    }
}

/// Lay out trainable parameters: the method's, then the classifier's.
pub(crate) fn init_params(
    loaded: &Loaded,
    method: &MethodConfig,
    head: Head,
    classes: usize,
    seed: u64,
) -> Result<Params> {
    let mut params = method.init(&Site::of(loaded), seed)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(HEAD_STREAM);
    params.extend(head.init(loaded, classes, &mut rng)?);
    // Names score without anything learnt.
    if params.total() == 0 && head.mapping != Mapping::Text {
        bail!(
            "method {} and mapping {} learn nothing: another --method, or --mapping linear or full",
            method.name(),
            serde_json::to_string(&head.mapping).unwrap_or_default()
        );
    }
    Ok(params)
}

/// How images are prepared for what is learnt: as in the method's paper. CLIP's methods keep the middle of the image, as
/// CLIP itself does, the others squash it.
pub(crate) fn transform(preprocess: &Preprocess, method: &MethodConfig, head: Head) -> Transform {
    let input = method.input(preprocess.image);
    match head.mapping {
        Mapping::Text if input == preprocess.image => preprocess.clip(),
        _ => Preprocess::adaptation(input),
    }
}

/// What a method says of classes, ready to score images, where their names do.
///
/// # Errors
/// The network has no text tower, or a name makes no text.
pub fn class_texts(
    loaded: &Loaded,
    method: &MethodConfig,
    head: Head,
    names: &[String],
) -> Result<Option<SharedTexts>> {
    let plan = method.text_plan(head)?;
    plan.map(|plan| ClassTexts::new(loaded, plan, names).map(Arc::new)).transpose()
}

impl Setup {
    pub(super) fn new(config: &TrainConfig, observer: &mut dyn Observer) -> Result<Self> {
        config.validate()?;
        config.check_validation()?;
        let mut config = config.clone();
        let device = device::open(&config.device)?;
        let loaded = load(&config.load_options(&device), &mut Downloads(observer))?;
        config.resolve(&loaded);
        observer.event(Event::Plan(&format!("backbone  {}", loaded.describe())));
        let images = Images::new(&config, &loaded)?;
        observer.event(Event::Plan(&format!("data      {}", images.protocol)));
        let params = init_params(&loaded, &config.method, config.head(), images.classes.len(), config.seed)?;
        if config.head().mapping == Mapping::Text
            && let Some(line) = nameless(&config.data, config.dataset, &images.classes)
        {
            observer.event(Event::Warning(&line));
        }
        let texts = class_texts(&loaded, &config.method, config.head(), &images.classes)?;
        for line in texts.iter().flat_map(|texts| texts.warnings()) {
            observer.event(Event::Warning(line));
        }
        observer.event(Event::Plan(&format!(
            "method    {}: {} parameters in prompts, {} in the head",
            config.method.name(),
            params.count(Group::Prompt),
            params.count(Group::Head)
        )));
        Ok(Self { config, device, loaded, images, params, texts })
    }
}

impl Images {
    fn new(config: &TrainConfig, loaded: &Loaded) -> Result<Self> {
        let splits = config.splits(config.class_split)?;
        let Some(mut train) = splits.train else {
            bail!("{} has no training images", config.data.display());
        };
        let classes = train.classes.clone();
        if classes.len() < 2 {
            bail!(
                "{} has one class only (`{}`): a classifier needs two at least",
                config.data.display(),
                classes.first().map_or("", String::as_str)
            );
        }
        let mut protocol = vec![splits.layout.clone()];
        if let Some(count) = config.subset {
            train = subset(&train, count, config.seed);
            protocol.push(format!("stratified subset of {} training images", train.samples.len()));
        }
        if let Some(shots) = config.shots {
            train = few_shot(&train, shots, config.seed);
            protocol.push(format!("{shots} training images a class"));
        }
        let mut val = splits.val;
        if config.select == Select::BestVal && val.is_none() {
            let (kept, held_out) = stratified_split(&train, config.val_fraction, config.seed);
            if held_out.samples.is_empty() {
                bail!(
                    "val-fraction {} of {} images holds out none",
                    config.val_fraction,
                    train.samples.len()
                );
            }
            protocol
                .push(format!("{} of the training images held out for validation", held_out.samples.len()));
            (train, val) = (kept, Some(held_out));
        }
        let count = |d: &Option<Dataset>| d.as_ref().map_or(0, |d| d.samples.len());
        protocol.push(format!(
            "{} classes; {} train, {} val, {} test images",
            classes.len(),
            train.samples.len(),
            count(&val),
            count(&splits.test)
        ));
        let transform = transform(&loaded.config.preprocess, &config.method, config.head());
        // A run beside others has its share of them.
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let cores = cores.min(rayon::current_num_threads());
        let loader = |data: Dataset, batch_size: usize, cache_bytes: u64, augment: Augment| {
            let loader_config = LoaderConfig {
                batch_size,
                transform: transform.clone(),
                augment,
                workers: if config.workers == 0 { cores } else { config.workers },
                prefetch: 2,
                on_corrupt: config.on_corrupt,
                cache_bytes,
                drop_last: false,
            };
            Loader::new(Arc::new(data), loader_config)
        };
        // Evaluation runs forward only, so a few dozen images at a time cost little memory whatever the batch.
        let evaluation = config.batch_size.clamp(16, 64);
        let cache = config.cache_mb << 20;
        // The validation and test sets are read once an epoch at most; training images come first.
        Ok(Self {
            train: loader(
                train,
                config.batch_size / config.accumulate,
                cache,
                config.augment.unwrap_or_default(),
            ),
            val: val.map(|d| loader(d, evaluation, cache / 4, Augment::None)),
            test: splits.test.map(|d| loader(d, evaluation, cache / 4, Augment::None)),
            classes,
            transform: transform.clone(),
            protocol: protocol.join("; "),
        })
    }
}
