//! Large matrices from thin factors.

use std::sync::Arc;

use burn::tensor::Tensor;
use lotep_frozen::ThinProduct;

use super::{fast, is_cpu};

/// `x w` of `[rows, rank]` and `[rank, columns]` in f32, where the rank is much smaller than the rest.
pub(crate) fn thin_product(x: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    if is_cpu(&x.device()) { thin(x, w) } else { x.matmul(w) }
}

/// The fast form.
fn thin(x: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    let op = Arc::new(ThinProduct { columns: w.dims()[1] });
    fast::apply_learning(op, false, x, None::<Tensor<1>>, Some(w.flatten(0, 1)))
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::fixtures::assert_close;
    use crate::params::normal;

    fn flat(x: Tensor<2>) -> Vec<f32> {
        x.without_autodiff().into_data().iter::<f32>().collect()
    }

    /// Both forms agree, whichever of the factors is learnt: tall and wide products, of rank one, of ragged sizes.
    #[test]
    fn both_forms_agree() {
        let device = Device::flex().autodiff();
        for [rows, rank, columns] in [[1, 1, 1], [3, 6, 1000], [777, 1, 3], [530, 6, 64], [49, 33, 70]] {
            let mut dice = ChaCha8Rng::seed_from_u64(0);
            let mut made =
                |shape: [usize; 2]| TensorData::new(normal(shape[0] * shape[1], 1.0, &mut dice), shape);
            let (x, w, weigh) = (made([rows, rank]), made([rank, columns]), made([rows, columns]));
            for learnt in [[true, true], [true, false], [false, true]] {
                let outcome = |product: &dyn Fn(Tensor<2>, Tensor<2>) -> Tensor<2>| {
                    let leaf = |data: &TensorData, learnt: bool| {
                        let leaf = Tensor::<2>::from_data(data.clone(), &device);
                        if learnt { leaf.require_grad() } else { leaf }
                    };
                    let (x, w) = (leaf(&x, learnt[0]), leaf(&w, learnt[1]));
                    let y = product(x.clone(), w.clone());
                    let grads = (y.clone() * Tensor::from_data(weigh.clone(), &device)).sum().backward();
                    let grads = [x, w].map(|leaf| leaf.grad(&grads).map(flat).unwrap_or_default());
                    (flat(y), grads)
                };
                let (fast, portable) = (outcome(&thin), outcome(&|x, w| x.matmul(w)));
                let what = format!("{rows} x {rank} x {columns}, {learnt:?}");
                assert_close(&fast.0, &portable.0, 2e-6, &what);
                for (learnt, (fast, portable)) in learnt.iter().zip(fast.1.iter().zip(&portable.1)) {
                    assert_eq!(fast.is_empty(), !learnt, "{what}");
                    if *learnt {
                        assert_close(fast, portable, 2e-6, &what);
                    }
                }
            }
        }
    }
}
