//! The scan: from its bits to planes of samples.

use lotep_kernels::Isa;
use lotep_kernels::simd::{LANES, dispatch};

use super::bits::Bits;
use super::frame::Frame;
use super::huffman::Huffman;
use super::transform::Transform;
use super::{Group, ZIGZAG};

/// Codes with their numbers that a filled word holds: the longest has 16 bits, and its number [`LONGEST`].
const SYMBOLS: usize = 2;

impl Frame<'_> {
    /// Decode the scan: a plane of samples a component.
    pub(super) fn planes(&self, isa: Isa) -> Option<Vec<Plane>> {
        let [wide, high] = self.components.first()?.factors;
        let across = self.width.div_ceil(8 * wide);
        let down = self.height.div_ceil(8 * high);
        let mut parts = Vec::new();
        for c in &self.components {
            let blocks = across * c.factors[0];
            parts.push(Part {
                factors: c.factors,
                quantiser: self.quantisers.get(c.quantiser)?.as_deref()?,
                dc: self.dc.get(c.dc)?.as_deref()?,
                ac: self.ac.get(c.ac)?.as_deref()?,
                last: 0,
                groups: vec![[[0; LANES]; 64]; (blocks * c.factors[1]).div_ceil(LANES)],
                plane: Plane { stride: blocks * 8, data: vec![0; blocks * 8 * down * c.factors[1] * 8] },
            });
        }
        let (bytes, ends) = segments(self.scan)?;
        let between = if self.restart == 0 { across * down } else { self.restart };
        if ends.len() != (across * down).div_ceil(between) {
            return None;
        }
        let mut bits = Bits::new(&bytes[..ends[0]]);
        for row in 0..down {
            for column in 0..across {
                let done = row * across + column;
                if done > 0 && done.is_multiple_of(between) {
                    if !bits.is_intact() {
                        return None;
                    }
                    let stretch = done / between;
                    bits = Bits::new(&bytes[ends[stretch - 1]..ends[stretch]]);
                    for part in &mut parts {
                        part.last = 0;
                    }
                }
                for part in &mut parts {
                    part.read(&mut bits, column, across)?;
                }
            }
            // A damaged file must not keep us busy to its end.
            if !bits.is_intact() {
                return None;
            }
            for part in &mut parts {
                part.transform(isa, row, across);
            }
        }
        Some(parts.into_iter().map(|p| p.plane).collect())
    }
}

/// The scan's bytes without the zeros stuffed behind each 0xff and without restart markers, and where each stretch
/// between restarts ends. `None` if there is no end-of-image marker.
fn segments(scan: &[u8]) -> Option<(Vec<u8>, Vec<usize>)> {
    let (mut plain, mut ends) = (Vec::with_capacity(scan.len()), Vec::new());
    let mut rest = scan;
    loop {
        let length = rest.iter().position(|&b| b == 0xff)?;
        plain.extend_from_slice(&rest[..length]);
        match *rest.get(length + 1)? {
            0 => plain.push(0xff),
            // Restarts count from 0 to 7 and again.
            marker @ 0xd0..=0xd7 if usize::from(marker - 0xd0) == ends.len() % 8 => ends.push(plain.len()),
            0xd9 => {
                ends.push(plain.len());
                return Some((plain, ends));
            }
            _ => return None,
        }
        rest = &rest[length + 2..];
    }
}

/// A component's samples, padded to whole MCUs.
pub(super) struct Plane {
    stride: usize,
    data: Vec<u8>,
}

impl Plane {
    pub(super) fn row(&self, y: usize, width: usize) -> &[u8] {
        &self.data[y * self.stride..y * self.stride + width]
    }
}

/// A component while it is decoded.
struct Part<'a> {
    factors: [usize; 2],
    quantiser: &'a [i32; 64],
    dc: &'a Huffman,
    ac: &'a Huffman,
    /// The last block's mean, which the next one's differs from.
    last: i32,
    /// A row of MCUs, one row of blocks behind the other.
    groups: Vec<Group>,
    plane: Plane,
}

impl Part<'_> {
    /// Read this component's blocks of the MCU in `column`.
    fn read(&mut self, bits: &mut Bits<'_>, column: usize, across: usize) -> Option<()> {
        let [wide, high] = self.factors;
        for y in 0..high {
            for x in 0..wide {
                let block = y * across * wide + column * wide + x;
                let group = &mut self.groups[block / LANES];
                read_block(bits, self.dc, self.ac, &mut self.last, group, block % LANES)?;
            }
        }
        Some(())
    }

    /// Turn what was read of MCU row `row` into samples, and clear it.
    fn transform(&mut self, isa: Isa, row: usize, across: usize) {
        let [wide, high] = self.factors;
        let rows = high * 8;
        let length = self.plane.stride * rows;
        let out = &mut self.plane.data[row * length..(row + 1) * length];
        let blocks = across * wide;
        let transform = Transform {
            groups: &mut self.groups,
            quantiser: self.quantiser,
            blocks,
            count: blocks * high,
            out,
        };
        dispatch(isa, transform);
    }
}

#[inline]
fn read_block(
    bits: &mut Bits<'_>,
    dc: &Huffman,
    ac: &Huffman,
    last: &mut i32,
    group: &mut Group,
    lane: usize,
) -> Option<()> {
    let lane = lane % LANES;
    // A copy, so that it stays in registers.
    let mut b = *bits;
    b.refill();
    let entry = dc.find(&b)?;
    b.skip(entry.length());
    let difference = match entry.value() {
        0 => b.number(u32::from(entry.symbol())),
        value => i32::from(value),
    };
    *last = last.wrapping_add(difference);
    group[0][lane] = *last as i16;
    let mut k = 1;
    'block: while k < 64 {
        // Filled without asking whether that is needed yet: the question costs more, where its answer is a surprise.
        b.refill();
        for _ in 0..SYMBOLS {
            let entry = ac.find(&b)?;
            b.skip(entry.length());
            let (run, size) = (usize::from(entry.symbol() >> 4), u32::from(entry.symbol() & 15));
            let mut value = entry.value();
            if value == 0 {
                if size == 0 {
                    if run < 15 {
                        break 'block;
                    }
                    k += 16;
                    continue 'block;
                }
                value = b.number(size) as i16;
            }
            k += run;
            group[usize::from(ZIGZAG[k]) % 64][lane] = value;
            k += 1;
            if k >= 64 {
                break 'block;
            }
        }
    }
    *bits = b;
    (k <= 64).then_some(())
}
