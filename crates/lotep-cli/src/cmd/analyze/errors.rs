//! `lotep analyze errors`.

use std::path::PathBuf;
use std::sync::Arc;

use lotep::analysis::errors::errors;
use lotep::data::{Known, Loader, Split, open};
use lotep::plot::{Bar, bars};
use lotep::{Result, bail};

use super::Output;
use crate::cmd::eval::align;
use crate::cmd::model::{ModelArgs, ReadArgs};
use crate::ui::Ui;

/// Show what goes wrong: the confusion matrix, accuracy class by class, and the surest mistakes as a contact sheet.
///
/// Writes errors.json, confusion.svg, classes.svg and worst.svg.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Images: train/CLASS/*, test/CLASS/*, or CLASS/*.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Read the original download of a known data set.
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// Which part of the data.
    #[arg(long, default_value = "test", value_parser = ["train", "val", "test", "all"])]
    split: String,
    /// Share of the images that is the test split when there is no test/, as for `train`.
    #[arg(long, value_name = "SHARE", default_value_t = 0.2)]
    test_fraction: f64,
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
    let known = args.dataset.as_deref().map(str::parse::<Known>).transpose()?;
    let split: Split = args.split.parse()?;
    if !(0.0..=0.9).contains(&args.test_fraction) {
        bail!("test-fraction is {}; 0 to 0.9 is expected", args.test_fraction);
    }
    let mut splits = open(&args.data, known)?;
    if split != Split::All {
        splits.hold_out_test(args.test_fraction);
    }
    let data = splits.get(split)?;
    let model = args.model.load(ui)?;
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
            args.split, a.top1, a.top5, a.images
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
