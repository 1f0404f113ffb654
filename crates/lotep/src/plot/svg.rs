//! A picture of lines, rectangles and words.

use std::fmt::Write;

/// `text` as it may stand in XML and HTML, inside of quotes too.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // XML has no place for control characters, not even escaped.
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

/// Which end of a text its position is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// Its first letter.
    Start,
    /// Its middle.
    Middle,
    /// Its last letter.
    End,
}

/// An SVG picture in the making; lengths are pixels, y grows downwards.
pub struct Svg {
    size: [f64; 2],
    body: String,
}

impl Svg {
    /// An empty white picture.
    pub fn new(width: f64, height: f64) -> Self {
        let mut svg = Self { size: [width, height], body: String::new() };
        svg.rect([0.0, 0.0], [width, height], "#ffffff", None);
        svg
    }

    /// A filled rectangle from its upper left corner; `hint` is shown under the mouse.
    pub fn rect(&mut self, [x, y]: [f64; 2], [w, h]: [f64; 2], fill: &str, hint: Option<&str>) {
        let shape = format!("rect x='{x:.2}' y='{y:.2}' width='{w:.2}' height='{h:.2}' fill='{fill}'");
        self.shape(&shape, "rect", hint);
    }

    /// A line.
    pub fn line(&mut self, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2], colour: &str) {
        let shape = format!("line x1='{x1:.2}' y1='{y1:.2}' x2='{x2:.2}' y2='{y2:.2}' stroke='{colour}'");
        self.shape(&shape, "line", None);
    }

    /// A line through points.
    pub fn path(&mut self, points: &[[f64; 2]], colour: &str, dashed: bool) {
        let points: Vec<String> = points.iter().map(|[x, y]| format!("{x:.2},{y:.2}")).collect();
        let dashes = if dashed { " stroke-dasharray='5 4'" } else { "" };
        let shape = format!(
            "polyline points='{}' fill='none' stroke='{colour}' stroke-width='2'{dashes}",
            points.join(" ")
        );
        self.shape(&shape, "polyline", None);
    }

    /// A dot, full or hollow.
    pub fn dot(&mut self, [x, y]: [f64; 2], colour: &str, hollow: bool, hint: Option<&str>) {
        let fill = if hollow { "#ffffff" } else { colour };
        let shape = format!(
            "circle cx='{x:.2}' cy='{y:.2}' r='4' fill='{fill}' stroke='{colour}' stroke-width='1.5'"
        );
        self.shape(&shape, "circle", hint);
    }

    /// A line of text at its baseline.
    pub fn text(&mut self, [x, y]: [f64; 2], anchor: Anchor, size: f64, text: &str) {
        self.words(&format!("x='{x:.2}' y='{y:.2}'"), anchor, size, text);
    }

    /// The same, read from below.
    pub fn upright(&mut self, [x, y]: [f64; 2], anchor: Anchor, size: f64, text: &str) {
        self.words(&format!("transform='translate({x:.2} {y:.2}) rotate(-90)'"), anchor, size, text);
    }

    /// A picture in the picture, by its `data:` address.
    pub fn image(&mut self, [x, y]: [f64; 2], [w, h]: [f64; 2], address: &str) {
        let shape = format!(
            "image x='{x:.2}' y='{y:.2}' width='{w:.2}' height='{h:.2}' preserveAspectRatio='none' \
             style='image-rendering:pixelated' href='{}'",
            escape(address)
        );
        self.shape(&shape, "image", None);
    }

    fn shape(&mut self, shape: &str, name: &str, hint: Option<&str>) {
        // Writing to a string can't fail.
        _ = match hint {
            Some(hint) => writeln!(self.body, "<{shape}><title>{}</title></{name}>", escape(hint)),
            None => writeln!(self.body, "<{shape}/>"),
        };
    }

    fn words(&mut self, place: &str, anchor: Anchor, size: f64, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        _ = writeln!(
            self.body,
            "<text {place} font-size='{size}' text-anchor='{anchor}' fill='#222222'>{}</text>",
            escape(text)
        );
    }

    /// The file.
    pub fn finish(self) -> String {
        let [w, h] = self.size;
        format!(
            "<svg xmlns='http://www.w3.org/2000/svg' width='{w:.0}' height='{h:.0}' viewBox='0 0 {w:.0} {h:.0}' \
             font-family='system-ui, sans-serif' role='img'>\n{}</svg>\n",
            self.body
        )
    }
}

/// About how wide a text is, in pixels.
pub(super) fn width_of(text: &str, size: f64) -> f64 {
    0.58 * size * text.chars().count() as f64
}

/// A text cut to so many characters.
pub(crate) fn short(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_users_named_is_text_and_nothing_else() {
        assert_eq!(escape("a<b> & \"c\" 'd'\u{1b}"), "a&lt;b&gt; &amp; &quot;c&quot; &#39;d&#39; ");
        let mut svg = Svg::new(10.0, 10.0);
        svg.text([0.0, 0.0], Anchor::Start, 10.0, "<script>alert(1)</script>");
        svg.rect([0.0, 0.0], [1.0, 1.0], "#000000", Some("</title><script>"));
        let text = svg.finish();
        assert!(!text.contains("<script>"), "{text}");
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"), "{text}");
        assert_eq!(short("abcdef", 4), "abc…");
    }
}
