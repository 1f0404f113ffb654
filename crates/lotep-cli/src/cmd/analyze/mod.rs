//! `lotep analyze`.

mod cka;
mod efficiency;
mod errors;
mod prompt;
mod rank;

use std::path::{Path, PathBuf};

use lotep::adapter::Adapter;
use lotep::backbone::Loaded;
use lotep::{Result, bail, input_error, write_atomic};
use serde::Serialize;

use super::model::{Model, ModelArgs};
use crate::ui::Ui;

/// Look into adapted networks: where they differ, what was learnt, what goes wrong, what it cost.
///
/// Each writes numbers as JSON and pictures as SVG or PNG into --output, and says what matters on standard output.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lotep analyze cka --adapter RUN/adapter --data photos --output looks/cka
  lotep analyze cka --adapter RUN/adapter --against base --against FINETUNED/adapter --data photos --output looks/cka
  lotep analyze rank --adapter NAIVE/adapter --output looks/rank
  lotep analyze prompt --adapter RUN/adapter --output looks/prompt
  lotep analyze errors --adapter RUN/adapter --data photos --output looks/errors
  lotep analyze efficiency runs/lor-vp runs/lotep-cp runs/lotep-tk --output looks/cost")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Cka(cka::Args),
    Rank(rank::Args),
    Prompt(prompt::Args),
    Errors(errors::Args),
    Efficiency(efficiency::Args),
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    match &args.what {
        What::Cka(a) => cka::run(a, ui),
        What::Rank(a) => rank::run(a, ui),
        What::Prompt(a) => prompt::run(a, ui),
        What::Errors(a) => errors::run(a, ui),
        What::Efficiency(a) => efficiency::run(a, ui),
    }
}

/// Which adapter, and where it computes.
#[derive(clap::Args)]
struct AdapterArgs {
    /// An adapter directory, as `train` writes to RUN/adapter.
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// The network it was trained on, where that has moved.
    #[arg(long, value_name = "PATH|NAME")]
    backbone: Option<String>,
}

impl AdapterArgs {
    /// Load both, to be looked at in full precision.
    fn load(&self, ui: &Ui) -> Result<(Loaded, Adapter)> {
        let args = ModelArgs {
            backbone: self.backbone.clone(),
            arch: None,
            adapter: Some(self.adapter.clone()),
            device: "cpu".into(),
            precision: "f32".into(),
        };
        let Model { loaded, adapter, .. } = args.load(ui)?;
        let Some(adapter) = adapter else {
            bail!("{} is no adapter", self.adapter.display());
        };
        Ok((loaded, adapter))
    }
}

/// The files of an analysis.
struct Output<'a>(&'a Path);

impl Output<'_> {
    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> Result<()> {
        write_atomic(&self.0.join(name), bytes.as_ref())
    }

    fn json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let json =
            serde_json::to_vec_pretty(value).map_err(|e| input_error!("cannot write {name} as JSON: {e}"))?;
        self.write(name, json)
    }

    fn said(&self, ui: &Ui, files: &[String]) {
        ui.note(&format!("{} in {}", files.join(", "), self.0.display()));
    }
}

/// A name as part of a file's.
fn file_part(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '-' }).collect()
}
