//! `lotep experiment run`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lotep::analysis::cka::Comparison;
use lotep::experiment::{
    Ended, Job, Program, Recipe, Record, Run, Scale, State, begin, expand, join, run_jobs, state,
};
use lotep::train::TrainConfig;
use lotep::{Error, Result, bail, claim, input_error, write_atomic};
use serde_json::json;

use super::check::{config, present, states};
use super::live::Live;
use crate::cmd::train::MAX_SEED;
use crate::ui::Ui;

/// Run what a recipe says, each run as a process of its own; what is done already is skipped, what was begun goes on.
///
/// A directory may be given more runs by another command: other --seeds, another --only, or methods, models, data sets and
/// values that the recipe has got since. Tables show all that is there.
#[derive(clap::Args)]
#[command(allow_negative_numbers = true)]
pub(crate) struct Args {
    /// The recipe.
    #[arg(value_name = "RECIPE")]
    recipe: PathBuf,
    /// Directory of the experiment: experiment.json, runs/, configs/, logs/ and cka/.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Where the recipe's data sets are.
    #[arg(long, value_name = "DIR", default_value = "data")]
    data_root: PathBuf,
    /// Runs at once. The kernels use all cores, so times are those of one run only with 1.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    jobs: u64,
    /// Say what would be run, and what of it is done.
    #[arg(long)]
    dry_run: bool,

    /// Passes over the training images, in the place of the recipe's.
    #[arg(long, help_heading = "Less than the whole recipe", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    epochs: Option<u64>,
    /// Images a step.
    #[arg(long, help_heading = "Less than the whole recipe", value_parser = clap::value_parser!(u64).range(1..=65536))]
    batch_size: Option<u64>,
    /// Train on a stratified sample of about N images.
    #[arg(long, value_name = "N", help_heading = "Less than the whole recipe", value_parser = clap::value_parser!(u64).range(1..))]
    subset: Option<u64>,
    /// Seeds.
    #[arg(long, value_name = "SEED,…", value_delimiter = ',', help_heading = "Less than the whole recipe",
          value_parser = clap::value_parser!(u64).range(..=MAX_SEED))]
    seeds: Vec<u64>,
    /// Leave the others out: model=NAME, data=NAME, method=NAME or, of sets to test on, to=NAME, as the recipe calls them. May be
    /// given several times.
    #[arg(long, value_name = "AXIS=NAME", help_heading = "Less than the whole recipe")]
    only: Vec<String>,
    /// Another setting of all runs, as in config.toml; a method's own begin with `method.`.
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Less than the whole recipe")]
    set: Vec<String>,
    /// Take a model of the recipe from another place.
    #[arg(long, value_name = "NAME=PATH", help_heading = "Less than the whole recipe")]
    model: Vec<String>,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let recipe = Recipe::read(&args.recipe)?;
    let scale = Scale {
        epochs: args.epochs,
        batch_size: args.batch_size,
        subset: args.subset,
        seeds: args.seeds.clone(),
        set: args.set.clone(),
        only: args.only.clone(),
        model: args.model.clone(),
    };
    let runs = expand(&recipe, &scale, &args.data_root)?;
    let configs = runs.iter().map(config).collect::<Result<Vec<_>>>()?;
    present(&recipe, &scale, &runs, &configs, &args.data_root, ui)?;
    let record = Record::new(recipe, scale, runs);
    // What else is there, of earlier commands, is shown but not run.
    let mut whole = join(&record, &args.output, &args.data_root)?;
    let _held = if args.dry_run { None } else { Some(claim(&args.output)?) };
    let (recipe, runs) = (&record.recipe, &record.runs);
    let place = |run: &Run| Record::run_dir(&args.output, run);
    let states = states(runs, &configs, recipe.run, place)?;
    if !args.dry_run {
        whole = begin(&record, &args.output, &args.data_root)?;
    }
    let done = states.iter().filter(|s| matches!(s, State::Done(_))).count();
    ui.note(&format!("{} ({})", recipe.title, recipe.source));
    ui.note(&format!("protocol  {}", recipe.protocol));
    let scaled = whole.scaled();
    if !scaled.is_empty() {
        ui.note(&format!("scaled    {}", scaled.join("; ")));
    }
    let count = if runs.len() == 1 { "1 run".to_owned() } else { format!("{} runs", runs.len()) };
    let others = match whole.runs.len() - runs.len() {
        0 => String::new(),
        others => format!("; {others} more in {}", args.output.display()),
    };
    ui.note(&format!("{count}, {done} of them done{others}"));
    if args.dry_run {
        return plan(runs, &states, ui);
    }
    let mut jobs = Vec::new();
    for ((run, config), state) in runs.iter().zip(&configs).zip(&states) {
        if !matches!(state, State::Done(_)) {
            let file = args.output.join("configs").join(format!("{}.toml", run.id));
            let text = toml::to_string(&run.settings)
                .map_err(|e| input_error!("cannot write the settings of {}: {e}", run.id))?;
            write_atomic(&file, text.as_bytes())?;
            jobs.push(job(args, &record, run, config, &file)?);
        }
    }
    Ui::catch_signals();
    let result = |job: &Job| measured(&state(&job.run, recipe.run));
    let mut failed = work(args, &jobs, done, runs.len(), &result, ui)?;
    let elsewhere = measurements(args, &whole);
    if !elsewhere.is_empty() {
        failed.extend(work(args, &elsewhere, 0, elsewhere.len(), &|_| "measured".into(), ui)?);
    }
    let looks = comparisons(args, &whole);
    if !looks.is_empty() {
        failed.extend(work(args, &looks, 0, looks.len(), &|_| "compared".into(), ui)?);
    }
    summary(args, &record, &failed, ui)
}

/// Run processes, and name those that failed, with the reason.
fn work(
    args: &Args,
    jobs: &[Job],
    done: usize,
    all: usize,
    result: &dyn Fn(&Job) -> String,
    ui: &Ui,
) -> Result<Vec<(String, String)>> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let program = std::env::current_exe().map_err(Error::io("find", "lotep"))?;
    let mut live = Live::new(ui, done, all);
    let ended = run_jobs(&program, jobs, args.jobs as usize, &mut |news| live.news(news, result))?;
    drop(live);
    let failed = jobs.iter().zip(ended).filter_map(|(job, how)| match how {
        Ended::Failed(why) => Some((job.id.clone(), why)),
        Ended::Done => None,
    });
    Ok(failed.collect())
}

/// The process of a run.
fn job(args: &Args, record: &Record, run: &Run, config: &TrainConfig, file: &Path) -> Result<Job> {
    let recipe = &record.recipe;
    let dir = Record::run_dir(&args.output, run);
    let words: &[&str] = match recipe.run {
        Program::Train => &["train", "--resume"],
        Program::Prune => &["prune"],
        Program::BaseToNovel => &["protocol", "base-to-novel"],
        Program::FewShot => &["protocol", "few-shot"],
        Program::CrossData => &["protocol", "cross-data"],
    };
    let mut arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
    arguments.extend([OsString::from("--config"), file.into(), "--output".into(), dir.clone().into()]);
    if recipe.run != Program::Train {
        arguments.extend(["--seeds".into(), run.seed.to_string().into()]);
    }
    for target in record.scale.targets(recipe) {
        arguments.extend(["--to".into(), target.target(&args.data_root)?.to_string().into()]);
    }
    arguments.extend(recipe.args.iter().map(OsString::from));
    Ok(Job {
        id: run.id.clone(),
        args: arguments,
        log: args.output.join("logs").join(format!("{}.log", run.id)),
        result: None,
        run: dir,
        // Of what is made of several trainings nobody knows beforehand.
        epochs: if recipe.run == Program::Train { config.epochs } else { 0 },
    })
}

/// Whether what was made `from` some results is missing, or was made before one of them was.
fn older(made: &Path, from: &[PathBuf]) -> bool {
    let time = |path: &Path| path.metadata().and_then(|about| about.modified()).ok();
    let Some(made) = time(made) else { return true };
    from.iter().any(|result| time(result).is_some_and(|result| made < result))
}

/// Measurements of adapters on other data sets, where the recipe wants them: what is not there yet.
fn measurements(args: &Args, record: &Record) -> Vec<Job> {
    let mut jobs = Vec::new();
    for run in &record.runs {
        let dir = Record::run_dir(&args.output, run);
        for (i, also) in record.recipe.also.iter().enumerate() {
            let result = Record::also_file(&args.output, run, i);
            let trained = dir.join("result.json");
            if !trained.is_file() || !older(&result, &[trained]) {
                continue;
            }
            let mut arguments: Vec<OsString> =
                ["eval", "--format", "json", "--adapter"].map(OsString::from).to_vec();
            arguments.extend([
                dir.join("adapter").into(),
                "--data".into(),
                also.place(&args.data_root).into(),
            ]);
            if let Some(dataset) = &also.dataset {
                arguments.extend(["--dataset".into(), dataset.into()]);
            }
            jobs.push(Job {
                id: format!("{} on {}", run.id, also.name),
                args: arguments,
                log: args.output.join("logs").join(format!("{}.also.log", run.id)),
                // Nothing is trained there.
                run: result.clone(),
                result: Some(result),
                epochs: 0,
            });
        }
    }
    jobs
}

/// Comparisons of features, where the recipe wants them: of the first seed, what is not there yet.
fn comparisons(args: &Args, record: &Record) -> Vec<Job> {
    let (recipe, runs) = (&record.recipe, &record.runs);
    let Some(plan) = &recipe.cka else { return Vec::new() };
    let Some(&seed) = record.seeds().first() else { return Vec::new() };
    let finished =
        |run: &Run| Record::run_dir(&args.output, run).join("adapter/adapter_config.json").is_file();
    let mut jobs = Vec::new();
    for run in runs.iter().filter(|run| run.seed == seed && finished(run)) {
        let output = args.output.join("cka").join(&run.id);
        let mut against: Vec<(String, String)> = Vec::new();
        let mut from = vec![Record::run_dir(&args.output, run).join("result.json")];
        for name in &plan.against {
            let other = runs
                .iter()
                .find(|r| r.seed == seed && r.model == run.model && r.data == run.data && r.method == *name);
            let place = match other {
                // A network is its own like: nothing to see.
                Some(other) if other.id == run.id => continue,
                Some(other) if finished(other) => {
                    from.push(Record::run_dir(&args.output, other).join("result.json"));
                    Record::run_dir(&args.output, other).join("adapter").display().to_string()
                }
                None if name == "base" => "base".to_owned(),
                // It failed, or was left out.
                _ => continue,
            };
            against.push((format!("{name} ({}, {})", run.model, run.data), place));
        }
        let there = output.join("cka.json");
        // What has come since is compared too.
        let known = |known: Vec<String>| against.iter().all(|(name, _)| known.contains(name));
        if against.is_empty() || !older(&there, &from) && compared(&there).is_none_or(known) {
            continue;
        }
        let text = |key: &str| run.settings.get(key).and_then(toml::Value::as_str).map(str::to_owned);
        let adapter = Record::run_dir(&args.output, run).join("adapter");
        let mut arguments: Vec<OsString> = ["analyze", "cka", "--adapter"].map(OsString::from).to_vec();
        arguments.extend([adapter.into(), "--output".into(), output.clone().into(), "--data".into()]);
        arguments.push(text("data").unwrap_or_default().into());
        if let Some(dataset) = text("dataset") {
            arguments.extend(["--dataset".into(), dataset.into()]);
        }
        let name = recipe.row_name(&run.method, run.variant.as_deref());
        arguments.extend(["--label".into(), name.into()]);
        for (option, number) in [("--images", plan.images), ("--batch-size", plan.batch_size)] {
            arguments.extend([option.into(), number.to_string().into()]);
        }
        for (name, place) in against {
            arguments.extend(["--against".into(), format!("{name}={place}").into()]);
        }
        let id = format!("cka of {}", run.id);
        let log = args.output.join("logs").join(format!("{}.cka.log", run.id));
        jobs.push(Job { id, args: arguments, log, result: None, run: output, epochs: 0 });
    }
    jobs
}

/// With what features were compared already; none where the file is damaged, which the report says.
fn compared(path: &Path) -> Option<Vec<String>> {
    let found: Vec<Comparison> = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    Some(found.into_iter().map(|c| c.against).collect())
}

/// A run's numbers in words.
fn measured(state: &State) -> String {
    match state {
        State::Done(facts) => {
            facts.measures.iter().map(|(name, v)| format!("{name} {v:.2}%")).collect::<Vec<_>>().join("  ")
        }
        State::Damaged(why) => why.clone(),
        State::Waiting => "not begun".into(),
        State::Unfinished(1) => "after 1 epoch".into(),
        State::Unfinished(epochs) => format!("after {epochs} epochs"),
    }
}

fn plan(runs: &[Run], states: &[State], ui: &Ui) -> Result<()> {
    for (run, state) in runs.iter().zip(states) {
        if ui.json() {
            ui.out_json(&json!({ "run": run, "state": measured(state) }))?;
        } else {
            ui.out(&format!("{:<48} {}", run.id, measured(state)))?;
        }
    }
    Ok(())
}

/// What there is now.
fn summary(args: &Args, record: &Record, failed: &[(String, String)], ui: &Ui) -> Result<()> {
    if let Some((id, why)) = failed.first() {
        bail!(
            "{} of {} runs failed; {id}: {why} (the same command tries them again; see {})",
            failed.len(),
            record.runs.len(),
            args.output.join("logs").display()
        );
    }
    let report = lotep::experiment::report(&args.output)?;
    if ui.json() {
        return ui.out_json(&report);
    }
    super::report::print(&report, ui)?;
    ui.note(&format!("a page of it: lotep experiment report {}", args.output.display()));
    Ok(())
}
