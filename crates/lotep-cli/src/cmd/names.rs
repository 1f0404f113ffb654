//! Classes given by name, to a CLIP that reads them; shared by the commands that score images.

use lotep::head::{Head, Mapping, SharedTexts};
use lotep::method::{MethodConfig, ZeroShot};
use lotep::text::templates;
use lotep::train::class_texts;
use lotep::{Error, Result, bail};

use super::model::Model;
use crate::ui::Ui;

/// What is told apart, in words.
#[derive(clap::Args)]
pub(crate) struct NamesArgs {
    /// CLIP: names of the classes, with commas between, or @FILE with one a line. Without --adapter nothing is learnt; with
    /// one of CLIP's methods, its prompts see these classes instead of their own.
    #[arg(long, value_name = "NAMES")]
    pub(crate) classes: Option<String>,
    /// CLIP without --adapter: what is said of a class, {} being its name; several are averaged [default: a photo of a {}.]
    #[arg(long, value_name = "TEXT", conflicts_with = "adapter")]
    pub(crate) template: Vec<String>,
}

impl NamesArgs {
    /// The names given.
    ///
    /// # Errors
    /// A file of them can't be read; there are too few, one is empty or comes twice.
    pub(crate) fn names(&self) -> Result<Option<Vec<String>>> {
        let Some(given) = &self.classes else { return Ok(None) };
        let names: Vec<String> = match given.strip_prefix('@') {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
                text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect()
            }
            None => given.split(',').map(|name| name.trim().to_owned()).collect(),
        };
        templates::check_names(&names)?;
        Ok(Some(names))
    }
}

/// A model's classes by their names, ready to score images.
pub(crate) struct Named {
    pub(crate) names: Vec<String>,
    pub(crate) method: MethodConfig,
    pub(crate) texts: SharedTexts,
}

/// The head that names have.
pub(crate) const HEAD: Head = Head { mapping: Mapping::Text, sources: 1 };

impl Model {
    /// Score by these names: with the adapter's prompts, or with nothing learnt.
    ///
    /// # Errors
    /// The network reads no names, or the adapter has a classifier of its own; a name makes no text.
    pub(crate) fn score_by(&mut self, names: Vec<String>, template: &[String], ui: &Ui) -> Result<()> {
        let method = match &self.adapter {
            Some(a) if a.config.head.mapping == Mapping::Text => a.config.method.clone(),
            Some(a) => bail!(
                "--classes: the adapter's classifier was trained for its own {} classes; one of CLIP's methods \
                 (`lotep methods`) takes others by name",
                a.config.classes.len()
            ),
            None if template.is_empty() => MethodConfig::ZeroShot(ZeroShot::default()),
            None => MethodConfig::ZeroShot(ZeroShot { templates: template.to_vec() }),
        };
        let Some(texts) = class_texts(&self.loaded, &method, HEAD, &names)? else {
            bail!("{} does not score classes by their names", method.name())
        };
        for line in texts.warnings() {
            ui.note(&format!("warning: {line}"));
        }
        self.named = Some(Named { names, method, texts });
        Ok(())
    }
}
