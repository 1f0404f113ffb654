//! MMLoP (`spec/methods.md` 11): low-rank prompts in both of CLIP's towers, held to the frozen ones.
//!
//! Words of a text block are `U V_text`, tokens of an image block `U V_image`: the factor over positions `U` is the same
//! in both towers. With whole prompts in the place of products this is IVLP, and with consistency besides, PromptSRC, so
//! that the paper's ablation is five settings of one method.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::texts::{
    Consistency, IMAGE_STREAM, STD, check_depth, check_tokens, clip, first_words, image_tokens, push_words,
    words_name,
};
use super::{Method, Prompts, Site, TextPlan, seeded};
use crate::params::{Group, Params, normal};
use crate::{Result, bail};

/// Between which prompts the factor over positions is shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SharedUp {
    /// Each tower's blocks have their own.
    None,
    /// The blocks of both towers at the same depth have one.
    #[default]
    Layer,
    /// All have the same.
    Global,
}

/// MMLoP's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mmlop {
    /// Prompts of a block: words in the text tower, tokens in the image tower.
    pub tokens: usize,
    /// Prompted blocks of both towers.
    pub depth: usize,
    /// Rank of a block's prompts; 0 learns them whole.
    pub rank: usize,
    /// Where the factor over positions is shared.
    pub shared_up: SharedUp,
    /// The words that those of the first text block start as: a constant beside the product; none where it is empty.
    pub context: String,
    /// Weight of the distance between prompted and frozen text features.
    pub text_consistency: f64,
    /// Weight of the distance between prompted and frozen image features.
    pub image_consistency: f64,
    /// Weight of the divergence between prompted and frozen class probabilities.
    pub logit_consistency: f64,
    /// Whether what all classes' text features moved by together is taken back.
    pub drift_correction: bool,
}

impl Default for Mmlop {
    fn default() -> Self {
        let Consistency { text, image, logits } = Consistency::PAPER;
        Self {
            tokens: 4,
            depth: 9,
            rank: 1,
            shared_up: SharedUp::Layer,
            context: "a photo of a".into(),
            text_consistency: text,
            image_consistency: image,
            logit_consistency: logits,
            drift_correction: true,
        }
    }
}

/// IVLP's settings: independent prompts in both towers (`spec/methods.md` 10).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ivlp {
    /// Prompts of a block: words in the text tower, tokens in the image tower.
    pub tokens: usize,
    /// Prompted blocks of both towers.
    pub depth: usize,
    /// The words that those of the first text block start as; drawn at random where it is empty.
    pub context: String,
}

impl Default for Ivlp {
    fn default() -> Self {
        Self { tokens: 4, depth: 9, context: "a photo of a".into() }
    }
}

/// PromptSRC's settings (Khattak et al., ICCV 2023; `spec/methods.md` 10): IVLP held to the frozen towers, its prompts
/// averaged over epochs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PromptSrc {
    /// Prompts of a block: words in the text tower, tokens in the image tower.
    pub tokens: usize,
    /// Prompted blocks of both towers.
    pub depth: usize,
    /// The words that those of the first text block start as; drawn at random where it is empty.
    pub context: String,
    /// Weight of the distance between prompted and frozen text features.
    pub text_consistency: f64,
    /// Weight of the distance between prompted and frozen image features.
    pub image_consistency: f64,
    /// Weight of the divergence between prompted and frozen class probabilities.
    pub logit_consistency: f64,
    /// The epoch that counts most in the average over epochs, whose weights are a bell's.
    pub aggregate_mean: f64,
    /// Width of that bell in epochs; 0 takes the last epoch alone.
    pub aggregate_std: f64,
}

impl Default for PromptSrc {
    fn default() -> Self {
        let (Ivlp { tokens, depth, context }, c) = (Ivlp::default(), Consistency::PAPER);
        Self {
            tokens,
            depth,
            context,
            text_consistency: c.text,
            image_consistency: c.image,
            logit_consistency: c.logits,
            aggregate_mean: 15.0,
            aggregate_std: 1.0,
        }
    }
}

impl From<&Ivlp> for Mmlop {
    fn from(m: &Ivlp) -> Self {
        let (text, image, logits) = (0.0, 0.0, 0.0);
        Self {
            tokens: m.tokens,
            depth: m.depth,
            rank: 0,
            context: m.context.clone(),
            text_consistency: text,
            image_consistency: image,
            logit_consistency: logits,
            drift_correction: false,
            ..Self::default()
        }
    }
}

impl From<&PromptSrc> for Mmlop {
    fn from(m: &PromptSrc) -> Self {
        let whole = Ivlp { tokens: m.tokens, depth: m.depth, context: m.context.clone() };
        Self {
            text_consistency: m.text_consistency,
            image_consistency: m.image_consistency,
            logit_consistency: m.logit_consistency,
            ..Self::from(&whole)
        }
    }
}

impl PromptSrc {
    /// Each epoch's share in the average over epochs, from the first; none where the last one is kept.
    pub(crate) fn shares(&self, epochs: usize) -> Option<Vec<f64>> {
        let bell = |epoch: usize| {
            let z = (epoch as f64 - self.aggregate_mean) / self.aggregate_std;
            (-0.5 * z * z).exp()
        };
        let all: Vec<f64> = (1..=epochs).map(bell).collect();
        let sum: f64 = all.iter().sum();
        // A bell far from every epoch has no weight for any.
        (self.aggregate_std > 0.0 && sum > 1e-30).then(|| all.into_iter().map(|w| w / sum).collect())
    }

    /// Check what [`Mmlop`] has not.
    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in [("aggregate_mean", self.aggregate_mean), ("aggregate_std", self.aggregate_std)]
        {
            if !(0.0..=1e6).contains(&value) {
                bail!("promptsrc: {name} {value} is out of range; 0 to 1000000");
            }
        }
        Ok(())
    }
}

/// A tower, as names and streams call it.
const TOWERS: [&str; 2] = ["text", "image"];

impl Mmlop {
    /// The name of the factor over positions that a tower's block has.
    fn up(&self, tower: &str, l: usize) -> String {
        match self.shared_up {
            SharedUp::None => format!("{tower}.{l}.up"),
            SharedUp::Layer => format!("block.{l}.up"),
            SharedUp::Global => "up".into(),
        }
    }

    /// What block `l` of a tower gets, `[tokens, C]`.
    fn prompt(&self, params: &Params, tower: &str, l: usize) -> Tensor<2> {
        if self.rank == 0 {
            let leaf = if tower == "text" { "words" } else { "tokens" };
            return params.get(&format!("{tower}.{l}.{leaf}"));
        }
        let up: Tensor<2> = params.get(&self.up(tower, l));
        up.matmul(params.get(&format!("{tower}.{l}.down")))
    }

    /// Whole prompts: IVLP's start.
    fn whole(&self, method: &str, site: &Site<'_>, seed: u64) -> Result<Params> {
        let (_, words) = clip(method, site)?;
        let mut params = Params::default();
        let values = first_words(method, site, &self.context, self.tokens, seed)?;
        params.push(words_name(0), &[self.tokens, words.config.width], Group::Prompt, values, site.device);
        push_words(&mut params, site, words, 1..self.depth, self.tokens, seed);
        for (l, block) in site.blocks.iter().enumerate().take(self.depth) {
            let rng = &mut seeded(seed, IMAGE_STREAM + l as u64);
            let (shape, values) =
                ([self.tokens, block.channels], normal(self.tokens * block.channels, STD, rng));
            params.push(format!("image.{l}.tokens"), &shape, Group::Prompt, values, site.device);
        }
        Ok(params)
    }

    /// Products: `U` from N(0, 1 / r) and `V` from N(0, 0.02²), whose product has IVLP's standard deviation.
    fn products(&self, site: &Site<'_>, text_width: usize, seed: u64) -> Params {
        let (mut params, mut seen) = (Params::default(), std::collections::BTreeSet::new());
        for l in 0..self.depth {
            for (stream, tower) in [0, IMAGE_STREAM].into_iter().zip(TOWERS) {
                let width = if tower == "text" { text_width } else { site.blocks[l].channels };
                let mut rng = seeded(seed, stream + l as u64);
                let up = self.up(tower, l);
                if seen.insert(up.clone()) {
                    let std = (self.rank as f64).powf(-0.5);
                    let values = normal(self.tokens * self.rank, std, &mut rng);
                    params.push(up, &[self.tokens, self.rank], Group::Prompt, values, site.device);
                }
                let values = normal(self.rank * width, STD, &mut rng);
                let name = format!("{tower}.{l}.down");
                params.push(name, &[self.rank, width], Group::Prompt, values, site.device);
            }
        }
        params
    }

    /// The constant beside the first text block's product, kept with the parameters but not learnt.
    fn offset(&self) -> Option<&'static str> {
        (self.rank > 0 && !self.context.is_empty()).then_some("text.0.context")
    }

    /// The same under the name that its user knows.
    fn init_as(&self, method: &str, site: &Site<'_>, seed: u64) -> Result<Params> {
        let (_, words) = clip(method, site)?;
        check_tokens(method, self.tokens, words)?;
        check_depth(method, self.depth, site, words)?;
        self.consistency().check(method)?;
        if self.rank == 0 {
            return self.whole(method, site, seed);
        }
        let width = words.config.width;
        if self.rank > self.tokens.min(width) {
            bail!(
                "{method}: rank {} is out of range; 0 (whole prompts) to {}, the number of tokens",
                self.rank,
                self.tokens.min(width)
            );
        }
        let mut params = self.products(site, width, seed);
        if let Some(name) = self.offset() {
            let values = first_words(method, site, &self.context, self.tokens, seed)?;
            params.push(name, &[self.tokens, width], Group::Fixed, values, site.device);
        }
        Ok(params)
    }

    fn consistency(&self) -> Consistency {
        Consistency {
            text: self.text_consistency,
            image: self.image_consistency,
            logits: self.logit_consistency,
        }
    }
}

/// A method of MMLoP's family, which calls itself by its own name when something is wrong.
pub(super) struct Named(pub(super) &'static str, pub(super) Mmlop);

impl Method for Named {
    fn init(&self, site: &Site<'_>, seed: u64) -> Result<Params> {
        self.1.init_as(self.0, site, seed)
    }

    fn prompts(&self, site: &Site<'_>, params: &Params) -> Prompts {
        self.1.prompts(site, params)
    }

    fn texts(&self) -> Option<TextPlan> {
        self.1.texts()
    }
}

impl Method for Mmlop {
    fn init(&self, site: &Site<'_>, seed: u64) -> Result<Params> {
        self.init_as("mmlop", site, seed)
    }

    fn prompts(&self, site: &Site<'_>, params: &Params) -> Prompts {
        let [mut words, tokens] =
            TOWERS.map(|tower| (0..self.depth).map(|l| self.prompt(params, tower, l)).collect::<Vec<_>>());
        if let (Some(offset), Some(first)) = (self.offset(), words.first_mut()) {
            *first = first.clone() + params.get::<2>(offset);
        }
        Prompts { tokens: image_tokens(site, tokens), words, ..Prompts::default() }
    }

    fn texts(&self) -> Option<TextPlan> {
        let plan = TextPlan::learnt(&self.context, self.tokens);
        let (consistency, drift_correction) = (self.consistency(), self.drift_correction);
        Some(TextPlan { consistency, drift_correction, ..plan })
    }
}
