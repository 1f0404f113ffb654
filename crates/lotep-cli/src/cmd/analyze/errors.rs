//! `lotep analyze errors`.

use std::path::PathBuf;
use std::sync::Arc;

use lotep::Result;
use lotep::analysis::errors::errors;
use lotep::data::Loader;
use lotep::plot::{Bar, bars};

use super::Output;
use crate::cmd::labelled::{ImagesArgs, ScoredArgs, align};
use crate::cmd::model::ReadArgs;
use crate::ui::Ui;

/// Show what goes wrong: the confusion matrix, accuracy class by class, and the surest mistakes as a contact sheet.
///
/// Writes errors.json, confusion.svg, classes.svg and worst.svg.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ScoredArgs,
    #[command(flatten)]
    images: ImagesArgs,
    /// Images on the contact sheet.
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=600))]
    worst: u64,
    /// Directory of the results.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    read: ReadArgs,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let (model, data) = args.model.load(&args.images, ui)?;
    let data = Arc::new(align(data, model.classes(), model.loaded.config.classes)?);
    let transform = model.transform();
    let loader = Loader::new(data.clone(), args.read.loader(transform.clone())?);
    Ui::catch_signals();
    ui.begin("errors", data.samples.len(), 0);
    let predictor = model.predictor()?;
    let found = errors(&predictor, &loader, &transform, args.worst as usize, |done| ui.advance(done, None));
    ui.clear();
    let found = found?;
    let output = Output(&args.output);
    output.json("errors.json", &found)?;
    output.write("confusion.svg", found.matrix()?)?;
    let mut classes: Vec<_> = found.classes.iter().filter(|c| c.top1.is_some()).collect();
    classes.sort_by(|a, b| a.top1.unwrap_or(0.0).total_cmp(&b.top1.unwrap_or(0.0)));
    let bar = |c: &&lotep::analysis::errors::ClassErrors| Bar {
        name: format!("{} ({})", c.name, c.images),
        value: c.top1.unwrap_or(f64::NAN),
        ..Bar::default()
    };
    let items: Vec<Bar> = classes.iter().map(bar).collect();
    output.write("classes.svg", bars("Accuracy by class (images)", "top-1, %", &items, true))?;
    output.write("worst.svg", found.contact_sheet(&data)?)?;
    if ui.json() {
        ui.out_json(&found)?;
    } else {
        let a = found.accuracy;
        ui.out(&format!(
            "{} split: top1 {:.2}%  top5 {:.2}%  ({} images)",
            args.images.split, a.top1, a.top5, a.images
        ))?;
        ui.out("worst classes:")?;
        for c in classes.iter().take(10) {
            ui.out(&format!("  {:>6.2}%  {} ({} images)", c.top1.unwrap_or(0.0), c.name, c.images))?;
        }
        ui.out("surest mistakes:")?;
        for m in found.worst.iter().take(10) {
            ui.out(&format!("  {}: {} taken for {}", m.image, m.class, m.predicted))?;
        }
    }
    for name in loader.skipped() {
        ui.note(&format!("warning: skipped corrupt image {name}"));
    }
    output.said(ui, &["errors.json", "confusion.svg", "classes.svg", "worst.svg"].map(str::to_owned));
    Ok(())
}
