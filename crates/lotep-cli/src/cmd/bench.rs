//! `lotep bench`.

use std::path::PathBuf;

use lotep::backbone::{LoadOptions, load};
use lotep::bench::{BenchOptions, BenchReport, decode, infer, train};
use lotep::data::{Interpolation, Transform};
use lotep::method::MethodConfig;
use lotep::{Result, device};

use super::model::{precision, workers};
use crate::ui::{Ui, Watcher};

/// Measure the time of a step and the memory it takes, or how fast images are read.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lotep bench train --backbone resnet18 --random-weights
  lotep bench train --backbone resnet18 --random-weights --method none,lor-vp,lotep-tk --steps 50
  lotep bench infer --backbone models/vit_tiny --batch-size 1 --format json
  lotep bench decode PHOTOS")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Training steps (forward, backward, update) on made-up images.
    Train(StepArgs),
    /// Predictions on made-up images.
    Infer(StepArgs),
    /// Reading image files as training does: decode, resize, batch.
    Decode(DecodeArgs),
}

#[derive(clap::Args)]
struct StepArgs {
    /// Backbone directory, file or name; with --random-weights the name of an architecture.
    #[arg(long, value_name = "PATH|NAME")]
    backbone: String,
    /// Architecture of a bare weight file.
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
    /// Make up the weights: needs no file.
    #[arg(long)]
    random_weights: bool,
    /// Method in the network, at its defaults; `none` is the network alone (training: gradient of the image).
    /// Several, with commas between, take turns step by step, and are compared with the first.
    #[arg(long, default_value = "lotep-tk", value_delimiter = ',', value_parser = method_names())]
    method: Vec<String>,
    /// Images a step.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=65536))]
    batch_size: u64,
    /// Counted steps of each method; the median is reported.
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

#[derive(clap::Args)]
struct DecodeArgs {
    /// Images or directories of images.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Side of the square that every image becomes.
    #[arg(long, value_name = "PIXELS", default_value_t = 224, value_parser = clap::value_parser!(u64).range(1..=16_384))]
    image_size: u64,
    /// Filter of the resize.
    #[arg(long, default_value = "bilinear", value_parser = ["bilinear", "bicubic"])]
    interpolation: String,
    /// Threads that decode, several numbers with commas between; 0 is one a core.
    #[arg(long, default_value = "1,0", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(..=1024))]
    workers: Vec<u64>,
    /// Counted passes over the images; the median is reported.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    passes: u64,
}

/// What `--method` takes here: every method, and none.
fn method_names() -> Vec<&'static str> {
    [&["none"], MethodConfig::NAMES.as_slice()].concat()
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    match &args.what {
        What::Train(args) => steps(args, true, ui),
        What::Infer(args) => steps(args, false, ui),
        What::Decode(args) => reading(args, ui),
    }
}

fn steps(args: &StepArgs, training: bool, ui: &Ui) -> Result<()> {
    let method = |name: &String| -> Result<Option<MethodConfig>> {
        if name == "none" {
            return Ok(None);
        }
        MethodConfig::named(name).map(Some)
    };
    let options = BenchOptions {
        methods: args.method.iter().map(method).collect::<Result<_>>()?,
        batch_size: args.batch_size as usize,
        classes: args.classes as usize,
        steps: args.steps as usize,
        warmup: args.warmup as usize,
    };
    let network = LoadOptions {
        backbone: args.backbone.clone(),
        arch: args.arch.clone(),
        random_weights: args.random_weights,
        image: args.image_size.map(|s| [s; 2]),
        device: device::open(&args.device)?,
        precision: precision(&args.precision),
        recompute: args.recompute,
    };
    let loaded = load(&network, &mut Watcher(ui))?;
    Ui::catch_signals();
    ui.begin("bench", (options.steps + options.warmup) * options.methods.len(), 0);
    let progress = |done| ui.advance(done, None);
    let reports =
        if training { train(&loaded, &options, progress) } else { infer(&loaded, &options, progress) };
    ui.clear();
    for r in &reports? {
        if ui.json() {
            ui.out_json(r)?;
        } else {
            ui.out(&line(r))?;
        }
    }
    Ok(())
}

fn line(r: &BenchReport) -> String {
    let memory = r.peak_rss_mb.map_or(String::new(), |m| format!("  peak {m:.0} MB"));
    let ratio = r.ratio.map_or(String::new(), |r| {
        format!("  {:.3} of {} (quartiles {:.3} to {:.3})", r.median, r.to, r.low, r.high)
    });
    format!(
        "{} {} {} batch {}: {:.1} ms a step ({:.1} to {:.1})  {:.1} images/s{memory}{ratio}",
        r.backbone,
        r.method,
        r.mode,
        r.batch_size,
        r.step_ms,
        r.step_ms_min,
        r.step_ms_max,
        r.images_per_second
    )
}

fn reading(args: &DecodeArgs, ui: &Ui) -> Result<()> {
    let side = args.image_size as usize;
    let interpolation: Interpolation = args.interpolation.parse()?;
    let transform = Transform::Squash { height: side, width: side, interpolation };
    let mut threads: Vec<usize> = args.workers.iter().map(|&n| workers(n as usize)).collect();
    // On one core "1,0" is the same twice.
    threads.dedup();
    Ui::catch_signals();
    ui.begin("bench", 0, 0);
    let reports =
        decode(&args.paths, &transform, &threads, args.passes as usize, |done| ui.advance(done, None));
    ui.clear();
    for r in &reports? {
        if ui.json() {
            ui.out_json(r)?;
            continue;
        }
        ui.out(&format!(
            "{} images on {} thread{}: {:.1} images/s ({:.1} to {:.1})",
            r.images,
            r.threads,
            if r.threads == 1 { "" } else { "s" },
            r.images_per_second,
            r.images_per_second_min,
            r.images_per_second_max
        ))?;
    }
    Ok(())
}
