//! `lotep export`.

use std::path::{Path, PathBuf};

use lotep::data::{Split, open};
use lotep::method::MethodConfig;
use lotep::ops::Precision;
use lotep::{Result, bail, export, peft};
use serde_json::json;

use super::eval::accuracy;
use super::labelled::check_test_fraction;
use super::model::{Model, ModelArgs, ReadArgs};
use crate::ui::Ui;

/// Write an adapted network as a plain directory that timm loads, or a LoRA for PEFT.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("form").required(true).args(["merge", "peft", "remove_pruned"]), after_help = "\
Example:
  lotep export --adapter RUN/adapter --merge --output merged
  lotep export --adapter LORA/adapter --peft --output for-peft
  lotep export --adapter runs/pruned/final/seed-42/adapter --remove-pruned --data photos --output smaller")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Merge prompts and classifier into the network's own weights; says what can't be merged.
    #[arg(long)]
    merge: bool,
    /// Write PEFT's adapter_config.json and adapter_model.safetensors.
    #[arg(long)]
    peft: bool,
    /// Take E2VPT's pruned tokens out of the sequence, where they stood as zeros, and write the adapter anew; attention sees
    /// the zeros, so the accuracy is measured with and without them.
    #[arg(long, requires = "data")]
    remove_pruned: bool,
    /// With --remove-pruned: images whose test split accuracy is measured on.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// With --remove-pruned: share of the images that is the test split when there is no test/, as it was for training.
    #[arg(long, value_name = "SHARE", default_value_t = 0.2)]
    test_fraction: f64,
    #[command(flatten)]
    read: ReadArgs,
    /// Directory to write.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    // What is written are f32 weights, folded as exactly as they can be, whatever --precision says.
    let model = args.model.load_in(Some(Precision::F32), ui)?;
    let Some(adapter) = &model.adapter else { bail!("export needs --adapter DIR") };
    if let Some(data) = args.data.as_deref().filter(|_| args.remove_pruned) {
        return remove_pruned(args, &model, data, ui);
    }
    for file in ["model.safetensors", "adapter_model.safetensors"] {
        if args.output.join(file).exists() {
            bail!("{} already holds a model: choose another --output", args.output.display());
        }
    }
    if args.peft {
        peft::export(&model.loaded, adapter, &args.output)?;
    } else {
        export::merge(&model.loaded, adapter, &args.output)?;
    }
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

fn remove_pruned(args: &Args, model: &Model, data: &Path, ui: &Ui) -> Result<()> {
    check_test_fraction(args.test_fraction)?;
    let Some(adapter) = &model.adapter else { bail!("export needs --adapter DIR") };
    if args.output.join("adapter_config.json").exists() {
        bail!("{} already holds an adapter: choose another --output", args.output.display());
    }
    let mut smaller = adapter.clone();
    match &mut smaller.config.method {
        MethodConfig::E2vpt(m) if m.keep_pruned && !m.pruned_tokens.is_empty() => m.keep_pruned = false,
        other => bail!("the adapter's {} has no pruned tokens in its sequence", other.name()),
    }
    let mut splits = open(data, None)?;
    splits.hold_out_test(args.test_fraction);
    let data = splits.get(Split::Test)?;
    let smaller = Model { loaded: model.loaded.clone(), adapter: Some(smaller), named: None };
    let (with, _) = accuracy(model, data.clone(), &args.read, ui)?;
    let (without, _) = accuracy(&smaller, data, &args.read, ui)?;
    if let Some(mut adapter) = smaller.adapter {
        adapter.config.metrics = json!({ "test": without, "test_with_pruned_tokens_as_zeros": with });
        adapter.save(&args.output)?;
    }
    if ui.json() {
        return ui.out_json(&json!({ "output": args.output, "with": with, "without": without }));
    }
    ui.out(&format!(
        "test split, {} images: top1 {:.2}% with the pruned tokens as zeros, {:.2}% without; written to {}",
        with.images,
        with.top1,
        without.top1,
        args.output.display()
    ))
}
