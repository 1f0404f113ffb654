//! Thrift's compact protocol, in which Parquet writes what it says of itself. Values are read without a schema; whoever
//! asks knows a field's number and kind.

const MAX_DEPTH: usize = 32;

/// A value.
#[derive(Debug)]
pub(super) enum Value<'a> {
    Int(i64),
    Bytes(&'a [u8]),
    List(Vec<Value<'a>>),
    Struct(Vec<(i64, Value<'a>)>),
    /// Of a kind that Parquet has nothing important in.
    Other,
}

impl<'a> Value<'a> {
    /// A field of a structure.
    pub(super) fn get(&self, field: i64) -> Option<&Value<'a>> {
        let Self::Struct(fields) = self else { return None };
        fields.iter().find(|(id, _)| *id == field).map(|(_, value)| value)
    }

    pub(super) fn int(&self, field: i64) -> Option<i64> {
        if let Some(Self::Int(n)) = self.get(field) { Some(*n) } else { None }
    }

    /// A number that counts bytes or values.
    pub(super) fn size(&self, field: i64) -> Result<usize, String> {
        let size = self.int(field).and_then(|n| usize::try_from(n).ok());
        size.ok_or_else(|| format!("field {field} of its description is missing or no size"))
    }

    pub(super) fn list(&self, field: i64) -> &[Value<'a>] {
        if let Some(Self::List(values)) = self.get(field) { values } else { &[] }
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        if let Self::Bytes(bytes) = self { std::str::from_utf8(bytes).ok() } else { None }
    }
}

/// Read a structure from the start of `bytes`; returns it with the number of bytes that it takes.
pub(super) fn read(bytes: &[u8]) -> Result<(Value<'_>, usize), String> {
    let mut reader = Reader { bytes, at: 0 };
    let value = reader.structure(0).ok_or("its description is damaged or cut short")?;
    Ok((value, reader.at))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn unsigned(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn signed(&mut self) -> Option<i64> {
        let zigzag = self.unsigned()?;
        Some((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64))
    }

    /// A number of things that take a byte each at least.
    fn count(&mut self) -> Option<usize> {
        let count = usize::try_from(self.unsigned()?).ok()?;
        (count <= self.bytes.len() - self.at).then_some(count)
    }

    fn structure(&mut self, depth: usize) -> Option<Value<'a>> {
        let (mut fields, mut id) = (Vec::new(), 0_i64);
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Some(Value::Struct(fields));
            }
            id = if head >> 4 == 0 { self.signed()? } else { id.checked_add(i64::from(head >> 4))? };
            // A field's truth is in its kind.
            let value = match head & 15 {
                1 | 2 => Value::Other,
                kind => self.value(kind, depth + 1)?,
            };
            fields.push((id, value));
        }
    }

    fn value(&mut self, kind: u8, depth: usize) -> Option<Value<'a>> {
        if depth > MAX_DEPTH {
            return None;
        }
        Some(match kind {
            1..=3 => Value::Int(i64::from(self.byte()? as i8)),
            4..=6 => Value::Int(self.signed()?),
            7 => {
                self.bytes.get(self.at..self.at + 8)?;
                self.at += 8;
                Value::Other
            }
            8 => {
                let length = self.count()?;
                let bytes = self.bytes.get(self.at..self.at + length)?;
                self.at += length;
                Value::Bytes(bytes)
            }
            9 | 10 => {
                let head = self.byte()?;
                let count = if head >> 4 == 15 { self.count()? } else { usize::from(head >> 4) };
                Value::List((0..count).map(|_| self.value(head & 15, depth + 1)).collect::<Option<_>>()?)
            }
            11 => {
                let count = self.count()?;
                let kinds = if count > 0 { self.byte()? } else { 0 };
                for _ in 0..count {
                    self.value(kinds >> 4, depth + 1)?;
                    self.value(kinds & 15, depth + 1)?;
                }
                Value::Other
            }
            12 => self.structure(depth)?,
            _ => return None,
        })
    }
}
