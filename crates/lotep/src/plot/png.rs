//! Pixels as PNG files, and as addresses that hold them.

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

use crate::{Result, input_error};

/// A PNG of rows from the top, three bytes a pixel.
///
/// # Errors
/// The pixels are not of this size.
pub fn png(rgb: &[u8], width: usize, height: usize) -> Result<Vec<u8>> {
    if rgb.len() != 3 * width * height {
        return Err(input_error!("a picture of {width}x{height} pixels has not {} bytes", rgb.len()));
    }
    let mut file = Vec::new();
    PngEncoder::new(&mut file)
        .write_image(rgb, width as u32, height as u32, ExtendedColorType::Rgb8)
        .map_err(|e| input_error!("cannot write a PNG: {e}"))?;
    Ok(file)
}

/// Values `[C, H, W]` as bytes, pixel by pixel: zero is the middle grey, `most` and its negative are white and black.
pub fn grey(values: &[f32], most: f32) -> Vec<u8> {
    let plane = values.len() / 3;
    let byte = |v: f32| (127.5 + 127.5 * (v / most.max(f32::MIN_POSITIVE)).clamp(-1.0, 1.0)).round() as u8;
    (0..plane).flat_map(|i| [0, 1, 2].map(|c| byte(values[c * plane + i]))).collect()
}

/// A PNG as an address that needs no file.
pub fn data_url(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", base64(png))
}

/// RFC 4648's base 64.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for part in bytes.chunks(3) {
        let at = |i: usize| u32::from(part.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            // A byte less is a letter less.
            let letter = LETTERS[(bits >> (18 - 6 * i) & 63) as usize];
            text.push(if i > part.len() { '=' } else { char::from(letter) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_the_rfcs() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn pictures_come_back() {
        let rgb = grey(&[-1.0, 2.0, 0.0, 1.0, 0.5, -0.5], 1.0);
        assert_eq!(rgb, [0, 128, 191, 255, 255, 64]);
        let file = png(&rgb, 2, 1).unwrap();
        let back = crate::data::decode_bytes(&file, "picture").unwrap();
        assert_eq!((back.width, back.height, back.data), (2, 1, rgb));
        assert!(png(&[0; 5], 1, 2).is_err());
    }
}
