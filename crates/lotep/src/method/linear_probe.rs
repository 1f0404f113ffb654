//! Linear probe: nothing but a new classifier is learnt.

use serde::{Deserialize, Serialize};

use super::{Method, Prompts, Site};
use crate::Result;
use crate::params::Params;

/// No settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearProbe {}

impl Method for LinearProbe {
    fn init(&self, _site: &Site<'_>, _seed: u64) -> Result<Params> {
        Ok(Params::default())
    }

    fn prompts(&self, _site: &Site<'_>, _params: &Params) -> Prompts {
        Prompts::default()
    }
}
