//! From files on disk to batches of pixels.
//!
//! [`open`] recognises a data set's layout and lists its images; [`stratified_split`] holds part of it out; a
//! [`Loader`] decodes, transforms and batches it ahead of the consumer. Pixels leave this module in [0, 1], as
//! `[B, 3, H, W]`; normalisation belongs to the backbone. [`check()`] reports what a data set holds and what is broken.
//!
//! Every step is a function of its arguments alone: the order of the samples, the split, each epoch's shuffle and
//! which images form a batch do not depend on the machine, the number of workers or their timing.

mod decode;
mod resize;
mod transform;
#[cfg(test)]
mod test_files;

pub use decode::{Rgb8, decode_bytes, decode_file};
pub use resize::{Interpolation, resize};
pub use transform::Transform;
