//! `lotep methods`.

use lotep::method::METHODS;
use lotep::{Result, bail};

use crate::ui::Ui;

/// List the methods of adaptation: what each learns and where it acts, what it costs, where it comes from.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lotep methods
  lotep methods vpt")]
pub(crate) struct Args {
    /// Only those whose name contains this.
    name: Option<String>,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let wanted = args.name.as_deref().unwrap_or("");
    let methods: Vec<_> = METHODS.iter().filter(|m| m.name.contains(wanted)).collect();
    if methods.is_empty() {
        bail!("no method's name contains `{wanted}`: `lotep methods` lists all");
    }
    for m in methods {
        if ui.json() {
            ui.out_json(m)?;
            continue;
        }
        ui.out(&format!("{}\n  acts        {}\n  parameters  {}", m.name, m.acts, m.parameters))?;
        ui.out(&format!("  prediction  {}", m.cost))?;
        if m.clip {
            ui.out("  needs       CLIP, both towers")?;
        }
        if !m.source.is_empty() {
            ui.out(&format!("  source      {}", m.source))?;
        }
    }
    Ok(())
}
