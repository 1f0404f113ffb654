//! The fast form of convolutions and batch norms whose weights are all learnt.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use lotep_frozen::{Normalising, NormedConv};
use lotep_kernels::batch_norm::Moments;
use lotep_kernels::conv::Shape;

use super::conv::BatchNorm;
use super::{Compute, ConvNorm, fast, host};

/// An operation of `lotep_frozen` with the weights that it learns.
#[derive(Clone)]
pub(super) struct Learnt {
    op: Arc<dyn Normalising>,
    /// All of them in a row.
    values: Tensor<1>,
    norms: Vec<BatchNorm>,
    recompute: bool,
}

impl Learnt {
    /// Take the convolutions that `op` was made of by [`plan`], in the order of its weights.
    pub(super) fn new<'a>(
        op: Arc<dyn Normalising>,
        convs: impl IntoIterator<Item = &'a ConvNorm>,
        compute: Compute,
    ) -> Self {
        let (mut weights, mut norms) = (Vec::new(), Vec::new());
        for ConvNorm { kernel, norm, .. } in convs {
            weights.extend([kernel.clone().flatten(0, 3), norm.weight.clone(), norm.bias.clone()]);
            norms.push(norm.clone());
        }
        Self { op, values: Tensor::cat(weights, 0), norms, recompute: compute.recompute }
    }

    /// As [`fast::apply_map_learning`], for an operation on maps.
    pub(super) fn map(&self, x: Tensor<4>, prompt: Option<Tensor<3>>) -> Tensor<4> {
        let values = Some(self.values.clone());
        let y = fast::apply_map_learning(self.op.clone(), self.recompute, x, prompt, values);
        self.follow();
        y
    }

    /// Images `[B, 3, H, W]` to a map `[B, C, H', W']`.
    pub(super) fn images(&self, x: Tensor<4>) -> Tensor<4> {
        let values = Some(self.values.clone());
        let y: Tensor<4> =
            fast::apply_learning(self.op.clone(), self.recompute, x, None::<Tensor<1>>, values);
        self.follow();
        y.permute([0, 3, 1, 2])
    }

    /// Move the running statistics towards those of the batch that has just passed.
    fn follow(&self) {
        for (norm, moments) in self.norms.iter().zip(self.op.moments()) {
            let Some((batch, Moments { mean, variance, count })) = norm.batch.as_ref().zip(moments) else {
                continue;
            };
            let device = norm.mean.device().without_autodiff();
            let [mean, variance] = [mean, variance].map(|values| {
                let channels = values.len();
                Tensor::from_data(TensorData::new(values, [channels]), &device)
            });
            batch.follow([&norm.mean, &norm.var], [mean, variance], count);
        }
    }
}

/// The geometry of a convolution, padded to keep its size, and what its norm goes by.
pub(super) fn plan(conv: &ConvNorm) -> NormedConv {
    let [outputs, inputs, side, _] = conv.kernel.dims();
    let stored = || [&conv.norm.mean, &conv.norm.var].map(|values| host(values.clone()));
    NormedConv {
        shape: Shape { inputs, outputs, side, stride: conv.stride, padding: side / 2 },
        eps: conv.norm.eps as f32,
        stored: conv.norm.batch.is_none().then(stored),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use burn::tensor::Device;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::fixtures::assert_close;
    use crate::ops::{
        BatchStatistics, ConvUpdate, ImageStem, Precision, ResidualBlock, ResidualUpdates, Training,
    };
    use crate::params::normal;

    const FORWARD: f64 = 1e-5;
    const GRADIENT: f64 = 5e-5;

    fn made<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
        let values = normal(shape.iter().product(), 0.3, &mut ChaCha8Rng::seed_from_u64(seed));
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn flat<const D: usize>(x: Tensor<D>) -> Vec<f32> {
        x.without_autodiff().into_data().iter::<f32>().collect()
    }

    /// Leaves by name.
    #[derive(Default)]
    struct Leaves(BTreeMap<String, Tensor<1>>);

    impl Leaves {
        fn leaf<const D: usize>(&mut self, name: &str, shape: [usize; D], middle: f32) -> Tensor<D> {
            let device = Device::flex().autodiff();
            let count = shape.iter().product();
            let values = normal(count, 0.3, &mut ChaCha8Rng::seed_from_u64(self.0.len() as u64));
            let values: Vec<f32> = values.into_iter().map(|v| middle + v).collect();
            let leaf = Tensor::<1>::from_data(TensorData::new(values, [count]), &device).require_grad();
            self.0.insert(name.to_owned(), leaf.clone());
            leaf.reshape(shape)
        }

        /// `[outputs, inputs, side, stride]`, by the batch's statistics where there is a `training`.
        fn conv(
            &mut self,
            name: &str,
            [outputs, inputs, side, stride]: [usize; 4],
            training: Option<&Training>,
        ) -> ConvNorm {
            let device = Device::flex().autodiff();
            let kernel = self.leaf(&format!("{name} kernel"), [outputs, inputs, side, side], 0.05);
            let weight = self.leaf(&format!("{name} scale"), [outputs], 1.0);
            let bias = self.leaf(&format!("{name} shift"), [outputs], 0.1);
            let batch = training.map(|t| BatchStatistics { name: name.to_owned(), training: t.clone() });
            let (mean, var) = (made([outputs], 3, &device), made([outputs], 5, &device).square() + 0.5);
            ConvNorm { kernel, norm: BatchNorm { weight, bias, mean, var, eps: 1e-5, batch }, stride }
        }
    }

    /// What a pass gives: the result, all gradients, and running statistics.
    fn outcome(y: &Tensor<4>, leaves: &Leaves, training: &Training) -> BTreeMap<String, Vec<f32>> {
        let weigh = made(y.dims(), 11, &y.device());
        let grads = (y.clone() * weigh).sum().backward();
        let mut all = BTreeMap::from([("y".to_owned(), flat(y.clone()))]);
        for (name, leaf) in &leaves.0 {
            all.insert(name.clone(), leaf.grad(&grads).map(flat).unwrap_or_default());
        }
        all.extend(training.statistics().into_iter().map(|(name, value)| (name, flat(value))));
        all
    }

    fn compare(fast: &BTreeMap<String, Vec<f32>>, portable: &BTreeMap<String, Vec<f32>>, what: &str) {
        assert_eq!(fast.keys().collect::<Vec<_>>(), portable.keys().collect::<Vec<_>>(), "{what}");
        for (name, fast) in fast {
            let tolerance = if name == "y" { FORWARD } else { GRADIENT };
            assert!(!fast.is_empty(), "{what}: {name}");
            assert_close(fast, &portable[name], tolerance, &format!("{what}: {name}"));
        }
    }

    /// Both forms agree, in the gradients of everything and in the running statistics: blocks of either kind, by the
    /// batch's statistics and by stored ones, with a prompt, and where blocks are computed again.
    #[test]
    fn blocks_agree_in_both_forms() {
        let plans = [
            (vec![[12, 12, 3, 1], [12, 12, 3, 1]], None),
            (vec![[20, 12, 3, 2], [20, 20, 3, 1]], Some([20, 12, 1, 2])),
            (vec![[8, 12, 1, 1], [8, 8, 3, 2], [33, 8, 1, 1]], Some([33, 12, 1, 2])),
            (vec![[40, 12, 3, 1], [40, 40, 3, 1], [12, 40, 1, 1]], None),
        ];
        for ((convs, shortcut), batch) in plans.iter().flat_map(|plan| [(plan, true), (plan, false)]) {
            let run = |portable: bool, recompute: bool| {
                let compute = Compute { precision: Precision::F32, portable, recompute };
                let (mut leaves, training) = (Leaves::default(), Training::new(0));
                let x = leaves.leaf("x", [3, 12, 13, 10], 0.2);
                let prompt = leaves.leaf("prompt", [12, 13, 10], 0.0);
                let mode = batch.then_some(&training);
                let convs = convs
                    .iter()
                    .enumerate()
                    .map(|(i, c)| leaves.conv(&format!("conv{i}"), *c, mode))
                    .collect();
                let shortcut = shortcut.map(|c| leaves.conv("shortcut", c, mode));
                let block = ResidualBlock::new(convs, shortcut, compute);
                let y = block.forward(x, Some(prompt.into()), &ResidualUpdates::default());
                outcome(&y, &leaves, &training)
            };
            let portable = run(true, false);
            for recompute in [false, true] {
                compare(&run(false, recompute), &portable, &format!("{convs:?} {batch} {recompute}"));
            }
        }
    }

    #[test]
    fn stems_agree_in_both_forms() {
        for (batch, size) in [(true, [21, 18]), (false, [16, 24])] {
            let run = |portable: bool| {
                let compute = Compute { portable, ..Compute::default() };
                let (mut leaves, training) = (Leaves::default(), Training::new(0));
                let x = leaves.leaf("x", [2, 3, size[0], size[1]], 0.0);
                let conv = leaves.conv("conv", [20, 3, 7, 2], batch.then_some(&training));
                let y = ImageStem::new(conv, compute).forward(x, None);
                outcome(&y, &leaves, &training)
            };
            compare(&run(false), &run(true), &format!("stem {size:?}"));
        }
    }

    /// What is added to a weight that is learnt itself is added in the portable form.
    #[test]
    fn updates_of_learnt_weights_are_added() {
        let run = |portable: bool| {
            let compute = Compute { portable, ..Compute::default() };
            let mut leaves = Leaves::default();
            let x = leaves.leaf("x", [1, 4, 5, 6], 0.0);
            let convs = vec![leaves.conv("conv", [4, 4, 3, 1], None)];
            let update = ConvUpdate::Kernel(leaves.leaf("update", [4, 4, 3, 3], 0.0));
            let updates = ResidualUpdates { convs: vec![Some(update)], ..ResidualUpdates::default() };
            let y = ResidualBlock::new(convs, None, compute).forward(x, None, &updates);
            outcome(&y, &leaves, &Training::new(0))
        };
        compare(&run(false), &run(true), "updated");
    }

    /// bfloat16 rounds the operands of products alone: near f32's gradients.
    #[test]
    fn bf16_stays_near_f32() {
        let run = |precision: Precision| {
            let compute = Compute::from(precision);
            let (mut leaves, training) = (Leaves::default(), Training::new(0));
            let x = leaves.leaf("x", [2, 12, 9, 10], 0.2);
            let convs =
                ["conv0", "conv1"].map(|name| leaves.conv(name, [12, 12, 3, 1], Some(&training))).into();
            let y = ResidualBlock::new(convs, None, compute).forward(x, None, &ResidualUpdates::default());
            outcome(&y, &leaves, &training)
        };
        let (rough, exact) = (run(Precision::Bf16), run(Precision::F32));
        for (name, rough) in rough {
            let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let exact = &exact[&name];
            let error = norm(&mut rough.iter().zip(exact).map(|(a, b)| a - b));
            // A ReLU that lets through in one and not in the other changes a gradient whole.
            assert!(error < 0.15 * norm(&mut exact.iter().copied()), "{name}: {error}");
        }
    }
}
