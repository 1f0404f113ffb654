//! Tables as comma-separated values, a line a number.

use super::super::report::Report;

fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// A report as CSV (RFC 4180): one line for each number of each table.
pub fn csv(report: &Report) -> String {
    let mut text = String::from(
        "table,method,variant,column,mean,deviation,seeds,wanted_seeds,best_test_epoch,paper,difference,parameters,\
         prompt_parameters,paper_parameters,seconds,paper_seconds,memory_mb,paper_memory_mb,paper_latency_ms\n",
    );
    for table in &report.tables {
        for row in &table.rows {
            for (column, cell) in table.columns.iter().zip(&row.cells) {
                let number = |v: Option<f64>| v.map_or(String::new(), |v| v.to_string());
                let fields = [
                    field(&table.caption),
                    field(&row.method),
                    field(row.variant.as_deref().unwrap_or_default()),
                    field(column),
                    number(cell.mean),
                    number(cell.deviation),
                    cell.seeds.to_string(),
                    cell.wanted.to_string(),
                    number(cell.best_test),
                    number(cell.paper),
                    number(cell.difference()),
                    number(row.parameters),
                    number(row.prompt_parameters),
                    number(row.paper_parameters),
                    number(row.seconds),
                    number(row.paper_seconds),
                    number(row.memory_mb),
                    number(row.paper_memory_mb),
                    number(row.paper_latency_ms),
                ];
                text += &(fields.join(",") + "\n");
            }
        }
    }
    text
}
