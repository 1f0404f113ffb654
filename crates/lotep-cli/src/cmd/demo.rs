//! `lotep demo`.

use lotep::Result;

use crate::ui::Ui;

/// See it work, offline.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args, ui: &Ui) -> Result<()> {
    ui.out("demo")
}
