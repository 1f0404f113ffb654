//! Hashes of files, in hexadecimal.

use std::io::Read;
use std::path::Path;

use sha2::Digest;

use crate::{Error, Result};

/// Continue `hash` with files one after another, and end it.
///
/// # Errors
/// One can't be read.
pub(crate) fn files<D: Digest>(mut hash: D, paths: &[impl AsRef<Path>]) -> Result<String> {
    let mut buffer = vec![0_u8; 1 << 20];
    for path in paths.iter().map(AsRef::as_ref) {
        let mut file = std::fs::File::open(path).map_err(Error::io("open", path))?;
        loop {
            match file.read(&mut buffer).map_err(Error::io("read", path))? {
                0 => break,
                n => hash.update(&buffer[..n]),
            }
        }
    }
    Ok(hex(&hash.finalize()))
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
