//! Pictures that a sentence describes: a colour and a thing.

use super::Drawn;
use super::canvas::{Canvas, Colour, Paint, Pose};
use super::dice::Dice;
use super::scenes::{film, pose, slope};
use super::shapes::Shape;

/// Eight things of each colour.
macro_rules! things {
    ($($colour:literal),*) => {
        [$(
            concat!($colour, " arrow"),
            concat!($colour, " checkerboard"),
            concat!($colour, " cross"),
            concat!($colour, " dots"),
            concat!($colour, " ring"),
            concat!($colour, " square"),
            concat!($colour, " star"),
            concat!($colour, " triangle"),
        )*]
    };
}

/// The classes, sorted: the first half has other colours than the second.
pub(super) const WORDS: [&str; 64] =
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
    let colour = COLOURS[label / 8].map(|value| value + dice.between(-0.05, 0.05));
    let paint = Paint { slope: slope(dice, 0.1), blur: dice.between(0.0, 0.03), ..Paint::solid(colour) };
    let texture = match label % 8 {
        1 => Some(Shape::Checks),
        3 => Some(Shape::Dotted),
        _ => None,
    };
    if let Some(texture) = texture {
        let period = dice.between(0.2, 0.3);
        let centre = (dice.between(0.0, 1.0), dice.between(0.0, 1.0));
        let own = Pose { centre, scale: (period, period), turns: dice.between(0.0, 1.0) };
        let patch = pose(dice, 0.42, 0.55);
        canvas.paint(&texture, own, Some((&Shape::Disc, patch)), paint);
    } else {
        let shape = match label % 8 {
            0 => Shape::arrow(),
            2 => Shape::Cross,
            4 => Shape::Ring,
            5 => Shape::Box(0.75, 0.75),
            6 => Shape::star(),
            _ => Shape::triangle(),
        };
        let pose = pose(dice, 0.26, 0.42);
        canvas.paint(&shape, pose, None, paint);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_sorted_and_their_colours_can_be_seen() {
        assert!(WORDS.is_sorted() && WORDS[0] == "black arrow" && WORDS[63] == "yellow triangle");
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
                let far = (0..3).map(|c| (sum[c] - COLOURS[label / 8][c]).abs()).fold(0.0, f32::max);
                assert!(far < if filmed { 0.35 } else { 0.12 }, "{name}: {sum:?}");
            }
        }
    }
}
