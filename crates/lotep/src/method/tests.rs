//! What every method promises: counts by formula, starts, gradients, refusals.

use burn::tensor::{Tensor, TensorData};

use super::*;
use crate::backbone::parity::architecture;
use crate::backbone::{Layout, made_up};
use crate::fixtures;
use crate::model::Frozen;
use crate::params::{Group, normal};

fn site<'a>(image: [usize; 2], blocks: &'a [Block], ratio: f64, device: &'a Device) -> Site<'a> {
    Site { image, blocks, std: [1.0; 3], default_depth_ratio: ratio, device, loaded: None }
}

/// Those that start with a visible frame.
const FRAMES: [&str; 3] = ["border", "ilm-vp", "auto-vp"];

/// Whether it needs CLIP's text tower: `train/clip_tests.rs` has these.
pub(super) fn needs_clip(name: &str) -> bool {
    METHODS.iter().any(|m| m.name == name && m.clip)
}

/// A method with settings that images of 32 pixels allow.
pub(super) fn small(name: &str) -> MethodConfig {
    let mut method = MethodConfig::named(name).unwrap();
    match &mut method {
        MethodConfig::Lora(m) => m.rank = 3,
        MethodConfig::Border(m) => m.border = 5,
        MethodConfig::IlmVp(m) => m.size = 21,
        MethodConfig::AutoVp(m) => (m.size, m.scale) = (21, 1.3),
        _ => {}
    }
    method
}

fn counts(blocks: &[Block], ratio: f64, change: impl Fn(&mut Lotep)) -> [usize; 2] {
    let device = Device::flex();
    let site = site([224, 224], blocks, ratio, &device);
    let mut config = Lotep::default();
    change(&mut config);
    [MethodConfig::LotepCp(config.clone()), MethodConfig::LotepTk(config)]
        .map(|m| m.init(&site, 0).unwrap().count(Group::Prompt))
}

fn vit(side: usize) -> Vec<Block> {
    let block = |i: usize| Block {
        name: format!("blocks.{i}"),
        channels: 768,
        height: side,
        width: side,
        layout: Layout::Tokens,
        heads: Some(12),
    };
    (0..12).map(block).collect()
}

/// `spec/methods.md` 0.1: ViT-B/16 with 200 classes.
#[test]
fn table_4_of_the_paper() {
    let head = 768 * 200 + 200;
    assert_eq!(counts(&vit(14), 0.4, |_| {}).map(|n| n + head), [168_446, 169_031]);
    let ha = |m: &mut Lotep| (m.input_prompt, m.rank_denominator) = (false, rank::RankDenominator::Depth);
    assert_eq!(counts(&vit(14), 0.4, ha).map(|n| n + head), [168_128, 168_632]);
    let l4 = |m: &mut Lotep| (m.input_prompt, m.vit_geometry) = (false, VitGeometry::Sequence);
    assert_eq!(counts(&vit(14), 0.4, l4).map(|n| n + head), [168_290, 168_659]);
    let constant = |m: &mut Lotep| {
        (m.input_prompt, m.rank_schedule, m.depth_ratio) = (false, rank::RankSchedule::Constant, Some(0.25));
    };
    assert_eq!(counts(&vit(14), 0.4, constant).map(|n| n + head), [168_128, 168_776]);
    assert_eq!(counts(&vit(7), 0.4, |_| {}), [14_436, 15_021]);
}

/// `spec/methods.md` 0.2, every backbone of the paper, and every depth of the fixture.
#[test]
fn per_model_tables() {
    let Some(table) = fixtures::json("methods/prompt_param_counts_r0_6.json") else { return };
    for (model, ratio, expected) in [
        ("resnet18", 0.8, [6_902, 7_711]),
        ("resnet50", 0.8, [26_838, 28_223]),
        ("vit_b16", 0.4, [14_646, 15_231]),
        ("vit_b32", 0.4, [14_436, 15_021]),
        ("swin_b", 0.2, [6_594, 7_179]),
        ("convnext_base", 0.2, [10_134, 11_007]),
        ("coatnet2", 0.2, [7_050, 7_635]),
    ] {
        let shapes: Vec<[usize; 3]> = serde_json::from_value(table[model]["blocks"].clone()).unwrap();
        let blocks: Vec<Block> = shapes
            .iter()
            .map(|&[channels, height, width]| Block {
                name: String::new(),
                channels,
                height,
                width,
                layout: Layout::Map,
                heads: None,
            })
            .collect();
        assert_eq!(counts(&blocks, ratio, |_| {}), expected, "{model}");
        for row in table[model]["rows"].as_array().unwrap() {
            let n = |key: &str| row[key].as_u64().unwrap() as usize;
            let depth = n("d") as f64 / blocks.len() as f64;
            let found = counts(&blocks, depth, |m| m.input_prompt = false);
            assert_eq!(found, [n("cp"), n("tucker")], "{model} d={}", n("d"));
        }
    }
}

#[test]
fn lor_vp_has_6_times_side_times_rank() {
    let (device, blocks) = (Device::flex(), vit(14));
    let site = site([224, 224], &blocks, 0.4, &device);
    let params = MethodConfig::LorVp(LorVp::default()).init(&site, 0).unwrap();
    assert_eq!(params.count(Group::Prompt), 5_376);
}

/// `spec/methods.md` 1.1 and 6: C·H·W, g·H·W, C·r·(H + W) and n·C for each prompted block, and the image's.
#[test]
fn baselines_have_the_parameters_of_their_formulas() {
    let (device, blocks) = (Device::flex(), vit(14));
    let site = site([224, 224], &blocks, 0.4, &device);
    let count = |json: serde_json::Value| {
        let method: MethodConfig = serde_json::from_value(json).unwrap();
        method.init(&site, 0).unwrap().count(Group::Prompt)
    };
    let (grid, image) = (14 * 14, 224 * 224);
    assert_eq!(count(serde_json::json!({"method": "naive-deep"})), 4 * 768 * grid + 3 * image);
    let off = serde_json::json!({"method": "naive-deep", "input_prompt": false, "depth_ratio": 0.1});
    assert_eq!(count(off), 768 * grid);
    let grouped = serde_json::json!({"method": "grouped", "groups": 5});
    assert_eq!(count(grouped), 4 * 5 * grid + 3 * image);
    let grouped = serde_json::json!({"method": "grouped", "groups": 2, "rank": 3});
    assert_eq!(count(grouped), 4 * 2 * 3 * 28 + 2 * 3 * 448);
    assert_eq!(count(serde_json::json!({"method": "deep-lor-vp"})), 4 * 768 * 4 * 28 + 3 * 4 * 448);
    assert_eq!(count(serde_json::json!({"method": "border"})), 12 * 30 * (224 - 30));
    for framed in ["ilm-vp", "auto-vp"] {
        let off = serde_json::json!({"method": framed, "size": 32, "train_scale": false});
        let off = if framed == "auto-vp" { off } else { serde_json::json!({"method": framed, "size": 32}) };
        assert_eq!(count(off), 147_456, "{framed}");
    }
    assert_eq!(count(serde_json::json!({"method": "auto-vp"})), 3 * (image - 128 * 128) + 1);
    assert_eq!(count(serde_json::json!({"method": "vpt-deep", "tokens": 50})), 12 * 50 * 768);
    assert_eq!(count(serde_json::json!({"method": "vpt-shallow", "tokens": 7})), 7 * 768);
    for (tokens, key_values, parameters) in
        [(5, 5, 92_245), (10, 5, 138_410), (10, 10, 184_490), (32, 5, 341_536), (1, 1, 18_449)]
    {
        let (tokens, key_values) = (serde_json::json!(tokens), serde_json::json!(key_values));
        let e2vpt = serde_json::json!({
            "method": "e2vpt", "tokens": tokens, "key_values": key_values, "masks": true
        });
        assert_eq!(count(e2vpt), parameters);
    }
}

/// Seven channels in three groups: 0 to 2, 3 and 4, 5 and 6.
#[test]
fn successive_channels_share_a_map() {
    let device = Device::flex();
    let block =
        Block { name: "b".into(), channels: 7, height: 1, width: 2, layout: Layout::Map, heads: None };
    let blocks = [block];
    let site = site([4, 4], &blocks, 1.0, &device);
    let method = Grouped { groups: 3, input_prompt: false, ..Grouped::default() };
    let mut params = method.init(&site, 0).unwrap();
    params.load("test", |_| Ok(((0..6).map(|v| v as f32).collect(), vec![3, 1, 2]))).unwrap();
    let prompt = method.prompts(&site, &params).blocks[0].clone().unwrap();
    let values: Vec<f32> = prompt.whole().into_data().iter::<f32>().collect();
    assert_eq!(values, [0., 1., 0., 1., 0., 1., 2., 3., 2., 3., 4., 5., 4., 5.]);
}

/// Training starts from the unchanged network where the method says so: every added prompt is exactly zero.
#[test]
fn prompts_start_at_zero_and_seeds_differ() {
    let (device, blocks) = (Device::flex(), vit(14));
    let site = site([32, 48], &blocks, 0.4, &device);
    for name in MethodConfig::NAMES {
        let method = small(name);
        assert_eq!(method.name(), name);
        if ["full", "lora", "vpt-pad", "vpt-below"].contains(&name) || needs_clip(name) {
            assert!(method.init(&site, 3).unwrap_err().to_string().contains("a network"));
            continue;
        }
        let params = method.init(&site, 3).unwrap();
        let prompts = method.prompts(&site, &params);
        let begins = if FRAMES.contains(&name) { &[] } else { prompts.image.as_slice() };
        let blocks = prompts.blocks.iter().flatten().map(|prompt| prompt.clone().whole());
        for prompt in begins.iter().cloned().chain(blocks) {
            assert!(prompt.into_data().iter::<f32>().all(|v| v == 0.0), "{name}");
        }
        let values = |seed: u64| {
            let named = method.init(&site, seed).unwrap().to_named();
            named.into_iter().flat_map(|t| t.values).collect::<Vec<_>>()
        };
        assert_eq!(values(3), values(3), "{name}");
        assert!(
            ["linear-probe", "naive-deep", "grouped", "ilm-vp", "auto-vp"].contains(&name)
                || values(3) != values(4),
            "{name}"
        );
    }
}

/// Each method's gradients along a random direction, against the loss on both sides. With smooth networks: a ReLU's
/// kinks would be seen.
#[test]
fn gradients_agree_with_finite_differences() {
    let networks =
        [("vit_b16", [48, 64]), ("convnext", [32, 64]), ("swin", [48, 48]), ("coatnet2", [64, 96])];
    for (network, image) in networks {
        let loaded = made_up(architecture(network), image);
        let frozen = Frozen::new(&loaded);
        let site = Site::of(&loaded);
        for name in MethodConfig::NAMES.iter().filter(|n| **n != "linear-probe" && !needs_clip(n)) {
            let mut method = small(name);
            if let MethodConfig::E2vpt(m) = &mut method {
                let tokens = ["vit_b16", "swin"].contains(&network);
                (m.masks, m.tokens, m.segments) = (tokens, if tokens { 3 } else { 0 }, 2);
            }
            if let ("e2vpt", "convnext") = (*name, network) {
                assert!(method.init(&site, 0).is_err(), "{name}");
                continue;
            }
            let wanted = match *name {
                "vpt-shallow" | "vpt-deep" if !["vit_b16", "swin"].contains(&network) => {
                    "need a ViT or a Swin"
                }
                "vpt-pad" | "vpt-below" if network != "convnext" => "a ResNet or a ConvNeXt is needed",
                _ => "",
            };
            if !wanted.is_empty() {
                let refused = method.init(&site, 0).unwrap_err().to_string();
                assert!(refused.contains(wanted), "{network}: {refused}");
                continue;
            }
            let mut params = method.init(&site, 0).unwrap();
            let mut rng = seeded(1, 0);
            // A network of weights like that would not be smooth: it keeps its own.
            for param in params.iter_mut().filter(|_| *name != "full") {
                let n = param.value.dims()[0];
                let values = normal(n, 0.3, &mut rng);
                param.value = Tensor::from_data(TensorData::new(values, [n]), &loaded.device);
            }
            let [h, w] = method.input(image);
            let pixels: Vec<f32> = (0..3 * h * w).map(|i| 0.5 + 0.5 * (i as f32 * 0.37).sin()).collect();
            let pixels = Tensor::<4>::from_data(TensorData::new(pixels, [1, 3, h, w]), &loaded.device);
            let directions: Vec<Tensor<1>> = params
                .learnt()
                .map(|p| {
                    let n = p.value.dims()[0];
                    Tensor::from_data(TensorData::new(normal(n, 1.0, &mut rng), [n]), &loaded.device)
                })
                .collect();
            let loss = |params: &Params| {
                let own = method.training_network(&loaded, params, &Training::new(0)).unwrap();
                let frozen = own.map_or(frozen.clone(), |network| frozen.with_network(network));
                let features = frozen.features(pixels.clone(), &method.prompts(&site, params));
                let width = features.dims()[1];
                let weigh: Vec<f32> = (0..width).map(|i| (i as f32).cos()).collect();
                let weigh = Tensor::<2>::from_data(TensorData::new(weigh, [1, width]), &loaded.device);
                (features * weigh).sum()
            };
            let leaves = params.leaves();
            let mut tape = loss(&leaves).backward();
            let (mut slope, mut steepest) = (0.0, 0.0);
            for (leaf, along) in leaves.learnt().zip(&directions) {
                let grad = leaf.value.grad_remove(&mut tape).expect("every parameter acts");
                slope += f64::from((grad.clone() * along.clone()).sum().into_scalar::<f32>());
                steepest += f64::from(grad.square().sum().into_scalar::<f32>());
            }
            let norm =
                directions.iter().map(|d| f64::from((d.clone() * d.clone()).sum().into_scalar::<f32>()));
            let step = 0.02 / norm.sum::<f64>().sqrt();
            let beside = |step: f64| {
                let mut moved = params.clone();
                let learnt = moved.iter_mut().filter(|p| p.group != Group::Fixed);
                for (param, along) in learnt.zip(&directions) {
                    param.value = param.value.clone() + along.clone() * step;
                }
                // Weights that are not tracked would be packed, in a form that does not train.
                let moved = if *name == "full" { moved.leaves() } else { moved };
                f64::from(loss(&moved).into_scalar::<f32>())
            };
            let found = (beside(step) - beside(-step)) / (2.0 * step);
            // What the slope along a random direction is usually like: one that is nearly level says little.
            let scale = slope.abs().max(steepest.sqrt());
            assert!((slope - found).abs() < 0.03 * scale, "{network} {name}: {slope} and {found}");
        }
    }
}

#[test]
fn settings_out_of_range_are_named() {
    let (device, blocks) = (Device::flex(), vit(14));
    let site = site([224, 224], &blocks, 0.4, &device);
    let lotep = |change: &dyn Fn(&mut Lotep)| {
        let mut config = Lotep::default();
        change(&mut config);
        MethodConfig::LotepTk(config).init(&site, 0).unwrap_err().to_string()
    };
    assert!(lotep(&|m| m.rank = 0).contains("rank 0"));
    assert!(lotep(&|m| m.depth_ratio = Some(1.5)).contains("depth_ratio 1.5"));
    assert!(lotep(&|m| m.depth_ratio = Some(f64::NAN)).contains("depth_ratio NaN"));
    assert!(lotep(&|m| (m.depth_ratio, m.input_prompt) = (Some(0.0), false)).contains("nothing"));
    let given = |json: &str| {
        let method: MethodConfig = serde_json::from_str(json).unwrap();
        method.init(&site, 0).unwrap_err().to_string()
    };
    assert!(given(r#"{"method":"vpt-deep","tokens":0}"#).contains("tokens 0"));
    assert!(given(r#"{"method":"vpt-deep","fourier":1.5}"#).contains("fourier 1.5"));
    assert!(
        given(r#"{"method":"vpt-deep","dropout":1}"#).contains("dropout 1 is out of range; 0 to below 1")
    );
    assert!(given(r#"{"method":"e2vpt","dropout":-0.1}"#).contains("dropout -0.1"));
    assert!(given(r#"{"method":"grouped","groups":0}"#).contains("groups 0"));
    assert!(given(r#"{"method":"deep-lor-vp","rank":0}"#).contains("rank 0"));
    assert!(given(r#"{"method":"border","border":112}"#).contains("border 112 is out of range; 1 to 111"));
    assert!(given(r#"{"method":"ilm-vp","size":224}"#).contains("size 224"));
    assert!(given(r#"{"method":"auto-vp","scale":9}"#).contains("scale 9"));
    let rank = LorVp { rank: 300, ..LorVp::default() };
    assert!(MethodConfig::LorVp(rank).init(&site, 0).unwrap_err().to_string().contains("rank 300"));
    for json in [r#"{"method":"lor-vp","depth_ratio":0.5}"#, r#"{"method":"nothing"}"#] {
        assert!(serde_json::from_str::<MethodConfig>(json).is_err(), "{json}");
    }
}
