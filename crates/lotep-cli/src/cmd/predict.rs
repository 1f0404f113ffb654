//! `lotep predict`.

use std::path::PathBuf;
use std::sync::Arc;

use lotep::data::{Dataset, Loader, Sample, Source, list_images};
use lotep::model::pixels;
use lotep::safetensors::{NamedTensor, serialize};
use lotep::{Error, Result, bail, input_error, write_atomic};
use serde_json::json;

use super::model::{ModelArgs, ReadArgs};
use super::names::NamesArgs;
use crate::ui::Ui;

/// Name what is in images, with an adapter or with a network's own classifier.
///
/// Files are taken as given, directories with everything in them. One line an image, in that order.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lotep predict --adapter RUN/adapter PHOTO.jpg
  lotep predict --backbone models/vit_tiny --top-k 1 --format json FOLDER | jq .path
  lotep predict --backbone hf-hub:openai/clip-vit-base-patch16 --classes 'a cat, a dog' PHOTO.jpg
  lotep predict --adapter RUN/adapter --logits scores.safetensors FOLDER")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    names: NamesArgs,
    /// How many classes to name for an image.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    top_k: u64,
    /// Also write all scores, one tensor `logits` [images, classes].
    #[arg(long, value_name = "FILE")]
    logits: Option<PathBuf>,
    #[command(flatten)]
    read: ReadArgs,
    /// Images or directories of images.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let files = list_images(&args.paths)?;
    let names = args.names.names()?;
    if names.is_none() && !args.names.template.is_empty() {
        bail!("--template says something of --classes, which are missing");
    }
    let model = args.model.load_for(names, &args.names.template, ui)?;
    let predictor = model.predictor()?;
    let transform = model.transform();
    // A data set of one nameless class: the loader decodes ahead on several threads.
    let samples = files.iter().map(|path| Sample { source: Source::File(path.clone()), label: 0 }).collect();
    let data = Dataset::new("images".into(), vec![String::new()], samples);
    let loader = Loader::new(Arc::new(data), args.read.loader(transform.clone())?);
    Ui::catch_signals();
    ui.begin("predict", files.len(), 0);
    let (mut all, mut names, mut classes) = (Vec::new(), Vec::new(), 0);
    for batch in loader.in_order() {
        let batch = batch?;
        if batch.size == 0 {
            continue;
        }
        let indices = batch.indices.clone();
        let logits = predictor.logits(pixels(batch, &transform, predictor.device()));
        classes = logits.dims()[1];
        let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
        for (index, row) in indices.iter().zip(logits.chunks_exact(classes)) {
            let name = files[*index].display().to_string();
            print(ui, &name, row, model.classes(), args.top_k as usize)?;
            names.push(name);
        }
        if args.logits.is_some() {
            all.extend(logits);
        }
        if !ui.advance(names.len(), None) {
            ui.clear();
            return Err(Error::Interrupted("prediction was stopped".into()));
        }
    }
    ui.clear();
    for name in loader.skipped() {
        ui.note(&format!("warning: skipped corrupt image {name}"));
    }
    let Some(path) = &args.logits else { return Ok(()) };
    let paths = serde_json::to_string(&names).map_err(|e| input_error!("cannot list the paths: {e}"))?;
    let tensor = NamedTensor { name: "logits".into(), shape: vec![names.len(), classes], values: all };
    write_atomic(path, &serialize(&[tensor], Some(("paths", paths)))?)
}

fn print(ui: &Ui, path: &str, row: &[f32], classes: Option<&[String]>, k: usize) -> Result<()> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|v| f64::from(v - max).exp()).sum();
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
    order.truncate(k);
    let name = |i: usize| classes.map_or_else(|| i.to_string(), |c| c[i].clone());
    let probability = |i: usize| f64::from(row[i] - max).exp() / sum;
    if ui.json() {
        let best: Vec<_> = order
            .iter()
            .map(|&i| json!({ "class": name(i), "index": i, "probability": probability(i), "logit": row[i] }))
            .collect();
        return ui.out_json(&json!({ "path": path, "predictions": best }));
    }
    let best: Vec<_> = order.iter().map(|&i| format!("{} {:.1}%", name(i), 100.0 * probability(i))).collect();
    ui.out(&format!("{path}\t{}", best.join(", ")))
}
