//! What of a text is encoded together, and how bytes are written in a vocabulary.

/// Ends of words that stand apart.
const CONTRACTIONS: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];

/// Cut a text into contractions, runs of letters, single digits and runs of what is neither these nor space.
pub(super) fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        let first = rest.chars().next()?;
        let length = if let Some(end) = CONTRACTIONS.iter().find(|c| rest.starts_with(**c)) {
            end.len()
        } else if first.is_alphabetic() {
            run(rest, char::is_alphabetic)
        } else if first.is_numeric() {
            first.len_utf8()
        } else {
            run(rest, |c| !c.is_alphabetic() && !c.is_numeric() && !c.is_whitespace())
        };
        let (piece, behind) = rest.split_at(length);
        rest = behind;
        Some(piece)
    })
}

/// Bytes of the longest beginning of such characters.
fn run(text: &str, of: impl Fn(char) -> bool) -> usize {
    text.find(|c| !of(c)).unwrap_or(text.len())
}

/// Whether a byte stands for itself in a vocabulary: it can be seen when printed.
const fn is_visible(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// The sign that a byte has in a vocabulary. Those that can't be seen are numbered from 256 on, as GPT-2 began it.
pub(super) fn sign(byte: u8) -> char {
    if is_visible(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !is_visible(*b)).count();
    char::from_u32(256 + before as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// All bytes' signs in the order in which OpenAI numbers them: the visible ones first.
pub(super) fn signs() -> impl Iterator<Item = char> {
    let of = |visible: bool| (0..=255_u8).filter(move |b| is_visible(*b) == visible).map(sign);
    of(true).chain(of(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_as_clip_does() {
        for (text, pieces) in [
            ("a photo of a cat.", vec!["a", "photo", "of", "a", "cat", "."]),
            ("it's we'll 'tis", vec!["it", "'s", "we", "'ll", "'t", "is"]),
            ("b747-400", vec!["b", "7", "4", "7", "-", "4", "0", "0"]),
            ("wow!!! \"'s", vec!["wow", "!!!", "\"'", "s"]),
            ("grün ½ 東京", vec!["grün", "½", "東京"]),
            ("", vec![]),
        ] {
            assert_eq!(split(text).collect::<Vec<_>>(), pieces, "{text}");
        }
    }

    /// GPT-2's table, at its corners.
    #[test]
    fn bytes_have_signs() {
        for (byte, expected) in [(b'a', 'a'), (b' ', 'Ġ'), (0, 'Ā'), (b'\n', 'Ċ'), (0xad, 'Ń'), (0xc3, 'Ã')]
        {
            assert_eq!(sign(byte), expected, "{byte}");
        }
        let all: std::collections::BTreeSet<char> = signs().collect();
        assert_eq!((all.len(), signs().next(), signs().nth(188)), (256, Some('!'), Some('Ā')));
    }
}
