//! `lotep experiment`.

mod check;
mod live;
mod report;
mod run;

use lotep::Result;

use crate::ui::Ui;

/// Run a paper's experiment from its recipe, and make tables, plots and a page of what came out.
///
/// A recipe names models, data sets, methods and seeds, and what the paper reports; recipes/papers has those of LoTeP, E2VPT
/// and MMLoP, recipes/papers/small some that a laptop finishes. Each run is a process of its own; what is done is not done again.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lotep experiment run recipes/papers/lotep-table2.toml --data-root datasets --output runs/table2
  lotep experiment run recipes/papers/lotep-table2.toml --only data=DTD --epochs 5 --subset 500 --output runs/try
  lotep experiment table runs/table2 --form latex
  lotep experiment report runs/table2")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Run(run::Args),
    Table(report::TableArgs),
    /// Draw an experiment's plots as SVG.
    Plot(report::Args),
    /// Write all that can be said of an experiment: a page (index.html), table.md, table.csv, table.tex and the plots.
    Report(report::Args),
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    match &args.what {
        What::Run(a) => run::run(a, ui),
        What::Table(a) => report::table(a, ui),
        What::Plot(a) => report::plot(a, ui),
        What::Report(a) => report::report(a, ui),
    }
}
