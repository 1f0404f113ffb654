//! Centred kernel alignment of what blocks put out, with the unbiased minibatch estimator (Nguyen, Raghu and Kornblith
//! 2021, after Song et al. 2012): the same number in expectation for any batch size of four or more.

use serde::{Deserialize, Serialize};

use crate::{Result, bail};

/// Inner products of a minibatch's features, U-centred: what any constant feature adds is gone, the diagonal is zero.
#[derive(Clone, Debug)]
pub struct Gram {
    samples: usize,
    values: Vec<f64>,
}

impl Gram {
    /// Centre inner products `[n, n]`.
    ///
    /// # Errors
    /// There are fewer than four samples, for which the estimator is not defined.
    pub fn new(mut products: Vec<f64>, samples: usize) -> Result<Self> {
        if samples < 4 || products.len() != samples * samples {
            bail!("CKA's unbiased estimator needs four images a batch at least: {samples} were given");
        }
        let n = samples as f64;
        for i in 0..samples {
            products[i * samples + i] = 0.0;
        }
        let sums: Vec<f64> = products.chunks_exact(samples).map(|row| row.iter().sum()).collect();
        let total = sums.iter().sum::<f64>() / ((n - 1.0) * (n - 2.0));
        for (i, row) in products.chunks_exact_mut(samples).enumerate() {
            for (j, v) in row.iter_mut().enumerate() {
                *v = if i == j { 0.0 } else { *v - (sums[i] + sums[j]) / (n - 2.0) + total };
            }
        }
        Ok(Self { samples, values: products })
    }

    /// HSIC₁, the unbiased estimator of the Hilbert-Schmidt independence criterion. Both are of the same images.
    pub fn hsic1(&self, other: &Self) -> f64 {
        let n = self.samples as f64;
        let product: f64 = self.values.iter().zip(&other.values).map(|(a, b)| a * b).sum();
        product / (n * (n - 3.0))
    }
}

/// Sums over minibatches, for every pair of a block of one network and one of another.
#[derive(Clone, Debug, Default)]
pub struct Cka {
    between: Vec<Vec<f64>>,
    first: Vec<f64>,
    second: Vec<f64>,
    batches: usize,
}

impl Cka {
    /// Add a minibatch that went through both networks, a matrix a block.
    pub fn add(&mut self, first: &[Gram], second: &[Gram]) {
        if self.batches == 0 {
            *self = Self {
                between: vec![vec![0.0; second.len()]; first.len()],
                first: vec![0.0; first.len()],
                second: vec![0.0; second.len()],
                batches: 0,
            };
        }
        for (sum, gram) in self.first.iter_mut().zip(first) {
            *sum += gram.hsic1(gram);
        }
        for (sum, gram) in self.second.iter_mut().zip(second) {
            *sum += gram.hsic1(gram);
        }
        for (row, a) in self.between.iter_mut().zip(first) {
            for (sum, b) in row.iter_mut().zip(second) {
                *sum += a.hsic1(b);
            }
        }
        self.batches += 1;
    }

    /// CKA of every pair, a row a block of the first network; `None` where a block puts out the same for all images.
    pub fn matrix(&self) -> Vec<Vec<Option<f64>>> {
        let one = |sum: f64, a: f64, b: f64| {
            let value = sum / (a * b).sqrt();
            (a > 0.0 && b > 0.0 && value.is_finite()).then_some(value)
        };
        let row = |(row, a): (&Vec<f64>, &f64)| {
            row.iter().zip(&self.second).map(|(sum, b)| one(*sum, *a, *b)).collect()
        };
        self.between.iter().zip(&self.first).map(row).collect()
    }

    /// Minibatches so far.
    pub fn batches(&self) -> usize {
        self.batches
    }
}

/// A comparison of two networks, as it is written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// What is compared.
    pub name: String,
    /// What it is compared with.
    pub against: String,
    /// Blocks of the first network.
    pub blocks: Vec<String>,
    /// Blocks of the second.
    pub against_blocks: Vec<String>,
    /// A row a block of the first.
    pub cka: Vec<Vec<Option<f64>>>,
    /// Images of each minibatch.
    pub batch_size: usize,
    /// Minibatches.
    pub batches: usize,
}

impl Comparison {
    /// Block with block, where both networks have as many.
    pub fn diagonal(&self) -> Option<Vec<Option<f64>>> {
        let same = self.blocks.len() == self.against_blocks.len();
        same.then(|| self.cka.iter().enumerate().map(|(l, row)| row.get(l).copied().flatten()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    fn gram(x: &[f32], from: usize, samples: usize, width: usize) -> Gram {
        let row = |i: usize| &x[(from + i) * width..][..width];
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        let products = (0..samples * samples).map(|k| dot(row(k / samples), row(k % samples))).collect();
        Gram::new(products, samples).unwrap()
    }

    fn close(found: f64, expected: &serde_json::Value, what: &str) {
        let expected = expected.as_f64().unwrap();
        // The reference is f64, what is read from it f32.
        assert!(
            (found - expected).abs() <= 2e-6 * expected.abs().max(1.0),
            "{what}: {found}, not {expected}"
        );
    }

    #[test]
    fn estimates_are_the_references() {
        let Some(json) = fixtures::json("methods/cka.json") else { return };
        let file = fixtures::open("methods/cka.safetensors").unwrap();
        for (pair, a, b, widths) in [
            ("X_Y", "X", "Y", [10, 7]),
            ("X_X", "X", "X", [10, 10]),
            ("X_Z", "X", "Z", [10, 10]),
            ("A4_B4_flattened", "A4", "B4", [12, 12]),
        ] {
            let (a, b, expected) = (file.values(a), file.values(b), &json[pair]);
            let (whole_a, whole_b) = (gram(&a, 0, 24, widths[0]), gram(&b, 0, 24, widths[1]));
            close(whole_a.hsic1(&whole_b), &expected["hsic1_ab"], pair);
            close(whole_a.hsic1(&whole_a), &expected["hsic1_aa"], pair);
            close(whole_b.hsic1(&whole_b), &expected["hsic1_bb"], pair);
            let mut cka = Cka::default();
            cka.add(&[whole_a], &[whole_b]);
            close(cka.matrix()[0][0].unwrap(), &expected["unbiased_cka"], pair);
            let mut cka = Cka::default();
            for from in [0, 8, 16] {
                cka.add(&[gram(&a, from, 8, widths[0])], &[gram(&b, from, 8, widths[1])]);
            }
            assert_eq!(cka.batches(), 3);
            close(cka.matrix()[0][0].unwrap(), &expected["minibatch_cka_bs8"], pair);
        }
    }

    #[test]
    fn constant_features_change_nothing_and_have_no_cka() {
        let x: Vec<f32> = (0..24).map(|i| ((i * 7 % 11) as f32).sin()).collect();
        let moved: Vec<f32> = x.iter().map(|v| v + 3.0).collect();
        let (a, b) = (gram(&x, 0, 6, 4), gram(&moved, 0, 6, 4));
        assert!((a.hsic1(&a) - b.hsic1(&b)).abs() < 1e-4);
        let mut cka = Cka::default();
        cka.add(&[a], &[gram(&[1.0; 24], 0, 6, 4)]);
        assert_eq!(cka.matrix()[0][0], None);
        assert!(Gram::new(vec![0.0; 9], 3).unwrap_err().to_string().contains("four images"));
    }
}
