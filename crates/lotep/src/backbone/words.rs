//! The text side of a loaded CLIP: its tower, to be built for texts of a length, and its vocabulary.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Architecture, Checkpoint, ModelConfig, TextConfig};
use crate::text::Tokenizer;
use crate::{Error, Result, bail, input_error};

/// What is known of a CLIP's text side. The tower itself is built when texts are there: it is as long as they are.
#[derive(Clone)]
pub struct Words {
    /// The tower's shape.
    pub config: TextConfig,
    /// What cosines are multiplied by, `exp(logit_scale)`.
    pub scale: f32,
    /// Where the vocabulary is looked for; none for made-up weights.
    dir: Option<PathBuf>,
    tokenizer: Arc<Mutex<Option<Arc<Tokenizer>>>>,
}

impl Words {
    pub(super) fn new(config: TextConfig, scale: f32, dir: Option<PathBuf>) -> Self {
        Self { config, scale, dir, tokenizer: Arc::default() }
    }

    /// What a checkpoint has of it; `None` for other networks, and for an image tower alone.
    pub(super) fn find(file: &Checkpoint, config: &ModelConfig) -> Result<Option<Self>> {
        let Architecture::Vit(image) = &config.architecture else { return Ok(None) };
        let wrong = |e: Error| input_error!("{}: {e}", file.path().display());
        let found = TextConfig::find(&file.shapes(), config.text, config.classes, image.nonlinearity);
        let Some(text) = found.map_err(wrong)? else { return Ok(None) };
        let stored = file.read("logit_scale")?;
        let scale = match stored[..] {
            [scale] if scale.is_finite() && scale.abs() < 20.0 => scale.exp(),
            _ => bail!("{}: `logit_scale` {stored:?} is no logarithm of a scale", file.path().display()),
        };
        let dir = file.path().parent().unwrap_or(Path::new("")).to_owned();
        Ok(Some(Self::new(text, scale, Some(dir))))
    }

    /// OpenAI's, made up, for an image tower of CLIP's.
    pub(super) fn made_up(config: &ModelConfig) -> Option<Self> {
        let Architecture::Vit(image) = &config.architecture else { return None };
        let text = TextConfig::openai(config.classes, image.nonlinearity);
        (image.clip && config.classes > 0).then(|| Self::new(text, 100.0, None))
    }

    /// The vocabulary, read when it is first asked for.
    ///
    /// # Errors
    /// The model's directory has none, or it is damaged.
    pub fn tokenizer(&self) -> Result<Arc<Tokenizer>> {
        let mut held = self.tokenizer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tokenizer) = &*held {
            return Ok(tokenizer.clone());
        }
        let known = self.config.vocabulary;
        let tokenizer = match &self.dir {
            Some(dir) => {
                Tokenizer::open(if dir.as_os_str().is_empty() { Path::new(".") } else { dir }, known)?
            }
            None => Tokenizer::made_up(known),
        };
        Ok(held.insert(Arc::new(tokenizer)).clone())
    }

    /// Tokens of texts, each with start and end.
    ///
    /// # Errors
    /// There is no vocabulary, or a text is empty, too long, or has a piece that is in no vocabulary.
    pub fn encode(&self, texts: &[String]) -> Result<Vec<Vec<u32>>> {
        let tokenizer = self.tokenizer()?;
        texts.iter().map(|text| tokenizer.encode(text, self.config.context)).collect()
    }
}
