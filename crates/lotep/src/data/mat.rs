//! MATLAB's level 5 files, as far as data sets use them: numbers, text, cells and structures, perhaps deflated.
//!
//! A file is 128 bytes of header, then elements: a type, a size, the content, padding to 8 bytes. A variable is an element
//! whose content are elements again: flags, dimensions, name, values. Numbers may be stored in a narrower type than they
//! have. Written from the format's published description ("MAT-File Format", The MathWorks).

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use crate::mapped::Mapped;
use crate::{Result, bail, input_error};

/// The most that one variable may unfold to.
const MAX_BYTES: usize = 1 << 30;
/// Deflate can't make less than a thousandth of anything.
const MAX_RATIO: usize = 1100;
/// Cells in cells in cells.
const MAX_DEPTH: usize = 8;

type Parsed<T> = std::result::Result<T, String>;

/// A variable's value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// An array, column by column.
    Numbers {
        dims: Vec<usize>,
        kind: Kind,
        bytes: Vec<u8>,
    },
    Text(String),
    Cell(Vec<Value>),
    /// The fields of each element, element by element.
    Struct(Vec<BTreeMap<String, Value>>),
}

/// How a number is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    F32,
    F64,
    I64,
    U64,
}

impl Kind {
    fn of(element: u32) -> Parsed<Self> {
        Ok(match element {
            1 => Self::I8,
            2 => Self::U8,
            3 => Self::I16,
            4 => Self::U16,
            5 => Self::I32,
            6 => Self::U32,
            7 => Self::F32,
            9 => Self::F64,
            12 => Self::I64,
            13 => Self::U64,
            other => return Err(format!("an element of type {other} is no array of numbers")),
        })
    }

    fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }

    fn number(self, b: &[u8]) -> f64 {
        let word = |n: usize| b[..n].iter().rev().fold(0_u64, |word, &byte| word << 8 | u64::from(byte));
        match self {
            Self::I8 => f64::from(word(1) as i8),
            Self::U8 => f64::from(word(1) as u8),
            Self::I16 => f64::from(word(2) as i16),
            Self::U16 => f64::from(word(2) as u16),
            Self::I32 => f64::from(word(4) as i32),
            Self::U32 => f64::from(word(4) as u32),
            Self::F32 => f64::from(f32::from_bits(word(4) as u32)),
            Self::F64 => f64::from_bits(word(8)),
            Self::I64 => word(8) as i64 as f64,
            Self::U64 => word(8) as f64,
        }
    }
}

impl Value {
    /// All numbers, in the file's order, as the whole numbers that they are.
    pub(super) fn wholes(&self) -> Option<Vec<usize>> {
        let Self::Numbers { kind, bytes, .. } = self else { return None };
        let whole = |b: &[u8]| {
            let n = kind.number(b);
            (n >= 0.0 && n <= f64::from(u32::MAX) && n.fract() == 0.0).then_some(n as usize)
        };
        bytes.chunks_exact(kind.size()).map(whole).collect()
    }

    /// The texts of a cell array, each of which may be in a cell of its own, as MATLAB's `textread` has them.
    pub(super) fn texts(&self) -> Option<Vec<&str>> {
        let Self::Cell(cells) = self else { return None };
        cells.iter().map(Self::text).collect()
    }

    /// One text.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Cell(one) if one.len() == 1 => one[0].text(),
            _ => None,
        }
    }
}

/// Read the variables of these names, each of which has to be there, in this order.
///
/// # Errors
/// The file can't be read, is of another kind, cut short or damaged, lacks a variable, or a variable unfolds to more than
/// 1 GiB.
pub(super) fn read<const N: usize>(path: &Path, wanted: [&str; N]) -> Result<[Value; N]> {
    let file = Mapped::open(path)?;
    let mut found = variables(file.bytes(), &wanted)
        .map_err(|why| input_error!("{} is no MATLAB file that can be read: {why}", path.display()))?;
    let mut values = Vec::with_capacity(N);
    for name in wanted {
        let Some(value) = found.remove(name) else {
            bail!("{} has no variable `{name}`: is it another data set's file?", path.display());
        };
        values.push(value);
    }
    values.try_into().map_err(|_| input_error!("{} could not be read", path.display()))
}

fn variables(bytes: &[u8], wanted: &[&str]) -> Parsed<BTreeMap<String, Value>> {
    let header = bytes.get(..128).ok_or("it is shorter than a header")?;
    if header.starts_with(b"\x89HDF") || header.starts_with(b"MATLAB 7.3") {
        return Err("it is of version 7.3 (HDF5); version 5 is read".into());
    }
    if header[124..128] != [0, 1, b'I', b'M'] {
        return Err("its header is not that of version 5, little-endian".into());
    }
    let mut rest = &bytes[128..];
    let mut found = BTreeMap::new();
    while !rest.is_empty() {
        let element = take(&mut rest)?;
        let value = match element.kind {
            14 => matrix(element.data, wanted, 0)?,
            15 => {
                let unfolded = inflate(element.data, wanted)?;
                match unfolded {
                    Some(bytes) => matrix(take(&mut bytes.as_slice())?.data, wanted, 0)?,
                    None => None,
                }
            }
            other => return Err(format!("it holds an element of type {other} where a variable should be")),
        };
        if let Some((name, value)) = value {
            found.insert(name, value);
        }
    }
    Ok(found)
}

struct Element<'a> {
    kind: u32,
    data: &'a [u8],
}

fn word(bytes: &[u8], at: usize) -> Parsed<u32> {
    let word = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).ok_or("it is cut short")?;
    Ok(u32::from_le_bytes(word))
}

/// Take the next element off.
fn take<'a>(rest: &mut &'a [u8]) -> Parsed<Element<'a>> {
    let first = word(rest, 0)?;
    // A size in the upper half of the type: at most 4 bytes, which follow at once.
    if first >> 16 != 0 {
        let size = (first >> 16) as usize;
        let data = rest.get(4..4 + size).filter(|_| size <= 4).ok_or("it is cut short")?;
        *rest = rest.get(8..).ok_or("it is cut short")?;
        return Ok(Element { kind: first & 0xffff, data });
    }
    let size = word(rest, 4)? as usize;
    let data = rest
        .get(8..8 + size)
        .ok_or_else(|| format!("an element claims {size} bytes and {} are left", rest.len() - 8))?;
    let padded = if first == 15 { size } else { size.next_multiple_of(8) };
    *rest = rest.get(8 + padded..).unwrap_or_default();
    Ok(Element { kind: first, data })
}

/// Inflate a variable, unless its name, which comes first, says that nobody wants it.
fn inflate(data: &[u8], wanted: &[&str]) -> Parsed<Option<Vec<u8>>> {
    const PEEK: u64 = 512;
    let mut stream = flate2::read::ZlibDecoder::new(data);
    let mut bytes = Vec::new();
    let fault = |e: std::io::Error| format!("a variable does not unfold: {e}");
    stream.by_ref().take(PEEK).read_to_end(&mut bytes).map_err(fault)?;
    if word(&bytes, 0)? != 14 {
        return Err("a deflated element is no variable".into());
    }
    let size = word(&bytes, 4)? as usize;
    if size > MAX_BYTES || size / MAX_RATIO > data.len() {
        return Err(format!("a variable of {} bytes claims to unfold to {size}", data.len()));
    }
    if let Some(name) = peek_name(bytes.get(8..).unwrap_or_default())
        && !wanted.contains(&name.as_str())
    {
        return Ok(None);
    }
    stream.take((size + 8).saturating_sub(bytes.len()) as u64).read_to_end(&mut bytes).map_err(fault)?;
    Ok(Some(bytes))
}

/// The name of a variable whose beginning this is.
fn peek_name(mut rest: &[u8]) -> Option<String> {
    take(&mut rest).ok()?;
    take(&mut rest).ok()?;
    text(&take(&mut rest).ok()?).ok()
}

/// A variable: its name and value. None where nobody wants the name.
fn matrix(mut rest: &[u8], wanted: &[&str], depth: usize) -> Parsed<Option<(String, Value)>> {
    if depth > MAX_DEPTH {
        return Err(format!("cells are nested more than {MAX_DEPTH} deep"));
    }
    // MATLAB writes an empty cell as nothing at all.
    if rest.is_empty() {
        let empty = Value::Numbers { dims: vec![0, 0], kind: Kind::F64, bytes: vec![] };
        return Ok(Some((String::new(), empty)));
    }
    let flags = word(take(&mut rest)?.data, 0)?;
    let sizes = take(&mut rest)?;
    let kind = Kind::of(sizes.kind)?;
    let dims: Vec<usize> = sizes.data.chunks_exact(kind.size()).map(|b| kind.number(b) as usize).collect();
    let count = dims.iter().try_fold(1_usize, |n, d| n.checked_mul(*d)).ok_or("its dimensions overflow")?;
    let name = text(&take(&mut rest)?)?;
    if depth == 0 && !wanted.contains(&name.as_str()) {
        return Ok(None);
    }
    if flags & 0x800 != 0 {
        return Err(format!("`{name}` is complex"));
    }
    let value = match flags & 0xff {
        1 => Value::Cell(cells(&mut rest, count, depth)?),
        2 => structure(&mut rest, count, depth)?,
        4 => Value::Text(text(&take(&mut rest)?)?),
        6..=15 => {
            let element = take(&mut rest)?;
            let kind = Kind::of(element.kind)?;
            if count.checked_mul(kind.size()) != Some(element.data.len()) {
                let have = element.data.len();
                return Err(format!("`{name}` is {dims:?} numbers and has {have} bytes of them"));
            }
            Value::Numbers { dims, kind, bytes: element.data.to_vec() }
        }
        other => return Err(format!("`{name}` is of class {other}, which is not read")),
    };
    Ok(Some((name, value)))
}

fn cells(rest: &mut &[u8], count: usize, depth: usize) -> Parsed<Vec<Value>> {
    // Each takes 8 bytes at least, so that a false count is found before memory is taken.
    if count > rest.len() / 8 {
        return Err(format!("{count} cells are claimed where {} bytes are left", rest.len()));
    }
    let mut cells = Vec::with_capacity(count);
    for _ in 0..count {
        let element = take(rest)?;
        if element.kind != 14 {
            return Err(format!("a cell is an element of type {}", element.kind));
        }
        let (_, value) = matrix(element.data, &[], depth + 1)?.ok_or("a cell has no value")?;
        cells.push(value);
    }
    Ok(cells)
}

fn structure(rest: &mut &[u8], count: usize, depth: usize) -> Parsed<Value> {
    let width = word(take(rest)?.data, 0)? as usize;
    let names = take(rest)?.data;
    // MATLAB's have 63 letters and a zero at most.
    if !(1..=64).contains(&width) {
        return Err(format!("a structure has field names of {width} bytes; 1 to 64 are expected"));
    }
    let name =
        |b: &[u8]| String::from_utf8_lossy(b.split(|c| *c == 0).next().unwrap_or_default()).into_owned();
    let fields: Vec<String> = names.chunks(width).map(name).collect();
    let total = count.checked_mul(fields.len()).ok_or("its dimensions overflow")?;
    if fields.is_empty() {
        return Ok(Value::Struct(vec![]));
    }
    let mut values = cells(rest, total, depth)?.into_iter();
    let element = |_| fields.iter().cloned().zip(values.by_ref()).collect();
    Ok(Value::Struct((0..count).map(element).collect()))
}

/// Characters, in whichever of the widths they are stored.
fn text(element: &Element<'_>) -> Parsed<String> {
    let units = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    match element.kind {
        1 | 2 | 16 => Ok(String::from_utf8_lossy(element.data).into_owned()),
        4 | 17 => {
            let units: Vec<u16> = element.data.chunks_exact(2).map(units).collect();
            Ok(String::from_utf16_lossy(&units))
        }
        other => Err(format!("a text is an element of type {other}")),
    }
}

/// A writer of the same, for tests.
#[cfg(test)]
pub(super) mod written {
    use std::io::Write;

    fn element(kind: u32, content: &[u8]) -> Vec<u8> {
        let mut bytes = [kind.to_le_bytes(), (content.len() as u32).to_le_bytes()].concat();
        bytes.extend_from_slice(content);
        if kind != 15 {
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    /// A variable of a class, its parts following its name.
    pub(in crate::data) fn matrix(name: &str, class: u32, dims: &[u32], parts: &[Vec<u8>]) -> Vec<u8> {
        let small = |text: &str| {
            // Up to four bytes are written beside their size.
            let mut bytes = words(&[(text.len() as u32) << 16 | 1]);
            bytes.extend_from_slice(text.as_bytes());
            bytes.resize(8, 0);
            bytes
        };
        let name = if (1..=4).contains(&name.len()) { small(name) } else { element(1, name.as_bytes()) };
        let head = [element(6, &words(&[class, 0])), element(5, &words(dims)), name];
        element(14, &[head.concat(), parts.concat()].concat())
    }

    /// Numbers that are stored as bytes.
    pub(in crate::data) fn bytes(name: &str, class: u32, dims: &[u32], values: &[u8]) -> Vec<u8> {
        matrix(name, class, dims, &[element(2, values)])
    }

    /// Numbers that are stored as 16-bit ones, of class double.
    pub(in crate::data) fn numbers(name: &str, values: &[u16]) -> Vec<u8> {
        let stored: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        matrix(name, 6, &[1, values.len() as u32], &[element(4, &stored)])
    }

    pub(in crate::data) fn text(name: &str, text: &str) -> Vec<u8> {
        let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        matrix(name, 4, &[1, text.len() as u32], &[element(4, &units)])
    }

    pub(in crate::data) fn cell(name: &str, values: &[Vec<u8>]) -> Vec<u8> {
        matrix(name, 1, &[values.len() as u32, 1], values)
    }

    /// Field names of 32 bytes, then the values element by element.
    pub(in crate::data) fn structure(name: &str, fields: &[&str], rows: &[Vec<Vec<u8>>]) -> Vec<u8> {
        let mut names = Vec::new();
        for field in fields {
            names.extend_from_slice(field.as_bytes());
            names.resize(names.len().next_multiple_of(32), 0);
        }
        let width = [words(&[4 << 16 | 5]), words(&[32])].concat();
        let mut parts = vec![width, element(1, &names)];
        parts.extend(rows.iter().flatten().cloned());
        matrix(name, 2, &[1, rows.len() as u32], &parts)
    }

    pub(in crate::data) fn deflated(variable: &[u8]) -> Vec<u8> {
        let mut stream = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        stream.write_all(variable).unwrap();
        element(15, &stream.finish().unwrap())
    }

    pub(in crate::data) fn file(variables: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = b"MATLAB 5.0 MAT-file, written by a test".to_vec();
        bytes.resize(124, b' ');
        bytes.extend([0, 1, b'I', b'M']);
        bytes.extend(variables.concat());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::written::{bytes, cell, deflated, file, matrix, numbers, structure, text};
    use super::*;
    use crate::data::test_files::write_bytes;

    fn all(bytes: &[u8]) -> Parsed<BTreeMap<String, Value>> {
        variables(bytes, &["x", "longer", "c", "s"])
    }

    #[test]
    fn values_of_each_kind_are_read() {
        let row = |n: &str, v: u16| vec![numbers("", &[v]), text("", n)];
        let written = [
            bytes("x", 9, &[2, 2], &[1, 2, 3, 4]),
            deflated(&numbers("longer", &[7, 300])),
            deflated(&cell("c", &[text("", "one"), cell("", &[text("", "two")])])),
            structure("s", &["class", "fname"], &[row("a.jpg", 3), row("b.jpg", 1)]),
            deflated(&numbers("unwanted", &[1])),
        ];
        let found = all(&file(&written)).unwrap();
        assert_eq!(found.len(), 4);
        let Value::Numbers { dims, kind: Kind::U8, bytes } = &found["x"] else { panic!("{found:?}") };
        assert_eq!((&dims[..], &bytes[..]), (&[2, 2][..], &[1, 2, 3, 4][..]));
        assert_eq!(found["longer"].wholes().unwrap(), [7, 300]);
        assert_eq!(found["c"].texts().unwrap(), ["one", "two"]);
        let Value::Struct(rows) = &found["s"] else { panic!("{found:?}") };
        assert_eq!((rows[1]["fname"].text(), rows[0]["class"].wholes()), (Some("b.jpg"), Some(vec![3])));
    }

    #[test]
    fn hostile_files_are_refused() {
        let bomb = |claim: u32| {
            let mut inner = bytes("x", 9, &[1, 1], &[0]);
            inner[4..8].copy_from_slice(&claim.to_le_bytes());
            file(&[deflated(&inner)])
        };
        let mut nested = text("", "x");
        for _ in 0..20 {
            nested = cell("", &[nested]);
        }
        let many = matrix("c", 1, &[0x7fff_ffff, 0xffff], &[]);
        for (content, message) in [
            (vec![], "shorter than a header"),
            (vec![b' '; 200], "not that of version 5"),
            ([b"MATLAB 7.3 ".to_vec(), vec![0; 200]].concat(), "version 7.3"),
            (bomb(0xffff_fff0), "claims to unfold to"),
            (bomb(1 << 29), "claims to unfold to"),
            (file(&[bytes("x", 9, &[100, 100], &[1])]), "has 1 bytes of them"),
            (file(&[bytes("x", 9, &[0x7fff_ffff; 4], &[1])]), "overflow"),
            (file(&[many]), "cells are claimed"),
            (file(&[cell("c", &[nested])]), "nested more than"),
            (file(&[matrix("x", 5, &[1, 1], &[])]), "class 5"),
        ] {
            let error = all(&content).unwrap_err();
            assert!(error.contains(message), "{message}: {error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.mat");
        write_bytes(&path, &file(&[numbers("x", &[1])]));
        let error = read(&path, ["x", "y"]).unwrap_err().to_string();
        assert!(error.ends_with("a.mat has no variable `y`: is it another data set's file?"), "{error}");
    }

    /// Cut short anywhere, or with any byte changed, a file is read or refused, and nothing else happens.
    #[test]
    fn damage_never_panics() {
        let whole = file(&[
            numbers("x", &[1, 2, 3]),
            deflated(&cell("c", &[text("", "one"), text("", "two")])),
            structure("s", &["class"], &[vec![numbers("", &[1])]]),
        ]);
        for at in 0..whole.len() {
            drop(all(&whole[..at]));
            for flip in [0x01, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] ^= flip;
                drop(all(&changed));
            }
        }
    }
}
