//! Position embeddings and biases for another grid than they were learnt for.

use burn::tensor::{Tensor, TensorData};

use super::Weights;
use crate::Result;
use crate::ops::relative_bias;

/// One axis of a resampling: for each new place the first old one that counts, and the weights from there on.
type Axis = Vec<(usize, Vec<f64>)>;

/// Resample embeddings `[h · w, C]` of one grid to another, as timm does: a separable cubic filter (a = −0.5), widened
/// where the grid shrinks, its weights normalised at the edges (PyTorch's `bicubic` with `antialias`).
pub(super) fn resample(x: Tensor<2>, from: [usize; 2], to: [usize; 2]) -> Tensor<2> {
    mix(x, [0, 1].map(|i| cubic_filters(from[i], to[i])), from)
}

/// Resample a table of relative position biases `[(2h - 1)(2w - 1), heads]` of one window to another, as timm does
/// (after BEiT): the old places lie further apart the further out they are, by a factor that makes the outermost ones
/// the new outermost ones, and between them the table is linear.
fn resample_biases(x: Tensor<2>, from: [usize; 2], to: [usize; 2]) -> Tensor<2> {
    let from = from.map(|side| 2 * side - 1);
    mix(x, [0, 1].map(|i| spread(from[i], 2 * to[i] - 1)), from)
}

/// Give a network another image size, noting which one its tables are stored for.
pub(super) fn take_size(image: &mut [usize; 2], stored: &mut Option<[usize; 2]>, to: [usize; 2]) {
    let learnt = stored.unwrap_or(*image);
    *stored = (learnt != to).then_some(learnt);
    *image = to;
}

/// The biases `[heads, N, N]` of a window, from the table `name` that was learnt for another one, or the same.
///
/// # Errors
/// There is no such table.
pub(super) fn biases(
    weights: &Weights,
    name: &str,
    heads: usize,
    [learnt, window]: [[usize; 2]; 2],
) -> Result<Tensor<3>> {
    let fit = (learnt != window).then_some(|table| resample_biases(table, learnt, window));
    let entries = (2 * learnt[0] - 1) * (2 * learnt[1] - 1);
    Ok(relative_bias(weights.take_resampled(name, [entries, heads], fit)?, window))
}

/// Each new row as a sum of old ones: a product with a matrix, which gradients go through.
fn mix(x: Tensor<2>, axes: [Axis; 2], [h, w]: [usize; 2]) -> Tensor<2> {
    let rows = axes[0].len() * axes[1].len();
    let mut matrix = vec![0.0; rows * h * w];
    let places = axes[0].iter().flat_map(|y| axes[1].iter().map(move |x| (y, x)));
    for (row, ((y, in_y), (x, in_x))) in matrix.chunks_exact_mut(h * w).zip(places) {
        for (i, wy) in in_y.iter().enumerate() {
            for (j, wx) in in_x.iter().enumerate() {
                row[(y + i) * w + x + j] = (wy * wx) as f32;
            }
        }
    }
    let device = x.device().without_autodiff();
    Tensor::<2>::from_data(TensorData::new(matrix, [rows, h * w]), &device).matmul(x)
}

fn cubic_filters(from: usize, to: usize) -> Axis {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let filter = |i: usize| {
        let centre = scale * (i as f64 + 0.5);
        let first = (centre - 2.0 * stretch + 0.5).max(0.0) as usize;
        let end = ((centre + 2.0 * stretch + 0.5) as usize).min(from);
        let weights: Vec<f64> = (first..end).map(|j| cubic((j as f64 - centre + 0.5) / stretch)).collect();
        let sum: f64 = weights.iter().sum();
        (first, weights.into_iter().map(|w| w / sum).collect())
    };
    (0..to).map(filter).collect()
}

/// Linear weights between places `0, ±1, ±(1 + q), ±(1 + q + q²), …`, of which there are `from`, an odd number.
fn spread(from: usize, to: usize) -> Axis {
    let (half, reach) = (from / 2, to / 2);
    // timm's search, to its accuracy. It begins at 1.01, so a side that stays is resampled a little, too.
    let (mut low, mut high, mut q) = (1.01_f64, 1.5_f64, 1.01_f64);
    while high - low > 1e-6 {
        q = f64::midpoint(low, high);
        let sum = (1.0 - q.powi(half as i32)) / (1.0 - q);
        if sum > reach as f64 { high = q } else { low = q }
    }
    let mut places = vec![0.0];
    for i in 0..half {
        places.push(places[i] + q.powi(i as i32));
    }
    let place = |i: usize| if i < half { -places[half - i] } else { places[i - half] };
    let weights = |i: usize| {
        let x = i as f64 - reach as f64;
        // The first old place that is not left of it; beyond the outermost, that one counts alone.
        let right = (0..from).find(|j| place(*j) >= x).unwrap_or(from);
        if right == 0 || right == from {
            return (right.min(from - 1), vec![1.0]);
        }
        let share = (x - place(right - 1)) / (place(right) - place(right - 1));
        (right - 1, vec![1.0 - share, share])
    };
    (0..to).map(weights).collect()
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::fixtures::assert_close;

    #[test]
    fn resampling_agrees_with_pytorch() {
        // torch.nn.functional.interpolate(x, size, mode="bicubic", antialias=True), x[y, x] = sin(1 + 3 y + x²).
        let grid: Vec<f32> = (0..12).map(|i| ((1 + 3 * (i / 4) + (i % 4) * (i % 4)) as f32).sin()).collect();
        assert_close(&values(resample(rows(&grid), [3, 4], [5, 6])), &LARGER, 2e-6, "larger");
        assert_close(&values(resample(rows(&grid), [3, 4], [2, 3])), &SMALLER, 2e-6, "smaller");
        assert_eq!(values(resample(rows(&grid), [3, 4], [3, 4])), grid);
    }

    #[test]
    fn resampled_biases_agree_with_timm() {
        // timm.layers.resize_rel_pos_bias_table of a 3 × 3 window's table, t[y, x] = sin(1 + 3 y + x²).
        let table: Vec<f32> = (0..25).map(|i| ((1 + 3 * (i / 5) + (i % 5) * (i % 5)) as f32).sin()).collect();
        assert_close(&values(resample_biases(rows(&table), [3, 3], [2, 3])), &FLATTER, 2e-6, "flatter");
        let larger = values(resample_biases(rows(&table), [3, 3], [5, 4]));
        assert_eq!(larger.len(), 9 * 7);
        assert_close(&larger[..14], &LARGER_BIASES, 2e-6, "larger");
    }

    const FLATTER: [f32; 15] = [
        -0.758_803_8,
        -0.958_924_3,
        0.989_358_2,
        0.420_167,
        0.908_065_8,
        0.660_277_7,
        0.989_358_2,
        -0.999_990_2,
        -0.287_903_3,
        -0.840_692,
        -0.548_536_1,
        -0.999_990_2,
        0.990_607_4,
        0.149_877_2,
        0.756_491_8,
    ];

    const LARGER_BIASES: [f32; 14] = [
        0.841_471,
        0.864_079_8,
        0.909_297_4,
        -0.958_924_3,
        -0.544_021_1,
        -0.822_272_2,
        -0.961_397_4,
        0.841_471,
        0.864_079_7,
        0.909_297_4,
        -0.958_924_3,
        -0.544_021_1,
        -0.822_272_2,
        -0.961_397_5,
    ];

    fn rows(x: &[f32]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(x.to_vec(), [x.len(), 1]), &Device::flex())
    }

    fn values(x: Tensor<2>) -> Vec<f32> {
        x.into_data().iter::<f32>().collect()
    }

    const LARGER: [f32; 30] = [
        0.956_292_8,
        1.130_44,
        0.790_187_9,
        -0.873_702_6,
        -0.973_828_6,
        -0.584_607_5,
        0.220_919_9,
        0.214_459_1,
        0.121_181_7,
        -0.145_274_5,
        -0.200_731_4,
        -0.173_317_6,
        -0.743_505,
        -0.966_523_5,
        -0.729_517_8,
        0.785_442_7,
        0.802_626_6,
        0.382_720_2,
        0.080_803_18,
        0.177_767_5,
        0.174_865_2,
        -0.173_467_4,
        -0.124_983_9,
        0.018_005_18,
        0.739_167_2,
        1.073_583,
        0.873_376_1,
        -0.917_390_5,
        -0.856_449_9,
        -0.288_132_9,
    ];

    const SMALLER: [f32; 6] =
        [0.235_025_7, -0.012_348_1, -0.204_385_8, 0.157_601_3, 0.000_316_210_5, -0.083_086_81];
}
