//! Named values as horizontal bars, or as dots where zero is out of sight: a bar says how large a value is, and would lie.

use super::COLOURS;
use super::scale::{Scale, exact};
use super::svg::{Anchor, Svg, short, width_of};

/// A named value.
#[derive(Clone, Debug, Default)]
pub struct Bar {
    /// Its name.
    pub name: String,
    /// Its value; no bar where it is no number.
    pub value: f64,
    /// Standard deviation, a whisker.
    pub deviation: Option<f64>,
    /// What a paper reports, a hollow dot.
    pub paper: Option<f64>,
}

const ROW: f64 = 22.0;
const WIDTH: f64 = 420.0;

/// Draw values as SVG: as bars `from_zero`, else as dots on an axis on which their differences show.
pub fn bars(title: &str, unit: &str, items: &[Bar], from_zero: bool) -> String {
    let names = items.iter().map(|b| width_of(&short(&b.name, 48), 12.0)).fold(40.0, f64::max);
    let left = names + 16.0;
    let bottom = 40.0 + ROW * items.len() as f64;
    let mut svg = Svg::new(left + WIDTH + 110.0, bottom + 48.0);
    svg.text([left + WIDTH / 2.0, 22.0], Anchor::Middle, 14.0, title);
    let values = items.iter().flat_map(|b| {
        let d = b.deviation.unwrap_or(0.0);
        [b.value - d, b.value + d, b.paper.unwrap_or(f64::NAN)]
    });
    let x = Scale::over(values.chain(from_zero.then_some(0.0)), [left, left + WIDTH], false);
    let zero = if from_zero { x.at(0.0) } else { left };
    for (value, name) in x.ticks() {
        svg.line([x.at(value), 34.0], [x.at(value), bottom], "#e4e4e4");
        svg.text([x.at(value), bottom + 16.0], Anchor::Middle, 11.0, &name);
    }
    svg.text([left + WIDTH / 2.0, bottom + 36.0], Anchor::Middle, 12.0, unit);
    for (i, b) in items.iter().enumerate() {
        let y = 38.0 + ROW * i as f64;
        svg.text([left - 8.0, y + 14.0], Anchor::End, 12.0, &short(&b.name, 48));
        if b.value.is_finite() {
            let end = x.at(b.value);
            let spread = b.deviation.map_or(String::new(), |d| format!(" ± {d:.2}"));
            let said = format!("{}{spread}", exact(b.value));
            let hint = format!("{}: {said}", b.name);
            let mut right = end;
            if let Some(d) = b.deviation.filter(|d| *d > 0.0) {
                right = x.at(b.value + d);
                svg.line([x.at(b.value - d), y + 10.0], [right, y + 10.0], "#222222");
            }
            if from_zero {
                svg.rect([zero.min(end), y + 3.0], [(end - zero).abs(), ROW - 8.0], COLOURS[0], Some(&hint));
            } else {
                svg.dot([end, y + 10.0], COLOURS[0], false, Some(&hint));
            }
            if let Some(paper) = b.paper {
                right = right.max(x.at(paper));
            }
            svg.text([right.max(zero) + 8.0, y + 14.0], Anchor::Start, 11.0, &said);
        }
        if let Some(paper) = b.paper {
            svg.dot([x.at(paper), y + 10.0], COLOURS[1], true, Some(&format!("{}, paper: {paper}", b.name)));
        }
    }
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_bar_or_a_dot() {
        let bar = |name: &str, value, paper| Bar { name: name.into(), value, deviation: Some(1.0), paper };
        let items = [bar("a", 60.0, Some(62.0)), bar("b & c", f64::NAN, Some(61.0)), bar("d", 70.0, None)];
        let text = bars("t", "%", &items, true);
        // And the background.
        assert_eq!(text.matches("<rect").count(), 3, "{text}");
        assert_eq!(text.matches("<circle").count(), 2, "{text}");
        let text = bars("t", "%", &items, false);
        assert_eq!(text.matches("<rect").count(), 1, "{text}");
        assert_eq!(text.matches("<circle").count(), 4, "{text}");
        assert!(text.contains("b &amp; c") && !text.contains("NaN"), "{text}");
    }
}
