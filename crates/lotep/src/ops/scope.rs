//! Which tokens attend to each other, and what is added to their scores.

use std::sync::Arc;

use burn::tensor::ops::PadMode;
use burn::tensor::{Device, Int, Tensor, TensorData};
use lotep_frozen::Windows;

/// The reach of an attention: all tokens of a sample, or those of each window.
#[derive(Clone, Default)]
pub struct Scope {
    /// Added to the scores, `[heads, N, N]`, N the tokens of a window or of a sample.
    pub bias: Option<Tensor<3>>,
    /// Windows; none where all tokens attend to each other.
    pub windows: Option<Arc<Windows>>,
}

/// The mask for the portable form.
pub(super) fn mask(windows: &Windows, device: &Device) -> Option<Tensor<3>> {
    let shape = [windows.count(), windows.size, windows.size];
    let device = device.clone().without_autodiff();
    (!windows.mask.is_empty())
        .then(|| Tensor::from_data(TensorData::new(windows.mask.clone(), shape), &device))
}

/// Rows `[B, tokens, C]` as windows `[B · windows, size, C]`, padding being zero.
pub(super) fn gather(windows: &Windows, x: Tensor<3>) -> Tensor<3> {
    let [b, _, c] = x.dims();
    let device = x.device();
    let x = if windows.is_padded() {
        Tensor::cat(vec![x, Tensor::zeros([b, 1, c], &device.clone().without_autodiff())], 1)
    } else {
        x
    };
    x.select(1, indices(&windows.places, &device)).reshape([b * windows.count(), windows.size, c])
}

/// The other way about, padding left out, what windows have of a prompt averaged.
pub(super) fn scatter(windows: &Windows, x: Tensor<3>) -> Tensor<3> {
    let [rows, size, c] = x.dims();
    let count = windows.count();
    let (samples, prompts) = (rows / count, windows.prompts);
    let mut back = vec![0; windows.tokens - prompts];
    for (i, place) in windows.places.iter().enumerate() {
        if let Some(back) = (*place as usize).checked_sub(prompts).and_then(|token| back.get_mut(token)) {
            *back = i as u32;
        }
    }
    let device = x.device();
    let map = x.clone().reshape([samples, count * size, c]).select(1, indices(&back, &device));
    if prompts == 0 {
        return map;
    }
    let own = x.reshape([samples, count, size, c]).narrow(2, 0, prompts).mean_dim(1);
    Tensor::cat(vec![own.reshape([samples, prompts, c]), map], 1)
}

/// Biases `[heads, N, N]` with zeros for `prompts` tokens before the others, as queries and as keys.
pub(super) fn beside(bias: Tensor<3>, prompts: usize) -> Tensor<3> {
    bias.pad([(prompts, 0), (prompts, 0)], PadMode::Constant(0.0))
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
            let back = scatter(&windows, gather(&windows, x));
            assert_eq!(back.into_data().iter::<f32>().collect::<Vec<_>>(), values);
        }
    }
}
