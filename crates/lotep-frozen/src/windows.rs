//! Which tokens of a feature map attend to each other within windows.

/// A division of a feature map into windows, shifted round its edges or not.
///
/// The map is rolled by the shift, padded at its far edges to whole windows and cut (Swin, `spec/backbones.md` 6).
#[derive(Clone, Debug, PartialEq)]
pub struct Windows {
    /// Tokens of a window, prompts among them.
    pub size: usize,
    /// Tokens of a sample, prompts among them.
    pub tokens: usize,
    /// Tokens of a sample that are no part of the map: they stand before it, and are the first of every window.
    pub prompts: usize,
    /// For each window after the other, its tokens' places in the sample; `tokens` stands for padding.
    pub places: Vec<u32>,
    /// Added to the scores, `[windows, size, size]`: 0, or −100 between parts of a window that are no neighbours.
    /// Empty where there is no shift.
    pub mask: Vec<f32>,
}

/// What Swin adds to a score between tokens that are no neighbours.
const APART: f32 = -100.0;

impl Windows {
    /// Cut a map of `size` into windows of `window`, rolled by `shift` first.
    ///
    /// # Panics
    /// A side is zero, or a shift not below its window's side.
    pub fn new(size: [usize; 2], window: [usize; 2], shift: [usize; 2]) -> Self {
        assert!(size.iter().chain(&window).all(|s| *s > 0) && shift[0] < window[0] && shift[1] < window[1]);
        let padded = [0, 1].map(|i| size[i].next_multiple_of(window[i]));
        // The region of a coordinate of the rolled map along one axis: those that the roll tore apart differ.
        let region = |i: usize, at: usize| match shift[i] {
            0 => 0,
            _ if at < padded[i] - window[i] => 0,
            shift if at < padded[i] - shift => 1,
            _ => 2,
        };
        let (mut places, mut regions) = (Vec::new(), Vec::new());
        for top in (0..padded[0]).step_by(window[0]) {
            for left in (0..padded[1]).step_by(window[1]) {
                for y in top..top + window[0] {
                    for x in left..left + window[1] {
                        // Padding is behind the rolled map, not rolled itself.
                        let inside = y < size[0] && x < size[1];
                        let [row, column] = [(y + shift[0]) % size[0], (x + shift[1]) % size[1]];
                        let place = if inside { row * size[1] + column } else { size[0] * size[1] };
                        places.push(place as u32);
                        regions.push(3 * region(0, y) + region(1, x));
                    }
                }
            }
        }
        let count = window[0] * window[1];
        let apart = |window: &[usize]| -> Vec<f32> {
            let row = |a: &usize| window.iter().map(|b| if a == b { 0.0 } else { APART }).collect::<Vec<_>>();
            window.iter().flat_map(row).collect()
        };
        let mask = if shift == [0; 2] { Vec::new() } else { regions.chunks(count).flat_map(apart).collect() };
        Self { size: count, tokens: size[0] * size[1], prompts: 0, places, mask }
    }

    /// The same windows with `prompts` tokens before the map's in each sample, which are in every window (VPT,
    /// `spec/methods.md` 6). No mask is between them and others.
    #[must_use]
    pub fn with_prompts(&self, prompts: usize) -> Self {
        let own = 0..prompts as u32;
        let window = |places: &[u32]| own.clone().chain(places.iter().map(|p| p + own.end)).collect();
        Self {
            size: prompts + self.size,
            tokens: prompts + self.tokens,
            prompts: prompts + self.prompts,
            places: self.places.chunks(self.size).flat_map(|places| -> Vec<u32> { window(places) }).collect(),
            mask: beside(&self.mask, self.size, prompts),
        }
    }

    /// Windows of a sample.
    pub fn count(&self) -> usize {
        self.places.len() / self.size
    }

    /// Whether some windows are not full.
    pub fn is_padded(&self) -> bool {
        self.places.iter().any(|place| *place as usize == self.tokens)
    }
}

/// Tables `[…, size, size]` of what is added to scores, with zeros for `prompts` tokens before the others, as queries and as
/// keys.
pub fn beside(tables: &[f32], size: usize, prompts: usize) -> Vec<f32> {
    let mut wide = Vec::new();
    for table in tables.chunks_exact(size * size) {
        wide.resize(wide.len() + prompts * (prompts + size), 0.0);
        for row in table.chunks_exact(size) {
            wide.resize(wide.len() + prompts, 0.0);
            wide.extend(row);
        }
    }
    wide
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shifted_window_is_masked_where_it_was_torn() {
        // One axis of four in windows of two, shifted by one: 1 2 | 3 0.
        let windows = Windows::new([1, 4], [1, 2], [0, 1]);
        assert_eq!(windows.places, [1, 2, 3, 0]);
        assert_eq!(windows.mask, [0.0, 0.0, 0.0, 0.0, 0.0, APART, APART, 0.0]);
    }

    #[test]
    fn prompts_stand_first_in_every_window() {
        // A row of three in windows of two: the second has padding.
        let windows = Windows::new([1, 3], [1, 2], [0, 1]).with_prompts(1);
        assert_eq!((windows.size, windows.tokens, windows.count()), (3, 4, 2));
        assert_eq!(windows.places, [0, 2, 3, 0, 1, 4]);
        assert!(windows.is_padded());
        let parts = windows.mask.chunks(9).map(|w| w.iter().filter(|v| **v != 0.0).count());
        assert_eq!(parts.collect::<Vec<_>>(), [0, 2]);
        assert!(windows.mask.chunks(3).step_by(3).flatten().all(|v| *v == 0.0), "as a query");
        assert!(windows.mask.iter().step_by(3).all(|v| *v == 0.0), "as a key");
    }
}
