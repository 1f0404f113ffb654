//! Texts for CLIP: byte-pair tokens, and the templates that class names are put into.

pub(crate) mod learn;
mod pieces;
pub mod templates;
mod vocabulary;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use crate::{Result, bail};
use vocabulary::Vocabulary;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// Follows a word's last character.
const WORD_END: &str = "</w>";

/// CLIP's byte-pair encoding: words of lower-case letters, digits one by one, runs of other signs, each joined from its
/// bytes by the merges that come first in the vocabulary's list.
#[derive(Debug)]
pub struct Tokenizer(Kind);

#[derive(Debug)]
enum Kind {
    Pairs(Vocabulary),
    /// Made-up tokens for made-up weights: a word's is a function of its letters.
    MadeUp(u32),
}

impl Tokenizer {
    /// Read the vocabulary in a model's directory: `vocab.json` with `merges.txt`, `tokenizer.json`, or OpenAI's
    /// `bpe_simple_vocab_16e6.txt`, which may be compressed (`.gz`).
    ///
    /// # Errors
    /// There is none, or it is damaged, or has more tokens than the text tower's `vocabulary`.
    pub fn open(dir: &Path, vocabulary: usize) -> Result<Self> {
        let read = Vocabulary::open(dir)?;
        if let Some((token, id)) = read.ids.iter().find(|(_, id)| **id as usize >= vocabulary) {
            bail!(
                "{}: token `{token}` has number {id}, the text tower knows {vocabulary} tokens",
                read.path.display()
            );
        }
        Ok(Self(Kind::Pairs(read)))
    }

    /// For a text tower of made-up weights.
    pub(crate) fn made_up(vocabulary: usize) -> Self {
        Self(Kind::MadeUp(vocabulary as u32))
    }

    /// The tokens of a text, without start and end.
    ///
    /// # Errors
    /// A piece of it is not in the vocabulary.
    pub fn words(&self, text: &str) -> Result<Vec<u32>> {
        let text = clean(text);
        match &self.0 {
            Kind::MadeUp(vocabulary) => {
                Ok(pieces::split(&text).map(|word| made_up(word, *vocabulary)).collect())
            }
            Kind::Pairs(vocabulary) => {
                let mut tokens = Vec::new();
                for word in pieces::split(&text) {
                    for piece in join(word, &vocabulary.ranks) {
                        match vocabulary.ids.get(&piece) {
                            Some(id) => tokens.push(*id),
                            None => bail!(
                                "`{text}`: `{piece}` is no token of {}: write it otherwise, or take the model's own \
                                 vocabulary",
                                vocabulary.path.display()
                            ),
                        }
                    }
                }
                Ok(tokens)
            }
        }
    }

    /// A text as the tower takes it, with start and end.
    ///
    /// # Errors
    /// It is empty, a piece of it is not in the vocabulary, or it is longer than `context`.
    pub fn encode(&self, text: &str, context: usize) -> Result<Vec<u32>> {
        let words = self.words(text)?;
        if words.is_empty() {
            bail!("an empty text has no meaning: give a name, or a template with {{}}");
        }
        if words.len() + 2 > context {
            bail!(
                "`{}` has {} tokens with its start and end, the text tower takes {context} at most: shorten it",
                clean(text),
                words.len() + 2
            );
        }
        let [start, end] = self.ends();
        Ok([vec![start], words, vec![end]].concat())
    }

    /// The tokens of start and end.
    fn ends(&self) -> [u32; 2] {
        match &self.0 {
            Kind::MadeUp(vocabulary) => [vocabulary - 2, vocabulary - 1],
            Kind::Pairs(vocabulary) => [START, END].map(|token| vocabulary.ids[token]),
        }
    }
}

/// Lower case, one space between words. CLIP's own repairs of broken encodings are left to whoever wrote the names.
fn clean(text: &str) -> String {
    text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn made_up(word: &str, vocabulary: u32) -> u32 {
    // Its algorithm is not promised to stay, and made-up weights mean nothing from one version to the next.
    let mut hasher = DefaultHasher::new();
    word.hash(&mut hasher);
    (hasher.finish() % u64::from(vocabulary.saturating_sub(2).max(1))) as u32
}

/// A word's tokens: of neighbouring pieces, those whose merge comes first in the list are joined, until none is left.
fn join(word: &str, ranks: &HashMap<(String, String), usize>) -> Vec<String> {
    let mut parts: Vec<String> = word.bytes().map(|b| pieces::sign(b).to_string()).collect();
    if let Some(last) = parts.last_mut() {
        last.push_str(WORD_END);
    }
    loop {
        let rank = |i: usize| ranks.get(&(parts[i].clone(), parts[i + 1].clone())).copied();
        let best = (0..parts.len().saturating_sub(1)).filter_map(|i| Some((rank(i)?, i))).min();
        let Some((_, first)) = best else { return parts };
        // The same pair may come again further on: it has the same rank, and its turn is next.
        let second = parts.remove(first + 1);
        parts[first].push_str(&second);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small vocabulary in the format of transformers: all bytes, as parts and as ends, and some merges.
    pub(crate) fn write_vocabulary(dir: &Path, merges: &[[&str; 2]]) -> usize {
        let mut tokens: Vec<String> = (0..=255).map(|b| pieces::sign(b).to_string()).collect();
        tokens.extend((0..=255).map(|b| format!("{}{WORD_END}", pieces::sign(b))));
        tokens.extend(merges.iter().map(|m| m.concat()));
        tokens.extend([START.to_owned(), END.to_owned()]);
        let ids: serde_json::Map<String, serde_json::Value> =
            tokens.iter().enumerate().map(|(i, t)| (t.clone(), i.into())).collect();
        std::fs::write(dir.join("vocab.json"), serde_json::to_vec(&ids).unwrap()).unwrap();
        let lines: Vec<String> = merges.iter().map(|m| m.join(" ")).collect();
        std::fs::write(dir.join("merges.txt"), format!("#version: 0.2\n{}\n", lines.join("\n"))).unwrap();
        tokens.len()
    }

    const MERGES: [[&str; 2]; 6] =
        [["a", "t</w>"], ["c", "at</w>"], ["d", "o"], ["do", "g</w>"], ["1", "2</w>"], ["o", "g</w>"]];

    #[test]
    fn words_are_joined_by_the_first_merges() {
        let dir = tempfile::tempdir().unwrap();
        let known = write_vocabulary(dir.path(), &MERGES);
        let tokenizer = Tokenizer::open(dir.path(), known).unwrap();
        let cat = 512 + 1;
        let at = 512;
        let byte = |c: u8| u32::from(c);
        let end = |c: u8| 256 + u32::from(c);
        for (text, tokens) in [
            ("cat", vec![cat]),
            ("  CAT\n cat ", vec![cat, cat]),
            ("at", vec![at]),
            ("dog", vec![512 + 3]),
            ("fog", vec![byte(b'f'), 512 + 5]),
            // Digits stand alone, so that their merge is never used.
            ("12", vec![end(b'1'), end(b'2')]),
            ("cat's", vec![cat, byte(b'\''), end(b's')]),
            ("cat?!cat", vec![cat, byte(b'?'), end(b'!'), cat]),
        ] {
            assert_eq!(tokenizer.words(text).unwrap(), tokens, "{text}");
        }
        assert_eq!(tokenizer.encode("cat", 3).unwrap(), [518, cat, 519]);
        let refused = |text: &str, context| tokenizer.encode(text, context).unwrap_err().to_string();
        assert!(refused("cat cat", 3).contains("4 tokens with its start and end, the text tower takes 3"));
        assert!(refused(" \t", 9).contains("empty text"));
    }

    #[test]
    fn what_the_vocabulary_lacks_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let ids = serde_json::json!({ "a</w>": 0, START: 1, END: 2 });
        std::fs::write(dir.path().join("vocab.json"), ids.to_string()).unwrap();
        std::fs::write(dir.path().join("merges.txt"), "#version: 0.2\n").unwrap();
        let tokenizer = Tokenizer::open(dir.path(), 3).unwrap();
        assert_eq!(tokenizer.words("a").unwrap(), [0]);
        let error = tokenizer.words("a b").unwrap_err().to_string();
        assert!(error.contains("`b</w>` is no token of") && error.contains("vocab.json"), "{error}");
        let error = Tokenizer::open(dir.path(), 2).unwrap_err().to_string();
        assert!(error.contains("has number 2, the text tower knows 2 tokens"), "{error}");
    }
}
