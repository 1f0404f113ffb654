//! What methods for CLIP have in common: texts about classes, learnt words, and the frozen towers they are held to.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Site, seeded};
use crate::backbone::{Loaded, Words};
use crate::params::{Group, Params, normal};
use crate::text::templates;
use crate::{Result, bail, input_error};

/// Standard deviation of learnt words and tokens at the start, the family's.
pub(super) const STD: f64 = 0.02;
/// Streams of random numbers: of words, and of the image tower's tokens behind them.
pub(super) const IMAGE_STREAM: u64 = 1 << 16;

/// Weights of what holds prompted features to the frozen ones (PromptSRC's self-regulation); zero leaves a term out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Consistency {
    /// Of the mean distance between classes' text features, per component.
    pub text: f64,
    /// Of the same between images' features.
    pub image: f64,
    /// Of the divergence of the classes' probabilities.
    pub logits: f64,
}

impl Consistency {
    /// None at all.
    pub const NONE: Self = Self { text: 0.0, image: 0.0, logits: 0.0 };
    /// PromptSRC's.
    pub const PAPER: Self = Self { text: 25.0, image: 10.0, logits: 1.0 };

    /// Whether the frozen image tower has to see the images, too.
    pub(crate) fn sees_images(self) -> bool {
        self.image > 0.0 || self.logits > 0.0
    }

    pub(super) fn check(self, method: &str) -> Result<()> {
        let named = [
            ("text_consistency", self.text),
            ("image_consistency", self.image),
            ("logit_consistency", self.logits),
        ];
        match named.into_iter().find(|(_, weight)| !(0.0..=1e6).contains(weight)) {
            Some((name, weight)) => bail!("{method}: {name} {weight} is out of range; 0 to 1000000"),
            None => Ok(()),
        }
    }
}

/// What a method says of each class, and what it learns of it.
#[derive(Clone, Debug, PartialEq)]
pub struct TextPlan {
    /// Sentences with `{}` for the class's name; several are averaged.
    pub templates: Vec<String>,
    /// Tokens behind the start that are learnt.
    pub replaced: usize,
    /// Whether the text tower's weights are added to.
    pub updated: bool,
    /// What holds prompted features to the frozen ones.
    pub consistency: Consistency,
    /// Whether what all classes' text features moved by together is taken back (MMLoP's uniform drift correction).
    pub drift_correction: bool,
}

impl TextPlan {
    /// Sentences as they are.
    pub fn plain(templates: Vec<String>) -> Self {
        let consistency = Consistency::NONE;
        Self { templates, replaced: 0, updated: false, consistency, drift_correction: false }
    }

    /// A sentence whose first `replaced` tokens are learnt: `context` in front of the name, or, if that is empty, words
    /// that stand for nothing.
    pub(super) fn learnt(context: &str, replaced: usize) -> Self {
        // More than any text has are refused where parameters are made.
        let stand_ins = || vec!["x"; replaced.min(1 << 10)].join(" ");
        let words = if context.is_empty() { stand_ins() } else { context.to_owned() };
        Self { replaced, ..Self::plain(vec![format!("{words} {{}}.")]) }
    }

    /// Whether what the text tower says of a class changes with what is learnt.
    pub(crate) fn is_learnt(&self) -> bool {
        self.replaced > 0 || self.updated
    }

    /// Whether the frozen text tower has to say something of each class, in sixty sentences.
    pub(crate) fn needs_frozen(&self) -> bool {
        let Consistency { text, logits, .. } = self.consistency;
        text > 0.0 || logits > 0.0 || self.drift_correction
    }
}

impl Default for TextPlan {
    fn default() -> Self {
        Self::plain(vec![templates::PLAIN.to_owned()])
    }
}

/// The CLIP that `method` is put into.
pub(super) fn clip<'a>(method: &str, site: &Site<'a>) -> Result<(&'a Loaded, &'a Words)> {
    let loaded =
        site.loaded.ok_or_else(|| input_error!("{method}: a network with its text tower is needed"))?;
    match &loaded.words {
        Some(words) => Ok((loaded, words)),
        None => bail!(
            "{method} needs CLIP with both towers: {} has no text tower (`lotep methods` says which methods do)",
            loaded.config.name
        ),
    }
}

/// Check a number of learnt tokens.
pub(super) fn check_tokens(method: &str, tokens: usize, words: &Words) -> Result<()> {
    // Start, name and end have to find room.
    let most = words.config.context.saturating_sub(3);
    if !(1..=most).contains(&tokens) {
        bail!("{method}: tokens {tokens} is out of range; 1 to {most}");
    }
    Ok(())
}

/// Check a number of prompted blocks.
pub(super) fn check_depth(method: &str, depth: usize, site: &Site<'_>, words: &Words) -> Result<()> {
    let most = site.blocks.len().min(words.config.depth);
    if !(1..=most).contains(&depth) {
        bail!("{method}: depth {depth} is out of range; 1 to {most}, the blocks that both towers have");
    }
    Ok(())
}

/// The first `count` words' embeddings of `context`; drawn, where it is empty.
pub(super) fn first_words(
    method: &str,
    site: &Site<'_>,
    context: &str,
    count: usize,
    seed: u64,
) -> Result<Vec<f32>> {
    let (loaded, words) = clip(method, site)?;
    if context.is_empty() {
        return Ok(normal(count * words.config.width, STD, &mut seeded(seed, 0)));
    }
    if context.contains("{}") {
        bail!("{method}: context `{context}` is what stands before the class's name, without {{}}");
    }
    let tokens = words.tokenizer()?.words(context)?;
    match tokens.get(..count) {
        Some(first) => loaded.word_embeddings(first),
        None => bail!(
            "{method}: context `{context}` has {} tokens, and {count} are to be learnt: give a longer one, or none",
            tokens.len()
        ),
    }
}

/// Words of the text tower's blocks behind the first.
pub(super) fn push_words(
    params: &mut Params,
    site: &Site<'_>,
    words: &Words,
    blocks: std::ops::Range<usize>,
    count: usize,
    seed: u64,
) {
    let width = words.config.width;
    for l in blocks {
        let values = normal(count * width, STD, &mut seeded(seed, l as u64));
        params.push(words_name(l), &[count, width], Group::Prompt, values, site.device);
    }
}

pub(super) fn words_name(l: usize) -> String {
    format!("text.{l}.words")
}

/// The image tower's tokens as its blocks see them: those of the first pass CLIP's first norm.
pub(super) fn image_tokens(site: &Site<'_>, mut tokens: Vec<Tensor<2>>) -> Vec<Tensor<2>> {
    if let (Some(loaded), Some(first)) = (site.loaded, tokens.first_mut()) {
        *first = loaded.network.before_blocks(first.clone());
    }
    tokens
}
