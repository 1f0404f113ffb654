//! `lotep datasets`.

use clap::builder::PossibleValuesParser;
use lotep::Result;
use lotep::data::Known;

use crate::ui::Ui;

/// List the data sets that are read in the form in which their authors publish them.
///
/// With a NAME: where to get that one, and what its directory looks like. `lotep inspect --dataset NAME --data-root DIR`
/// checks what is there.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lotep datasets
  lotep datasets dtd
  lotep train --dataset dtd --data-root downloads --backbone resnet18.tv_in1k --output runs/dtd")]
pub(crate) struct Args {
    /// Only this one, with all that is known of it.
    #[arg(value_parser = known_names(), hide_possible_values = true)]
    name: Option<String>,
}

/// The names that `--dataset` takes.
pub(crate) fn known_names() -> PossibleValuesParser {
    PossibleValuesParser::new(Known::all().map(|known| known.about().name))
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    if let Some(name) = &args.name {
        return one(name.parse()?, ui);
    }
    if ui.json() {
        return Known::all().try_for_each(|known| ui.out_json(known.about()));
    }
    ui.out(&format!(
        "{:<20} {:>7} {:>9} {:>7} {:>7}  what it is",
        "name", "classes", "train", "val", "test"
    ))?;
    Known::all().map(Known::about).try_for_each(|about| {
        let [train, val, test] = about.images.map(|n| if n == 0 { "-".to_owned() } else { n.to_string() });
        ui.out(&format!(
            "{:<20} {:>7} {train:>9} {val:>7} {test:>7}  {}",
            about.name, about.classes, about.title
        ))
    })
}

fn one(known: Known, ui: &Ui) -> Result<()> {
    let about = known.about();
    if ui.json() {
        return ui.out_json(about);
    }
    let [train, val, test] = about.images;
    ui.out(&format!("{}: {}", about.name, about.title))?;
    ui.out(&format!("images   {train} train, {val} val, {test} test; {} classes", about.classes))?;
    ui.out(&format!("from     {}", about.get))?;
    ui.out(&format!("holds    {}", about.holds))?;
    ui.out(&format!("looked for in --data (or --data-root), and there in {}", about.places().join(", ")))
}
