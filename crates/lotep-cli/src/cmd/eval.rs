//! `lotep eval`.

use std::path::PathBuf;
use std::sync::Arc;

use lotep::data::{ClassSplit, Dataset, Known, Loader, Split, nameless, open};
use lotep::eval::{Accuracy, evaluate};
use lotep::{Result, bail};
use serde_json::json;

use super::datasets::known_names;
use super::model::{Model, ModelArgs, ReadArgs};
use super::names::NamesArgs;
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
    model: ModelArgs,
    #[command(flatten)]
    names: NamesArgs,
    /// CLIP: score by the names of the data's classes, also where the adapter was trained for others.
    #[arg(long, conflicts_with = "classes")]
    data_classes: bool,
    /// Directory of images: train/CLASS/*, test/CLASS/*, or CLASS/*; a list, a Parquet table or a tar archive; with
    /// --dataset also the directory that holds the data set's.
    #[arg(long, visible_alias = "data-root", value_name = "DIR|FILE")]
    data: PathBuf,
    /// Read the original download of a known data set (`lotep datasets`).
    #[arg(long, value_name = "NAME", value_parser = known_names(), hide_possible_values = true)]
    dataset: Option<String>,
    /// Which of the classes: all, the first half, or the rest.
    #[arg(long, default_value = "all", value_parser = ["all", "base", "novel"])]
    class_split: String,
    /// Which part of the data.
    #[arg(long, default_value = "test", value_parser = ["train", "val", "test", "all"])]
    split: String,
    /// Share of the images that is the test split when there is no test/, as for `train`.
    #[arg(long, value_name = "SHARE", default_value_t = 0.2)]
    test_fraction: f64,
    #[command(flatten)]
    read: ReadArgs,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let known = args.dataset.as_deref().map(str::parse::<Known>).transpose()?;
    let split: Split = args.split.parse()?;
    if !(0.0..=0.9).contains(&args.test_fraction) {
        bail!("test-fraction is {}; 0 to 0.9 is expected", args.test_fraction);
    }
    let mut splits = open(&args.data, known)?;
    if split != Split::All {
        splits.hold_out_test(args.test_fraction);
    }
    let mut data = splits.with_classes(args.class_split.parse::<ClassSplit>()?)?.get(split)?;
    if args.data_classes {
        data = data.answers();
    }
    let names = args.names.names()?.or_else(|| args.data_classes.then(|| data.classes.clone()));
    let mut model = args.model.load_for(names, &args.names.template, ui)?;
    // A CLIP alone has no other classifier than the data's names.
    if model.loaded.words.is_some() && model.adapter.is_none() && model.named.is_none() {
        data = data.answers();
        model.score_by(data.classes.clone(), &args.names.template, ui)?;
    }
    if let Some(line) = model.named.as_ref().and_then(|named| nameless(&args.data, known, &named.names)) {
        ui.note(&format!("warning: {line}"));
    }
    ui.note(&format!("backbone  {}", model.loaded.describe()));
    let (accuracy, skipped) = accuracy(&model, data, &args.read, ui)?;
    if ui.json() {
        return ui.out_json(&json!({
            "split": args.split, "top1": accuracy.top1, "top5": accuracy.top5, "loss": accuracy.loss,
            "images": accuracy.images, "skipped": skipped,
        }));
    }
    ui.out(&format!(
        "{} split: top1 {:.2}%  top5 {:.2}%  loss {:.4}  ({} images)",
        args.split, accuracy.top1, accuracy.top5, accuracy.loss, accuracy.images
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

/// Number the data's classes as the model does: by name for an adapter, by order for a network's own classifier.
pub(crate) fn align(mut data: Dataset, classes: Option<&[String]>, own: usize) -> Result<Dataset> {
    let Some(classes) = classes else {
        if data.classes.len() != own {
            bail!(
                "{} has {} classes, the network's own classifier {own}: they can only be matched one to one, in order",
                data.name,
                data.classes.len()
            );
        }
        return Ok(data);
    };
    let place = |name: &String| classes.iter().position(|c| c == name);
    let places: Vec<_> = data.classes.iter().map(|name| (name.clone(), place(name))).collect();
    for sample in &mut data.samples {
        match &places[sample.label] {
            (_, Some(place)) => sample.label = *place,
            (name, None) => bail!(
                "{}: class `{name}` is not one of the model's {} classes ({}, …)",
                data.name,
                classes.len(),
                classes.iter().take(4).cloned().collect::<Vec<_>>().join(", ")
            ),
        }
    }
    data.among = data.among.map(|among| {
        let mut among: Vec<usize> = among.iter().filter_map(|&label| places[label].1).collect();
        among.sort_unstable();
        among.into()
    });
    data.classes = classes.to_vec();
    Ok(data)
}
