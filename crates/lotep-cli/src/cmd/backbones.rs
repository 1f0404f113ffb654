//! `lotep backbones`.

use lotep::Result;
use lotep::backbone::{ModelConfig, PUBLISHED, Published};
use serde::Serialize;

use crate::ui::Ui;

/// List the networks that lotep knows by timm's names.
///
/// Name and tag, as NAME.TAG, are what --backbone downloads. A size is of the published checkpoint's body, without its
/// classifier. Other shapes of the same families load from a directory whose config.json gives timm's model_args, or
/// with --arch.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lotep backbones
  lotep backbones swin
  lotep bench train --backbone convnext_tiny --random-weights")]
pub(crate) struct Args {
    /// Only those whose name contains this.
    name: Option<String>,
}

#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    published: Published,
    blocks: usize,
    parameters_without_head: usize,
    features: usize,
    image: [usize; 2],
    depth_ratio: f64,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let wanted = |p: &&Published| args.name.as_ref().is_none_or(|name| p.name.contains(name.as_str()));
    let lines = PUBLISHED.iter().filter(wanted).map(|published| -> Result<Line> {
        let config = ModelConfig::named(published.name, published.classes)?;
        let [blocks, parameters_without_head] = config.architecture.size();
        Ok(Line {
            published: *published,
            blocks,
            parameters_without_head,
            features: config.architecture.feature_width(),
            image: config.preprocess.image,
            depth_ratio: config.architecture.default_depth_ratio(),
        })
    });
    let lines: Vec<_> = lines.collect::<Result<_>>()?;
    if lines.is_empty() {
        lotep::bail!(
            "no known name contains `{}`: `lotep backbones` lists all",
            args.name.as_deref().unwrap_or("")
        );
    }
    if ui.json() {
        return lines.iter().try_for_each(|line| ui.out_json(line));
    }
    ui.out(&format!(
        "{:<38} {:<22} {:>7} {:>9} {:>6} {:>8} {:>5} {:>11}",
        "name", "tag", "classes", "body", "blocks", "features", "image", "depth ratio"
    ))?;
    for l in &lines {
        ui.out(&format!(
            "{:<38} {:<22} {:>7} {:>8.2}M {:>6} {:>8} {:>5} {:>11}",
            l.published.name,
            l.published.tag,
            l.published.classes,
            l.parameters_without_head as f64 / 1e6,
            l.blocks,
            l.features,
            l.image[0],
            l.depth_ratio
        ))?;
    }
    Ok(())
}
