//! `inspect`: networks, adapters and images, for people and for programs.

use std::fs;

use serde_json::json;

use crate::common::{CLASSES, Case, Net, TEST, TRAIN, files_under, lotep, read_json, text};

#[test]
fn a_backbone() {
    let case = Case::new();
    for (net, blocks, depth_ratio) in [
        (
            Net::ResNet,
            json!([["layer1.0", 64, 8], ["layer2.0", 8, 8], ["layer3.0", 8, 4], ["layer4.0", 8, 2]]),
            0.8,
        ),
        (Net::Vit, json!([["blocks.0", 16, 2], ["blocks.1", 16, 2]]), 0.4),
    ] {
        let dir = case.backbone(net);
        let report = lotep!("inspect", "--backbone", dir, "--format", "json").done().json();
        let found: Vec<_> = report["blocks"].as_array().unwrap().iter().collect();
        let found = found.iter().map(|b| json!([b["name"], b["channels"], b["width"]])).collect::<Vec<_>>();
        assert_eq!(json!(found), blocks);
        let is_weight = |(name, _): &&(String, Vec<usize>)| !name.contains("running_");
        let shapes = net.shapes();
        let parameters: usize =
            shapes.iter().filter(is_weight).map(|(_, s)| s.iter().product::<usize>()).sum();
        assert_eq!(report["parameters"], parameters);
        assert_eq!(report["depth_ratio"], depth_ratio);
        assert_eq!(report["preprocess"]["mean"][0], 0.5);
        let hash = report["sha256"].as_str().unwrap();
        assert!(hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()), "{hash}");

        let ran = lotep!("inspect", "--backbone", dir).done();
        let last = blocks.as_array().unwrap().last().unwrap()[0].as_str().unwrap();
        for word in [hash, last, "classes     12", "32x32", "depth ratio"] {
            assert!(ran.stdout.contains(word), "`{word}` is not in {ran}");
        }
    }
}

#[test]
fn a_bare_weight_file() {
    let case = Case::new();
    let dir = case.backbone(Net::Vit);
    let file = dir.join("model.safetensors");
    lotep!("inspect", "--backbone", file).refused(&["model.safetensors", "--arch"]);
    // The file is no full-size network: the first weight that does not fit is named, with both shapes.
    lotep!("inspect", "--backbone", file, "--arch", "vit_tiny_patch16_224").refused(&[
        "patch_embed.proj.weight",
        "[16, 3, 16, 16]",
        "[192, 3, 16, 16]",
    ]);
}

#[test]
fn an_adapter() {
    let case = Case::new();
    let adapter = case.adapter(Net::ResNet, "lotep-tk");
    let report = lotep!("inspect", "--adapter", adapter, "--format", "json").done().json();
    assert_eq!(report["config"], read_json(&adapter.join("adapter_config.json")));
    assert_eq!(report["tensors"]["image.core"], json!([6, 6, 6]));
    let result = read_json(&case.path("run/result.json"));
    let ran = lotep!("inspect", "--adapter", adapter).done();
    let (prompts, head) = (&result["train"]["prompt_parameters"], &result["train"]["head_parameters"]);
    assert!(ran.stdout.contains(&format!("{prompts} in prompts, {head} in the head")), "{ran}");
    for class in result["run"]["classes"].as_array().unwrap() {
        assert!(ran.stdout.contains(class.as_str().unwrap()), "{ran}");
    }
}

#[test]
fn images_and_what_is_broken_among_them() {
    let case = Case::new();
    let images = case.images();
    let files = files_under(&images.join("train"));
    fs::write(&files[2], []).unwrap();
    fs::write(&files[9], "this is text").unwrap();
    // Cut in the middle: the header is whole, the pixels are not.
    let bytes = fs::read(&files[11]).unwrap();
    fs::write(&files[11], &bytes[..bytes.len() / 2]).unwrap();
    fs::write(images.join("train/notes.txt"), "notes").unwrap();

    let report = lotep!("inspect", "--data", images, "--format", "json").done().json();
    let train = &report["splits"][0];
    assert_eq!((&train["split"], &train["images"]), (&json!("train"), &json!(TRAIN)));
    let broken = train["broken"].as_array().unwrap();
    let named: Vec<_> = broken.iter().map(|b| b[0].as_str().unwrap()).collect();
    assert_eq!(named, [text(&files[2]), text(&files[9]), text(&files[11])]);
    assert!(broken[0][1].as_str().unwrap().contains("empty"), "{}", broken[0]);
    assert_eq!(train["formats"], json!({ "png": TRAIN - 3 }));
    assert_eq!(train["width"], json!({ "min": 32, "median": 32, "max": 32 }));
    assert_eq!(train["per_class"].as_array().unwrap().len(), CLASSES);
    assert_eq!(train["per_class"][0][1], TRAIN / CLASSES);
    assert_eq!((&report["splits"][1]["images"], &report["splits"][1]["broken"]), (&json!(TEST), &json!([])));
    assert!(report["layout"].as_str().unwrap().contains("1 file that is not an image ignored"), "{report}");

    let ran = lotep!("inspect", "--data", images).done();
    for path in named {
        assert!(ran.stdout.contains(&format!("broken: {path}: ")), "{ran}");
    }
    // Headers alone do not show what is missing further down.
    let quick = lotep!("inspect", "--data", images, "--headers-only", "--format", "json").done().json();
    assert_eq!(quick["splits"][0]["broken"].as_array().unwrap().len(), 2);
}

#[test]
fn one_thing_at_a_time() {
    lotep!("inspect").misused(&["--backbone", "--adapter", "--data"]);
    lotep!("inspect", "--backbone", "a", "--data", "b").misused(&["--backbone", "--data"]);
}

#[test]
fn the_known_networks() {
    let lines = lotep!("backbones", "swin", "--format", "json").done().stdout;
    let lines: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let base = lines.iter().find(|l| l["name"] == "swin_base_patch4_window7_224").unwrap();
    assert_eq!(base["parameters_without_head"], 86_743_224);
    assert_eq!((&base["blocks"], &base["tag"]), (&json!(24), &json!("ms_in22k")));
    let all = lotep!("backbones").done().stdout;
    for (name, body) in [("convnext_base", "87.57M"), ("coatnet_2_rw_224", "72.84M"), ("resnet50", "23.51M")]
    {
        let line = all.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap();
        assert!(line.contains(body), "{line}");
    }
    lotep!("backbones", "nothing").refused(&["`nothing`"]);
}
