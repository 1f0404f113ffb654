//! A matrix as colours.

use super::png::{data_url, png};
use super::scale::exact;
use super::svg::{Anchor, Svg, short, width_of};
use crate::Result;

/// A matrix to be shown.
#[derive(Clone, Debug, Default)]
pub struct Heat {
    /// Above it.
    pub title: String,
    /// What goes to the right, and its names.
    pub x: (String, Vec<String>),
    /// What goes down, and its names.
    pub y: (String, Vec<String>),
    /// Row by row; what is no number stays grey.
    pub values: Vec<f64>,
    /// What the first and the last colour mean.
    pub range: [f64; 2],
}

/// More cells than this become the pixels of one picture: they have no names under the mouse then.
const MOST_CELLS: usize = 4096;

/// From dark to light, in equal steps of lightness (viridis' look, by eye).
const RAMP: [[f64; 3]; 5] =
    [[68.0, 1.0, 84.0], [59.0, 82.0, 139.0], [33.0, 145.0, 140.0], [94.0, 201.0, 98.0], [253.0, 231.0, 37.0]];

/// The colour of a value between 0 and 1.
fn colour(share: f64) -> [u8; 3] {
    if !share.is_finite() {
        return [200; 3];
    }
    let at = share.clamp(0.0, 1.0) * (RAMP.len() - 1) as f64;
    let below = (at.floor() as usize).min(RAMP.len() - 2);
    let part = at - below as f64;
    [0, 1, 2].map(|c| (RAMP[below][c] * (1.0 - part) + RAMP[below + 1][c] * part).round() as u8)
}

fn css([r, g, b]: [u8; 3]) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// Draw a matrix as SVG.
///
/// # Errors
/// A picture can't be compressed.
pub fn heat(h: &Heat) -> Result<String> {
    let (rows, columns) = (h.y.1.len(), h.x.1.len());
    let cell = (560.0 / rows.max(columns).max(1) as f64).clamp(2.0, 26.0);
    let named = cell >= 9.0;
    let size = cell.min(11.0);
    let longest = |names: &[String]| names.iter().map(|n| width_of(&short(n, 24), size)).fold(0.0, f64::max);
    let left = 34.0 + if named { longest(&h.y.1) + 6.0 } else { 0.0 };
    let [w, t] = [cell * columns as f64, cell * rows as f64];
    let below = 30.0 + if named { longest(&h.x.1) + 6.0 } else { 0.0 };
    let mut svg =
        Svg::new((left + w + 90.0).max(width_of(&h.title, 14.0) + 20.0), 40.0 + t.max(90.0) + below);
    svg.text([left, 24.0], Anchor::Start, 14.0, &h.title);
    let [low, high] = h.range;
    let share = |v: f64| (v - low) / (high - low);
    if rows * columns > MOST_CELLS {
        let pixels: Vec<u8> = h.values.iter().flat_map(|v| colour(share(*v))).collect();
        svg.image([left, 40.0], [w, t], &data_url(&png(&pixels, columns, rows)?));
    } else {
        for (i, v) in h.values.iter().enumerate() {
            let (row, column) = (i / columns, i % columns);
            let at = [left + cell * column as f64, 40.0 + cell * row as f64];
            let hint = format!("{} / {}: {v:.4}", h.y.1[row], h.x.1[column]);
            svg.rect(at, [cell, cell], &css(colour(share(*v))), Some(&hint));
        }
    }
    if named {
        for (row, name) in h.y.1.iter().enumerate() {
            let y = 40.0 + cell * (row as f64 + 0.5) + size / 3.0;
            svg.text([left - 5.0, y], Anchor::End, size, &short(name, 24));
        }
        for (column, name) in h.x.1.iter().enumerate() {
            let x = left + cell * (column as f64 + 0.5) + size / 3.0;
            svg.upright([x, 45.0 + t], Anchor::End, size, &short(name, 24));
        }
    }
    svg.text(
        [left + w / 2.0, 40.0 + t + below - 8.0],
        Anchor::Middle,
        12.0,
        &short(&h.x.0, (w / 7.0).max(12.0) as usize),
    );
    svg.upright([18.0, 40.0 + t / 2.0], Anchor::Middle, 12.0, &short(&h.y.0, (t / 7.0).max(12.0) as usize));
    for i in 0..20 {
        let y = 40.0 + 4.5 * f64::from(i);
        svg.rect([left + w + 16.0, y], [12.0, 4.7], &css(colour(1.0 - f64::from(i) / 19.0)), None);
    }
    svg.text([left + w + 34.0, 49.0], Anchor::Start, 11.0, &exact(high));
    svg.text([left + w + 34.0, 130.0], Anchor::Start, 11.0, &exact(low));
    Ok(svg.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(side: usize) -> Heat {
        let names: Vec<String> = (0..side).map(|i| format!("n{i}")).collect();
        let axis = ("a".to_owned(), names);
        let values = (0..side * side).map(|i| i as f64).collect();
        Heat { title: "t".into(), x: axis.clone(), y: axis, values, range: [0.0, (side * side) as f64] }
    }

    #[test]
    fn small_ones_have_cells_and_large_ones_are_pictures() {
        let cells = heat(&of(3)).unwrap();
        assert_eq!(cells.matches("<title>").count(), 9);
        assert!(cells.contains("n1 / n2: 5.0000"));
        let picture = heat(&of(80)).unwrap();
        assert!(picture.contains("data:image/png;base64,iVBOR") && !picture.contains("<title>"));
    }

    #[test]
    fn colours_go_from_end_to_end() {
        assert_eq!([colour(0.0), colour(1.0)], [[68, 1, 84], [253, 231, 37]]);
        assert_eq!([colour(-1.0), colour(2.0)], [colour(0.0), colour(1.0)]);
        assert_eq!(colour(f64::NAN), [200; 3]);
    }
}
