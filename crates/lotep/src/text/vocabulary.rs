//! CLIP's vocabulary in the files that people have it in.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{END, START, WORD_END, pieces};
use crate::{Error, Result, bail, input_error};

/// Tokens and merges.
#[derive(Debug)]
pub(super) struct Vocabulary {
    /// Where the tokens are from.
    pub(super) path: PathBuf,
    /// Numbers of tokens.
    pub(super) ids: HashMap<String, u32>,
    /// Places of merges in their list.
    pub(super) ranks: HashMap<(String, String), usize>,
}

/// OpenAI's list, of which so many lines are merges.
const OPENAI: [&str; 2] = ["bpe_simple_vocab_16e6.txt", "bpe_simple_vocab_16e6.txt.gz"];
const OPENAI_MERGES: usize = 49152 - 256 - 2;
/// More than any vocabulary's file has.
const MOST_BYTES: u64 = 64 << 20;

impl Vocabulary {
    /// Read what there is in `dir`.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let path = |name: &str| dir.join(name);
        let found = if path("vocab.json").is_file() {
            apart(&path("vocab.json"), &path("merges.txt"))?
        } else if path("tokenizer.json").is_file() {
            together(&path("tokenizer.json"))?
        } else if let Some(list) = OPENAI.iter().map(|name| path(name)).find(|path| path.is_file()) {
            openai(&list)?
        } else {
            bail!(
                "{} has no vocabulary of words, which CLIP's texts need: vocab.json with merges.txt, tokenizer.json or \
                 {} are looked for",
                dir.display(),
                OPENAI[1]
            );
        };
        if let Some(token) = [START, END].into_iter().find(|token| !found.ids.contains_key(*token)) {
            bail!("{} has no token `{token}`: it is no vocabulary of CLIP's", found.path.display());
        }
        Ok(found)
    }

    fn new(path: &Path, ids: HashMap<String, u32>, merges: Vec<(String, String)>) -> Self {
        let ranks = merges.into_iter().enumerate().map(|(rank, pair)| (pair, rank)).collect();
        Self { path: path.to_owned(), ids, ranks }
    }
}

/// A text file, decompressed where its name says so.
fn read(path: &Path) -> Result<String> {
    let file = std::fs::File::open(path).map_err(Error::io("read", path))?;
    let mut text = String::new();
    let compressed = path.extension().is_some_and(|e| e == "gz");
    let result = if compressed {
        flate2::read::GzDecoder::new(file).take(MOST_BYTES).read_to_string(&mut text)
    } else {
        file.take(MOST_BYTES).read_to_string(&mut text)
    };
    result.map_err(|e| input_error!("{} is no text of words: {e}", path.display()))?;
    Ok(text)
}

/// A line of two pieces.
fn pair(line: &str) -> Option<(String, String)> {
    let (first, second) = line.split_once(' ')?;
    (!first.is_empty() && !second.is_empty() && !second.contains(' ')).then(|| (first.into(), second.into()))
}

/// Merges line by line, a heading left out.
fn lines(path: &Path, text: &str, most: usize) -> Result<Vec<(String, String)>> {
    let numbered = text.lines().enumerate().skip(usize::from(text.starts_with('#') || text.starts_with('"')));
    let filled = numbered.filter(|(_, line)| !line.trim().is_empty()).take(most);
    let merge = |(i, line): (usize, &str)| {
        pair(line).ok_or_else(|| {
            input_error!("{}: line {}: `{line}` is no merge of two pieces", path.display(), i + 1)
        })
    };
    filled.map(merge).collect()
}

/// `vocab.json` and `merges.txt`.
fn apart(vocabulary: &Path, merges: &Path) -> Result<Vocabulary> {
    let ids = serde_json::from_str(&read(vocabulary)?)
        .map_err(|e| input_error!("{} is no vocabulary: {e}", vocabulary.display()))?;
    Ok(Vocabulary::new(vocabulary, ids, lines(merges, &read(merges)?, usize::MAX)?))
}

/// `tokenizer.json`, as far as CLIP's has it.
fn together(path: &Path) -> Result<Vocabulary> {
    #[derive(Deserialize)]
    struct File {
        model: Model,
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    #[derive(Deserialize)]
    struct Model {
        vocab: HashMap<String, u32>,
        merges: Vec<Merge>,
        #[serde(default)]
        end_of_word_suffix: Option<String>,
    }
    #[derive(Deserialize)]
    struct Added {
        id: u32,
        content: String,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Merge {
        Line(String),
        Pair(String, String),
    }
    let file: File = serde_json::from_str(&read(path)?)
        .map_err(|e| input_error!("{} is no byte-pair vocabulary: {e}", path.display()))?;
    if file.model.end_of_word_suffix.as_deref() != Some(WORD_END) {
        bail!("{} is no vocabulary of CLIP's, whose words end in {WORD_END}", path.display());
    }
    let merge = |merge: Merge| match merge {
        Merge::Pair(a, b) => Ok((a, b)),
        Merge::Line(line) => {
            pair(&line).ok_or_else(|| input_error!("{}: `{line}` is no merge of two pieces", path.display()))
        }
    };
    let merges = file.model.merges.into_iter().map(merge).collect::<Result<_>>()?;
    let mut ids = file.model.vocab;
    ids.extend(file.added_tokens.into_iter().map(|added| (added.content, added.id)));
    Ok(Vocabulary::new(path, ids, merges))
}

/// OpenAI's list of merges, from which the numbers follow: bytes, bytes that end a word, merges, start, end.
fn openai(path: &Path) -> Result<Vocabulary> {
    let merges = lines(path, &read(path)?, OPENAI_MERGES)?;
    let bytes = pieces::signs().map(String::from);
    let ends = pieces::signs().map(|sign| format!("{sign}{WORD_END}"));
    let joined = merges.iter().map(|(a, b)| format!("{a}{b}"));
    let tokens = bytes.chain(ends).chain(joined).chain([START.to_owned(), END.to_owned()]);
    let ids = tokens.zip(0..).collect();
    Ok(Vocabulary::new(path, ids, merges))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::text::Tokenizer;
    use crate::text::tests::write_vocabulary;

    const MERGES: [[&str; 2]; 2] = [["a", "t</w>"], ["c", "at</w>"]];

    /// The same words in all four formats.
    #[test]
    fn every_format_is_read() {
        let dirs = [(); 5].map(|()| tempfile::tempdir().unwrap());
        let known = write_vocabulary(dirs[0].path(), &MERGES);
        let ids: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dirs[0].path().join("vocab.json")).unwrap()).unwrap();
        let json = |merges: serde_json::Value| {
            let model = serde_json::json!({ "vocab": ids, "merges": merges, "end_of_word_suffix": "</w>" });
            serde_json::json!({ "model": model, "added_tokens": [] }).to_string()
        };
        std::fs::write(
            dirs[1].path().join("tokenizer.json"),
            json(serde_json::json!(["a t</w>", "c at</w>"])),
        )
        .unwrap();
        std::fs::write(dirs[2].path().join("tokenizer.json"), json(serde_json::json!(MERGES))).unwrap();
        let list = "\"bpe_simple_vocab_16e6.txt#version: 0.2\na t</w>\nc at</w>\n";
        std::fs::write(dirs[3].path().join(OPENAI[0]), list).unwrap();
        let file = std::fs::File::create(dirs[4].path().join(OPENAI[1])).unwrap();
        let mut packed = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        packed.write_all(list.as_bytes()).unwrap();
        packed.finish().unwrap();
        for dir in &dirs {
            let tokens = Tokenizer::open(dir.path(), known).unwrap().encode("Cat at", 9).unwrap();
            assert_eq!(tokens, [514, 513, 512, 515], "{:?}", std::fs::read_dir(dir.path()).unwrap().next());
        }
    }

    #[test]
    fn damaged_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let refused = || Tokenizer::open(dir.path(), 1000).unwrap_err().to_string();
        assert!(refused().contains("no vocabulary of words"));
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(OPENAI[1], "not compressed");
        assert!(refused().contains(".gz"));
        write("tokenizer.json", "{}");
        assert!(refused().contains("tokenizer.json is no byte-pair vocabulary"));
        write("tokenizer.json", r#"{"model": {"vocab": {}, "merges": []}}"#);
        assert!(refused().contains("</w>"));
        write("vocab.json", r#"{"a": -1}"#);
        assert!(refused().contains("vocab.json is no vocabulary"));
        write("vocab.json", r#"{"a": 1}"#);
        assert!(refused().contains("merges.txt"));
        write("merges.txt", "#version\na b c\n");
        assert!(refused().contains("line 2: `a b c`"));
        write("merges.txt", "#version\na b\n");
        assert!(refused().contains(START));
    }
}
