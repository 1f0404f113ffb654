//! Random changes of training images. Each is a function of the seed, the epoch and the image, so that a run that was
//! stopped goes on with the same ones.

use std::f64::consts::LN_2;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::decode::Rgb8;
use super::resize::resize;
use super::transform::Transform;

/// What is changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Augment {
    /// Nothing.
    #[default]
    None,
    /// A part of the image, at random 8 to 100% of its area with sides of 3:4 to 4:3, is taken for the whole, and half of
    /// the images are mirrored: torchvision's `RandomResizedCrop` and `RandomHorizontalFlip`, as CLIP's methods are trained.
    CropFlip,
}

/// Shares of the area that are taken.
const AREA: [f64; 2] = [0.08, 1.0];
/// A crop that fits is looked for so often.
const TRIES: usize = 10;

/// Which random numbers an epoch draws.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Draw {
    pub(super) seed: u64,
    pub(super) epoch: u64,
}

/// Sets the generator apart from that of orders and splits.
const APART: u64 = 0x6c6f_7465_7061_7567;

impl Draw {
    fn rng(self, image: usize) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ APART);
        rng.set_stream((self.epoch << 32) | image as u64);
        rng
    }
}

impl Augment {
    /// Change image number `index` and bring it to the size that `transform` gives.
    pub(super) fn apply(self, image: &Rgb8, transform: &Transform, draw: Draw, index: usize) -> Rgb8 {
        if self == Self::None || image.width == 0 || image.height == 0 {
            return transform.apply(image);
        }
        let mut rng = draw.rng(index);
        let cropped = crop(image, part([image.width, image.height], &mut rng));
        let (height, width) = transform.size();
        let mut out = resize(&cropped, width, height, transform.interpolation());
        if rng.random::<bool>() {
            mirror(&mut out);
        }
        out
    }
}

/// A rectangle: left, top, width, height.
type Rectangle = [usize; 4];

/// A random part of an image of such sides.
fn part([width, height]: [usize; 2], rng: &mut ChaCha8Rng) -> Rectangle {
    let (w, h) = (width as f64, height as f64);
    // Aspects from 3/4 to 4/3, evenly on a logarithmic scale.
    let widest = 2.0 * LN_2 - 3_f64.ln();
    for _ in 0..TRIES {
        let area = w * h * rng.random_range(AREA[0]..=AREA[1]);
        let aspect = rng.random_range(-widest..=widest).exp();
        let side = |x: f64| x.sqrt().round_ties_even() as usize;
        let (columns, rows) = (side(area * aspect), side(area / aspect));
        if (1..=width).contains(&columns) && (1..=height).contains(&rows) {
            let top = rng.random_range(0..=height - rows);
            let left = rng.random_range(0..=width - columns);
            return [left, top, columns, rows];
        }
    }
    // The middle, as much of it as has a permitted aspect.
    let aspect = (w / h).clamp((-widest).exp(), widest.exp());
    let columns = ((h * aspect).round() as usize).clamp(1, width);
    let rows = ((w / aspect).round() as usize).clamp(1, height);
    [(width - columns) / 2, (height - rows) / 2, columns, rows]
}

fn crop(image: &Rgb8, [left, top, width, height]: Rectangle) -> Rgb8 {
    let row = |y: usize| &image.data[((top + y) * image.width + left) * 3..][..width * 3];
    Rgb8 { width, height, data: (0..height).flat_map(row).copied().collect() }
}

fn mirror(image: &mut Rgb8) {
    for row in image.data.chunks_exact_mut(image.width * 3) {
        for x in 0..image.width / 2 {
            let other = image.width - 1 - x;
            (0..3).for_each(|c| row.swap(x * 3 + c, other * 3 + c));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Interpolation;

    fn rng(stream: u64) -> ChaCha8Rng {
        Draw { seed: 1, epoch: stream }.rng(0)
    }

    #[test]
    fn parts_have_the_sizes_of_torchvision() {
        let sides = [400, 300];
        let mut areas = Vec::new();
        for stream in 0..2000 {
            let [left, top, width, height] = part(sides, &mut rng(stream));
            assert!(width > 0 && height > 0 && left + width <= sides[0] && top + height <= sides[1]);
            let aspect = width as f64 / height as f64;
            assert!((0.74..1.35).contains(&aspect), "{aspect}");
            areas.push(width as f64 * height as f64 / 120_000.0);
        }
        assert!(areas.iter().all(|a| (0.078..=1.0).contains(a)));
        let mean = areas.iter().sum::<f64>() / 2000.0;
        // Even from 0.08 to 1, but for the large ones that don't fit: those are drawn again.
        assert!((0.42..0.54).contains(&mean), "{mean}");
    }

    #[test]
    fn a_strip_gives_its_middle() {
        assert_eq!(part([1000, 3], &mut rng(0))[3], 3);
        let [left, _, width, height] = part([3000, 3], &mut rng(5));
        assert!((width, height) == (4, 3) && left == 1498 || width <= 4, "{left} {width} {height}");
        assert_eq!(part([1, 1], &mut rng(0)), [0, 0, 1, 1]);
    }

    #[test]
    fn draws_depend_on_seed_epoch_and_image() {
        let data = (0..64 * 48 * 3).map(|i| (i * 7 % 251) as u8).collect();
        let image = Rgb8 { width: 64, height: 48, data };
        let transform = Transform::ResizeCrop {
            height: 16,
            width: 16,
            crop_pct: 1.0,
            interpolation: Interpolation::Bicubic,
        };
        let of =
            |seed, epoch, index| Augment::CropFlip.apply(&image, &transform, Draw { seed, epoch }, index);
        assert_eq!(of(1, 2, 3), of(1, 2, 3));
        for other in [of(2, 2, 3), of(1, 3, 3), of(1, 2, 4)] {
            assert_eq!((other.width, other.height), (16, 16));
            assert_ne!(other, of(1, 2, 3));
        }
        assert_eq!(Augment::None.apply(&image, &transform, Draw::default(), 0), transform.apply(&image));
    }

    #[test]
    fn mirroring_twice_is_nothing() {
        let image = Rgb8 { width: 3, height: 2, data: (0..18).collect() };
        let mut turned = image.clone();
        mirror(&mut turned);
        assert_eq!(turned.data[..9], [6, 7, 8, 3, 4, 5, 0, 1, 2]);
        mirror(&mut turned);
        assert_eq!(turned, image);
    }
}
