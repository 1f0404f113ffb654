//! Classes by their names, and what is kept of them.

use std::fs;
use std::path::PathBuf;

use crate::common::{CLASSES, Case, Net, TEST, command, lotep, read_json, run};
use crate::files::write_file;

use super::{clip, small, train};

#[test]
fn classes_by_name_without_training() {
    let case = Case::new();
    let (backbone, images) = (clip(&case), case.images());
    let eval = lotep!("eval", "--backbone", backbone, "--data", images, "--format", "json").done().json();
    assert_eq!(eval["images"], TEST);
    let one = |more: &[&str]| {
        let mut command = command(["predict", "--format", "json", "--backbone"]);
        command.arg(&backbone).args(more).arg(images.join("test"));
        run(command)
    };
    let scores = |more: &[&str]| {
        let lines = one(more).done().json_lines();
        lines.iter().map(|l| l["predictions"][0]["logit"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let plain = scores(&["--classes", "heart, spiral"]);
    assert_eq!(plain, scores(&["--classes", "heart,spiral", "--template", "a photo of a {}."]));
    assert_ne!(plain, scores(&["--classes", "heart,spiral", "--template", "a {}", "--template", "the {}"]));
    write_file(&case.path("names.txt"), "heart\n\nspiral\n");
    let listed = format!("@{}", case.path("names.txt").display());
    assert_eq!(plain, scores(&["--classes", &listed]));
    // An image tower has no other classifier than its projection: what it said before, it says still.
    assert_eq!(one(&[]).done().json_lines()[0]["predictions"].as_array().unwrap().len(), 5);

    let long = "x".repeat(80);
    for (more, words) in [
        (vec!["--classes", "heart"], vec!["1 class", "two names"]),
        (vec!["--classes", "heart,,spiral"], vec!["class 2 has an empty name"]),
        (vec!["--classes", "heart,Heart"], vec!["`Heart` comes twice"]),
        (vec!["--classes", "@nowhere.txt"], vec!["nowhere.txt"]),
        (vec!["--classes", "herz, größe"], vec!["größe", "is no token of", "vocab.json"]),
        (vec!["--classes", "a,b", "--template", "a photo"], vec!["a photo", "has no {}"]),
        (vec!["--template", "a {}"], vec!["--classes"]),
    ] {
        one(&more).refused(&words);
    }
    one(&["--classes", &format!("heart,{long}")]).refused(&["tokens with its start and end", "77 at most"]);
    for file in ["vocab.json", "merges.txt"] {
        fs::remove_file(backbone.join(file)).unwrap();
    }
    one(&["--classes", "a,b"]).refused(&["no vocabulary of words", "tokenizer.json"]);
    let vit = case.backbone(Net::Vit);
    lotep!("predict", "--backbone", vit, "--classes", "a,b", images).refused(&["no text tower", "CLIP"]);
    let adapter = case.adapter(Net::Vit, "linear-probe");
    lotep!("predict", "--adapter", adapter, "--classes", "a,b", images).refused(&["its own 8 classes"]);
}

/// Errors are those of `eval` on the same classes: the adapter's own, the data's half, the data's names, given names.
#[test]
fn errors_are_of_the_classes_that_are_asked_for() {
    let case = Case::new();
    train(&case, "coop", &[small("coop"), &["--class-split", "base"]].concat()).done();
    let (adapter, images) = (case.path("coop/adapter"), case.images());
    let both = |more: &[&str]| {
        let mut eval = command(["eval", "--format", "json", "--adapter"]);
        eval.arg(&adapter).arg("--data").arg(&images).args(more);
        let output = case.path("looks");
        let mut errors = command(["analyze", "errors", "--adapter"]);
        errors.arg(&adapter).arg("--data").arg(&images).arg("--output").arg(&output).args(more);
        let eval = run(eval);
        let errors = run(errors);
        assert_eq!(eval.code, errors.code, "{eval}{errors}");
        if eval.code == Some(1) {
            assert_eq!(eval.message(), errors.message());
            return None;
        }
        let (eval, found) = (eval.done().json(), read_json(&output.join("errors.json")));
        for key in ["top1", "images"] {
            assert_eq!(found["accuracy"][key], eval[key], "{more:?}");
        }
        Some(found["classes"].as_array().unwrap().len())
    };
    assert_eq!(both(&["--class-split", "base"]), Some(CLASSES / 2));
    assert_eq!(both(&["--class-split", "novel", "--data-classes"]), Some(CLASSES / 2));
    assert_eq!(both(&["--data-classes"]), Some(CLASSES));
    let names = fs::read_dir(images.join("test")).unwrap();
    let mut names: Vec<String> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.push("something else".into());
    assert_eq!(both(&["--classes", &names.join(",")]), Some(CLASSES + 1));
    // Classes that the adapter has not learnt are none of its own.
    assert_eq!(both(&[]), None);
    assert_eq!(both(&["--class-split", "novel"]), None);
}

/// Vectors of many classes are kept, and a damaged file is made again.
#[test]
fn texts_are_encoded_once_for_all() {
    let case = Case::new();
    let (backbone, images) = (clip(&case), case.images());
    let names: Vec<String> = (0..130).map(|i| format!("n{i}")).collect();
    let cache = case.path("cache");
    let predict = |more: &[&str]| {
        let mut command = command(["predict", "--format", "json", "--top-k", "130", "--backbone"]);
        command.arg(&backbone).env("LOTEP_TEXT_CACHE", &cache).args(["--classes", &names.join(",")]);
        command.args(more).arg(images.join("test"));
        run(command).done()
    };
    let files = || {
        let mut all: Vec<PathBuf> = fs::read_dir(&cache).unwrap().map(|e| e.unwrap().path()).collect();
        all.sort();
        all
    };
    let first = predict(&[]);
    assert_eq!(files().len(), 1);
    let written = fs::read(&files()[0]).unwrap();
    let second = predict(&[]);
    assert_eq!((second.stdout == first.stdout, second.stderr.as_str()), (true, first.stderr.as_str()));
    fs::write(&files()[0], &written[..written.len() / 2]).unwrap();
    let mended = predict(&[]);
    assert!(mended.stderr.contains("warning: ") && mended.stderr.contains("encoded again"), "{mended}");
    assert!(mended.stdout == first.stdout && fs::read(&files()[0]).unwrap() == written);
    // Other sentences and another precision are other files.
    predict(&["--template", "the {}"]);
    predict(&["--precision", "bf16"]);
    assert!(files().len() >= 2, "{:?}", files());
    let mut other = command(["eval", "--backbone"]);
    other.arg(&backbone).arg("--data").arg(&images).env("LOTEP_TEXT_CACHE", case.path("none"));
    run(other).done();
    assert!(!case.path("none").exists(), "few texts are not worth it");
}
