//! Every network against timm's float64 outputs and gradients, at small sizes and on real weights.

use std::sync::Mutex;

use burn::tensor::{Device, Tensor, TensorData};

use super::*;
use crate::fixtures::{self, Fixture};
use crate::method::Prompts;
use crate::ops::{Compute, Nonlinearity, Precision, Training};
use crate::safetensors::TensorFile;
use crate::train::loss::cross_entropy_sum;

const FORWARD: f64 = 1e-5;
const GRADIENT: f64 = 5e-5;
/// Batch statistics of two small images amplify rounding; timm's own f32 is off by 8e-5.
const TRAINING: f64 = 1e-3;

/// The reduced networks of the fixtures.
pub(crate) fn architecture(name: &str) -> Architecture {
    let resnet = |bottleneck, layers, channels| {
        Architecture::ResNet(ResNetConfig { bottleneck, layers, stem: 12, channels })
    };
    let vit = |image, patch, width, depth, heads, qkv_bias| {
        Architecture::Vit(VitConfig { qkv_bias, ..VitConfig::new(image, patch, width, depth, heads) })
    };
    let swin = |image, depths: &[usize], heads: &[usize], window| {
        let (depths, heads) = (depths.to_vec(), heads.to_vec());
        Architecture::Swin(SwinConfig { image, patch: 2, width: 6, depths, heads, window, stored: None })
    };
    match name {
        "resnet18" => resnet(false, [2, 2, 2, 2], [12, 16, 20, 24]),
        "resnet50" => resnet(true, [3, 4, 6, 3], [4, 6, 8, 10]),
        "vit_b16" => vit([48, 64], 16, 32, 3, 4, true),
        "vit_b32" => vit([64, 96], 32, 16, 2, 2, true),
        "vit_b16_miil" => vit([48, 48], 16, 24, 3, 3, false),
        "clip_visual_timm" => Architecture::Vit(VitConfig {
            clip: true,
            nonlinearity: Nonlinearity::QuickGelu,
            ..VitConfig::new([32, 32], 8, 32, 3, 4)
        }),
        "convnext" => {
            Architecture::ConvNext(ConvNextConfig { patch: 4, depths: [2, 2, 3, 2], dims: [12, 16, 24, 32] })
        }
        "swin" => swin([48, 48], &[2, 2, 4, 2], &[1, 2, 4, 8], 3),
        "swin_rect" => swin([24, 56], &[2, 2, 2], &[1, 2, 4], 4),
        "coatnet2" => Architecture::CoAtNet(CoAtNetConfig {
            image: [64, 96],
            stem: [6, 8],
            dims: [8, 12, 16, 24],
            depths: [2, 2, 3, 2],
            head: 4,
            layer_scale: false,
            variant: CoAtNetVariant::default(),
            stored: None,
        }),
        other => panic!("no network for fixture {other}"),
    }
}

fn network(name: &str, weights: &Weights, compute: Compute) -> Arc<dyn Backbone> {
    let classes = if name.starts_with("clip") { 20 } else { 7 };
    architecture(name).load(classes, weights, compute).unwrap()
}

/// Adds prompts and records what every block put out.
struct Probe {
    prompts: Prompts,
    watching: bool,
    exits: Mutex<Vec<Activation>>,
}

impl Hooks for Probe {
    fn prompt(&self, block: usize) -> Option<Prompt> {
        self.prompts.prompt(block)
    }

    fn watches(&self) -> bool {
        self.watching
    }

    fn exit(&self, _block: usize, x: &Activation) {
        self.exits.lock().unwrap().push(x.clone());
    }
}

struct Pass {
    logits: Tensor<2>,
    exits: Vec<Activation>,
    loss: Tensor<1>,
    input: Tensor<4>,
    prompts: Vec<Tensor<3>>,
}

/// With a hook that watches every block, or without one, when a last block may be cut short.
fn pass(
    f: &Fixture,
    network: &dyn Backbone,
    prompts: Vec<Tensor<3>>,
    watching: bool,
    device: &Device,
) -> Pass {
    let input = f.tensor::<4>("_fx.input", device).require_grad();
    let prompts: Vec<_> = prompts.into_iter().map(|p| p.autodiff().require_grad()).collect();
    let probe = Probe {
        prompts: Prompts {
            blocks: prompts.iter().cloned().map(|prompt| Some(prompt.into())).collect(),
            ..Prompts::default()
        },
        watching,
        exits: Mutex::default(),
    };
    let features = network.features(input.clone(), &probe);
    let logits = network.head().unwrap().forward(features);
    let labels: Vec<usize> = f.values("_fx.target").iter().map(|v| *v as usize).collect();
    let loss = cross_entropy_sum(logits.clone(), &labels) / labels.len() as f64;
    Pass { logits, exits: probe.exits.into_inner().unwrap(), loss, input, prompts }
}

fn check(name: &str) {
    let Some(f) = fixtures::open(&format!("{name}.safetensors")) else { return };
    let device = fixtures::device().autodiff();
    // In the portable form, in the fast one, and in the fast one that computes its blocks again.
    let forms = [(true, false), (false, false), (false, true)].map(|(portable, recompute)| Compute {
        precision: Precision::F32,
        portable,
        recompute,
    });
    for compute in forms {
        learnt(&f, name, compute, &device);
        training(&f, name, compute, &device);
        // The passes without gradients of weights take fresh, untracked networks.
        let net = network(name, &Weights::from_file(Checkpoint::open(f.0.path()).unwrap(), &device), compute);
        prompted(&f, net.as_ref(), &device);
    }
}

/// The pass without prompts: outputs, every block, gradients of image, prompts and weights.
fn learnt(f: &Fixture, name: &str, compute: Compute, device: &Device) {
    let weights = Weights::from_file(Checkpoint::open(f.0.path()).unwrap(), device).tracked();
    let net = network(name, &weights, compute);
    weights.finish().unwrap();
    let head = net.head().unwrap().dims();
    let body = weights.parameters() - head[1] * (head[0] + 1);
    assert_eq!(architecture(name).size(), [net.block_names().len(), body], "{name}: blocks and parameters");
    let blocks = survey(f, net.as_ref(), device);
    let zeros = blocks.iter().map(|b| Tensor::zeros([b.channels, b.height, b.width], device)).collect();
    let p = pass(f, net.as_ref(), zeros, true, device);
    f.assert_close(&p.logits, "_fx.logits", FORWARD);
    f.assert_close(&p.loss, "_fx.loss", FORWARD);
    exits(f, &p);
    let grads = p.loss.backward();
    f.assert_close(&p.input.grad(&grads).unwrap(), "_fx.grad_input", GRADIENT);
    for (l, prompt) in p.prompts.iter().enumerate() {
        f.assert_close(&prompt.grad(&grads).unwrap(), &format!("_fx.grad_prompt.{l}"), GRADIENT);
    }
    let mut compared = 0;
    for (name, leaf) in weights.leaves() {
        if f.0.shape(&format!("_fx.grad_param.{name}")).is_none() {
            continue;
        }
        compared += 1;
        let grad: Vec<f32> = leaf.grad(&grads).unwrap().into_data().iter::<f32>().collect();
        let expected = f.values(&format!("_fx.grad_param.{name}"));
        if name.ends_with("qkv.bias") {
            // The key's third is zero in theory and rounding noise in both: compared with the rest's scale.
            let scale = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            let most = fixtures::allowed(GRADIENT) as f32 * scale;
            assert!(grad.iter().zip(&expected).all(|(a, e)| (a - e).abs() <= most), "{name}");
        } else {
            fixtures::assert_close(&grad, &expected, GRADIENT, &name);
        }
    }
    assert!(compared > 20, "{name}: only {compared} weights' gradients are in the fixture");
}

fn survey(f: &Fixture, net: &dyn Backbone, device: &Device) -> Vec<Block> {
    let [_, _, h, w] = f.tensor::<4>("_fx.input", device).dims();
    blocks(net, [h, w], device)
}

/// The pass in training mode: batch statistics, and where they move the running ones.
fn training(f: &Fixture, name: &str, compute: Compute, device: &Device) {
    if f.0.shape("_fx.train.logits").is_none() {
        return;
    }
    let mode = Training::new(0);
    let weights = Weights::from_file(Checkpoint::open(f.0.path()).unwrap(), device).tracked();
    let weights = weights.training(mode.clone());
    let net = network(name, &weights, compute);
    let p = pass(f, net.as_ref(), Vec::new(), false, device);
    f.assert_close(&p.logits, "_fx.train.logits", TRAINING);
    f.assert_close(&p.loss, "_fx.train.loss", TRAINING);
    let grads = p.loss.backward();
    f.assert_close(&p.input.grad(&grads).unwrap(), "_fx.train.grad_input", TRAINING);
    let statistics = mode.statistics();
    assert!(statistics.len() > 10, "{name}");
    for (leaf, values) in statistics {
        f.assert_close(&values, &format!("_fx.train.buf.{leaf}"), TRAINING);
    }
}

/// Every block's output.
fn exits(f: &Fixture, p: &Pass) {
    for (l, exit) in p.exits.iter().enumerate() {
        let name = format!("_fx.block_out.{l}");
        match exit {
            Activation::Map(x) => {
                let [_, channels, height, width] = x.dims();
                // timm's Swin has its channels last.
                let last = f.0.shape(&name).unwrap()[1..] == [height, width, channels];
                let x = if last { x.clone().permute([0, 2, 3, 1]) } else { x.clone() };
                f.assert_close(&x, &name, FORWARD);
            }
            Activation::Tokens(x) => f.assert_close(x, &name, FORWARD),
        }
    }
}

/// The fixture's passes that need no gradients of weights.
fn prompted(f: &Fixture, net: &dyn Backbone, device: &Device) {
    let blocks = survey(f, net, device);
    // First pass again: every block's output.
    let p = pass(f, net, Vec::new(), true, device);
    f.assert_close(&p.logits, "_fx.logits", FORWARD);
    exits(f, &p);

    // The class token's gradient, through a prompt that covers the whole sequence.
    if blocks[0].layout == Layout::Tokens {
        let whole =
            blocks.iter().map(|b| Tensor::zeros([b.channels, 1, 1 + b.height * b.width], device)).collect();
        let p = pass(f, net, whole, false, device);
        let grads = p.loss.backward();
        for (l, prompt) in p.prompts.iter().enumerate() {
            let class_token = prompt.grad(&grads).unwrap().narrow(2, 0, 1);
            f.assert_close(&class_token, &format!("_fx.grad_prompt_cls.{l}"), GRADIENT);
        }
    }

    // Second pass: given prompts on every block.
    for watching in [true, false] {
        let prompts = (0..blocks.len()).map(|l| f.tensor(&format!("_fx.prompt.{l}"), device)).collect();
        let p = pass(f, net, prompts, watching, device);
        f.assert_close(&p.logits, "_fx.prompted.logits", FORWARD);
        f.assert_close(&p.loss, "_fx.prompted.loss", FORWARD);
        let grads = p.loss.backward();
        f.assert_close(&p.input.grad(&grads).unwrap(), "_fx.prompted.grad_input", GRADIENT);
        for (l, prompt) in p.prompts.iter().enumerate() {
            f.assert_close(&prompt.grad(&grads).unwrap(), &format!("_fx.prompted.grad_prompt.{l}"), GRADIENT);
        }
    }
}

#[test]
fn resnet18() {
    check("resnet18");
}

#[test]
fn resnet50() {
    check("resnet50");
}

#[test]
fn vit_b16() {
    check("vit_b16");
}

#[test]
fn vit_b32() {
    check("vit_b32");
}

#[test]
fn vit_b16_miil() {
    check("vit_b16_miil");
}

#[test]
fn convnext() {
    check("convnext");
}

#[test]
fn swin() {
    check("swin");
}

/// Maps that windows don't divide, an odd side to merge, windows larger than the map.
#[test]
fn swin_rect() {
    check("swin_rect");
}

#[test]
fn coatnet2() {
    check("coatnet2");
}

/// In training mode a Swin leaves paths out; the first block's never, and in evaluation mode none.
#[test]
fn swin_drops_paths_in_training_only() {
    let Some(f) = fixtures::open("swin.safetensors") else { return };
    let device = fixtures::device().autodiff();
    let exits = |seed: Option<u64>| {
        let mut weights = Weights::from_file(Checkpoint::open(f.0.path()).unwrap(), &device).tracked();
        if let Some(seed) = seed {
            weights = weights.training(Training::new(seed));
        }
        let p = pass(&f, network("swin", &weights, Compute::default()).as_ref(), Vec::new(), true, &device);
        let values = |exit: Activation| match exit {
            Activation::Map(x) => x.into_data().iter::<f32>().collect::<Vec<_>>(),
            Activation::Tokens(x) => x.into_data().iter::<f32>().collect(),
        };
        p.exits.into_iter().map(values).collect::<Vec<_>>()
    };
    let evaluated = exits(None);
    let trained: Vec<_> = (0..8).map(|seed| exits(Some(seed))).collect();
    assert!(trained.iter().all(|t| t[0] == evaluated[0]));
    assert!(trained.iter().any(|t| t.last() != trained[0].last()));
    assert_eq!(exits(Some(5)), trained[5]);
}

/// CLIP's image tower under timm's names: its head is the projection.
#[test]
fn clip_visual_timm() {
    let Some(f) = fixtures::open("clip_visual_timm.safetensors") else { return };
    let device = fixtures::device();
    for portable in [true, false] {
        let weights = Weights::from_file(Checkpoint::open(f.0.path()).unwrap(), &device);
        let compute = Compute { portable, ..Compute::default() };
        let net = network("clip_visual_timm", &weights, compute);
        weights.finish().unwrap();
        let features = net.features(f.tensor("_fx.input", &device), &NoHooks);
        f.assert_close(&net.head().unwrap().forward(features), "_fx.logits", FORWARD);
    }
}

/// Real weights at full size: features and logits of four images, as timm computed them.
#[test]
fn real_weights_agree_with_timm() {
    for name in ["resnet18", "vit_tiny_patch16_224"] {
        let Some(dir) = fixtures::path(&format!("data/backbones/{name}")) else { return };
        let Some(parity) = fixtures::path(&format!("data/parity/{name}.safetensors")) else { return };
        let f = Fixture(TensorFile::open(parity).unwrap());
        let device = fixtures::device();
        let options = LoadOptions { device: device.clone(), ..LoadOptions::plain(dir.display().to_string()) };
        let loaded = load(&options, &mut ()).unwrap();
        let features = loaded.network.features(f.tensor("input", &device), &NoHooks);
        f.assert_close(&features, "features", FORWARD);
        f.assert_close(&loaded.network.head().unwrap().forward(features), "logits", FORWARD);
    }
}

/// timm's other CoAtNets have no fixture; `benches/peers/full_size.py` compares some. Here: both forms of all of them give
/// the same, small and on made-up weights, and have the parameters that the formula counts.
///
/// Where shortcuts take maxima, two pixels of a window can differ by less than the forms do, and each form hands the gradient
/// to another: of forty seeds and widths five do where convolutions read windows, seven where they take squares. So of such a
/// network's seeds with a wide stem half have to agree in their gradients, and all in their features. The narrow one has no
/// such pair.
#[test]
fn coatnets_agree_in_both_forms() {
    let names = [
        "pico_rw",
        "nano_rw",
        "nano_cc",
        "0_rw",
        "bn_0_rw",
        "1_rw",
        "2_rw",
        "3_rw",
        "rmlp_nano_rw",
        "rmlp_0_rw",
        "rmlp_1_rw",
        "rmlp_1_rw2",
    ];
    for name in names {
        let network = |stem: [usize; 2]| {
            let args = serde_json::json!({
                "img_size": [64, 96], "embed_dim": [32, 64, 96, 128], "depths": [2, 2, 2, 1], "stem_width": stem,
            });
            let architecture = Architecture::named(&format!("coatnet_{name}_224")).unwrap();
            architecture.with_args(args.as_object().unwrap()).unwrap()
        };
        let outcomes = |architecture: &Architecture, seed| {
            [true, false].map(|portable| outcome(architecture, portable, seed))
        };
        let check = |[portable, fast]: [Vec<Vec<f32>>; 2]| {
            for (i, (fast, portable)) in fast.iter().zip(&portable).enumerate() {
                fixtures::assert_close(fast, portable, GRADIENT, &format!("{name} {i}"));
            }
        };
        check(outcomes(&network([16, 24]), 7));
        let wide = network([32, 40]);
        if name != "rmlp_1_rw" {
            check(outcomes(&wide, 8));
            continue;
        }
        let tied = |seed| {
            let [portable, fast] = outcomes(&wide, seed);
            fixtures::assert_close(&fast[0], &portable[0], GRADIENT, name);
            let differs = |(fast, portable): (&Vec<f32>, &Vec<f32>)| {
                fixtures::error(fast, portable) > fixtures::allowed(GRADIENT)
            };
            fast.iter().zip(&portable).any(differs)
        };
        let tied = (8..14).filter(|seed| tied(*seed)).count();
        assert!(tied <= 3, "{tied} of six seeds differ");
    }
}

/// A small network's features, and the gradients of its image and of a prompt for each block.
fn outcome(architecture: &Architecture, portable: bool, seed: u64) -> Vec<Vec<f32>> {
    let device = fixtures::device().autodiff();
    let weights = Weights::random(seed, &device);
    let compute = Compute { precision: Precision::F32, portable, recompute: false };
    let net = architecture.load(0, &weights, compute).unwrap();
    assert_eq!(architecture.size(), [net.block_names().len(), weights.parameters()], "{architecture:?}");
    let blocks = blocks(net.as_ref(), [64, 96], &device);
    let prompt = |b: &Block, i: usize| {
        let count = b.channels * b.height * b.width;
        let values: Vec<f32> = (0..count).map(|v| ((v + i) as f32).sin() * 0.1).collect();
        let shape = [b.channels, b.height, b.width];
        Tensor::<3>::from_data(TensorData::new(values, shape), &device).require_grad()
    };
    let prompts: Vec<_> = blocks.iter().enumerate().map(|(i, b)| prompt(b, i)).collect();
    let hooks = Prompts {
        blocks: prompts.iter().cloned().map(|prompt| Some(prompt.into())).collect(),
        ..Prompts::default()
    };
    let values: Vec<f32> = (0..2 * 3 * 64 * 96).map(|v| (v as f32 * 0.7).sin()).collect();
    let x = Tensor::<4>::from_data(TensorData::new(values, [2, 3, 64, 96]), &device).require_grad();
    let features = net.features(x.clone(), &hooks);
    let loss = (features.clone() * features.clone().sin()).sum();
    let grads = loss.backward();
    let mut all = vec![features.flatten::<1>(0, 1), x.grad(&grads).unwrap().flatten(0, 3)];
    all.extend(prompts.iter().map(|p| p.grad(&grads).unwrap().flatten::<1>(0, 2)));
    all.into_iter().map(|t| t.into_data().iter::<f32>().collect()).collect()
}

/// The table of `spec/blocks_224.json` comes out of a dry run.
#[test]
fn blocks_at_full_size() {
    let Some(path) = fixtures::path("spec/blocks_224.json") else { return };
    let table: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for (arch, key) in [
        ("resnet18", "resnet18.tv_in1k"),
        ("resnet50", "resnet50.tv_in1k"),
        ("vit_base_patch32_224", "vit_base_patch32_224.augreg_in21k_ft_in1k"),
        ("convnext_base", "convnext_base.fb_in22k"),
        ("swin_base_patch4_window7_224", "swin_base_patch4_window7_224.ms_in22k"),
        ("coatnet_2_rw_224", "coatnet_2_rw_224.sw_in12k"),
    ] {
        let options =
            LoadOptions { random_weights: true, device: fixtures::device(), ..LoadOptions::plain(arch) };
        let loaded = load(&options, &mut ()).unwrap();
        let found: Vec<_> =
            loaded.blocks.iter().map(|b| (b.name.clone(), b.channels, b.height, b.width)).collect();
        let expected: Vec<(String, usize, usize, usize)> = rows(&table, key);
        assert_eq!(found, expected, "{arch}");
    }
}

fn rows(table: &serde_json::Value, key: &str) -> Vec<(String, usize, usize, usize)> {
    let n = |v: &serde_json::Value| v.as_u64().unwrap() as usize;
    let row =
        |b: &serde_json::Value| (b["name"].as_str().unwrap().to_owned(), n(&b["C"]), n(&b["H"]), n(&b["W"]));
    table[key].as_array().unwrap().iter().map(row).collect()
}

/// bf16 rounds the operands of products, and in a ResNet's fast form the stream between its blocks: close to f32, and not
/// equal to it, in either form.
///
/// One rounding is 2^-9 relative at worst and 2^-10.3 in the mean square. Errors of a network's products add like
/// independent ones: `√(2 · products) · 2^-10.3` is 0.5 % of the logits for the 18 products of three transformer
/// blocks and 0.8 % for ResNet-50's 53; the largest of some hundred values is three times that. Gradients pass
/// twice as many, and in a ReLU network a rounding that flips a gate changes them by more.
///
/// A stream in bf16 adds a rounding for each of ResNet-50's 16 blocks, where its output is stored, and one for each of
/// the 4 shortcuts with a convolution: `√(2 · 53 + 16 + 4) · 2^-10.3` is 0.9 % in the place of 0.8 % (ResNet-18, 20
/// products, 8 blocks, 3 shortcuts: 0.6 % for 0.5 %). So the bounds on logits, three times as much, hold with it.
/// (The fixtures' networks are narrow. Where 3 × 3 kernels have 32 channels and more, 13 products of either network are
/// computed from squares, with roundings that count for 1 + 2 · 25/9 instead of 2: 0.8 % for ResNet-18, 1.1 % for
/// ResNet-50. `conv_parity` has networks with such.)
///
/// Gradients of a ReLU network are off by what gates flip: a value with an error of `ε` of its spread changes its sign
/// with a probability of `arccos(1 - ε²/2) / π = ε / π`, and about that share of the gradient's square is wrong behind
/// each ReLU. With two thirds of the error above, its mean over the depth, ResNet-50's 49 ReLUs make
/// `√(49 · 0.006 / π)`, 31 % (with the stream in f32 29 %), and ResNet-18's 17 make `√(17 · 0.004 / π)`, 15 %; the
/// bounds are twice that, since the fixtures' networks have few gates, and one counts for much.
#[test]
fn bf16_stays_near_f32() {
    for (name, bounds) in [
        ("vit_b16", [2e-2, 5e-2]),
        ("resnet18", [2e-2, 3e-1]),
        ("resnet50", [3e-2, 6e-1]),
        ("convnext", [2e-2, 5e-2]),
        ("swin", [4e-2, 1e-1]),
        ("coatnet2", [2e-2, 5e-2]),
    ] {
        let Some(f) = fixtures::open(&format!("{name}.safetensors")) else { return };
        let device = fixtures::device().autodiff();
        let run = |precision, portable| {
            let weights = Weights::from_file(Checkpoint::open(f.0.path()).unwrap(), &device);
            let net = network(name, &weights, Compute { precision, portable, recompute: false });
            let p = pass(&f, net.as_ref(), Vec::new(), false, &device);
            let grads = p.loss.backward();
            let gradient: Vec<f32> = p.input.grad(&grads).unwrap().into_data().iter::<f32>().collect();
            (p.logits.without_autodiff().into_data().iter::<f32>().collect::<Vec<_>>(), gradient)
        };
        let exact = run(Precision::F32, true);
        for portable in [true, false] {
            let rounded = run(Precision::Bf16, portable);
            for ((a, b), (what, bound)) in [(&rounded.0, &exact.0), (&rounded.1, &exact.1)]
                .into_iter()
                .zip(["logits", "gradient"].into_iter().zip(bounds))
            {
                // In the mean square: the largest of many gradients may be one gate's.
                let norm =
                    |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                let error = norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied());
                println!("{name} portable {portable} {what}: {error:.2e}");
                assert!(error > 1e-5 && error < bound, "{name} portable {portable} {what}: {error}");
            }
        }
    }
}

/// A ResNet whose blocks are watched runs them one by one, else all at once: that gives the same. Forwards the stream is
/// rounded at the same places. Backwards, in bf16, all at once rounds a prompt's gradient before it is summed, and
/// once more what a convolution on the shortcut adds; below the first place where that tells, further roundings fall
/// differently. No gate flips, so the two differ at most like computations with independent roundings of each product's
/// gradient and each block's: by `√(2 · (products + blocks)) · 2^-10.3`, 0.6 % and 0.9 %; bounds are three times that.
#[test]
fn a_watched_resnet_computes_the_same() {
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let flat = |x: Tensor<1>| x.without_autodiff().into_data().iter::<f32>().collect::<Vec<_>>();
    for (name, products) in [("resnet18", 20_u32), ("resnet50", 53)] {
        let Some(f) = fixtures::open(&format!("{name}.safetensors")) else { return };
        let device = fixtures::device().autodiff();
        for (precision, recompute) in
            [Precision::F32, Precision::Bf16].map(|p| [(p, false), (p, true)]).concat()
        {
            let compute = Compute { precision, portable: false, recompute };
            let weights = Weights::from_file(Checkpoint::open(f.0.path()).unwrap(), &device);
            let net = network(name, &weights, compute);
            let [watched, free] = [true, false].map(|watching| {
                let prompts = (0..net.block_names().len())
                    .map(|l| f.tensor(&format!("_fx.prompt.{l}"), &device))
                    .collect();
                let p = pass(&f, net.as_ref(), prompts, watching, &device);
                assert_eq!(p.exits.is_empty(), !watching);
                let grads = p.loss.backward();
                let mut all = vec![flat(p.logits.flatten(0, 1))];
                all.push(flat(p.input.grad(&grads).unwrap().flatten(0, 3)));
                all.extend(p.prompts.iter().map(|p| flat(p.grad(&grads).unwrap().flatten(0, 2))));
                all
            });
            for (i, (free, watched)) in free.iter().zip(&watched).enumerate() {
                let what = format!("{name} {compute:?} {i}");
                let error = norm(&mut free.iter().zip(watched).map(|(a, b)| a - b))
                    / norm(&mut watched.iter().copied());
                println!("{what}: {error:.2e}");
                match (i, precision) {
                    (0, _) => fixtures::assert_close(free, watched, FORWARD, &what),
                    (_, Precision::F32) => fixtures::assert_close(free, watched, GRADIENT, &what),
                    (_, Precision::Bf16) => {
                        let roundings = f64::from(2 * (products + net.block_names().len() as u32));
                        assert!(error < 3.0 * roundings.sqrt() * 2_f64.powf(-10.3), "{what}: {error}");
                    }
                }
            }
        }
    }
}
