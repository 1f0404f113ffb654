//! Reading safetensors files without trusting them and without copying a whole file.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, tensor::Metadata};

use crate::mapped::Mapped;
use crate::{Result, bail, input_error};

/// A header longer than this is hostile: the largest known models need under 1 MB.
const MAX_HEADER: u64 = 100_000_000;

/// An open safetensors file: the header is checked against the file's length, tensors are read on demand.
#[derive(Debug)]
pub struct TensorFile {
    file: Mapped,
    metadata: Metadata,
    data_start: u64,
}

impl TensorFile {
    /// Open `path` and check its header.
    ///
    /// # Errors
    /// The file can't be read, is truncated, or its header is not safetensors.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let file = Mapped::open(path)?;
        let wrong = |why: &dyn std::fmt::Display| {
            input_error!("{} is not a valid safetensors file: {why}", file.path().display())
        };
        let length = file.bytes().len() as u64;
        let Some((prefix, _)) = file.bytes().split_first_chunk::<8>() else {
            return Err(wrong(&format!("it has {length} bytes, fewer than a header needs")));
        };
        let header = u64::from_le_bytes(*prefix);
        if header > MAX_HEADER || header > length - 8 {
            return Err(wrong(&format!(
                "its header claims {header} bytes, the file has {length} (truncated, or another format)"
            )));
        }
        // Deserialising checks that the tensors tile the data without gaps and that shapes fit their bytes.
        let metadata: Metadata =
            serde_json::from_slice(file.part(8, header).unwrap_or_default()).map_err(|e| wrong(&e))?;
        let data_start = 8 + header;
        let expected = data_start + metadata.data_len() as u64;
        if expected != length {
            return Err(wrong(&format!("{expected} bytes expected, {length} found (truncated?)")));
        }
        Ok(Self { file, metadata, data_start })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Names and shapes of all tensors, sorted by name.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.metadata.tensors().into_iter().map(|(name, info)| (name, info.shape.clone())).collect()
    }

    /// The file's own string metadata.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.metadata.metadata().clone().unwrap_or_default().into_iter().collect()
    }

    /// The shape of `name`, if it is there.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.metadata.info(name).map(|info| info.shape.clone())
    }

    /// The values of `name` as f32 (stored as f64, f32, f16, bf16 or a 64-bit integer), and its shape.
    ///
    /// # Errors
    /// The tensor is absent, of another type, or can't be read.
    pub fn read(&self, name: &str) -> Result<(Vec<f32>, Vec<usize>)> {
        let path = self.path().display();
        let Some(info) = self.metadata.info(name) else {
            bail!("{path} has no tensor `{name}`");
        };
        let (begin, end) = info.data_offsets;
        let bytes = self.file.part(self.data_start + begin as u64, (end - begin) as u64);
        let bytes = bytes.ok_or_else(|| input_error!("{path}: tensor `{name}` is not all in the file"))?;
        let values = match info.dtype {
            Dtype::F32 => decode::<4>(bytes, f32::from_le_bytes),
            Dtype::F64 => decode::<8>(bytes, |b| f64::from_le_bytes(b) as f32),
            Dtype::F16 => decode::<2>(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => decode::<2>(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::I64 => decode::<8>(bytes, |b| i64::from_le_bytes(b) as f32),
            other => bail!("{path}: tensor `{name}` is stored as {other:?}; F32, F16 or BF16 is expected"),
        };
        Ok((values, info.shape.clone()))
    }
}

/// Numbers of `N` bytes each, as f32.
pub(crate) fn decode<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|&b| value(b)).collect()
}

/// A tensor to be written: name, shape and values.
#[derive(Clone, Debug)]
pub struct NamedTensor {
    /// Its name in the file.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f32>,
}

/// Serialise f32 tensors and at most one entry of string metadata: the writer puts several in random order, and
/// equal contents should be equal bytes.
///
/// # Errors
/// A shape does not fit its values.
pub fn serialize(tensors: &[NamedTensor], metadata: Option<(&str, String)>) -> Result<Vec<u8>> {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|t| t.values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views: Vec<_> = tensors
        .iter()
        .zip(&bytes)
        .map(|(t, b)| {
            safetensors::tensor::TensorView::new(Dtype::F32, t.shape.clone(), b).map(|v| (t.name.as_str(), v))
        })
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| input_error!("cannot serialise tensors: {e}"))?;
    let metadata = metadata.map(|(key, value)| std::iter::once((key.to_owned(), value)).collect());
    safetensors::serialize(views, metadata).map_err(|e| input_error!("cannot serialise tensors: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn sample() -> Vec<u8> {
        let t = NamedTensor { name: "a".into(), shape: vec![2, 3], values: vec![1., -2., 3., 4., 5., 6.5] };
        serialize(&[t], Some(("k", "v".into()))).unwrap()
    }

    #[test]
    fn round_trip() {
        let f = file(&sample());
        let read = TensorFile::open(f.path()).unwrap();
        assert_eq!(read.read("a").unwrap(), (vec![1., -2., 3., 4., 5., 6.5], vec![2, 3]));
        assert_eq!(read.metadata()["k"], "v");
        assert!(read.read("b").unwrap_err().to_string().contains("`b`"));
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = sample();
        for n in 0..bytes.len() {
            let f = file(&bytes[..n]);
            let error = TensorFile::open(f.path()).unwrap_err().to_string();
            assert!(error.contains("safetensors"), "{n}: {error}");
        }
    }

    #[test]
    fn a_huge_header_length_allocates_nothing() {
        let mut bytes = sample();
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(TensorFile::open(file(&bytes).path()).is_err());
        bytes[..8].copy_from_slice(&(50_000_000_u64).to_le_bytes());
        assert!(TensorFile::open(file(&bytes).path()).is_err());
    }
}
