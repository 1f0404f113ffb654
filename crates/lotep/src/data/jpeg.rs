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

use lotep_kernels::Isa;
use lotep_kernels::simd::{Kernel, LANES, Simd, dispatch};

use super::decode::Rgb8;

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

/// A cursor over the file's segments.
struct Segments<'a>(&'a [u8]);

impl<'a> Segments<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// The next marker, and its segment's content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let [0xff, marker] = *self.take(2)? else { return None };
        let length = self.take(2)?;
        let content = usize::from(u16::from_be_bytes([length[0], length[1]])).checked_sub(2)?;
        Some((marker, self.take(content)?))
    }
}

struct Component {
    id: u8,
    /// Horizontal and vertical sampling.
    factors: [usize; 2],
    quantiser: usize,
    dc: usize,
    ac: usize,
}

/// Everything that the headers say, and the scan.
struct Frame<'a> {
    width: usize,
    height: usize,
    components: Vec<Component>,
    quantisers: [Option<Box<[i32; 64]>>; 4],
    dc: [Option<Box<Huffman>>; 4],
    ac: [Option<Box<Huffman>>; 4],
    /// MCUs between restarts; 0 is none.
    restart: usize,
    scan: &'a [u8],
}

impl<'a> Frame<'a> {
    fn read(bytes: &'a [u8], max_side: u32, max_bytes: u64) -> Option<Self> {
        let mut segments = Segments(bytes.strip_prefix(&[0xff, 0xd8])?);
        let mut frame = Frame {
            width: 0,
            height: 0,
            components: Vec::new(),
            quantisers: Default::default(),
            dc: Default::default(),
            ac: Default::default(),
            restart: 0,
            scan: &[],
        };
        let mut jfif = false;
        loop {
            let (marker, content) = segments.next()?;
            match marker {
                0xdb => frame.quantisation(content)?,
                0xc4 => frame.huffman(content)?,
                0xc0 | 0xc1 if frame.components.is_empty() => frame.start(content)?,
                0xdd => frame.restart = usize::from(u16::from_be_bytes(content.try_into().ok()?)),
                0xe0 => jfif |= content.starts_with(b"JFIF\0"),
                // Adobe's segment can say that the components are red, green and blue.
                0xee if content.starts_with(b"Adobe") && content.get(11) == Some(&0) && !jfif => return None,
                0xda => {
                    frame.scan_header(content)?;
                    frame.scan = segments.0;
                    break;
                }
                0xe1..=0xef | 0xfe => {}
                _ => return None,
            }
        }
        let ids: Vec<u8> = frame.components.iter().map(|c| c.id).collect();
        let small = frame.width.max(frame.height) <= max_side as usize;
        let fits = (frame.width * frame.height) as u64 * 3 <= max_bytes;
        (small && fits && (jfif || ids != *b"RGB")).then_some(frame)
    }

    fn quantisation(&mut self, mut content: &[u8]) -> Option<()> {
        while let [kind, rest @ ..] = content {
            let wide = usize::from(kind >> 4);
            let (values, rest) = rest.split_at_checked(64 << wide)?;
            let mut table = Box::new([0; 64]);
            for (k, &at) in ZIGZAG[..64].iter().enumerate() {
                table[usize::from(at)] = match wide {
                    0 => i32::from(values[k]),
                    1 => i32::from(u16::from_be_bytes([values[2 * k], values[2 * k + 1]])),
                    _ => return None,
                };
            }
            *self.quantisers.get_mut(usize::from(kind & 15))? = Some(table);
            content = rest;
        }
        Some(())
    }

    fn huffman(&mut self, mut content: &[u8]) -> Option<()> {
        while let [kind, rest @ ..] = content {
            let (counts, rest) = rest.split_at_checked(16)?;
            let (symbols, rest) = rest.split_at_checked(counts.iter().map(|&n| usize::from(n)).sum())?;
            // A symbol of `dc` is a length alone.
            let (tables, lengths) = match kind >> 4 {
                0 => (&mut self.dc, 0xff),
                1 => (&mut self.ac, 15),
                _ => return None,
            };
            if symbols.iter().any(|symbol| symbol & lengths > LONGEST) {
                return None;
            }
            *tables.get_mut(usize::from(kind & 15))? = Some(Huffman::new(counts, symbols)?);
            content = rest;
        }
        Some(())
    }

    fn start(&mut self, content: &[u8]) -> Option<()> {
        let [8, h0, h1, w0, w1, count, components @ ..] = content else { return None };
        self.height = usize::from(u16::from_be_bytes([*h0, *h1]));
        self.width = usize::from(u16::from_be_bytes([*w0, *w1]));
        if self.height == 0 || self.width == 0 || components.len() != 3 * usize::from(*count) {
            return None;
        }
        self.components = components
            .chunks_exact(3)
            .map(|c| Component {
                id: c[0],
                factors: [usize::from(c[1] >> 4), usize::from(c[1] & 15)],
                quantiser: usize::from(c[2]),
                dc: 0,
                ac: 0,
            })
            .collect();
        match self.components.as_mut_slice() {
            // A single component's blocks lie row by row, whatever its factors.
            [grey] => grey.factors = [1, 1],
            [y, cb, cr] => {
                let known = matches!(y.factors, [1 | 2, 1] | [2, 2]);
                if !known || cb.factors != [1, 1] || cr.factors != [1, 1] {
                    return None;
                }
                // libjpeg repeats chroma this narrow instead of interpolating it.
                if y.factors[0] == 2 && self.width <= 4 {
                    return None;
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn scan_header(&mut self, content: &[u8]) -> Option<()> {
        let [count, rest @ ..] = content else { return None };
        let (selectors, [0, 63, 0]) = rest.split_at_checked(2 * usize::from(*count))? else { return None };
        if selectors.len() != 2 * self.components.len() {
            return None;
        }
        for (component, selector) in self.components.iter_mut().zip(selectors.chunks_exact(2)) {
            if selector[0] != component.id {
                return None;
            }
            (component.dc, component.ac) = (usize::from(selector[1] >> 4), usize::from(selector[1] & 15));
        }
        Some(())
    }

    /// Decode the scan: a plane of samples a component.
    fn planes(&self, isa: Isa) -> Option<Vec<Plane>> {
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
struct Plane {
    stride: usize,
    data: Vec<u8>,
}

impl Plane {
    fn row(&self, y: usize, width: usize) -> &[u8] {
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

/// What a code stands for. From the top: the number itself (16 bits), where the bits that were looked at hold it,
/// else 0; a count of zeros (4) and the length of the number (4); the bits of the code, and of the number where that
/// is known (8). 0 is a code longer than what was looked at.
#[derive(Clone, Copy, Default)]
struct Entry(u32);

/// Bits of a code that are looked up at once. Longer codes are rare: their symbols are.
const LOOK: u32 = 11;

/// Codes with their numbers that a filled word holds: the longest has 16 bits, and its number [`LONGEST`].
const SYMBOLS: usize = 2;

/// The most bits that a number has: more than that no sound file of 8-bit samples needs.
const LONGEST: u8 = 11;

struct Huffman {
    /// By the next [`LOOK`] bits.
    short: [Entry; 1 << LOOK],
    /// For each length, the first code beyond those of that length, moved to the top of 16 bits; and what to add to
    /// a code to find its symbol.
    long: [(u32, i32); 17],
    symbols: Vec<u8>,
}

impl Huffman {
    fn new(counts: &[u8], symbols: &[u8]) -> Option<Box<Self>> {
        let mut table = Box::new(Self {
            short: [Entry::default(); 1 << LOOK],
            long: [(0, 0); 17],
            symbols: symbols.to_vec(),
        });
        let (mut code, mut index) = (0_u32, 0_usize);
        for (length, &count) in (1..).zip(counts) {
            table.long[length as usize].1 = index as i32 - code as i32;
            for _ in 0..count {
                if length <= LOOK {
                    let first = (code << (LOOK - length)) as usize;
                    let same = table.short.get_mut(first..first + (1 << (LOOK - length)))?;
                    for (rest, entry) in same.iter_mut().enumerate() {
                        *entry = Entry::new(symbols[index], length, rest as u32);
                    }
                }
                code += 1;
                index += 1;
            }
            if code > 1 << length {
                return None;
            }
            table.long[length as usize].0 = code << (16 - length);
            code <<= 1;
        }
        Some(table)
    }

    /// The next code. The bits must have been refilled.
    #[inline]
    fn find(&self, bits: &Bits<'_>) -> Option<Entry> {
        let entry = self.short[bits.peek(LOOK) as usize];
        if entry.length() > 0 { Some(entry) } else { self.find_long(bits.peek(16)) }
    }

    #[cold]
    fn find_long(&self, bits: u32) -> Option<Entry> {
        let length = (LOOK + 1..=16).find(|&length| bits < self.long[length as usize].0)?;
        let index = (bits >> (16 - length)) as i32 + self.long[length as usize].1;
        let symbol = *self.symbols.get(usize::try_from(index).ok()?)?;
        Some(Entry::parts(0, symbol, length))
    }
}

impl Entry {
    fn parts(value: i32, symbol: u8, length: u32) -> Self {
        Self((value as u32) << 16 | u32::from(symbol) << 8 | length)
    }

    /// The entry of a code of `length` bits that is followed by `rest`, the other bits that are looked at.
    fn new(symbol: u8, length: u32, rest: u32) -> Self {
        let (size, have) = (u32::from(symbol & 15), LOOK - length);
        if size == 0 || size > have {
            return Self::parts(0, symbol, length);
        }
        Self::parts(signed(rest >> (have - size), size), symbol, length + size)
    }

    #[inline]
    fn value(self) -> i16 {
        (self.0 >> 16) as i16
    }

    #[inline]
    fn symbol(self) -> u8 {
        (self.0 >> 8) as u8
    }

    #[inline]
    fn length(self) -> u32 {
        self.0 & 0xff
    }
}

/// The standard's form of signed numbers: a leading zero means negative, counted from below.
#[inline]
fn signed(bits: u32, size: u32) -> i32 {
    let negative = bits >> (size - 1) == 0;
    bits as i32 - if negative { (1 << size) - 1 } else { 0 }
}

/// Reads bits from the top of a word, which holds 56 or more of them once it is filled.
#[derive(Clone, Copy)]
struct Bits<'a> {
    bytes: &'a [u8],
    /// The next byte that is not in the word. Beyond the end there are zeros.
    at: usize,
    word: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, word: 0, count: 0 }
    }

    /// Fill the word.
    #[inline]
    fn refill(&mut self) {
        let next = match self.bytes.get(self.at..self.at + 8) {
            Some(next) => u64::from_be_bytes(next.try_into().expect("eight bytes")),
            None => self.last_bytes(),
        };
        self.word |= next >> self.count;
        // Whole bytes only: those of which a part is in the word already will come again, with the same bits.
        let whole = (63 - self.count) / 8;
        self.at += whole as usize;
        self.count += 8 * whole;
    }

    #[cold]
    fn last_bytes(&self) -> u64 {
        let mut next = [0; 8];
        let left = self.bytes.get(self.at..).unwrap_or_default();
        next[..left.len()].copy_from_slice(left);
        u64::from_be_bytes(next)
    }

    #[inline]
    fn peek(&self, count: u32) -> u32 {
        (self.word >> (64 - count)) as u32
    }

    #[inline]
    fn skip(&mut self, count: u32) {
        self.word <<= count;
        self.count -= count;
    }

    /// Read a number of `size` bits.
    #[inline]
    fn number(&mut self, size: u32) -> i32 {
        if size == 0 {
            return 0;
        }
        let bits = self.peek(size);
        self.skip(size);
        signed(bits, size)
    }

    /// Whether nothing was read beyond the end.
    fn is_intact(&self) -> bool {
        self.at * 8 <= self.bytes.len() * 8 + self.count as usize
    }
}

/// The inverse transform of a row of MCUs.
struct Transform<'a> {
    /// Left all zeros.
    groups: &'a mut [Group],
    quantiser: &'a [i32; 64],
    /// Blocks in a row.
    blocks: usize,
    /// Blocks in all.
    count: usize,
    /// Rows of `8 * blocks` samples.
    out: &'a mut [u8],
}

impl Kernel for Transform<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let stride = self.blocks * 8;
        for (g, group) in self.groups.iter_mut().enumerate() {
            let mut columns = [[[0; LANES]; 8]; 8];
            for x in 0..8 {
                for lane in 0..LANES {
                    let mut values = [0; 8];
                    for y in 0..8 {
                        let at = y * 8 + x;
                        values[y] = i32::from(group[at][lane]).wrapping_mul(self.quantiser[at]);
                        group[at][lane] = 0;
                    }
                    let values = inverse::<11>(values);
                    for y in 0..8 {
                        columns[y][x][lane] = values[y];
                    }
                }
            }
            let here = g * LANES..self.count.min((g + 1) * LANES);
            let mut places = [0; LANES];
            for (place, block) in places.iter_mut().zip(here.clone()) {
                *place = (block / self.blocks) * 8 * stride + (block % self.blocks) * 8;
            }
            for (y, row) in columns.iter().enumerate() {
                // A block's eight samples side by side in one number: turned with shifts, not a byte at a time.
                let mut samples = [[0_u32; LANES]; 2];
                for lane in 0..LANES {
                    let mut values = [0; 8];
                    for x in 0..8 {
                        values[x] = row[x][lane];
                    }
                    let sample = inverse::<18>(values).map(|v| (v + 128).clamp(0, 255) as u32);
                    for (half, x) in samples.iter_mut().zip([0, 4]) {
                        half[lane] =
                            sample[x] | sample[x + 1] << 8 | sample[x + 2] << 16 | sample[x + 3] << 24;
                    }
                }
                for (lane, place) in places[..here.len()].iter().enumerate() {
                    let at = place + y * stride;
                    let both = u64::from(samples[0][lane]) | u64::from(samples[1][lane]) << 32;
                    self.out[at..at + 8].copy_from_slice(&both.to_le_bytes());
                }
            }
        }
    }
}

/// The transform of eight values by Loeffler, Ligtenberg and Moschytz with 13-bit constants, as libjpeg rounds it:
/// the result is scaled down by `2^SHIFT`.
#[inline(always)]
fn inverse<const SHIFT: u32>(v: [i32; 8]) -> [i32; 8] {
    // A damaged file may hold any numbers; sound ones do not overflow.
    let add = i32::wrapping_add;
    let sub = i32::wrapping_sub;
    let mul = i32::wrapping_mul;
    // Even part.
    let z = mul(add(v[2], v[6]), 4433);
    let (t2, t3) = (add(z, mul(v[6], -15137)), add(z, mul(v[2], 6270)));
    let (t0, t1) = (add(v[0], v[4]) << 13, sub(v[0], v[4]) << 13);
    let even = [add(t0, t3), add(t1, t2), sub(t1, t2), sub(t0, t3)];
    // Odd part.
    let (z3, z4) = (add(v[7], v[3]), add(v[5], v[1]));
    let z5 = mul(add(z3, z4), 9633);
    let (z1, z2) = (mul(add(v[7], v[1]), -7373), mul(add(v[5], v[3]), -20995));
    let (z3, z4) = (add(mul(z3, -16069), z5), add(mul(z4, -3196), z5));
    let odd = [
        add(mul(v[1], 12299), add(z1, z4)),
        add(mul(v[3], 25172), add(z2, z3)),
        add(mul(v[5], 16819), add(z2, z4)),
        add(mul(v[7], 2446), add(z1, z3)),
    ];
    let mut out = [0; 8];
    for i in 0..4 {
        let half = 1 << (SHIFT - 1);
        out[i] = add(add(even[i], odd[i]), half) >> SHIFT;
        out[7 - i] = add(sub(even[i], odd[i]), half) >> SHIFT;
    }
    out
}

/// Upsampling and conversion to RGB, a row at a time: `height * width * 3` bytes.
struct ToRgb<'a> {
    frame: &'a Frame<'a>,
    planes: &'a [Plane],
}

impl Kernel for ToRgb<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Vec<u8> {
        let (width, height) = (self.frame.width, self.frame.height);
        let mut data = Vec::with_capacity(width * height * 3);
        let mut out = vec![0; width * 3];
        let (luma, chroma) = self.planes.split_first().expect("a frame has components");
        let [wide, high] = self.frame.components[0].factors;
        let (narrow, low) = (width.div_ceil(wide), height.div_ceil(high));
        // One more sample at either end, and one more where the width is odd.
        let mut sums = vec![0_u16; narrow + 2];
        let mut full = [vec![0_u8; 2 * narrow], vec![0_u8; 2 * narrow]];
        for y in 0..height {
            let luma = luma.row(y, width);
            let [cb, cr] = chroma else {
                for (out, &v) in out.chunks_exact_mut(3).zip(luma) {
                    out.fill(v);
                }
                data.extend_from_slice(&out);
                continue;
            };
            if wide == 1 {
                convert(luma, cb.row(y, width), cr.row(y, width), &mut out);
                data.extend_from_slice(&out);
                continue;
            }
            for (plane, full) in [cb, cr].into_iter().zip(&mut full) {
                let near = plane.row(y / high, narrow);
                if high == 1 {
                    for (sum, &v) in sums[1..].iter_mut().zip(near) {
                        *sum = u16::from(v);
                    }
                    widen::<1, 2, 2>(&mut sums, full);
                    continue;
                }
                let far = if y % 2 == 0 { (y / 2).saturating_sub(1) } else { (y / 2 + 1).min(low - 1) };
                for ((sum, &near), &far) in sums[1..].iter_mut().zip(near).zip(plane.row(far, narrow)) {
                    *sum = 3 * u16::from(near) + u16::from(far);
                }
                widen::<8, 7, 4>(&mut sums, full);
            }
            convert(luma, &full[0], &full[1], &mut out);
            data.extend_from_slice(&out);
        }
        data
    }
}

/// Twice as many values as there are between the ends of `sums`: each a quarter of one neighbour and three of the
/// other. libjpeg rounds even and odd ones differently, so that the error has no direction.
#[inline(always)]
fn widen<const EVEN: u16, const ODD: u16, const SHIFT: u32>(sums: &mut [u16], out: &mut [u8]) {
    let end = sums.len() - 1;
    (sums[0], sums[end]) = (sums[1], sums[end - 1]);
    let [left, here, right] = [&sums[..end - 1], &sums[1..end], &sums[2..]];
    for (((out, left), here), right) in out.chunks_exact_mut(2).zip(left).zip(here).zip(right) {
        out[0] = ((3 * here + left + EVEN) >> SHIFT) as u8;
        out[1] = ((3 * here + right + ODD) >> SHIFT) as u8;
    }
}

/// A row of YCbCr to RGB.
#[inline(always)]
fn convert(luma: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    const HALF: i32 = 1 << 15;
    for (((out, &y), &cb), &cr) in out.chunks_exact_mut(3).zip(luma).zip(cb).zip(cr) {
        let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
        let byte = |v: i32| (y + v).clamp(0, 255) as u8;
        out[0] = byte((91_881 * cr + HALF) >> 16);
        out[1] = byte((-22_554 * cb - 46_802 * cr + HALF) >> 16);
        out[2] = byte((116_130 * cb + HALF) >> 16);
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    fn decoded(isa: Isa, bytes: &[u8]) -> Option<Rgb8> {
        decode(isa, bytes, 16_384, 1 << 29)
    }

    /// Small files that PIL wrote, and the SHA-256 of the RGB bytes that it read back (libjpeg-turbo 3).
    const FILES: [(&[u8], [usize; 2], &str); 5] = [
        (
            include_bytes!("../../assets/jpeg/444.jpg"),
            [37, 19],
            "99e6762f49b0c220629f610aeaf3a54da21e87b7c6c0075932d584d138c92300",
        ),
        (
            include_bytes!("../../assets/jpeg/422.jpg"),
            [35, 21],
            "262b56d23dfe3e127200edbdde89cf92e18e34ef285484e2fa2ec9671e26ac19",
        ),
        (
            include_bytes!("../../assets/jpeg/420.jpg"),
            [45, 35],
            "ce6046842a49d0fdbfe917f541acf941f65db701906df1f352b5ad8116bcdefb",
        ),
        (
            include_bytes!("../../assets/jpeg/420-restarts.jpg"),
            [83, 37],
            "4a9da011f302c25876568e07e97e6057446acd84e8c19e01f89374ce8317de37",
        ),
        (
            include_bytes!("../../assets/jpeg/grey.jpg"),
            [29, 18],
            "a6e3db3fea1990664f9bcfa5d1996cd661457296b0d58ffb02f536da4122ddaa",
        ),
    ];

    #[test]
    fn pixels_are_libjpegs_to_the_bit() {
        for (bytes, size, want) in FILES {
            for &isa in Isa::available() {
                let image = decoded(isa, bytes).unwrap();
                assert_eq!([image.width, image.height], size);
                let byte = |i: usize| u8::from_str_radix(&want[2 * i..2 * i + 2], 16).unwrap();
                let same = Sha256::digest(&image.data).iter().enumerate().all(|(i, &b)| b == byte(i));
                assert!(same, "{size:?} {}", isa.name());
            }
        }
    }

    /// The general decoder has its own transform and upsampling; it can't be far away.
    #[test]
    fn pixels_are_near_another_decoders() {
        for (bytes, ..) in FILES {
            let ours = decoded(Isa::best(), bytes).unwrap();
            let theirs = image::load_from_memory(bytes).unwrap().into_rgb8().into_raw();
            let sum: u64 = ours.data.iter().zip(&theirs).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
            assert!(sum as f64 / (theirs.len() as f64) < 1.5, "{sum}");
        }
    }

    #[test]
    fn no_damage_is_taken_for_an_image_or_panics() {
        let mut state = 1_u32;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % below
        };
        for (bytes, size, _) in FILES {
            for length in 0..bytes.len() {
                assert!(decoded(Isa::best(), &bytes[..length]).is_none(), "{size:?} cut to {length}");
            }
            for _ in 0..2000 {
                let mut damaged = bytes.to_vec();
                for _ in 0..=random(3) {
                    let at = random(bytes.len());
                    damaged[at] = random(256) as u8;
                }
                // What it makes of it does not matter, but it must be an image.
                if let Some(image) = decode(Isa::best(), &damaged, 2048, 1 << 24) {
                    assert_eq!(image.data.len(), image.width * image.height * 3);
                }
            }
        }
    }

    #[test]
    fn limits_and_other_kinds_are_left_to_the_general_decoder() {
        let (bytes, ..) = FILES[2];
        assert!(decode(Isa::best(), bytes, 44, 1 << 29).is_none());
        assert!(decode(Isa::best(), bytes, 45, 45 * 35 * 3 - 1).is_none());
        assert!(decode(Isa::best(), bytes, 45, 45 * 35 * 3).is_some());
        // Progressive, by its marker.
        let mut progressive = bytes.to_vec();
        let start = bytes.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
        progressive[start + 1] = 0xc2;
        assert!(decoded(Isa::best(), &progressive).is_none());
        assert!(decoded(Isa::best(), b"GIF89a").is_none() && decoded(Isa::best(), b"").is_none());
    }
}
