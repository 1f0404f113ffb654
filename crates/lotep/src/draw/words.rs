//! Pictures that a sentence describes: a colour and a shape, a texture or a number of shapes.

use super::Drawn;
use super::canvas::{Canvas, Colour, Paint, Pose};
use super::dice::Dice;
use super::scenes::{film, pose, slope};
use super::shapes::Shape;

/// The things of each colour: shapes, two textures, two counts.
macro_rules! things {
    ($($colour:literal),*) => {
        [$(
            concat!($colour, " arrow"),
            concat!($colour, " checkerboard"),
            concat!($colour, " cross"),
            concat!($colour, " dots"),
            concat!($colour, " pair of rings"),
            concat!($colour, " ring"),
            concat!($colour, " square"),
            concat!($colour, " star"),
            concat!($colour, " triangle"),
            concat!($colour, " trio of rings"),
        )*]
    };
}

const THINGS: usize = 10;

/// The classes, sorted: the first half has other colours than the second.
pub(super) const WORDS: [&str; 8 * THINGS] =
    things!("black", "blue", "green", "orange", "pink", "red", "white", "yellow");

const COLOURS: [Colour; 8] = [
    [0.05, 0.05, 0.05],
    [0.1, 0.2, 0.85],
    [0.1, 0.6, 0.15],
    [0.95, 0.5, 0.05],
    [0.95, 0.45, 0.7],
    [0.85, 0.08, 0.1],
    [0.97, 0.97, 0.97],
    [0.95, 0.9, 0.1],
];

/// Draw an image of class `label` of [`WORDS`], clean or through the target task's film.
pub(super) fn picture(dice: &mut Dice, label: usize, size: usize, filmed: bool) -> Drawn {
    let mut canvas = Canvas::new(size);
    let grey = dice.between(0.3, 0.7);
    let back = [(); 3].map(|()| grey + dice.between(-0.08, 0.08));
    let ground = Paint { slope: slope(dice, 0.15), ..Paint::solid(back) };
    let blotches = dice.between(0.0, 0.12);
    canvas.ground(dice, ground, blotches, 4);
    let colour = COLOURS[label / THINGS].map(|value| value + dice.between(-0.05, 0.05));
    let paint = Paint { slope: slope(dice, 0.1), blur: dice.between(0.0, 0.03), ..Paint::solid(colour) };
    match label % THINGS {
        0 => single(dice, &mut canvas, &Shape::arrow(), paint),
        1 => textured(dice, &mut canvas, &Shape::Checks, paint),
        2 => single(dice, &mut canvas, &Shape::Cross, paint),
        3 => textured(dice, &mut canvas, &Shape::Dotted, paint),
        4 => rings(dice, &mut canvas, 2, paint),
        5 => single(dice, &mut canvas, &Shape::Ring, paint),
        6 => single(dice, &mut canvas, &Shape::Box(0.75, 0.75), paint),
        7 => single(dice, &mut canvas, &Shape::star(), paint),
        8 => single(dice, &mut canvas, &Shape::triangle(), paint),
        _ => rings(dice, &mut canvas, 3, paint),
    }
    if filmed {
        canvas.each(|p, pixel| {
            for (value, added) in pixel.iter_mut().zip(film(p)) {
                *value = (value.clamp(0.0, 1.0) - 0.5) * 0.8 + 0.5 + 0.6 * added;
            }
        });
    }
    let grain = dice.between(0.0, 0.04);
    canvas.finish(dice, grain)
}

fn single(dice: &mut Dice, canvas: &mut Canvas, shape: &Shape, paint: Paint) {
    let pose = pose(dice, 0.26, 0.42);
    canvas.paint(shape, pose, None, paint);
}

/// A patch of a pattern.
fn textured(dice: &mut Dice, canvas: &mut Canvas, texture: &Shape, paint: Paint) {
    let period = dice.between(0.2, 0.3);
    let centre = (dice.between(0.0, 1.0), dice.between(0.0, 1.0));
    let own = Pose { centre, scale: (period, period), turns: dice.between(0.0, 1.0) };
    let patch = pose(dice, 0.42, 0.55);
    canvas.paint(texture, own, Some((&Shape::Disc, patch)), paint);
}

/// So many rings around the middle, none of which touches another.
fn rings(dice: &mut Dice, canvas: &mut Canvas, count: u8, paint: Paint) {
    let first = dice.between(0.0, 1.0);
    let size = dice.between(0.15, 0.19);
    for ring in 0..count {
        let (sin, cos) = (std::f32::consts::TAU * (first + f32::from(ring) / f32::from(count))).sin_cos();
        let away = dice.between(0.25, 0.28);
        let pose = Pose { centre: (0.5 + away * cos, 0.5 + away * sin), scale: (size, size), turns: 0.0 };
        canvas.paint(&Shape::Ring, pose, None, paint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_sorted_and_their_colours_can_be_seen() {
        assert!(WORDS.is_sorted() && WORDS[0] == "black arrow" && WORDS[79] == "yellow trio of rings");
        // The middle of a square has its colour, give or take the film.
        for filmed in [false, true] {
            for (label, name) in WORDS.iter().enumerate().filter(|(_, name)| name.ends_with("square")) {
                let mut sum = [0.0; 3];
                for index in 0..40 {
                    let drawn = picture(&mut Dice::new(1, 9, index), label, 32, filmed);
                    (0..3).for_each(|c| {
                        sum[c] += f32::from(drawn.rgb[(16 * 32 + 16) * 3 + c]) / (40.0 * 255.0);
                    });
                }
                let far = (0..3).map(|c| (sum[c] - COLOURS[label / THINGS][c]).abs()).fold(0.0, f32::max);
                assert!(far < if filmed { 0.35 } else { 0.12 }, "{name}: {sum:?}");
            }
        }
    }

    /// Red areas of an image, each connected and larger than a speck.
    fn red_areas(drawn: &Drawn) -> usize {
        let mut left: Vec<bool> =
            drawn.rgb.chunks(3).map(|p| i32::from(p[0]) - i32::from(p[1].max(p[2])) > 90).collect();
        let mut areas = 0;
        while let Some(start) = left.iter().position(|red| *red) {
            let (mut edge, mut pixels) = (vec![start], 0);
            left[start] = false;
            while let Some(at) = edge.pop() {
                pixels += 1;
                let (x, y) = (at % drawn.size, at / drawn.size);
                let beside = [
                    (x > 0).then(|| at - 1),
                    (x + 1 < drawn.size).then_some(at + 1),
                    (y > 0).then(|| at - drawn.size),
                    (y + 1 < drawn.size).then_some(at + drawn.size),
                ];
                for next in beside.into_iter().flatten() {
                    if std::mem::take(&mut left[next]) {
                        edge.push(next);
                    }
                }
            }
            areas += usize::from(pixels > 40);
        }
        areas
    }

    #[test]
    fn rings_are_as_many_as_their_name_says() {
        for (name, count) in [("red ring", 1), ("red pair of rings", 2), ("red trio of rings", 3)] {
            let label = WORDS.iter().position(|word| *word == name).unwrap();
            for index in 0..40 {
                let drawn = picture(&mut Dice::new(1, 9, index), label, 96, false);
                assert_eq!(red_areas(&drawn), count, "{name}, image {index}");
            }
        }
    }
}
