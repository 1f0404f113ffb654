//! `predict`: what it prints, in which order, and the file of scores.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{CLASSES, Case, Net, OWN_CLASSES, TEST, files_under, lotep, read_json, read_tensors};

/// The first class named on a line `PATH<tab>CLASS 12.3%, …`, with the path.
fn best(line: &str) -> (&str, &str) {
    let (path, named) = line.split_once('\t').expect("a path, a tab, classes");
    (path, named.split_once(' ').unwrap().0)
}

fn folder_of(path: &str) -> &str {
    Path::new(path).parent().unwrap().file_name().unwrap().to_str().unwrap()
}

#[test]
fn as_many_are_right_as_eval_and_the_result_say_in_the_order_of_the_folder() {
    for net in Net::BOTH {
        let case = Case::new();
        let options = ["--method", "lotep-tk", "--prompt-lr", "0.05", "--lr", "0.3", "--epochs", "20"];
        case.train(net, "run", &options).done();
        let adapter = case.path("run/adapter");
        let result = read_json(&case.path("run/result.json"))["train"]["test"]["top1"].clone();
        for split in ["train", "test"] {
            let folder = case.images().join(split);
            let ran = lotep!("predict", "--adapter", adapter, folder).done();
            let lines: Vec<_> = ran.stdout.lines().map(best).collect();
            let listed = files_under(&folder);
            assert_eq!(lines.iter().map(|(path, _)| PathBuf::from(path)).collect::<Vec<_>>(), listed);
            let right = lines.iter().filter(|(path, class)| folder_of(path) == *class).count();
            let share = 100.0 * right as f64 / listed.len() as f64;
            let (images, format) = (case.images(), ["--split", split, "--format", "json"]);
            let eval = lotep!(
                "eval",
                "--adapter",
                adapter,
                "--data",
                images,
                format[0],
                format[1],
                format[2],
                format[3]
            );
            let top1 = eval.done().json()["top1"].as_f64().unwrap();
            assert!((share - top1).abs() < 1e-9, "{split}: {right} of {} and {top1} %", listed.len());
            match split {
                "test" => assert_eq!(result, top1),
                // A share that guessing reaches too would show nothing.
                _ => assert!(share > 200.0 / CLASSES as f64, "{right} of {} are right", listed.len()),
            }
        }
    }
}

#[test]
fn files_keep_the_order_in_which_they_are_given() {
    let case = Case::new();
    let adapter = case.adapter(Net::Vit, "linear-probe");
    let mut files = files_under(&case.images().join("test"));
    files.reverse();
    let (first, second, last) = (&files[0], &files[5], &files[9]);
    let folder = second.parent().unwrap();
    // A directory stands for its files at its place; a file named twice is predicted twice.
    let ran = lotep!("predict", "--adapter", adapter, "--batch-size", "2", last, folder, first, last).done();
    let given: Vec<_> = ran.stdout.lines().map(|l| PathBuf::from(best(l).0)).collect();
    let mut expected = vec![last.clone()];
    expected.extend(files_under(folder));
    expected.extend([first.clone(), last.clone()]);
    assert_eq!(given, expected);
    let line = |i: usize| ran.stdout.lines().nth(i).unwrap();
    assert_eq!(line(0), line(given.len() - 1), "the same image, the same answer, whatever its neighbours");
}

#[test]
fn json_lines_and_the_file_of_scores_agree() {
    let case = Case::new();
    let adapter = case.adapter(Net::ResNet, "lor-vp");
    let (test, scores) = (case.images().join("test"), case.path("deep/scores.safetensors"));
    let ran = lotep!(
        "predict",
        "--adapter",
        adapter,
        "--format",
        "json",
        "--top-k",
        "100",
        "--logits",
        scores,
        test
    );
    let lines = ran.done().json_lines();
    let (tensors, metadata) = read_tensors(&scores);
    let paths: Vec<String> = serde_json::from_str(&metadata["paths"]).unwrap();
    let logits = tensors.iter().find(|t| t.name == "logits").unwrap();
    assert_eq!((tensors.len(), &logits.shape[..]), (1, &[TEST, CLASSES][..]));
    assert_eq!(lines.iter().map(|l| l["path"].as_str().unwrap()).collect::<Vec<_>>(), paths);
    let classes = read_json(&adapter.join("adapter_config.json"))["classes"].clone();
    for (line, row) in lines.iter().zip(logits.values.chunks_exact(CLASSES)) {
        let named = line["predictions"].as_array().unwrap();
        assert_eq!(named.len(), CLASSES, "--top-k beyond the classes names them all");
        let number = |v: &Value, key: &str| v[key].as_f64().unwrap();
        let sum: f64 = named.iter().map(|p| number(p, "probability")).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{line}");
        assert!(named.is_sorted_by(|a, b| number(a, "logit") >= number(b, "logit")), "{line}");
        for p in named {
            let index = p["index"].as_u64().unwrap() as usize;
            assert_eq!(p["class"], classes[index]);
            assert_eq!((p["logit"].as_f64().unwrap() as f32).to_bits(), row[index].to_bits());
        }
    }
}

#[test]
fn a_network_without_an_adapter_uses_its_own_classifier_and_numbers_the_classes() {
    let case = Case::new();
    let (backbone, images) = (case.backbone(Net::ResNet), case.images());
    let ran = lotep!("predict", "--backbone", backbone, "--top-k", "2", images.join("test")).done();
    assert_eq!(ran.stdout.lines().count(), TEST);
    for line in ran.stdout.lines() {
        assert!(best(line).1.parse::<usize>().unwrap() < OWN_CLASSES, "{line}");
        assert_eq!(line.matches('%').count(), 2, "{line}");
    }
}

#[test]
fn an_adapter_finds_its_backbone_by_itself_or_takes_the_one_given() {
    let case = Case::new();
    let adapter = case.adapter(Net::Vit, "lotep-cp");
    let test = case.images().join("test");
    let alone = lotep!("predict", "--adapter", adapter, test).done().stdout;
    let moved = case.path("elsewhere");
    std::fs::rename(case.backbone(Net::Vit), &moved).unwrap();
    let given = lotep!("predict", "--adapter", adapter, "--backbone", moved, test).done().stdout;
    assert_eq!(alone, given);
    // Without it the message says where it was looked for.
    lotep!("predict", "--adapter", adapter, test).refused(&["Vit", "no backbone at"]);
}

#[test]
fn corrupt_images_can_be_left_out() {
    let case = Case::new();
    let adapter = case.adapter(Net::Vit, "linear-probe");
    let test = case.images().join("test");
    let files = files_under(&test);
    std::fs::write(&files[3], "not an image").unwrap();
    let broken = files[3].to_str().unwrap();
    let (scores, skip) = (case.path("scores.safetensors"), ["--on-corrupt", "skip"]);
    let ran = lotep!("predict", "--adapter", adapter, skip[0], skip[1], "--logits", scores, test).done();
    assert_eq!(ran.stdout.lines().count(), TEST - 1);
    assert!(!ran.stdout.contains(broken) && ran.stderr.contains(broken), "{ran}");
    let (tensors, metadata) = read_tensors(&scores);
    assert_eq!(tensors[0].shape, [TEST - 1, CLASSES]);
    assert!(!metadata["paths"].contains(broken));
    let ran = lotep!("predict", "--adapter", adapter, test);
    assert_eq!(ran.code, Some(1), "{ran}");
    assert!(ran.message().contains(broken), "{ran}");
}
