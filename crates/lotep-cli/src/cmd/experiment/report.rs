//! `lotep experiment table`, `plot` and `report`.

use std::path::PathBuf;

use lotep::experiment::{Report, csv, html, latex, markdown, plots, report as gather};
use lotep::{Result, write_atomic};

use crate::ui::Ui;

/// Print an experiment's tables, ours beside the paper's.
#[derive(clap::Args)]
pub(crate) struct TableArgs {
    /// The experiment's directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// How: for people, or as a file's text.
    #[arg(long, default_value = "text", value_parser = ["text", "markdown", "csv", "latex"])]
    form: String,
}

/// Which experiment, and where its files go.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The experiment's directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Where to write [default: report/ in the experiment's directory]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

impl Args {
    fn write(&self, name: &str, text: &str) -> Result<()> {
        write_atomic(&self.output().join(name), text.as_bytes())
    }

    fn output(&self) -> PathBuf {
        self.output.clone().unwrap_or_else(|| self.dir.join("report"))
    }
}

pub(crate) fn table(args: &TableArgs, ui: &Ui) -> Result<()> {
    let report = gather(&args.dir)?;
    if ui.json() {
        return ui.out_json(&report);
    }
    match args.form.as_str() {
        "markdown" => ui.out(markdown(&report).trim_end()),
        "csv" => ui.out(csv(&report).trim_end()),
        "latex" => ui.out(latex(&report).trim_end()),
        _ => print(&report, ui),
    }
}

pub(crate) fn plot(args: &Args, ui: &Ui) -> Result<()> {
    let report = gather(&args.dir)?;
    for (name, svg) in plots(&report) {
        args.write(&name, &svg)?;
        ui.out(&args.output().join(name).display().to_string())?;
    }
    Ok(())
}

pub(crate) fn report(args: &Args, ui: &Ui) -> Result<()> {
    let report = gather(&args.dir)?;
    for (name, text) in [
        ("index.html", html(&report)),
        ("table.md", markdown(&report)),
        ("table.csv", csv(&report)),
        ("table.tex", latex(&report)),
    ] {
        args.write(name, &text)?;
    }
    for (name, svg) in plots(&report) {
        args.write(&name, &svg)?;
    }
    if ui.json() {
        return ui.out_json(&report);
    }
    for why in &report.damaged {
        ui.note(&format!("warning: {why}"));
    }
    ui.out(&args.output().join("index.html").display().to_string())
}

/// The tables for people.
pub(super) fn print(report: &Report, ui: &Ui) -> Result<()> {
    for table in &report.tables {
        ui.out(&format!("\n{} (test top-1 in %; in brackets the paper's)", table.caption))?;
        let names = table.rows.iter().map(|r| r.name.chars().count()).max().unwrap_or(0).max(8);
        let wide = |text: &str| format!("  {text:>22}");
        let heading = table.columns.iter().map(|c| wide(c)).collect::<Vec<_>>().concat();
        ui.out(&format!("{:<names$}{heading}  {:>12}  {:>8}", "", "parameters", "s a run"))?;
        for row in &table.rows {
            let mut line = format!("{:<names$}", row.name);
            for cell in &row.cells {
                let own = cell.mean.map_or("-".to_owned(), |v| format!("{v:.2}"));
                let deviation = cell.deviation.map_or(String::new(), |d| format!(" ± {d:.2}"));
                let paper = cell.paper.map_or(String::new(), |p| format!(" ({p:.2})"));
                line += &wide(&format!("{own}{deviation}{paper}"));
            }
            let number =
                |v: Option<f64>, digits: usize| v.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
            let digits = usize::from(row.seconds.is_some_and(|s| s < 10.0));
            let (parameters, seconds) = (number(row.parameters, 0), number(row.seconds, digits));
            ui.out(&format!("{line}  {parameters:>12}  {seconds:>8}"))?;
        }
    }
    for line in &report.rules {
        ui.out(&format!("\nselection: {line}"))?;
    }
    if !report.scaled.is_empty() {
        ui.out(&format!("scaled: {}", report.scaled.join("; ")))?;
    }
    Ok(())
}
