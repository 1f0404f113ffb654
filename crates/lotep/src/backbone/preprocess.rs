//! What a model expects of images.

use serde::{Deserialize, Serialize};

use crate::data::{Interpolation, Transform};

pub(super) const IMAGENET: [[f32; 3]; 2] = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]];
/// Mean and standard deviation of the ViTs of `augreg` and of CoAtNet.
pub(super) const HALVES: [[f32; 3]; 2] = [[0.5; 3]; 2];
/// Pixels as they are.
pub(super) const UNCHANGED: [[f32; 3]; 2] = [[0.0; 3], [1.0; 3]];
pub(super) const CLIP: [[f32; 3]; 2] =
    [[0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_6, 0.275_777_1]];
/// Longest side of an input. Far above what any network here takes, far below what fills the memory.
pub(super) const MAX_SIDE: usize = 4096;
/// Most channels, for the same reason.
pub(super) const MAX_WIDTH: usize = 1 << 16;
/// Classes of the MIIL ImageNet-21K-P checkpoints, which take unnormalised pixels.
pub(super) const MIIL_CLASSES: usize = 11221;

/// How an image of any shape becomes the network's input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CropMode {
    /// Resize the short side, then cut out the centre.
    #[default]
    Center,
    /// Resize both sides, whatever the aspect.
    Squash,
}

/// How images are prepared for a model's own classifier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// Height and width of the network's input.
    pub image: [usize; 2],
    /// Whether to crop or to squash.
    pub crop_mode: CropMode,
    /// Share of the resized image that the centre crop keeps.
    pub crop_pct: f64,
    /// Resampling filter.
    pub interpolation: Interpolation,
    /// Subtracted from pixels in [0, 1].
    pub mean: [f32; 3],
    /// Then divided by.
    pub std: [f32; 3],
}

impl Preprocess {
    /// For square images of 224, the centre kept.
    pub(super) fn centre(crop_pct: f64, interpolation: Interpolation, [mean, std]: [[f32; 3]; 2]) -> Self {
        Self { image: [224; 2], crop_mode: CropMode::Center, crop_pct, interpolation, mean, std }
    }

    /// timm's evaluation transform, for the model's own classifier.
    pub fn evaluation(&self) -> Transform {
        let ([height, width], interpolation) = (self.image, self.interpolation);
        match self.crop_mode {
            CropMode::Center => {
                Transform::ResizeCrop { height, width, crop_pct: self.crop_pct, interpolation }
            }
            CropMode::Squash => Transform::Squash { height, width, interpolation },
        }
    }

    /// CLIP's own evaluation transform: the short side resized, bicubic, and the middle kept whole.
    pub fn clip(&self) -> Transform {
        let [height, width] = self.image;
        Transform::ResizeCrop { height, width, crop_pct: 1.0, interpolation: Interpolation::Bicubic }
    }

    /// The papers' transform for adaptation: both sides resized, bilinear, nothing cropped.
    pub fn adaptation([height, width]: [usize; 2]) -> Transform {
        Transform::Squash { height, width, interpolation: Interpolation::Bilinear }
    }
}
