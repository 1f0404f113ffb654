//! The pictures of an experiment.

use super::report::Report;
use super::table::{Row, Table};
use crate::plot::{Bar, Chart, Point, Series, bars, chart};

/// All of them, each with its file's name.
pub fn plots(report: &Report) -> Vec<(String, String)> {
    let mut made = Vec::new();
    for (i, table) in report.tables.iter().enumerate() {
        if let Some((what, values)) = &report.varies {
            made.push((format!("vary-{}.svg", i + 1), varied(table, what, values)));
        } else {
            made.push((format!("accuracy-{}.svg", i + 1), accuracies(table)));
        }
        if table.rows.iter().filter(|r| r.parameters.is_some()).count() > 1 {
            made.push((format!("parameters-{}.svg", i + 1), by_parameters(report, table)));
        }
    }
    made.extend(alike(report).into_iter().enumerate().map(|(i, svg)| (format!("cka-{}.svg", i + 1), svg)));
    made
}

/// The colour of a row in the charts that have rows for series: its place among the names of all rows, and behind them of
/// what was compared.
fn colour(report: &Report, name: &str) -> Option<usize> {
    let rows = report.tables.iter().flat_map(|table| &table.rows).map(|row| &row.name);
    let compared = report.cka.iter().flat_map(|(_, found)| found).map(|c| &c.name);
    let mut names: Vec<&String> = Vec::new();
    for one in rows.chain(compared) {
        if !names.contains(&one) {
            names.push(one);
        }
    }
    names.iter().position(|one| *one == name)
}

/// The column that sums a table up: the last.
fn main_column(table: &Table) -> (usize, &str) {
    let last = table.columns.len().saturating_sub(1);
    (last, table.columns.get(last).map_or("", String::as_str))
}

fn accuracies(table: &Table) -> String {
    let (column, name) = main_column(table);
    let bar = |row: &Row| {
        let cell = &row.cells[column];
        Bar {
            name: row.name.clone(),
            value: cell.mean.unwrap_or(f64::NAN),
            deviation: cell.deviation,
            paper: cell.paper,
        }
    };
    let items: Vec<Bar> = table.rows.iter().map(bar).collect();
    let unit = if items.iter().any(|b| b.paper.is_some()) {
        "test top-1, %; whisker: standard deviation over seeds; circle: the paper"
    } else {
        "test top-1, %; whisker: standard deviation over seeds"
    };
    let title = if name == table.caption { name.to_owned() } else { format!("{}: {name}", table.caption) };
    bars(&title, unit, &items, false)
}

/// What varies to the right, a line a method; methods without it are level lines.
fn varied(table: &Table, what: &str, values: &[String]) -> String {
    let numbers: Option<Vec<f64>> = values.iter().map(|v| v.parse().ok()).collect();
    let at = |i: usize| numbers.as_ref().map_or(i as f64, |n| n[i]);
    let by_column = table.columns == values;
    let (main, name) = main_column(table);
    let mut methods: Vec<&str> = Vec::new();
    for row in &table.rows {
        if !methods.contains(&row.method.as_str()) {
            methods.push(&row.method);
        }
    }
    let mut series = Vec::new();
    for method in methods {
        let (mut ours, mut paper) = (Vec::new(), Vec::new());
        for (i, value) in values.iter().enumerate() {
            let row = table.rows.iter().find(|r| {
                r.method == method && (by_column || r.variant.as_deref().is_none_or(|v| v == value))
            });
            let Some(cell) = row.and_then(|r| r.cells.get(if by_column { i } else { main })) else {
                continue;
            };
            let y = cell.mean.unwrap_or(f64::NAN);
            ours.push(Point { x: at(i), y, deviation: cell.deviation });
            paper.push(Point { x: at(i), y: cell.paper.unwrap_or(f64::NAN), deviation: None });
        }
        series.push(Series { name: method.to_owned(), points: ours, line: true, ..Series::default() });
        if paper.iter().any(|p| p.y.is_finite()) {
            let name = format!("{method}, paper");
            series.push(Series { name, points: paper, line: true, paper: true, colour: None });
        }
    }
    chart(&Chart {
        title: if by_column { table.caption.clone() } else { format!("{}: {name}", table.caption) },
        x: what.to_owned(),
        y: "test top-1, %".into(),
        places: if numbers.is_some() { Vec::new() } else { values.to_vec() },
        log_x: false,
        series,
    })
}

fn by_parameters(report: &Report, table: &Table) -> String {
    let (column, name) = main_column(table);
    let one = |name: String, x: Option<f64>, y: Option<f64>, deviation, paper| Series {
        colour: colour(report, &name),
        name,
        points: vec![Point { x: x.unwrap_or(f64::NAN), y: y.unwrap_or(f64::NAN), deviation }],
        line: false,
        paper,
    };
    let mut series = Vec::new();
    // What learns nothing has no place on this axis.
    for row in table.rows.iter().filter(|row| row.parameters != Some(0.0)) {
        let cell = &row.cells[column];
        series.push(one(row.name.clone(), row.parameters, cell.mean, cell.deviation, false));
        if let (Some(_), Some(_)) = (row.paper_parameters, cell.paper) {
            series.push(one(format!("{}, paper", row.name), row.paper_parameters, cell.paper, None, true));
        }
    }
    chart(&Chart {
        title: format!("{}: {name}, for what is learnt", table.caption),
        x: "trainable parameters".into(),
        y: "test top-1, %".into(),
        places: Vec::new(),
        log_x: true,
        series,
    })
}

/// Curves of features' likeness, a picture for what they are compared with.
fn alike(report: &Report) -> Vec<String> {
    let mut against: Vec<&str> = Vec::new();
    for c in report.cka.iter().flat_map(|(_, found)| found) {
        if !against.contains(&c.against.as_str()) {
            against.push(&c.against);
        }
    }
    let picture = |against: &&str| {
        let of = report.cka.iter().flat_map(|(_, found)| found).filter(|c| c.against == **against);
        let mut places: Vec<String> = Vec::new();
        let mut series = Vec::new();
        for c in of {
            let Some(diagonal) = c.diagonal() else { continue };
            if places.is_empty() {
                places.clone_from(&c.blocks);
            }
            let point = |(l, v): (usize, &Option<f64>)| Point {
                x: l as f64,
                y: v.unwrap_or(f64::NAN),
                deviation: None,
            };
            let points = diagonal.iter().enumerate().map(point).collect();
            let colour = colour(report, &c.name);
            series.push(Series { name: c.name.clone(), points, line: true, paper: false, colour });
        }
        chart(&Chart {
            title: format!("Likeness of features to {against}, block by block"),
            x: "block".into(),
            y: "linear CKA, unbiased".into(),
            places,
            log_x: false,
            series,
        })
    };
    against.iter().map(picture).collect()
}
