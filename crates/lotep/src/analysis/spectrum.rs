//! Singular values, of matrices small enough that no library is needed for them.

use crate::{Result, bail};

/// Singular values of `[rows, columns]`, row-major, largest first, as roots of the eigenvalues of the smaller of the two
/// products with the transpose: right to about 1e-8 of the largest one, which is what f32 values hold.
///
/// # Errors
/// A value is no finite number.
pub(super) fn singular_values(values: &[f32], rows: usize, columns: usize) -> Result<Vec<f64>> {
    if values.iter().any(|v| !v.is_finite()) {
        bail!("a value that is no finite number has no spectrum");
    }
    let n = rows.min(columns);
    // Lines of the shorter side, each contiguous.
    let line = |i: usize| -> Vec<f64> {
        if rows <= columns {
            values[i * columns..][..columns].iter().map(|v| f64::from(*v)).collect()
        } else {
            (0..rows).map(|k| f64::from(values[k * columns + i])).collect()
        }
    };
    let lines: Vec<Vec<f64>> = (0..n).map(line).collect();
    let mut product = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let dot = lines[i].iter().zip(&lines[j]).map(|(a, b)| a * b).sum();
            product[i * n + j] = dot;
            product[j * n + i] = dot;
        }
    }
    let mut found: Vec<f64> = eigenvalues(product, n).into_iter().map(|v| v.max(0.0).sqrt()).collect();
    found.sort_by(|a, b| b.total_cmp(a));
    Ok(found)
}

/// Eigenvalues of a symmetric matrix `[n, n]`: reflected to three diagonals, then bisected.
fn eigenvalues(mut a: Vec<f64>, n: usize) -> Vec<f64> {
    let mut beside = vec![0.0; n.saturating_sub(1)];
    for k in 0..n.saturating_sub(1) {
        let below: Vec<f64> = (k + 1..n).map(|i| a[i * n + k]).collect();
        let norm = below.iter().map(|v| v * v).sum::<f64>().sqrt();
        let alpha = if below[0] > 0.0 { -norm } else { norm };
        beside[k] = alpha;
        let mut v = below;
        v[0] -= alpha;
        let length = v.iter().map(|v| v * v).sum::<f64>().sqrt();
        if length == 0.0 {
            continue;
        }
        for x in &mut v {
            *x /= length;
        }
        // H A H with H = 1 − 2 v vᵀ is A − 2 (v wᵀ + w vᵀ), w = A v − (vᵀ A v) v.
        let rest = k + 1;
        let size = n - rest;
        let row = |a: &[f64], i: usize| -> f64 {
            a[(rest + i) * n + rest..][..size].iter().zip(&v).map(|(x, y)| x * y).sum()
        };
        let p: Vec<f64> = (0..size).map(|i| row(&a, i)).collect();
        let along: f64 = p.iter().zip(&v).map(|(x, y)| x * y).sum();
        let w: Vec<f64> = p.iter().zip(&v).map(|(p, v)| p - along * v).collect();
        for i in 0..size {
            let line = &mut a[(rest + i) * n + rest..][..size];
            for (j, x) in line.iter_mut().enumerate() {
                *x -= 2.0 * (v[i] * w[j] + w[i] * v[j]);
            }
        }
    }
    let diagonal: Vec<f64> = (0..n).map(|i| a[i * n + i]).collect();
    let radius = |i: usize| {
        let left = if i > 0 { beside[i - 1].abs() } else { 0.0 };
        left + beside.get(i).map_or(0.0, |v| v.abs())
    };
    let low = (0..n).map(|i| diagonal[i] - radius(i)).fold(f64::INFINITY, f64::min);
    let high = (0..n).map(|i| diagonal[i] + radius(i)).fold(f64::NEG_INFINITY, f64::max);
    (0..n).map(|k| bisect(&diagonal, &beside, k, [low, high])).collect()
}

/// The eigenvalue that `k` others lie below: how many do is the number of negative pivots (Sturm).
fn bisect(diagonal: &[f64], beside: &[f64], k: usize, [mut low, mut high]: [f64; 2]) -> f64 {
    let tiny = f64::EPSILON * high.abs().max(low.abs()).max(f64::MIN_POSITIVE);
    let below = |x: f64| {
        let mut pivot = 1.0_f64;
        let mut count = 0;
        for (i, d) in diagonal.iter().enumerate() {
            let coupling = if i > 0 { beside[i - 1] * beside[i - 1] } else { 0.0 };
            pivot = d - x - coupling / pivot;
            if pivot == 0.0 {
                pivot = tiny;
            }
            count += usize::from(pivot < 0.0);
        }
        count
    };
    while high - low > tiny {
        let middle = low.midpoint(high);
        if middle <= low || middle >= high {
            break;
        }
        if below(middle) > k { high = middle } else { low = middle }
    }
    low.midpoint(high)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::params::normal;

    /// Rotations leave singular values alone, whichever side is longer.
    #[test]
    fn known_values_come_back() {
        let wanted = [7.0, 3.0, 3.0, 1.0, 0.25, 0.0];
        for [rows, columns] in [[6, 9], [9, 6]] {
            let mut matrix = vec![0.0_f32; rows * columns];
            for (i, v) in wanted.iter().enumerate() {
                matrix[i * columns + i] = *v;
            }
            let angles = normal(64, 1.0, &mut ChaCha8Rng::seed_from_u64(1));
            for (k, angle) in angles.iter().enumerate() {
                let (s, c) = angle.sin_cos();
                let (i, j) = (k % rows, (k * 5 + 1) % rows);
                for x in (0..columns).filter(|_| i != j) {
                    let (a, b) = (matrix[i * columns + x], matrix[j * columns + x]);
                    matrix[i * columns + x] = c * a - s * b;
                    matrix[j * columns + x] = s * a + c * b;
                }
                let (i, j) = (k % columns, (k * 7 + 2) % columns);
                for y in (0..rows).filter(|_| i != j) {
                    let (a, b) = (matrix[y * columns + i], matrix[y * columns + j]);
                    matrix[y * columns + i] = c * a - s * b;
                    matrix[y * columns + j] = s * a + c * b;
                }
            }
            let found = singular_values(&matrix, rows, columns).unwrap();
            for (found, wanted) in found.iter().zip(wanted) {
                assert!((found - f64::from(wanted)).abs() < 2e-5 * 7.0, "{found} is not {wanted}");
            }
        }
    }

    #[test]
    fn edges_are_no_trouble() {
        assert_eq!(singular_values(&[], 0, 5).unwrap(), Vec::<f64>::new());
        assert_eq!(singular_values(&[0.0; 12], 3, 4).unwrap(), [0.0; 3]);
        assert!((singular_values(&[3.0, 4.0], 1, 2).unwrap()[0] - 5.0).abs() < 1e-12);
        assert!(singular_values(&[f32::NAN], 1, 1).is_err());
    }
}
