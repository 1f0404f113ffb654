//! Lines or dots over two axes, with a legend.

use super::COLOURS;
use super::scale::Scale;
use super::svg::{Anchor, Svg, short, width_of};

/// A chart.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// Above it.
    pub title: String,
    /// What goes to the right.
    pub x: String,
    /// What goes up.
    pub y: String,
    /// Names of the places 0, 1, … on the x axis; none where it has numbers.
    pub places: Vec<String>,
    /// Whether the x axis is logarithmic.
    pub log_x: bool,
    /// What is shown.
    pub series: Vec<Series>,
}

/// One line of a chart, or some dots.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points; those that are no numbers leave gaps.
    pub points: Vec<Point>,
    /// Whether its points are joined.
    pub line: bool,
    /// Dashed and hollow, in the colour of the series before it: what a paper reports.
    pub paper: bool,
    /// Its colour's number, so that a name has the same one in several charts; else the one behind the series before.
    pub colour: Option<usize>,
}

/// A point of a series.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// To the right.
    pub x: f64,
    /// Up.
    pub y: f64,
    /// Standard deviation, drawn as a whisker to both sides.
    pub deviation: Option<f64>,
}

const SIZE: [f64; 2] = [460.0, 320.0];
const LEFT: f64 = 78.0;
const TOP: f64 = 40.0;

/// Draw a chart as SVG.
pub fn chart(c: &Chart) -> String {
    let [w, h] = SIZE;
    let longest = c.series.iter().map(|s| width_of(&short(&s.name, 44), 12.0)).fold(0.0, f64::max);
    let place = c.places.iter().map(|p| width_of(&short(p, 24), 11.0)).fold(0.0, f64::max);
    let steep = place > w / c.places.len().max(1) as f64;
    let below = if steep { 46.0 + place } else { 56.0 };
    let tall = h.max(20.0 * c.series.len() as f64);
    let mut svg = Svg::new(LEFT + w + 40.0 + longest + 16.0, TOP + tall + below);
    let points = || c.series.iter().flat_map(|s| &s.points);
    let x = if c.places.is_empty() {
        Scale::over(points().map(|p| p.x), [LEFT, LEFT + w], c.log_x)
    } else {
        Scale::over((0..c.places.len()).map(|i| i as f64), [LEFT, LEFT + w], false)
    };
    let around = |p: &Point| [p.y - p.deviation.unwrap_or(0.0), p.y + p.deviation.unwrap_or(0.0)];
    let y = Scale::over(points().flat_map(around), [TOP + h, TOP], false);
    svg.text([LEFT + w / 2.0, 22.0], Anchor::Middle, 14.0, &c.title);
    for (value, name) in y.ticks() {
        svg.line([LEFT, y.at(value)], [LEFT + w, y.at(value)], "#e4e4e4");
        svg.text([LEFT - 6.0, y.at(value) + 4.0], Anchor::End, 11.0, &name);
    }
    let ticks: Vec<(f64, String)> = if c.places.is_empty() {
        x.ticks()
    } else {
        c.places.iter().enumerate().map(|(i, p)| (i as f64, short(p, 24))).collect()
    };
    for (value, name) in &ticks {
        svg.line([x.at(*value), TOP + h], [x.at(*value), TOP + h + 4.0], "#888888");
        if steep {
            svg.upright([x.at(*value) + 4.0, TOP + h + 8.0], Anchor::End, 11.0, name);
        } else {
            svg.text([x.at(*value), TOP + h + 18.0], Anchor::Middle, 11.0, name);
        }
    }
    svg.line([LEFT, TOP + h], [LEFT + w, TOP + h], "#888888");
    svg.line([LEFT, TOP], [LEFT, TOP + h], "#888888");
    svg.text([LEFT + w / 2.0, TOP + h + below - 16.0], Anchor::Middle, 12.0, &c.x);
    svg.upright([16.0, TOP + h / 2.0], Anchor::Middle, 12.0, &c.y);
    let mut colour = COLOURS.len() - 1;
    for (i, s) in c.series.iter().enumerate() {
        colour = if s.paper && i > 0 { colour } else { s.colour.unwrap_or(colour + 1) % COLOURS.len() };
        let colour = COLOURS[colour];
        let usable = |p: &&Point| p.x.is_finite() && p.y.is_finite() && (!c.log_x || p.x > 0.0);
        if s.line {
            for part in s.points.split(|p| !usable(&p)) {
                let path: Vec<[f64; 2]> = part.iter().map(|p| [x.at(p.x), y.at(p.y)]).collect();
                if path.len() > 1 {
                    svg.path(&path, colour, s.paper);
                }
            }
        }
        for p in s.points.iter().filter(usable) {
            let at = [x.at(p.x), y.at(p.y)];
            let mut spread = String::new();
            if let Some(d) = p.deviation.filter(|d| d.is_finite() && *d > 0.0) {
                svg.line([at[0], y.at(p.y - d)], [at[0], y.at(p.y + d)], colour);
                spread = format!(" ± {d:.2}");
            }
            let name = ticks.iter().find(|(v, _)| !c.places.is_empty() && (v - p.x).abs() < 1e-9);
            let point_at = name.map_or_else(|| format!("{}", p.x), |(_, name)| name.clone());
            svg.dot(at, colour, s.paper, Some(&format!("{}: {point_at}, {:.4}{spread}", s.name, p.y)));
        }
        let row = TOP + 12.0 + 20.0 * i as f64;
        svg.dot([LEFT + w + 20.0, row - 4.0], colour, s.paper, None);
        svg.text([LEFT + w + 32.0, row], Anchor::Start, 12.0, &short(&s.name, 44));
    }
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_drawn_and_gaps_left() {
        let points = [1.0, 2.0, f64::NAN, 4.0, 5.0];
        let points = points.iter().enumerate();
        let points =
            points.map(|(i, y)| Point { x: i as f64, y: *y, deviation: Some(0.5) }).collect::<Vec<_>>();
        let one = Series { name: "a <b>".into(), points, line: true, ..Series::default() };
        let paper = Series { paper: true, name: "paper".into(), ..one.clone() };
        let text = chart(&Chart { title: "t".into(), series: vec![one, paper], ..Chart::default() });
        assert_eq!(text.matches("<polyline").count(), 4, "two parts each: {text}");
        // Four points each, and a dot in the legend.
        assert_eq!(text.matches("<circle").count(), 10);
        assert_eq!(text.matches("stroke-dasharray").count(), 2);
        assert!(text.contains("a &lt;b&gt;") && !text.contains("NaN"), "{text}");
    }

    #[test]
    fn series_have_the_colour_that_is_asked_for() {
        let points = vec![Point { x: 0.0, y: 1.0, deviation: None }];
        let one = |colour| Series { points: points.clone(), colour, ..Series::default() };
        let series = [None, Some(5), None, Some(0), Some(COLOURS.len())].map(one).to_vec();
        let text = chart(&Chart { series, ..Chart::default() });
        for (colour, series) in [(0, 3), (1, 0), (5, 1), (6, 1)] {
            // A point, and the legend's.
            assert_eq!(text.matches(&format!("fill='{}'", COLOURS[colour])).count(), 2 * series, "{colour}");
        }
    }
}
