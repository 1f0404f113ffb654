//! The lotep program: one file a command, each a set of arguments and a function that calls the library.

mod cmd;
mod ui;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lotep::LargePages;

use ui::Ui;

#[global_allocator]
static MEMORY: LargePages = LargePages::new();

/// Adapt a frozen, pretrained vision model to your images by learning a few thousand parameters.
///
/// A backbone is a directory in timm's hub layout (config.json and model.safetensors), a weight file with --arch, or the
/// name of published weights (resnet18.tv_in1k), which are downloaded once. Data is a directory with train/CLASS/*, test/CLASS/* or simply CLASS/*.
#[derive(Parser)]
#[command(
    name = "lotep",
    version,
    max_term_width = 110,
    after_help = "\
Examples:
  lotep demo                                                     see it work, offline, in two minutes
  lotep train --backbone DIR --data IMAGES --method lotep-tk --output RUN
  lotep eval --adapter RUN/adapter --data IMAGES
  lotep predict --adapter RUN/adapter PHOTO.jpg FOLDER
  lotep inspect --backbone DIR
  lotep backbones                                                list the networks known by name
  lotep datasets                                                 list the data sets known by name, and where to get them
  lotep methods                                                  list what each method learns, and where"
)]
struct Args {
    /// How results are written to standard output.
    #[arg(long, global = true, default_value = "text", value_parser = ["text", "json"])]
    format: String,
    /// Say nothing but the result.
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Train(cmd::train::Args),
    Sweep(cmd::sweep::Args),
    Prune(cmd::prune::Args),
    Protocol(cmd::protocol::Args),
    Eval(cmd::eval::Args),
    Analyze(cmd::analyze::Args),
    Experiment(cmd::experiment::Args),
    Predict(cmd::predict::Args),
    Inspect(cmd::inspect::Args),
    Backbones(cmd::backbones::Args),
    Datasets(cmd::datasets::Args),
    Methods(cmd::methods::Args),
    Export(cmd::export::Args),
    Import(cmd::import::Args),
    Bench(cmd::bench::Args),
    Demo(cmd::demo::Args),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let ui = Ui::new(args.format == "json", args.quiet);
    // This thread is one of the pool's: a step has hundreds of parallel stretches, and at each of them a thread from outside would
    // be put to sleep and woken.
    if let Err(error) = rayon::ThreadPoolBuilder::new().use_current_thread().build_global() {
        ui.error(&format!("cannot start threads to compute with: {error}"));
        return ExitCode::from(1);
    }
    let done = match &args.command {
        Command::Train(a) => cmd::train::run(a, &ui),
        Command::Sweep(a) => cmd::sweep::run(a, &ui),
        Command::Prune(a) => cmd::prune::run(a, &ui),
        Command::Protocol(a) => cmd::protocol::run(a, &ui),
        Command::Eval(a) => cmd::eval::run(a, &ui),
        Command::Analyze(a) => cmd::analyze::run(a, &ui),
        Command::Experiment(a) => cmd::experiment::run(a, &ui),
        Command::Predict(a) => cmd::predict::run(a, &ui),
        Command::Inspect(a) => cmd::inspect::run(a, &ui),
        Command::Backbones(a) => cmd::backbones::run(a, &ui),
        Command::Datasets(a) => cmd::datasets::run(a, &ui),
        Command::Methods(a) => cmd::methods::run(a, &ui),
        Command::Export(a) => cmd::export::run(a, &ui),
        Command::Import(a) => cmd::import::run(a, &ui),
        Command::Bench(a) => cmd::bench::run(a, &ui),
        Command::Demo(a) => cmd::demo::run(a, &ui),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ lotep::Error::Interrupted(_)) => {
            ui.note(&error.to_string());
            ExitCode::from(130)
        }
        Err(error) => {
            ui.error(&error.to_string());
            ExitCode::from(1)
        }
    }
}
