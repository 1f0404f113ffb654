//! `lotep analyze prompt`.

use std::path::PathBuf;

use lotep::Result;
use lotep::analysis::prompts::pictures;
use lotep::plot::{Bar, bars};
use serde_json::json;

use super::{AdapterArgs, Output, file_part};
use crate::ui::Ui;

/// Show learnt prompts: the image's as a picture, how strong each one is by layer, and where in each layer.
///
/// Writes prompt.json, energy.svg, image.png (grey is zero, the largest magnitude white or black; of vpt-below one picture
/// for each of its channels) and a map for each prompted block. Of a LoRA it is what is added to weights that is weighed.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    adapter: AdapterArgs,
    /// Directory of the results.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let (loaded, adapter) = args.adapter.load(ui)?;
    let found = pictures(&loaded, &adapter)?;
    let output = Output(&args.output);
    let mut files = vec!["prompt.json".to_owned(), "energy.svg".to_owned()];
    let facts = json!({
        "method": adapter.config.method, "backbone": adapter.config.backbone, "prompts": found.energies,
    });
    output.json("prompt.json", &facts)?;
    let bar =
        |e: &lotep::analysis::prompts::Energy| Bar { name: e.place.clone(), value: e.rms, ..Bar::default() };
    let items: Vec<Bar> = found.energies.iter().map(bar).collect();
    let title = format!("{} on {}", adapter.config.method.name(), adapter.config.backbone.name);
    output.write("energy.svg", bars(&title, "root mean square", &items, true))?;
    for (name, png) in &found.images {
        let name = format!("{name}.png");
        output.write(&name, png)?;
        files.push(name);
    }
    for (block, svg) in &found.maps {
        let name = format!("block-{}.svg", file_part(block));
        output.write(&name, svg)?;
        files.push(name);
    }
    if ui.json() {
        ui.out_json(&facts)?;
    } else {
        ui.out(&format!("{:<28} {:>18} {:>12} {:>12} {:>12}", "prompt", "shape", "energy", "rms", "max"))?;
        for e in &found.energies {
            let shape = format!("{:?}", e.shape);
            ui.out(&format!(
                "{:<28} {shape:>18} {:>12.4e} {:>12.4e} {:>12.4e}",
                e.place, e.energy, e.rms, e.max
            ))?;
        }
    }
    output.said(ui, &files);
    Ok(())
}
