//! Snappy's raw format: runs of literal bytes, and copies of what came before.

/// A copy of three bytes makes 64 at most; what claims to unfold further does not.
const MAX_RATIO: usize = 22;

/// Decompress `bytes` to `size` bytes.
///
/// # Errors
/// The bytes are damaged, or make another number.
pub(in crate::data) fn decompress(bytes: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let (claimed, mut at) = length(bytes).ok_or("a page is cut short")?;
    if claimed != size || size / MAX_RATIO > bytes.len() {
        return Err(format!(
            "a page of {} bytes claims to unfold to {claimed} instead of {size}",
            bytes.len()
        ));
    }
    let mut out = Vec::with_capacity(size);
    while at < bytes.len() {
        let tag = bytes[at];
        at += 1;
        let little = |at: usize, n: usize| {
            let word = bytes.get(at..at + n).ok_or("a page is cut short")?;
            Ok::<_, String>(word.iter().rev().fold(0_usize, |word, b| word << 8 | usize::from(*b)))
        };
        let (length, offset) = match tag & 3 {
            0 => {
                let short = usize::from(tag >> 2);
                let more = short.saturating_sub(59);
                let length = if more == 0 { short } else { little(at, more)? } + 1;
                at += more;
                let literal =
                    at.checked_add(length).and_then(|end| bytes.get(at..end)).ok_or("a page is cut short")?;
                out.extend_from_slice(literal);
                at += length;
                (0, 0)
            }
            1 => {
                let offset = usize::from(tag >> 5) << 8 | little(at, 1)?;
                at += 1;
                (usize::from(tag >> 2 & 7) + 4, offset)
            }
            kind => {
                let n = if kind == 2 { 2 } else { 4 };
                let offset = little(at, n)?;
                at += n;
                (usize::from(tag >> 2) + 1, offset)
            }
        };
        if length > 0 {
            let start = out
                .len()
                .checked_sub(offset)
                .filter(|_| offset > 0)
                .ok_or("a page copies from before its start")?;
            // The copy may overlap what it makes.
            for i in start..start + length {
                out.push(out[i]);
            }
        }
        if out.len() > size {
            return Err("a page unfolds to more than it says".into());
        }
    }
    if out.len() == size { Ok(out) } else { Err("a page unfolds to less than it says".into()) }
}

/// The length at the start, seven bits a byte, and the bytes that it takes.
fn length(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0_usize;
    for (at, byte) in bytes.iter().enumerate().take(5) {
        value |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_copies_unfold() {
        // "abcd", a copy of 8 from 4 back, a literal of 61 bytes with its length apart, a copy with a wide offset.
        let mut bytes = vec![4 + 8 + 61 + 5, 3 << 2, b'a', b'b', b'c', b'd', 4 << 2 | 1, 4];
        bytes.extend([60 << 2, 60]);
        bytes.extend([b'x'; 61]);
        bytes.extend([4 << 2 | 2, 73, 0]);
        let whole = decompress(&bytes, 78).unwrap();
        assert_eq!(whole, [b"abcdabcdabcd".as_slice(), &[b'x'; 61], b"abcda"].concat());
    }

    #[test]
    fn damage_is_found() {
        for (bytes, size) in [
            (&[][..], 0),
            (&[4, 3 << 2, 1, 2], 4),
            (&[4, 3 << 2, 1, 2, 3, 4], 5),
            (&[8, 0, 1, 3 << 2 | 1, 2], 8),
            (&[9, 0, 1, 7 << 2 | 1, 0], 9),
            (&[2, 0, 1, 1, 1], 2),
            (&[0xff, 0xff, 0xff, 0xff, 0x0f, 0, 1], 0xffff_ffff),
            (&[0xff; 9], 1),
            (&[4, 63 << 2, 0xff, 0xff, 0xff, 0xff], 4),
        ] {
            decompress(bytes, size).expect_err(&format!("{bytes:?}"));
        }
    }
}
