//! The binary version of CIFAR-10, in the format in which its authors publish it.

use std::path::{Path, PathBuf};

use crate::common::{Case, Dice, Net, lotep, read_json};
use crate::files::write_file;

const NAMES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
/// A label, then a plane each of red, green and blue, 32 x 32.
const RECORD: usize = 1 + 3 * 32 * 32;

/// Five files to train on and one to test on, two images a class in each: dark ones for the first class, bright
/// ones for the last.
fn download(dir: &Path) -> PathBuf {
    let mut dice = Dice(5);
    let files = (1..=5).map(|i| format!("data_batch_{i}.bin")).chain(["test_batch.bin".into()]);
    for file in files {
        let mut bytes = Vec::new();
        for label in (0..20).map(|i| (i * 7 % 10) as u8) {
            bytes.push(label);
            bytes.extend((1..RECORD).map(|_| 24 * label + (dice.next() % 32) as u8));
        }
        write_file(&dir.join(file), bytes);
    }
    write_file(&dir.join("batches.meta.txt"), NAMES.join("\n") + "\n\n");
    dir.to_owned()
}

#[test]
fn it_trains_whether_named_or_recognised_and_gives_the_same() {
    let case = Case::new();
    let (backbone, archive) = (case.backbone(Net::Vit), case.path("data"));
    // What the archive unpacks to is found in the directory it was unpacked in.
    let inner = download(&archive.join("cifar-10-batches-bin"));
    let train = |output: &str, data: &Path, more: &[&str]| {
        let mut command = crate::common::command(["train", "--method", "linear-probe", "--epochs", "6"]);
        command.args(["--batch-size", "20", "--lr", "0.1"]).arg("--backbone").arg(&backbone);
        command.arg("--data").arg(data).arg("--output").arg(case.path(output)).args(more);
        crate::common::run(command).done();
        read_json(&case.path(output).join("result.json"))
    };
    let named = train("named", &archive, &["--dataset", "cifar10"]);
    let found = train("found", &inner, &[]);
    assert_eq!(named["train"]["test"], found["train"]["test"]);
    assert_eq!(named["run"]["classes"], serde_json::json!(NAMES));
    let data = found["run"]["data"].as_str().unwrap();
    assert!(data.contains("cifar10") && data.contains("100 train") && data.contains("20 test"), "{data}");
    // Were labels or planes read at the wrong place, brightness would say nothing.
    let top1 = named["train"]["test"]["top1"].as_f64().unwrap();
    assert!(top1 > 20.0, "{top1} % of classes told by brightness");

    let eval = lotep!("eval", "--adapter", case.path("named/adapter"), "--data", archive, "--format", "json");
    assert_eq!(eval.done().json()["top1"], named["train"]["test"]["top1"]);
    let inspect = lotep!("inspect", "--data", archive, "--format", "json").done().json();
    assert_eq!(inspect["splits"][0]["formats"], serde_json::json!({ "raw": 100 }));
}

#[test]
fn an_incomplete_download_is_named() {
    let case = Case::new();
    let (backbone, dir, output) = (case.backbone(Net::Vit), download(&case.path("data")), case.path("run"));
    let train = |more: &str| {
        lotep!("train", "--backbone", backbone, "--data", dir, "--output", output, "--dataset", more)
    };
    train("cifar100").refused(&["cifar100", "train.bin"]);
    train("cifar11").misused(&["cifar11", "cifar100"]);
    let third = dir.join("data_batch_3.bin");
    let bytes = std::fs::read(&third).unwrap();
    std::fs::write(&third, &bytes[..bytes.len() - 1]).unwrap();
    train("cifar10").refused(&["data_batch_3.bin", "incomplete"]);
    let mut wrong = bytes.clone();
    wrong[RECORD] = 10;
    std::fs::write(&third, wrong).unwrap();
    train("cifar10").refused(&["data_batch_3.bin", "label 10"]);
    std::fs::remove_file(&third).unwrap();
    train("cifar10").refused(&["data_batch_3.bin"]);
}
