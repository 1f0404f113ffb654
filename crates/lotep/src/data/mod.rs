//! From files on disk to batches of pixels.
//!
//! [`open`] recognises a data set's layout and lists its images; [`stratified_split`] holds part of it out; a
//! [`Loader`] decodes, transforms and batches it ahead of the consumer. Pixels leave this module in [0, 1], as
//! `[B, 3, H, W]`; normalisation belongs to the backbone. [`check()`] reports what a data set holds and what is broken.
//!
//! Every step is a function of its arguments alone: the order of the samples, the split, each epoch's shuffle and
//! which images form a batch do not depend on the machine, the number of workers or their timing.

mod augment;
mod check;
mod cifar;
mod coop;
mod dataset;
mod decode;
mod files;
mod folder;
mod gather;
mod jpeg;
mod known;
mod list;
mod loader;
mod mat;
mod packed;
mod parquet;
mod pipeline;
mod raw;
mod resize;
mod shards;
mod shots;
mod split;
mod tar;
#[cfg(test)]
mod test_files;
mod transform;

pub use augment::Augment;
pub use check::{DataReport, SplitReport, Spread, check};
pub use dataset::{Dataset, Sample, Source, Split, Splits, open};
pub use decode::{Rgb8, decode_bytes, decode_file};
pub use files::list_images;
pub use known::{About, Known, nameless};
pub use loader::{Batch, Loader, LoaderConfig, OnCorrupt};
pub use packed::Packed;
pub use pipeline::Epoch;
pub use raw::Raw;
pub use resize::{Interpolation, resize};
pub use shots::{ClassSplit, few_shot};
pub use split::{stratified_split, subset};
pub use transform::Transform;
