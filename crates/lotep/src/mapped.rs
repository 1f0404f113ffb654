//! Files of weights as memory: nothing is read before it is used, and nothing is held twice.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::{Error, Result};

/// A mapped file.
#[derive(Debug)]
pub(crate) struct Mapped {
    path: PathBuf,
    map: Mmap,
}

impl Mapped {
    /// Map `path`.
    ///
    /// # Errors
    /// It can't be opened or mapped.
    pub(crate) fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        // A directory opens, and fails only when it is mapped, with an error that says nothing.
        if file.metadata().map_err(Error::io("read", &path))?.is_dir() {
            return Err(Error::io("read", &path)(std::io::ErrorKind::IsADirectory.into()));
        }
        #[expect(unsafe_code, reason = "the only way to map a file")]
        // SAFETY: the mapping is read-only and private. A program that rewrites the file meanwhile could change the
        // bytes under a reader, which are only ever copied as numbers whose every pattern is valid, and one that cuts
        // it short would end this process, as it would end any that maps weights. What lotep itself and the hub's
        // libraries write gets its name when it is complete, and is never written again.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", &path))?;
        Ok(Self { path, map })
    }

    /// The file's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// `length` bytes from `start` on; `None` where they are not all in the file.
    pub(crate) fn part(&self, start: u64, length: u64) -> Option<&[u8]> {
        let end = start.checked_add(length)?;
        self.map.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
    }
}
