//! One file's bytes: resumed where they broke off, checked against their hash, and named only then.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::http::StatusCode;

use super::http::{Answer, Failure, Http, text};
use super::{Repo, Watch};
use crate::{Error, Result, bail, hash};

/// Attempts in a row that bring nothing before giving up.
const ATTEMPTS: u32 = 5;

/// Download a file to `blob`. What has arrived when it breaks off lies beside it as `.incomplete`, for the next time;
/// where nothing keeps two processes from writing to it at once (`locked`), each has a file of its own instead.
pub(super) fn download(
    http: &Http,
    repo: &Repo,
    file: &str,
    answer: &Answer,
    blob: &Path,
    locked: bool,
    watch: &mut dyn Watch,
) -> Result<()> {
    let own = if locked { String::new() } else { format!(".{}", std::process::id()) };
    let partial = PathBuf::from(format!("{}{own}.incomplete", blob.display()));
    let mut resumed = partial.metadata().is_ok_and(|m| m.len() > 0);
    loop {
        receive(http, repo, file, answer.size, &partial, watch)?;
        let found = etag(&partial, &answer.etag)?;
        if found.is_none() {
            watch.warn(&format!("the hub gives no hash of {file}: it can't be checked"));
        }
        if found.as_ref().is_none_or(|found| *found == answer.etag) {
            return fs::rename(&partial, blob).map_err(Error::io("write", blob));
        }
        fs::remove_file(&partial).map_err(Error::io("remove", &partial))?;
        // The beginning may have been another's; the whole is not excused.
        if !std::mem::take(&mut resumed) {
            bail!(
                "{file} of {repo} arrived damaged: its hash is {}, the hub says {}",
                found.unwrap_or_default(),
                answer.etag
            );
        }
        watch.warn(&format!("what was there of {file} is damaged: it is downloaded anew"));
    }
}

/// Receive until the file has its size.
fn receive(
    http: &Http,
    repo: &Repo,
    file: &str,
    size: u64,
    partial: &Path,
    watch: &mut dyn Watch,
) -> Result<()> {
    let mut options = File::options();
    let options = options.read(true).write(true).create(true).truncate(false);
    let mut out = options.open(partial).map_err(Error::io("open", partial))?;
    out.seek(SeekFrom::End(0)).map_err(Error::io("read", partial))?;
    let length = |out: &File| out.metadata().map(|m| m.len()).map_err(Error::io("read", partial));
    let restart =
        |out: &mut File| out.set_len(0).and_then(|()| out.rewind()).map_err(Error::io("write", partial));
    if length(&out)? > size {
        restart(&mut out)?;
    }
    let mut failures = 0;
    loop {
        let start = length(&out)?;
        if start == size {
            return out.sync_all().map_err(Error::io("write", partial));
        }
        watch.download(file, start, size);
        let why = match http.receive(repo, file, start) {
            Err(Failure::Refused(why) | Failure::NoRevision(why)) => bail!("{why}"),
            Err(Failure::Busy(why) | Failure::Unreachable(why)) => why,
            Ok(mut response) => {
                let range = text(&response, "content-range").unwrap_or_default();
                let continues = response.status() == StatusCode::PARTIAL_CONTENT
                    && range.starts_with(&format!("bytes {start}-"));
                if start > 0 && !continues {
                    restart(&mut out)?;
                }
                if response.status() == StatusCode::OK || continues {
                    let from = if continues { start } else { 0 };
                    let mut body = response.body_mut().as_reader().take(size.saturating_sub(from));
                    copy(&mut body, &mut out, (from, size), (file, partial), watch)?
                } else {
                    "the hub answers with another part than was asked for".into()
                }
            }
        };
        failures = if length(&out)? > start { 0 } else { failures + 1 };
        if length(&out)? < size {
            if failures == ATTEMPTS {
                bail!("the download of {file} of {repo} breaks off again and again: {why}");
            }
            if failures > 0 {
                wait(Duration::from_millis(250 << failures), file, watch)?;
            }
        }
    }
}

/// Copy until the body ends, and say why it did.
fn copy(
    body: &mut impl Read,
    out: &mut File,
    (mut done, size): (u64, u64),
    (file, partial): (&str, &Path),
    watch: &mut dyn Watch,
) -> Result<String> {
    let mut buffer = vec![0; 1 << 18];
    loop {
        let n = match body.read(&mut buffer) {
            Ok(0) => return Ok("the connection was closed".into()),
            Ok(n) => n,
            Err(e) => return Ok(e.to_string()),
        };
        out.write_all(&buffer[..n]).map_err(Error::io("write", partial))?;
        done += n as u64;
        watch.download(file, done, size);
        interrupted(file, watch)?;
    }
}

fn interrupted(file: &str, watch: &dyn Watch) -> Result<()> {
    if watch.stop() {
        let how = "the same command goes on from there";
        return Err(Error::Interrupted(format!("interrupted: what has arrived of {file} is kept, {how}")));
    }
    Ok(())
}

/// Sleep, but not through the user's wish to stop.
fn wait(time: Duration, file: &str, watch: &dyn Watch) -> Result<()> {
    let tick = Duration::from_millis(50);
    for _ in 0..time.as_millis() / tick.as_millis() {
        interrupted(file, watch)?;
        std::thread::sleep(tick);
    }
    Ok(())
}

/// The file's hash of the kind that the hub's etag is; none where it is of no known kind.
fn etag(path: &Path, like: &str) -> Result<Option<String>> {
    let kind = if like.bytes().all(|b| b.is_ascii_hexdigit()) { like.len() } else { 0 };
    Ok(match kind {
        64 => Some(hash::files(Sha256::new(), &[path])?),
        40 => {
            // As git names it.
            let size = path.metadata().map_err(Error::io("read", path))?.len();
            Some(hash::files(Sha1::new_with_prefix(format!("blob {size}\0")), &[path])?)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_are_hashes_of_two_kinds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "hello\n").unwrap();
        // `git hash-object` and `sha256sum` of the same six bytes.
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(etag(&path, git).unwrap().as_deref(), Some(git));
        assert_eq!(etag(&path, sha).unwrap().as_deref(), Some(sha));
        assert_eq!(etag(&path, "abc-1").unwrap(), None);
    }
}
