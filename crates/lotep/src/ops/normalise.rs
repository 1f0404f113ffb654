//! Pixels as a network wants them.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};

use super::{fast, is_cpu};

/// `(x + P - mean) / std`, channel by channel, of images `[B, C, H, W]` and what is added to each of them.
#[derive(Clone, Debug)]
pub(crate) struct Normalise {
    /// `[1, C, 1, 1]`
    mean: Tensor<4>,
    /// `[1, C, 1, 1]`
    std: Tensor<4>,
    /// On the CPU.
    fast: Option<Arc<lotep_frozen::Normalise>>,
}

impl Normalise {
    /// By the mean and the standard deviation of each channel.
    pub(crate) fn new<const C: usize>(mean: [f32; C], std: [f32; C], device: &Device) -> Self {
        let fast = || Arc::new(lotep_frozen::Normalise { mean: mean.to_vec(), std: std.to_vec() });
        let channels = |v: [f32; C]| Tensor::<1>::from_floats(v, device).reshape([1, C, 1, 1]);
        Self { mean: channels(mean), std: channels(std), fast: is_cpu(device).then(fast) }
    }

    /// Images in [0, 1], each with `added` `[C, H, W]` where that is given.
    pub(crate) fn forward(&self, x: Tensor<4>, added: Option<Tensor<3>>) -> Tensor<4> {
        if let Some(op) = &self.fast {
            let added = added.map(|added| added.flatten(0, 2));
            return fast::apply_learning(op.clone(), false, x, None::<Tensor<1>>, added);
        }
        self.portable(x, added)
    }

    fn portable(&self, x: Tensor<4>, added: Option<Tensor<3>>) -> Tensor<4> {
        let x = match added {
            Some(added) => x + added.unsqueeze(),
            None => x,
        };
        (x - self.mean.clone()) / self.std.clone()
    }

    /// What an addition `[C, H, W]` to the images becomes behind it, `[1, C, H, W]`.
    pub(crate) fn linear_part(&self, added: Tensor<3>) -> Tensor<4> {
        added.unsqueeze::<4>() / self.std.clone()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::fixtures::assert_close;
    use crate::params::normal;

    /// Both forms agree, to the bit forwards, whatever is learnt; a part of a batch too, which lies in the middle of it.
    #[test]
    fn both_forms_agree() {
        let device = Device::flex().autodiff();
        let normalise = Normalise::new([0.5, 0.4, 0.3], [0.2, 0.25, 0.3], &Device::flex());
        let flat = |x: Tensor<1>| x.without_autodiff().into_data().iter::<f32>().collect::<Vec<_>>();
        for [h, w] in [[1, 1], [5, 7], [33, 64]] {
            let made = |images: usize, seed: u64| {
                let values = normal(images * 3 * h * w, 1.0, &mut ChaCha8Rng::seed_from_u64(seed));
                Tensor::<1>::from_data(TensorData::new(values, [images * 3 * h * w]), &device)
            };
            for learnt in [[false, true], [true, true], [true, false]] {
                let outcome = |fast: bool| {
                    let leaf = |x: Tensor<1>, learnt| if learnt { x.require_grad() } else { x };
                    let leaves = [leaf(made(4, 0), learnt[0]), leaf(made(1, 1), learnt[1])];
                    let [images, added] = leaves.clone();
                    let part = images.reshape([4, 3, h, w]).narrow(0, 1, 2);
                    let added = learnt[1].then(|| added.reshape([3, h, w]));
                    let form = if fast { Normalise::forward } else { Normalise::portable };
                    let y = form(&normalise, part, added).flatten(0, 3);
                    let grads = (y.clone() * made(2, 2)).sum().backward();
                    (flat(y), leaves.map(|leaf| leaf.grad(&grads).map(flat).unwrap_or_default()))
                };
                let (fast, portable) = (outcome(true), outcome(false));
                let what = format!("{h} x {w}, {learnt:?}");
                assert_eq!(fast.0, portable.0, "{what}");
                for ((fast, portable), learnt) in fast.1.iter().zip(&portable.1).zip(learnt) {
                    assert_eq!(fast.is_empty(), !learnt, "{what}");
                    if learnt {
                        assert_close(fast, portable, 1e-6, &what);
                    }
                }
            }
        }
    }
}
