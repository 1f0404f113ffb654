//! From finished runs to tables: mean and standard deviation over seeds, beside what a paper reports.

use serde::Serialize;

use super::collect::{Facts, State, TOP1};
use super::grid::Run;
use super::recipe::{Columns, Expected, MEAN, Program, Recipe};
use crate::protocol::harmonic_mean;

/// A number of a table.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cell {
    /// Mean over seeds, in percent; none until a run has ended.
    pub mean: Option<f64>,
    /// Sample standard deviation; none of fewer than two.
    pub deviation: Option<f64>,
    /// Seeds that it is of.
    pub seeds: usize,
    /// Seeds that there should be.
    pub wanted: usize,
    /// What the paper reports.
    pub paper: Option<f64>,
    /// Mean of the best test epochs, where they were watched: what some papers report.
    pub best_test: Option<f64>,
}

impl Cell {
    /// Ours minus the paper's.
    pub fn difference(&self) -> Option<f64> {
        Some(self.mean? - self.paper?)
    }
}

/// A method with its settings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The method's name, with the value of what varies.
    pub name: String,
    /// The method's name in the recipe.
    pub method: String,
    /// The value of what varies.
    pub variant: Option<String>,
    /// A number a column.
    pub cells: Vec<Cell>,
    /// Trainable parameters: of one run, or summed over models where those are the columns; the mean over data sets.
    pub parameters: Option<f64>,
    /// Of these, in prompts.
    pub prompt_parameters: Option<f64>,
    /// What the paper says of parameters.
    pub paper_parameters: Option<f64>,
    /// Seconds of training of a run, on average.
    pub seconds: Option<f64>,
    /// What the paper says, in seconds.
    pub paper_seconds: Option<f64>,
    /// The largest peak memory of a run, in MB.
    pub memory_mb: Option<f64>,
    /// What the paper says, in MB.
    pub paper_memory_mb: Option<f64>,
    /// What the paper says of a prediction's milliseconds; ours is `lotep analyze efficiency`'s to measure.
    pub paper_latency_ms: Option<f64>,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    /// What all of it is about.
    pub caption: String,
    /// What the columns are.
    pub columns: Vec<String>,
    /// Methods.
    pub rows: Vec<Row>,
}

/// A run and what came of it.
pub(super) type Found<'a> = (&'a Run, &'a State);

fn facts<'a>((_, state): &Found<'a>) -> Option<&'a Facts> {
    match state {
        State::Done(facts) => Some(facts),
        _ => None,
    }
}

/// Mean and sample standard deviation.
pub(super) fn moments(values: &[f64]) -> (Option<f64>, Option<f64>) {
    if values.is_empty() {
        return (None, None);
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (Some(mean), (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()))
}

/// Distinct values in the order in which they come.
fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

/// What a column is of: names of models, data and a variant that its runs have, and what of them is shown.
#[derive(Clone, Debug)]
struct Column<'a> {
    title: String,
    model: Option<&'a str>,
    data: Option<&'a str>,
    variant: Option<&'a str>,
    /// Over which it is the mean, if it is one: all, or the data sets of a group.
    over: Option<Vec<&'a str>>,
    /// Whether that is all that the recipe has, as a paper's mean is.
    whole: bool,
    measure: String,
}

/// The tables of an experiment.
pub(super) fn tables(recipe: &Recipe, found: &[Found<'_>]) -> Vec<Table> {
    let models = distinct(found.iter().map(|(run, _)| run.model.as_str()));
    let data = distinct(found.iter().map(|(run, _)| run.data.as_str()));
    let train = by_axes(recipe);
    let mut tables = Vec::new();
    if !train {
        let mut measures: Vec<String> =
            distinct(found.iter().filter_map(facts).flat_map(|f| f.measures.iter().map(|m| m.0.clone())));
        for m in
            recipe.expected.iter().filter_map(|e| e.measure.clone()).filter(|m| m != HARMONIC && m != OTHERS)
        {
            if !measures.contains(&m) {
                measures.push(m);
            }
        }
        if !recipe.also.is_empty() {
            measures =
                std::iter::once(TOP1.to_owned()).chain(recipe.also.iter().map(|d| d.name.clone())).collect();
        }
        if recipe.run == Program::BaseToNovel {
            measures = vec!["base".into(), "novel".into(), HARMONIC.into()];
        }
        if recipe.run == Program::CrossData && measures.len() > 2 {
            measures.push(OTHERS.into());
        }
        for model in &models {
            let mut places: Vec<(String, Option<&str>)> =
                data.iter().map(|d| ((*d).to_owned(), Some(*d))).collect();
            if data.len() > 1 {
                places.insert(0, (format!("mean of {} data sets", data.len()), None));
            }
            for (name, place) in places {
                let column = |measure: &String| Column {
                    title: if measure == TOP1 { name.clone() } else { measure.clone() },
                    model: Some(*model),
                    data: place,
                    variant: None,
                    over: place.is_none().then(|| data.clone()),
                    whole: data.len() == recipe.data.len(),
                    measure: measure.clone(),
                };
                let columns: Vec<Column<'_>> = measures.iter().map(column).collect();
                tables.push(table(recipe, found, format!("{model}, {name}"), &columns, false));
            }
        }
        return tables;
    }
    let top1 = |title: &str| Column {
        title: title.to_owned(),
        model: None,
        data: None,
        variant: None,
        over: None,
        whole: true,
        measure: TOP1.into(),
    };
    match recipe.columns {
        Columns::Data => {
            for model in &models {
                let mut columns: Vec<Column<'_>> = Vec::new();
                let mut groups = distinct(recipe.data.iter().filter_map(|d| d.group.as_deref()));
                groups.retain(|g| {
                    recipe.data.iter().any(|d| d.group.as_deref() == Some(g) && data.contains(&&*d.name))
                });
                columns.extend(data.iter().map(|d| Column {
                    model: Some(*model),
                    data: Some(*d),
                    ..top1(d)
                }));
                for group in groups {
                    let members: Vec<&str> = recipe
                        .data
                        .iter()
                        .filter(|d| d.group.as_deref() == Some(group))
                        .map(|d| d.name.as_str())
                        .collect();
                    let whole = members.iter().all(|name| data.contains(name));
                    let members = members.into_iter().filter(|name| data.contains(name)).collect();
                    columns.push(Column { model: Some(*model), over: Some(members), whole, ..top1(group) });
                }
                if data.len() > 1 {
                    let (over, whole) = (Some(data.clone()), data.len() == recipe.data.len());
                    columns.push(Column { model: Some(*model), over, whole, ..top1(MEAN) });
                }
                tables.push(table(recipe, found, (*model).to_owned(), &columns, false));
            }
        }
        Columns::Model => {
            for set in &data {
                let mut columns: Vec<Column<'_>> =
                    models.iter().map(|m| Column { model: Some(*m), data: Some(*set), ..top1(m) }).collect();
                if models.len() > 1 {
                    let (over, whole) = (Some(models.clone()), models.len() == recipe.model.len());
                    columns.push(Column { data: Some(*set), over, whole, ..top1(MEAN) });
                }
                tables.push(table(recipe, found, (*set).to_owned(), &columns, true));
            }
        }
        Columns::Variant => {
            let variants = distinct(found.iter().filter_map(|(run, _)| run.variant.as_deref()));
            for model in &models {
                for set in &data {
                    let (model, data) = (Some(*model), Some(*set));
                    let columns: Vec<Column<'_>> = variants
                        .iter()
                        .map(|v| Column { model, data, variant: Some(*v), ..top1(v) })
                        .collect();
                    let caption = format!("{}, {set}", model.unwrap_or_default());
                    tables.push(table(recipe, found, caption, &columns, false));
                }
            }
        }
    }
    tables
}

/// Whether a run gives one number, so that the columns are an axis of the grid.
fn by_axes(recipe: &Recipe) -> bool {
    matches!(recipe.run, Program::Train | Program::Prune) && recipe.also.is_empty()
}

/// The mean of base and novel classes that their papers order methods by.
pub(super) const HARMONIC: &str = "harmonic mean";
/// The mean of the data sets that were tested only.
const OTHERS: &str = "mean of the others";

fn table(recipe: &Recipe, found: &[Found<'_>], caption: String, columns: &[Column<'_>], sum: bool) -> Table {
    let by_variant = recipe.columns == Columns::Variant && by_axes(recipe);
    let key = |run: &Run| (run.method.clone(), if by_variant { None } else { run.variant.clone() });
    let of_table = |run: &Run| columns.iter().any(|c| c.has(run));
    let rows = distinct(found.iter().filter(|(run, _)| of_table(run)).map(|(run, _)| key(run)));
    let mut made = Vec::new();
    for (method, variant) in rows {
        let mine: Vec<Found<'_>> = found
            .iter()
            .filter(|(run, _)| key(run) == (method.clone(), variant.clone()) && of_table(run))
            .copied()
            .collect();
        let mut cells: Vec<Cell> = Vec::new();
        for column in columns {
            let paper = column.expected(recipe, &method, variant.as_deref()).and_then(|e| e.top1);
            let cell = if column.measure == HARMONIC {
                let mean = |i: usize| cells.get(i).and_then(|c: &Cell| c.mean);
                let mean = mean(0).zip(mean(1)).map(|(base, novel)| harmonic_mean(base, novel));
                let (seeds, wanted) = cells.first().map_or((0, 0), |c| (c.seeds, c.wanted));
                Cell { mean, seeds, wanted, ..Cell::default() }
            } else if column.measure == OTHERS {
                // The source comes first.
                let means: Option<Vec<f64>> = cells.iter().skip(1).map(|c| c.mean).collect();
                let (seeds, wanted) = cells.first().map_or((0, 0), |c| (c.seeds, c.wanted));
                Cell { mean: means.and_then(|m| moments(&m).0), seeds, wanted, ..Cell::default() }
            } else {
                column.cell(&mine)
            };
            cells.push(Cell { paper, ..cell });
        }
        let done: Vec<&Facts> = mine.iter().filter_map(facts).collect();
        let average =
            |value: &dyn Fn(&Facts) -> f64| moments(&done.iter().map(|f| value(f)).collect::<Vec<_>>()).0;
        let count = |value: &dyn Fn(&Facts) -> f64| -> Option<f64> {
            if !sum {
                return average(value);
            }
            // A model's is the same for every seed; of a sum none may be missing.
            let names = distinct(columns.iter().filter_map(|c| c.model));
            let of =
                |name: &&str| mine.iter().filter(|(run, _)| run.model == *name).find_map(facts).map(value);
            names.iter().map(of).sum()
        };
        let columns_of_row =
            columns.iter().rev().filter_map(|c| c.expected(recipe, &method, variant.as_deref()));
        let said: Vec<&Expected> = columns_of_row.collect();
        let paper = |value: &dyn Fn(&Expected) -> Option<f64>| said.iter().find_map(|e| value(e));
        made.push(Row {
            name: recipe.row_name(&method, variant.as_deref()),
            cells,
            parameters: count(&|f| f.parameters as f64),
            prompt_parameters: count(&|f| f.prompt_parameters as f64),
            paper_parameters: paper(&|e| e.parameters),
            seconds: average(&|f| f.seconds),
            paper_seconds: paper(&|e| e.hours.map(|h| 3600.0 * h)),
            memory_mb: done.iter().filter_map(|f| f.peak_rss_mb).reduce(f64::max),
            paper_memory_mb: paper(&|e| e.memory_gb.map(|m| 1024.0 * m)),
            paper_latency_ms: paper(&|e| e.latency_ms),
            method,
            variant,
        });
    }
    Table { caption, columns: columns.iter().map(|c| c.title.clone()).collect(), rows: made }
}

impl<'a> Column<'a> {
    fn has(&self, run: &Run) -> bool {
        let member = |name: &str| self.over.as_ref().is_none_or(|over| over.contains(&name));
        self.model.map_or_else(|| member(&run.model), |m| m == run.model)
            && self.data.map_or_else(|| member(&run.data), |d| d == run.data)
            // What does not vary stands in every column.
            && self.variant.is_none_or(|v| run.variant.as_deref().is_none_or(|own| own == v))
    }

    fn cell(&self, row: &[Found<'a>]) -> Cell {
        let mine: Vec<&Found<'a>> = row.iter().filter(|(run, _)| self.has(run)).collect();
        let seeds = distinct(mine.iter().map(|(run, _)| run.seed));
        let value = |of: &dyn Fn(&Facts) -> Option<f64>, seed: u64| -> Option<f64> {
            // The mean over an axis is of one seed, and only where all of it is there.
            let of_seed = mine.iter().filter(|(run, _)| run.seed == seed);
            let values: Option<Vec<f64>> = of_seed.map(|found| facts(found).and_then(of)).collect();
            let all = self.over.as_ref().map_or(1, Vec::len);
            values.filter(|values| values.len() == all).and_then(|values| moments(&values).0)
        };
        let measure = |f: &Facts| f.measures.iter().find(|(name, _)| *name == self.measure).map(|(_, v)| *v);
        let values: Vec<f64> = seeds.iter().filter_map(|s| value(&measure, *s)).collect();
        let best: Vec<f64> = seeds.iter().filter_map(|s| value(&|f| f.best_test, *s)).collect();
        let (mean, deviation) = moments(&values);
        Cell {
            mean,
            deviation,
            seeds: values.len(),
            wanted: seeds.len(),
            paper: None,
            best_test: if best.len() == values.len() { moments(&best).0 } else { None },
        }
    }

    /// What the paper reports here.
    fn expected<'r>(&self, recipe: &'r Recipe, method: &str, variant: Option<&str>) -> Option<&'r Expected> {
        let of = |said: Option<&str>, own: Option<&str>| match (said, own) {
            // Left out, it is the recipe's only one.
            (None, _) => true,
            (Some(said), Some(own)) => said == own,
            (Some(said), None) => self.whole && (said == self.title || said == MEAN && self.measure != TOP1),
        };
        let variant = self.variant.or(variant);
        recipe.expected.iter().find(|e| {
            e.method == method
                && of(e.model.as_deref(), self.model)
                && of(e.data.as_deref(), self.data)
                && e.variant.as_deref().is_none_or(|v| Some(v) == variant)
                && e.measure.as_deref().is_none_or(|m| m == self.measure)
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::super::recipe::tests::small;
    use super::super::{Scale, expand};
    use super::*;

    pub(in crate::experiment) fn done(top1: f64) -> State {
        State::Done(Box::new(Facts {
            measures: vec![(TOP1.into(), top1)],
            best_test: Some(top1 + 1.0),
            parameters: 1000,
            prompt_parameters: 10,
            seconds: 60.0,
            peak_rss_mb: Some(512.0),
            rule: "the last epoch was kept".into(),
            data: "2 classes".into(),
            machine: "a machine".into(),
        }))
    }

    #[test]
    fn means_are_over_seeds_and_differences_to_the_paper() {
        let recipe = small();
        let runs = expand(&recipe, &Scale::default(), Path::new("")).unwrap();
        // One of the last method's has not ended.
        let states: Vec<State> = runs
            .iter()
            .enumerate()
            .map(
                |(i, run)| {
                    if i == 11 { State::Unfinished(2) } else { done(70.0 + i as f64 + run.seed as f64) }
                },
            )
            .collect();
        let found: Vec<Found<'_>> = runs.iter().zip(&states).collect();
        let tables = tables(&recipe, &found);
        assert_eq!(tables.len(), 1);
        let t = &tables[0];
        assert_eq!(t.columns, ["A & B", "C", "mean"]);
        let names: Vec<&str> = t.rows.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["Probe", "LoTeP, rank 2", "LoTeP, rank 3"]);
        // A mean over less than the recipe is not the paper's.
        let part: Vec<Found<'_>> = found.iter().copied().filter(|(run, _)| run.data == "C").collect();
        assert!(
            super::tables(&recipe, &part)[0].rows.iter().all(|r| r.cells.iter().all(|c| c.paper.is_none()))
        );
        // Seeds 1 and 2 of the first set: 71 and 73; of the second 77 and 79.
        let probe = &t.rows[0];
        assert_eq!((probe.cells[0].mean, probe.cells[0].deviation), (Some(72.0), Some(2_f64.sqrt())));
        assert_eq!((probe.cells[2].mean, probe.cells[2].paper), (Some(75.0), Some(70.5)));
        assert_eq!((probe.cells[2].difference(), probe.cells[0].paper), (Some(4.5), None));
        assert_eq!(probe.cells[0].best_test, Some(73.0));
        assert_eq!((probe.parameters, probe.memory_mb), (Some(1000.0), Some(512.0)));
        // One seed is missing there, so the mean over both sets is of one seed alone.
        let last = &t.rows[2];
        assert_eq!((last.cells[1].seeds, last.cells[1].wanted, last.cells[1].deviation), (1, 2, None));
        assert_eq!((last.cells[2].seeds, last.cells[2].mean), (1, Some(f64::midpoint(75.0, 81.0))));
    }

    #[test]
    fn what_varies_may_be_the_columns() {
        let mut recipe = small();
        recipe.columns = Columns::Variant;
        let runs = expand(&recipe, &Scale::default(), Path::new("")).unwrap();
        let states: Vec<State> = (0..runs.len()).map(|i| done(i as f64)).collect();
        let found: Vec<Found<'_>> = runs.iter().zip(&states).collect();
        let tables = tables(&recipe, &found);
        assert_eq!(tables.len(), 2, "one a data set");
        assert_eq!(tables[0].columns, ["2", "3"]);
        let means = |r: usize| tables[0].rows[r].cells.iter().map(|c| c.mean.unwrap()).collect::<Vec<_>>();
        assert_eq!((means(0), means(1)), (vec![0.5, 0.5], vec![2.5, 4.5]));
    }

    #[test]
    fn sets_that_are_only_tested_have_a_mean_of_their_own() {
        let mut recipe = small();
        (recipe.run, recipe.vary) = (Program::CrossData, None);
        recipe.expected.clear();
        let scale = Scale { only: vec!["data=C".into(), "method=Probe".into()], ..Scale::default() };
        let runs = expand(&recipe, &scale, Path::new("")).unwrap();
        let state = |run: &Run| {
            let State::Done(mut facts) = done(0.0) else { panic!("it is done") };
            let measures = [("source", 90.0), ("a", 10.0 + run.seed as f64), ("b", 30.0)];
            facts.measures = measures.map(|(name, top1)| (name.to_owned(), top1)).to_vec();
            State::Done(facts)
        };
        let states: Vec<State> = runs.iter().map(state).collect();
        let found: Vec<Found<'_>> = runs.iter().zip(&states).collect();
        let tables = tables(&recipe, &found);
        assert_eq!(tables[0].columns, ["source", "a", "b", "mean of the others"]);
        // Seeds 1 and 2.
        assert_eq!(tables[0].rows[0].cells[3].mean, Some(f64::midpoint(11.5, 30.0)));
    }
}
