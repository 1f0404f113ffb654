//! Optimisers over named parameters, with a learning rate for each group and a state that can be saved.
//!
//! The update rules are Burn's; what is added here is groups by [`Group`] and a state whose tensors are kept
//! under the parameters' own names.

use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamW, AdamWConfig, AdamWState, Optimizer, RecordState, Sgd, SgdConfig, SgdState};
use burn::optim::{StateSink, StateSource, decay::WeightDecayConfig};
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::ops::is_cpu;
use crate::params::{Group, Param, Params};
use crate::safetensors::NamedTensor;
use crate::{Result, bail};

/// Which update rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Stochastic gradient descent with momentum; weight decay is added to the gradient (L2).
    #[default]
    Sgd,
    /// Adam with decoupled weight decay; β = (0.9, 0.999), ε = 1e-8.
    AdamW,
}

enum Rule {
    Sgd(Sgd),
    AdamW(AdamW),
}

#[derive(Clone)]
enum State {
    Sgd(SgdState<1>),
    AdamW(AdamWState<1>),
}

/// Learning rates of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// For prompts.
    pub prompt: f64,
    /// For the classifier.
    pub head: f64,
}

/// An optimiser and its state, one entry a parameter.
pub struct Optim {
    prompt: Rule,
    head: Rule,
    states: Vec<Option<State>>,
}

impl Optim {
    /// A fresh optimiser for `count` learnt parameters. `decay` is the weight decay of prompts and of the head.
    pub fn new(kind: OptimizerKind, momentum: f64, decay: Rates, count: usize) -> Self {
        let rule = |decay: f64| match kind {
            OptimizerKind::Sgd => {
                let momentum = MomentumConfig::new().with_momentum(momentum).with_dampening(0.0);
                let decay = (decay > 0.0).then(|| WeightDecayConfig::new(decay as f32));
                Rule::Sgd(SgdConfig::new().with_momentum(Some(momentum)).with_weight_decay(decay).build())
            }
            OptimizerKind::AdamW => {
                Rule::AdamW(AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(decay as f32).build())
            }
        };
        Self { prompt: rule(decay.prompt), head: rule(decay.head), states: vec![None; count] }
    }

    /// Update what is learnt with its gradients, in the order of [`Params::learnt`]. On the CPU parameters are shared out
    /// among threads, since Burn updates one on one thread.
    pub fn step(&mut self, rates: Rates, params: &mut Params, grads: Vec<Tensor<1>>) {
        let (prompt, head) = (&self.prompt, &self.head);
        let update = |((param, grad), state): ((&mut Param, Tensor<1>), &mut Option<State>)| {
            let (rule, rate) = match param.group {
                Group::Head => (head, rates.head),
                _ => (prompt, rates.prompt),
            };
            let value = param.value.clone();
            (param.value, *state) = match (rule, state.take()) {
                (Rule::Sgd(rule), state) => {
                    let state = state.and_then(|s| if let State::Sgd(s) = s { Some(s) } else { None });
                    let (value, state) = rule.step(rate, value, grad, state);
                    (value, state.map(State::Sgd))
                }
                (Rule::AdamW(rule), state) => {
                    let state = state.and_then(|s| if let State::AdamW(s) = s { Some(s) } else { None });
                    let (value, state) = rule.step(rate, value, grad, state);
                    (value, state.map(State::AdamW))
                }
            };
        };
        let on_cpu = grads.first().is_some_and(|grad| is_cpu(&grad.device()));
        let learnt = params.iter_mut().filter(|p| p.group != Group::Fixed);
        let each = learnt.zip(grads).zip(&mut self.states);
        if on_cpu {
            each.collect::<Vec<_>>().into_par_iter().with_max_len(1).for_each(update);
        } else {
            each.for_each(update);
        }
    }

    /// The state's tensors, named `NAME.optim.LEAF`; counters become tensors of one element.
    pub fn to_named(&self, params: &Params) -> Vec<NamedTensor> {
        let mut sink = StateSink::default();
        for (param, state) in params.learnt().zip(&self.states) {
            let prefix = format!("{}.optim", param.name);
            match state {
                Some(State::Sgd(s)) => s.state_flatten(&prefix, &mut sink),
                Some(State::AdamW(s)) => s.state_flatten(&prefix, &mut sink),
                None => {}
            }
        }
        let tensors = sink.tensors.into_iter().map(|(name, data)| {
            let values: Vec<f32> = data.iter::<f32>().collect();
            NamedTensor { name, shape: vec![values.len()], values }
        });
        // Step counts stay far below 2^24, so f32 holds them exactly.
        let counters = sink.scalars.into_iter().map(|(name, value)| {
            let value = u64::try_from(value).unwrap_or_default() as f32;
            NamedTensor { name, shape: vec![], values: vec![value] }
        });
        tensors.chain(counters).collect()
    }

    /// Restore what [`Optim::to_named`] gave.
    ///
    /// # Errors
    /// A tensor of the wrong length, or a state that is there in part.
    pub fn load(&mut self, params: &Params, tensors: Vec<NamedTensor>) -> Result<()> {
        let is_counter = |t: &&NamedTensor| t.shape.is_empty();
        let counters = tensors.iter().filter(is_counter);
        let scalars = counters.map(|t| (t.name.clone(), (t.values[0] as u64).into())).collect();
        let mut source = StateSource::new(scalars);
        for tensor in tensors.iter().filter(|t| !is_counter(t)) {
            let data = TensorData::new(tensor.values.clone(), [tensor.values.len()]);
            source.insert_tensor(tensor.name.clone(), data);
        }
        for (param, state) in params.learnt().zip(&mut self.states) {
            let prefix = format!("{}.optim", param.name);
            let length = param.value.dims()[0];
            if tensors.iter().any(|t| {
                t.name.starts_with(&format!("{prefix}.")) && !t.shape.is_empty() && t.values.len() != length
            }) {
                bail!("the checkpoint's optimiser state of `{}` does not have {length} values", param.name);
            }
            let device = param.value.device();
            *state = match self.prompt {
                Rule::Sgd(_) => SgdState::state_unflatten(&prefix, &mut source, &device).map(State::Sgd),
                Rule::AdamW(_) => {
                    AdamWState::state_unflatten(&prefix, &mut source, &device).map(State::AdamW)
                }
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{self, Fixture};
    use burn::tensor::Device;

    /// The fixture's problem: `mean(z⁴)/4 + mean((z - Y)²)/2` with `z = X w + b`, 12 steps.
    fn trajectory(
        f: &Fixture,
        key: &str,
        kind: OptimizerKind,
        lrs: &[f64],
        momentum: f64,
        decay: f64,
        split: usize,
    ) {
        let device = Device::flex();
        let mut params = Params::default();
        params.push("w", &[4, 3], Group::Prompt, f.values("w0"), &device);
        params.push("b", &[3], Group::Head, f.values("b0"), &device);
        let decay = Rates { prompt: decay, head: decay };
        let mut optim = Optim::new(kind, momentum, decay, 2);
        let (expected_w, expected_b) = (f.values(&format!("{key}.w")), f.values(&format!("{key}.b")));
        for (step, lr) in lrs.iter().enumerate() {
            if step == split {
                // Save and restore half way: nothing may change.
                let named = optim.to_named(&params);
                optim = Optim::new(kind, momentum, decay, 2);
                optim.load(&params, named).unwrap();
            }
            let leaves = params.leaves();
            let autodiff = device.clone().autodiff();
            let z =
                f.tensor::<2>("X", &autodiff).matmul(leaves.get::<2>("w")) + leaves.get::<1>("b").unsqueeze();
            let y = f.tensor::<2>("Y", &autodiff);
            let loss = z.clone().square().square().mean() / 4.0 + (z - y).square().mean() * 0.5;
            let grads = loss.backward();
            let grads = leaves.iter().map(|p| p.value.grad(&grads).unwrap()).collect();
            optim.step(Rates { prompt: *lr, head: *lr }, &mut params, grads);
            let value = |name: &str| params.get::<1>(name).into_data().iter::<f32>().collect::<Vec<_>>();
            let w: Vec<f32> = params.get::<2>("w").into_data().iter::<f32>().collect();
            fixtures::assert_close(&w, &expected_w[step * 12..][..12], 1e-5, &format!("{key} w step {step}"));
            fixtures::assert_close(
                &value("b"),
                &expected_b[step * 3..][..3],
                1e-5,
                &format!("{key} b step {step}"),
            );
        }
    }

    #[test]
    fn torch_trajectories() {
        let Some(f) = fixtures::open("methods/optim.safetensors") else { return };
        let Some(meta) = fixtures::json("methods/optim.json") else { return };
        let mut done = 0;
        for run in meta["runs"].as_array().unwrap() {
            let args = &run["args"];
            let number = |key: &str| args[key].as_f64().unwrap_or(0.0);
            let kind = match run["optimizer"].as_str().unwrap() {
                "SGD" if args["nesterov"].is_null() => OptimizerKind::Sgd,
                "AdamW" if args["betas"].is_null() => OptimizerKind::AdamW,
                _ => continue,
            };
            if !run["clip_grad_norm"].is_null() {
                continue;
            }
            let lrs: Vec<f64> = serde_json::from_value(run["lr"].clone()).unwrap();
            let key = run["key"].as_str().unwrap();
            for split in [0, 5, 12] {
                trajectory(&f, key, kind, &lrs, number("momentum"), number("weight_decay"), split);
            }
            done += 1;
        }
        assert_eq!(done, 6, "sgd, sgd_momentum_wd and adamw, each with two schedules");
    }
}
