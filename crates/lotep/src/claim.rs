//! A directory for one process at a time.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::{Error, Result, bail};

/// A directory that is held until this is dropped, or the process ends in whatever way.
#[derive(Debug)]
pub struct Claim {
    _directory: Option<File>,
}

/// Hold `directory`, which is made if it is missing. No file is written for it: the system knows who has locked what.
///
/// # Errors
/// Another process holds it, or it can't be made. Where the system can't lock directories nobody is kept away.
pub fn claim(directory: &Path) -> Result<Claim> {
    std::fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
    let Ok(file) = File::open(directory) else { return Ok(Claim { _directory: None }) };
    match file.try_lock() {
        Ok(()) => Ok(Claim { _directory: Some(file) }),
        Err(TryLockError::WouldBlock) => {
            bail!(
                "another lotep is at work in {}: wait for it, or choose another directory",
                directory.display()
            )
        }
        Err(TryLockError::Error(_)) => Ok(Claim { _directory: None }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("run");
        let held = claim(&dir).unwrap();
        let error = claim(&dir).unwrap_err().to_string();
        assert!(error.contains("another lotep is at work"), "{error}");
        drop(held);
        claim(&dir).unwrap();
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    }
}
