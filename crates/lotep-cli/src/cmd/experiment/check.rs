//! What can be known to be wrong before the first run begins.

use std::path::Path;

use lotep::backbone;
use lotep::data::{Known, nameless, open};
use lotep::experiment::{Program, Recipe, Run, Scale, State, differs, settings, state};
use lotep::head::Mapping;
use lotep::method::MethodConfig;
use lotep::train::TrainConfig;
use lotep::{Result, bail, input_error};
use toml::{Table, Value};

use crate::cmd::train::settle;
use crate::ui::Ui;

/// A run's settings, as its process will have them.
pub(super) fn config(run: &Run) -> Result<TrainConfig> {
    let mut settings = run.settings.clone();
    let method = match settings.remove("method") {
        Some(Value::Table(method)) => method,
        _ => Table::new(),
    };
    let config = settle(settings, method).map_err(|e| input_error!("{}: {e}", run.id))?;
    config.validate().map_err(|e| input_error!("{}: {e}", run.id))?;
    Ok(config)
}

/// Check that every model and data set is there.
pub(super) fn present(
    recipe: &Recipe,
    scale: &Scale,
    runs: &[Run],
    configs: &[TrainConfig],
    data_root: &Path,
    ui: &Ui,
) -> Result<()> {
    let mut missing: Vec<String> = Vec::new();
    for (run, config) in runs.iter().zip(configs) {
        let mut add = |text: String| {
            if !missing.contains(&text) {
                missing.push(text);
            }
        };
        if !config.random_weights
            && let Err(error) = backbone::check(&config.backbone)
        {
            add(format!("model `{}`: {error} (--model '{}=PATH' names another place)", run.model, run.model));
        }
    }
    // Whole sets are looked at now, not after the runs on others.
    let named =
        |config: &TrainConfig| config.mapping.unwrap_or(config.method.default_mapping()) == Mapping::Text;
    let named = configs.iter().any(named);
    let mut look = |name: &str, place: &Path, known: Option<Known>| match open(place, known) {
        Err(error) => missing.push(format!("data `{name}`: {error}")),
        Ok(splits) => {
            let classes = splits.parts().next().map(|(_, data)| data.classes.as_slice()).unwrap_or_default();
            if let Some(line) = nameless(place, known, classes).filter(|_| named) {
                ui.note(&format!("warning: {name}: {line}"));
            }
        }
    };
    let mut seen: Vec<&str> = Vec::new();
    for (run, config) in runs.iter().zip(configs) {
        if !seen.contains(&run.data.as_str()) {
            seen.push(&run.data);
            look(&run.data, &config.data, config.dataset);
        }
    }
    for also in recipe.also.iter().chain(scale.targets(recipe)) {
        let also = also.target(data_root)?;
        look(&also.name, &also.data, also.dataset);
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("the recipe needs what is not here: {}; --only leaves the rest", missing.join("; "))
}

/// How far each run is; a directory that holds something else is left alone, and nothing runs.
pub(super) fn states(
    runs: &[Run],
    configs: &[TrainConfig],
    program: Program,
    dir: impl Fn(&Run) -> std::path::PathBuf,
) -> Result<Vec<State>> {
    let mut states = Vec::new();
    for (run, config) in runs.iter().zip(configs) {
        let place = dir(run);
        let found = state(&place, program);
        match &found {
            State::Damaged(why) => bail!("{why}: move {} away to have it run again", place.display()),
            State::Done(_) => same(&place, config, program)?,
            _ => {}
        }
        states.push(found);
    }
    Ok(states)
}

/// Check that a finished run is the one that is asked for.
fn same(place: &Path, config: &TrainConfig, program: Program) -> Result<()> {
    let done = settings(place, program)?;
    let mut asked = config.clone();
    // A pruning's own options decide on that.
    if let (MethodConfig::E2vpt(asked), MethodConfig::E2vpt(done)) = (&mut asked.method, &done.method)
        && program == Program::Prune
    {
        asked.layout = done.layout;
    }
    match differs(&asked, &done) {
        Some(how) => bail!(
            "{} holds another run: its {how}; move it away, or choose another --output",
            place.display()
        ),
        None => Ok(()),
    }
}
