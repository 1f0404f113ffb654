//! CoOp (Zhou et al., IJCV 2022; `spec/methods.md` 10): learnt words in front of each class's name.

use serde::{Deserialize, Serialize};

use super::texts::{check_tokens, clip, first_words, words_name};
use super::{Method, Prompts, Site, TextPlan};
use crate::Result;
use crate::params::{Group, Params};

/// CoOp's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoOp {
    /// Learnt words.
    pub tokens: usize,
    /// The words that they start as; drawn at random where it is empty.
    pub context: String,
}

impl Default for CoOp {
    fn default() -> Self {
        Self { tokens: 16, context: String::new() }
    }
}

impl Method for CoOp {
    fn init(&self, site: &Site<'_>, seed: u64) -> Result<Params> {
        let (_, words) = clip("coop", site)?;
        check_tokens("coop", self.tokens, words)?;
        let values = first_words("coop", site, &self.context, self.tokens, seed)?;
        let mut params = Params::default();
        params.push(words_name(0), &[self.tokens, words.config.width], Group::Prompt, values, site.device);
        Ok(params)
    }

    fn prompts(&self, _site: &Site<'_>, params: &Params) -> Prompts {
        Prompts { words: vec![params.get(&words_name(0))], ..Prompts::default() }
    }

    fn texts(&self) -> Option<TextPlan> {
        Some(TextPlan::learnt(&self.context, self.tokens))
    }
}
