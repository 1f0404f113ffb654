//! Everything that tables, plots and pages show, gathered from an experiment's directory alone.

use std::path::Path;

use serde::Serialize;

use super::collect::{State, state};
use super::recipe::Program;
use super::record::{Record, open};
use super::table::{Found, Table, tables};
use crate::analysis::cka::Comparison;
use crate::{Error, Result, input_error};

/// An experiment with what has come of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What it is.
    pub title: String,
    /// Paper, and table or figure.
    pub source: String,
    /// What the paper does, and what is done here.
    pub protocol: String,
    /// What else should be known.
    pub note: Option<String>,
    /// What was done otherwise than the recipe says; empty if nothing.
    pub scaled: Vec<String>,
    /// By which rules epochs were kept.
    pub rules: Vec<String>,
    /// Where the runs were made.
    pub machines: Vec<String>,
    /// Runs that have ended, and all.
    pub done: [usize; 2],
    /// Runs that are no runs, with the reason.
    pub damaged: Vec<String>,
    /// The tables.
    pub tables: Vec<Table>,
    /// What varies, and its values, in order.
    pub varies: Option<(String, Vec<String>)>,
    /// What the runs' images were, by data set.
    pub data: Vec<(String, String)>,
    /// Comparisons of features, each with the run it is of.
    pub cka: Vec<(String, Vec<Comparison>)>,
}

/// What `lotep eval` wrote, if it has.
fn measured(path: &Path) -> Result<Option<f64>> {
    let text = match std::fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(Error::io("read", path))?,
    };
    let found: Option<f64> =
        serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|v| v["top1"].as_f64());
    found.map(Some).ok_or_else(|| input_error!("{} is damaged: no top1 in it", path.display()))
}

/// Read an experiment's directory.
///
/// # Errors
/// It holds none, or the record is damaged. A damaged run is named in the report.
pub fn report(dir: &Path) -> Result<Report> {
    let record = open(dir)?;
    let recipe = &record.recipe;
    let mut states: Vec<State> =
        record.runs.iter().map(|run| state(&Record::run_dir(dir, run), recipe.run)).collect();
    for (run, state) in record.runs.iter().zip(&mut states) {
        let State::Done(facts) = state else { continue };
        for (i, also) in recipe.also.iter().enumerate() {
            facts.measures.extend(measured(&Record::also_file(dir, run, i))?.map(|v| (also.name.clone(), v)));
        }
    }
    let found: Vec<Found<'_>> = record.runs.iter().zip(&states).collect();
    let (mut rules, mut machines, mut damaged, mut done) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let mut data: Vec<(String, String)> = Vec::new();
    let add = |list: &mut Vec<String>, text: &String| {
        if !list.contains(text) {
            list.push(text.clone());
        }
    };
    for (run, state) in &found {
        match state {
            State::Done(facts) => {
                done += 1;
                add(&mut rules, &facts.rule);
                add(&mut machines, &facts.machine);
                if !data.iter().any(|(name, _)| *name == run.data) {
                    data.push((run.data.clone(), facts.data.clone()));
                }
            }
            State::Damaged(why) => damaged.push(format!("{}: {why}", run.id)),
            State::Waiting | State::Unfinished(_) => {}
        }
    }
    let varies = recipe
        .vary
        .as_ref()
        .map(|vary| (vary.name.clone(), vary.values.iter().map(super::grid::value_text).collect()));
    let tables = tables(recipe, &found);
    // Of few images their number is what varies.
    let few = tables.first().filter(|_| recipe.run == Program::FewShot).map(|table| table.columns.clone());
    let varies = varies.or(few.map(|shots| ("training images of each class".to_owned(), shots)));
    let mut cka = Vec::new();
    for run in &record.runs {
        let path = dir.join("cka").join(&run.id).join("cka.json");
        match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            read => {
                let text = read.map_err(Error::io("read", &path))?;
                let found: Vec<Comparison> = serde_json::from_str(&text)
                    .map_err(|e| input_error!("{} is damaged: {e}", path.display()))?;
                cka.push((run.id.clone(), found));
            }
        }
    }
    Ok(Report {
        title: recipe.title.clone(),
        source: recipe.source.clone(),
        protocol: recipe.protocol.clone(),
        note: recipe.note.clone(),
        scaled: record.scaled(),
        rules,
        machines,
        done: [done, record.runs.len()],
        damaged,
        tables,
        varies,
        data,
        cka,
    })
}
