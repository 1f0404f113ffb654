//! Networks with something learnt inside their blocks of convolutions: as changes of the weights, in both forms.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use burn::tensor::{Device, Tensor, TensorData};

use super::parity::architecture;
use super::*;
use crate::fixtures::assert_close;
use crate::ops::{Compute, Precision};

const FORWARD: f64 = 1e-5;
const GRADIENT: f64 = 5e-5;
/// What no more than the order of a few roundings may change.
const ROUNDING: f64 = 1e-6;

/// Portable, fast, and fast with blocks computed again where that is done.
fn forms() -> [Compute; 3] {
    [(true, false), (false, false), (false, true)].map(|(portable, recompute)| Compute {
        precision: Precision::F32,
        portable,
        recompute,
    })
}

/// ResNets of either block, ConvNeXt, and CoAtNets with every kind of inverted bottleneck, with an image's size; odd
/// sizes have pixels at the far end that a stride passes by.
fn networks() -> Vec<(String, Architecture, [usize; 2])> {
    let small = serde_json::json!({
        "img_size": [64, 96], "embed_dim": [32, 64, 96, 128], "depths": [2, 2, 1, 1], "stem_width": [32, 40],
    });
    let coatnet = |name: &str| {
        let architecture = Architecture::named(&format!("coatnet_{name}_224")).unwrap();
        (name.to_owned(), architecture.with_args(small.as_object().unwrap()).unwrap(), [64, 96])
    };
    let fixture = |name: &str, size| (name.to_owned(), architecture(name), size);
    vec![
        fixture("resnet18", [40, 56]),
        fixture("resnet50", [40, 56]),
        fixture("convnext", [64, 96]),
        fixture("coatnet2", [64, 96]),
        coatnet("pico_rw"),
        coatnet("0_rw"),
        coatnet("rmlp_0_rw"),
        coatnet("rmlp_1_rw"),
    ]
}

fn made<const D: usize>(shape: [usize; D], seed: usize, scale: f32, device: &Device) -> Tensor<D> {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|i| ((i * 7 + seed * 13) as f32 * 0.37).sin() * scale).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Hears which layers a network asks for: linear ones, and convolutions.
#[derive(Default)]
struct Asked([Mutex<Vec<String>>; 2]);

impl Hooks for Asked {
    fn low_rank(&self, name: &str) -> Option<LowRank> {
        self.0[0].lock().unwrap().push(name.to_owned());
        None
    }

    fn conv_update(&self, name: &str) -> Option<ConvUpdate> {
        self.0[1].lock().unwrap().push(name.to_owned());
        None
    }
}

/// The names of the layers that a network asks for, and all its weights' shapes.
fn asked(
    architecture: &Architecture,
    [h, w]: [usize; 2],
) -> ([Vec<String>; 2], BTreeMap<String, Vec<usize>>) {
    let device = Device::flex();
    let weights = Weights::random(3, &device);
    let net = architecture.load(0, &weights, Compute::default()).unwrap();
    let asked = Asked::default();
    net.features(Tensor::zeros([1, 3, h, w], &device), &asked);
    (asked.0.map(|names| names.into_inner().unwrap()), weights.taken())
}

/// How convolutions are updated.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Thin,
    Kernel,
}

/// A prompt on each block, and updates by the layers' names.
#[derive(Clone, Default)]
struct Learnt {
    prompts: Vec<Tensor<3>>,
    linear: BTreeMap<String, LowRank>,
    convs: BTreeMap<String, ConvUpdate>,
}

impl Hooks for Learnt {
    fn prompt(&self, block: usize) -> Option<Prompt> {
        self.prompts.get(block).cloned().map(Prompt::from)
    }

    fn low_rank(&self, name: &str) -> Option<LowRank> {
        self.linear.get(name).cloned()
    }

    fn conv_update(&self, name: &str) -> Option<ConvUpdate> {
        self.convs.get(name).cloned()
    }
}

impl Learnt {
    fn new(architecture: &Architecture, size: [usize; 2], form: Form, device: &Device) -> Self {
        let ([linear, convs], shapes) = asked(architecture, size);
        let shape = |name: &str| shapes[&format!("{name}.weight")].clone();
        let low_rank = |(i, name): (usize, String)| {
            let (shape, r) = (shape(&name), 1 + i % 3);
            let down = made([r, shape[1]], 2 * i, 0.3, device).require_grad();
            let up = made([shape[0], r], 2 * i + 1, 0.3, device).require_grad();
            (name, LowRank { down, up })
        };
        let conv = |(i, name): (usize, String)| {
            let shape = shape(&name);
            let ([out, input, k], r) = ([shape[0], shape[1], shape[2]], 1 + i % 5);
            let update = match form {
                Form::Thin => ConvUpdate::Thin {
                    down: made([r, input, k, k], 2 * i, 0.3, device).require_grad(),
                    up: made([out, r], 2 * i + 1, 0.3, device).require_grad(),
                },
                Form::Kernel => {
                    ConvUpdate::Kernel(made([out, input, k, k], 2 * i, 0.1, device).require_grad())
                }
            };
            (name, update)
        };
        let linear = linear.into_iter().enumerate().map(low_rank).collect();
        Self { prompts: Vec::new(), linear, convs: convs.into_iter().enumerate().map(conv).collect() }
    }

    fn with_prompts(self, blocks: &[Block], device: &Device) -> Self {
        let prompt = |(l, b): (usize, &Block)| {
            made([b.channels, b.height, b.width], 100 + l, 0.3, device).require_grad()
        };
        Self { prompts: blocks.iter().enumerate().map(prompt).collect(), ..self }
    }

    /// The checkpoint's weights with the updates in them, which stay on the tape.
    fn changed(&self, mut weights: BTreeMap<String, Tensor<1>>) -> BTreeMap<String, Tensor<1>> {
        let mut add = |name: &str, change: Tensor<1>| {
            let weight = weights.get_mut(&format!("{name}.weight")).unwrap();
            *weight = weight.clone() + change;
        };
        for (name, LowRank { down, up }) in &self.linear {
            add(name, up.clone().matmul(down.clone()).flatten(0, 1));
        }
        for (name, update) in &self.convs {
            let change = match update {
                ConvUpdate::Thin { down, up } => up.clone().matmul(down.clone().flatten(1, 3)).flatten(0, 1),
                ConvUpdate::Kernel(kernel) => kernel.clone().flatten(0, 3),
            };
            add(name, change);
        }
        weights
    }

    /// With nothing to add, but all places taken.
    fn zeroed(mut self) -> Self {
        for update in self.linear.values_mut() {
            update.up = update.up.zeros_like();
        }
        for update in self.convs.values_mut() {
            match update {
                ConvUpdate::Thin { up, .. } => *up = up.zeros_like(),
                ConvUpdate::Kernel(kernel) => *kernel = kernel.zeros_like(),
            }
        }
        self
    }

    /// The features, and the gradients of everything tracked, of a loss that no norm flattens.
    fn outcome(&self, image: &Tensor<4>, features: Tensor<2>) -> BTreeMap<String, Vec<f32>> {
        fn flat<const D: usize>(x: Tensor<D>) -> Vec<f32> {
            x.without_autodiff().into_data().iter::<f32>().collect()
        }
        let grads = (features.clone() * features.clone().sin()).sum().backward();
        let mut all = BTreeMap::from([("features".to_owned(), flat(features))]);
        all.extend(image.grad(&grads).map(|g| ("image".to_owned(), flat(g))));
        let prompts = self.prompts.iter().enumerate();
        all.extend(prompts.filter_map(|(l, p)| Some((format!("prompt {l}"), flat(p.grad(&grads)?)))));
        for (name, update) in &self.linear {
            all.insert(format!("{name} down"), flat(update.down.grad(&grads).unwrap()));
            all.insert(format!("{name} up"), flat(update.up.grad(&grads).unwrap()));
        }
        for (name, update) in &self.convs {
            match update {
                ConvUpdate::Thin { down, up } => {
                    all.insert(format!("{name} down"), flat(down.grad(&grads).unwrap()));
                    all.insert(format!("{name} up"), flat(up.grad(&grads).unwrap()));
                }
                ConvUpdate::Kernel(kernel) => {
                    all.insert(format!("{name} kernel"), flat(kernel.grad(&grads).unwrap()));
                }
            }
        }
        all
    }
}

/// An update gives what its sum with the checkpoint's weight gives, and so do prompts that enter at the same time,
/// gradients included.
#[test]
fn updates_are_changes_of_the_checkpoints_weights() {
    let device = Device::flex().autodiff();
    for (network, architecture, [h, w]) in networks() {
        for form in [Form::Thin, Form::Kernel] {
            if form == Form::Kernel && network == "convnext" {
                continue; // No convolution is asked for.
            }
            let weights = Weights::random(3, &device).tracked();
            let net = architecture.load(0, &weights, Compute::default()).unwrap();
            let blocks = blocks(net.as_ref(), [h, w], &device);
            let image = made([2, 3, h, w], 1, 1.0, &device).require_grad();
            let learnt = Learnt::new(&architecture, [h, w], form, &device).with_prompts(&blocks, &device);
            let leaves = weights.leaves().into_iter().map(|(n, t)| (n, t.detach())).collect();
            let changed = Weights::from_tensors(learnt.changed(leaves), &device);
            let changed = architecture.load(0, &changed, Compute::default()).unwrap();
            let prompts = Learnt { prompts: learnt.prompts.clone(), ..Learnt::default() };
            let expected = learnt.outcome(&image, changed.features(image.clone(), &prompts));

            // Once with every gradient, once with those alone of what is learnt inside.
            for (compute, inside) in forms().into_iter().flat_map(|c| [(c, false), (c, true)]) {
                let net = architecture.load(0, &Weights::random(3, &device), compute).unwrap();
                let what = format!("{network} {form:?} {compute:?}");
                if inside {
                    let fixed = learnt.prompts.iter().map(|p| p.clone().without_autodiff()).collect();
                    let hooks = Learnt { prompts: fixed, ..learnt.clone() };
                    let image = image.clone().without_autodiff();
                    let found = hooks.outcome(&image, net.features(image.clone(), &hooks));
                    assert_eq!(found.len(), expected.len() - 1 - learnt.prompts.len(), "{what}");
                    compare(&found, &expected, &what);
                } else {
                    let found = learnt.outcome(&image, net.features(image.clone(), &learnt));
                    assert_eq!(found.len(), expected.len(), "{what}");
                    compare(&found, &expected, &what);
                }
            }
        }
    }
}

fn compare(found: &BTreeMap<String, Vec<f32>>, expected: &BTreeMap<String, Vec<f32>>, what: &str) {
    for (name, found) in found {
        let tolerance = if name == "features" { FORWARD } else { GRADIENT };
        assert_close(found, &expected[name], tolerance, &format!("{what} {name}"));
    }
}

/// The names are the checkpoint's: of all convolutions of ResNets behind the stem, of those of one pixel in CoAtNet's
/// first stages but for the gates, and of the perceptrons of ConvNeXt and of CoAtNet's last stages.
#[test]
fn what_is_asked_for_is_what_the_checkpoint_has() {
    for (network, architecture, size) in networks() {
        let (asked, shapes) = asked(&architecture, size);
        let [linear, convs] = asked.map(|names| {
            let distinct: BTreeSet<_> = names.iter().cloned().collect();
            assert_eq!(distinct.len(), names.len(), "{network}");
            distinct
        });
        let names = |wanted: &dyn Fn(&str, &[usize]) -> bool| -> BTreeSet<String> {
            let named = shapes.iter().filter_map(|(n, s)| Some((n.strip_suffix(".weight")?, s)));
            named.filter(|(n, s)| wanted(n, s)).map(|(n, _)| n.to_owned()).collect()
        };
        let (expected_linear, expected_convs) = if network.starts_with("resnet") {
            (BTreeSet::new(), names(&|n, s| s.len() == 4 && n != "conv1"))
        } else if network == "convnext" {
            (names(&|n, _| n.contains(".mlp.")), BTreeSet::new())
        } else {
            let early = |n: &str| n.starts_with("stages.0.") || n.starts_with("stages.1.");
            let linear = |n: &str| {
                ["attn.qkv", "attn.proj", ".mlp.fc1", ".mlp.fc2"].iter().any(|leaf| n.ends_with(leaf))
                    && !n.contains("rel_pos")
            };
            let one_pixel = |s: &[usize]| s.len() == 4 && s[2] == 1;
            (
                names(&|n, _| !early(n) && linear(n)),
                names(&|n, s| early(n) && one_pixel(s) && !n.contains(".se")),
            )
        };
        assert_eq!(linear, expected_linear, "{network}");
        assert_eq!(convs, expected_convs, "{network}");
    }
}

/// A block whose parts run one by one gives what it gives as one operation, whichever of its parts is updated.
#[test]
fn nothing_is_added_by_zeros() {
    let device = Device::flex().autodiff();
    for (network, architecture, [h, w]) in networks() {
        let image = made([2, 3, h, w], 1, 1.0, &device).require_grad();
        let compute = Compute::default();
        let net = architecture.load(0, &Weights::random(3, &device), compute).unwrap();
        let nothing = Learnt::default();
        let expected = nothing.outcome(&image, net.features(image.clone(), &NoHooks));
        for form in [Form::Thin, Form::Kernel] {
            let zeroed = Learnt::new(&architecture, [h, w], form, &device).zeroed();
            let alone = zeroed.convs.iter().map(|(name, update)| Learnt {
                convs: BTreeMap::from([(name.clone(), update.clone())]),
                ..Learnt::default()
            });
            for hooks in alone.chain([zeroed.clone()]) {
                let found = nothing.outcome(&image, net.features(image.clone(), &hooks));
                for (name, found) in &found {
                    assert_close(found, &expected[name], ROUNDING, &format!("{network} {form:?} {name}"));
                }
            }
        }
    }
}

/// bfloat16 rounds the operands of products only: features and gradients stay as near to f32 as without updates
/// (`parity.rs` has the reckoning), twice that for updates as large as the weights. All gradients together: where a
/// rounding flips a ReLU's gate those of a single layer may be off by half, in the portable form too, and the fast form
/// is off by no more than twice what the portable one is.
#[test]
fn bf16_stays_near_f32() {
    let device = Device::flex().autodiff();
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    for (network, architecture, [h, w]) in networks() {
        let image = made([2, 3, h, w], 1, 1.0, &device);
        for form in [Form::Thin, Form::Kernel] {
            let run = |precision, portable| {
                let compute = Compute { precision, portable, recompute: false };
                let net = architecture.load(0, &Weights::random(3, &device), compute).unwrap();
                let learnt = Learnt::new(&architecture, [h, w], form, &device);
                let mut all = learnt.outcome(&image, net.features(image.clone(), &learnt));
                let features = all.remove("features").unwrap();
                [features, all.into_values().flatten().collect()]
            };
            let exact = run(Precision::F32, true);
            let errors = [true, false].map(|portable| {
                let rounded = run(Precision::Bf16, portable);
                [0, 1].map(|i| {
                    let difference = norm(&mut rounded[i].iter().zip(&exact[i]).map(|(a, b)| a - b));
                    difference / norm(&mut exact[i].iter().copied())
                })
            });
            println!("{network} {form:?}: {errors:.4?}");
            let [portable, fast] = errors;
            for (i, bound) in [4e-2, 3e-1].into_iter().enumerate() {
                let what = format!("{network} {form:?}: portable {portable:?}, fast {fast:?}");
                assert!(portable[i] > 1e-5 && portable[i] < bound, "{what}");
                assert!(fast[i] > 1e-5 && fast[i] < 2.0 * portable[i], "{what}");
            }
        }
    }
}
