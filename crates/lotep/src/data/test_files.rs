//! Files for this module's tests: the shared fixtures, and small data sets written on the spot.

use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};

/// A path in the shared folder, or `None` with a loud word where this machine does not have it.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("LOTEP_SHARED").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")),
        PathBuf::from,
    );
    let path = root.join(path);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {} is not here; set LOTEP_SHARED to the shared folder", path.display());
    None
}

/// Write an 8 x 8 image of one grey value, its directory included. The name's ending tells the format.
pub(crate) fn write_image(path: impl AsRef<Path>, grey: u8) {
    let path = path.as_ref();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_pixel(8, 8, Rgb([grey; 3])).save(path).unwrap();
}

/// Write a file, its directory included.
pub(crate) fn write_bytes(path: impl AsRef<Path>, bytes: &[u8]) {
    let path = path.as_ref();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// The same image as a PNG file's bytes.
pub(crate) fn png(grey: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    RgbImage::from_pixel(8, 8, Rgb([grey; 3])).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}
