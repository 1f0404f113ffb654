//! A small vocabulary of one's own, for a CLIP that is trained from nothing.

use std::collections::BTreeMap;
use std::path::Path;

use super::{END, START, WORD_END, pieces};
use crate::{Result, input_error, write_atomic};

/// Merges that make each of `words` one token: the pair that most words have comes first, of equals the first in order.
pub(crate) fn merges<'a>(words: impl IntoIterator<Item = &'a str>) -> Vec<(String, String)> {
    let spelt = |word: &str| {
        let mut parts: Vec<String> = word.bytes().map(|b| pieces::sign(b).to_string()).collect();
        parts.last_mut().into_iter().for_each(|last| last.push_str(WORD_END));
        parts
    };
    let mut words: Vec<Vec<String>> = words.into_iter().map(spelt).collect();
    words.sort();
    words.dedup();
    let mut merges = Vec::new();
    loop {
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for word in &words {
            word.windows(2).for_each(|pair| *counts.entry((&pair[0], &pair[1])).or_default() += 1);
        }
        let most = counts.into_iter().max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(&a.0)));
        let Some((pair, _)) = most else { return merges };
        let pair = (pair.0.to_owned(), pair.1.to_owned());
        for word in &mut words {
            let mut i = 0;
            while i + 1 < word.len() {
                if word[i] == pair.0 && word[i + 1] == pair.1 {
                    let second = word.remove(i + 1);
                    word[i].push_str(&second);
                }
                i += 1;
            }
        }
        merges.push(pair);
    }
}

/// Number of tokens of such a vocabulary.
pub(crate) fn size(merges: &[(String, String)]) -> usize {
    2 * 256 + merges.len() + 2
}

/// Write it as transformers does: `vocab.json` and `merges.txt`.
pub(crate) fn write(merges: &[(String, String)], dir: &Path) -> Result<()> {
    let bytes = pieces::signs().map(String::from);
    let ends = pieces::signs().map(|sign| format!("{sign}{WORD_END}"));
    let joined = merges.iter().map(|(a, b)| format!("{a}{b}"));
    let tokens = bytes.chain(ends).chain(joined).chain([START.to_owned(), END.to_owned()]);
    let ids: serde_json::Map<String, serde_json::Value> =
        tokens.zip(0_u32..).map(|(t, i)| (t, i.into())).collect();
    let json = serde_json::to_vec(&ids).map_err(|e| input_error!("cannot write the vocabulary: {e}"))?;
    let lines: String = merges.iter().flat_map(|(a, b)| [a, " ", b, "\n"]).collect();
    write_atomic(&dir.join("vocab.json"), &json)?;
    write_atomic(&dir.join("merges.txt"), format!("#version: 0.2\n{lines}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Tokenizer;

    #[test]
    fn every_word_is_one_token() {
        let words = ["photo", "of", "the", "a", "hot", "other", "ooo", "."];
        let merges = merges(words);
        let dir = tempfile::tempdir().unwrap();
        write(&merges, dir.path()).unwrap();
        let known = size(&merges);
        let tokenizer = Tokenizer::open(dir.path(), known).unwrap();
        for word in words {
            assert_eq!(tokenizer.words(word).unwrap().len(), 1, "{word}");
        }
        assert_eq!(
            tokenizer.words("photo of the otter.").unwrap().len(),
            3 + 1 + tokenizer.words("otter").unwrap().len()
        );
        assert_eq!(
            tokenizer.encode("a", 3).unwrap(),
            [known as u32 - 2, tokenizer.words("a").unwrap()[0], known as u32 - 1]
        );
    }
}
