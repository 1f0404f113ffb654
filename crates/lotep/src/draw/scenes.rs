//! What an image of each class of the two tasks looks like.

use super::Drawn;
use super::canvas::{Canvas, Colour, Paint, Pose};
use super::dice::{Dice, turn};
use super::shapes::Shape;

/// The source task: clean, bright, high contrast, everything varied that does not define the class.
pub(super) const PRETRAIN: [&str; 16] = [
    "disc",
    "ring",
    "square",
    "frame",
    "triangle",
    "cross",
    "star",
    "crescent",
    "arrow",
    "letter-l",
    "stripes-across",
    "stripes-upright",
    "stripes-diagonal",
    "checkerboard",
    "dots",
    "target",
];

/// The target task: other concepts in another light.
pub(super) const ADAPT: [&str; 8] =
    ["heart", "half-disc", "chevron", "zigzag", "s-curve", "spiral", "two-dots", "three-dots"];

/// Draw an image of class `label` of [`PRETRAIN`].
pub(super) fn pretrain(dice: &mut Dice, label: usize, size: usize) -> Drawn {
    let mut canvas = Canvas::new(size);
    let (back, front) = colours(dice, 0.25, 1.0);
    let ground = Paint { slope: slope(dice, 0.2), ..Paint::solid(back) };
    let blotches = dice.between(0.0, 0.15);
    canvas.ground(dice, ground, blotches, 4);
    if dice.chance(0.3) {
        line(dice, &mut canvas, 0.5);
    }

    let paint = Paint { slope: slope(dice, 0.2), blur: dice.between(0.0, 0.05), ..Paint::solid(front) };
    match label {
        10..=14 => {
            let (shape, turns) = match label {
                // Bars run across when they repeat downwards: a quarter turn from the shape's own.
                10 => (Shape::Stripes, 0.25 + dice.between(-0.03, 0.03)),
                11 => (Shape::Stripes, dice.between(-0.03, 0.03)),
                12 => (Shape::Stripes, dice.sign() * 0.125 + dice.between(-0.03, 0.03)),
                13 => (Shape::Checks, dice.between(0.0, 1.0)),
                _ => (Shape::Dotted, dice.between(0.0, 1.0)),
            };
            let period = dice.between(0.14, 0.28);
            let centre = (dice.between(0.0, 1.0), dice.between(0.0, 1.0));
            let texture = Pose { centre, scale: (period, period), turns };
            // Half the textures fill a patch and not the image, so that an outline is no proof of a shape.
            let patch =
                dice.chance(0.5).then(|| if dice.chance(0.5) { Shape::Disc } else { Shape::Box(0.8, 0.8) });
            let patch_pose = pose(dice, 0.42, 0.6);
            canvas.paint(&shape, texture, patch.as_ref().map(|patch| (patch, patch_pose)), paint);
        }
        15 => {
            let pose = pose(dice, 0.3, 0.45);
            let rings = Pose { scale: (pose.scale.0 * 0.4, pose.scale.1 * 0.4), ..pose };
            canvas.paint(&Shape::Rings, rings, Some((&Shape::Disc, pose)), paint);
        }
        _ => {
            let shape = match label {
                0 => Shape::Disc,
                1 => Shape::Ring,
                2 => Shape::Box(0.75, 0.75),
                3 => Shape::Frame,
                4 => Shape::triangle(),
                5 => Shape::Cross,
                6 => Shape::star(),
                7 => Shape::Crescent,
                8 => Shape::arrow(),
                _ => Shape::Ell,
            };
            let pose = pose(dice, 0.22, 0.42);
            canvas.paint(&shape, pose, None, paint);
        }
    }

    let (contrast, brightness) = (dice.between(0.7, 1.15), dice.between(-0.1, 0.1));
    canvas.each(|_, pixel| {
        for value in pixel {
            *value = (*value - 0.5) * contrast + 0.5 + brightness;
        }
    });
    let grain = dice.between(0.0, 0.05);
    canvas.finish(dice, grain)
}

/// Draw an image of class `label` of [`ADAPT`].
pub(super) fn adapt(dice: &mut Dice, label: usize, size: usize) -> Drawn {
    let mut canvas = Canvas::new(size);
    let (back, front) = colours(dice, 0.3, 0.6);
    let ground = Paint { slope: slope(dice, 0.2), ..Paint::solid(back) };
    let blotches = dice.between(0.05, 0.2);
    canvas.ground(dice, ground, blotches, 6);
    for _ in 0..2 {
        line(dice, &mut canvas, 0.4);
    }

    let shape = match label {
        0 => Shape::Heart,
        1 => Shape::HalfDisc,
        2 => Shape::chevron(),
        3 => Shape::zigzag(),
        4 => Shape::s_curve(),
        5 => Shape::spiral(),
        6 => Shape::Dots(2),
        _ => Shape::Dots(3),
    };
    let paint = Paint { slope: slope(dice, 0.1), blur: dice.between(0.02, 0.06), ..Paint::solid(front) };
    let pose = pose(dice, 0.28, 0.42);
    canvas.paint(&shape, pose, None, paint);
    // One line in front hides a part.
    line(dice, &mut canvas, 0.6);

    // Squeezed to the middle, so that what follows adds up without clipping.
    canvas.each(|p, pixel| {
        let added = film(p);
        for (value, added) in pixel.iter_mut().zip(added) {
            *value = (value.clamp(0.0, 1.0) - 0.5) * 0.5 + 0.5 + added;
        }
    });
    let grain = dice.between(0.02, 0.05);
    canvas.finish(dice, grain)
}

/// What the target task's camera adds to every image, always the same: a cast towards blue, a shadow towards
/// the corners, and slanted bands.
///
/// It is the task's domain shift. The bands look like one of the source task's own classes, so frozen
/// features are misled by them; and being constant, they can be cancelled by a learnt prompt.
pub(super) fn film((x, y): (f32, f32)) -> Colour {
    let (dx, dy) = (x - 0.5, y - 0.5);
    let shadow = 0.07 - 0.3 * (dx * dx + dy * dy);
    let (band, _) = turn((x + 0.6 * y) * 5.0);
    [-0.09, 0.0, 0.09].map(|cast| cast + shadow + 0.09 * band)
}

/// A background and a foreground colour whose lightness differs by `least` to `most`, either one the lighter.
fn colours(dice: &mut Dice, least: f32, most: f32) -> (Colour, Colour) {
    // A pair out of range is drawn again; the bound only says that it ends.
    for _ in 0..64 {
        let mut any = || [(); 3].map(|()| dice.between(0.05, 0.95));
        let (back, front) = (any(), any());
        let difference = (lightness(back) - lightness(front)).abs();
        if (least..most).contains(&difference) {
            return (back, front);
        }
    }
    ([0.25; 3], [0.25 + f32::midpoint(least, most); 3])
}

fn lightness([red, green, blue]: Colour) -> f32 {
    0.3 * red + 0.6 * green + 0.1 * blue
}

pub(super) fn slope(dice: &mut Dice, most: f32) -> (f32, f32) {
    (dice.between(-most, most), dice.between(-most, most))
}

/// A place where a shape of `smallest` to `largest` radius stays within the image, nearly.
pub(super) fn pose(dice: &mut Dice, smallest: f32, largest: f32) -> Pose {
    let radius = dice.between(smallest, largest);
    let room = (0.52 - radius).max(0.04);
    let centre = (0.5 + dice.between(-room, room), 0.5 + dice.between(-room, room));
    let stretch = dice.between(0.88, 1.0);
    let scale = if dice.chance(0.5) { (radius, radius * stretch) } else { (radius * stretch, radius) };
    Pose { centre, scale, turns: dice.between(0.0, 1.0) }
}

/// A thin line of any colour through the image.
fn line(dice: &mut Dice, canvas: &mut Canvas, opacity: f32) {
    let colour = [(); 3].map(|()| dice.between(0.1, 0.9));
    let centre = (dice.between(0.1, 0.9), dice.between(0.1, 0.9));
    let half_width = dice.between(0.01, 0.025);
    let pose = Pose { centre, scale: (1.0, 1.0), turns: dice.between(0.0, 1.0) };
    canvas.paint(&Shape::Box(2.0, half_width), pose, None, Paint { opacity, ..Paint::solid(colour) });
}
