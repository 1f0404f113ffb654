//! Tables for a paper.

use super::super::report::Report;
use super::{ours, protocol};

/// Text in which nothing is a command.
fn safe(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => {
                safe.push('\\');
                safe.push(c);
            }
            '~' => safe.push_str(r"\textasciitilde{}"),
            '^' => safe.push_str(r"\textasciicircum{}"),
            '\\' => safe.push_str(r"\textbackslash{}"),
            '<' => safe.push_str(r"\textless{}"),
            '>' => safe.push_str(r"\textgreater{}"),
            '±' => safe.push_str(r"$\pm$"),
            '–' => safe.push_str("--"),
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

/// A report as LaTeX tables, for the package booktabs: ours, with the paper's number below where it has one.
pub fn latex(report: &Report) -> String {
    let said: Vec<String> = protocol(report)
        .into_iter()
        .map(|(what, text)| format!("{}: {}.", safe(&what), safe(&text)))
        .collect();
    let mut lines =
        vec![format!("% {}", report.title.replace('\n', " ")), r"% \usepackage{booktabs}".to_owned()];
    for table in &report.tables {
        let columns = table.columns.len();
        lines.push(r"\begin{table}".into());
        lines.push(r"\centering".into());
        lines.push(format!(
            r"\caption{{{}. {}. Top-1 accuracy in percent. {}}}",
            safe(&report.title),
            safe(&table.caption),
            said.join(" ")
        ));
        lines.push(format!(r"\begin{{tabular}}{{l{}r}}", "r".repeat(columns)));
        lines.push(r"\toprule".into());
        let heading: Vec<String> = table.columns.iter().map(|c| safe(c)).collect();
        lines.push(format!(r"Method & {} & Parameters \\", heading.join(" & ")));
        lines.push(r"\midrule".into());
        for row in &table.rows {
            let cells: Vec<String> =
                row.cells.iter().map(|c| safe(&ours(c).unwrap_or_else(|| "–".into()))).collect();
            let number = |v: Option<f64>| v.map_or("--".to_owned(), |v| format!("{v:.0}"));
            lines.push(format!(
                r"{} & {} & {} \\",
                safe(&row.name),
                cells.join(" & "),
                number(row.parameters)
            ));
            if row.cells.iter().any(|c| c.paper.is_some()) || row.paper_parameters.is_some() {
                let cells: Vec<String> =
                    row.cells.iter().map(|c| c.paper.map_or(String::new(), |p| format!("{p:.2}"))).collect();
                let parameters = row.paper_parameters.map_or(String::new(), |v| format!("{v:.0}"));
                lines.push(format!(r"\quad paper & {} & {parameters} \\", cells.join(" & ")));
            }
        }
        lines.extend([r"\bottomrule", r"\end{tabular}", r"\end{table}", ""].map(str::to_owned));
    }
    lines.join("\n")
}
