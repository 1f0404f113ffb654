//! Directories that hold no data set, and images that are broken.

use std::fs;
use std::path::Path;

use crate::common::{Case, Net, Ran, TEST, files_under, lotep, read_json, text};

fn train(case: &Case, data: &Path, more: &[&str]) -> Ran {
    let mut command = crate::common::command(["train", "--epochs", "1", "--batch-size", "16", "--output"]);
    command
        .arg(case.path("run"))
        .arg("--backbone")
        .arg(case.backbone(Net::Vit))
        .arg("--data")
        .arg(data)
        .args(more);
    crate::common::run(command)
}

#[test]
fn directories_that_hold_no_data_set() {
    let case = Case::new();
    let root = case.path("data");
    train(&case, &root, &[]).refused(&[text(&root)]);
    fs::create_dir(&root).unwrap();
    train(&case, &root, &[]).refused(&[text(&root), "empty", "folder of images for each class"]);

    // Class folders, one of them empty.
    for class in ["ant", "bee"] {
        fs::create_dir(root.join(class)).unwrap();
    }
    train(&case, &root, &[]).refused(&[text(&root), "no image"]);
    let image = files_under(&case.images())[0].clone();
    fs::copy(&image, root.join("ant/1.png")).unwrap();
    train(&case, &root, &[]).refused(&["bee", "holds no image"]);
    fs::write(root.join("bee/notes.txt"), "notes").unwrap();
    train(&case, &root, &[]).refused(&["bee", "holds no image"]);

    // One class only.
    fs::remove_dir_all(root.join("bee")).unwrap();
    train(&case, &root, &[]).refused(&[text(&root), "one class only", "`ant`"]);

    // Images without class folders; a file in a directory's place; the parent of a data set.
    fs::rename(root.join("ant/1.png"), root.join("1.png")).unwrap();
    fs::remove_dir(root.join("ant")).unwrap();
    train(&case, &root, &[]).refused(&[text(&root), "1 images", "no class folders"]);
    train(&case, &root.join("1.png"), &[]).refused(&["1.png is a file"]);
    let parent = case.path("parent");
    fs::create_dir(&parent).unwrap();
    fs::rename(case.images(), parent.join("photos")).unwrap();
    train(&case, &parent, &[]).refused(&["did you mean", "photos"]);
    assert!(!case.path("run").exists());
}

#[test]
fn a_test_class_that_is_not_trained_on() {
    let case = Case::new();
    let images = case.images();
    let image = files_under(&images)[0].clone();
    fs::create_dir(images.join("test/zebra")).unwrap();
    fs::copy(image, images.join("test/zebra/1.png")).unwrap();
    train(&case, &images, &[]).refused(&["zebra", "training images do not have"]);
}

#[test]
fn a_corrupt_image_ends_the_run_and_is_named() {
    let case = Case::new();
    let images = case.images();
    let image = files_under(&images.join("train"))[5].clone();
    let whole = fs::read(&image).unwrap();
    for (content, why) in [
        (&b"this is text"[..], "not a JPEG, PNG, WebP, BMP or PPM image"),
        (b"", "empty"),
        (&whole[..whole.len() / 2], "cannot decode"),
    ] {
        fs::write(&image, content).unwrap();
        for method in ["linear-probe", "lotep-cp"] {
            train(&case, &images, &["--method", method]).refused(&[text(&image), why]);
            fs::remove_dir_all(case.path("run")).unwrap();
        }
    }
}

#[test]
fn corrupt_images_are_left_out_when_asked_and_listed() {
    for method in ["linear-probe", "lotep-tk"] {
        let case = Case::new();
        let images = case.images();
        let broken =
            [files_under(&images.join("train"))[5].clone(), files_under(&images.join("test"))[0].clone()];
        fs::write(&broken[0], "this is text").unwrap();
        fs::write(&broken[1], "").unwrap();
        let ran = train(&case, &images, &["--method", method, "--on-corrupt", "skip"]).done();
        for path in &broken {
            assert!(ran.stderr.contains(&format!("warning: skipped corrupt image {}", text(path))), "{ran}");
        }
        let facts = read_json(&case.path("run/result.json"))["train"].clone();
        assert_eq!(facts["skipped"], serde_json::json!([text(&broken[1]), text(&broken[0])]));
        assert_eq!(facts["test"]["images"], TEST - 1);

        let adapter = case.path("run/adapter");
        let eval = lotep!(
            "eval",
            "--adapter",
            adapter,
            "--data",
            images,
            "--on-corrupt",
            "skip",
            "--format",
            "json"
        );
        let eval = eval.done().json();
        assert_eq!(
            (&eval["images"], &eval["skipped"][0]),
            (&facts["test"]["images"], &text(&broken[1]).into())
        );
        let ran = lotep!("eval", "--adapter", adapter, "--data", images);
        ran.refused(&[text(&broken[1])]);
    }
}

#[test]
fn nothing_left_to_learn_from_or_to_measure() {
    let case = Case::new();
    let images = case.images();
    let adapter = case.adapter(Net::Vit, "linear-probe");
    fs::remove_dir_all(case.path("run/result.json").parent().unwrap().join("checkpoints")).unwrap();
    for path in files_under(&images) {
        fs::write(path, "this is text").unwrap();
    }
    lotep!("eval", "--adapter", adapter, "--data", images, "--on-corrupt", "skip")
        .refused(&["no image could be read"]);
    for method in ["linear-probe", "lor-vp"] {
        let mut command = case.training(Net::Vit, method, &["--method", method, "--on-corrupt", "skip"]);
        command.stdin(std::process::Stdio::null());
        crate::common::run(command).refused(&["no training image could be decoded"]);
    }
}

#[test]
fn eval_wants_the_adapters_classes() {
    let case = Case::new();
    let adapter = case.adapter(Net::Vit, "linear-probe");
    let images = case.images();
    let class = read_json(&adapter.join("adapter_config.json"))["classes"][0].as_str().unwrap().to_owned();
    for split in ["train", "test"] {
        fs::rename(images.join(split).join(&class), images.join(split).join("unheard-of")).unwrap();
    }
    lotep!("eval", "--adapter", adapter, "--data", images).refused(&["`unheard-of`", "8 classes"]);
    // Fewer classes are fine: the same images keep their labels.
    for split in ["train", "test"] {
        fs::remove_dir_all(images.join(split).join("unheard-of")).unwrap();
    }
    let ran = lotep!("eval", "--adapter", adapter, "--data", images).done();
    assert!(ran.stdout.contains(&format!("{} images", TEST - 2)), "{ran}");
    lotep!("eval", "--adapter", adapter, "--data", images, "--split", "val")
        .refused(&["no val split", "train, test"]);
    lotep!("eval", "--adapter", adapter, "--data", images, "--split", "dev").misused(&["dev", "test"]);
    // The network's own classifier has no names to match by.
    lotep!("eval", "--backbone", case.backbone(Net::Vit), "--data", images)
        .refused(&["7 classes", "classifier 12"]);
}

#[test]
fn predict_wants_images() {
    let case = Case::new();
    let backbone = case.backbone(Net::Vit);
    let (file, empty) = (case.path("notes.txt"), case.path("empty"));
    fs::write(&file, "notes").unwrap();
    fs::create_dir(&empty).unwrap();
    lotep!("predict", "--backbone", backbone, file)
        .refused(&["notes.txt", "not a JPEG, PNG, WebP, BMP or PPM image"]);
    lotep!("predict", "--backbone", backbone, empty).refused(&["empty", "holds no image"]);
    lotep!("predict", "--backbone", backbone, case.path("nowhere.png")).refused(&["nowhere.png"]);
    lotep!("predict", "--backbone", backbone).misused(&["PATH"]);
    lotep!("predict", file).refused(&["--backbone", "--adapter"]);
    lotep!("predict", "--backbone", backbone, "--top-k", "0", file).misused(&["--top-k", "0"]);
}
