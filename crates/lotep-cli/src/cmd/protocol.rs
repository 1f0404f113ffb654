//! `lotep protocol`.

use std::path::PathBuf;

use lotep::Result;
use lotep::protocol::{Protocol, Row, Target, run as follow};

use super::sweep::Settings;
use super::train::MAX_SEED;
use crate::ui::{Ui, Watcher};

/// Compare CLIP's methods as their papers do: base to novel classes, few shots, other data sets.
///
/// Settings with several values are rows of the table, each trained with every seed; epochs, rates, depths and averages that
/// are not set are those of the method's paper in this protocol. All data to test on is opened before anything is
/// trained. A protocol that was stopped goes on where it was when the same command is given again.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lotep protocol base-to-novel --set backbone=CLIP --set data=photos --set method=ivlp,promptsrc,mmlop --output runs/novel
  lotep protocol few-shot --shots 1,2,4,8,16 --config clip.toml --output runs/few
  lotep protocol cross-data --to flowers --to Pets=clip-pets:downloads --config clip.toml --output runs/cross")]
pub(crate) struct Args {
    #[command(subcommand)]
    which: Which,
}

#[derive(clap::Subcommand)]
enum Which {
    /// Learn the first half of the classes; test them, and the other half by their names. Harmonic mean of the averages.
    BaseToNovel {
        #[command(flatten)]
        common: Common,
        /// Training images of each class.
        #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..))]
        shots: u64,
    },
    /// Learn all classes from few images each.
    FewShot {
        #[command(flatten)]
        common: Common,
        /// Training images of each class, several numbers with commas between.
        #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16],
              value_parser = clap::value_parser!(u64).range(1..))]
        shots: Vec<u64>,
    },
    /// Learn one data set; test it, and others by the names of their classes.
    CrossData {
        #[command(flatten)]
        common: Common,
        /// Training images of each class.
        #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..))]
        shots: u64,
        /// Another data set to test on: where it is, as `train --data` takes it; before that, with a colon, its name in `lotep
        /// datasets` if it is as its authors publish it; before all, with =, what its column is called.
        #[arg(long, value_name = "[NAME=][DATASET:]PLACE", required = true)]
        to: Vec<Target>,
    },
}

#[derive(clap::Args)]
struct Common {
    #[command(flatten)]
    settings: Settings,
    /// Directory of the runs, and of result.json.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Seeds of initial values, drawn images and order.
    #[arg(long, value_name = "SEED,…", value_delimiter = ',', default_values_t = [1, 2, 3],
          value_parser = clap::value_parser!(u64).range(..=MAX_SEED))]
    seeds: Vec<u64>,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let (common, protocol) = match &args.which {
        Which::BaseToNovel { common, shots } => (common, Protocol::BaseToNovel { shots: *shots as usize }),
        Which::FewShot { common, shots } => {
            (common, Protocol::FewShot { shots: shots.iter().map(|n| *n as usize).collect() })
        }
        Which::CrossData { common, shots, to } => {
            (common, Protocol::CrossData { shots: *shots as usize, targets: to.clone() })
        }
    };
    let candidates = common.settings.candidates(&common.settings.recipe()?, &[], None, 0)?;
    Ui::catch_signals();
    let rows = follow(&candidates, &protocol, &common.seeds, &common.output, &mut Watcher(ui));
    ui.clear();
    let rows = rows?;
    if ui.json() {
        return rows.iter().try_for_each(|row| ui.out_json(row));
    }
    table(&rows, common.seeds.len()).iter().try_for_each(|line| ui.out(line))
}

/// A line a row; mean and standard deviation over seeds.
fn table(rows: &[Row], seeds: usize) -> Vec<String> {
    let mut heading: Vec<String> =
        rows.iter().take(1).flat_map(|r| &r.columns).map(|c| c.name.clone()).collect();
    let harmonic = rows.iter().any(|row| row.harmonic.is_some());
    if harmonic {
        heading.push("harmonic mean".into());
    }
    let cell = |text: &str| format!("{text:>15}");
    let mut lines = vec![format!(
        "{}{:>12}  settings (test top1 in %, {seeds} seeds)",
        heading.iter().map(|h| cell(h)).collect::<String>(),
        "parameters"
    )];
    for row in rows {
        let mut line = String::new();
        for c in &row.columns {
            let deviation = c.deviation.map_or(String::new(), |d| format!(" ± {d:.2}"));
            line += &cell(&format!("{:.2}{deviation}", c.mean));
        }
        if let Some(h) = row.harmonic {
            line += &cell(&format!("{h:.2}"));
        }
        lines.push(format!("{line}{:>12}  {}", row.parameters, row.settings));
    }
    lines
}
