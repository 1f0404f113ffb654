//! Backgrounds, painting and finishing on an image of f32 values.

use super::Drawn;
use super::dice::{Dice, turn};
use super::shapes::{Point, Shape};

/// A colour; 0 is black and 1 is white.
pub(super) type Colour = [f32; 3];

/// Where a shape lies, in units of the image's side.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pose {
    pub(super) centre: Point,
    /// How long the shape's own unit is along its two axes.
    pub(super) scale: Point,
    /// Rotation in turns.
    pub(super) turns: f32,
}

/// How a shape is painted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint {
    /// The colour at the middle of the image.
    pub(super) colour: Colour,
    /// How much lighter it gets over one image's width to the right, and downwards.
    pub(super) slope: Point,
    /// 1 hides what lies below.
    pub(super) opacity: f32,
    /// The width of the edge in units of the image's side; no edge is narrower than a pixel.
    pub(super) blur: f32,
}

impl Paint {
    pub(super) fn solid(colour: Colour) -> Self {
        Self { colour, slope: (0.0, 0.0), opacity: 1.0, blur: 0.0 }
    }
}

/// A square image being drawn, `[H, W, 3]`.
pub(super) struct Canvas {
    size: usize,
    pixels: Vec<Colour>,
}

impl Canvas {
    pub(super) fn new(size: usize) -> Self {
        Self { size, pixels: vec![[0.0; 3]; size * size] }
    }

    /// Change every pixel, given its centre in units of the image's side.
    pub(super) fn each(&mut self, mut change: impl FnMut(Point, &mut Colour)) {
        let side = self.size as f32;
        for (index, pixel) in self.pixels.iter_mut().enumerate() {
            let (row, column) = (index / self.size, index % self.size);
            change(((column as f32 + 0.5) / side, (row as f32 + 0.5) / side), pixel);
        }
    }

    /// Fill with a colour, a slope of brightness and soft blotches of the given strength, `cells` to a side.
    pub(super) fn ground(&mut self, dice: &mut Dice, paint: Paint, blotches: f32, cells: usize) {
        let knots = cells + 1;
        let lattice: Vec<Colour> =
            (0..knots * knots).map(|_| [(); 3].map(|()| dice.between(-blotches, blotches))).collect();
        self.each(|p, pixel| {
            let (x, y) = (p.0 * cells as f32, p.1 * cells as f32);
            let (column, row) = ((x as usize).min(cells - 1), (y as usize).min(cells - 1));
            let (x, y) = (smooth(x - column as f32), smooth(y - row as f32));
            let corner = row * knots + column;
            let slope = slope(paint.slope, p);
            for channel in 0..3 {
                let at = |knot: usize| lattice[knot][channel];
                let above = at(corner) * (1.0 - x) + at(corner + 1) * x;
                let below = at(corner + knots) * (1.0 - x) + at(corner + knots + 1) * x;
                pixel[channel] = paint.colour[channel] + slope + above * (1.0 - y) + below * y;
            }
        });
    }

    /// Paint the part of `shape` that lies within `window`, where there is one.
    pub(super) fn paint(&mut self, shape: &Shape, pose: Pose, window: Option<(&Shape, Pose)>, paint: Paint) {
        let edge = paint.blur.max(1.0 / self.size as f32);
        let (shape, window) =
            (Placed::new(shape, pose), window.map(|(shape, pose)| Placed::new(shape, pose)));
        self.each(|p, pixel| {
            let mut distance = shape.distance(p);
            if let Some(window) = &window {
                distance = distance.max(window.distance(p));
            }
            let cover = (0.5 - distance / edge).clamp(0.0, 1.0) * paint.opacity;
            if cover > 0.0 {
                let slope = slope(paint.slope, p);
                for (value, colour) in pixel.iter_mut().zip(paint.colour) {
                    *value += (colour + slope - *value) * cover;
                }
            }
        });
    }

    /// Add grain of the given standard deviation and round to bytes.
    pub(super) fn finish(mut self, dice: &mut Dice, grain: f32) -> Drawn {
        self.each(|_, pixel| pixel.iter_mut().for_each(|value| *value += grain * dice.bell()));
        let rgb =
            self.pixels.iter().flatten().map(|value| (value.clamp(0.0, 1.0) * 255.0 + 0.5) as u8).collect();
        Drawn { size: self.size, rgb }
    }
}

/// A shape with its pose worked out, once an image and not once a pixel.
struct Placed<'a> {
    shape: &'a Shape,
    pose: Pose,
    direction: Point,
}

impl<'a> Placed<'a> {
    fn new(shape: &'a Shape, pose: Pose) -> Self {
        Self { shape, pose, direction: turn(pose.turns) }
    }

    /// Signed distance in units of the image's side. Where a shape is stretched it is off by the stretch,
    /// which only makes an edge a little sharper or softer.
    fn distance(&self, p: Point) -> f32 {
        let (x, y) = (p.0 - self.pose.centre.0, p.1 - self.pose.centre.1);
        let (cos, sin) = self.direction;
        let (across, down) = self.pose.scale;
        let own = ((x * cos + y * sin) / across, (y * cos - x * sin) / down);
        self.shape.distance(own) * across.min(down)
    }
}

fn slope(slope: Point, p: Point) -> f32 {
    slope.0 * (p.0 - 0.5) + slope.1 * (p.1 - 0.5)
}

fn smooth(x: f32) -> f32 {
    x * x * (3.0 - 2.0 * x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paint_covers_the_shape_and_nothing_else() {
        let mut canvas = Canvas::new(32);
        let pose = Pose { centre: (0.5, 0.5), scale: (0.25, 0.25), turns: 0.1 };
        canvas.paint(&Shape::Disc, pose, None, Paint::solid([1.0; 3]));
        let area = canvas.pixels.iter().map(|pixel| pixel[0]).sum::<f32>() / 1024.0;
        let exact = std::f32::consts::PI * (0.25f32 * 0.9).powi(2);
        assert!((area / exact - 1.0).abs() < 0.01, "area {area}, exactly {exact}");
    }

    #[test]
    fn poses_shift_turn_and_stretch() {
        // A flat box turned by a quarter stands upright.
        let pose = Pose { centre: (0.25, 0.5), scale: (0.2, 0.1), turns: 0.25 };
        let placed = Shape::Box(1.0, 1.0);
        let placed = Placed::new(&placed, pose);
        assert!(placed.distance((0.25, 0.65)) < 0.0 && placed.distance((0.4, 0.5)) > 0.0);
    }
}
