//! What a file's headers say.

use super::ZIGZAG;
use super::huffman::{Huffman, LONGEST};

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

pub(super) struct Component {
    pub(super) id: u8,
    /// Horizontal and vertical sampling.
    pub(super) factors: [usize; 2],
    pub(super) quantiser: usize,
    pub(super) dc: usize,
    pub(super) ac: usize,
}

/// Everything that the headers say, and the scan.
pub(super) struct Frame<'a> {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) components: Vec<Component>,
    pub(super) quantisers: [Option<Box<[i32; 64]>>; 4],
    pub(super) dc: [Option<Box<Huffman>>; 4],
    pub(super) ac: [Option<Box<Huffman>>; 4],
    /// MCUs between restarts; 0 is none.
    pub(super) restart: usize,
    pub(super) scan: &'a [u8],
}

impl<'a> Frame<'a> {
    pub(super) fn read(bytes: &'a [u8], max_side: u32, max_bytes: u64) -> Option<Self> {
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
}
