//! `train`, and `eval` on what it saved: all files are there, and they say the same.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::{
    CLASSES, Case, Net, OWN_CLASSES, TEST, TRAIN, files_under, lotep, read_json, read_tensors, sha256,
};

/// Validation images of the data's own need no share of the training images; without them there is nothing to choose by.
#[test]
fn own_validation_images_are_enough() {
    let case = Case::new();
    let images = case.images();
    let options = ["--method", "linear-probe", "--select", "best-val", "--val-fraction", "0"];
    case.train(Net::ResNet, "none", &options).refused(&["val-fraction is 0", "none of its own"]);
    assert!(!case.path("none").exists());
    for file in files_under(&images.join("test")) {
        let to = images.join("val").join(file.strip_prefix(images.join("test")).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(&file, to).unwrap();
    }
    case.train(Net::ResNet, "own", &options).done();
    let facts = &read_json(&case.path("own/result.json"))["train"];
    assert_eq!((&facts["val"]["images"], &facts["val"]["top1"]), (&TEST.into(), &facts["test"]["top1"]));
}

/// A training with every method on `net`, its files, and the same accuracy from the saved adapter.
fn every_method(net: Net) {
    let case = Case::new();
    // Those that need CLIP's text tower have a test of their own.
    let known = lotep!("methods", "--format", "json").done().json_lines();
    let methods: Vec<String> =
        known.iter().filter(|m| m["clip"] == false).map(|m| m["name"].as_str().unwrap().to_owned()).collect();
    assert!(methods.len() > 8, "{methods:?}");
    for method in methods.iter().map(String::as_str) {
        let refused: &[&str] = match (net, method) {
            (Net::ResNet, "vpt-shallow" | "vpt-deep") => {
                &["vpt", "need a ViT or a Swin", "layer1.0", "vpt-pad"]
            }
            (Net::ResNet, "e2vpt") => &["e2vpt", "--tokens 0"],
            (Net::Vit | Net::Swin, "vpt-pad" | "vpt-below") => {
                &[method, "a ResNet or a ConvNeXt", "vpt-deep"]
            }
            _ => &[],
        };
        if !refused.is_empty() {
            case.train(net, method, &["--method", method]).refused(refused);
            continue;
        }
        let ran = case.train(net, method, &[&["--method", method], small(method)].concat()).done();
        let run = case.path(method);
        let result = read_json(&run.join("result.json"));
        let test = &result["train"]["test"];
        assert_eq!(test["images"], TEST, "{method}");
        assert!(ran.stdout.contains(&format!("test  top1 {:.2}%", test["top1"].as_f64().unwrap())), "{ran}");
        assert!(ran.stdout.contains("adapter in "), "{ran}");
        records_agree(&run, &result, net);
        adapter_agrees(&run, &result, method);
        let weights = case.backbone(net).join("model.safetensors");
        assert_eq!(result["run"]["backbone_sha256"], sha256(&weights));

        let adapter = run.join("adapter");
        let eval = lotep!(
            "eval",
            "--adapter",
            adapter,
            "--data",
            case.images(),
            "--precision",
            // Full fine-tuning computes in f32.
            result["run"]["config"]["precision"].as_str().unwrap(),
            "--format",
            "json"
        )
        .done()
        .json();
        for key in ["top1", "top5", "images"] {
            assert_eq!(eval[key], test[key], "{method}: {key}");
        }
        // Batches of another size may round otherwise.
        let loss = |v: &Value| v["loss"].as_f64().unwrap();
        assert!((loss(&eval) - loss(test)).abs() < 1e-5, "{method}: {eval} and {test}");
    }
}

/// Settings that a network of 32 pixels needs.
fn small(method: &str) -> &'static [&'static str] {
    match method {
        "border" => &["--border", "4", "--prompt-lr", "0.5"],
        "ilm-vp" | "auto-vp" => &["--size", "20"],
        _ => &[],
    }
}

fn records_agree(run: &Path, result: &Value, net: Net) {
    let (facts, config) = (&result["train"], &result["run"]["config"]);
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.iter().map(|l| l["epoch"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
    let steps = TRAIN / 16;
    assert_eq!(lines[0]["step"], steps);
    assert_eq!((&lines[1]["step"], &facts["steps"]), (&(2 * steps).into(), &(2 * steps).into()));
    let loss = |i: usize| lines[i]["train_loss"].as_f64().unwrap();
    assert!(loss(1) < loss(0), "nothing was learnt: {text}");

    let number = |key: &str| facts[key].as_u64().unwrap() as usize;
    let head = match config["mapping"].as_str().unwrap() {
        "linear" => CLASSES * (net.width() + 1),
        "full" => CLASSES * (OWN_CLASSES + 1),
        _ => 0,
    };
    assert_eq!(number("head_parameters"), head);
    assert_eq!(number("trainable_parameters"), number("head_parameters") + number("prompt_parameters"));
    assert!(facts["skipped"].as_array().unwrap().is_empty());
    assert!(result["run"]["protocol"].as_str().unwrap().contains("last epoch was kept"));

    // The resolved settings stand in both places; TOML and JSON write the same values.
    let toml: toml::Table = fs::read_to_string(run.join("config.toml")).unwrap().parse().unwrap();
    let settings = serde_json::to_value(&toml).unwrap();
    for (key, value) in settings.as_object().unwrap().iter().filter(|(key, _)| *key != "method") {
        assert_eq!(&config[key], value, "{key}");
    }
    for (key, value) in settings["method"].as_object().unwrap() {
        assert_eq!(&config["method"][key], value, "method.{key}");
    }
    assert!(toml.contains_key("seed") && toml.contains_key("lr"), "defaults are written out: {toml}");

    let events: Vec<_> = files_under(run)
        .into_iter()
        .filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with("events.out.tfevents."))
        .collect();
    assert_eq!(events.len(), 1, "{events:?}");
    let bytes = fs::read(&events[0]).unwrap();
    for tag in ["brain.Event:2", "step/loss", "train/top1"] {
        assert!(bytes.windows(tag.len()).any(|w| w == tag.as_bytes()), "no {tag} in the TensorBoard file");
    }
}

fn adapter_agrees(run: &Path, result: &Value, method: &str) {
    let config = read_json(&run.join("adapter/adapter_config.json"));
    assert_eq!(config["method"]["method"], method);
    assert_eq!(config["classes"], result["run"]["classes"]);
    assert_eq!(config["classes"].as_array().unwrap().len(), CLASSES);
    assert_eq!(config["backbone"]["sha256"], result["run"]["backbone_sha256"]);
    assert_eq!(config["tensors_sha256"], sha256(&run.join("adapter/adapter_model.safetensors")));
    assert_eq!(config["metrics"]["test"], result["train"]["test"]);
    let (tensors, _) = read_tensors(&run.join("adapter/adapter_model.safetensors"));
    let fixed = ["head.sources", "below.kernel"];
    let learnt =
        tensors.iter().filter(|t| !fixed.contains(&t.name.as_str()) && !t.name.contains(".running_"));
    let values: usize = learnt.map(|t| t.values.len()).sum();
    assert_eq!(result["train"]["trainable_parameters"], values);
    for tensor in &tensors {
        assert!(tensor.values.iter().all(|v| v.is_finite()), "{}", tensor.name);
        // What starts at zero has moved: a prompt that gets no gradient would stay there.
        assert!(tensor.values.iter().any(|v| *v != 0.0), "{method}: `{}` was not trained", tensor.name);
    }
    // The checkpoint's parameters are the adapter's, for the last epoch is the one that is kept.
    let (checkpoint, metadata) = read_tensors(&run.join("checkpoints/last.safetensors"));
    assert!(metadata["lotep"].contains("progress") && metadata["lotep"].contains("config"));
    for tensor in &tensors {
        assert!(checkpoint.contains(tensor), "{method}: the checkpoint's `{}` is another", tensor.name);
    }
}

#[test]
fn every_method_on_a_resnet() {
    every_method(Net::ResNet);
}

#[test]
fn every_method_on_a_vit() {
    every_method(Net::Vit);
}

/// Tokens in a Swin's windows, dropped in part while training, are evaluated as they were chosen.
#[test]
fn tokens_in_the_windows_of_a_swin() {
    for method in ["vpt-shallow", "vpt-deep", "e2vpt"] {
        let case = Case::new();
        let options =
            ["--method", method, "--tokens", "4", "--dropout", "0.2", "--prompt-lr", "0.01", "--lr", "0.1"];
        case.train(Net::Swin, "run", &options).done();
        let (run, net) = (case.path("run"), Net::Swin);
        let result = read_json(&run.join("result.json"));
        let prompts = match method {
            "vpt-shallow" => 4 * 8,
            "vpt-deep" => 4 * (8 + 8 + 16),
            _ => (4 + 5) * (8 + 8 + 16),
        };
        assert_eq!(result["train"]["prompt_parameters"], prompts, "{method}");
        records_agree(&run, &result, net);
        adapter_agrees(&run, &result, method);
        let adapter = run.join("adapter");
        let eval = lotep!("eval", "--adapter", adapter, "--data", case.images(), "--format", "json");
        assert_eq!(eval.done().json()["top1"], result["train"]["test"]["top1"], "{method}");
    }
}

#[test]
fn json_on_standard_output_is_the_result_file() {
    let case = Case::new();
    let ran = case.train(Net::Vit, "run", &["--method", "linear-probe", "--format", "json"]).done();
    assert_eq!(ran.json(), read_json(&case.path("run/result.json")));
}

#[test]
fn quiet_says_nothing_but_the_result() {
    let case = Case::new();
    let ran = case.train(Net::Vit, "run", &["--method", "linear-probe", "--quiet"]).done();
    assert_eq!(ran.stderr, "");
    assert!(ran.stdout.contains("top1"), "{ran}");
}

#[test]
fn selection_on_held_out_images_is_recorded_and_leaves_the_test_split_alone() {
    let case = Case::new();
    let options = ["--method", "lotep-cp", "--select", "best-val", "--val-fraction", "0.34", "--epochs", "4"];
    case.train(Net::ResNet, "run", &[&options[..], &["--test-every-epoch"]].concat()).done();
    let result = read_json(&case.path("run/result.json"));
    let text = fs::read_to_string(case.path("run/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    // The earlier of two equals.
    let best = |split: &str| {
        let top1 = |line: &Value| line[split]["top1"].as_f64().unwrap();
        let most = lines.iter().map(top1).fold(f64::MIN, f64::max);
        lines.iter().position(|l| top1(l) >= most).unwrap()
    };
    let (kept, facts) = (best("val"), &result["train"]);
    assert_eq!(facts["epoch"], kept + 1);
    assert_eq!((&facts["val"], &facts["test"]), (&lines[kept]["val"], &lines[kept]["test"]));
    // The number that papers report stands beside it, under its own name.
    let watched = best("test");
    assert_eq!(facts["best_test"][0], watched + 1);
    assert_eq!(facts["best_test"][1], lines[watched]["test"]);
    let held_out = facts["val"]["images"].as_u64().unwrap() as usize;
    assert!(held_out >= CLASSES, "some of every class is held out: {held_out}");
    let data = result["run"]["data"].as_str().unwrap();
    assert!(data.contains(&format!("{} train, {held_out} val, {TEST} test", TRAIN - held_out)), "{data}");
}

#[test]
fn folders_without_parts_are_split_the_same_way_by_train_and_eval() {
    let case = Case::new();
    let flat = case.images().join("train");
    let backbone = case.backbone(Net::Vit);
    let run = case.path("run");
    lotep!(
        "train",
        "--backbone",
        backbone,
        "--data",
        flat,
        "--output",
        run,
        "--epochs",
        "1",
        "--method",
        "linear-probe",
        "--test-fraction",
        "0.5"
    )
    .done();
    let test = read_json(&run.join("result.json"))["train"]["test"].clone();
    assert_eq!(test["images"], TRAIN / 2);
    let eval = lotep!(
        "eval",
        "--adapter",
        run.join("adapter"),
        "--data",
        flat,
        "--test-fraction",
        "0.5",
        "--format",
        "json"
    );
    let eval = eval.done().json();
    assert_eq!((&eval["top1"], &eval["images"]), (&test["top1"], &test["images"]));
}
