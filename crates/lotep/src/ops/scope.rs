//! Which tokens attend to each other, and what is added to their scores.

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};

/// The reach of an attention: all tokens of a sample, or those of each window.
#[derive(Clone, Default)]
pub struct Scope {
    /// Added to the scores, `[heads, N, N]`, N the tokens of a window or of a sample.
    pub bias: Option<Tensor<3>>,
    /// Windows; none where all tokens attend to each other.
    pub windows: Option<Arc<Windows>>,
}

/// A division of a feature map into windows, shifted round its edges or not.
///
/// The map is rolled by the shift, padded at its far edges to whole windows and cut (Swin, `spec/backbones.md` 6).
#[derive(Clone, Debug, PartialEq)]
pub struct Windows {
    /// Tokens of a window.
    pub size: usize,
    /// Tokens of a sample.
    pub tokens: usize,
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
        Self { size: count, tokens: size[0] * size[1], places, mask }
    }

    /// Windows of a sample.
    pub fn count(&self) -> usize {
        self.places.len() / self.size
    }

    /// Whether some windows are not full.
    pub(super) fn is_padded(&self) -> bool {
        self.places.len() > self.tokens
    }

    /// The mask for the portable form.
    pub(super) fn mask_tensor(&self, device: &Device) -> Option<Tensor<3>> {
        let shape = [self.count(), self.size, self.size];
        let device = device.clone().without_autodiff();
        (!self.mask.is_empty()).then(|| Tensor::from_data(TensorData::new(self.mask.clone(), shape), &device))
    }

    /// Rows `[B, tokens, C]` as windows `[B · windows, size, C]`, padding being zero.
    pub(super) fn gather(&self, x: Tensor<3>) -> Tensor<3> {
        let [b, _, c] = x.dims();
        let device = x.device();
        let x = if self.is_padded() {
            Tensor::cat(vec![x, Tensor::zeros([b, 1, c], &device.clone().without_autodiff())], 1)
        } else {
            x
        };
        x.select(1, indices(&self.places, &device)).reshape([b * self.count(), self.size, c])
    }

    /// The other way about, padding left out.
    pub(super) fn scatter(&self, x: Tensor<3>) -> Tensor<3> {
        let [rows, size, c] = x.dims();
        let windows = self.count();
        let mut back = vec![0; self.tokens];
        for (i, place) in self.places.iter().enumerate().filter(|(_, p)| (**p as usize) < self.tokens) {
            back[*place as usize] = i as u32;
        }
        let device = x.device();
        x.reshape([rows / windows, windows * size, c]).select(1, indices(&back, &device))
    }
}

fn indices(values: &[u32], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i64> = values.iter().map(|v| i64::from(*v)).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), &device.clone().without_autodiff())
}

/// The biases `[heads, N, N]` that a table `[(2h - 1)(2w - 1), heads]` gives the tokens of an `h × w` window by
/// their relative positions: query `i`, key `j` have the entry `(yᵢ - yⱼ + h - 1)(2w - 1) + xᵢ - xⱼ + w - 1`.
pub fn relative_bias(table: Tensor<2>, [h, w]: [usize; 2]) -> Tensor<3> {
    let heads = table.dims()[1];
    let count = h * w;
    let entry = |i: usize, j: usize| {
        let (dy, dx) = (i / w + h - 1 - j / w, i % w + w - 1 - j % w);
        (dy * (2 * w - 1) + dx) as u32
    };
    let entries: Vec<u32> = (0..count).flat_map(|i| (0..count).map(move |j| entry(i, j))).collect();
    let device = table.device();
    table.select(0, indices(&entries, &device)).reshape([count, count, heads]).permute([2, 0, 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_keep_every_place_once() {
        for (size, window, shift) in [
            ([6, 6], [3, 3], [1, 1]),
            ([6, 14], [4, 4], [2, 2]),
            ([3, 7], [3, 4], [0, 2]),
            ([1, 1], [1, 1], [0, 0]),
        ] {
            let windows = Windows::new(size, window, shift);
            let mut places = windows.places.clone();
            places.retain(|p| (*p as usize) < windows.tokens);
            places.sort_unstable();
            assert_eq!(
                places,
                (0..windows.tokens as u32).collect::<Vec<_>>(),
                "{size:?} {window:?} {shift:?}"
            );
            let device = Device::flex();
            let n = windows.tokens;
            let values: Vec<f32> = (0..2 * n * 3).map(|v| v as f32).collect();
            let x = Tensor::<3>::from_data(TensorData::new(values.clone(), [2, n, 3]), &device);
            let back = windows.scatter(windows.gather(x));
            assert_eq!(back.into_data().iter::<f32>().collect::<Vec<_>>(), values);
        }
    }

    #[test]
    fn a_shifted_window_is_masked_where_it_was_torn() {
        // One axis of four in windows of two, shifted by one: 1 2 | 3 0.
        let windows = Windows::new([1, 4], [1, 2], [0, 1]);
        assert_eq!(windows.places, [1, 2, 3, 0]);
        assert_eq!(windows.mask, [0.0, 0.0, 0.0, 0.0, 0.0, APART, APART, 0.0]);
    }
}
