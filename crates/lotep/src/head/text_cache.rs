//! Vectors of classes that nothing learnt changes, kept on disk: a thousand classes in seven sentences, or in the sixty that
//! MMLoP and PromptSRC are held to, take the text tower longer than everything else that a prediction does.
//!
//! A file holds one tensor, under the hash of all that it depends on: weights, precision, instruction set, version, tokens.
//! It is written whole or not at all, checked against its own hash when it is read, and computed anew if that fails. The
//! newest [`MOST`] are kept.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use burn::tensor::{Device, Tensor, TensorData};
use sha2::{Digest, Sha256};

use crate::backbone::Loaded;
use crate::hash::hex;
use crate::safetensors::{NamedTensor, TensorFile, serialize};
use crate::{Result, bail, write_atomic};

/// Where the files are, or `off`; by default `lotep/texts` in the user's directory for caches.
const VARIABLE: &str = "LOTEP_TEXT_CACHE";
/// Fewer texts are encoded sooner than it is worth.
const LEAST_TEXTS: usize = 128;
/// Files that are kept, of about 2 MB for a thousand classes.
const MOST: usize = 128;

/// The tensor's name.
const VECTORS: &str = "vectors";
/// The entry of a file that holds its values' hash.
const HASH: &str = "sha256";

/// The user's files.
pub(super) struct TextCache {
    /// None where nothing is to be kept.
    dir: Option<PathBuf>,
    /// What went wrong, for people; nothing of it keeps anyone from the result.
    pub(super) warnings: Vec<String>,
}

impl TextCache {
    pub(super) fn of_user() -> Self {
        let variable = std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
        let dir = match variable {
            Some(value) if value == "off" => None,
            Some(dir) => Some(PathBuf::from(dir)),
            None => {
                let cache = std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty());
                let cache = cache.map(PathBuf::from).or_else(|| Some(std::env::home_dir()?.join(".cache")));
                cache.map(|cache| cache.join("lotep").join("texts"))
            }
        };
        Self { dir, warnings: Vec::new() }
    }

    /// What `compute` gives, `[classes, F]`, or what it gave for the same `key` before. `texts` is how many it encodes.
    ///
    /// # Errors
    /// Those of `compute`; files give none.
    pub(super) fn get(
        &mut self,
        key: Option<String>,
        texts: usize,
        shape: [usize; 2],
        device: &Device,
        compute: impl FnOnce() -> Result<Tensor<2>>,
    ) -> Result<Tensor<2>> {
        let (Some(dir), Some(key)) = (self.dir.clone().filter(|_| texts >= LEAST_TEXTS), key) else {
            return compute();
        };
        let path = dir.join(format!("{key}.safetensors"));
        if path.exists() {
            match read(&path, shape) {
                Ok(values) => return Ok(Tensor::from_data(TensorData::new(values, shape), device)),
                Err(error) => self.warnings.push(format!("{error}: the texts are encoded again")),
            }
        }
        let computed = compute()?;
        if let Err(error) = write(&path, &computed) {
            self.warnings.push(format!("the texts' vectors are not kept for later: {error}"));
        }
        trim(&dir);
        Ok(computed)
    }
}

/// What vectors depend on, as a file's name; nothing for made-up weights, which are not kept. `how` is what is made of the
/// sentences, `length` the tower's.
pub(super) fn key(loaded: &Loaded, how: &str, length: usize, sentences: &[Vec<u32>]) -> Option<String> {
    let (weights, words) = (loaded.sha256.as_ref()?, loaded.words.as_ref()?);
    let mut hash = Sha256::new();
    // Each part ends with a byte that is in none.
    for part in [
        env!("CARGO_PKG_VERSION"),
        how,
        weights,
        &format!("{:?} {:?} {:?}", words.config, loaded.precision, loaded.device),
        lotep_frozen::isa().name(),
        &format!("{length} {}", sentences.len()),
    ] {
        hash.update(part.as_bytes());
        hash.update([0xff]);
    }
    for sentence in sentences {
        hash.update((sentence.len() as u64).to_le_bytes());
        for token in sentence {
            hash.update(token.to_le_bytes());
        }
    }
    Some(hex(&hash.finalize()))
}

fn content(values: &[f32]) -> String {
    let mut hash = Sha256::new();
    for value in values {
        hash.update(value.to_le_bytes());
    }
    hex(&hash.finalize())
}

fn read(path: &Path, shape: [usize; 2]) -> Result<Vec<f32>> {
    let file = TensorFile::open(path)?;
    let (values, found) = file.read(VECTORS)?;
    if found != shape {
        bail!("{} holds vectors of shape {found:?}, not {shape:?}", path.display());
    }
    if file.metadata().get(HASH) != Some(&content(&values)) {
        bail!("{} is damaged: its values are not those that were written", path.display());
    }
    Ok(values)
}

fn write(path: &Path, vectors: &Tensor<2>) -> Result<()> {
    let values: Vec<f32> = vectors.clone().without_autodiff().into_data().iter::<f32>().collect();
    let hash = content(&values);
    let tensor = NamedTensor { name: VECTORS.into(), shape: vectors.dims().to_vec(), values };
    write_atomic(path, &serialize(&[tensor], Some((HASH, hash)))?)
}

/// Leave the newest files alone and remove the others. One that can't be removed stays.
fn trim(dir: &Path) {
    let age =
        |path: &PathBuf| std::fs::metadata(path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let mut files: Vec<PathBuf> =
        entries.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    if files.len() > MOST {
        files.sort_by_key(|path| std::cmp::Reverse(age(path)));
        for path in &files[MOST..] {
            _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(dir: &Path) -> TextCache {
        TextCache { dir: Some(dir.to_owned()), warnings: Vec::new() }
    }

    /// Ask for a tensor of ones; how often it was computed, and its first value.
    fn ask(cache: &mut TextCache, key: &str, texts: usize, shape: [usize; 2]) -> (usize, f32) {
        let mut computed = 0;
        let device = Device::flex();
        let found = cache.get(Some(key.into()), texts, shape, &device, || {
            computed += 1;
            Ok(Tensor::ones(shape, &Device::flex()))
        });
        let found = found.unwrap();
        assert_eq!(found.dims(), shape);
        (computed, found.into_data().iter::<f32>().next().unwrap())
    }

    #[test]
    fn what_was_computed_is_read_and_what_is_damaged_computed_again() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("a/b");
        let mut cache = cache(&dir);
        assert_eq!(ask(&mut cache, "k", LEAST_TEXTS - 1, [2, 3]), (1, 1.0));
        assert!(!dir.exists());
        assert_eq!(ask(&mut cache, "k", LEAST_TEXTS, [2, 3]), (1, 1.0));
        assert_eq!(ask(&mut cache, "k", LEAST_TEXTS, [2, 3]), (0, 1.0));
        assert_eq!(ask(&mut cache, "l", LEAST_TEXTS, [2, 3]), (1, 1.0));
        assert!(cache.warnings.is_empty());
        // Another value, another shape, half of a file, no file at all.
        let path = dir.join("k.safetensors");
        let whole = std::fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        let last = flipped.len() - 1;
        flipped[last] ^= 1;
        for (bytes, words) in [
            (flipped, "not those that were written"),
            (whole[..20].to_vec(), "safetensors"),
            (vec![], "safetensors"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(ask(&mut cache, "k", LEAST_TEXTS, [2, 3]), (1, 1.0));
            let said = cache.warnings.pop().unwrap();
            assert!(said.contains(words) && said.contains("encoded again"), "{said}");
            assert_eq!(ask(&mut cache, "k", LEAST_TEXTS, [2, 3]), (0, 1.0));
        }
        assert_eq!(ask(&mut cache, "k", LEAST_TEXTS, [3, 2]), (1, 1.0));
        assert!(cache.warnings.pop().unwrap().contains("[2, 3], not [3, 2]"));
        // A place where nothing can be written.
        std::fs::write(dir.join("file"), "").unwrap();
        let mut nowhere = TextCache { dir: Some(dir.join("file/c")), warnings: Vec::new() };
        assert_eq!(ask(&mut nowhere, "k", LEAST_TEXTS, [2, 3]), (1, 1.0));
        assert!(nowhere.warnings.pop().unwrap().contains("not kept for later"));
        let mut off = TextCache { dir: None, warnings: Vec::new() };
        assert_eq!(ask(&mut off, "k", LEAST_TEXTS, [2, 3]), (1, 1.0));
    }

    #[test]
    fn the_newest_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = |i: usize| dir.path().join(format!("{i}.safetensors"));
        for i in 0..MOST + 2 {
            let file = std::fs::File::create(path(i)).unwrap();
            let old = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1 + i as u64);
            file.set_modified(old).unwrap();
        }
        std::fs::write(dir.path().join("notes.txt"), "").unwrap();
        assert_eq!(ask(&mut cache(dir.path()), "new", LEAST_TEXTS, [1, 1]), (1, 1.0));
        assert!(!path(0).exists() && !path(2).exists() && path(3).exists());
        assert!(dir.path().join("new.safetensors").exists() && dir.path().join("notes.txt").exists());
    }
}
