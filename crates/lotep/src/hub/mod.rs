//! Networks from the Hugging Face hub.
//!
//! Files lie in the cache that Python's `huggingface_hub` uses, in its layout, so that neither program downloads what
//! the other has. So do the settings: `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_TOKEN`,
//! `HF_TOKEN_PATH` and `HF_HUB_DISABLE_IMPLICIT_TOKEN` mean what they mean there.

mod cache;
mod download;
mod http;
mod settings;

use std::fmt;
use std::path::PathBuf;

use self::cache::Cache;
use self::http::{Failure, Http};
pub use self::settings::Settings;
use crate::{Result, bail};

/// Watches downloads and may stop them. `()` watches nothing.
pub trait Watch {
    /// So many bytes of a file are there.
    fn download(&mut self, _file: &str, _done: u64, _size: u64) {}

    /// Something the user should know.
    fn warn(&mut self, _line: &str) {}

    /// Whether to stop; what has arrived is kept for the next time.
    fn stop(&self) -> bool {
        false
    }
}

impl Watch for () {}

/// A repository of models at a revision, written `owner/name@revision`.
#[derive(Clone, Debug, PartialEq)]
pub struct Repo {
    /// `owner/name`.
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.revision)
    }
}

impl Repo {
    /// Read `owner/name` or `owner/name@revision`; the revision defaults to `main`.
    ///
    /// # Errors
    /// It is written otherwise.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let part = |p: &str| !p.is_empty() && p.len() <= 96 && !p.starts_with('.') && p.chars().all(plain);
        if !name.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name)) {
            bail!("`{name}` is not a repository's name: owner/name is expected, as in timm/resnet18.tv_in1k");
        }
        if !revision.split('/').all(part) {
            bail!("`{revision}` is not a revision of {name}: a branch, a tag or a commit is expected");
        }
        Ok(Self { name: name.into(), revision: revision.into() })
    }

    /// The revision, if it is a commit, which never changes.
    fn commit(&self) -> Option<&str> {
        is_commit(&self.revision).then_some(&self.revision)
    }
}

/// What the hub and the cache call a commit goes into paths, so it is checked.
fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A file of a repository, on this machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Where it lies, beside the other files of the same commit.
    pub path: PathBuf,
    /// The commit it is from.
    pub commit: String,
}

/// What is known of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Lookup {
    /// It is here.
    Found(Found),
    /// The repository has no such file.
    Absent,
    /// It is not in the cache, and nobody can be asked, for this reason.
    Unknown(String),
}

/// The hub and the cache before it.
pub struct Hub {
    http: Http,
    cache: Cache,
    offline: bool,
}

impl Hub {
    /// The hub that the environment describes.
    ///
    /// # Errors
    /// A variable has a value that makes no sense.
    pub fn from_env() -> Result<Self> {
        Settings::from_env().map(Self::new)
    }

    /// A hub with these settings.
    pub fn new(settings: Settings) -> Self {
        let Settings { endpoint, cache, token, offline } = settings;
        Self { http: Http::new(endpoint, token), cache: Cache { root: cache }, offline }
    }

    /// Get a file: from the cache if it is there and up to date, else from the hub. A cached file serves where the hub
    /// can't be reached or refuses, with a warning.
    ///
    /// # Errors
    /// The repository or revision does not exist or is not for this user; the file arrives damaged; the disk is full;
    /// the watcher stopped it.
    pub fn get(&self, repo: &Repo, file: &str, watch: &mut dyn Watch) -> Result<Lookup> {
        if let Some(found) = repo.commit().and_then(|commit| self.cache.found(repo, commit, file)) {
            return Ok(Lookup::Found(found));
        }
        let cached = || self.cache.commit(repo).and_then(|commit| self.cache.found(repo, &commit, file));
        let unknown = |why: &str| {
            let cache = self.cache.root.display();
            Lookup::Unknown(format!("{file} of {repo} is not in the cache {cache}, and {why}"))
        };
        if self.offline {
            let why = "HF_HUB_OFFLINE is set: run once without it";
            return Ok(cached().map_or_else(|| unknown(why), Lookup::Found));
        }
        let answer = match self.http.ask(repo, file) {
            Ok(Some(answer)) => answer,
            Ok(None) => return Ok(Lookup::Absent),
            Err(Failure::NoRevision(why)) => bail!("{why}"),
            Err(failure) => {
                let (Failure::Busy(why)
                | Failure::Unreachable(why)
                | Failure::Refused(why)
                | Failure::NoRevision(why)) = &failure;
                return match cached() {
                    Some(found) => {
                        watch.warn(&format!("{why}: {repo} is taken from the cache"));
                        Ok(Lookup::Found(found))
                    }
                    None if matches!(failure, Failure::Refused(_)) => bail!("{why}"),
                    None => Ok(unknown(why)),
                };
            }
        };
        let remembered = self.cache.remember(repo, &answer.commit);
        if let Some(found) = self.cache.found(repo, &answer.commit, file) {
            // A cache that others keep may be read-only.
            return Ok(Lookup::Found(found));
        }
        remembered?;
        // Of the commit that was answered, wherever the branch goes meanwhile.
        let repo = Repo { revision: answer.commit.clone(), ..repo.clone() };
        let (_lock, shared) = self.cache.lock(&repo, &answer.etag, watch)?;
        let blob = self.cache.blob(&repo, &answer.etag);
        if !blob.is_file() {
            download::download(&self.http, &repo, file, &answer, &blob, shared, watch)?;
        }
        self.cache.link(&repo, &answer.commit, file, &answer.etag).map(Lookup::Found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_parsed_strictly() {
        let repo = Repo::parse("timm/resnet18.tv_in1k").unwrap();
        assert_eq!(repo.to_string(), "timm/resnet18.tv_in1k@main");
        assert_eq!(Repo::parse("a/b@refs/pr/1").unwrap().revision, "refs/pr/1");
        assert!(repo.commit().is_none());
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(Repo::parse(&format!("a/b@{commit}")).unwrap().commit(), Some(commit));
        for wrong in ["", "a", "a/", "/b", "a/b/c", "../b", "a/..", "a b/c", "a/b@", "a/b@../x", "a/b@x//y"] {
            let error = Repo::parse(wrong).unwrap_err().to_string();
            assert!(error.contains("is expected"), "{wrong}: {error}");
        }
    }
}
