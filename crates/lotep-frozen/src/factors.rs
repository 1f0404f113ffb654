//! The spatial factors of a low-rank map, multiplied out.

/// Two factors `v` `[r₂, J]` and `w` `[r₃, K]` with a core `G` `[r₁, r₂, r₃]`, whose product is `[J · K, r₁]`,
/// `p[(j,k),a] = Σ_{b,c} G[a,b,c] v[b,j] w[c,k]`; or without one, all ranks being the same, `p[(j,k),t] = v[t,j] w[t,k]`
/// (LoTeP, eqs. 5 and 7, but for the channels).
///
/// These are multiplications by the tens of thousands: too few to share out, or to be a framework's operations one by one.
#[derive(Clone, Copy, Debug)]
pub struct Pairs<'a> {
    core: Option<&'a [f32]>,
    v: &'a [f32],
    w: &'a [f32],
    /// r₁, r₂ and r₃.
    ranks: [usize; 3],
    /// J and K.
    size: [usize; 2],
}

/// Of each factor of [`Pairs`], in its shape.
#[derive(Clone, Debug, Default)]
pub struct PairsGradients {
    /// Empty where there is none.
    pub core: Vec<f32>,
    /// Of `v`.
    pub v: Vec<f32>,
    /// Of `w`.
    pub w: Vec<f32>,
}

impl<'a> Pairs<'a> {
    /// Take the factors and r₁.
    ///
    /// # Panics
    /// They are not of these ranks and this size, or a rank is 0.
    pub fn new(core: Option<&'a [f32]>, [v, w]: [&'a [f32]; 2], rank: usize, size: [usize; 2]) -> Self {
        let ranks = [rank, v.len() / size[0], w.len() / size[1]];
        let fits = v.len() == ranks[1] * size[0] && w.len() == ranks[2] * size[1];
        let joined = core.map_or(ranks == [rank; 3], |core| core.len() == ranks.iter().product());
        assert!(fits && joined && !ranks.contains(&0), "factors of ranks {ranks:?} and size {size:?}");
        Self { core, v, w, ranks, size }
    }

    /// Their product.
    pub fn product(&self) -> Vec<f32> {
        let ([rows, columns], [rank, inner, _]) = (self.size, self.ranks);
        let (v, joined, row) = (transposed(self.v, rows), self.joined(), columns * rank);
        let mut out = vec![0.0; rows * row];
        for (v, out) in v.chunks_exact(inner).zip(out.chunks_exact_mut(row)) {
            if self.core.is_some() {
                for (v, g) in v.iter().zip(joined.chunks_exact(row)) {
                    add(out, *v, g);
                }
                continue;
            }
            for (out, w) in out.chunks_exact_mut(rank).zip(joined.chunks_exact(rank)) {
                for ((out, v), w) in out.iter_mut().zip(v).zip(w) {
                    *out = v * w;
                }
            }
        }
        out
    }

    /// The factors' gradients, given the product's.
    ///
    /// # Panics
    /// It is not of the product's size.
    pub fn gradients(&self, grad: &[f32]) -> PairsGradients {
        let ([rows, columns], [rank, inner, _]) = (self.size, self.ranks);
        let row = columns * rank;
        assert_eq!(grad.len(), rows * row, "the gradient of {rows} x {columns} pixels");
        let (v, joined) = (transposed(self.v, rows), self.joined());
        let (mut of_v, mut of_joined) = (vec![0.0; v.len()], vec![0.0; joined.len()]);
        // Sums over a row or a column at a time, so that none is long.
        let rows_of_v = v.chunks_exact(inner).zip(of_v.chunks_exact_mut(inner));
        for ((v, of_v), grad) in rows_of_v.zip(grad.chunks_exact(row)) {
            if self.core.is_some() {
                let parts = joined.chunks_exact(row).zip(of_joined.chunks_exact_mut(row));
                for ((v, of_v), (g, of_g)) in v.iter().zip(of_v).zip(parts) {
                    *of_v = dot(grad, g);
                    add(of_g, *v, grad);
                }
                continue;
            }
            let pixels = grad.chunks_exact(rank).zip(joined.chunks_exact(rank));
            for ((grad, w), of_w) in pixels.zip(of_joined.chunks_exact_mut(rank)) {
                for t in 0..rank {
                    of_v[t] += grad[t] * w[t];
                    of_w[t] += grad[t] * v[t];
                }
            }
        }
        let of_v = transposed(&of_v, inner);
        match self.core {
            None => PairsGradients { core: Vec::new(), v: of_v, w: transposed(&of_joined, rank) },
            Some(core) => self.apart(core, of_v, &of_joined),
        }
    }

    /// `w`'s values, `[K, r₁]`, or those of its product with the core, `[r₂, K, r₁]`, so that a row of the product is a sum of whole
    /// rows of it.
    fn joined(&self) -> Vec<f32> {
        let ([_, columns], [rank, inner, last]) = (self.size, self.ranks);
        let w = transposed(self.w, columns);
        let Some(core) = self.core else { return w };
        let mut out = Vec::with_capacity(inner * columns * rank);
        for b in 0..inner {
            for w in w.chunks_exact(last) {
                out.extend(core.chunks_exact(last).skip(b).step_by(inner).map(|g| dot(g, w)));
            }
        }
        out
    }

    /// Take the gradient of the product of the core and `w` apart.
    fn apart(&self, core: &[f32], of_v: Vec<f32>, of_joined: &[f32]) -> PairsGradients {
        let ([_, columns], [rank, inner, last]) = (self.size, self.ranks);
        let w = transposed(self.w, columns);
        let (mut of_core, mut of_w) = (vec![0.0; core.len()], vec![0.0; w.len()]);
        for (b, grad) in of_joined.chunks_exact(columns * rank).enumerate() {
            let columns = w.chunks_exact(last).zip(of_w.chunks_exact_mut(last));
            for ((w, of_w), grad) in columns.zip(grad.chunks_exact(rank)) {
                for (a, grad) in grad.iter().enumerate() {
                    let values = (a * inner + b) * last..(a * inner + b + 1) * last;
                    add(of_w, *grad, &core[values.clone()]);
                    add(&mut of_core[values], *grad, w);
                }
            }
        }
        PairsGradients { core: of_core, v: of_v, w: transposed(&of_w, last) }
    }
}

/// Of rows of `columns`.
fn transposed(x: &[f32], columns: usize) -> Vec<f32> {
    let rows = x.len() / columns;
    (0..x.len()).map(|i| x[i % rows * columns + i / rows]).collect()
}

/// The sum of products, as eight sums side by side, which a vector can hold.
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<8>(), y.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (x, y) in x.iter().zip(y) {
        for i in 0..8 {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum::<f32>() + x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum::<f32>()
}

/// `sum += factor x`.
fn add(sum: &mut [f32], factor: f32, x: &[f32]) {
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum += factor * x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7 + seed * 13) as f32 * 0.37).sin()).collect()
    }

    /// Products and gradients are those of the definition in f64, core or none, of any ranks and sides.
    #[test]
    fn products_and_gradients_are_the_definitions() {
        for ([r1, r2, r3], [rows, columns]) in [
            ([3, 3, 3], [4, 5]),
            ([1, 1, 1], [1, 6]),
            ([2, 3, 4], [5, 3]),
            ([4, 1, 2], [7, 1]),
            ([3, 2, 9], [2, 7]),
            ([1, 2, 2], [1, 1]),
        ] {
            for with_core in [true, false] {
                if !with_core && (r1 != r2 || r2 != r3) {
                    continue;
                }
                let (core, v, w) = (values(r1 * r2 * r3, 1), values(r2 * rows, 2), values(r3 * columns, 3));
                let grad = values(rows * columns * r1, 4);
                // Without a core it is that of ones where all three ranks are the same.
                let g = |a: usize, b: usize, c: usize| {
                    let ones = f64::from(u8::from(a == b && b == c));
                    if with_core { f64::from(core[(a * r2 + b) * r3 + c]) } else { ones }
                };
                let mut product = vec![0.0; grad.len()];
                let mut of = [vec![0.0; core.len()], vec![0.0; v.len()], vec![0.0; w.len()]];
                for (i, upstream) in grad.iter().map(|x| f64::from(*x)).enumerate() {
                    let (j, k, a) = (i / r1 / columns, i / r1 % columns, i % r1);
                    for (b, c) in (0..r2 * r3).map(|i| (i / r3, i % r3)) {
                        let (v, w) = (f64::from(v[b * rows + j]), f64::from(w[c * columns + k]));
                        product[i] += g(a, b, c) * v * w;
                        of[0][(a * r2 + b) * r3 + c] += upstream * v * w;
                        of[1][b * rows + j] += upstream * g(a, b, c) * w;
                        of[2][c * columns + k] += upstream * g(a, b, c) * v;
                    }
                }
                let pairs = Pairs::new(with_core.then_some(&core[..]), [&v, &w], r1, [rows, columns]);
                let found = pairs.gradients(&grad);
                let what = format!("{r1} {r2} {r3}, {rows} x {columns}, {with_core}");
                let close = |found: &[f32], expected: &[f64]| {
                    assert_eq!(found.len(), expected.len(), "{what}");
                    let near = |(f, e): (&f32, &f64)| (f64::from(*f) - e).abs() < 1e-5;
                    assert!(found.iter().zip(expected).all(near), "{what}: {found:?}, not {expected:?}");
                };
                close(&pairs.product(), &product);
                close(&found.v, &of[1]);
                close(&found.w, &of[2]);
                close(&found.core, if with_core { &of[0] } else { &[] });
            }
        }
    }
}
