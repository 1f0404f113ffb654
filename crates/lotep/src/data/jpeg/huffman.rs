//! Huffman codes, and the numbers behind them.

use super::bits::{Bits, signed};

/// What a code stands for. From the top: the number itself (16 bits), where the bits that were looked at hold it,
/// else 0; a count of zeros (4) and the length of the number (4); the bits of the code, and of the number where that
/// is known (8). 0 is a code longer than what was looked at.
#[derive(Clone, Copy, Default)]
pub(super) struct Entry(u32);

/// Bits of a code that are looked up at once. Longer codes are rare: their symbols are.
const LOOK: u32 = 11;

/// The most bits that a number has: more than that no sound file of 8-bit samples needs.
pub(super) const LONGEST: u8 = 11;

pub(super) struct Huffman {
    /// By the next [`LOOK`] bits.
    short: [Entry; 1 << LOOK],
    /// For each length, the first code beyond those of that length, moved to the top of 16 bits; and what to add to
    /// a code to find its symbol.
    long: [(u32, i32); 17],
    symbols: Vec<u8>,
}

impl Huffman {
    pub(super) fn new(counts: &[u8], symbols: &[u8]) -> Option<Box<Self>> {
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
    pub(super) fn find(&self, bits: &Bits<'_>) -> Option<Entry> {
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
    pub(super) fn new(symbol: u8, length: u32, rest: u32) -> Self {
        let (size, have) = (u32::from(symbol & 15), LOOK - length);
        if size == 0 || size > have {
            return Self::parts(0, symbol, length);
        }
        Self::parts(signed(rest >> (have - size), size), symbol, length + size)
    }

    #[inline]
    pub(super) fn value(self) -> i16 {
        (self.0 >> 16) as i16
    }

    #[inline]
    pub(super) fn symbol(self) -> u8 {
        (self.0 >> 8) as u8
    }

    #[inline]
    pub(super) fn length(self) -> u32 {
        self.0 & 0xff
    }
}
