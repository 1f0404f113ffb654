//! Protocols, and the split files that they read.

use std::fs;

use serde_json::{Value, json};

use crate::common::{CLASSES, Case, TEST, command, lotep, read_json, run};
use crate::files::write_file;

use super::clip;

/// Few images of half of the classes, as CoOp's split files list them.
#[test]
fn split_files_shots_and_halves() {
    let case = Case::new();
    let images = case.images();
    let list = |part: &str| -> Vec<Value> {
        let mut classes: Vec<_> = fs::read_dir(images.join(part))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        classes.sort();
        let mut all = Vec::new();
        for (label, class) in classes.iter().enumerate() {
            for file in fs::read_dir(images.join(part).join(class)).unwrap() {
                let name = file.unwrap().file_name().into_string().unwrap();
                all.push(json!([format!("{part}/{class}/{name}"), label, class.replace('-', " ")]));
            }
        }
        all
    };
    let split = images.join("split_zhou_Drawn.json");
    let (training, test) = (list("train"), list("test"));
    write_file(&split, json!({ "train": training, "val": [], "test": test }).to_string());
    let more = ["--shots", "2", "--class-split", "base", "--epochs", "1", "--seed", "3"];
    let mut command = command(["train", "--method", "coop", "--tokens", "4", "--batch-size", "4"]);
    command
        .arg("--backbone")
        .arg(clip(&case))
        .arg("--data")
        .arg(&split)
        .arg("--output")
        .arg(case.path("run"));
    run({
        command.args(more);
        command
    })
    .done();
    let result = read_json(&case.path("run/result.json"));
    let data = result["run"]["data"].as_str().unwrap();
    assert!(data.contains("split_zhou_Drawn.json") && data.contains("4 base classes"), "{data}");
    assert!(data.contains(&format!("{} train, 0 val, {} test", CLASSES, TEST / 2)), "{data}");
    assert_eq!(result["run"]["classes"].as_array().unwrap().len(), CLASSES / 2);
    let mut broken = training.clone();
    broken.push(json!(["train/heart/9999.png", 2, "heart"]));
    write_file(&split, json!({ "train": broken, "val": [], "test": test }).to_string());
    let backbone = clip(&case);
    lotep!("eval", "--backbone", backbone, "--data", split)
        .refused(&["train/heart/9999.png", "which is not in"]);
}

/// Base to novel classes, few shots, other data: tables from runs that can be gone on with.
#[test]
fn protocols_make_tables() {
    let case = Case::new();
    let (backbone, images) = (clip(&case), case.images());
    let follow = |which: &str, name: &str, more: &[&str]| {
        let mut command = command(["protocol", which, "--format", "json", "--seeds", "1,2"]);
        let settings = [
            format!("backbone={}", backbone.display()),
            format!("data={}", images.display()),
            "epochs=1".to_owned(),
            "batch_size=8".to_owned(),
            "method.tokens=4".to_owned(),
        ];
        for setting in &settings {
            command.args(["--set", setting]);
        }
        command.arg("--output").arg(case.path(name)).args(more);
        run(command)
    };
    let number = |v: &Value| v.as_f64().unwrap();
    let novel = ["--set", "method=coop,cocoop", "--shots", "2"];
    let rows = follow("base-to-novel", "novel", &novel).done().json_lines();
    assert_eq!(rows.len(), 2);
    for row in &rows {
        let columns = row["columns"].as_array().unwrap();
        let names: Vec<&str> = columns.iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["base", "novel"]);
        let [base, other] = [0, 1].map(|i| number(&columns[i]["mean"]));
        let both: Vec<f64> = columns[0]["top1"].as_array().unwrap().iter().map(number).collect();
        assert!(both.len() == 2 && (both[0] + both[1] - 2.0 * base).abs() < 1e-9);
        let expected = if base + other > 0.0 { 2.0 * base * other / (base + other) } else { 0.0 };
        assert!((number(&row["harmonic"]) - expected).abs() < 1e-9, "{row}");
    }
    // Nothing is done again, and nothing else comes out.
    let metrics = case.path("novel/001/shots-2-seed-1/metrics.jsonl");
    let before = fs::metadata(&metrics).unwrap().modified().unwrap();
    assert_eq!(follow("base-to-novel", "novel", &novel).done().json_lines(), rows);
    assert_eq!(fs::read_to_string(&metrics).unwrap().lines().count(), 1);
    assert!(fs::metadata(&metrics).unwrap().modified().unwrap() >= before);
    assert_eq!(read_json(&case.path("novel/result.json"))["rows"], Value::Array(rows));

    let few = follow("few-shot", "few", &["--set", "method=coop", "--shots", "1,2"]).done().json();
    assert_eq!(few["columns"][1]["name"], "2 shots");
    let to = images.display().to_string();
    let cross =
        follow("cross-data", "cross", &["--set", "method=coop", "--shots", "1", "--to", &to]).done().json();
    assert_eq!(cross["columns"][0]["top1"], cross["columns"][1]["top1"]);
    // What is there is not written over, and no two columns are one.
    let before = fs::read(case.path("few/result.json")).unwrap();
    let coop = ["--set", "method=coop", "--shots", "1"];
    follow("few-shot", "few", &coop).refused(&["few", "another protocol", "--output"]);
    follow("few-shot", "cross/shots-1-seed-1", &coop).refused(&["a training run (config.toml)", "--output"]);
    assert_eq!(fs::read(case.path("few/result.json")).unwrap(), before);
    follow("cross-data", "twice", &[&coop[..], &["--to", &to, "--to", &to]].concat())
        .refused(&["two columns"]);
    follow("few-shot", "twice", &["--set", "method=coop", "--shots", "2,2"]).refused(&["2 shots"]);
    let mut command = command(["protocol", "base-to-novel", "--set", "method=linear-probe", "--output"]);
    command.arg(case.path("none"));
    for setting in [format!("backbone={}", backbone.display()), format!("data={to}")] {
        command.args(["--set", &setting]);
    }
    run(command).refused(&["linear-probe", "knows no others"]);
}

/// Nothing set: as long, and at the rate, of the method's paper in this protocol.
#[test]
fn protocols_train_as_papers_do() {
    let case = Case::new();
    let mut command = command(["protocol", "cross-data", "--seeds", "1", "--shots", "1"]);
    let images = case.images();
    for setting in [
        format!("backbone={}", clip(&case).display()),
        format!("data={}", images.display()),
        "method=maple".to_owned(),
        "method.depth=2".to_owned(),
    ] {
        command.args(["--set", &setting]);
    }
    command.arg("--output").arg(case.path("cross")).arg("--to").arg(&images);
    let ran = run(command).done();
    assert!(ran.stderr.contains("as in its paper: epochs 2, rate 0.0026"), "{ran}");
    let result = read_json(&case.path("cross/shots-1-seed-1/result.json"));
    let config = &result["run"]["config"];
    assert_eq!((&config["epochs"], &config["prompt_lr"]), (&2.into(), &0.0026.into()));
    assert_eq!(config["method"]["depth"], 2);
}
