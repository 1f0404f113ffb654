//! `lotep bench`.

use lotep::backbone::{LoadOptions, load};
use lotep::bench::{BenchOptions, infer, train};
use lotep::method::MethodConfig;
use lotep::{Result, device, input_error};
use serde_json::json;

use super::model::precision;
use crate::ui::Ui;

/// Measure the time of a step and the memory it takes, on made-up images.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lotep bench train --backbone resnet18 --random-weights
  lotep bench infer --backbone models/vit_tiny --batch-size 1 --format json")]
pub(crate) struct Args {
    /// A training step (forward, backward, update) or a prediction.
    #[arg(value_parser = ["train", "infer"])]
    mode: String,
    /// Backbone directory or file; with --random-weights the name of an architecture.
    #[arg(long, value_name = "PATH")]
    backbone: String,
    /// Architecture of a bare weight file.
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
    /// Make up the weights: needs no file.
    #[arg(long)]
    random_weights: bool,
    /// Method in the network, at its defaults.
    #[arg(long, default_value = "lotep-tk", value_parser = MethodConfig::NAMES)]
    method: String,
    /// Images a step.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=65536))]
    batch_size: u64,
    /// Counted steps; the median is reported.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    steps: u64,
    /// Steps before, not counted.
    #[arg(long, default_value_t = 2)]
    warmup: u64,
    /// Classes of the new classifier.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(2..=1_000_000))]
    classes: u64,
    /// Side of the input, where the network allows another than its own.
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<usize>,
    /// Where to compute: auto, cpu, cuda, cuda:N or wgpu.
    #[arg(long, default_value = "auto")]
    device: String,
    /// What matrix products round to.
    #[arg(long, default_value = "auto", value_parser = ["auto", "f32", "bf16"])]
    precision: String,
    /// Keep only each block's input for the backward pass, and compute the block again there.
    #[arg(long)]
    recompute: bool,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let method: MethodConfig = serde_json::from_value(json!({ "method": args.method }))
        .map_err(|e| input_error!("method {}: {e}", args.method))?;
    let loaded = load(&LoadOptions {
        backbone: args.backbone.clone(),
        arch: args.arch.clone(),
        random_weights: args.random_weights,
        image: args.image_size.map(|s| [s; 2]),
        device: device::open(&args.device)?,
        precision: precision(&args.precision),
        recompute: args.recompute,
    })?;
    let options = BenchOptions {
        method,
        batch_size: args.batch_size as usize,
        classes: args.classes as usize,
        steps: args.steps as usize,
        warmup: args.warmup as usize,
    };
    Ui::catch_signals();
    ui.begin("bench", options.steps + options.warmup, 0);
    let report = match args.mode.as_str() {
        "train" => train(&loaded, &options, |done| ui.advance(done, None)),
        _ => infer(&loaded, &options, |done| ui.advance(done, None)),
    };
    ui.clear();
    let r = report?;
    if ui.json() {
        return ui.out_json(&r);
    }
    let memory = r.peak_rss_mb.map_or(String::new(), |m| format!("  peak {m:.0} MB"));
    ui.out(&format!(
        "{} {} {} batch {}: {:.1} ms a step ({:.1} to {:.1})  {:.1} images/s{memory}",
        r.backbone,
        r.method,
        r.mode,
        r.batch_size,
        r.step_ms,
        r.step_ms_min,
        r.step_ms_max,
        r.images_per_second
    ))
}
