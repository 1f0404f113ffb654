//! The values of one column: pages, levels, encodings.

use std::ops::Range;

use super::snappy;
use super::thrift::{self, Value};
use crate::data::packed::Page;

type Parsed<T> = Result<T, String>;

/// One value.
#[derive(Clone)]
pub(super) enum Item {
    Int(i64),
    Text(String),
    /// Where bytes are that are too many to hold: in the file, or in a compressed page there.
    Place(Range<usize>, Option<Page>),
}

/// Bytes of a text at most: a table of few bytes may name one in each of a million rows.
const LONGEST: usize = 1024;

/// What the footer says of a column in one group of rows.
pub(super) struct Chunk {
    pub(super) start: usize,
    pub(super) values: usize,
    pub(super) kind: i64,
    pub(super) codec: i64,
    /// Levels at which a value may be absent.
    pub(super) levels: u32,
    /// Whether bytes are held as text, or only their places.
    pub(super) text: bool,
}

/// Read a column's values; none where one is absent.
pub(super) fn read(file: &[u8], chunk: &Chunk) -> Parsed<Vec<Option<Item>>> {
    let mut values = Vec::with_capacity(chunk.values);
    let mut dictionary: Vec<Item> = Vec::new();
    let mut at = chunk.start;
    while values.len() < chunk.values {
        let rest = file.get(at..).filter(|rest| !rest.is_empty()).ok_or("a page is beyond its end")?;
        let (header, length) = thrift::read(rest)?;
        let (size, stored) = (header.size(2)?, header.size(3)?);
        let start = at + length;
        let end = start.checked_add(stored).filter(|end| *end <= file.len());
        let end =
            end.ok_or_else(|| format!("a page claims {stored} bytes and {} are left", rest.len() - length))?;
        let body = Body::new(file, start..end, size, chunk.codec)?;
        at = end;
        match header.int(1) {
            Some(0) => page(&header, &body, chunk, &dictionary, &mut values)?,
            Some(2) => {
                let about = header.get(7).ok_or("a dictionary does not describe itself")?;
                let count = about.size(1)?.min(body.bytes().len());
                dictionary = plain(&body, 0, count, chunk)?;
            }
            Some(3) => return Err("its pages are of version 2, which is not read: write version 1".into()),
            _ => {}
        }
    }
    if values.len() > chunk.values {
        return Err(format!("a column has more values than its {}", chunk.values));
    }
    Ok(values)
}

/// A page's content.
struct Body<'a> {
    file: &'a [u8],
    stored: Range<usize>,
    unfolded: Option<Vec<u8>>,
}

impl<'a> Body<'a> {
    fn new(file: &'a [u8], stored: Range<usize>, size: usize, codec: i64) -> Parsed<Self> {
        let unfolded = match codec {
            0 => None,
            1 => Some(snappy::decompress(&file[stored.clone()], size)?),
            other => {
                let name = ["", "", "gzip", "LZO", "Brotli", "LZ4", "Zstandard", "LZ4"].get(other as usize);
                return Err(format!(
                    "it is compressed by {}: Snappy or none is read",
                    name.copied().unwrap_or("an unknown method")
                ));
            }
        };
        Ok(Self { file, stored, unfolded })
    }

    fn bytes(&self) -> &[u8] {
        self.unfolded.as_deref().unwrap_or(&self.file[self.stored.clone()])
    }

    /// Where in the file a part of this page is.
    fn place(&self, part: Range<usize>) -> Item {
        match &self.unfolded {
            None => Item::Place(self.stored.start + part.start..self.stored.start + part.end, None),
            Some(whole) => Item::Place(self.stored.clone(), Some(Page { size: whole.len(), image: part })),
        }
    }
}

fn page(
    header: &Value<'_>,
    body: &Body<'_>,
    chunk: &Chunk,
    dictionary: &[Item],
    values: &mut Vec<Option<Item>>,
) -> Parsed<()> {
    let about = header.get(5).ok_or("a page does not describe itself")?;
    let count = about.size(1)?;
    if count == 0 || count > chunk.values - values.len() {
        return Err(format!("a page claims {count} values where {} are left", chunk.values - values.len()));
    }
    let bytes = body.bytes();
    let mut at = 0;
    let mut present = vec![true; count];
    if chunk.levels > 0 {
        if about.int(3) != Some(3) {
            return Err("levels are in an old encoding".into());
        }
        let length = bytes
            .get(..4)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_le_bytes)
            .ok_or("a page is cut short")?;
        let levels = bytes.get(4..4 + length as usize).ok_or("a page is cut short")?;
        at = 4 + length as usize;
        let width = u32::BITS - chunk.levels.leading_zeros();
        present = hybrid(levels, width, count)?.into_iter().map(|level| level == chunk.levels).collect();
    }
    let there = present.iter().filter(|there| **there).count();
    let items = match about.int(2) {
        Some(0) => plain(body, at, there, chunk)?,
        Some(2 | 8) => {
            let indices = match bytes.get(at) {
                None if there == 0 => vec![],
                None => return Err("a page is cut short".into()),
                Some(width) => hybrid(&bytes[at + 1..], u32::from(*width), there)?,
            };
            let item = |i: u32| dictionary.get(i as usize).cloned().ok_or("a value is not in the dictionary");
            indices.into_iter().map(item).collect::<Result<_, _>>()?
        }
        other => return Err(format!("values are in encoding {}, which is not read", other.unwrap_or(-1))),
    };
    let mut items = items.into_iter();
    values.extend(present.into_iter().map(|there| if there { items.next() } else { None }));
    Ok(())
}

/// Values one after the other.
fn plain(body: &Body<'_>, mut at: usize, count: usize, chunk: &Chunk) -> Parsed<Vec<Item>> {
    const CUT: &str = "a page is cut short";
    let bytes = body.bytes();
    let mut items = Vec::with_capacity(count);
    for _ in 0..count {
        let rest = bytes.get(at..).ok_or(CUT)?;
        let four = rest.first_chunk::<4>();
        let (item, length) = match chunk.kind {
            1 => (Item::Int(i64::from(i32::from_le_bytes(*four.ok_or(CUT)?))), 4),
            2 => (Item::Int(i64::from_le_bytes(*rest.first_chunk().ok_or(CUT)?)), 8),
            6 => {
                let length = u32::from_le_bytes(*four.ok_or(CUT)?) as usize;
                let value = rest[4..].get(..length).ok_or(CUT)?;
                let item = if chunk.text {
                    if value.len() > LONGEST {
                        return Err(format!("a text of {} bytes where a label is expected", value.len()));
                    }
                    Item::Text(String::from_utf8_lossy(value).into_owned())
                } else {
                    body.place(at + 4..at + 4 + length)
                };
                (item, 4 + length)
            }
            other => return Err(format!("a column is of type {other}: bytes or whole numbers are expected")),
        };
        items.push(item);
        at += length;
    }
    Ok(items)
}

/// Runs of one value and groups of eight packed ones, `width` bits each.
fn hybrid(bytes: &[u8], width: u32, count: usize) -> Parsed<Vec<u32>> {
    if width > 32 {
        return Err(format!("numbers of {width} bits"));
    }
    let mut values = Vec::with_capacity(count);
    let mut at = 0;
    while values.len() < count {
        let (mut head, mut shift) = (0_u64, 0);
        loop {
            let byte = *bytes.get(at).ok_or("a page is cut short")?;
            at += 1;
            head |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
            if shift > 56 {
                return Err("a run's length is damaged".into());
            }
        }
        let left = count - values.len();
        let bits = |start: usize| {
            (0..width as usize).fold(0_u32, |value, bit| {
                let place = start + bit;
                let byte = bytes.get(at + place / 8).copied().unwrap_or(0);
                value | u32::from(byte >> (place % 8) & 1) << bit
            })
        };
        if head & 1 == 0 {
            let length = width.div_ceil(8) as usize;
            if at + length > bytes.len() || head < 2 {
                return Err("a page is cut short".into());
            }
            let value = bits(0);
            values.resize(values.len() + left.min((head >> 1) as usize), value);
            at += length;
        } else {
            let packed = ((head >> 1) as usize).saturating_mul(8);
            let wanted = packed.min(left);
            if packed == 0 || (at + (wanted * width as usize).div_ceil(8)) > bytes.len() {
                return Err("a page is cut short".into());
            }
            values.extend((0..wanted).map(|i| bits(i * width as usize)));
            at = at.saturating_add((packed / 8).saturating_mul(width as usize));
        }
    }
    Ok(values)
}
