//! `lotep import`.

use std::path::PathBuf;

use lotep::{Result, bail, peft};

use super::model::ModelArgs;
use crate::ui::Ui;

/// Take a LoRA adapter that PEFT wrote for a timm network.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lotep import --peft from-peft --backbone vit_base_patch16_224.augreg2_in21k_ft_in1k --classes cat,dog --output adapter
  lotep predict --adapter adapter photos")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// PEFT's directory: adapter_config.json and adapter_model.safetensors.
    #[arg(long, value_name = "DIR")]
    peft: PathBuf,
    /// Names of the classifier's classes, in order; numbers without.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    classes: Option<Vec<String>>,
    /// Adapter directory to write.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    if args.model.adapter.is_some() {
        bail!("import takes --peft and --backbone, and writes an adapter");
    }
    if !peft::is_peft(&args.peft) {
        bail!("{} is no adapter of PEFT's: its adapter_config.json has no `peft_type`", args.peft.display());
    }
    if args.output.join("adapter_config.json").exists() {
        bail!("{} already holds an adapter: choose another --output", args.output.display());
    }
    let model = args.model.load(ui)?;
    let mut adapter = peft::import(&args.peft, &model.loaded, args.classes.clone())?;
    adapter.save(&args.output)?;
    if ui.json() {
        return ui.out_json(&adapter.config);
    }
    ui.out(&format!(
        "{} with {} classes taken from {} to {}",
        adapter.config.method.name(),
        adapter.config.classes.len(),
        args.peft.display(),
        args.output.display()
    ))
}
