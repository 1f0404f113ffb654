//! `lotep sweep`.

use std::path::PathBuf;

use lotep::sweep::{Candidate, Chosen, Pace, Trial, sweep};
use lotep::{Result, bail, input_error};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use toml::{Table, Value};

use super::train::{MAX_SEED, one_line, settle, split, take_method};
use crate::ui::{Ui, Watcher};

/// More combinations than anyone would wait for: a slip in the ranges.
const MOST: usize = 10_000;

/// Try settings on held-out training images, and train the best to its end.
///
/// A setting with several values varies; all combinations are tried, or --trials of them. Each is judged by its best epoch
/// on images held out of the training split (val/ if there is one); the test split is looked at once, for the chosen
/// one. A sweep that was stopped goes on where it was when the same command is given again.
#[derive(clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "\
Examples:
  lotep sweep --set backbone=resnet18.tv_in1k --set data=photos --set prompt_lr=0.005,0.02,0.05 --output runs/rates
  lotep sweep --config runs/photos/config.toml --set method=lotep-tk,lor-vp,linear-probe --output runs/methods
  lotep sweep --config recipes/vpt-grid.toml --set backbone=vit_base_patch16_224.augreg_in21k --set data=photos \\
              --jobs 2 --output runs/vpt"
)]
pub(crate) struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Directory of the sweep: trials/NNN, trials.json and result.json.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Try so many of the combinations, drawn at random, not all.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MOST as u64))]
    trials: Option<u64>,
    /// Seed of that draw; the runs' own is the setting `seed`.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=MAX_SEED))]
    draw_seed: u64,
    /// Successive halving: train all for a part of their epochs, keep one of N, and so on up to the last.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=100))]
    halving: Option<u64>,
    /// Run N trials at a time, each on its share of the threads; fewer where there is no memory for that. What comes of them
    /// is the same.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    jobs: u64,
    /// Say what would be tried, and try nothing.
    #[arg(long)]
    list: bool,
}

/// Settings from a file and from the command line.
#[derive(clap::Args)]
pub(crate) struct Settings {
    /// A TOML file of settings, such as a run's config.toml or one of recipes/; --set wins over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A setting as in config.toml, one value for all trials or several with commas between; the method's own begin with
    /// `method.`, and `method` itself is its name. Settings that take the same values together: `lr+prompt_lr=0.1,1`; a
    /// list as one value: `method.targets=q+v,fc1`.
    #[arg(long = "set", value_name = "KEY=VALUE,…")]
    set: Vec<String>,
}

/// Settings that decide which images are held out.
const FIXED: [&str; 11] = [
    "data",
    "dataset",
    "join_val",
    "subset",
    "shots",
    "class_split",
    "seed",
    "val_fraction",
    "test_fraction",
    "select",
    "test_every_epoch",
];
/// Settings that are lists of words or numbers, whose items may have a plus between.
const LISTS: [&str; 2] = ["method.targets", "method.pruned_tokens"];

/// A setting's key and values, as they were given.
type Axis = (String, Vec<String>);

/// A file's `[sweep]`: what varies, and how much of it is tried.
#[derive(serde::Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct SweepTable {
    /// Values of each setting, as --set has them.
    set: Table,
    halving: Option<u64>,
    trials: Option<u64>,
}

/// A file's settings, its `[sweep]` and its `[prune]`.
#[derive(Default)]
pub(crate) struct Recipe {
    file: Table,
    method: Table,
    sweep: SweepTable,
    pub(crate) prune: Option<Table>,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let recipe = args.settings.recipe()?;
    if recipe.prune.is_some() {
        bail!("--config is a recipe for `lotep prune`: it has a table [prune]");
    }
    let trials = args.trials.or(recipe.sweep.trials);
    let candidates = args.settings.candidates(&recipe, &[], trials, args.draw_seed)?;
    if args.list {
        return candidates.iter().try_for_each(|candidate| {
            if ui.json() { ui.out_json(&candidate.config) } else { ui.out(&candidate.settings) }
        });
    }
    let Some(output) = &args.output else { bail!("--output is missing: a directory for the sweep") };
    let halving = args.halving.or(recipe.sweep.halving).map(|n| n as usize);
    let pace = Pace { halving, jobs: args.jobs as usize };
    ui.note(&format!("{} settings to try", candidates.len()));
    Ui::catch_signals();
    let chosen = sweep(&candidates, output, pace, &mut Watcher(ui));
    ui.clear();
    let chosen = chosen?;
    if ui.json() { ui.out_json(&chosen) } else { ui.out(&table(&chosen)) }
}

impl Settings {
    /// What --config holds.
    pub(crate) fn recipe(&self) -> Result<Recipe> {
        let Some(path) = &self.config else { return Ok(Recipe::default()) };
        let mut file = super::train::parse(path)?;
        let mut take = |key: &str| match file.remove(key) {
            None => Ok(None),
            Some(Value::Table(table)) => Ok(Some(table)),
            Some(_) => bail!("{}: `{key}` is no table; [{key}] is expected", path.display()),
        };
        let (sweep, prune) = (take("sweep")?, take("prune")?);
        let sweep = sweep.unwrap_or_default().try_into().map_err(|e: toml::de::Error| {
            input_error!("{}: [sweep]: {}", path.display(), one_line(&e.to_string()))
        })?;
        let (file, method) = split(path, file)?;
        Ok(Recipe { file, method, sweep, prune })
    }

    /// All combinations of the values given, and `more`; or `trials` of them.
    pub(crate) fn candidates(
        &self,
        recipe: &Recipe,
        more: &[String],
        trials: Option<u64>,
        draw_seed: u64,
    ) -> Result<Vec<Candidate>> {
        let Recipe { file, method, sweep, .. } = recipe;
        let given = self.set.iter().chain(more);
        let given = given.map(|text| axis(text)).collect::<Result<Vec<_>>>()?;
        let overruled =
            |key: &str| tied(key).any(|key| given.iter().any(|(own, _)| tied(own).any(|k| k == key)));
        let own: Vec<&str> = given.iter().flat_map(|(keys, _)| tied(keys)).collect();
        for keys in sweep.set.keys().filter(|keys| overruled(keys)) {
            if let Some(left) = tied(keys).find(|key| !own.contains(key)) {
                bail!(
                    "--config varies {keys} together: with another of these --set {left} is needed as well"
                );
            }
        }
        let recipes = sweep.set.iter().filter(|(key, _)| !overruled(key));
        let mut axes = recipes.map(|(key, values)| written(key, values)).collect::<Result<Vec<_>>>()?;
        axes.extend(given.iter().cloned());
        let many = |axis: &&Axis| axis.1.len() > 1;
        let count = axes.iter().try_fold(1_usize, |n, (_, values)| n.checked_mul(values.len()));
        let count = count.filter(|n| *n <= MOST);
        let Some(count) = count else { bail!("--set: more than {MOST} combinations") };
        let keys: Vec<&str> = axes.iter().flat_map(|a| tied(&a.0)).collect();
        if let Some((_, key)) = keys.iter().enumerate().find(|(i, key)| keys[..*i].contains(key)) {
            bail!("--set {key} is given twice: put its values together, with commas between");
        }
        let mut numbers: Vec<usize> = (0..count).collect();
        if let Some(trials) = trials {
            numbers.shuffle(&mut ChaCha8Rng::seed_from_u64(draw_seed));
            numbers.truncate(trials as usize);
            numbers.sort_unstable();
        }
        let varied = axes.iter().filter(many).flat_map(|a| tied(&a.0));
        if let Some(key) = varied.into_iter().find(|key| FIXED.contains(key)) {
            bail!("--set {key} can't vary: trials are compared on the same held-out images");
        }
        let candidate = |number: usize| -> Result<Candidate> {
            let (mut file, mut method) = (file.clone(), method.clone());
            // The last axis varies fastest.
            let mut rest = number;
            let mut point: Vec<(&str, &str)> = Vec::new();
            for (key, values) in axes.iter().rev() {
                point.push((key, &values[rest % values.len()]));
                rest /= values.len();
            }
            point.reverse();
            // A method leaves another one's settings behind, so it comes before its own.
            for (_, name) in point.iter().filter(|(key, _)| *key == "method") {
                take_method(name, &mut file, &mut method);
            }
            let each = point.iter().flat_map(|(keys, value)| tied(keys).map(move |key| (key, *value)));
            for (key, value) in each.filter(|(key, _)| *key != "method") {
                let value = read_value(key, value);
                match key.strip_prefix("method.") {
                    Some(key) => method.insert(key.to_owned(), value),
                    None => file.insert(key.to_owned(), value),
                };
            }
            for key in ["backbone", "data"] {
                if !file.contains_key(key) {
                    bail!("`{key}` is missing: give it as --set {key}=… or in --config");
                }
            }
            let varied = point.iter().filter(|(key, _)| axes.iter().filter(many).any(|a| a.0 == *key));
            let settings: Vec<String> = varied.map(|(key, value)| format!("{key}={value}")).collect();
            let settings = if settings.is_empty() { "as given".to_owned() } else { settings.join(" ") };
            let own = method.keys().map(|key| format!("method.{key}"));
            let given = file.keys().cloned().chain(own).collect();
            let config = settle(file, method).map_err(|e| input_error!("{settings}: {e}"))?;
            Ok(Candidate { settings, config, given })
        };
        numbers.into_iter().map(candidate).collect()
    }
}

/// A recipe's values of a setting, as they would be given on the command line.
fn written(key: &str, values: &Value) -> Result<Axis> {
    let Value::Array(values) = values else {
        bail!("[sweep.set]: `{key}` is {values}; a list of values is expected");
    };
    let text = |value: &Value| match value {
        // A word needs no quotes where it would not be read as something else without.
        Value::String(word) if read_value(key, word).as_str() == Some(word) => word.clone(),
        other => other.to_string(),
    };
    let keys: Vec<&str> = tied(key).collect();
    if values.is_empty() || keys.contains(&"") || keys.len() > 1 && keys.contains(&"method") {
        bail!(
            "[sweep.set]: `{key}` = {values:?}: a setting with values is expected, the method's name by itself"
        );
    }
    Ok((key.to_owned(), values.iter().map(text).collect()))
}

/// Settings that vary together have a plus between their keys.
fn tied(keys: &str) -> impl Iterator<Item = &str> {
    keys.split('+')
}

fn axis(text: &str) -> Result<Axis> {
    let Some((key, values)) = text.split_once('=') else {
        bail!("--set {text}: KEY=VALUE is expected, or KEY=VALUE,VALUE,…");
    };
    let mut depth = 0_usize;
    // A list's own commas part nothing.
    let parts = values.split(|c| {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    });
    let values: Vec<String> = parts.map(|v| v.trim().to_owned()).collect();
    let keys: Vec<&str> = tied(key.trim()).collect();
    if keys.len() > 1 && keys.contains(&"method") {
        bail!("--set {text}: the method's name varies alone");
    }
    if keys.contains(&"") || values.iter().any(String::is_empty) {
        bail!("--set {text}: KEY=VALUE is expected, or KEY=VALUE,VALUE,…");
    }
    Ok((key.trim().to_owned(), values))
}

/// A value as TOML would read it, and else as text; of a setting that is a list, words with a plus between are its items.
fn read_value(key: &str, value: &str) -> Value {
    if LISTS.contains(&key) && !value.starts_with('[') {
        return Value::Array(value.split('+').map(|item| scalar(item.trim())).collect());
    }
    scalar(value)
}

fn scalar(value: &str) -> Value {
    let line = format!("v = {value}");
    let read = line.parse::<Table>().ok().and_then(|mut table| table.remove("v"));
    read.unwrap_or_else(|| Value::String(value.to_owned()))
}

/// A line a trial, best first.
pub(crate) fn trials_table(trials: &[Trial]) -> Vec<String> {
    let mut lines = vec![format!("{:>7} {:>6} {:>9}  settings", "val", "epoch", "of epochs")];
    for t in trials {
        let (val, epoch) = match t.last().filter(|_| t.diverged().is_none()).and_then(|round| round.best) {
            Some(best) => (format!("{:.2}%", best.top1), best.epoch.to_string()),
            None => ("failed".to_owned(), "-".to_owned()),
        };
        lines.push(format!("{val:>7} {epoch:>6} {:>9}  {}", t.last().map_or(0, |r| r.epochs), t.settings));
    }
    lines
}

fn table(chosen: &Chosen) -> String {
    let mut lines = trials_table(&chosen.trials);
    let train = &chosen.outcome.train;
    if let Some(a) = train.test {
        lines.push(format!("chosen on held-out images; its test top1 {:.2}% ({} images)", a.top1, a.images));
    }
    lines.push(format!("adapter in {}", chosen.run.join("adapter").display()));
    lines.join("\n")
}
