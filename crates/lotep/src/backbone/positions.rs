//! Position embeddings for another patch grid than they were learnt for.

/// Resample embeddings `[h · w, C]` of one grid to another, as timm does: a separable cubic filter (a = −0.5), widened
/// where the grid shrinks, its weights normalised at the edges (PyTorch's `bicubic` with `antialias`).
pub(super) fn resample(values: &[f32], [h, w]: [usize; 2], [to_h, to_w]: [usize; 2]) -> Vec<f32> {
    let channels = values.len() / (h * w);
    // Columns first.
    let mut wide = vec![0.0; h * to_w * channels];
    for (x, (first, weights)) in filters(w, to_w).into_iter().enumerate() {
        for y in 0..h {
            let out = &mut wide[(y * to_w + x) * channels..][..channels];
            add(out, &weights, |i| &values[(y * w + first + i) * channels..][..channels]);
        }
    }
    let mut out = vec![0.0; to_h * to_w * channels];
    for (y, (first, weights)) in filters(h, to_h).into_iter().enumerate() {
        for x in 0..to_w {
            let out = &mut out[(y * to_w + x) * channels..][..channels];
            add(out, &weights, |i| &wide[((first + i) * to_w + x) * channels..][..channels]);
        }
    }
    out
}

fn add<'a>(out: &mut [f32], weights: &[f32], row: impl Fn(usize) -> &'a [f32]) {
    for (i, weight) in weights.iter().enumerate() {
        for (out, x) in out.iter_mut().zip(row(i)) {
            *out += weight * x;
        }
    }
}

/// For each of `to` places, the first of `from` places that count, and their weights.
fn filters(from: usize, to: usize) -> Vec<(usize, Vec<f32>)> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let filter = |i: usize| {
        let centre = scale * (i as f64 + 0.5);
        let first = (centre - 2.0 * stretch + 0.5).max(0.0) as usize;
        let end = ((centre + 2.0 * stretch + 0.5) as usize).min(from);
        let weights: Vec<f64> = (first..end).map(|j| cubic((j as f64 - centre + 0.5) / stretch)).collect();
        let sum: f64 = weights.iter().sum();
        (first, weights.into_iter().map(|w| (w / sum) as f32).collect())
    };
    (0..to).map(filter).collect()
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
    use super::*;
    use crate::fixtures::assert_close;

    #[test]
    fn resampling_agrees_with_pytorch() {
        // torch.nn.functional.interpolate(x, size, mode="bicubic", antialias=True), x[y, x] = sin(1 + 3 y + x²).
        let grid: Vec<f32> = (0..12).map(|i| ((1 + 3 * (i / 4) + (i % 4) * (i % 4)) as f32).sin()).collect();
        assert_close(&resample(&grid, [3, 4], [5, 6]), &LARGER, 2e-6, "larger");
        assert_close(&resample(&grid, [3, 4], [2, 3]), &SMALLER, 2e-6, "smaller");
        assert_eq!(resample(&grid, [3, 4], [3, 4]), grid);
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
