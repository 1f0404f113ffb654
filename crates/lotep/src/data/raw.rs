//! Grey pixels that lie inside other files as they are.

use std::fmt;
use std::sync::Arc;

use super::decode::Rgb8;
use crate::mapped::Mapped;
use crate::{Result, input_error};

/// A grey image of a byte a pixel inside a larger file, which is mapped, not held.
#[derive(Clone)]
pub struct Raw {
    file: Arc<Mapped>,
    index: usize,
    start: u64,
    size: [u32; 2],
}

impl Raw {
    /// The file's image number `index`: rows of bytes from `start` on, of this height and width.
    pub(super) fn new(file: &Arc<Mapped>, index: usize, start: u64, size: [u32; 2]) -> Self {
        Self { file: Arc::clone(file), index, start, size }
    }

    /// What an error calls it: `FILE#INDEX`.
    pub(super) fn name(&self) -> String {
        format!("{}#{}", self.file.path().display(), self.index)
    }

    /// Height and width.
    pub(super) fn size(&self) -> [u32; 2] {
        self.size
    }

    /// Its pixels, grey repeated.
    ///
    /// # Errors
    /// The file is cut short.
    pub(super) fn read(&self) -> Result<Rgb8> {
        let [height, width] = self.size;
        let bytes = self.file.part(self.start, u64::from(height) * u64::from(width));
        let bytes = bytes.ok_or_else(|| input_error!("{} is cut short", self.name()))?;
        let data = bytes.iter().flat_map(|grey| [*grey; 3]).collect();
        Ok(Rgb8 { width: width as usize, height: height as usize, data })
    }
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}
