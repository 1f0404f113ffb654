//! From a decoded image to the size a network takes.

use serde::{Deserialize, Serialize};

use super::decode::Rgb8;
use super::resize::{Interpolation, Region, resize, resize_region};
use crate::{Result, bail};

/// Longest resized side that is worked with. Only the crop is ever computed, so this bounds arithmetic, not memory.
const MAX_SIDE: usize = u32::MAX as usize;

/// How an image becomes `height` by `width` pixels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case")]
pub enum Transform {
    /// Resize both sides and ignore the aspect: the papers' protocol for downstream data.
    Squash {
        /// Rows of the result.
        height: usize,
        /// Columns of the result.
        width: usize,
        /// Filter of the resize.
        #[serde(default)]
        interpolation: Interpolation,
    },
    /// Resize so that the crop is `crop_pct` of the short side, then crop the centre: timm's evaluation.
    ///
    /// For a square result the short side becomes `floor(size / crop_pct)`. Otherwise the image is scaled, aspect
    /// kept, until it just covers `floor(height / crop_pct)` by `floor(width / crop_pct)`, as timm does.
    ResizeCrop {
        /// Rows of the result.
        height: usize,
        /// Columns of the result.
        width: usize,
        /// Fraction of the resized image that the crop keeps, commonly 0.875 to 1.
        crop_pct: f64,
        /// Filter of the resize.
        #[serde(default)]
        interpolation: Interpolation,
    },
}

impl Transform {
    /// Check values that came from a user. [`apply`](Self::apply) never panics, but on these it makes no sense.
    ///
    /// # Errors
    /// Where a side is zero or above 16384, or `crop_pct` is not 0.01 to 10.
    pub fn validate(&self) -> Result<()> {
        let (height, width) = self.size();
        if !(1..=16_384).contains(&height) || !(1..=16_384).contains(&width) {
            bail!("input size {height} x {width} is out of range: each side must be 1 to 16384 pixels");
        }
        match self {
            Self::ResizeCrop { crop_pct, .. } if !(0.01..=10.0).contains(crop_pct) => {
                bail!("crop_pct {crop_pct} is out of range: it must be 0.01 to 10, commonly 0.875 to 1")
            }
            _ => Ok(()),
        }
    }

    /// Resize, and crop where the transform says so.
    pub fn apply(&self, image: &Rgb8) -> Rgb8 {
        match *self {
            Self::Squash { height, width, interpolation } => resize(image, width, height, interpolation),
            Self::ResizeCrop { height, width, crop_pct, interpolation } => {
                let scaled = |side: usize| (side as f64 / crop_pct).floor() as usize;
                let full = if height == width {
                    short_side(image, scaled(height))
                } else {
                    cover(image, scaled(height), scaled(width))
                };
                resize_then_crop(image, full, height, width, interpolation)
            }
        }
    }

    /// The filter of the resize.
    pub(super) fn interpolation(&self) -> Interpolation {
        match *self {
            Self::Squash { interpolation, .. } | Self::ResizeCrop { interpolation, .. } => interpolation,
        }
    }

    /// Rows and columns of the result.
    pub fn size(&self) -> (usize, usize) {
        match *self {
            Self::Squash { height, width, .. } | Self::ResizeCrop { height, width, .. } => (height, width),
        }
    }
}

/// Width and height when the short side becomes `short`; the long side is truncated (torchvision's `Resize(int)`).
fn short_side(image: &Rgb8, short: usize) -> (usize, usize) {
    let short = short.clamp(1, MAX_SIDE);
    let long = |long: usize, side: usize| (short.saturating_mul(long) / side.max(1)).min(MAX_SIDE);
    if image.width <= image.height {
        (short, long(image.height, image.width))
    } else {
        (long(image.width, image.height), short)
    }
}

/// Width and height, aspect kept, that just cover `height` by `width` (timm's `ResizeKeepRatio`).
fn cover(image: &Rgb8, height: usize, width: usize) -> (usize, usize) {
    let ratio = (image.height as f64 / height.max(1) as f64).min(image.width as f64 / width.max(1) as f64);
    let side = |n: usize| ((n as f64 / ratio).round_ties_even() as usize).clamp(1, MAX_SIDE);
    (side(image.width), side(image.height))
}

/// Resize to `full` (width, height) and crop the centre. Where the crop is larger than the image, pad with black.
fn resize_then_crop(
    image: &Rgb8,
    full: (usize, usize),
    height: usize,
    width: usize,
    interpolation: Interpolation,
) -> Rgb8 {
    let (columns, rows) = (Window::new(full.0, width), Window::new(full.1, height));
    let region = Region { x: columns.skip, y: rows.skip, width: columns.keep, height: rows.keep };
    let cropped = resize_region(image, full, region, interpolation);
    if columns.keep == width && rows.keep == height {
        return cropped;
    }
    let mut out = Rgb8 { width, height, data: vec![0; width * height * 3] };
    for (row, from) in cropped.data.chunks_exact(columns.keep.max(1) * 3).enumerate() {
        let at = ((rows.pad + row) * width + columns.pad) * 3;
        out.data[at..at + from.len()].copy_from_slice(from);
    }
    out
}

/// A centred crop along one axis.
struct Window {
    skip: usize,
    keep: usize,
    pad: usize,
}

impl Window {
    fn new(have: usize, want: usize) -> Self {
        if have < want {
            return Self { skip: 0, keep: have, pad: (want - have) / 2 };
        }
        // torchvision rounds half the difference with Python's `round`: halves go to the even neighbour.
        let half = (have - want) / 2;
        Self {
            skip: if (have - want).is_multiple_of(2) { half } else { half + half % 2 },
            keep: want,
            pad: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::data::decode::decode_file;
    use crate::data::test_files::shared;

    #[test]
    fn every_preprocessing_fixture_bit_for_bit() {
        let Some(dir) = shared("fixtures/methods/preprocess") else { return };
        let cases: Value = serde_json::from_slice(&std::fs::read(dir.join("cases.json")).unwrap()).unwrap();
        let tensors = std::fs::read(dir.join("tensors.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&tensors).unwrap();
        let cases = cases["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 11);
        let mut compared = 0;
        for case in cases {
            let name = case["name"].as_str().unwrap();
            let image = decode_file(dir.join(case["image"].as_str().unwrap())).unwrap();
            let interpolation = case["interpolation"].as_str().unwrap().parse().unwrap();
            let side = case["resize"].as_u64().unwrap() as usize;
            let got = if let Some(crop) = case["crop"].as_u64().map(|c| c as usize) {
                let full = short_side(&image, side);
                assert_eq!(serde_json::json!([full.0, full.1]), case["resized_wh"], "{name}");
                let at = [Window::new(full.1, crop).skip, Window::new(full.0, crop).skip];
                assert_eq!(serde_json::json!(at), case["crop_top_left"], "{name}");
                let got = resize_then_crop(&image, full, crop, crop, interpolation);
                // The same through the public type, where the numbers are timm's own.
                let crop_pct = match (crop, side) {
                    (224, 256) => Some(0.875),
                    (224, 248) => Some(0.9),
                    (224, 235) => Some(0.95),
                    (224, 224) => Some(1.0),
                    (32, 40) => Some(0.8),
                    _ => None,
                };
                if let Some(crop_pct) = crop_pct {
                    let public = Transform::ResizeCrop { height: crop, width: crop, crop_pct, interpolation };
                    assert_eq!(public.apply(&image), got, "{name}");
                }
                got
            } else {
                Transform::Squash { height: side, width: side, interpolation }.apply(&image)
            };
            assert_eq!(got, decode_file(dir.join(format!("{name}_expected.png"))).unwrap(), "{name}");
            let want = case["sha256_rgb_bytes"].as_str().unwrap();
            let byte = |i: usize| u8::from_str_radix(&want[2 * i..2 * i + 2], 16).unwrap();
            assert!(Sha256::digest(&got.data).iter().enumerate().all(|(i, &b)| b == byte(i)), "{name}");
            let Ok(want) = tensors.tensor(&format!("{name}_f32")) else { continue };
            compared += 1;
            let mut chw = Vec::new();
            got.append_chw(&mut chw);
            let plane = got.width * got.height;
            for (i, (&value, want)) in chw.iter().zip(want.data().chunks_exact(4)).enumerate() {
                let of = |key: &str| case[key][i / plane].as_f64().unwrap() as f32;
                let want = f32::from_le_bytes(want.try_into().unwrap());
                assert!(((value - of("mean")) / of("std")).to_bits() == want.to_bits(), "{name} at {i}");
            }
        }
        assert_eq!(compared, 4);
    }

    fn ramp(width: usize, height: usize) -> Rgb8 {
        Rgb8 { width, height, data: (0..width * height).flat_map(|i| [i as u8 + 1; 3]).collect() }
    }

    #[test]
    fn a_crop_larger_than_the_image_is_padded_with_black() {
        // crop_pct 2: the short side becomes 2, the crop is 4.
        let crop = |image| {
            Transform::ResizeCrop {
                height: 4,
                width: 4,
                crop_pct: 2.0,
                interpolation: Interpolation::Bilinear,
            }
            .apply(&image)
        };
        let got: Vec<u8> = crop(ramp(2, 2)).data.chunks(3).map(|p| p[0]).collect();
        assert_eq!(got, [0, 0, 0, 0, 0, 1, 2, 0, 0, 3, 4, 0, 0, 0, 0, 0]);
        // One axis padded, the other cropped: 6 columns to 4, from column 1.
        let got: Vec<u8> = crop(ramp(6, 2)).data.chunks(3).map(|p| p[0]).collect();
        assert_eq!(got, [0, 0, 0, 0, 2, 3, 4, 5, 8, 9, 10, 11, 0, 0, 0, 0]);
    }

    #[test]
    fn a_result_that_is_not_square_covers_the_crop() {
        let image = ramp(10, 5);
        assert_eq!(cover(&image, 20, 20), (40, 20));
        assert_eq!(cover(&image, 10, 40), (40, 20));
        let crop = Transform::ResizeCrop {
            height: 3,
            width: 9,
            crop_pct: 0.9,
            interpolation: Interpolation::Bicubic,
        };
        let got = crop.apply(&image);
        assert_eq!(((got.height, got.width), got.data.len()), (crop.size(), 81));
        assert!(got.data.iter().all(|&b| b > 0), "padded");
    }

    #[test]
    fn odd_differences_round_to_even() {
        let skips: Vec<_> = (4..=11).map(|have| Window::new(have, 4).skip).collect();
        assert_eq!(skips, [0, 0, 1, 2, 2, 2, 3, 4]);
    }

    #[test]
    fn no_number_a_user_types_panics() {
        let image = ramp(10, 1);
        for crop_pct in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-300, 1e300] {
            let transform = Transform::ResizeCrop {
                height: 4,
                width: 4,
                crop_pct,
                interpolation: Interpolation::Bicubic,
            };
            assert!(transform.validate().is_err());
            assert_eq!(transform.apply(&image).data.len(), 48);
        }
        assert!(
            Transform::Squash { height: 0, width: 4, interpolation: Interpolation::Bilinear }
                .validate()
                .is_err()
        );
        assert!(
            Transform::Squash { height: 4, width: 4, interpolation: Interpolation::Bilinear }
                .validate()
                .is_ok()
        );
    }

    #[test]
    fn the_configuration_reads_as_words() {
        let transform = Transform::ResizeCrop {
            height: 224,
            width: 224,
            crop_pct: 0.875,
            interpolation: Interpolation::Bicubic,
        };
        let text = serde_json::to_string(&transform).unwrap();
        assert_eq!(
            text,
            r#"{"mode":"resize-crop","height":224,"width":224,"crop_pct":0.875,"interpolation":"bicubic"}"#
        );
        assert_eq!(serde_json::from_str::<Transform>(&text).unwrap(), transform);
    }
}
