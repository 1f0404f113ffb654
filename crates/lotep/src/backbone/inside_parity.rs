//! Networks with something learnt inside their blocks: LoRA as peft computed it, and as changes of the weights.

use std::collections::BTreeMap;
use std::sync::Mutex;

use burn::tensor::{Device, Tensor, TensorData};

use super::parity::architecture;
use super::*;
use crate::fixtures::{self, assert_close};
use crate::ops::{Compute, Precision};
use crate::train::loss::cross_entropy_sum;

const FORWARD: f64 = 1e-5;
const GRADIENT: f64 = 5e-5;

/// Portable, fast, and fast with blocks computed again.
fn forms() -> [Compute; 3] {
    [(true, false), (false, false), (false, true)].map(|(portable, recompute)| Compute {
        precision: Precision::F32,
        portable,
        recompute,
    })
}

/// Updates by the layers' names.
struct Updates(BTreeMap<String, LowRank>);

impl Hooks for Updates {
    fn low_rank(&self, name: &str) -> Option<LowRank> {
        self.0.get(name).cloned()
    }
}

/// LoRA on the projections of a ViT: peft's outputs and gradients in float64.
#[test]
fn lora_agrees_with_peft() {
    let Some(base) = fixtures::open("vit_b16.safetensors") else { return };
    let Some(f) = fixtures::open("methods/lora_vit_qkv.safetensors") else { return };
    let device = Device::flex().autodiff();
    // alpha / r, in the fixture's own description.
    let scale = 2.0;
    for compute in forms() {
        let weights = Weights::from_file(Checkpoint::open(base.0.path()).unwrap(), &device);
        let net = architecture("vit_b16").load(7, &weights, compute).unwrap();
        let leaf =
            |l: usize, side: &str| format!("base_model.model.blocks.{l}.attn.qkv.lora_{side}.default.weight");
        let learnt = |l| ["A", "B"].map(|side| f.tensor::<2>(&leaf(l, side), &device).require_grad());
        let factors: Vec<_> = (0..3).map(learnt).collect();
        let update = |(l, [down, up]): (usize, &[Tensor<2>; 2])| {
            (format!("blocks.{l}.attn.qkv"), LowRank { down: down.clone(), up: up.clone() * scale })
        };
        let updates = Updates(factors.iter().enumerate().map(update).collect());
        let features = net.features(base.tensor("_fx.input", &device), &updates);
        let logits = net.head().unwrap().forward(features);
        f.assert_close(&logits, "logits", FORWARD);
        let labels: Vec<usize> = base.values("_fx.target").iter().map(|v| *v as usize).collect();
        let loss = cross_entropy_sum(logits, &labels) / labels.len() as f64;
        f.assert_close(&loss, "loss", FORWARD);
        let grads = loss.backward();
        for (l, factors) in factors.iter().enumerate() {
            for (factor, side) in factors.iter().zip(["A", "B"]) {
                let name = format!("grad.{}", leaf(l, side));
                f.assert_close(&factor.grad(&grads).unwrap(), &name, GRADIENT);
            }
        }
    }
}

fn made<const D: usize>(shape: [usize; D], seed: usize, scale: f32, device: &Device) -> Tensor<D> {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|i| ((i * 7 + seed * 13) as f32 * 0.37).sin() * scale).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Hears which layers a network asks for.
#[derive(Default)]
struct Asked(Mutex<Vec<String>>);

impl Hooks for Asked {
    fn low_rank(&self, name: &str) -> Option<LowRank> {
        self.0.lock().unwrap().push(name.to_owned());
        None
    }
}

/// An update gives what its sum with the checkpoint's weight gives, gradients included, under timm's names and in
/// timm's order of outputs, whatever a family does with its weights.
#[test]
fn updates_are_changes_of_the_checkpoints_weights() {
    let scaled = match architecture("coatnet2") {
        Architecture::CoAtNet(config) => Architecture::CoAtNet(CoAtNetConfig { layer_scale: true, ..config }),
        _ => unreachable!("a CoAtNet"),
    };
    let networks = [
        (architecture("vit_b16"), [48, 64]),
        (architecture("swin_rect"), [24, 56]),
        (architecture("coatnet2"), [64, 96]),
        (scaled, [64, 96]),
    ];
    let device = Device::flex().autodiff();
    for (architecture, [h, w]) in networks {
        let image = made([2, 3, h, w], 1, 1.0, &device);
        let weights = Weights::random(3, &device).tracked();
        let net = architecture.load(0, &weights, Compute::default()).unwrap();
        let asked = Asked::default();
        net.features(image.clone(), &asked);
        let asked = asked.0.into_inner().unwrap();
        let leaves = weights.leaves();
        let shapes = weights.taken();
        assert!(asked.len() >= 12 && asked.len().is_multiple_of(4));

        let factors: Vec<[Tensor<2>; 2]> = asked
            .iter()
            .enumerate()
            .map(|(i, name)| {
                let shape = &shapes[&format!("{name}.weight")];
                let (out, r) = (shape[0], 1 + i % 3);
                let down = made([r, shape[1]], 2 * i, 0.3, &device);
                [down.require_grad(), made([out, r], 2 * i + 1, 0.3, &device).require_grad()]
            })
            .collect();
        // A loss that no norm flattens.
        let outcome = |features: Tensor<2>| {
            let loss = (features.clone() * features.clone().sin()).sum();
            let grads = loss.backward();
            let flat = |x: Tensor<2>| x.without_autodiff().into_data().iter::<f32>().collect::<Vec<_>>();
            let gradients = factors.iter().flatten().map(|factor| flat(factor.grad(&grads).unwrap()));
            (flat(features), gradients.collect::<Vec<_>>())
        };

        let mut changed: BTreeMap<_, _> = leaves.into_iter().map(|(n, t)| (n, t.detach())).collect();
        for (name, [down, up]) in asked.iter().zip(&factors) {
            let weight = changed.get_mut(&format!("{name}.weight")).unwrap();
            *weight = weight.clone() + up.clone().matmul(down.clone()).flatten::<1>(0, 1);
        }
        let changed = Weights::from_tensors(changed, &device);
        let changed = architecture.load(0, &changed, Compute::default()).unwrap();
        let expected = outcome(changed.features(image.clone(), &NoHooks));

        for compute in forms() {
            let net = architecture.load(0, &Weights::random(3, &device), compute).unwrap();
            let update = |(name, [down, up]): (&String, &[Tensor<2>; 2])| {
                (name.clone(), LowRank { down: down.clone(), up: up.clone() })
            };
            let updates = Updates(asked.iter().zip(&factors).map(update).collect());
            let found = outcome(net.features(image.clone(), &updates));
            assert_close(&found.0, &expected.0, FORWARD, "features");
            let names = asked.iter().flat_map(|name| [name, name]);
            for ((found, expected), name) in found.1.iter().zip(&expected.1).zip(names) {
                assert_close(found, expected, GRADIENT, &format!("{compute:?} {name}"));
            }
        }
    }
}

/// Keys and values reach every block of a network, and both forms agree on them.
#[test]
fn keys_and_values_reach_every_block() {
    struct Keys(Vec<Option<[Tensor<2>; 2]>>);
    impl Hooks for Keys {
        fn keys_values(&self, block: usize) -> Option<[Tensor<2>; 2]> {
            self.0[block].clone()
        }
    }
    let device = Device::flex().autodiff();
    for (name, [h, w]) in [("vit_b16", [48, 64]), ("swin_rect", [24, 56]), ("coatnet2", [64, 96])] {
        let image = made([2, 3, h, w], 1, 1.0, &device);
        let mut outcomes = Vec::new();
        for compute in forms() {
            let net = architecture(name).load(0, &Weights::random(3, &device), compute).unwrap();
            let blocks = blocks(net.as_ref(), [h, w], &device);
            // CoAtNet's first two stages are of convolutions.
            let attends = |b: &Block| name != "coatnet2" || b.name.as_str() >= "stages.2";
            let made = |(l, b): (usize, &Block)| {
                attends(b).then(|| {
                    [2 * l, 2 * l + 1].map(|seed| made([3, b.channels], seed, 0.5, &device).require_grad())
                })
            };
            let keys = Keys(blocks.iter().enumerate().map(made).collect());
            let features = net.features(image.clone(), &keys);
            let grads = (features.clone() * features.clone().sin()).sum().backward();
            let flat = |x: Tensor<2>| x.without_autodiff().into_data().iter::<f32>().collect::<Vec<_>>();
            let mut all = vec![flat(features)];
            all.extend(keys.0.iter().flatten().flatten().map(|x| flat(x.grad(&grads).unwrap())));
            outcomes.push(all);
        }
        for fast in &outcomes[1..] {
            for (i, (fast, portable)) in fast.iter().zip(&outcomes[0]).enumerate() {
                assert!(portable.iter().any(|v| *v != 0.0), "{name} {i}");
                assert_close(fast, portable, GRADIENT, &format!("{name} {i}"));
            }
        }
    }
}
