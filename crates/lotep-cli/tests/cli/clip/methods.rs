//! Methods: trained, saved, resumed, told apart from others; a small CLIP of one's own.

use std::fs;

use crate::common::{CLASSES, Case, Net, TEST, command, lotep, read_json, read_tensors, run};

use super::{clip, small, train};

#[test]
fn what_names_cannot_score_and_no_text_holds_is_refused() {
    let case = Case::new();
    train(&case, "full", &["--mapping", "text"]).refused(&["mapping text", "method full"]);
    train(&case, "coop", &["--tokens", "9000000000000000000"]).refused(&["coop", "tokens"]);
}

/// Every method that needs CLIP: trained, saved, evaluated, applied to other classes, refused by other networks.
#[test]
fn every_method_for_clip() {
    let case = Case::new();
    let known = lotep!("methods", "--format", "json").done().json_lines();
    let methods: Vec<&str> =
        known.iter().filter(|m| m["clip"] == true).map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(methods.len(), 8);
    for method in methods {
        case.train(Net::Vit, method, &["--method", method]).refused(&[method, "needs CLIP", "text tower"]);
        train(&case, method, small(method)).done();
        let result = read_json(&case.path(method).join("result.json"));
        let facts = &result["train"];
        assert_eq!(facts["test"]["images"], TEST, "{method}");
        assert_eq!(
            (&facts["head_parameters"], &result["run"]["config"]["mapping"]),
            (&0.into(), &"text".into())
        );
        let adapter = case.path(method).join("adapter");
        let config = read_json(&adapter.join("adapter_config.json"));
        assert_eq!(config["classes"].as_array().unwrap().len(), CLASSES);
        assert_eq!(config["input"]["transform"]["mode"], "resize-crop", "{method}");
        let (tensors, _) = read_tensors(&adapter.join("adapter_model.safetensors"));
        let learnt: usize =
            tensors.iter().filter(|t| t.name != "text.0.context").map(|t| t.values.len()).sum();
        assert_eq!(facts["trainable_parameters"], learnt, "{method}");
        let zero = tensors.iter().find(|t| t.values.iter().all(|v| *v == 0.0));
        assert!(zero.is_none(), "{method}: {:?} was not trained", zero.map(|t| &t.name));

        let images = case.images();
        let eval = lotep!("eval", "--adapter", adapter, "--data", images, "--format", "json").done().json();
        for key in ["top1", "images"] {
            assert_eq!(eval[key], facts["test"][key], "{method}: {key}");
        }
        // Other classes, and the data's own half.
        let shown = lotep!(
            "predict",
            "--adapter",
            adapter,
            "--classes",
            "red dot, blue dot",
            "--format",
            "json",
            images.join("test")
        );
        let line = &shown.done().json_lines()[0]["predictions"];
        assert!(line.as_array().unwrap().len() == 2 && line[0]["class"].as_str().unwrap().ends_with("dot"));
        let novel = lotep!(
            "eval",
            "--adapter",
            adapter,
            "--data",
            images,
            "--class-split",
            "novel",
            "--data-classes",
            "--format",
            "json"
        );
        assert_eq!(novel.done().json()["images"], TEST / 2, "{method}");
    }
}

/// A run that was stopped goes on to the same bits: random crops, the average over epochs.
#[test]
fn resuming_reaches_the_same_bits() {
    let case = Case::new();
    let options = [small("promptsrc"), &["--epochs", "3"]].concat();
    let mut whole =
        command(["train", "--method", "promptsrc", "--batch-size", "16", "--aggregate-mean", "2"]);
    whole.arg("--backbone").arg(clip(&case)).arg("--data").arg(case.images()).args(&options);
    whole.arg("--output").arg(case.path("whole"));
    run(whole).done();
    let protocol = read_json(&case.path("whole/result.json"))["run"]["protocol"].to_string();
    assert!(protocol.contains("mean, weighted"), "{protocol}");
    // The same, cut off behind its second epoch.
    let target = case.path("parts");
    fs::create_dir_all(target.join("checkpoints")).unwrap();
    let mut parts =
        command(["train", "--method", "promptsrc", "--batch-size", "16", "--aggregate-mean", "2"]);
    parts.arg("--backbone").arg(clip(&case)).arg("--data").arg(case.images()).args(&options);
    parts.arg("--output").arg(&target).args(["--resume", "--checkpoint-steps", "1"]);
    let mut child = parts.spawn().unwrap();
    let metrics = target.join("metrics.jsonl");
    for _ in 0..3000 {
        if fs::read_to_string(&metrics).unwrap_or_default().lines().count() >= 2
            || child.try_wait().unwrap().is_some()
        {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    run(parts).done();
    let model = |run: &str| fs::read(case.path(run).join("adapter/adapter_model.safetensors")).unwrap();
    assert!(model("whole") == model("parts"), "the adapters differ");
}

/// Any method for the image can be scored by names, and none for names by a classifier.
#[test]
fn names_and_classifiers_are_told_apart() {
    let case = Case::new();
    train(&case, "vpt-deep", &["--mapping", "text"]).done();
    let adapter = case.path("vpt-deep/adapter");
    lotep!("predict", "--adapter", adapter, "--classes", "red dot, blue dot", case.images()).done();
    train(&case, "linear-probe", &[]).done();
    train(&case, "coop", &["--mapping", "linear"]).refused(&["coop", "--mapping text"]);
    train(&case, "ivlp", &["--depth", "3"]).refused(&["ivlp: depth 3 is out of range; 1 to 2"]);
    let output = case.path("merged");
    lotep!("export", "--adapter", adapter, "--merge", "--output", output).refused(&["by their names"]);
    lotep!(
        "eval",
        "--adapter",
        adapter,
        "--data",
        case.images(),
        "--class-split",
        "novel",
        "--classes",
        "a,b"
    )
    .refused(&["is not one of the model's 2 classes"]);
}

/// A small CLIP of one's own: it is there, and reads.
#[test]
fn a_small_clip_is_trained() {
    let case = Case::new();
    let output = case.path("small");
    let ran = lotep!("demo", "pretrain-clip", "--steps", "1", "--output", output).done();
    assert!(ran.stdout.contains("zero-shot top1") && ran.stdout.contains("640 pictures"), "{ran}");
    let images = case.path("words");
    lotep!("demo", "draw", "--task", "words", "--images", "1", "--size", "32", "--output", images).done();
    let eval =
        lotep!("eval", "--backbone", output, "--data", images, "--class-split", "novel", "--format", "json");
    assert_eq!(eval.done().json()["images"], 40);
    let inspected = lotep!("inspect", "--backbone", output, "--format", "json").done().json();
    assert_eq!(inspected["text"]["blocks"], 3);
}
