//! Python's pickles as far as `torch.save` writes them, read without executing anything.
//!
//! A pickle is a program for a stack machine that may call any function. This machine knows three of them (a tensor of
//! a storage, a parameter of a tensor, an ordered dictionary) and builds those itself; what any other would return is
//! only remembered by its name ([`Value::Opaque`]) and is an error where a tensor is needed.

use std::collections::HashMap;
use std::io::Read;
use std::rc::Rc;

/// Longest text, and most bytes of a pickle: the largest checkpoints have less than a megabyte of names.
const MAX_TEXT: u64 = 1 << 20;
const MAX_BYTES: u64 = 16 << 20;

/// What a pickle describes.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// `None`, and what nothing here asks for.
    None,
    Int(i64),
    Text(Rc<str>),
    /// A tuple or a list, by its place in [`Pickle::sequences`].
    Sequence(usize),
    /// By its place in [`Pickle::dictionaries`].
    Dict(usize),
    /// A function or class by its module and name.
    Global(Rc<str>),
    Storage(Rc<Storage>),
    Tensor(Rc<Tensor>),
    /// What a function would return that is not called here.
    Opaque(Rc<str>),
}

/// A run of numbers somewhere in the file.
#[derive(Debug)]
pub(super) struct Storage {
    /// Its key among the file's storages.
    pub(super) key: Rc<str>,
    /// PyTorch's name of the storage's type, `FloatStorage`.
    pub(super) kind: Rc<str>,
    pub(super) count: u64,
}

/// A view of a storage.
#[derive(Debug)]
pub(super) struct Tensor {
    pub(super) storage: Rc<Storage>,
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// A pickle that was read. What contains others lies in lists and is named by its place: pickles may nest without end,
/// and contain themselves.
#[derive(Debug, Default)]
pub(super) struct Pickle {
    pub(super) sequences: Vec<Vec<Value>>,
    pub(super) dictionaries: Vec<Vec<(Value, Value)>>,
    /// How long it was.
    pub(super) bytes: u64,
}

/// Why a pickle can't be read.
pub(super) type Why = String;

struct Machine<'a, R> {
    from: &'a mut R,
    pickle: Pickle,
    stack: Vec<Value>,
    /// Where marks are on the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
}

/// Read one pickle, leaving `from` behind it.
pub(super) fn read(from: &mut impl Read) -> Result<(Value, Pickle), Why> {
    let (pickle, memo) = (Pickle::default(), HashMap::new());
    let mut machine = Machine { from, pickle, stack: Vec::new(), marks: Vec::new(), memo };
    loop {
        let [code] = machine.bytes()?;
        if code == b'.' {
            return Ok((machine.pop()?, machine.pickle));
        }
        machine.step(code)?;
    }
}

impl<R: Read> Machine<'_, R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Why> {
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<(), Why> {
        self.pickle.bytes += out.len() as u64;
        if self.pickle.bytes > MAX_BYTES {
            return Err(format!("more than {MAX_BYTES} bytes of names and structure"));
        }
        self.from.read_exact(out).map_err(|e| format!("it ends early ({e})"))
    }

    fn text(&mut self, length: u64) -> Result<Rc<str>, Why> {
        if length > MAX_TEXT {
            return Err(format!("a text of {length} bytes"));
        }
        let mut out = vec![0; length as usize];
        self.fill(&mut out)?;
        // Bytes come here as well; nothing asks for them.
        Ok(String::from_utf8_lossy(&out).into())
    }

    fn line(&mut self) -> Result<String, Why> {
        let mut out = Vec::new();
        loop {
            match self.bytes()? {
                [b'\n'] => return Ok(String::from_utf8_lossy(&out).into_owned()),
                _ if out.len() as u64 > MAX_TEXT => return Err("a line without an end".into()),
                [byte] => out.push(byte),
            }
        }
    }

    /// A little-endian number of up to eight bytes.
    fn number(&mut self, bytes: usize) -> Result<u64, Why> {
        let mut out = [0; 8];
        self.fill(&mut out[..bytes])?;
        Ok(u64::from_le_bytes(out))
    }

    fn push(&mut self, value: Value) {
        self.stack.push(value);
    }

    fn pop(&mut self) -> Result<Value, Why> {
        // What lies below a mark belongs to somebody else.
        let bottom = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= bottom {
            return Err("it takes more than there is".into());
        }
        self.stack.pop().ok_or_else(|| "it takes more than there is".into())
    }

    /// Everything down to the last mark.
    fn marked(&mut self) -> Result<Vec<Value>, Why> {
        let mark = self.marks.pop().ok_or("an end without a beginning")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn top(&self) -> Result<&Value, Why> {
        self.stack.last().ok_or_else(|| "it takes more than there is".into())
    }

    fn keep(&mut self, at: u64) -> Result<(), Why> {
        let at = u32::try_from(at).map_err(|_| format!("memory cell {at}"))?;
        let value = self.top()?.clone();
        self.memo.insert(at, value);
        Ok(())
    }

    fn recall(&mut self, at: u64) -> Result<(), Why> {
        let value = u32::try_from(at).ok().and_then(|at| self.memo.get(&at)).cloned();
        self.push(value.ok_or_else(|| format!("memory cell {at} is empty"))?);
        Ok(())
    }

    fn tuple(&mut self, count: usize) -> Result<(), Why> {
        let mut parts = Vec::with_capacity(count);
        for _ in 0..count {
            parts.push(self.pop()?);
        }
        parts.reverse();
        self.sequence(parts);
        Ok(())
    }

    fn sequence(&mut self, parts: Vec<Value>) {
        self.push(Value::Sequence(self.pickle.sequences.len()));
        self.pickle.sequences.push(parts);
    }

    fn dictionary(&mut self) -> Value {
        self.pickle.dictionaries.push(Vec::new());
        Value::Dict(self.pickle.dictionaries.len() - 1)
    }

    fn set_items(&mut self, items: Vec<Value>) -> Result<(), Why> {
        let mut items = items.into_iter();
        // Items of an opaque object are as little known as it is.
        if let &Value::Dict(at) = self.top()? {
            let dict = &mut self.pickle.dictionaries[at];
            while let (Some(key), Some(value)) = (items.next(), items.next()) {
                dict.push((key, value));
            }
        }
        Ok(())
    }

    fn append(&mut self, items: Vec<Value>) -> Result<(), Why> {
        if let &Value::Sequence(at) = self.top()? {
            self.pickle.sequences[at].extend(items);
        }
        Ok(())
    }

    fn step(&mut self, code: u8) -> Result<(), Why> {
        match code {
            // Protocol and frame say nothing.
            0x80 => _ = self.bytes::<1>()?,
            0x95 => _ = self.bytes::<8>()?,
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Int(1)),
            0x89 => self.push(Value::Int(0)),
            b'}' => {
                let dict = self.dictionary();
                self.push(dict);
            }
            b']' | b')' | 0x8f => self.sequence(Vec::new()),
            b'(' => self.marks.push(self.stack.len()),
            b't' | b'l' => {
                let parts = self.marked()?;
                self.sequence(parts);
            }
            b'd' => {
                let items = self.marked()?;
                let dict = self.dictionary();
                self.push(dict);
                self.set_items(items)?;
            }
            0x85..=0x87 => self.tuple(usize::from(code - 0x84))?,
            b'q' => {
                let at = self.number(1)?;
                self.keep(at)?;
            }
            b'r' => {
                let at = self.number(4)?;
                self.keep(at)?;
            }
            0x94 => self.keep(self.memo.len() as u64)?,
            b'h' => {
                let at = self.number(1)?;
                self.recall(at)?;
            }
            b'j' => {
                let at = self.number(4)?;
                self.recall(at)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(format!("{module}.{name}").into()));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(module), Value::Text(name)) = (module, name) else {
                    return Err("a function without a name".into());
                };
                self.push(Value::Global(format!("{module}.{name}").into()));
            }
            b'X' | b'T' | b'B' | b'U' | b'C' | 0x8c | 0x8d | 0x8e => {
                let size = match code {
                    b'X' | b'T' | b'B' => 4,
                    0x8d | 0x8e => 8,
                    _ => 1,
                };
                let length = self.number(size)?;
                let text = self.text(length)?;
                self.push(Value::Text(text));
            }
            b'K' | b'M' => {
                let value = self.number(if code == b'K' { 1 } else { 2 })?;
                self.push(Value::Int(value as i64));
            }
            b'J' => {
                let value = i64::from(i32::from_le_bytes(self.bytes()?));
                self.push(Value::Int(value));
            }
            0x8a | 0x8b => {
                let length = self.number(if code == 0x8a { 1 } else { 4 })?;
                let value = self.long(length)?;
                self.push(value);
            }
            b'G' => {
                self.bytes::<8>()?;
                self.push(Value::None);
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(&id)?;
                self.push(storage);
            }
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let value = self.call(&function, &arguments)?;
                self.push(value);
            }
            // The state of an object (an ordered dictionary's has nothing that is needed), and what is thrown away.
            b'b' | b'0' => _ = self.pop()?,
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(vec![key, value])?;
            }
            b'u' => {
                let items = self.marked()?;
                self.set_items(items)?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.marked()?;
                self.append(items)?;
            }
            b'1' => _ = self.marked()?,
            b'2' => {
                let value = self.top()?.clone();
                self.push(value);
            }
            other => return Err(format!("instruction {other:#04x}, which torch.save does not write")),
        }
        Ok(())
    }

    /// A long integer; one that is too long for any size is opaque (the file's magic number is one).
    fn long(&mut self, length: u64) -> Result<Value, Why> {
        if length > 8 {
            return Ok(Value::Opaque(self.text(length)?));
        }
        let value = self.number(length as usize)?;
        let unused = 64 - 8 * length as u32;
        Ok(Value::Int(if unused == 64 { 0 } else { (value << unused) as i64 >> unused }))
    }

    fn parts(&self, of: &Value) -> Option<&[Value]> {
        match of {
            Value::Sequence(at) => Some(&self.pickle.sequences[*at]),
            _ => None,
        }
    }

    /// `("storage", type, key, location, count, …)`.
    fn storage(&self, id: &Value) -> Result<Value, Why> {
        if let Some([Value::Text(what), Value::Global(kind), Value::Text(key), _, Value::Int(count), ..]) =
            self.parts(id)
            && &**what == "storage"
            && let Ok(count) = u64::try_from(*count)
        {
            let kind = kind.rsplit('.').next().unwrap_or_default().into();
            return Ok(Value::Storage(Rc::new(Storage { key: key.clone(), kind, count })));
        }
        Err("a reference to something that is no storage".into())
    }

    fn sizes(&self, of: &Value) -> Option<Vec<usize>> {
        let size = |v: &Value| match v {
            Value::Int(v) => usize::try_from(*v).ok(),
            _ => None,
        };
        self.parts(of)?.iter().map(size).collect()
    }

    fn call(&mut self, function: &Value, arguments: &Value) -> Result<Value, Why> {
        let (Value::Global(name), Some(arguments)) = (function, self.parts(arguments)) else {
            return Err("a call of something that is no function".into());
        };
        match (&**name, arguments) {
            (
                "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor",
                [Value::Storage(storage), Value::Int(offset), shape, strides, ..],
            ) => match (u64::try_from(*offset), self.sizes(shape), self.sizes(strides)) {
                (Ok(offset), Some(shape), Some(strides))
                    if shape.len() == strides.len() && shape.len() <= 8 =>
                {
                    Ok(Value::Tensor(Rc::new(Tensor { storage: storage.clone(), offset, shape, strides })))
                }
                _ => Err("a tensor whose shape makes no sense".into()),
            },
            ("torch._utils._rebuild_parameter", [tensor @ Value::Tensor(_), ..]) => Ok(tensor.clone()),
            ("collections.OrderedDict", _) => Ok(self.dictionary()),
            _ => Ok(Value::Opaque(name.clone())),
        }
    }
}
