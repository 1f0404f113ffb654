//! PyTorch's own checkpoint files (`.pth`, `.pt`, `.bin`): both forms that `torch.save` writes, read without executing
//! anything.

mod pickle;

use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Read, Seek};
use std::path::Path;

use half::{bf16, f16};

use crate::mapped::Mapped;
use crate::safetensors::decode;
use crate::{Result, bail, input_error};
use pickle::{Pickle, Value};

/// The first value of the older form.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Where the weights are if not at the top.
const LEVELS: [&str; 5] = ["state_dict", "model", "model_state", "module", "net"];

/// An open checkpoint: structure read and checked, tensors read on demand.
#[derive(Debug)]
pub struct TorchFile {
    file: Mapped,
    tensors: BTreeMap<String, Stored>,
}

/// A tensor in the file, whose every element is within it.
#[derive(Debug)]
struct Stored {
    kind: Kind,
    /// Bytes from the file's beginning.
    start: u64,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    /// Something else, of which only the element's size is known.
    Other(u64),
}

impl Kind {
    fn of(storage: &str) -> Option<Self> {
        Some(match storage {
            "DoubleStorage" => Self::F64,
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::Bf16,
            "LongStorage" => Self::I64,
            "IntStorage" => Self::I32,
            "ShortStorage" => Self::Other(2),
            "CharStorage" | "ByteStorage" | "BoolStorage" => Self::Other(1),
            _ => return None,
        })
    }

    fn size(self) -> u64 {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Other(size) => size,
        }
    }
}

/// Where a storage's bytes are.
type Places = HashMap<String, (u64, u64)>;

impl TorchFile {
    /// Open `path` and read its structure.
    ///
    /// # Errors
    /// The file can't be read, is in neither form, is damaged, or holds no weights.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let file = Mapped::open(path)?;
        let wrong =
            |why: String| input_error!("{} is not a PyTorch checkpoint: {why}", file.path().display());
        let (value, pickle, places) = match file.bytes() {
            bytes @ [b'P', b'K', ..] => zipped(bytes),
            bytes @ [0x80, _, ..] => legacy(bytes),
            [] => Err("it is empty".into()),
            _ => Err("it begins neither as a zip archive nor as a pickle".into()),
        }
        .map_err(wrong)?;
        let tensors = tensors(&value, &pickle, &places).map_err(wrong)?;
        Ok(Self { file, tensors })
    }

    /// Names and shapes of all tensors, sorted by name.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.tensors.iter().map(|(name, t)| (name.clone(), t.shape.clone())).collect()
    }

    /// The values of `name` as f32, and its shape.
    ///
    /// # Errors
    /// The tensor is absent, of another type than numbers of 32 or 64 bits or floats of 16, or can't be read.
    pub fn read(&self, name: &str) -> Result<(Vec<f32>, Vec<usize>)> {
        let path = self.file.path().display();
        let Some(t) = self.tensors.get(name) else { bail!("{path} has no tensor `{name}`") };
        if let Kind::Other(_) = t.kind {
            bail!("{path}: tensor `{name}` is stored as small integers; floats are expected");
        }
        // Everything between the first element and the last; elements may lie in another order there.
        let span = extent(&t.shape, &t.strides).unwrap_or(0);
        let bytes = self.file.part(t.start, span * t.kind.size());
        let bytes = bytes.ok_or_else(|| input_error!("{path}: tensor `{name}` is not all in the file"))?;
        let stored = match t.kind {
            Kind::F64 => decode::<8>(bytes, |b| f64::from_le_bytes(b) as f32),
            Kind::F32 => decode::<4>(bytes, f32::from_le_bytes),
            Kind::F16 => decode::<2>(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Kind::Bf16 => decode::<2>(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Kind::I64 => decode::<8>(bytes, |b| i64::from_le_bytes(b) as f32),
            Kind::I32 => decode::<4>(bytes, |b| i32::from_le_bytes(b) as f32),
            Kind::Other(_) => Vec::new(),
        };
        if is_row_major(&t.shape, &t.strides) {
            return Ok((stored, t.shape.clone()));
        }
        let count: usize = t.shape.iter().product();
        let mut values = Vec::with_capacity(count);
        let mut at = vec![0_usize; t.shape.len()];
        for _ in 0..count {
            values.push(stored[at.iter().zip(&t.strides).map(|(i, stride)| i * stride).sum::<usize>()]);
            for axis in (0..at.len()).rev() {
                at[axis] += 1;
                if at[axis] < t.shape[axis] {
                    break;
                }
                at[axis] = 0;
            }
        }
        Ok((values, t.shape.clone()))
    }
}

/// Whether a view's elements follow each other in order.
fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut step = 1;
    for (size, stride) in shape.iter().zip(strides).rev() {
        if *size != 1 && *stride != step {
            return false;
        }
        step = step.saturating_mul(*size);
    }
    true
}

/// Elements from the first to the last of a view; `None` if that can't be counted.
fn extent(shape: &[usize], strides: &[usize]) -> Option<u64> {
    if shape.contains(&0) {
        return Some(0);
    }
    let mut last = 0_u64;
    for (size, stride) in shape.iter().zip(strides) {
        last = last.checked_add(u64::try_from(size - 1).ok()?.checked_mul(*stride as u64)?)?;
    }
    last.checked_add(1)
}

type Structure = std::result::Result<(Value, Pickle, Places), String>;

/// The form since PyTorch 1.6: a zip archive of a pickle and a file a storage, stored uncompressed.
fn zipped(file: &[u8]) -> Structure {
    let mut archive = zip::ZipArchive::new(Cursor::new(file)).map_err(|e| e.to_string())?;
    let names: Vec<String> = archive.file_names().filter_map(|name| Some(name.ok()?.into_owned())).collect();
    let name = names.into_iter().find(|name| name.ends_with("/data.pkl") || name == "data.pkl");
    let name = name.ok_or("the archive has no data.pkl (TorchScript and other archives are not read)")?;
    let prefix = name.trim_end_matches("data.pkl").to_owned();
    let mut places = Places::new();
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(|e| e.to_string())?;
        let name = entry.name().map_err(|e| e.to_string())?.into_owned();
        let Some(key) = name.strip_prefix(&prefix).and_then(|n| n.strip_prefix("data/")) else { continue };
        if entry.compression() != zip::CompressionMethod::Stored {
            return Err(format!("`{name}` is compressed, which torch.save never does"));
        }
        let start = entry.data_start().ok_or_else(|| format!("`{name}` is nowhere"))?;
        places.insert(key.to_owned(), (start, entry.size()));
    }
    let length = file.len() as u64;
    if let Some((key, _)) =
        places.iter().find(|(_, (start, size))| start.checked_add(*size).is_none_or(|e| e > length))
    {
        return Err(format!("storage `{key}` ends behind the file's {length} bytes (truncated?)"));
    }
    let mut pickled = archive.by_name(&name).map_err(|e| e.to_string())?;
    let (value, pickle) = pickle::read(&mut pickled)?;
    Ok((value, pickle, places))
}

/// The older form: four pickles, the keys of the storages, and then those, each behind its length.
fn legacy(file: &[u8]) -> Structure {
    let mut from = Cursor::new(file);
    let mut at = 0;
    let mut next = |from: &mut Cursor<&[u8]>| -> std::result::Result<(Value, Pickle), String> {
        let (value, pickle) = pickle::read(from)?;
        at += pickle.bytes;
        Ok((value, pickle))
    };
    match next(&mut from)?.0 {
        Value::Opaque(magic) if *magic == *String::from_utf8_lossy(&MAGIC) => {}
        _ => return Err("it is a pickle, but not one that torch.save writes".into()),
    }
    let (_version, _system) = (next(&mut from)?, next(&mut from)?);
    let (value, pickle) = next(&mut from)?;
    let (Value::Sequence(list), keys) = next(&mut from)? else {
        return Err("a list of storages is expected behind the weights".into());
    };
    // Storages are named where tensors were made of them: among the arguments of a function.
    let storages = pickle.sequences.iter().flatten().filter_map(|value| match value {
        Value::Storage(storage) => Some(storage),
        _ => None,
    });
    let sizes: HashMap<&str, Option<u64>> =
        storages.map(|s| (&*s.key, Kind::of(&s.kind).map(Kind::size))).collect();
    let length = file.len() as u64;
    let mut places = Places::new();
    for key in &keys.sequences[list] {
        let Value::Text(key) = key else { return Err("a storage without a name".into()) };
        let mut count = [0; 8];
        from.read_exact(&mut count).map_err(|e| format!("it ends early ({e})"))?;
        let count = u64::from_le_bytes(count);
        // A storage of no tensor, or of an unknown kind, hides where the next one begins.
        let Some(Some(size)) = sizes.get(&**key) else {
            return Err(format!("storage `{key}` has an unknown type"));
        };
        let bytes =
            count.checked_mul(*size).filter(|b| b.checked_add(at + 8).is_some_and(|end| end <= length));
        let bytes = bytes.ok_or_else(|| format!("storage `{key}` ends behind the file (truncated?)"))?;
        places.insert(key.to_string(), (at + 8, bytes));
        at += 8 + bytes;
        from.seek_relative(bytes as i64).map_err(|e| e.to_string())?;
    }
    Ok((value, pickle, places))
}

/// The dictionary of the weights: the top one, or one of those below it that are usual.
fn weights<'a>(
    mut value: &'a Value,
    pickle: &'a Pickle,
) -> std::result::Result<&'a [(Value, Value)], String> {
    let mut opaque = None;
    // A dictionary can contain itself.
    for _ in 0..8 {
        let Value::Dict(at) = value else {
            let what = match value {
                Value::Opaque(name) => format!("an object of {name}"),
                _ => "something else".into(),
            };
            return Err(format!(
                "it holds {what} where a dictionary of weights is expected; nothing in it is executed"
            ));
        };
        let dict = &pickle.dictionaries[*at];
        if dict.iter().any(|(_, v)| matches!(v, Value::Tensor(_))) {
            return Ok(dict);
        }
        let below = LEVELS.iter().find_map(|level| {
            let is = |(k, v): &&(Value, Value)| matches!((k, v), (Value::Text(k), Value::Dict(_)) if **k == **level);
            dict.iter().find(is)
        });
        opaque = opaque.or_else(|| {
            dict.iter().find_map(|(k, v)| match (k, v) {
                (Value::Text(k), Value::Opaque(name)) => Some(format!("; `{k}` is an object of {name}")),
                _ => None,
            })
        });
        let Some((_, below)) = below else { break };
        value = below;
    }
    Err(format!(
        "it holds no weights, neither at the top nor under {}{}",
        LEVELS.join(", "),
        opaque.unwrap_or_default()
    ))
}

fn tensors(
    value: &Value,
    pickle: &Pickle,
    places: &Places,
) -> std::result::Result<BTreeMap<String, Stored>, String> {
    let mut out = BTreeMap::new();
    for (key, value) in weights(value, pickle)? {
        let (Value::Text(name), Value::Tensor(t)) = (key, value) else { continue };
        let kind = Kind::of(&t.storage.kind)
            .ok_or_else(|| format!("`{name}` is in a {}, which is not understood", t.storage.kind))?;
        let (start, bytes) = places
            .get(&*t.storage.key)
            .ok_or_else(|| format!("the storage of `{name}` is not in the file"))?;
        let inside = extent(&t.shape, &t.strides)
            .and_then(|extent| t.offset.checked_add(extent)?.checked_mul(kind.size()))
            .is_some_and(|end| end <= *bytes);
        // Strides of zero would make a small storage a huge tensor.
        let elements = t.shape.iter().try_fold(1_u64, |n, s| n.checked_mul(*s as u64));
        let dense = elements.is_some_and(|n| n <= t.storage.count.min(bytes / kind.size()));
        if !inside || !dense {
            return Err(format!("`{name}` {:?} is larger than its storage", t.shape));
        }
        let start = start + t.offset * kind.size();
        let stored = Stored { kind, start, shape: t.shape.clone(), strides: t.strides.clone() };
        out.insert(name.to_string(), stored);
    }
    // Trained on several devices at once.
    if !out.is_empty() && out.keys().all(|name| name.starts_with("module.")) {
        out = out.into_iter().map(|(name, t)| (name["module.".len()..].to_owned(), t)).collect();
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pickle as `torch.save` writes it, for a dictionary of one tensor `[2, 3]` of the storage `0`.
    fn pickled(wrap: bool, strides: [u8; 2], function: &str) -> Vec<u8> {
        let mut p: Vec<u8> = vec![0x80, 2, b'}', b'q', 0];
        let text = |p: &mut Vec<u8>, t: &str| {
            p.push(b'X');
            p.extend((t.len() as u32).to_le_bytes());
            p.extend(t.as_bytes());
        };
        if wrap {
            text(&mut p, "epoch");
            p.extend([b'K', 3, b's']);
            text(&mut p, "state_dict");
            p.push(b'}');
        }
        text(&mut p, "module.w");
        p.extend(format!("c{function}\n").bytes());
        p.push(b'(');
        p.push(b'(');
        text(&mut p, "storage");
        p.extend(b"ctorch\nFloatStorage\n");
        text(&mut p, "0");
        text(&mut p, "cpu");
        p.extend([b'K', 6, b't', b'Q', b'K', 0]);
        p.extend([b'K', 2, b'K', 3, 0x86, b'K', strides[0], b'K', strides[1], 0x86]);
        p.extend([0x89, b'c']);
        p.extend(b"collections\nOrderedDict\n");
        p.extend([b')', b'R', b't', b'R', b's']);
        if wrap {
            p.push(b's');
        }
        p.push(b'.');
        p
    }

    const REBUILD: &str = "torch._utils\n_rebuild_tensor_v2";

    fn floats() -> Vec<u8> {
        (0..6).flat_map(|v| (v as f32).to_le_bytes()).collect()
    }

    fn archive(pickle: &[u8], data: &[u8]) -> tempfile::NamedTempFile {
        use std::io::Write;
        let file = tempfile::Builder::new().suffix(".pth").tempfile().unwrap();
        let mut zip = zip::ZipWriter::new(file.reopen().unwrap());
        let options =
            zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        for (name, bytes) in [("archive/data.pkl", pickle), ("archive/data/0", data)] {
            zip.start_file(name, options).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
        file
    }

    fn old(pickle: &[u8], data: &[u8]) -> tempfile::NamedTempFile {
        let mut bytes = vec![0x80, 2, 0x8a, 10];
        bytes.extend(MAGIC);
        bytes.extend([b'.', 0x80, 2, b'M', 0xe9, 3, b'.', 0x80, 2, b'}', b'.']);
        bytes.extend(pickle);
        bytes.extend([0x80, 2, b']', b'X', 1, 0, 0, 0, b'0', b'a', b'.']);
        bytes.extend(((data.len() / 4) as u64).to_le_bytes());
        bytes.extend(data);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn both_forms_are_read() {
        for wrap in [false, true] {
            for make in [archive, old] {
                let straight = make(&pickled(wrap, [3, 1], REBUILD), &floats());
                let file = TorchFile::open(straight.path()).unwrap();
                assert_eq!(file.read("w").unwrap(), (vec![0., 1., 2., 3., 4., 5.], vec![2, 3]));
                let turned = make(&pickled(wrap, [1, 2], REBUILD), &floats());
                let file = TorchFile::open(turned.path()).unwrap();
                assert_eq!(file.read("w").unwrap().0, [0., 2., 4., 1., 3., 5.]);
            }
        }
    }

    #[test]
    fn sizes_that_only_the_file_claims_are_refused() {
        // Strides of zero over one value, which the pickle calls six.
        let one = archive(&pickled(false, [0, 0], REBUILD), &[0; 4]);
        let error = TorchFile::open(one.path()).unwrap_err().to_string();
        assert!(error.contains("`module.w` [2, 3] is larger than its storage"), "{error}");
        // A length whose bytes, and what stands before them, wrap around.
        let file = old(&pickled(false, [3, 1], REBUILD), &floats());
        let mut bytes = std::fs::read(file.path()).unwrap();
        let at = bytes.len() - floats().len() - 8;
        for count in [(1_u64 << 62) - 1, u64::MAX, 7] {
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            std::fs::write(file.path(), &bytes).unwrap();
            let error = TorchFile::open(file.path()).unwrap_err().to_string();
            assert!(error.contains("ends behind the file"), "{count}: {error}");
        }
    }

    #[test]
    fn what_would_be_executed_is_named_and_refused() {
        for make in [archive, old] {
            let file = make(&pickled(false, [3, 1], "posix\nsystem"), &floats());
            let error = TorchFile::open(file.path()).unwrap_err().to_string();
            assert!(error.contains("posix.system"), "{error}");
        }
    }

    #[test]
    fn tensors_beyond_their_storage_are_refused() {
        for make in [archive, old] {
            for strides in [[4, 1], [255, 255]] {
                let file = make(&pickled(false, strides, REBUILD), &floats());
                let error = TorchFile::open(file.path()).unwrap_err().to_string();
                assert!(error.contains("larger than its storage"), "{error}");
            }
            let file = make(&pickled(false, [3, 1], REBUILD), &floats()[..20]);
            assert!(TorchFile::open(file.path()).is_err());
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        for make in [archive, old] {
            let whole = std::fs::read(make(&pickled(true, [3, 1], REBUILD), &floats()).path()).unwrap();
            let file = tempfile::NamedTempFile::new().unwrap();
            for n in 0..whole.len() {
                std::fs::write(file.path(), &whole[..n]).unwrap();
                assert!(TorchFile::open(file.path()).is_err(), "{n} of {}", whole.len());
            }
        }
    }

    #[test]
    fn endless_nesting_is_no_trouble() {
        let mut pickle = vec![0x80, 2, b'N'];
        pickle.extend(std::iter::repeat_n(0x85, 1_000_000));
        pickle.push(b'.');
        let error = TorchFile::open(archive(&pickle, &[]).path()).unwrap_err().to_string();
        assert!(error.contains("dictionary of weights"), "{error}");
        // A dictionary that is its own state_dict.
        let mut pickle = vec![0x80, 2, b'}', b'q', 0, b'X', 10, 0, 0, 0];
        pickle.extend(b"state_dict");
        pickle.extend([b'h', 0, b's', b'.']);
        let error = TorchFile::open(archive(&pickle, &[]).path()).unwrap_err().to_string();
        assert!(error.contains("holds no weights"), "{error}");
    }
}
