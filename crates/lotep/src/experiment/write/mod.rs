//! Reports as files: Markdown, CSV, LaTeX, and a page.

mod csv;
mod html;
mod latex;
mod markdown;

pub use csv::csv;
pub use html::html;
pub use latex::latex;
pub use markdown::markdown;

use super::report::Report;
use super::table::{Cell, Row};

/// Words that stand beside every number: what was chosen on which images, and how much of the recipe was done.
fn protocol(report: &Report) -> Vec<(String, String)> {
    let mut lines =
        vec![("Source".to_owned(), report.source.clone()), ("Protocol".to_owned(), report.protocol.clone())];
    if !report.rules.is_empty() {
        lines.push(("Selection, as recorded".to_owned(), report.rules.join("; ")));
    }
    if !report.scaled.is_empty() {
        let scaled = report.scaled.join("; ");
        let why = "what the paper reports is of its own, full protocol";
        lines.push(("Scaled".to_owned(), format!("{scaled}; {why}")));
    }
    for (name, data) in &report.data {
        lines.push((format!("Images of {name}"), data.clone()));
    }
    let [done, all] = report.done;
    let damaged =
        if report.damaged.is_empty() { String::new() } else { format!(", {} damaged", report.damaged.len()) };
    lines.push(("Runs".to_owned(), format!("{done} of {all} have ended{damaged}")));
    lines.extend(report.damaged.iter().map(|why| ("Damaged".to_owned(), why.clone())));
    if !report.machines.is_empty() {
        lines.push(("Machine".to_owned(), report.machines.join("; ")));
    }
    if let Some(note) = &report.note {
        lines.push(("Note".to_owned(), note.clone()));
    }
    lines
}

/// `81.23 ± 0.40`, with the number of seeds where some are missing.
fn ours(cell: &Cell) -> Option<String> {
    let mean = cell.mean?;
    let deviation = cell.deviation.map_or(String::new(), |d| format!(" ± {d:.2}"));
    let seeds = if cell.seeds < cell.wanted {
        format!(" ({} of {} seeds)", cell.seeds, cell.wanted)
    } else {
        String::new()
    };
    Some(format!("{mean:.2}{deviation}{seeds}"))
}

/// What a cost is called, ours and the paper's.
fn costs(row: &Row) -> [(&'static str, Option<f64>, Option<f64>, usize); 4] {
    let mb = 1.0 / 1024.0;
    [
        ("parameters", row.parameters, row.paper_parameters, 0),
        ("in prompts", row.prompt_parameters, None, 0),
        ("hours", row.seconds.map(|s| s / 3600.0), row.paper_seconds.map(|s| s / 3600.0), 3),
        ("memory, GB", row.memory_mb.map(|m| m * mb), row.paper_memory_mb.map(|m| m * mb), 2),
    ]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::recipe::tests::small;
    use super::super::table::tables;
    use super::super::table::tests::done;
    use super::super::{Scale, expand};
    use super::*;

    fn sample() -> Report {
        let recipe = small();
        let scale = Scale { epochs: Some(1), ..Scale::default() };
        let runs = expand(&recipe, &scale, Path::new("")).unwrap();
        let states: Vec<_> = (0..runs.len()).map(|i| done(70.0 + i as f64)).collect();
        let found: Vec<_> = runs.iter().zip(&states).collect();
        Report {
            title: recipe.title.clone(),
            source: recipe.source.clone(),
            protocol: recipe.protocol.clone(),
            note: Some("a | b & c_d".into()),
            scaled: scale.said(&recipe),
            rules: vec!["the last epoch was kept".into()],
            machines: vec!["a machine".into()],
            done: [runs.len(), runs.len()],
            damaged: vec![],
            tables: tables(&recipe, &found),
            varies: Some(("rank".into(), vec!["2".into(), "3".into()])),
            data: vec![("C".into(), "5 images".into())],
            cka: vec![],
        }
    }

    #[test]
    fn every_form_has_the_numbers_and_the_protocol() {
        let report = sample();
        for text in [markdown(&report), html(&report), latex(&report)] {
            for words in ["73.50", "0.71", "70.50", "last epoch", "epochs 1 (recipe: 4)", "rank 2"] {
                assert!(text.contains(words), "{words}: {text}");
            }
        }
        let csv = csv(&report);
        assert_eq!(csv.lines().count(), 1 + 3 * 3, "{csv}");
        assert!(csv.lines().nth(1).unwrap().starts_with("Net,Probe,,A & B,70.5,0.7"), "{csv}");
    }

    #[test]
    fn names_do_no_harm() {
        let report = sample();
        let page = html(&report);
        assert!(page.contains("A small &lt;table&gt;") && !page.contains("<table>\"</h1>"), "{page}");
        assert!(
            !page.contains("http://")
                || page.matches("http://").count() == page.matches("http://www.w3.org/2000/svg").count()
        );
        assert!(!page.contains("https://"));
        let latex = latex(&report);
        assert!(latex.contains(r"A \& B") && latex.contains(r"c\_d"), "{latex}");
        assert!(markdown(&report).contains(r"a \| b"));
    }
}
