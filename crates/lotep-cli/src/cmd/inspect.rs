//! `lotep inspect`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lotep::adapter::{Adapter, AdapterConfig};
use lotep::backbone::{Layout, LoadOptions, load};
use lotep::data::{DataReport, Known, check, open};
use lotep::ops::Precision;
use lotep::safetensors::TensorFile;
use lotep::{Result, device};
use serde::Serialize;
use serde_json::json;

use super::datasets::known_names;
use super::model::workers;
use crate::ui::{Ui, Watcher};

/// Say what a backbone, an adapter or a directory of images holds, and what is broken in it.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["backbone", "adapter", "data"]), after_help = "\
Examples:
  lotep inspect --backbone models/resnet18
  lotep inspect --backbone resnet18.tv_in1k
  lotep inspect --adapter RUN/adapter
  lotep inspect --data photos
  lotep inspect --dataset dtd --data-root downloads")]
pub(crate) struct Args {
    /// A network: its blocks, their geometry, parameters and preprocessing.
    #[arg(long, value_name = "PATH|NAME")]
    backbone: Option<String>,
    /// Architecture of a bare weight file.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["adapter", "data"])]
    arch: Option<String>,
    /// An adapter: method, classes, tensors, accuracy.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Images: classes, counts, sizes, broken files.
    #[arg(long, visible_alias = "data-root", value_name = "DIR|FILE")]
    data: Option<PathBuf>,
    /// Read the original download of a known data set (`lotep datasets`), and compare it with what was published.
    #[arg(long, value_name = "NAME", value_parser = known_names(), hide_possible_values = true,
          conflicts_with_all = ["adapter", "backbone"])]
    dataset: Option<String>,
    /// Look at image headers only instead of decoding every image.
    #[arg(long, conflicts_with_all = ["adapter", "backbone"])]
    headers_only: bool,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    match (&args.backbone, &args.adapter, &args.data) {
        (Some(path), _, _) => backbone(path, args, ui),
        (_, Some(dir), _) => adapter(dir, ui),
        (_, _, Some(dir)) => {
            let known = args.dataset.as_deref().map(str::parse::<Known>).transpose()?;
            let report = check(&open(dir, known)?, !args.headers_only, workers(0))?;
            if ui.json() { ui.out_json(&report) } else { data(&report, ui) }
        }
        _ => unreachable!("clap requires one"),
    }
}

fn backbone(path: &str, args: &Args, ui: &Ui) -> Result<()> {
    let options = LoadOptions {
        backbone: path.to_owned(),
        arch: args.arch.clone(),
        random_weights: false,
        image: None,
        device: device::open("cpu")?,
        precision: Some(Precision::F32),
        recompute: false,
    };
    let loaded = load(&options, &mut Watcher(ui))?;
    let config = &loaded.config;
    if ui.json() {
        return ui.out_json(&json!({
            "name": config.name, "architecture": config.architecture, "classes": config.classes,
            "preprocess": config.preprocess, "blocks": loaded.blocks, "sha256": loaded.sha256,
            "parameters": loaded.body_parameters + loaded.head_parameters,
            "parameters_without_head": loaded.body_parameters,
            "depth_ratio": config.architecture.default_depth_ratio(),
            "text": loaded.words.as_ref().map(|words| json!({
                "parameters": words.config.parameters(), "blocks": words.config.depth, "width": words.config.width,
                "context": words.config.context, "vocabulary": words.config.vocabulary,
            })),
        }));
    }
    let p = &config.preprocess;
    ui.out(&loaded.describe())?;
    ui.out(&format!("classes     {}", config.classes))?;
    ui.out(&format!(
        "parameters  {} + {} in the classifier",
        loaded.body_parameters, loaded.head_parameters
    ))?;
    ui.out(&format!("input       {}x{}, mean {:?}, std {:?}", p.image[0], p.image[1], p.mean, p.std))?;
    ui.out(&format!("own classifier's preprocessing  {}", transform(&p.evaluation())?))?;
    if let Some(words) = &loaded.words {
        let c = &words.config;
        ui.out(&format!(
            "text tower  {:.2}M parameters, {} blocks of width {}, up to {} of {} tokens",
            c.parameters() as f64 / 1e6,
            c.depth,
            c.width,
            c.context,
            c.vocabulary
        ))?;
    }
    ui.out(&format!("sha256      {}", loaded.sha256.as_deref().unwrap_or("none")))?;
    ui.out(&format!("LoTeP's default depth ratio  {}", config.architecture.default_depth_ratio()))?;
    for (l, b) in loaded.blocks.iter().enumerate() {
        let layout = if b.layout == Layout::Tokens { "tokens" } else { "map" };
        ui.out(&format!("{l:>3}  {:<12} {:>5} x {} x {}  {layout}", b.name, b.channels, b.height, b.width))?;
    }
    Ok(())
}

/// An adapter for programs.
#[derive(Serialize)]
struct AdapterReport<'a> {
    config: &'a AdapterConfig,
    tensors: &'a BTreeMap<String, Vec<usize>>,
}

fn adapter(dir: &std::path::Path, ui: &Ui) -> Result<()> {
    let config = Adapter::read_config(dir)?;
    let file = TensorFile::open(dir.join("adapter_model.safetensors"))?;
    let shapes = file.shapes();
    if ui.json() {
        // Not through a JSON value, which would write f32 numbers with the digits of f64.
        return ui.out_json(&AdapterReport { config: &config, tensors: &shapes });
    }
    let count = |prefix: bool| -> usize {
        let wanted = shapes.iter().filter(|(name, _)| name.starts_with("head.") == prefix);
        wanted.map(|(_, shape)| shape.iter().product::<usize>()).sum()
    };
    ui.out(&format!("method      {}", config.method.name()))?;
    ui.out(&format!("backbone    {} ({})", config.backbone.name, config.backbone.source))?;
    ui.out(&format!("sha256      {}", config.backbone.sha256.as_deref().unwrap_or("none")))?;
    ui.out(&format!("classes     {}: {}", config.classes.len(), config.classes.join(", ")))?;
    ui.out(&format!("parameters  {} in prompts, {} in the head", count(false), count(true)))?;
    ui.out(&format!("input       {}", transform(&config.input.transform)?))?;
    ui.out(&format!("metrics     {}", config.metrics))?;
    for (name, shape) in &shapes {
        ui.out(&format!("  {name:<24} {shape:?}"))?;
    }
    Ok(())
}

fn transform(transform: &lotep::data::Transform) -> Result<String> {
    serde_json::to_string(transform)
        .map_err(|e| lotep::input_error!("cannot describe the preprocessing: {e}"))
}

fn data(report: &DataReport, ui: &Ui) -> Result<()> {
    ui.out(&report.layout)?;
    ui.out(&format!("{} classes", report.classes.len()))?;
    for split in &report.splits {
        let range = |s: Option<lotep::data::Spread>| {
            s.map_or("none".into(), |s| format!("{} to {} (median {})", s.min, s.max, s.median))
        };
        let formats: Vec<_> = split.formats.iter().map(|(name, n)| format!("{n} {name}")).collect();
        ui.out(&format!("{}: {} images ({})", split.split, split.images, formats.join(", ")))?;
        ui.out(&format!("  width {}, height {}", range(split.width), range(split.height)))?;
        for (class, n) in &split.per_class {
            ui.out(&format!("  {n:>7}  {class}"))?;
        }
        for (name, why) in &split.broken {
            ui.out(&format!("  broken: {name}: {why}"))?;
        }
    }
    Ok(())
}
