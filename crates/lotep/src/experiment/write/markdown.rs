//! Tables in Markdown.

use super::super::report::Report;
use super::super::table::Cell;
use super::{costs, ours, protocol};

fn safe(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}

/// A report in Markdown: ours, then the paper's number and the difference in brackets.
pub fn markdown(report: &Report) -> String {
    let mut lines = vec![format!("# {}", safe(&report.title)), String::new()];
    for (what, text) in protocol(report) {
        lines.push(format!("* **{}**: {}", safe(&what), safe(&text)));
    }
    for table in &report.tables {
        lines.extend([String::new(), format!("## {}", safe(&table.caption)), String::new()]);
        let best = table.rows.iter().any(|r| r.cells.iter().any(|c| c.best_test.is_some()));
        let costs_of = table.rows.first().map(costs);
        let mut heading: Vec<String> = vec!["method".into()];
        heading.extend(table.columns.iter().map(|c| safe(c)));
        if best {
            heading.push(format!("{}, best test epoch", table.columns.last().map_or("", String::as_str)));
        }
        heading.extend(costs_of.iter().flatten().map(|(name, ..)| (*name).to_owned()));
        lines.push(format!("| {} |", heading.join(" | ")));
        lines.push(format!("|---|{}", "--:|".repeat(heading.len() - 1)));
        for row in &table.rows {
            let mut cells = vec![safe(&row.name)];
            cells.extend(row.cells.iter().map(cell));
            if best {
                let last = row.cells.last().and_then(|c| c.best_test);
                cells.push(last.map_or("–".to_owned(), |v| format!("{v:.2}")));
            }
            for (_, own, paper, digits) in costs(row) {
                let number = |v: f64| format!("{v:.digits$}");
                let paper = paper.map_or(String::new(), |v| format!(" (paper {})", number(v)));
                cells.push(own.map_or("–".to_owned(), number) + &paper);
            }
            lines.push(format!("| {} |", cells.join(" | ")));
        }
    }
    lines.join("\n") + "\n"
}

fn cell(cell: &Cell) -> String {
    let own = ours(cell).unwrap_or_else(|| "–".into());
    match (cell.paper, cell.difference()) {
        (Some(paper), Some(difference)) => format!("{own} (paper {paper:.2}, {difference:+.2})"),
        (Some(paper), None) => format!("{own} (paper {paper:.2})"),
        _ => own,
    }
}
