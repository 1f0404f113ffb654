//! What every method promises, on every backbone it is for: counts by formula, starts, files, folding, precisions, repetition.
//! A new method is a row of [`learnt`] and, if it is not for every network, one of [`runs_on`].

use burn::tensor::{Tensor, TensorData};

use super::tests::{needs_clip, small};
use super::*;
use crate::adapter::Adapter;
use crate::backbone::parity::architecture;
use crate::backbone::{NoHooks, made_up};
use crate::fixtures::assert_close;
use crate::head::Head;
use crate::model::{Frozen, Predictor};
use crate::ops::{Compute, Precision};
use crate::params::{Group, normal};
use crate::train::setup::init_params;
use crate::train::step::{Input, Stepper};

const NETWORKS: [(&str, [usize; 2]); 5] = [
    ("vit_b16", [48, 64]),
    ("resnet18", [64, 96]),
    ("convnext", [32, 64]),
    ("swin", [48, 48]),
    ("coatnet2", [64, 96]),
];
const CLASSES: usize = 5;

/// Whether a method is for a network.
fn runs_on(method: &str, network: &str) -> bool {
    match method {
        "vpt-shallow" | "vpt-deep" => ["vit_b16", "swin"].contains(&network),
        "vpt-pad" | "vpt-below" => ["resnet18", "convnext"].contains(&network),
        // Its keys and values are for any attention.
        "e2vpt" => !["resnet18", "convnext"].contains(&network),
        _ => true,
    }
}

/// A method's small settings for a network.
fn settings(name: &str, network: &str) -> MethodConfig {
    let mut method = small(name);
    if let MethodConfig::E2vpt(m) = &mut method {
        (m.tokens, m.segments) = if network == "coatnet2" { (0, 2) } else { (3, 2) };
    }
    method
}

/// Parameters in prompts, by the formulas of `lotep methods`.
fn learnt(name: &str, network: &str, loaded: &Loaded) -> usize {
    let [h, w] = loaded.config.preprocess.image;
    let blocks = &loaded.blocks;
    let depth = (loaded.config.architecture.default_depth_ratio() * blocks.len() as f64 + 1e-9) as usize;
    let deep = |count: &dyn Fn([usize; 3], usize) -> usize| {
        let block = |(l, b): (usize, &Block)| count([b.channels, b.height, b.width], l + 1);
        count([3, h, w], 0) + blocks.iter().take(depth).enumerate().map(block).sum::<usize>()
    };
    // The image and the first block have 6, the last prompted one 1.
    let rank = |l: usize| match (l, depth) {
        (0 | 1, _) | (_, 1) => 6,
        _ => (3.5 + 2.5 * (std::f64::consts::PI * (l - 1) as f64 / (depth - 1) as f64).cos() - 1e-9).ceil()
            as usize,
    };
    let widths = || blocks.iter().map(|b| b.channels);
    match name {
        "linear-probe" => 0,
        "full" => loaded.body_parameters,
        "lora" => {
            let layer = |l: &Layer| {
                let (out, inputs) = (l.shape[0], l.shape[1]);
                let side = l.shape.get(2).map_or(1, |side| side * side);
                match network {
                    "vit_b16" | "swin" if l.name.ends_with("qkv") => 2 * 3 * (inputs + out / 3),
                    "coatnet2" if l.name.ends_with("qkv") => 3 * (inputs + out),
                    "convnext" => 3 * (inputs + out),
                    "resnet18" => 3 * (inputs * side + out),
                    _ => 0,
                }
            };
            loaded.layers.iter().map(layer).sum()
        }
        "lor-vp" => 3 * 4 * (h + w),
        "border" => 6 * 5 * (h + w - 10),
        "ilm-vp" => 3 * (h * w - 21 * 21),
        "auto-vp" => 3 * (h * w - 21 * 21) + 1,
        "lotep-cp" => deep(&|[c, h, w], l| rank(l) * (c + h + w)),
        "lotep-tk" => deep(&|[c, h, w], l| rank(l) * (c + h + w) + rank(l).pow(3)),
        "naive-deep" => deep(&|[c, h, w], _| c * h * w),
        "grouped" => deep(&|[c, h, w], _| c.min(8) * h * w),
        "deep-lor-vp" => deep(&|[c, h, w], _| c * h.min(w).min(4) * (h + w)),
        "vpt-shallow" => 10 * blocks[0].channels,
        "vpt-deep" => 10 * widths().sum::<usize>(),
        "vpt-pad" => 6 * 16 * (h + w + 32),
        "vpt-below" => h * w,
        "e2vpt" => {
            let tokens = if network == "coatnet2" { 0 } else { 3 };
            tokens * widths().sum::<usize>()
                + 5 * blocks.iter().filter(|b| b.heads.is_some()).map(|b| b.channels).sum::<usize>()
        }
        other => panic!("no formula for {other}: a row here"),
    }
}

/// Those that begin as the unchanged network.
fn starts_unchanged(name: &str) -> bool {
    !["border", "ilm-vp", "auto-vp", "vpt-shallow", "vpt-deep", "vpt-pad", "vpt-below", "e2vpt"]
        .contains(&name)
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.without_autodiff().into_data().iter::<f32>().collect()
}

fn pixels(method: &MethodConfig, loaded: &Loaded) -> Tensor<4> {
    let [h, w] = method.input(loaded.config.preprocess.image);
    let at = |i: usize| 0.5 + 0.5 * (i as f32 * 0.37).sin();
    let all: Vec<f32> = (0..3 * 3 * h * w).map(at).collect();
    Tensor::from_data(TensorData::new(all, [3, 3, h, w]), &loaded.device)
}

/// The methods that need no text tower.
fn plain() -> impl Iterator<Item = &'static str> {
    MethodConfig::NAMES.into_iter().filter(|name| !needs_clip(name))
}

/// Every method that is for a network, with what it learns as it begins.
fn each(run: impl Fn(&str, &str, &Loaded, &MethodConfig, Head, Params)) {
    for (network, image) in NETWORKS {
        let loaded = made_up(architecture(network), image);
        for name in plain() {
            let mut method = settings(name, network);
            method.resolve(&Site::of(&loaded));
            let mapping = method.default_mapping();
            let head = Head { mapping, sources: 1 };
            let params = init_params(&loaded, &method, head, CLASSES, 3);
            if runs_on(name, network) {
                let what = format!("{name} on {network}");
                run(&what, network, &loaded, &method, head, params.unwrap_or_else(|e| panic!("{what}: {e}")));
            } else {
                let refused = params.unwrap_err().to_string();
                assert!(refused.contains(name.split('-').next().unwrap()), "{name} on {network}: {refused}");
            }
        }
    }
}

/// Values away from the start, small enough for a network of them to be well behaved.
fn moved(params: &Params, loaded: &Loaded) -> Params {
    let (mut params, mut rng) = (params.clone(), seeded(9, 0));
    for param in params.iter_mut().filter(|p| p.group != Group::Fixed) {
        let n = param.value.dims()[0];
        let by = Tensor::from_data(TensorData::new(normal(n, 0.02, &mut rng), [n]), &loaded.device);
        param.value = param.value.clone() + by;
    }
    params
}

#[test]
fn parameters_are_counted_by_formula_and_starts_are_what_they_promise() {
    each(|what, network, loaded, method, _, params| {
        assert_eq!(params.count(Group::Prompt), learnt(method.name(), network, loaded), "{what}");
        let frozen = Frozen::new(loaded);
        let prompts = method.prompts(&Site::of(loaded), &params);
        let found = values(frozen.features(pixels(method, loaded), &prompts));
        if method.input(loaded.config.preprocess.image) != loaded.config.preprocess.image {
            return;
        }
        let plain = values(frozen.features(pixels(method, loaded), &NoHooks));
        let most = |v: &[f32]| v.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let apart: Vec<f32> = found.iter().zip(&plain).map(|(a, b)| a - b).collect();
        if starts_unchanged(method.name()) {
            assert!(most(&apart) <= 1e-6 * most(&plain), "{what}: {}", most(&apart));
        } else {
            assert!(most(&apart) > 1e-4 * most(&plain), "{what}: {}", most(&apart));
        }
    });
}

/// An adapter is read back to the same scores, to the bit; and what is folded or merged for predictions gives what was trained.
#[test]
fn adapters_are_kept_and_merged() {
    each(|what, _, loaded, method, head, params| {
        let params = moved(&params, loaded);
        let scores = |params: &Params| {
            let predictor = Predictor::adapted(loaded, method, head, params, None).unwrap();
            values(predictor.logits(pixels(method, loaded)))
        };
        let merged = scores(&params);
        let dir = tempfile::tempdir().unwrap();
        let classes = (0..CLASSES).map(|i| i.to_string()).collect();
        let mut adapter = Adapter::new(loaded, method.clone(), head, classes, params.clone()).unwrap();
        adapter.save(dir.path()).unwrap();
        let read = Adapter::load(dir.path(), loaded).unwrap();
        assert_eq!(read.config.method, *method, "{what}");
        assert_eq!(scores(&read.params), merged, "{what}");

        let site = Site::of(loaded);
        let network = method.training_network(loaded, &params, &Training::new(0)).unwrap();
        let frozen = Frozen::new(loaded);
        // Full fine-tuning is one network in training and another, with the statistics that it has seen, afterwards.
        if method.name() == "full" {
            return;
        }
        let frozen = network.map_or(frozen.clone(), |network| frozen.with_network(network));
        let features = frozen.features(pixels(method, loaded), &method.prompts(&site, &params));
        let trained = values(head.logits(frozen.network(), &params, features));
        assert_close(&merged, &trained, 2e-5, what);
    });
}

/// bfloat16 rounds the operands of products alone: near f32's features, and not the same.
#[test]
fn bf16_is_near_f32() {
    for (network, image) in NETWORKS {
        let loaded = made_up(architecture(network), image);
        let rough = Compute { precision: Precision::Bf16, ..Compute::default() };
        let weights = loaded.weights().unwrap();
        let rough = loaded.config.architecture.load(CLASSES, &weights, rough).unwrap();
        for name in plain().filter(|name| runs_on(name, network) && *name != "full") {
            let mut method = settings(name, network);
            let site = Site::of(&loaded);
            method.resolve(&site);
            let params = moved(&method.init(&site, 3).unwrap(), &loaded);
            let prompts = method.prompts(&site, &params);
            let frozen = Frozen::new(&loaded);
            let exact = values(frozen.features(pixels(&method, &loaded), &prompts));
            let rounded =
                values(frozen.with_network(rough.clone()).features(pixels(&method, &loaded), &prompts));
            let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let error =
                norm(&mut rounded.iter().zip(&exact).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied());
            assert!(error > 1e-5 && error < 5e-2, "{name} on {network}: {error}");
        }
    }
}

/// A method with dropout where it has some.
fn dropping(mut method: MethodConfig) -> MethodConfig {
    match &mut method {
        MethodConfig::Lora(m) => m.dropout = 0.3,
        MethodConfig::VptShallow(m) | MethodConfig::VptDeep(m) => m.dropout = 0.3,
        MethodConfig::E2vpt(m) => m.dropout = 0.3,
        _ => {}
    }
    method
}

/// The same step gives the same gradients to the bit, and in parts the same but for the order of sums; what is dropped is
/// another for every step.
#[test]
fn steps_are_repeatable() {
    each(|what, _, loaded, method, head, params| {
        let params = moved(&params, loaded);
        let labels = [0, 3, 1];
        let gradients = |method: &MethodConfig, seed: Option<u64>, parts: &[usize]| -> Vec<Vec<f32>> {
            let (frozen, site) = (Frozen::new(loaded), Site::of(loaded));
            let mut stepper = match seed {
                Some(seed) => Stepper::seeded(&frozen, method, head, site, seed),
                None => Stepper::new(&frozen, method, head, site),
            };
            let mut first = 0;
            for part in parts {
                let part_of = pixels(method, loaded).narrow(0, first, *part);
                stepper.accumulate(&params, Input::Pixels(part_of), &labels[first..first + part]).unwrap();
                first += part;
            }
            stepper.mean_gradients().map(values).collect()
        };
        let with = dropping(method.clone());
        let whole = gradients(&with, Some(5), &[3]);
        assert_eq!(gradients(&with, Some(5), &[3]), whole, "{what}");
        // Batch norms see a part at a time.
        if method.name() != "full" {
            for (part, whole) in gradients(&with, Some(5), &[1, 2]).iter().zip(&whole) {
                assert_close(part, whole, 5e-5, what);
            }
        }
        if with != *method
            && with.prompts(&Site::of(loaded), &params).tokens.len() + usize::from(method.name() == "lora")
                > 0
        {
            assert_ne!(gradients(&with, Some(6), &[3]), whole, "{what}: another step");
            assert_ne!(gradients(method, Some(5), &[3]), whole, "{what}: no dropout");
            let evaluated = gradients(&with, None, &[3]);
            for (evaluated, without) in evaluated.iter().zip(gradients(method, None, &[3])) {
                assert_close(evaluated, &without, 5e-5, &format!("{what}: evaluated"));
            }
        }
    });
}
