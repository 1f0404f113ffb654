//! `lotep analyze rank`.

use std::path::PathBuf;

use lotep::analysis::rank::{PromptRank, Ranks, ranks};
use lotep::plot::{Chart, Point, Series, chart};
use lotep::{Result, bail};

use super::{AdapterArgs, Output};
use crate::ui::Ui;

/// Measure the channel rank of learnt prompts by layer, against the bound for naive ones (LoTeP's Proposition 1).
///
/// A prompt [C, H, W] is read as a matrix C × H·W. Writes rank.json with the singular values, rank.svg and spectrum.svg.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    adapter: AdapterArgs,
    /// Singular values below this share of the largest count as zero.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    tolerance: f64,
    /// Directory of the results.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    if !(args.tolerance > 0.0 && args.tolerance < 1.0) {
        bail!("tolerance is {}; above 0 and below 1 is expected", args.tolerance);
    }
    let (loaded, adapter) = args.adapter.load(ui)?;
    let found = ranks(&loaded, &adapter, args.tolerance)?;
    let output = Output(&args.output);
    output.json("rank.json", &found)?;
    output.write("rank.svg", by_layer(&found))?;
    output.write("spectrum.svg", spectrum(&found))?;
    if ui.json() {
        ui.out_json(&found)?;
    } else {
        let r = found.kernel_rank.map_or("none".to_owned(), |r| r.to_string());
        ui.out(&format!("{} on {}: tolerance {}, r = {r}", found.method, found.backbone, found.tolerance))?;
        ui.out(&format!(
            "{:<20} {:>14} {:>6} {:>10} {:>7}",
            "prompt", "C x HW", "rank", "effective", "bound"
        ))?;
        for p in &found.prompts {
            let size = format!("{} x {}", p.shape[0], p.shape[1] * p.shape[2]);
            let bound = match p.bound {
                Some(bound) if p.binding() => bound.to_string(),
                Some(bound) => format!("{bound} (no limit here: {} at most)", p.most()),
                None => "-".to_owned(),
            };
            ui.out(&format!(
                "{:<20} {size:>14} {:>6} {:>10.1} {bound:>7}",
                p.place, p.rank, p.effective_rank
            ))?;
        }
    }
    output.said(ui, &["rank.json", "rank.svg", "spectrum.svg"].map(str::to_owned));
    Ok(())
}

fn by_layer(found: &Ranks) -> String {
    let series = |name: &str, paper: bool, value: &dyn Fn(usize) -> f64| Series {
        name: name.into(),
        points: (0..found.prompts.len())
            .map(|i| Point { x: i as f64, y: value(i), deviation: None })
            .collect(),
        line: true,
        paper,
        colour: None,
    };
    let of = |i: usize| &found.prompts[i];
    let mut all = vec![
        series("rank", false, &|i| of(i).rank as f64),
        series("effective rank", false, &|i| of(i).effective_rank),
        series("highest possible", false, &|i| of(i).most() as f64),
    ];
    if found.prompts.iter().any(PromptRank::binding) {
        // A bound beyond what is possible says nothing.
        let bound = |i: usize| of(i).bound.filter(|_| of(i).binding()).map_or(f64::NAN, |b| b as f64);
        all.push(series("Proposition 1's bound, where lower", true, &bound));
    }
    chart(&Chart {
        title: format!("Channel rank of {}'s prompts", found.method),
        x: "prompt".into(),
        y: "rank".into(),
        places: found.prompts.iter().map(|p| p.place.clone()).collect(),
        log_x: false,
        series: all,
    })
}

fn spectrum(found: &Ranks) -> String {
    let series = found.prompts.iter().map(|p| {
        let most = p.spectrum.first().copied().unwrap_or(0.0).max(f64::MIN_POSITIVE);
        // What f32 can't tell from zero is left out.
        let shown = p.spectrum.iter().map(|s| s / most).take_while(|share| *share > 1e-6).enumerate();
        let point = |(i, share): (usize, f64)| Point { x: (i + 1) as f64, y: share.log10(), deviation: None };
        Series { name: p.place.clone(), points: shown.map(point).collect(), line: true, ..Series::default() }
    });
    chart(&Chart {
        title: "Singular values, as shares of each prompt's largest".into(),
        x: "which".into(),
        y: "log10 of the share".into(),
        places: Vec::new(),
        log_x: true,
        series: series.collect(),
    })
}
