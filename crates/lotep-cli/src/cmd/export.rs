//! `lotep export`.

use std::path::PathBuf;

use lotep::ops::Precision;
use lotep::{Result, bail, export};
use serde_json::json;

use super::model::ModelArgs;
use crate::ui::Ui;

/// Write an adapted network as a plain directory that timm loads.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lotep export --adapter RUN/adapter --merge --output merged")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Merge prompts and classifier into the network's own weights; says what can't be merged.
    #[arg(long, required = true)]
    merge: bool,
    /// Directory to write.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    debug_assert!(args.merge, "clap requires it");
    // What is written are f32 weights, folded as exactly as they can be, whatever --precision says.
    let model = args.model.load_in(Some(Precision::F32), ui)?;
    let Some(adapter) = &model.adapter else { bail!("export needs --adapter DIR") };
    if args.output.join("model.safetensors").exists() {
        bail!("{} already holds a model: choose another --output", args.output.display());
    }
    export::merge(&model.loaded, adapter, &args.output)?;
    if ui.json() {
        return ui.out_json(&json!({ "output": args.output, "classes": adapter.config.classes }));
    }
    ui.out(&format!(
        "{} with {} classes written to {}",
        model.loaded.config.name,
        adapter.config.classes.len(),
        args.output.display()
    ))
}
