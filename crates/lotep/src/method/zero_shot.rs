//! Zero-shot classification (Radford et al., ICML 2021): CLIP as it is, and a sentence about each class.

use serde::{Deserialize, Serialize};

use super::texts::clip;
use super::{Method, Prompts, Site, TextPlan};
use crate::Result;
use crate::params::Params;
use crate::text::templates;

/// Zero-shot classification's setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ZeroShot {
    /// Sentences with `{}` for the class's name; the features of several are averaged.
    pub templates: Vec<String>,
}

impl Default for ZeroShot {
    fn default() -> Self {
        Self { templates: vec![templates::PLAIN.to_owned()] }
    }
}

impl Method for ZeroShot {
    fn init(&self, site: &Site<'_>, _seed: u64) -> Result<Params> {
        clip("zero-shot", site)?;
        Ok(Params::default())
    }

    fn prompts(&self, _site: &Site<'_>, _params: &Params) -> Prompts {
        Prompts::default()
    }

    fn texts(&self) -> Option<TextPlan> {
        Some(TextPlan::plain(self.templates.clone()))
    }
}
