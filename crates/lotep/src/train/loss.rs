//! Cross-entropy, and how many predictions were right.

use burn::tensor::{Int, Tensor, TensorData, activation::log_softmax};

/// Sum over the batch of `-log softmax(logits)[label]`, `[1]`.
pub fn cross_entropy_sum(logits: Tensor<2>, labels: &[usize]) -> Tensor<1> {
    let labels: Vec<i64> = labels.iter().map(|l| *l as i64).collect();
    let rows = labels.len();
    let labels = Tensor::<2, Int>::from_data(TensorData::new(labels, [rows, 1]), &logits.device());
    log_softmax(logits, 1).gather(1, labels).sum().neg()
}

/// Ranks of the true classes among `logits` (rows of `classes` values): 0 is right, below 5 is top-5.
///
/// A class with the same score as the true one counts as before it only if its index is lower, as `argmax`
/// decides; a NaN score puts the row last.
pub fn label_ranks(logits: &[f32], classes: usize, labels: &[usize]) -> Vec<usize> {
    logits
        .chunks_exact(classes)
        .zip(labels)
        .map(|(row, &label)| {
            let score = row[label];
            if score.is_nan() {
                return classes;
            }
            let before = |(i, v): (usize, &f32)| match v.partial_cmp(&score) {
                Some(order) => order.is_gt() || (order.is_eq() && i < label),
                None => true,
            };
            row.iter().enumerate().filter(|(i, v)| before((*i, v))).count()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use burn::tensor::Device;

    #[test]
    fn torch_losses_and_gradients() {
        let Some(f) = fixtures::open("methods/cross_entropy.safetensors") else { return };
        let labels: Vec<usize> = f.values("target").iter().map(|v| *v as usize).collect();
        for case in ["normal", "large"] {
            let logits = f.tensor::<2>(&format!("{case}.logits"), &Device::flex().autodiff()).require_grad();
            let loss = cross_entropy_sum(logits.clone(), &labels);
            f.assert_close(&loss, &format!("{case}.ls0.0.sum.loss"), 1e-6);
            let grads = loss.backward();
            // Logits around -500 are only known to 3e-5 in f32, so the gradient is no better than that.
            f.assert_close(&logits.grad(&grads).unwrap(), &format!("{case}.ls0.0.sum.grad"), 5e-5);
        }
    }

    #[test]
    fn ranks_break_ties_as_argmax_does() {
        assert_eq!(label_ranks(&[1., 3., 3., 0.], 4, &[1]), [0]);
        assert_eq!(label_ranks(&[1., 3., 3., 0.], 4, &[2]), [1]);
        assert_eq!(label_ranks(&[1., 3., 3., 0.], 4, &[3]), [3]);
        assert_eq!(label_ranks(&[f32::NAN, 3.], 2, &[0]), [2]);
        assert_eq!(label_ranks(&[f32::NAN, 3.], 2, &[1]), [1]);
    }
}
