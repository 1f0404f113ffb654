//! Bits of a scan.

/// The standard's form of signed numbers: a leading zero means negative, counted from below.
#[inline]
pub(super) fn signed(bits: u32, size: u32) -> i32 {
    let negative = bits >> (size - 1) == 0;
    bits as i32 - if negative { (1 << size) - 1 } else { 0 }
}

/// Reads bits from the top of a word, which holds 56 or more of them once it is filled.
#[derive(Clone, Copy)]
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    /// The next byte that is not in the word. Beyond the end there are zeros.
    at: usize,
    word: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, word: 0, count: 0 }
    }

    /// Fill the word.
    #[inline]
    pub(super) fn refill(&mut self) {
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
    pub(super) fn peek(&self, count: u32) -> u32 {
        (self.word >> (64 - count)) as u32
    }

    #[inline]
    pub(super) fn skip(&mut self, count: u32) {
        self.word <<= count;
        self.count -= count;
    }

    /// Read a number of `size` bits.
    #[inline]
    pub(super) fn number(&mut self, size: u32) -> i32 {
        if size == 0 {
            return 0;
        }
        let bits = self.peek(size);
        self.skip(size);
        signed(bits, size)
    }

    /// Whether nothing was read beyond the end.
    pub(super) fn is_intact(&self) -> bool {
        self.at * 8 <= self.bytes.len() * 8 + self.count as usize
    }
}
