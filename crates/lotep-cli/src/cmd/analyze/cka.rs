//! `lotep analyze cka`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lotep::analysis::Watched;
use lotep::analysis::cka::{Cka, Comparison};
use lotep::data::{Epoch, Loader};
use lotep::model::pixels;
use lotep::plot::{Chart, Heat, Point, Series, chart, heat};
use lotep::{Error, Result, bail};

use super::{Output, file_part};
use crate::cmd::labelled::ImagesArgs;
use crate::cmd::model::{Model, ModelArgs, ReadArgs};
use crate::ui::Ui;

/// Compare what the blocks of two networks put out, by linear centred kernel alignment over minibatches (unbiased).
///
/// Writes cka.json, for each comparison a heat map of all blocks against all, and blocks.svg with a curve each, block against
/// block. All networks see the same images, drawn by --seed.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What to compare with: an adapter's directory or a run's, a backbone, or `base`, which is the frozen network that is
    /// adapted. May be given several times; NAME=DIR gives it a name in the results.
    #[arg(long, value_name = "DIR|NAME", default_value = "base")]
    against: Vec<String>,
    #[command(flatten)]
    data: ImagesArgs,
    /// How many of the images, drawn at random.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(4..))]
    images: u64,
    /// Seed of that draw and of their order.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What the results call the first network.
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
    /// Directory of the results.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    read: ReadArgs,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    if args.read.batch_size < 4 {
        bail!(
            "batch-size is {}: CKA's unbiased estimator needs four images a batch at least",
            args.read.batch_size
        );
    }
    if args.read.on_corrupt != "fail" {
        bail!("on-corrupt skip: networks can only be compared on the same images");
    }
    let data = Arc::new(args.data.open()?);
    let first = args.model.load(ui)?;
    let name = args.label.clone().unwrap_or_else(|| label(&args.model));
    let against: Vec<(&str, &str)> = args.against.iter().map(|text| named(text)).collect();
    let mut networks = vec![watched(&first)?];
    for (_, place) in &against {
        let model = if *place == "base" {
            Model { loaded: first.loaded.clone(), adapter: None, named: None }
        } else {
            other(place, &args.model).load(ui)?
        };
        networks.push(watched(&model)?);
    }
    let size = args.read.batch_size as usize;
    let mut loaders = Vec::new();
    for network in &networks {
        loaders.push(Loader::new(data.clone(), args.read.loader(network.transform.clone())?));
    }
    let mut order = loaders[0].shuffled(args.seed, 0);
    order.truncate((args.images as usize).min(order.len()));
    let batches = order.len() / size;
    if batches == 0 {
        bail!("{} images are fewer than a batch of {size}: a smaller --batch-size is expected", order.len());
    }
    order.truncate(batches * size);
    let mut epochs: Vec<Epoch> = loaders.iter().map(|loader| loader.epoch(order.clone())).collect();
    let mut sums = vec![Cka::default(); against.len()];
    Ui::catch_signals();
    ui.begin("cka", batches * size, 0);
    for batch in 0..batches {
        let mut grams = Vec::with_capacity(networks.len());
        for (network, epoch) in networks.iter().zip(&mut epochs) {
            let Some(images) = epoch.next() else { bail!("{} ended early", args.data.data.display()) };
            grams.push(network.grams(pixels(images?, &network.transform, network.device()))?);
        }
        for (sum, other) in sums.iter_mut().zip(&grams[1..]) {
            sum.add(&grams[0], other);
        }
        if !ui.advance((batch + 1) * size, None) {
            ui.clear();
            return Err(Error::Interrupted("the comparison was stopped: nothing was written".into()));
        }
    }
    ui.clear();
    let compare = |((sum, (against, _)), network): ((&Cka, &(&str, &str)), &Watched)| Comparison {
        name: name.clone(),
        against: (*against).to_owned(),
        blocks: networks[0].blocks.clone(),
        against_blocks: network.blocks.clone(),
        cka: sum.matrix(),
        batch_size: size,
        batches: sum.batches(),
    };
    let found: Vec<Comparison> = sums.iter().zip(&against).zip(&networks[1..]).map(compare).collect();
    write(&found, &Output(&args.output), ui)
}

fn watched(model: &Model) -> Result<Watched> {
    Watched::new(&model.loaded, model.adapter.as_ref())
}

/// A network's name in the results, and its place.
fn named(text: &str) -> (&str, &str) {
    // What exists is a place, whatever its name; names may have the sign as well.
    if Path::new(text).exists() {
        return (text, text);
    }
    let parts = || text.match_indices('=').map(|(i, _)| (&text[..i], &text[i + 1..]));
    let there = parts().find(|(_, place)| Path::new(place).exists());
    there.or_else(|| parts().next_back()).unwrap_or((text, text))
}

/// What is compared, as the user called it.
fn label(model: &ModelArgs) -> String {
    let adapter = model.adapter.as_ref().map(|dir| dir.display().to_string());
    adapter.or(model.backbone.clone()).unwrap_or_default()
}

/// The network that a user calls so: an adapter, a run with one, or a backbone.
fn other(name: &str, first: &ModelArgs) -> ModelArgs {
    let path = Path::new(name);
    let adapter = [path.to_path_buf(), path.join("adapter")];
    let adapter = adapter.into_iter().find(|dir| dir.join("adapter_config.json").is_file());
    ModelArgs {
        // An adapter knows its own.
        backbone: if adapter.is_some() { first.backbone.clone() } else { Some(name.to_owned()) },
        arch: first.arch.clone(),
        adapter,
        device: first.device.clone(),
        precision: first.precision.clone(),
    }
}

fn write(found: &[Comparison], output: &Output<'_>, ui: &Ui) -> Result<()> {
    output.json("cka.json", &found)?;
    let mut files = vec!["cka.json".to_owned(), "blocks.svg".to_owned()];
    let mut series = Vec::new();
    for (i, c) in found.iter().enumerate() {
        let number = |v: &Option<f64>| v.unwrap_or(f64::NAN);
        let picture = heat(&Heat {
            title: format!("CKA with {}", c.against),
            x: (c.against.clone(), c.against_blocks.clone()),
            y: (c.name.clone(), c.blocks.clone()),
            values: c.cka.iter().flatten().map(number).collect(),
            range: [0.0, 1.0],
        })?;
        let name = format!("heat-{}-{}.svg", i + 1, file_part(&c.against));
        output.write(&name, picture)?;
        files.push(name);
        if let Some(diagonal) = c.diagonal() {
            let point = |(l, v): (usize, &Option<f64>)| Point { x: l as f64, y: number(v), deviation: None };
            let points = diagonal.iter().enumerate().map(point).collect();
            series.push(Series {
                name: format!("with {}", c.against),
                points,
                line: true,
                ..Series::default()
            });
        }
        if ui.json() {
            ui.out_json(c)?;
        } else {
            ui.out(&format!(
                "{} against {}, {} minibatches of {}",
                c.name, c.against, c.batches, c.batch_size
            ))?;
            let shown = c.diagonal().unwrap_or_default();
            for (block, v) in c.blocks.iter().zip(&shown) {
                let v = v.map_or("undefined".to_owned(), |v| format!("{v:.4}"));
                ui.out(&format!("  {block:<20} {v}"))?;
            }
        }
    }
    output.write(
        "blocks.svg",
        chart(&Chart {
            title: "CKA, block against block".into(),
            x: "block".into(),
            y: "linear CKA".into(),
            places: found.first().map(|c| c.blocks.clone()).unwrap_or_default(),
            log_x: false,
            series,
        }),
    )?;
    output.said(ui, &files);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_places_are_told_apart() {
        let here = tempfile::tempdir().unwrap();
        let here = here.path().display().to_string();
        assert_eq!(named(&format!("probe={here}")), ("probe", &*here));
        assert_eq!(named(&format!("r=2, a=4={here}")), ("r=2, a=4", &*here));
        assert_eq!(named("r=2=base"), ("r=2", "base"));
        assert_eq!(named(&here), (&*here, &*here));
        assert_eq!(named("base"), ("base", "base"));
    }
}
