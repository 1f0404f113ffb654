//! `lotep analyze efficiency`.

use std::path::PathBuf;

use lotep::analysis::efficiency::{Cost, Finished, finished};
use lotep::backbone::{LoadOptions, load};
use lotep::bench::{BenchOptions, infer};
use lotep::plot::{Chart, Point, Series, chart};
use lotep::{Result, device};

use super::Output;
use crate::ui::{Ui, Watcher};

/// Say what adapting cost: epochs, time, parameters, peak memory, latency, accuracy (LoTeP's table 4).
///
/// All but the latency are in the runs' result files; that is measured here, all methods on a backbone taking turns.
/// Writes efficiency.json, efficiency.md and cost.svg.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directories of finished runs.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Images a prediction, for the latency.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=65536))]
    batch_size: u64,
    /// Counted predictions of each method; the median is reported. 0 measures no latency.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    steps: u64,
    /// Where latency is measured: auto, cpu, cuda, cuda:N or wgpu.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Directory of the results.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let runs = args.runs.iter().map(|dir| finished(dir)).collect::<Result<Vec<_>>>()?;
    let mut costs: Vec<Cost> = runs.iter().map(Cost::from).collect();
    if args.steps > 0 {
        Ui::catch_signals();
        latencies(args, &runs, &mut costs, ui)?;
    }
    let output = Output(&args.output);
    output.json("efficiency.json", &costs)?;
    let lines = table(&costs);
    output.write("efficiency.md", lines.join("\n") + "\n")?;
    output.write("cost.svg", picture(&costs))?;
    if ui.json() {
        costs.iter().try_for_each(|cost| ui.out_json(cost))?;
    } else {
        lines.iter().try_for_each(|line| ui.out(line))?;
    }
    output.said(ui, &["efficiency.json", "efficiency.md", "cost.svg"].map(str::to_owned));
    Ok(())
}

/// Measure predictions, all runs on one network together.
fn latencies(args: &Args, runs: &[Finished], costs: &mut [Cost], ui: &Ui) -> Result<()> {
    let config = |i: usize| &runs[i].outcome.run.config;
    let place = |i: usize| {
        let c = config(i);
        (&c.backbone, &c.arch, c.image_size, c.random_weights, c.precision, runs[i].outcome.run.classes.len())
    };
    let mut left: Vec<usize> = (0..runs.len()).collect();
    while let Some(&first) = left.first() {
        let (together, rest): (Vec<usize>, Vec<usize>) =
            left.into_iter().partition(|i| place(*i) == place(first));
        left = rest;
        let c = config(first);
        let options = LoadOptions {
            backbone: c.backbone.clone(),
            arch: c.arch.clone(),
            random_weights: c.random_weights,
            image: c.image_size.map(|side| [side; 2]),
            device: device::open(&args.device)?,
            precision: c.precision,
            recompute: false,
        };
        let loaded = load(&options, &mut Watcher(ui))?;
        let bench = BenchOptions {
            methods: together.iter().map(|i| Some(config(*i).method.clone())).collect(),
            batch_size: args.batch_size as usize,
            classes: runs[first].outcome.run.classes.len(),
            steps: args.steps as usize,
            warmup: 3,
        };
        ui.begin("latency", (bench.steps + bench.warmup) * bench.methods.len(), 0);
        let reports = infer(&loaded, &bench, |done| ui.advance(done, None));
        ui.clear();
        for (i, report) in together.iter().zip(reports?) {
            costs[*i].latency_ms = Some(report.step_ms);
        }
    }
    Ok(())
}

/// Markdown, a row a run.
fn table(costs: &[Cost]) -> Vec<String> {
    let mut lines = vec![
        "| backbone | method | epochs | batch | training s | parameters | in prompts | peak MB | latency ms | test top-1 % |"
            .to_owned(),
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|".to_owned(),
    ];
    let number = |v: Option<f64>, digits: usize| v.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
    for c in costs {
        lines.push(format!(
            "| {} | {} | {} | {} | {:.1} | {} | {} | {} | {} | {} |",
            c.backbone.replace('|', "\\|"),
            c.method,
            c.epochs,
            c.batch_size,
            c.seconds,
            c.parameters,
            c.prompt_parameters,
            number(c.peak_rss_mb, 0),
            number(c.latency_ms, 2),
            number(c.top1, 2)
        ));
    }
    lines
}

fn picture(costs: &[Cost]) -> String {
    let series = costs.iter().map(|c| Series {
        name: format!("{} on {}", c.method, c.backbone),
        points: vec![Point { x: c.parameters as f64, y: c.top1.unwrap_or(f64::NAN), deviation: None }],
        ..Series::default()
    });
    chart(&Chart {
        title: "Accuracy for what is learnt".into(),
        x: "trainable parameters".into(),
        y: "test top-1, %".into(),
        places: Vec::new(),
        log_x: true,
        series: series.collect(),
    })
}
