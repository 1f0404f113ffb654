//! Transformer blocks with something learnt inside: both forms against each other, and against finite differences.

use std::sync::Arc;

use burn::tensor::{Device, Gradients, Tensor, TensorData};

use super::*;
use crate::fixtures::assert_close;

const FORWARD: f64 = 1e-5;
const GRADIENT: f64 = 5e-5;

/// Repeatable values of order `scale`.
fn values(count: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale
    };
    (0..count).map(|_| next()).collect()
}

fn made<const D: usize>(shape: [usize; D], seed: u64, scale: f32, device: &Device) -> Tensor<D> {
    let count = shape.iter().product();
    Tensor::from_data(TensorData::new(values(count, seed, scale), shape), device)
}

/// A kind of block.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Plain,
    ClassToken,
    /// Swin's: windows that a map of 5 × 7 does not fill, shifted, with biases.
    Windows,
    /// The same with two prompts in every window.
    Prompted,
    /// CoAtNet's: a map of 4 × 6, halved.
    Shrink,
    /// Norms that are scale and shift alone.
    BatchNorms,
}

const KINDS: [Kind; 6] =
    [Kind::Plain, Kind::ClassToken, Kind::Windows, Kind::Prompted, Kind::Shrink, Kind::BatchNorms];
const HEADS: usize = 2;
const WIDTH: usize = 20;
const SAMPLES: usize = 3;
/// Keys, and the updates' ranks.
const KEYS: usize = 3;
const RANKS: [usize; 4] = [5, 3, 1, 9];

impl Kind {
    fn tokens(self) -> usize {
        match self {
            Self::Plain | Self::ClassToken | Self::BatchNorms => 11,
            Self::Windows => 35,
            Self::Prompted => 37,
            Self::Shrink => 24,
        }
    }

    fn outputs(self) -> usize {
        if self == Self::Shrink { 28 } else { WIDTH }
    }

    /// Inputs and outputs of the four layers.
    fn sizes(self) -> [[usize; 2]; 4] {
        let out = self.outputs();
        [[WIDTH, 3 * WIDTH], [WIDTH, out], [out, 4 * out], [4 * out, out]]
    }

    fn block(self, compute: Compute) -> TransformerBlock {
        let device = Device::flex();
        let [qkv, proj, fc1, fc2] = self.sizes();
        let layer = |[inputs, outputs]: [usize; 2], seed| {
            let scale = (3.0 / inputs as f32).sqrt();
            (made([outputs, inputs], seed, scale, &device), made([outputs], seed + 1, 0.5, &device))
        };
        let norm =
            |width, seed| [made([width], seed, 0.5, &device) + 1.0, made([width], seed + 1, 0.5, &device)];
        let bias = |n: usize| made([HEADS, n, n], 40, 1.0, &device);
        let scope = match self {
            Self::Plain | Self::ClassToken | Self::BatchNorms => Scope::default(),
            Self::Windows | Self::Prompted => {
                let windows = Arc::new(Windows::new([5, 7], [4, 3], [2, 1]));
                Scope { bias: Some(bias(12)), windows: Some(windows) }
            }
            Self::Shrink => Scope { bias: Some(bias(6)), windows: None },
        };
        let (qkv_weight, qkv_bias) = layer(qkv, 10);
        let weights = TransformerWeights {
            heads: HEADS,
            eps: 1e-5,
            nonlinearity: Nonlinearity::Gelu,
            scope,
            norm1: norm(WIDTH, 20),
            qkv: (qkv_weight, Some(qkv_bias)),
            proj: layer(proj, 12),
            norm2: norm(self.outputs(), 22),
            fc1: layer(fc1, 14),
            fc2: layer(fc2, 16),
            shrink: (self == Self::Shrink).then(|| Shrink {
                maxima: false,
                size: [4, 6],
                expand: layer([WIDTH, self.outputs()], 18),
            }),
            drop_path: None,
        };
        if self == Self::BatchNorms {
            let norm = |seed| BatchNorm {
                weight: made([WIDTH], seed, 0.5, &device) + 1.0,
                bias: made([WIDTH], seed + 1, 0.5, &device),
                mean: made([WIDTH], seed + 2, 0.5, &device),
                var: made([WIDTH], seed + 3, 0.5, &device) + 1.0,
                eps: 1e-6,
                batch: None,
            };
            return TransformerBlock::with_batch_norms(weights, [norm(60), norm(70)], compute);
        }
        TransformerBlock::new(weights, compute)
    }
}

/// Which inputs' gradients are asked for.
#[derive(Clone, Copy, Debug)]
struct Tracked {
    stream: bool,
    keys: bool,
    updates: bool,
}

const EVERYTHING: Tracked = Tracked { stream: true, keys: true, updates: true };
const INSIDE: Tracked = Tracked { stream: false, ..EVERYTHING };
const STREAM: Tracked = Tracked { stream: true, keys: false, updates: false };

/// What goes into a block: stream, prompt, and all that is learnt inside, whichever of it is used.
struct Inputs {
    x: Tensor<3>,
    prompt: Tensor<2>,
    /// Keys and values, then `down` and `up` of each layer.
    inside: Vec<Tensor<2>>,
}

impl Inputs {
    fn new(kind: Kind) -> Self {
        let device = Device::flex().autodiff();
        let mut inside = vec![made([KEYS, WIDTH], 3, 1.0, &device), made([KEYS, WIDTH], 4, 1.0, &device)];
        for (i, ([inputs, outputs], rank)) in kind.sizes().into_iter().zip(RANKS).enumerate() {
            let seed = 50 + 2 * i as u64;
            inside.push(made([rank, inputs], seed, (3.0 / inputs as f32).sqrt(), &device));
            inside.push(made([outputs, rank], seed + 1, 0.5, &device));
        }
        let x = made([SAMPLES, kind.tokens(), WIDTH], 1, 2.0, &device);
        Self { x, prompt: made([kind.tokens(), WIDTH], 2, 0.5, &device), inside }
    }

    /// What is not tracked is outside autodiff, as a frozen network's own activations are.
    fn tracked(self, tracked: Tracked) -> Self {
        fn either<const D: usize>(x: Tensor<D>, tracked: bool) -> Tensor<D> {
            if tracked { x.require_grad() } else { x.without_autodiff() }
        }
        let inside = self.inside.into_iter().enumerate();
        Self {
            x: either(self.x, tracked.stream),
            prompt: either(self.prompt, tracked.stream),
            inside: inside
                .map(|(i, x)| either(x, if i < 2 { tracked.keys } else { tracked.updates }))
                .collect(),
        }
    }

    /// Keys and values if `used[0]`, the layers' updates by the others.
    fn used(&self, used: [bool; 5]) -> Inside {
        let part = |i: usize| self.inside[i].clone();
        let update = |i: usize| used[i].then(|| LowRank { down: part(2 * i), up: part(2 * i + 1) });
        Inside {
            keys_values: used[0].then(|| [part(0), part(1)]),
            qkv: update(1),
            proj: update(2),
            fc1: update(3),
            fc2: update(4),
            dropout: None,
        }
    }
}

fn flat<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.without_autodiff().into_data().iter::<f32>().collect()
}

fn gradient<const D: usize>(x: &Tensor<D>, grads: &Gradients) -> Option<Vec<f32>> {
    x.grad(grads).map(flat)
}

/// The output, and what the loss makes of it.
fn run(block: &TransformerBlock, kind: Kind, inputs: &Inputs, inside: &Inside) -> (Tensor<3>, Tensor<1>) {
    let (x, prompt) = (inputs.x.clone(), Some(inputs.prompt.clone()));
    let y = match kind {
        Kind::ClassToken => block.class_token(x, prompt, inside),
        _ => block.forward(x, prompt, inside),
    };
    (y.clone(), (y.clone() * y.sin()).sum())
}

/// The output and each input's gradient, of those that have one: stream, prompt, keys, values, downs and ups.
fn pass(kind: Kind, compute: Compute, used: [bool; 5], tracked: Tracked) -> Vec<(String, Vec<f32>)> {
    let inputs = Inputs::new(kind).tracked(tracked);
    let (y, loss) = run(&kind.block(compute), kind, &inputs, &inputs.used(used));
    let grads = loss.backward();
    let mut all = vec![("output".to_owned(), flat(y))];
    let named = [("stream", gradient(&inputs.x, &grads)), ("prompt", gradient(&inputs.prompt, &grads))];
    all.extend(named.into_iter().filter_map(|(name, g)| Some((name.to_owned(), g?))));
    let inside = inputs.inside.iter().enumerate();
    all.extend(inside.filter_map(|(i, x)| Some((format!("inside {i}"), gradient(x, &grads)?))));
    all
}

const ALL: [bool; 5] = [true; 5];
const PORTABLE: Compute = Compute { precision: Precision::F32, portable: true, recompute: false };

fn fast(precision: Precision) -> [Compute; 2] {
    [false, true].map(|recompute| Compute { precision, portable: false, recompute })
}

fn compare(fast: &[(String, Vec<f32>)], portable: &[(String, Vec<f32>)], what: &str) {
    assert_eq!(fast.len(), portable.len(), "{what}");
    for ((name, fast), (other, portable)) in fast.iter().zip(portable) {
        assert_eq!(name, other, "{what}");
        let tolerance = if name == "output" { FORWARD } else { GRADIENT };
        assert_close(fast, portable, tolerance, &format!("{what} {name}"));
    }
}

#[test]
fn both_forms_agree_on_all_that_is_learnt_inside() {
    for kind in KINDS {
        let portable = pass(kind, PORTABLE, ALL, EVERYTHING);
        assert_eq!(portable.len(), 13, "an output and twelve gradients");
        for compute in fast(Precision::F32) {
            compare(&pass(kind, compute, ALL, EVERYTHING), &portable, &format!("{kind:?} {compute:?}"));
        }
    }
}

/// One thing at a time, with the stream tracked or not: the backward pass goes no further than it must.
#[test]
fn each_part_learns_alone() {
    for kind in KINDS {
        for one in 0..5 {
            let used: [bool; 5] = std::array::from_fn(|i| i == one);
            for tracked in [EVERYTHING, INSIDE] {
                let portable = pass(kind, PORTABLE, used, tracked);
                assert_eq!(portable.len(), if tracked.stream { 5 } else { 3 });
                for compute in fast(Precision::F32) {
                    let what = format!("{kind:?} {compute:?} part {one}, {tracked:?}");
                    compare(&pass(kind, compute, used, tracked), &portable, &what);
                }
            }
        }
    }
}

/// What is learnt may be fixed (a later stage of a method, or an evaluation): only the stream's gradient is asked for.
/// Gradients don't depend on which others are wanted.
#[test]
fn gradients_stand_alone() {
    for kind in KINDS {
        for compute in fast(Precision::F32) {
            let both = pass(kind, compute, ALL, EVERYTHING);
            let keys = Tracked { updates: false, ..INSIDE };
            let updates = Tracked { keys: false, ..INSIDE };
            for (tracked, gradients) in [(STREAM, 2), (INSIDE, 10), (keys, 2), (updates, 8)] {
                let found = pass(kind, compute, ALL, tracked);
                assert_eq!(found.len(), 1 + gradients);
                for found in found {
                    assert!(both.contains(&found), "{kind:?} {compute:?} {tracked:?}: {}", found.0);
                }
            }
        }
    }
}

/// bfloat16 rounds the operands of products only. One rounding is 2^-10.3 in the mean square, and those of a block's
/// four layers, two attention products and eight thin ones add like independent ones, to `√28 · 2^-10.3`, 0.4 % of the
/// output. A gradient passes twice as many products, and begins with a slope that moves by as much as outputs of
/// several units do: up to 1.5 % were seen, and 3.5 % where nothing is normalised on the way.
#[test]
fn bf16_stays_near_f32() {
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    for kind in KINDS {
        let exact = pass(kind, PORTABLE, ALL, EVERYTHING);
        let portable = Compute { precision: Precision::Bf16, ..PORTABLE };
        for compute in fast(Precision::Bf16).into_iter().chain([portable]) {
            let rounded = pass(kind, compute, ALL, EVERYTHING);
            assert_eq!(rounded.len(), exact.len());
            for ((name, a), (_, b)) in rounded.iter().zip(&exact) {
                let error = norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied());
                println!("{kind:?} {compute:?} {name}: {error:.2e}");
                let bound = if name == "output" { 1e-2 } else { 2.5e-2 };
                let bound = if kind == Kind::BatchNorms { 2.0 * bound } else { bound };
                assert!(error > 1e-5 && error < bound, "{kind:?} {compute:?} {name}: {error}");
            }
        }
    }
}

/// Updates whose `up` is zero change nothing, to the bit, nor do no keys.
#[test]
fn nothing_is_added_by_zeros() {
    for kind in KINDS {
        for precision in [Precision::F32, Precision::Bf16] {
            let portable = Compute { precision, ..PORTABLE };
            for compute in fast(precision).into_iter().chain([portable]) {
                let block = kind.block(compute);
                let outcome = |inside: &dyn Fn(&Inputs) -> Inside| {
                    let inputs = Inputs::new(kind).tracked(STREAM);
                    let (y, loss) = run(&block, kind, &inputs, &inside(&inputs));
                    let grads = loss.backward();
                    (flat(y), gradient(&inputs.x, &grads), gradient(&inputs.prompt, &grads))
                };
                let zeros = outcome(&|inputs| {
                    let mut inside = inputs.used([false, true, true, true, true]);
                    let updates = [&mut inside.qkv, &mut inside.proj, &mut inside.fc1, &mut inside.fc2];
                    for update in updates.into_iter().flatten() {
                        update.up = update.up.zeros_like();
                    }
                    let none = || Tensor::zeros([0, WIDTH], &Device::flex().autodiff());
                    inside.keys_values = Some([none(), none()]);
                    inside
                });
                let nothing = outcome(&|_| Inside::default());
                assert!(zeros == nothing, "{kind:?} {compute:?}");
            }
        }
    }
}

/// Along its own gradient a loss grows by the gradient's length, along any other direction by their product: to the
/// 0.3 % that a step of f32 leaves.
#[test]
fn portable_gradients_are_those_of_finite_differences() {
    for kind in KINDS {
        let block = kind.block(PORTABLE);
        let inputs = Inputs::new(kind).tracked(EVERYTHING);
        let (_, loss) = run(&block, kind, &inputs, &inputs.used(ALL));
        let grads = loss.backward();
        for i in 0..inputs.inside.len() {
            let g = gradient(&inputs.inside[i], &grads).unwrap();
            let length = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            let random = values(g.len(), 90 + i as u64, 1.0);
            for direction in [g.clone(), random] {
                let step = 4e-3 / length(&direction);
                let loss = |sign: f64| {
                    let mut moved = Inputs::new(kind);
                    let shape = moved.inside[i].dims();
                    let by: Vec<f32> =
                        direction.iter().map(|d| (f64::from(*d) * step * sign) as f32).collect();
                    let by = Tensor::from_data(TensorData::new(by, shape), &moved.inside[i].device());
                    moved.inside[i] = moved.inside[i].clone() + by;
                    let (y, _) = run(&block, kind, &moved, &moved.used(ALL));
                    flat(y).iter().map(|y| f64::from(*y) * f64::from(*y).sin()).sum::<f64>()
                };
                let found = (loss(1.0) - loss(-1.0)) / (2.0 * step);
                let expected: f64 =
                    g.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
                let error = (found - expected).abs() / (length(&g) * length(&direction));
                assert!(error < 3e-3, "{kind:?} inside {i}: {found}, expected {expected}");
            }
        }
    }
}
