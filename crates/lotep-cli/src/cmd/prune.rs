//! `lotep prune`.

use std::path::PathBuf;

use lotep::prune::{PruneOptions, Pruned, prune};
use lotep::{Result, bail, input_error};

use super::sweep::{Settings, trials_table};
use super::train::{MAX_SEED, one_line};
use crate::ui::{Ui, Watcher};

/// Learn E²VPT's prompts, prune them, and train what remains.
///
/// Masks over prompt tokens and their segments are learnt with the prompts. What matters least is pruned to several degrees,
/// each is trained anew from the same start, and the best on held-out training images is trained once more for every
/// seed, on all training images; then alone the test split is looked at. A pruning that was stopped goes on where it
/// was when the same command is given again.
#[derive(clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "\
Examples:
  lotep prune --set backbone=vit_base_patch16_224.augreg2_in21k_ft_in1k --set data=photos --output runs/pruned
  lotep prune --config e2vpt.toml --token-percentages 0,50,90 --segment-percentages 0,50 --halving 3 --output runs/pruned
  lotep prune --config e2vpt.toml --compat repo --output runs/as-published"
)]
pub(crate) struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Directory of the pruning: masks/, importance.json, degrees/, final/seed-N and result.json.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Percentages of the tokens to prune, each a degree to try; 0 is none [default: 10 to 90 by tens]
    #[arg(long, value_name = "PERCENT,…", value_delimiter = ',')]
    token_percentages: Option<Vec<usize>>,
    /// Percentages of each token's segments; every pair of the two is tried, and four segments stay [default: 10 to 90 by
    /// tens]
    #[arg(long, value_name = "PERCENT,…", value_delimiter = ',')]
    segment_percentages: Option<Vec<usize>>,
    /// What is meant where paper and published code differ: successive segments, magnitudes of gradients and the first
    /// start again; or interleaved segments, gradients with their signs and a new start each [default: paper]
    #[arg(long, value_parser = ["paper", "repo"])]
    compat: Option<String>,
    /// Successive halving: train all degrees for a part of their epochs, keep one of N, and so on.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=100))]
    halving: Option<u64>,
    /// Seeds of the final trainings [default: 42,44,82,100,800]
    #[arg(long, value_name = "SEED,…", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(..=MAX_SEED))]
    seeds: Option<Vec<u64>>,
    /// Train N degrees at a time, each on its share of the threads; fewer where there is no memory for that.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    jobs: u64,
}

/// What a recipe's `[prune]` says, the options of the same names winning over it.
#[derive(serde::Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct PruneTable {
    token_percentages: Option<Vec<usize>>,
    segment_percentages: Option<Vec<usize>>,
    compat: Option<Compat>,
    halving: Option<usize>,
    seeds: Option<Vec<u64>>,
}

/// Whose meaning is taken.
#[derive(serde::Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Compat {
    Paper,
    Repo,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let recipe = args.settings.recipe()?;
    let table = recipe.prune.clone().unwrap_or_default();
    let table: PruneTable = table
        .try_into()
        .map_err(|e: toml::de::Error| input_error!("--config: [prune]: {}", one_line(&e.to_string())))?;
    let mut settings = vec!["method=e2vpt".to_owned()];
    let compat =
        args.compat.as_deref().map(|given| if given == "repo" { Compat::Repo } else { Compat::Paper });
    let repo = compat.or(table.compat) == Some(Compat::Repo);
    if repo {
        settings.push("method.layout=tiled".into());
    }
    let candidates = args.settings.candidates(&recipe, &settings, None, 0)?;
    let [candidate] = candidates.as_slice() else {
        bail!("--set: prune takes one value of each setting; the degrees of pruning are what it tries");
    };
    let default = PruneOptions::default();
    let either = |given: &Option<Vec<usize>>, table, default| given.clone().or(table).unwrap_or(default);
    let options = PruneOptions {
        token_percentages: either(
            &args.token_percentages,
            table.token_percentages,
            default.token_percentages,
        ),
        segment_percentages: either(
            &args.segment_percentages,
            table.segment_percentages,
            default.segment_percentages,
        ),
        signed: repo,
        fresh: repo,
        halving: args.halving.map(|n| n as usize).or(table.halving),
        jobs: args.jobs as usize,
        seeds: args.seeds.clone().or(table.seeds).unwrap_or(default.seeds),
    };
    Ui::catch_signals();
    let pruned = prune(&candidate.config, &options, &args.output, &mut Watcher(ui));
    ui.clear();
    let pruned = pruned?;
    if ui.json() { ui.out_json(&pruned) } else { ui.out(&report(&pruned, args, &options.seeds)) }
}

fn report(pruned: &Pruned, args: &Args, seeds: &[u64]) -> String {
    let mut lines = trials_table(&pruned.trials);
    for (seed, run) in seeds.iter().zip(&pruned.runs) {
        if let Some(a) = run.train.test {
            let prompts = run.train.prompt_parameters;
            lines.push(format!(
                "seed {seed}: test top1 {:.2}% ({} images), {prompts} parameters in prompts",
                a.top1, a.images
            ));
        }
    }
    if let (Some(mean), Some(deviation)) = (pruned.mean, pruned.deviation) {
        lines.push(format!("test top1 {mean:.2} ± {deviation:.2}% over {} seeds", pruned.runs.len()));
    }
    lines.push(format!("adapters in {}", args.output.join("final/seed-*/adapter").display()));
    lines.join("\n")
}
