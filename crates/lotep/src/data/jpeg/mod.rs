//! Baseline JPEG, to the bits that libjpeg gives and PIL and torchvision therefore train on.
//!
//! The standard leaves the inverse transform's rounding, the upsampling of the chroma and the conversion to RGB to the
//! decoder. This one has libjpeg's defaults: its accurate integer transform, its triangular ("fancy") upsampling, its
//! 16-bit fixed-point colours. It knows what cameras and data sets are full of: eight bits, Huffman codes, one scan;
//! grey, or YCbCr with chroma at full size, half the width, or half of both. On anything else, and wherever a file is
//! not what it should be, it gives up, and the general decoder decides.
//!
//! Blocks are transformed sixteen at a time, a block a lane: no shuffles, and zeros cost nothing to place, because
//! the entropy decoder writes each coefficient straight to its lane.

#![allow(clippy::needless_range_loop)] // rows, columns and lanes of several arrays at once
#![allow(clippy::inline_always)] // a kernel that is not inlined into `dispatch` loses the instructions

mod bits;
mod colour;
mod frame;
mod huffman;
mod scan;
#[cfg(test)]
mod tests;
mod transform;

use lotep_kernels::Isa;
use lotep_kernels::simd::{LANES, dispatch};

use super::decode::Rgb8;
use colour::ToRgb;
use frame::Frame;

/// Coefficients of the blocks that are transformed together, in row-major order of the frequencies.
type Group = [[i16; LANES]; 64];

/// Where the k-th coefficient of the zigzag lies in a block; and, for a damaged file's run of zeros that leaves the
/// block, somewhere.
const ZIGZAG: [u8; 80] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7,
    14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39,
    46, 53, 60, 61, 54, 47, 55, 62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
];

/// Decode a whole file, or `None` if it is damaged or of a kind that is not known here. `max_side` bounds width and
/// height in pixels, `max_bytes` the memory of the result.
pub(super) fn decode(isa: Isa, bytes: &[u8], max_side: u32, max_bytes: u64) -> Option<Rgb8> {
    let frame = Frame::read(bytes, max_side, max_bytes)?;
    let planes = frame.planes(isa)?;
    let data = dispatch(isa, ToRgb { frame: &frame, planes: &planes });
    Some(Rgb8 { width: frame.width, height: frame.height, data })
}
