//! One page that needs nothing else: tables that can be sorted, pictures, and the protocol beside them.

use std::fmt::Write;

use super::super::plots;
use super::super::report::Report;
use super::super::table::{Cell, Row, Table};
use super::{costs, protocol};
use crate::plot::escape;

const STYLE: &str = include_str!("../../../assets/report/page.css");
const SCRIPT: &str = include_str!("../../../assets/report/page.js");

/// A report as a page of HTML. (Writing to strings can't fail.)
pub fn html(report: &Report) -> String {
    let title = escape(&report.title);
    let said = protocol(report)
        .into_iter()
        .map(|(what, text)| {
            let class = if what == "Scaled" || what == "Damaged" { " class='warn'" } else { "" };
            format!("<dt>{}</dt><dd{class}>{}</dd>\n", escape(&what), escape(&text))
        })
        .collect::<Vec<_>>()
        .concat();
    let tables: String = report.tables.iter().map(table).collect();
    let pictures = plots(report).into_iter().map(|(_, svg)| format!("<figure>{svg}</figure>\n"));
    let pictures = pictures.collect::<Vec<_>>().concat();
    format!(
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>\n\
         <meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; img-src data:; \
         style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
         <meta name='viewport' content='width=device-width, initial-scale=1'>\n\
         <title>{title}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n<dl>{said}</dl>\n\
         <p class='controls'>Show: <label><input type='checkbox' data-show='dev' checked> deviation</label>\n\
         <label><input type='checkbox' data-show='paper' checked> paper</label>\n\
         <label><input type='checkbox' data-show='diff' checked> difference</label>\n\
         <label><input type='checkbox' data-show='cost' checked> cost</label>\n\
         <label>Filter methods: <input type='search' id='filter'></label>\n\
         <span class='hint'>A click on a column's name sorts by it.</span></p>\n\
         {tables}<section class='figures'>{pictures}</section>\n<script>{SCRIPT}</script>\n</body></html>\n"
    )
}

fn table(table: &Table) -> String {
    let best = table.rows.iter().any(|r| r.cells.iter().any(|c| c.best_test.is_some()));
    let mut heading = "<th data-sort='text'>method</th>".to_owned();
    for column in &table.columns {
        _ = write!(heading, "<th data-sort='number'>{}</th>", escape(column));
    }
    if best {
        let last = table.columns.last().map_or("", String::as_str);
        _ = write!(heading, "<th data-sort='number'>{}, best test epoch</th>", escape(last));
    }
    if let Some(row) = table.rows.first() {
        for (name, ..) in costs(row) {
            _ = write!(heading, "<th class='cost' data-sort='number'>{name}</th>");
        }
    }
    let rows: String = table.rows.iter().map(|row| line(row, best)).collect();
    format!(
        "<section><h2>{}</h2>\n<div class='wide'><table><thead><tr>{heading}</tr></thead>\n<tbody>{rows}</tbody></table></div></section>\n",
        escape(&table.caption)
    )
}

fn line(row: &Row, best: bool) -> String {
    let mut cells = format!("<th scope='row'>{}</th>", escape(&row.name));
    for c in &row.cells {
        cells += &cell(c);
    }
    if best {
        let value = row.cells.last().and_then(|c| c.best_test);
        cells += &value.map_or("<td>–</td>".to_owned(), |v| format!("<td data-value='{v}'>{v:.2}</td>"));
    }
    for (_, own, paper, digits) in costs(row) {
        let value = own.map_or(String::new(), |v| format!(" data-value='{v}'"));
        let own = own.map_or("–".to_owned(), |v| format!("{v:.digits$}"));
        let paper = paper.map_or(String::new(), |v| format!("<span class='paper'>paper {v:.digits$}</span>"));
        _ = write!(cells, "<td class='cost'{value}>{}{paper}</td>", grouped(&own));
    }
    format!("<tr>{cells}</tr>\n")
}

/// A whole number with thin spaces between thousands.
fn grouped(text: &str) -> String {
    if text.len() < 5 || !text.chars().all(|c| c.is_ascii_digit()) {
        return text.to_owned();
    }
    let mut grouped = String::new();
    for (i, c) in text.chars().enumerate() {
        if i > 0 && (text.len() - i).is_multiple_of(3) {
            grouped.push('\u{202f}');
        }
        grouped.push(c);
    }
    grouped
}

fn cell(cell: &Cell) -> String {
    let Some(mean) = cell.mean else {
        let paper = cell.paper.map_or(String::new(), |p| format!("<span class='paper'>paper {p:.2}</span>"));
        return format!("<td>–{paper}</td>");
    };
    let mut text = format!("<b>{mean:.2}</b>");
    if let Some(d) = cell.deviation {
        _ = write!(text, "<span class='dev'> ± {d:.2}</span>");
    }
    if cell.seeds < cell.wanted {
        _ = write!(text, "<span class='paper'>{} of {} seeds</span>", cell.seeds, cell.wanted);
    }
    if let Some(paper) = cell.paper {
        _ = write!(text, "<span class='paper'>paper {paper:.2}</span>");
    }
    if let Some(difference) = cell.difference() {
        let class = if difference < 0.0 { "below" } else { "above" };
        _ = write!(text, "<span class='diff {class}'>{difference:+.2}</span>");
    }
    format!("<td data-value='{mean}'>{text}</td>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(grouped("1234567"), "1\u{202f}234\u{202f}567");
        assert_eq!(
            (grouped("1234"), grouped("0.123"), grouped("–")),
            ("1234".into(), "0.123".into(), "–".into())
        );
    }
}
