//! `lotep train`.

use std::path::{Path, PathBuf};

use lotep::method::MethodConfig;
use lotep::train::{Outcome, RunDir, TrainConfig, train};
use lotep::{Error, Result, bail, input_error};
use toml::{Table, Value};

use super::datasets::known_names;
use crate::ui::{Ui, Watcher};

/// The largest integer that config.toml can hold.
pub(crate) const MAX_SEED: u64 = i64::MAX as u64;

/// Learn an adapter: prompts and a classifier for your images, the network stays as it is.
///
/// Settings come from the defaults, then from --config, then from the options here. RUN receives config.toml,
/// metrics.jsonl, result.json, TensorBoard events, checkpoints/ and adapter/.
#[derive(clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "\
Examples:
  lotep train --backbone models/resnet18 --data photos --method lotep-tk --output runs/photos
  lotep train --config runs/photos/config.toml --method linear-probe --output runs/probe
  lotep train --config runs/photos/config.toml --output runs/photos --resume"
)]
pub(crate) struct Args {
    /// A TOML file of settings, such as a run's config.toml; options given here win over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the run.
    #[arg(long, value_name = "RUN")]
    output: PathBuf,
    /// Go on where the run in --output stopped; a run that has not begun is begun.
    #[arg(long)]
    resume: bool,

    /// Frozen network: a directory with config.json and model.safetensors, a weight file with --arch, timm's name
    /// (resnet18.tv_in1k, downloaded once) or hf-hub:OWNER/NAME, either with @REVISION.
    #[arg(long, value_name = "PATH|NAME", help_heading = "Model")]
    backbone: Option<String>,
    /// Architecture of a bare weight file, by timm's name.
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    arch: Option<String>,
    /// Make up the network's weights (for trying out speed and memory).
    #[arg(long, help_heading = "Model")]
    random_weights: bool,
    /// Side of the input, if not the network's own; tables of positions are resampled.
    #[arg(long, value_name = "PIXELS", help_heading = "Model")]
    image_size: Option<usize>,
    /// Where to compute: auto, cpu, cuda, cuda:N or wgpu.
    #[arg(long, help_heading = "Model")]
    device: Option<String>,
    /// What matrix products round to; auto is bf16 where the processor multiplies it [default: auto]
    #[arg(long, value_parser = ["auto", "f32", "bf16"], help_heading = "Model")]
    precision: Option<String>,
    /// Use less memory for more time: keep only each block's input for the backward pass.
    #[arg(long, help_heading = "Model")]
    recompute: bool,

    /// Method [default: lotep-tk]
    #[arg(long, value_parser = MethodConfig::NAMES, help_heading = "Method")]
    method: Option<String>,
    /// Rank of the prompts: of LoR-VP's and deep LoR-VP's (4), of LoTeP's first blocks (6), of grouped ones (full maps); of
    /// LoRA's additions (8), CLIP-LoRA's (2); of MMLoP's prompts (1; 0 learns them whole).
    #[arg(long, help_heading = "Method")]
    rank: Option<usize>,
    /// CLIP's methods: prompted blocks of both towers [default: 9]
    #[arg(long, value_name = "BLOCKS", help_heading = "Method")]
    depth: Option<usize>,
    /// CLIP's methods: the words that learnt ones start as; "" draws them [default: a photo of a; CoOp draws]
    #[arg(long, value_name = "TEXT", help_heading = "Method")]
    context: Option<String>,
    /// Zero-shot: what is said of a class, {} being its name; several are averaged [default: a photo of a {}.]
    #[arg(long, value_name = "TEXT", help_heading = "Method")]
    template: Vec<String>,
    /// MMLoP: where both towers share the factor over positions [default: layer]
    #[arg(long, value_parser = ["none", "layer", "global"], help_heading = "Method")]
    shared_up: Option<String>,
    /// MMLoP, PromptSRC: weight of the distance of text features from the frozen tower's [default: 25]
    #[arg(long, value_name = "WEIGHT", help_heading = "Method")]
    text_consistency: Option<f64>,
    /// MMLoP, PromptSRC: the same of image features [default: 10]
    #[arg(long, value_name = "WEIGHT", help_heading = "Method")]
    image_consistency: Option<f64>,
    /// MMLoP, PromptSRC: weight of the divergence from the frozen towers' class probabilities [default: 1]
    #[arg(long, value_name = "WEIGHT", help_heading = "Method")]
    logit_consistency: Option<f64>,
    /// MMLoP: whether what all classes' text features moved by together is taken back [default: on]
    #[arg(long, value_parser = ["on", "off"], help_heading = "Method")]
    drift_correction: Option<String>,
    /// PromptSRC: the epoch that counts most in the average over epochs [default: 15]
    #[arg(long, value_name = "EPOCH", help_heading = "Method")]
    aggregate_mean: Option<f64>,
    /// PromptSRC: how many epochs beside it count; 0 keeps the last epoch [default: 1]
    #[arg(long, value_name = "EPOCHS", help_heading = "Method")]
    aggregate_std: Option<f64>,
    /// LoTeP and its deep baselines: share of the blocks that are prompted, from the first [default: 0.8 for ResNets, 0.4
    /// for ViTs, 0.2 for others]
    #[arg(long, help_heading = "Method")]
    depth_ratio: Option<f64>,
    /// LoTeP: how the rank falls with depth [default: cosine]
    #[arg(long, value_parser = ["cosine", "linear", "constant"], help_heading = "Method")]
    rank_schedule: Option<String>,
    /// LoTeP: what the schedule divides the block's index by, d being the prompted blocks [default: d-1]
    #[arg(long, value_parser = ["d-1", "d"], help_heading = "Method")]
    rank_denominator: Option<String>,
    /// LoTeP and its deep baselines: whether the image is prompted too [default: on]
    #[arg(long, value_parser = ["on", "off"], help_heading = "Method")]
    input_prompt: Option<String>,
    /// LoTeP on ViTs: prompts over the patch grid, or over the whole sequence with the class token [default: grid]
    #[arg(long, value_parser = ["grid", "sequence"], help_heading = "Method")]
    vit_geometry: Option<String>,
    /// LoTeP: expected norm of a spatial factor at the start [default: 1]
    #[arg(long, value_name = "NORM", help_heading = "Method")]
    spatial_scale: Option<f64>,
    /// LoTeP-TK: standard deviation of the core at the start [default: 1/rank]
    #[arg(long, value_name = "STD", help_heading = "Method")]
    core_std: Option<f64>,
    /// LoR-VP, deep and grouped as well: standard deviation of the right factor at the start [default: 0.01]
    #[arg(long, value_name = "STD", help_heading = "Method")]
    spatial_std: Option<f64>,
    /// Grouped prompts: how many groups of channels share a map [default: 8]
    #[arg(long, help_heading = "Method")]
    groups: Option<usize>,
    /// VPT, E2VPT: prompt tokens of a block (10); CLIP's methods: learnt words, and tokens beside them (4; CoOp 16, MaPLe 2).
    #[arg(long, help_heading = "Method")]
    tokens: Option<usize>,
    /// VPT: share of the tokens that enter through a Fourier transform, as VFPT's do [default: 0]
    #[arg(long, value_name = "SHARE", help_heading = "Method")]
    fourier: Option<f64>,

    /// VPT, E2VPT: share of the tokens' values that is dropped while training; LoRA, CLIP-LoRA: of what their additions see
    /// [default: 0; CLIP-LoRA 0.25]
    #[arg(long, value_name = "SHARE", help_heading = "Method")]
    dropout: Option<f64>,
    /// E2VPT: keys and values of the method's own in each attention [default: 5]
    #[arg(long, value_name = "N", help_heading = "Method")]
    key_values: Option<usize>,
    /// E2VPT: whether the values are the keys [default: on]
    #[arg(long, value_parser = ["on", "off"], help_heading = "Method")]
    share_key_value: Option<String>,
    /// E2VPT: whether all blocks have the same keys and values [default: off]
    #[arg(long, value_parser = ["on", "off"], help_heading = "Method")]
    share_blocks: Option<String>,
    /// LoRA: what its additions are scaled by, over their rank [default: the rank]
    #[arg(long, help_heading = "Method")]
    alpha: Option<f64>,
    /// LoRA: ends of the names of the layers to add to, as in `lotep inspect`; q, k and v are parts of qkv [default: q,v
    /// in transformers, else fc1,fc2, else all]
    #[arg(long, value_delimiter = ',', value_name = "END,…", help_heading = "Method")]
    targets: Option<Vec<String>>,
    /// LoRA on convolutions: PEFT's form, two thin convolutions, or loralib's, a product read as a kernel [default: peft]
    #[arg(long, value_parser = ["peft", "loralib"], help_heading = "Method")]
    conv_form: Option<String>,
    /// VPT below a convolutional network's image: channels [default: 1]
    #[arg(long, value_name = "N", help_heading = "Method")]
    channels: Option<usize>,
    /// Border, VPT's padding: its width in pixels [default: 30; 16 for vpt-pad]
    #[arg(long, value_name = "PIXELS", help_heading = "Method")]
    border: Option<usize>,
    /// ILM-VP, AutoVP: side of the image inside its frame; the papers take 32 for sets of small images [default: 128]
    #[arg(long, value_name = "PIXELS", help_heading = "Method")]
    size: Option<usize>,
    /// AutoVP: factor by which the image is scaled inside its frame, at the start [default: 1]
    #[arg(long, value_name = "FACTOR", help_heading = "Method")]
    scale: Option<f64>,
    /// AutoVP: whether that factor is learnt [default: on]
    #[arg(long, value_parser = ["on", "off"], help_heading = "Method")]
    train_scale: Option<String>,
    /// How class scores come about: a new classifier of the features (linear) or of the scores of the network's own
    /// classes (full), or own classes that speak for yours: the first, random ones, or those that your images are taken
    /// for, found once (frequency) or again and again (iterative); or CLIP's reading of your classes' names (text)
    /// [default: linear; first for border, iterative for ilm-vp, full for auto-vp, text for CLIP's methods]
    #[arg(long, value_parser = ["linear", "full", "first", "random", "frequency", "iterative", "text"], help_heading = "Method")]
    mapping: Option<String>,
    /// Own classes of the network that speak for one of yours [default: 1]
    #[arg(long, value_name = "N", help_heading = "Method")]
    sources_per_class: Option<usize>,
    /// Epochs after which an iterative mapping is found again [default: 1]
    #[arg(long, value_name = "EPOCHS", help_heading = "Method")]
    mapping_every: Option<usize>,

    /// Directory of images: train/CLASS/* with test/CLASS/*, or CLASS/*; a list (.csv, .json), one of CoOp's split files
    /// (.json), Parquet tables or tar archives; with --dataset also the directory that holds the data set's.
    #[arg(long, visible_alias = "data-root", value_name = "DIR|FILE", help_heading = "Data")]
    data: Option<PathBuf>,
    /// Read the original download of a known data set (`lotep datasets`).
    #[arg(long, value_name = "NAME", value_parser = known_names(), hide_possible_values = true, help_heading = "Data")]
    dataset: Option<String>,
    /// Train on the data set's validation images too.
    #[arg(long, help_heading = "Data")]
    join_val: bool,
    /// Train on a stratified sample of about N images.
    #[arg(long, value_name = "N", help_heading = "Data")]
    subset: Option<usize>,
    /// Train on N images of each class.
    #[arg(long, value_name = "N", help_heading = "Data")]
    shots: Option<usize>,
    /// Learn and test only the first half of the classes, or the rest [default: all]
    #[arg(long, value_parser = ["all", "base", "novel"], help_heading = "Data")]
    class_split: Option<String>,
    /// Random changes of training images: crops and mirroring [default: none; crop-flip for CLIP's methods]
    #[arg(long, value_parser = ["none", "crop-flip"], help_heading = "Data")]
    augment: Option<String>,
    /// Share of the images to test on when there is no test/ [default: 0.2]
    #[arg(long, value_name = "SHARE", help_heading = "Data")]
    test_fraction: Option<f64>,
    /// Share of the training images to hold out when there is no val/ [default: 0.1; only with --select best-val]
    #[arg(long, value_name = "SHARE", help_heading = "Data")]
    val_fraction: Option<f64>,
    /// What to do with an image that can't be decoded [default: fail]
    #[arg(long, value_parser = ["skip", "fail"], help_heading = "Data")]
    on_corrupt: Option<String>,
    /// Threads that decode images [default: one a core]
    #[arg(long, help_heading = "Data")]
    workers: Option<usize>,
    /// Megabytes of decoded images kept for later epochs [default: 1024]
    #[arg(long, help_heading = "Data")]
    cache_mb: Option<u64>,

    /// Passes over the training images [default: 20; CLIP's methods as their papers]
    #[arg(long, help_heading = "Training")]
    epochs: Option<usize>,
    /// Images a step [default: 64; CLIP's methods as their papers]
    #[arg(long, help_heading = "Training")]
    batch_size: Option<usize>,
    /// Compute a batch in this many parts, to save memory [default: 1]
    #[arg(long, value_name = "PARTS", help_heading = "Training")]
    accumulate: Option<usize>,
    /// Update rule [default: by method and family]
    #[arg(long, value_parser = ["sgd", "adamw"], help_heading = "Training")]
    optimizer: Option<String>,
    /// Learning rate of the classifier [default: by method, family and update rule]
    #[arg(long, help_heading = "Training")]
    lr: Option<f64>,
    /// Learning rate of the prompts [default: by method, family and update rule]
    #[arg(long, help_heading = "Training")]
    prompt_lr: Option<f64>,
    /// Momentum of SGD [default: 0.9]
    #[arg(long, help_heading = "Training")]
    momentum: Option<f64>,
    /// Weight decay of the classifier [default: 0.0001]
    #[arg(long, help_heading = "Training")]
    weight_decay: Option<f64>,
    /// Weight decay of the prompts [default: 0.0001]
    #[arg(long, help_heading = "Training")]
    prompt_weight_decay: Option<f64>,
    /// How learning rates fall [default: cosine]
    #[arg(long, value_parser = ["cosine", "linear", "constant"], help_heading = "Training")]
    schedule: Option<String>,
    /// Epochs, or part of one, over which learning rates rise from zero first [default: 0]
    #[arg(long, help_heading = "Training")]
    warmup_epochs: Option<f64>,
    /// What both rates are meanwhile, if they are not to rise [default: none; 0.00001 for CLIP's prompts]
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    warmup_lr: Option<f64>,
    /// Which epoch is kept; the test split is never used to choose [default: last]
    #[arg(long, value_parser = ["last", "best-val"], help_heading = "Training")]
    select: Option<String>,
    /// Also measure the test split after every epoch, for the number that papers report. It chooses nothing.
    #[arg(long, help_heading = "Training")]
    test_every_epoch: bool,
    /// Seed of initial values, split and order [default: 0]
    #[arg(long, value_parser = clap::value_parser!(u64).range(..=MAX_SEED), help_heading = "Training")]
    seed: Option<u64>,
    /// Steps between checkpoints inside an epoch [default: 200]
    #[arg(long, value_name = "STEPS", help_heading = "Training")]
    checkpoint_steps: Option<usize>,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let config = args.resolve()?;
    Ui::catch_signals();
    let dir = RunDir::new(&args.output);
    let outcome = train(&config, &dir, args.resume, &mut Watcher(ui));
    ui.clear();
    let outcome = outcome?;
    if ui.json() { ui.out_json(&outcome) } else { ui.out(&summary(&outcome, &dir)) }
}

/// The result for people.
fn summary(outcome: &Outcome, dir: &RunDir) -> String {
    let t = &outcome.train;
    let mut lines = vec![format!(
        "{} on {}: epoch {} kept ({})",
        outcome.run.config.method.name(),
        outcome.run.backbone,
        t.epoch,
        outcome.run.protocol
    )];
    for (name, accuracy) in [("val", t.val), ("test", t.test)] {
        if let Some(a) = accuracy {
            lines.push(format!("{name:<5} top1 {:.2}%  top5 {:.2}%  ({} images)", a.top1, a.top5, a.images));
        }
    }
    if let Some((epoch, a)) = t.best_test {
        lines.push(format!("best test epoch, which chose nothing: {:.2}% in epoch {epoch}", a.top1));
    }
    let memory = t.peak_rss_mb.map_or(String::new(), |m| format!(", peak memory {m:.0} MB"));
    lines.push(format!(
        "{} trainable parameters ({} prompts, {} head), {:.1} s{memory}",
        t.trainable_parameters, t.prompt_parameters, t.head_parameters, t.seconds
    ));
    lines.push(format!("adapter in {}", dir.adapter().display()));
    lines.join("\n")
}

impl Args {
    /// Defaults, then the file, then the options.
    fn resolve(&self) -> Result<TrainConfig> {
        let (mut file, mut method) = self.config.as_deref().map(read).transpose()?.unwrap_or_default();
        if let Some(name) = &self.method {
            take_method(name, &mut file, &mut method);
        }
        self.overlay_method(&mut method);
        self.overlay(&mut file);
        for (key, option) in [("backbone", "--backbone"), ("data", "--data")] {
            if !file.contains_key(key) {
                bail!("{option} is missing: give it here or as `{key}` in --config");
            }
        }
        settle(file, method)
    }

    fn overlay_method(&self, table: &mut Table) {
        put(table, "rank", self.rank.map(whole));
        put(table, "depth_ratio", self.depth_ratio);
        put(table, "rank_schedule", self.rank_schedule.clone());
        put(table, "rank_denominator", self.rank_denominator.clone());
        put(table, "input_prompt", self.input_prompt.as_ref().map(|v| v == "on"));
        put(table, "vit_geometry", self.vit_geometry.clone());
        put(table, "spatial_scale", self.spatial_scale);
        put(table, "core_std", self.core_std);
        put(table, "spatial_std", self.spatial_std);
        put(table, "groups", self.groups.map(whole));
        put(table, "tokens", self.tokens.map(whole));
        put(table, "fourier", self.fourier);
        put(table, "dropout", self.dropout);
        put(table, "key_values", self.key_values.map(whole));
        put(table, "share_key_value", self.share_key_value.as_ref().map(|v| v == "on"));
        put(table, "share_blocks", self.share_blocks.as_ref().map(|v| v == "on"));
        put(table, "alpha", self.alpha);
        put(table, "targets", self.targets.clone());
        put(table, "conv_form", self.conv_form.clone());
        put(table, "border", self.border.map(whole));
        put(table, "channels", self.channels.map(whole));
        put(table, "size", self.size.map(whole));
        put(table, "scale", self.scale);
        put(table, "train_scale", self.train_scale.as_ref().map(|v| v == "on"));
        put(table, "depth", self.depth.map(whole));
        put(table, "context", self.context.clone());
        put(table, "templates", (!self.template.is_empty()).then(|| self.template.clone()));
        put(table, "shared_up", self.shared_up.clone());
        put(table, "text_consistency", self.text_consistency);
        put(table, "image_consistency", self.image_consistency);
        put(table, "logit_consistency", self.logit_consistency);
        put(table, "drift_correction", self.drift_correction.as_ref().map(|v| v == "on"));
        put(table, "aggregate_mean", self.aggregate_mean);
        put(table, "aggregate_std", self.aggregate_std);
    }

    fn overlay(&self, table: &mut Table) {
        put(table, "mapping", self.mapping.clone());
        put(table, "sources_per_class", self.sources_per_class.map(whole));
        put(table, "mapping_every", self.mapping_every.map(whole));
        put(table, "backbone", self.backbone.clone());
        put(table, "arch", self.arch.clone());
        put(table, "random_weights", self.random_weights.then_some(true));
        put(table, "image_size", self.image_size.map(whole));
        put(table, "device", self.device.clone());
        put(table, "precision", self.precision.clone());
        put(table, "recompute", self.recompute.then_some(true));
        put(table, "data", self.data.as_ref().map(|p| p.to_string_lossy().into_owned()));
        put(table, "dataset", self.dataset.clone());
        put(table, "join_val", self.join_val.then_some(true));
        put(table, "subset", self.subset.map(whole));
        put(table, "shots", self.shots.map(whole));
        put(table, "class_split", self.class_split.clone());
        put(table, "augment", self.augment.clone());
        put(table, "test_fraction", self.test_fraction);
        put(table, "val_fraction", self.val_fraction);
        put(table, "on_corrupt", self.on_corrupt.clone());
        put(table, "workers", self.workers.map(whole));
        put(table, "cache_mb", self.cache_mb.map(|v| i64::try_from(v).unwrap_or(i64::MAX)));
        put(table, "epochs", self.epochs.map(whole));
        put(table, "batch_size", self.batch_size.map(whole));
        put(table, "accumulate", self.accumulate.map(whole));
        put(table, "optimizer", self.optimizer.clone());
        put(table, "lr", self.lr);
        put(table, "prompt_lr", self.prompt_lr);
        put(table, "momentum", self.momentum);
        put(table, "weight_decay", self.weight_decay);
        put(table, "prompt_weight_decay", self.prompt_weight_decay);
        put(table, "schedule", self.schedule.clone());
        put(table, "warmup_epochs", self.warmup_epochs);
        put(table, "warmup_lr", self.warmup_lr);
        put(table, "select", self.select.clone());
        put(table, "test_every_epoch", self.test_every_epoch.then_some(true));
        put(table, "seed", self.seed.map(|v| v as i64));
        put(table, "checkpoint_steps", self.checkpoint_steps.map(whole));
    }
}

/// Name the method. Another than the one that was set leaves that one's settings behind, and the update rule, the
/// learning rates and the mapping that suited it.
pub(crate) fn take_method(name: &str, file: &mut Table, method: &mut Table) {
    if method.get("method").and_then(Value::as_str) != Some(name) {
        *method = Table::from_iter([("method".to_owned(), name.into())]);
        for key in ["optimizer", "lr", "prompt_lr", "mapping", "augment"] {
            file.remove(key);
        }
    }
}

/// A number as TOML holds it; one that is too large for that is out of any range all the same.
fn whole(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn put(table: &mut Table, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        table.insert(key.to_owned(), value.into());
    }
}

/// What makes a file of settings a recipe, and the command that it is for.
pub(crate) const RECIPES: [(&str, &str); 2] = [("sweep", "lotep sweep"), ("prune", "lotep prune")];

/// The settings in a file, and those of its method.
fn read(path: &Path) -> Result<(Table, Table)> {
    let file = parse(path)?;
    if let Some((_, command)) = RECIPES.iter().find(|(key, _)| file.contains_key(*key)) {
        bail!("{} is a recipe for `{command}`, not the settings of one run", path.display());
    }
    split(path, file)
}

/// A TOML file.
pub(crate) fn parse(path: &Path) -> Result<Table> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        input_error!("{} is not TOML: line {line}: {}", path.display(), one_line(e.message()))
    })
}

/// A file's settings, and those of its method.
pub(crate) fn split(path: &Path, mut file: Table) -> Result<(Table, Table)> {
    let method = match file.remove("method") {
        Some(Value::Table(table)) => table,
        Some(other) => bail!("{}: `method` is {other}, a table [method] is expected", path.display()),
        None => Table::new(),
    };
    // Checked by itself, so that a mistake in it is not taken for one on the command line.
    settle(file.clone(), method.clone()).map_err(|e| input_error!("{}: {e}", path.display()))?;
    Ok((file, method))
}

/// Settings over the defaults.
pub(crate) fn settle(settings: Table, mut method: Table) -> Result<TrainConfig> {
    method.entry("method").or_insert_with(|| "lotep-tk".into());
    let given = Value::Table(method.clone());
    let method: MethodConfig = method
        .try_into()
        .map_err(|e: toml::de::Error| input_error!("method {given}: {}", one_line(e.message())))?;
    let defaults = TrainConfig::new("", "", method);
    let mut table = Table::try_from(&defaults).map_err(|e| input_error!("cannot resolve settings: {e}"))?;
    table.extend(settings);
    // The whole text, unlike `message()`, names the key.
    table.try_into().map_err(|e: toml::de::Error| input_error!("settings: {}", one_line(&e.to_string())))
}

pub(crate) fn one_line(text: &str) -> String {
    text.trim().replace('\n', " ")
}
