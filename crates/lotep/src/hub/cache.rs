//! The cache's layout: `models--owner--name/` with `blobs/ETAG`, `refs/REVISION` (a commit) and
//! `snapshots/COMMIT/FILE` (links to blobs), as `huggingface_hub` documents it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Found, Repo, Watch, is_commit};
use crate::{Error, Result, write_atomic, write_atomic_with};

/// The cache's directory.
pub(super) struct Cache {
    pub(super) root: PathBuf,
}

/// A lock on a blob, released when dropped.
pub(super) struct Lock(#[expect(dead_code, reason = "held for its drop")] File);

impl Cache {
    fn folder(&self, repo: &Repo) -> PathBuf {
        self.root.join(folder_name(repo))
    }

    fn snapshot(&self, repo: &Repo, commit: &str) -> PathBuf {
        self.folder(repo).join("snapshots").join(commit)
    }

    /// Where a blob lies.
    pub(super) fn blob(&self, repo: &Repo, etag: &str) -> PathBuf {
        self.folder(repo).join("blobs").join(etag)
    }

    /// A file of a commit, if it is there.
    pub(super) fn found(&self, repo: &Repo, commit: &str, file: &str) -> Option<Found> {
        let path = self.snapshot(repo, commit).join(file);
        path.is_file().then(|| Found { path, commit: commit.into() })
    }

    /// The commit that a revision was when it was last asked for.
    pub(super) fn commit(&self, repo: &Repo) -> Option<String> {
        let text = fs::read_to_string(self.folder(repo).join("refs").join(&repo.revision)).ok()?;
        let commit = text.trim();
        is_commit(commit).then(|| commit.into())
    }

    /// Note what commit a revision is now.
    pub(super) fn remember(&self, repo: &Repo, commit: &str) -> Result<()> {
        if repo.commit().is_some() || self.commit(repo).as_deref() == Some(commit) {
            return Ok(());
        }
        write_atomic(&self.folder(repo).join("refs").join(&repo.revision), commit.as_bytes())
    }

    /// Give a blob its name in a commit: a link, or where the file system has none, a copy.
    pub(super) fn link(&self, repo: &Repo, commit: &str, file: &str, etag: &str) -> Result<Found> {
        let path = self.snapshot(repo, commit).join(file);
        if !path.is_file() {
            let parent = path.parent().unwrap_or(&self.root);
            fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
            // A link whose blob is gone is in the way.
            if path.is_symlink() {
                fs::remove_file(&path).map_err(Error::io("replace", &path))?;
            }
            // Another process may be faster.
            if symlink(&Path::new("../../blobs").join(etag), &path).is_err() && !path.is_file() {
                let blob = self.blob(repo, etag);
                let mut from = File::open(&blob).map_err(Error::io("open", &blob))?;
                write_atomic_with(&path, |to| std::io::copy(&mut from, to).map(|_| ()))?;
            }
        }
        Ok(Found { path, commit: commit.into() })
    }

    /// Wait until no other process, ours or Python's, downloads this blob. False where the file system has no locks.
    pub(super) fn lock(&self, repo: &Repo, etag: &str, watch: &mut dyn Watch) -> Result<(Lock, bool)> {
        let path = self.root.join(".locks").join(folder_name(repo)).join(format!("{etag}.lock"));
        for dir in [path.parent(), self.blob(repo, etag).parent()].into_iter().flatten() {
            fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        }
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(Error::io("open", &path))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok((Lock(file), true)),
                Err(TryLockError::Error(_)) => return Ok((Lock(file), false)),
                Err(TryLockError::WouldBlock) => {}
            }
            if !told {
                watch.warn(&format!("another process downloads this file of {}: waiting for it", repo.name));
                told = true;
            }
            if watch.stop() {
                return Err(Error::Interrupted(format!("interrupted while waiting for {}", path.display())));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn folder_name(repo: &Repo) -> String {
    format!("models--{}", repo.name.replace('/', "--"))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_target: &Path, _link: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
