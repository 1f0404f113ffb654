//! `lotep demo`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use lotep::draw::{Task, write_dataset};
use lotep::method::MethodConfig;
use lotep::pretrain::{PretrainOptions, demo_network, pretrain};
use lotep::pretrain_clip::{ClipOptions, pretrain_clip};
use lotep::train::optim::OptimizerKind;
use lotep::train::{Outcome, RunDir, Select, TrainConfig, train};
use lotep::{Error, Result, bail, write_atomic};

use super::train::MAX_SEED;
use crate::ui::{Ui, Watcher};

/// The pretrained network: `lotep demo pretrain --output crates/lotep-cli/assets/demo` made it.
const WEIGHTS: &[u8] = include_bytes!("../../assets/demo/model.safetensors");
const CONFIG: &[u8] = include_bytes!("../../assets/demo/config.json");

/// See it work, offline: adapt a small network to drawn images with four methods, and compare them.
///
/// The network was trained by lotep itself on drawn figures; the task it is adapted to has other figures behind a
/// film of colour and shade. Takes less than two minutes on two cores.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    step: Option<Step>,
    /// Keep images, runs and adapters here instead of in a temporary directory.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Passes over the training images.
    #[arg(long, default_value_t = EPOCHS, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    epochs: u64,
    /// Seed of initial values, split and order.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=MAX_SEED))]
    seed: u64,
}

const EPOCHS: u64 = 10;

#[derive(clap::Subcommand)]
enum Step {
    /// Train the demonstration's network anew on images it draws.
    Pretrain {
        /// Directory to write, in timm's hub layout.
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
        /// Steps of 64 images.
        #[arg(long, default_value_t = 900)]
        steps: usize,
        /// Peak learning rate of AdamW.
        #[arg(long, default_value_t = 0.002)]
        lr: f64,
        /// Seed of weights and images.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Train a small CLIP on pictures that it draws and sentences about them: a colour and a thing.
    PretrainClip {
        /// Directory to write.
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
        /// Steps of 64 pictures.
        #[arg(long, default_value_t = 1500)]
        steps: usize,
        /// Peak learning rate of AdamW.
        #[arg(long, default_value_t = 0.002)]
        lr: f64,
        /// Seed of weights, pictures and sentences.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Write drawn images as class folders.
    Draw {
        /// Directory to write: train/CLASS/*, test/CLASS/*.
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
        /// Which task.
        #[arg(long, default_value = "adapt", value_parser = ["pretrain", "adapt", "words"])]
        task: String,
        /// Training images a class; a fifth as many again for testing.
        #[arg(long, default_value_t = 100)]
        images: usize,
        /// Side in pixels.
        #[arg(long, default_value_t = 48)]
        size: usize,
        /// Seed.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    Ui::catch_signals();
    match &args.step {
        Some(Step::Pretrain { output, steps, lr, seed }) => {
            let config = demo_network()?;
            let options = PretrainOptions { config, steps: *steps, batch_size: 64, lr: *lr, seed: *seed };
            let accuracy = pretrain(&options, output, &mut Watcher(ui));
            ui.clear();
            let a = accuracy?;
            ui.out(&format!(
                "top1 {:.2}% on {} images not trained on; written to {}",
                a.top1,
                a.images,
                output.display()
            ))
        }
        Some(Step::PretrainClip { output, steps, lr, seed }) => {
            let options = ClipOptions { steps: *steps, batch_size: 64, lr: *lr, seed: *seed };
            let accuracy = pretrain_clip(&options, output, &mut Watcher(ui));
            ui.clear();
            let a = accuracy?;
            ui.out(&format!(
                "zero-shot top1 {:.2}% on {} pictures of 80 classes not trained on; written to {}",
                a.top1,
                a.images,
                output.display()
            ))
        }
        Some(Step::Draw { output, task, images, size, seed }) => {
            let task: Task = task.parse()?;
            write_dataset(task, output, *size, *images, (*images).div_ceil(5), *seed)?;
            ui.out(&format!("{} classes drawn in {}", task.classes().len(), output.display()))
        }
        None => match &args.output {
            Some(dir) if dir.join("runs").exists() => {
                bail!("{} holds an earlier demonstration: choose another --output", dir.display())
            }
            Some(dir) => compare(args, dir, ui),
            None => {
                let dir = tempfile::tempdir().map_err(Error::io("create", std::env::temp_dir()))?;
                compare(args, dir.path(), ui)
            }
        },
    }
}

/// The methods that the demonstration compares.
const COMPARED: [&str; 4] = ["linear-probe", "lor-vp", "lotep-cp", "lotep-tk"];

fn compare(args: &Args, dir: &Path, ui: &Ui) -> Result<()> {
    let (backbone, images) = (dir.join("backbone"), dir.join("images"));
    write_atomic(&backbone.join("model.safetensors"), WEIGHTS)?;
    write_atomic(&backbone.join("config.json"), CONFIG)?;
    write_dataset(Task::Adapt, &images, 48, 100, 100, 0)?;
    let mut outcomes = Vec::new();
    for name in COMPARED {
        ui.note(&format!("\n{name}"));
        let method = MethodConfig::named(name)?;
        let config = TrainConfig {
            epochs: args.epochs as usize,
            seed: args.seed,
            batch_size: 32,
            select: Select::Last,
            // A few hundred steps are all there is time for: Adam's steps do not wait for large gradients.
            optimizer: Some(OptimizerKind::AdamW),
            lr: Some(0.02),
            prompt_lr: Some(0.01),
            ..TrainConfig::new(backbone.to_string_lossy(), &images, method)
        };
        let run = RunDir::new(dir.join("runs").join(name));
        let outcome = train(&config, &run, false, &mut Watcher(ui));
        ui.clear();
        outcomes.push(outcome?);
    }
    if ui.json() {
        return ui.out_json(&outcomes);
    }
    ui.out(&table(&outcomes))?;
    ui.out(&next(args))
}

fn table(outcomes: &[Outcome]) -> String {
    let mut text =
        format!("\n{:<14} {:>9} {:>9} {:>9} {:>9}\n", "method", "test top1", "prompts", "head", "seconds");
    for o in outcomes {
        let t = &o.train;
        _ = writeln!(
            text,
            "{:<14} {:>8.2}% {:>9} {:>9} {:>9.1}",
            o.run.config.method.name(),
            t.test.map_or(f64::NAN, |a| a.top1),
            t.prompt_parameters,
            t.head_parameters,
            t.seconds
        );
    }
    if let Some(o) = outcomes.first() {
        let images = o.train.test.map_or(0, |a| a.images);
        _ = write!(
            text,
            "{} frozen parameters; {images} test images; {}",
            o.train.frozen_parameters, o.run.protocol
        );
    }
    text
}

fn next(args: &Args) -> String {
    let kept = args.output.as_ref().map_or(String::new(), |d| format!("\nEverything is in {}.", d.display()));
    format!(
        "{kept}\nWith your own images (folders of train/CLASS/*, test/CLASS/*, or just CLASS/*) and a timm model:\n\n  \
         lotep train --backbone resnet18.tv_in1k --data IMAGE_DIR --method lotep-tk --output runs/mine"
    )
}
