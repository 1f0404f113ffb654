//! Image files to 8-bit RGB, as PIL's `Image.open(path).convert("RGB")` gives them.

#![allow(clippy::inline_always)] // a kernel that is not inlined into `dispatch` loses the instructions

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::{DynamicImage, ImageFormat, ImageReader, Limits};
use lotep_kernels::Isa;
use lotep_kernels::simd::{Kernel, Simd, dispatch};

use super::jpeg;
use crate::{Error, Result, input_error};

/// The longest side that is decoded. Larger ones are refused before memory is taken.
const MAX_SIDE: u32 = 16_384;
/// The most memory that one decoded image may take, in bytes.
const MAX_BYTES: u64 = 512 << 20;

/// An image in memory: rows from the top, three bytes (R, G, B) a pixel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb8 {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes.
    pub data: Vec<u8>,
}

impl Rgb8 {
    /// Append the image as `[3, H, W]` with values in [0, 1].
    pub fn append_chw(&self, out: &mut Vec<f32>) {
        dispatch(Isa::best(), AppendChw { image: self, out });
    }
}

struct AppendChw<'a> {
    image: &'a Rgb8,
    out: &'a mut Vec<f32>,
}

impl Kernel for AppendChw<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        // In f64 the product rounds to the f32 that a true division by 255, as in torchvision's `ToTensor`, gives.
        let unit = |byte: u8| (f64::from(byte) * (1.0 / 255.0)) as f32;
        let pixels = self.image.data.as_chunks::<3>().0;
        for channel in 0..3 {
            self.out.extend(pixels.iter().map(|pixel| unit(pixel[channel])));
        }
    }
}

/// What an image file's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) format: &'static str,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

/// Read and decode one image file. The format is told by the content, not by the file's name. EXIF orientation is
/// not applied (timm and torchvision do not).
///
/// # Errors
/// [`Error::Io`] where the file cannot be read; [`Error::Input`] where it is no image, is damaged or cut short, or
/// is larger than 16384 pixels a side or 512 MiB decoded.
pub fn decode_file(path: impl AsRef<Path>) -> Result<Rgb8> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    decode_bytes(&bytes, &path.display().to_string())
}

/// Decode one image from memory; `name` is what an error calls it.
///
/// # Errors
/// As [`decode_file`].
pub fn decode_bytes(bytes: &[u8], name: &str) -> Result<Rgb8> {
    guarded(name, || {
        let (reader, format) = reader(bytes)?;
        if format == ImageFormat::Jpeg
            && let Some(image) = jpeg::decode(Isa::best(), bytes, MAX_SIDE, MAX_BYTES)
        {
            return Ok(image);
        }
        let image = reader.decode().map_err(|e| e.to_string())?;
        if format == ImageFormat::Jpeg && !jpeg_is_complete(bytes) {
            return Err("the file is cut short (no end-of-image marker)".into());
        }
        Ok(to_rgb8(image))
    })
}

/// Read an image's format and size without decoding its pixels.
pub(crate) fn header(bytes: &[u8], name: &str) -> Result<Header> {
    guarded(name, || {
        let (reader, format) = reader(bytes)?;
        let (width, height) = reader.into_dimensions().map_err(|e| e.to_string())?;
        Ok(Header { format: format_name(format), width, height })
    })
}

/// Name the image in errors, and turn a decoder's panic on a hostile file into an error like any other.
fn guarded<T>(name: &str, work: impl FnOnce() -> std::result::Result<T, String>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("the decoder gave up on it".into()))
        .map_err(|reason| input_error!("cannot decode image {name}: {reason}"))
}

type Reader<'a> = ImageReader<Cursor<&'a [u8]>>;

fn reader(bytes: &[u8]) -> std::result::Result<(Reader<'_>, ImageFormat), String> {
    if bytes.is_empty() {
        return Err("the file is empty".into());
    }
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    let format = reader.format().ok_or("the content is not a JPEG, PNG, WebP, BMP or PPM image")?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    Ok((reader, format))
}

fn format_name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Jpeg => "jpeg",
        ImageFormat::Png => "png",
        ImageFormat::WebP => "webp",
        ImageFormat::Bmp => "bmp",
        ImageFormat::Pnm => "ppm",
        _ => "other",
    }
}

/// Alpha is dropped, not blended; 16-bit channels keep their high byte (PIL's rule for RGB; PIL clips 16-bit
/// *grey* instead, which turns such an image white, and is not followed).
fn to_rgb8(image: DynamicImage) -> Rgb8 {
    fn high(value: u16) -> u8 {
        (value >> 8) as u8
    }
    let (width, height) = (image.width() as usize, image.height() as usize);
    let data = match image {
        DynamicImage::ImageLuma16(b) => b.into_raw().into_iter().flat_map(|v| [high(v); 3]).collect(),
        DynamicImage::ImageLumaA16(b) => b.into_raw().chunks_exact(2).flat_map(|p| [high(p[0]); 3]).collect(),
        DynamicImage::ImageRgb16(b) => b.into_raw().into_iter().map(high).collect(),
        DynamicImage::ImageRgba16(b) => {
            b.into_raw().chunks_exact(4).flat_map(|p| [high(p[0]), high(p[1]), high(p[2])]).collect()
        }
        other => other.into_rgb8().into_raw(),
    };
    Rgb8 { width, height, data }
}

/// Whether a JPEG reaches its end-of-image marker. The decoder fills what is missing with grey and reports
/// success, so that a half-copied file would train as half an image; PIL refuses it, and so do we.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(offset) = bytes.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0xff)) {
        at += offset + 1;
        match bytes.get(at) {
            Some(0xd9) => return true,
            // A fill byte: this one may itself begin the marker.
            Some(0xff) => {}
            // A segment says its length, so that a thumbnail inside it is stepped over whole.
            Some(0xc0..=0xcf | 0xda..=0xfe) => {
                let Some(length) = bytes.get(at + 1..at + 3) else { return false };
                at += 1 + usize::from(u16::from_be_bytes([length[0], length[1]]));
            }
            // A stuffed zero or a restart inside the compressed data.
            Some(_) => at += 1,
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use image::{GrayAlphaImage, GrayImage, ImageBuffer, Luma, Rgb, RgbImage, Rgba, RgbaImage};

    use super::*;

    fn picture() -> RgbImage {
        RgbImage::from_fn(61, 47, |x, y| Rgb([(x * 4) as u8, (y * 5) as u8, (x * y) as u8]))
    }

    fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn lossless_formats_give_the_same_pixels() {
        for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp] {
            let got = decode_bytes(&encode(picture(), format), "x.jpg").unwrap();
            assert_eq!((got.width, got.height), (61, 47), "{format:?}");
            assert_eq!(got.data, picture().into_raw(), "{format:?}");
        }
        let jpeg = decode_bytes(&encode(picture(), ImageFormat::Jpeg), "x.png").unwrap();
        assert_eq!((jpeg.width, jpeg.height, jpeg.data.len()), (61, 47, 61 * 47 * 3));
    }

    #[test]
    fn every_colour_type_becomes_rgb_as_in_pil() {
        let png = |image: DynamicImage| decode_bytes(&encode(image, ImageFormat::Png), "x").unwrap().data;
        assert_eq!(png(GrayImage::from_pixel(1, 1, Luma([9])).into()), [9, 9, 9]);
        assert_eq!(png(GrayAlphaImage::from_pixel(1, 1, image::LumaA([9, 0])).into()), [9, 9, 9]);
        assert_eq!(png(RgbaImage::from_pixel(1, 1, Rgba([1, 2, 3, 0])).into()), [1, 2, 3]);
        let deep = ImageBuffer::from_pixel(1, 1, Rgb([0x01ff_u16, 0x8000, 0xffff]));
        assert_eq!(png(deep.into()), [0x01, 0x80, 0xff]);
        let deep = ImageBuffer::from_pixel(1, 1, Rgba([0x01ff_u16, 0x8000, 0xffff, 7]));
        assert_eq!(png(deep.into()), [0x01, 0x80, 0xff]);
        assert_eq!(png(ImageBuffer::from_pixel(1, 1, Luma([0x12ff_u16])).into()), [0x12; 3]);
        assert_eq!(png(ImageBuffer::from_pixel(1, 1, image::LumaA([0x12ff_u16, 3])).into()), [0x12; 3]);
    }

    #[test]
    fn a_palette_is_expanded() {
        // A hand-made 2x1 BMP with a two-colour palette, one bit a pixel.
        let mut bmp = b"BM".to_vec();
        for field in [66_u32, 0, 62, 40, 2, 1] {
            bmp.extend(field.to_le_bytes());
        }
        bmp.extend([1, 0, 1, 0]);
        for field in [0_u32, 4, 0, 0, 2, 0] {
            bmp.extend(field.to_le_bytes());
        }
        bmp.extend([30, 20, 10, 0, 60, 50, 40, 0, 0b0100_0000, 0, 0, 0]);
        assert_eq!(decode_bytes(&bmp, "x").unwrap().data, [10, 20, 30, 40, 50, 60]);
    }

    #[test]
    fn damaged_files_are_refused_by_name() {
        for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Jpeg] {
            let whole = encode(picture(), format);
            for length in [1, 3, 20, whole.len() / 2, whole.len() * 9 / 10, whole.len() - 2] {
                let cut = decode_bytes(&whole[..length], "dir/cut.img");
                // The tail of a PNG is its end chunk, of a WebP its padding: the picture is complete without.
                if length == whole.len() - 2 && matches!(format, ImageFormat::Png | ImageFormat::WebP) {
                    continue;
                }
                let message = cut.expect_err(&format!("{format:?} cut to {length}")).to_string();
                assert!(message.starts_with("cannot decode image dir/cut.img: "), "{message}");
            }
        }
        let message = |bytes: &[u8]| decode_bytes(bytes, "x").unwrap_err().to_string();
        assert_eq!(message(b""), "cannot decode image x: the file is empty");
        assert!(message(b"<html>not found</html>").ends_with("not a JPEG, PNG, WebP, BMP or PPM image"));
    }

    #[test]
    fn a_decompression_bomb_is_refused() {
        // Only the header is needed: a PNG that claims 60000 x 60000.
        let mut png = encode(picture(), ImageFormat::Png);
        png[16..20].copy_from_slice(&60_000_u32.to_be_bytes());
        png[20..24].copy_from_slice(&60_000_u32.to_be_bytes());
        let mut crc = u32::MAX;
        for &byte in &png[12..29] {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 };
            }
        }
        png[29..33].copy_from_slice(&(!crc).to_be_bytes());
        let message = decode_bytes(&png, "bomb.png").unwrap_err().to_string();
        assert!(message.contains("bomb.png") && message.to_lowercase().contains("limit"), "{message}");
    }

    #[test]
    fn the_end_of_a_jpeg_is_found_past_a_thumbnail() {
        let jpeg = encode(picture(), ImageFormat::Jpeg);
        assert!(jpeg_is_complete(&jpeg));
        // An application segment with an end marker inside, then the picture cut short.
        let mut with_thumbnail = jpeg[..2].to_vec();
        with_thumbnail.extend([0xff, 0xe1, 0, 6, 0xff, 0xd8, 0xff, 0xd9]);
        with_thumbnail.extend(&jpeg[2..]);
        assert!(jpeg_is_complete(&with_thumbnail));
        assert!(!jpeg_is_complete(&with_thumbnail[..with_thumbnail.len() - 2]));
        with_thumbnail.extend(b"trailing");
        assert!(jpeg_is_complete(&with_thumbnail));
    }

    #[test]
    fn chw_is_planar_and_divided() {
        let data = (0..=255).flat_map(|v| [v, 255 - v, v ^ 0x55]).collect();
        let mut out = Vec::new();
        Rgb8 { width: 128, height: 2, data }.append_chw(&mut out);
        for (v, got) in (0_u8..=255).zip(0..256) {
            let want = [v, 255 - v, v ^ 0x55].map(|v| (f32::from(v) / 255.0).to_bits());
            assert_eq!([0, 256, 512].map(|plane| out[plane + got].to_bits()), want, "{v}");
        }
    }

    #[test]
    fn a_header_is_read_without_the_pixels() {
        let png = encode(picture(), ImageFormat::Png);
        let got = header(&png[..60], "x").unwrap();
        assert_eq!(got, Header { format: "png", width: 61, height: 47 });
    }

    #[test]
    fn a_missing_file_and_a_directory_are_io_errors() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().join("none.png"), dir.path().to_path_buf()] {
            let error = decode_file(&path).unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{error}");
            assert!(error.to_string().contains(&path.display().to_string()));
        }
    }
}
