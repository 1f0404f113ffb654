//! CLIP's methods in a step: gradients, losses by their formulas, counts.

use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;

use super::optim::{Optim, OptimizerKind, Rates};
use super::setup::{class_texts, init_params};
use super::step::{Input, Stepper};
use crate::backbone::{Block, Layout, Loaded, NoHooks, TextConfig, VitConfig, made_up_clip};
use crate::fixtures::assert_close;
use crate::head::{Head, Mapping, SharedTexts, unit};
use crate::method::{METHODS, Method, MethodConfig, Site};
use crate::model::{Frozen, Predictor};
use crate::ops::Nonlinearity;
use crate::params::{Group, Params, normal};

const HEAD: Head = Head { mapping: Mapping::Text, sources: 1 };

fn loaded() -> Loaded {
    let text = TextConfig {
        vocabulary: 60,
        context: 20,
        width: 16,
        depth: 3,
        heads: 2,
        features: 12,
        nonlinearity: Nonlinearity::QuickGelu,
    };
    made_up_clip(VitConfig::new([32, 32], 16, 24, 3, 3), text)
}

/// Every method that needs CLIP and learns, with settings for three blocks.
fn methods() -> Vec<MethodConfig> {
    let clip = METHODS.iter().filter(|m| m.clip && m.name != "zero-shot");
    let small = |name: &str| {
        let json = match name {
            "coop" => serde_json::json!({ "method": name, "tokens": 3 }),
            "cocoop" => serde_json::json!({ "method": name, "tokens": 2 }),
            "clip-lora" => serde_json::json!({ "method": name }),
            "mmlop" => serde_json::json!({ "method": name, "depth": 2, "rank": 2 }),
            _ => serde_json::json!({ "method": name, "depth": 2, "tokens": 2 }),
        };
        serde_json::from_value(json).unwrap()
    };
    clip.map(|m| small(m.name)).collect()
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("thing{i} number{}", i * 7)).collect()
}

fn texts(loaded: &Loaded, method: &MethodConfig, classes: usize) -> SharedTexts {
    class_texts(loaded, method, HEAD, &names(classes)).unwrap().unwrap()
}

fn pixels(loaded: &Loaded, images: usize) -> Tensor<4> {
    let values = (0..images * 3 * 32 * 32).map(|i| 0.5 + 0.5 * (i as f32 * 0.37).sin()).collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(values, [images, 3, 32, 32]), &loaded.device)
}

fn moved(params: &Params, device: &Device) -> Params {
    let mut rng = rand_chacha::ChaCha8Rng::from_seed([3; 32]);
    let mut params = params.clone();
    for param in params.iter_mut().filter(|p| p.group != Group::Fixed) {
        let n = param.value.dims()[0];
        param.value = Tensor::from_data(TensorData::new(normal(n, 0.5, &mut rng), [n]), device);
    }
    params
}

/// The mean loss of a step and its gradients.
fn step(
    loaded: &Loaded,
    method: &MethodConfig,
    texts: &SharedTexts,
    params: &Params,
    labels: &[usize],
) -> (f64, Vec<Vec<f32>>) {
    step_in_parts(loaded, method, texts, params, labels, None, labels.len())
}

/// The same of a step that drops by this seed, so many images at a time.
fn step_in_parts(
    loaded: &Loaded,
    method: &MethodConfig,
    texts: &SharedTexts,
    params: &Params,
    labels: &[usize],
    seed: Option<u64>,
    part: usize,
) -> (f64, Vec<Vec<f32>>) {
    let frozen = Frozen::new(loaded);
    let run = || {
        let site = Site::of(loaded);
        let stepper = match seed {
            Some(seed) => Stepper::seeded(&frozen, method, HEAD, site, seed),
            None => Stepper::new(&frozen, method, HEAD, site),
        };
        let mut stepper = stepper.with_texts(Some(texts));
        let all = pixels(loaded, labels.len());
        for (i, labels) in labels.chunks(part).enumerate() {
            let some = all.clone().narrow(0, i * part, labels.len());
            stepper.accumulate(params, Input::Pixels(some), labels).unwrap();
        }
        stepper
    };
    let grads = run().mean_gradients().map(|g| g.into_data().iter::<f32>().collect()).collect();
    let none = Rates { prompt: 0.0, head: 0.0 };
    let mut optim = Optim::new(OptimizerKind::Sgd, 0.0, none, params.learnt().count());
    let sums = run().finish(&mut optim, none, &mut params.clone());
    (sums.loss / sums.images as f64, grads)
}

fn slopes_agree(loaded: &Loaded, method: &MethodConfig, classes: usize, labels: &[usize]) {
    slopes_agree_with(loaded, method, classes, labels, None);
}

/// The same where a step drops by a seed.
fn slopes_agree_with(
    loaded: &Loaded,
    method: &MethodConfig,
    classes: usize,
    labels: &[usize],
    seed: Option<u64>,
) {
    let step =
        |loaded: &Loaded, method: &MethodConfig, texts: &SharedTexts, params: &Params, labels: &[usize]| {
            step_in_parts(loaded, method, texts, params, labels, seed, labels.len())
        };
    let texts = texts(loaded, method, classes);
    let params = moved(&init_params(loaded, method, HEAD, classes, 0).unwrap(), &loaded.device);
    let (_, grads) = step(loaded, method, &texts, &params, labels);
    let mut rng = rand_chacha::ChaCha8Rng::from_seed([9; 32]);
    let directions: Vec<Vec<f32>> =
        params.learnt().map(|p| normal(p.value.dims()[0], 1.0, &mut rng)).collect();
    let all = || grads.iter().flatten().zip(directions.iter().flatten());
    let slope: f64 = all().map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
    let steepest: f64 = grads.iter().flatten().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    let norm: f64 = directions.iter().flatten().map(|d| f64::from(*d).powi(2)).sum::<f64>().sqrt();
    // Small: prompts pass norms, which bend where a product of thin factors is nearly nothing.
    let by = 0.004 / norm;
    let beside = |by: f64| {
        let mut there = params.clone();
        for (param, along) in there.iter_mut().filter(|p| p.group != Group::Fixed).zip(&directions) {
            let along = Tensor::<1>::from_data(TensorData::new(along.clone(), [along.len()]), &loaded.device);
            param.value = param.value.clone() + along * by;
        }
        step(loaded, method, &texts, &there, labels).0
    };
    let found = (beside(by) - beside(-by)) / (2.0 * by);
    let scale = slope.abs().max(steepest);
    assert!((slope - found).abs() < 0.03 * scale, "{}: {slope} and {found}", method.name());
    assert!(grads.iter().all(|g| g.iter().any(|v| *v != 0.0)), "{}: every parameter acts", method.name());
}

/// Each method's gradients along a random direction, through both towers, against the loss on both sides; with more images
/// than go through the tower together.
#[test]
fn gradients_agree_with_finite_differences() {
    let loaded = loaded();
    let methods = methods();
    assert_eq!(methods.len(), 7);
    for method in &methods {
        slopes_agree(&loaded, method, 4, &[0, 3, 1, 1, 2, 0, 3, 2, 1]);
    }
    for change in [
        serde_json::json!({ "rank": 0 }),
        serde_json::json!({ "shared_up": "none" }),
        serde_json::json!({ "shared_up": "global", "context": "" }),
        serde_json::json!({ "drift_correction": false, "text_consistency": 0.0 }),
    ] {
        let mut json = serde_json::json!({ "method": "mmlop", "depth": 2 });
        json.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        slopes_agree(&loaded, &serde_json::from_value(json).unwrap(), 3, &[0, 2]);
    }
}

/// More texts than a pass is kept of: it is made again, some texts at a time.
#[test]
fn many_classes_are_taken_in_turns() {
    let method = serde_json::json!({ "method": "mmlop", "depth": 2, "text_consistency": 5.0 });
    let method: MethodConfig = serde_json::from_value(method).unwrap();
    slopes_agree(&loaded(), &method, 260, &[0, 259]);
}

/// CLIP-LoRA's dropout is in both towers: the same step is the same, in parts but for the order of sums; what is dropped is
/// another in another step, and for each text whichever go through the tower together.
#[test]
fn both_towers_drop() {
    let loaded = loaded();
    let lora = |dropout: f64| -> MethodConfig {
        serde_json::from_value(serde_json::json!({ "method": "clip-lora", "dropout": dropout })).unwrap()
    };
    let method = lora(0.25);
    assert_eq!(method, MethodConfig::named("clip-lora").unwrap());
    slopes_agree_with(&loaded, &method, 4, &[0, 3, 1], Some(5));
    slopes_agree_with(&loaded, &method, 260, &[0, 259], Some(5));
    let (classes, labels) = (70, [1, 3, 0]);
    let params = moved(&init_params(&loaded, &method, HEAD, classes, 0).unwrap(), &loaded.device);
    let texts = texts(&loaded, &method, classes);
    let run = |method: &MethodConfig, seed, part| {
        let (loss, grads) = step_in_parts(&loaded, method, &texts, &params, &labels, seed, part);
        grads.into_iter().flatten().chain([loss as f32]).collect::<Vec<f32>>()
    };
    let whole = run(&method, Some(5), 3);
    assert_eq!(run(&method, Some(5), 3), whole);
    assert_close(&run(&method, Some(5), 1), &whole, 5e-5, "in parts");
    assert_ne!(run(&method, Some(6), 3), whole);
    let without = run(&lora(0.0), Some(5), 3);
    assert_ne!(without, whole);
    assert_close(&run(&method, None, 3), &without, 5e-5, "evaluated");

    let prompts = |first| method.prompts(&Site::of(&loaded), &params).training(5, first);
    let values = |x: Tensor<2>| x.without_autodiff().into_data().iter::<f32>().collect::<Vec<_>>();
    let together = values(texts.raw(&prompts(0), 0, classes));
    assert_close(&values(texts.all_raw(prompts)), &together, 1e-5, "in turns");
    let kept = values(texts.all_raw(|_| method.prompts(&Site::of(&loaded), &params)));
    let far = kept.iter().zip(&together).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(far > 1e-2, "the text tower drops: {far}");
}

/// Sentences that nothing learnt changes are encoded once, and score as they would prompted by nothing.
#[test]
fn texts_that_stay_are_not_encoded_again() {
    let loaded = loaded();
    let method: MethodConfig = serde_json::from_value(serde_json::json!({
        "method": "vpt-deep", "tokens": 2,
    }))
    .unwrap();
    let stays = texts(&loaded, &method, 4);
    let vectors = rows(stays.same().unwrap().clone());
    let coop = serde_json::json!({ "method": "coop", "tokens": 4, "context": "a photo of a" });
    let coop: MethodConfig = serde_json::from_value(coop).unwrap();
    let params = init_params(&loaded, &coop, HEAD, 4, 0).unwrap();
    let prompted = texts(&loaded, &coop, 4);
    assert!(prompted.same().is_none());
    let prompted = rows(prompted.prompted_vectors(&coop.prompts(&Site::of(&loaded), &params)));
    for (a, b) in vectors.iter().flatten().zip(prompted.iter().flatten()) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
    slopes_agree(&loaded, &method, 4, &[0, 3, 1]);
    slopes_agree(&loaded, &method, 300, &[0, 299]);
}

fn rows(x: Tensor<2>) -> Vec<Vec<f64>> {
    let width = x.dims()[1];
    let values: Vec<f64> = x.into_data().iter::<f64>().collect();
    values.chunks(width).map(<[f64]>::to_vec).collect()
}

fn log_softmax(row: &[f64]) -> Vec<f64> {
    let sum = row.iter().map(|v| v.exp()).sum::<f64>().ln();
    row.iter().map(|v| v - sum).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn normalised(row: Vec<f64>) -> Vec<f64> {
    let length = dot(&row, &row).sqrt();
    row.into_iter().map(|v| v / length).collect()
}

/// `spec/methods.md` 10 and 11.3, term by term.
#[test]
fn losses_are_those_of_the_papers() {
    let loaded = loaded();
    let (classes, labels) = (4, [1, 3, 0]);
    let (count, width) = (labels.len() as f64, 12.0);
    for (drift, weights) in
        [(false, [0.0; 3]), (false, [25.0, 0.0, 0.0]), (false, [0.0, 10.0, 1.0]), (true, [25.0, 10.0, 1.0])]
    {
        let method = serde_json::json!({
            "method": "mmlop", "depth": 2, "drift_correction": drift, "text_consistency": weights[0],
            "image_consistency": weights[1], "logit_consistency": weights[2],
        });
        let method: MethodConfig = serde_json::from_value(method).unwrap();
        let params = moved(&init_params(&loaded, &method, HEAD, classes, 0).unwrap(), &loaded.device);
        let texts = texts(&loaded, &method, classes);
        let (loss, _) = step(&loaded, &method, &texts, &params, &labels);

        let (frozen, prompts) = (Frozen::new(&loaded), method.prompts(&Site::of(&loaded), &params));
        let images = rows(unit(frozen.projected(pixels(&loaded, 3), &prompts)));
        let seen = rows(unit(frozen.projected(pixels(&loaded, 3), &NoHooks)));
        let t = rows(unit(texts.all_raw(|_| prompts.clone())));
        let z = texts.frozen().map_or_else(|| t.clone(), |z| rows(z.clone()));
        let moved_by: Vec<f64> =
            (0..12).map(|j| (0..classes).map(|c| t[c][j] - z[c][j]).sum::<f64>() / classes as f64).collect();
        let back = |row: &Vec<f64>| normalised(row.iter().zip(&moved_by).map(|(v, m)| v - m).collect());
        let vectors: Vec<Vec<f64>> = if drift { t.iter().map(back).collect() } else { t.clone() };
        let scores = |image: &Vec<f64>, of: &[Vec<f64>]| {
            log_softmax(&of.iter().map(|t| 10.0 * dot(image, t)).collect::<Vec<_>>())
        };
        let far = |a: &[Vec<f64>], b: &[Vec<f64>]| -> f64 {
            a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).sum()
        };
        let entropy: f64 =
            images.iter().zip(labels).map(|(i, label)| -scores(i, &vectors)[label]).sum::<f64>() / count;
        let divergence: f64 = images
            .iter()
            .zip(&seen)
            .map(|(i, s)| {
                let (own, ours) = (scores(s, &z), scores(i, &vectors));
                own.iter().zip(ours).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
            })
            .sum();
        let expected = entropy
            + weights[0] * far(&t, &z) / (classes as f64 * width)
            + weights[1] * far(&images, &seen) / (count * width)
            + weights[2] * divergence / (count * classes as f64);
        assert!((loss - expected).abs() < 1e-5 * expected, "{drift} {weights:?}: {loss} and {expected}");
    }
}

/// `spec/methods.md` 10 and 11.2, for ViT-B/16.
#[test]
fn parameters_are_those_of_the_papers() {
    let text = TextConfig::openai(512, Nonlinearity::QuickGelu);
    let loaded = made_up_clip(VitConfig::new([32, 32], 16, 24, 1, 3), text);
    let block = |i: usize| Block {
        name: format!("blocks.{i}"),
        channels: 768,
        height: 14,
        width: 14,
        layout: Layout::Tokens,
        heads: Some(12),
    };
    let blocks: Vec<Block> = (0..12).map(block).collect();
    let site = Site { blocks: &blocks, image: [224; 2], ..Site::of(&loaded) };
    let count = |json: serde_json::Value| {
        let method: MethodConfig = serde_json::from_value(json).unwrap();
        method.init(&site, 0).unwrap().count(Group::Prompt)
    };
    // Drawn words: the table of all words would have to be made up for others.
    let mmlop = |change: serde_json::Value| {
        let mut json = serde_json::json!({ "method": "mmlop", "context": "" });
        json.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        count(json)
    };
    assert_eq!(mmlop(serde_json::json!({})), 11_556);
    assert_eq!(mmlop(serde_json::json!({ "tokens": 2 })), 11_538);
    assert_eq!(mmlop(serde_json::json!({ "shared_up": "global" })), 11_524);
    assert_eq!(mmlop(serde_json::json!({ "shared_up": "none" })), 11_592);
    assert_eq!(mmlop(serde_json::json!({ "rank": 2 })), 2 * 11_556);
    assert_eq!(mmlop(serde_json::json!({ "rank": 0 })), 46_080);
    for (json, expected) in [
        (serde_json::json!({ "method": "coop" }), 8_192),
        (serde_json::json!({ "method": "coop", "tokens": 4 }), 2_048),
        (serde_json::json!({ "method": "cocoop", "context": "" }), 35_360),
        (serde_json::json!({ "method": "ivlp", "context": "" }), 46_080),
        (serde_json::json!({ "method": "promptsrc", "context": "" }), 46_080),
        (serde_json::json!({ "method": "maple", "context": "" }), 3_555_072),
        (serde_json::json!({ "method": "clip-lora" }), 184_320),
        (serde_json::json!({ "method": "zero-shot" }), 0),
    ] {
        assert_eq!(count(json.clone()), expected, "{json}");
    }
}

/// A LoRA that adds nothing yet, and prompts of a context's own words alone, score as CLIP does; merged predictions are the
/// trained ones.
#[test]
fn what_starts_as_nothing_is_zero_shot() {
    let loaded = loaded();
    let scores = |json: serde_json::Value, seed: Option<u64>| -> Vec<f32> {
        let method: MethodConfig = serde_json::from_value(json).unwrap();
        let mut params = init_params(&loaded, &method, HEAD, 4, 0).unwrap();
        if seed.is_some() {
            params = moved(&params, &loaded.device);
        }
        let texts = texts(&loaded, &method, 4);
        let predictor = Predictor::adapted(&loaded, &method, HEAD, &params, Some(&texts)).unwrap();
        predictor.logits(pixels(&loaded, 2)).into_data().iter::<f32>().collect()
    };
    let sentence =
        |text: &str| scores(serde_json::json!({ "method": "zero-shot", "templates": [text] }), None);
    let lora = serde_json::json!({ "method": "clip-lora" });
    assert_close(&scores(lora.clone(), None), &sentence("a photo of a {}"), 1e-5, "clip-lora");
    let coop = serde_json::json!({ "method": "coop", "tokens": 4, "context": "a photo of a" });
    assert_close(&scores(coop, None), &sentence("a photo of a {}."), 1e-5, "coop");

    // Learnt: the image tower's additions are merged, the text tower's are not.
    let method: MethodConfig = serde_json::from_value(lora.clone()).unwrap();
    let params = moved(&init_params(&loaded, &method, HEAD, 4, 0).unwrap(), &loaded.device);
    let (texts, prompts) = (texts(&loaded, &method, 4), method.prompts(&Site::of(&loaded), &params));
    let images = unit(Frozen::new(&loaded).projected(pixels(&loaded, 2), &prompts));
    let added = texts.logits(images, texts.prompted_vectors(&prompts));
    let added: Vec<f32> = added.into_data().iter::<f32>().collect();
    let merged = scores(lora, Some(0));
    assert_close(&merged, &added, 2e-5, "merged");
    let far = merged.iter().zip(sentence("a photo of a {}")).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(far > 0.01, "{far}");
}

#[test]
fn wrong_settings_are_named() {
    let loaded = loaded();
    let refused = |json: serde_json::Value| {
        let method: MethodConfig = serde_json::from_value(json).unwrap();
        let made = init_params(&loaded, &method, HEAD, 3, 0)
            .and_then(|_| class_texts(&loaded, &method, HEAD, &names(3)).map(drop));
        made.unwrap_err().to_string()
    };
    for (json, words) in [
        (serde_json::json!({ "method": "mmlop", "depth": 4 }), "mmlop: depth 4 is out of range; 1 to 3"),
        (serde_json::json!({ "method": "mmlop", "depth": 1, "rank": 5 }), "rank 5 is out of range"),
        (serde_json::json!({ "method": "ivlp", "depth": 1, "tokens": 0 }), "ivlp: tokens 0"),
        (
            serde_json::json!({ "method": "ivlp", "depth": 1, "tokens": 5 }),
            "has 4 tokens, and 5 are to be learnt",
        ),
        (
            serde_json::json!({ "method": "promptsrc", "depth": 1, "image_consistency": -1.0 }),
            "image_consistency -1",
        ),
        (serde_json::json!({ "method": "promptsrc", "depth": 1, "aggregate_std": -1.0 }), "aggregate_std -1"),
        (serde_json::json!({ "method": "coop", "context": "a {} of", "tokens": 2 }), "without {}"),
        (serde_json::json!({ "method": "coop", "tokens": 18 }), "tokens 18 is out of range; 1 to 17"),
        (serde_json::json!({ "method": "coop", "tokens": 17 }), "the text tower takes 20 at most"),
        (serde_json::json!({ "method": "clip-lora", "rank": 17 }), "rank 17 is out of range; 1 to 16"),
        (serde_json::json!({ "method": "zero-shot", "templates": ["a cat"] }), "has no {}"),
        (serde_json::json!({ "method": "zero-shot", "templates": [] }), "no template"),
    ] {
        let error = refused(json);
        assert!(error.contains(words), "{words}: {error}");
    }
    let linear = Head::default();
    for method in methods() {
        let error = class_texts(&loaded, &method, linear, &names(3)).err().unwrap().to_string();
        assert!(error.contains("--mapping text"), "{error}");
    }
}
