//! `lotep eval`.

use std::sync::Arc;

use lotep::Result;
use lotep::data::{Dataset, Loader};
use lotep::eval::{Accuracy, evaluate};
use serde_json::json;

use super::labelled::{ImagesArgs, ScoredArgs, align};
use super::model::{Model, ReadArgs};
use crate::ui::Ui;

/// Measure accuracy: of an adapter, of a network with its own classifier, or of CLIP with the classes' names.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lotep eval --adapter RUN/adapter --data photos
  lotep eval --backbone models/resnet18 --data imagenet --split val
  lotep eval --backbone hf-hub:openai/clip-vit-base-patch16 --data photos
  lotep eval --adapter RUN/adapter --data photos --class-split novel --data-classes")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ScoredArgs,
    #[command(flatten)]
    images: ImagesArgs,
    #[command(flatten)]
    read: ReadArgs,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let (model, data) = args.model.load(&args.images, ui)?;
    ui.note(&format!("backbone  {}", model.loaded.describe()));
    let (accuracy, skipped) = accuracy(&model, data, &args.read, ui)?;
    if ui.json() {
        return ui.out_json(&json!({
            "split": args.images.split, "top1": accuracy.top1, "top5": accuracy.top5, "loss": accuracy.loss,
            "images": accuracy.images, "skipped": skipped,
        }));
    }
    ui.out(&format!(
        "{} split: top1 {:.2}%  top5 {:.2}%  loss {:.4}  ({} images)",
        args.images.split, accuracy.top1, accuracy.top5, accuracy.loss, accuracy.images
    ))
}

/// The accuracy on `data`, and the names of corrupt images that were left out.
pub(crate) fn accuracy(
    model: &Model,
    data: Dataset,
    read: &ReadArgs,
    ui: &Ui,
) -> Result<(Accuracy, Vec<String>)> {
    let data = align(data, model.classes(), model.loaded.config.classes)?;
    let transform = model.transform();
    let loader = Loader::new(Arc::new(data), read.loader(transform.clone())?);
    Ui::catch_signals();
    ui.begin("eval", loader.dataset().samples.len(), 0);
    let accuracy = evaluate(&model.predictor()?, &loader, &transform, |done| ui.advance(done, None));
    ui.clear();
    let skipped = loader.skipped();
    for name in &skipped {
        ui.note(&format!("warning: skipped corrupt image {name}"));
    }
    Ok((accuracy?, skipped))
}
