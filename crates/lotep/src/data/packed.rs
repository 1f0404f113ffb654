//! Image files that lie inside other files.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::dataset::{Sample, Source};
use super::parquet::snappy;
use crate::mapped::Mapped;
use crate::{Result, input_error};

/// An image file inside a larger file, which is mapped, not held.
#[derive(Clone)]
pub struct Packed {
    file: Arc<Mapped>,
    name: Box<str>,
    bytes: Range<usize>,
    page: Option<Page>,
}

/// Where in a compressed page an image is.
#[derive(Clone)]
pub(super) struct Page {
    /// Bytes of the whole page when it is decompressed.
    pub(super) size: usize,
    pub(super) image: Range<usize>,
}

impl Packed {
    /// `bytes` of `file`, or of a page there that is compressed by Snappy.
    pub(super) fn new(file: &Arc<Mapped>, name: &str, bytes: Range<usize>, page: Option<Page>) -> Self {
        Self { file: Arc::clone(file), name: name.into(), bytes, page }
    }

    /// What an error calls it: `FILE:NAME`.
    pub(super) fn name(&self) -> String {
        format!("{}:{}", self.file.path().display(), self.name)
    }

    /// Whether it lies in the same file as `other`.
    pub(super) fn beside(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file)
    }

    /// The image file's bytes.
    pub(super) fn read(&self) -> Result<Cow<'_, [u8]>> {
        let short = || input_error!("{} is cut short", self.name());
        let bytes = self.file.bytes().get(self.bytes.clone()).ok_or_else(short)?;
        let Some(page) = &self.page else { return Ok(bytes.into()) };
        let whole =
            snappy::decompress(bytes, page.size).map_err(|why| input_error!("{}: {why}", self.name()))?;
        Ok(whole.get(page.image.clone()).ok_or_else(short)?.to_vec().into())
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// Where all images lie inside others: their indices, file by file.
pub(super) fn groups(samples: &[Sample]) -> Option<Vec<Vec<usize>>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut last: Option<&Packed> = None;
    for (index, sample) in samples.iter().enumerate() {
        let Source::Packed(packed) = &sample.source else { return None };
        match groups.last_mut() {
            Some(group) if last.is_some_and(|last| last.beside(packed)) => group.push(index),
            _ => groups.push(vec![index]),
        }
        last = Some(packed);
    }
    Some(groups)
}
