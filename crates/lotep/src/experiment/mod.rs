//! The papers' tables and figures: a recipe names models, data, methods, seeds and what a paper reports; it becomes a grid
//! of runs in a directory, and the result files there become tables, plots and a page.

mod collect;
mod grid;
mod grow;
mod jobs;
mod plots;
mod recipe;
mod record;
mod report;
mod table;
mod write;

pub use collect::{Facts, State, differs, settings, state};
pub use grid::{Run, Scale, expand};
pub use jobs::{Ended, Job, News, run_jobs};
pub use plots::plots;
pub use recipe::{CkaPlan, Columns, Data, Expected, MethodRow, Model, Program, Recipe, Vary};
pub use record::{Record, begin, join, open};
pub use report::{Report, report};
pub use table::{Cell, Row, Table};
pub use write::{csv, html, latex, markdown};
