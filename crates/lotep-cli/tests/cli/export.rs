//! `export --merge`: a plain network that gives the adapter's answers.

use std::path::Path;

use serde_json::json;

use crate::common::{CLASSES, Case, Net, TEST, lotep, read_json, read_tensors};

/// Largest difference of two files of scores, relative to the largest score.
fn difference(a: &Path, b: &Path) -> f32 {
    let scores = |path: &Path| read_tensors(path).0.swap_remove(0);
    let (a, b) = (scores(a), scores(b));
    assert_eq!((&a.shape, &a.shape), (&b.shape, &vec![TEST, CLASSES]));
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, f32::max);
    let most = largest(&mut a.values.iter().map(|v| v.abs()));
    assert!(most > 0.01, "scores that are all zero show nothing");
    largest(&mut a.values.iter().zip(&b.values).map(|(a, b)| (a - b).abs())) / most
}

fn merges(net: Net, method: &str, more: &[&str]) {
    let case = Case::new();
    // Enough steps that the prompts matter.
    case.train(
        net,
        "run",
        &[&["--method", method, "--epochs", "4", "--lr", "0.1", "--precision", "f32"], more].concat(),
    )
    .done();
    let (adapter, merged, images) =
        (case.path("run/adapter"), case.path("merged"), case.images().join("test"));
    let ran = lotep!("export", "--adapter", adapter, "--merge", "--output", merged).done();
    assert!(ran.stdout.contains("8 classes") && ran.stdout.contains("merged"), "{ran}");

    let (before, after) = (case.path("before"), case.path("after"));
    lotep!("predict", "--adapter", adapter, "--precision", "f32", "--logits", before, images).done();
    lotep!("predict", "--backbone", merged, "--precision", "f32", "--logits", after, images).done();
    let found = difference(&before, &after);
    assert!(found < 1e-5, "{net:?} {method}: {found:e}");

    // What is exported has the names and shapes that it came with, but for the classes.
    let (tensors, metadata) = read_tensors(&merged.join("model.safetensors"));
    let mut shapes = net.shapes();
    shapes.sort();
    for ((name, shape), tensor) in shapes.iter_mut().zip(&tensors) {
        if name.starts_with("fc.") || name.starts_with("head.") {
            shape[0] = CLASSES;
        }
        if name == "pos_embed" && more.contains(&"--image-size") {
            shape[1] = 1 + 3 * 3;
        }
        assert_eq!((&*name, &*shape), (&tensor.name, &tensor.shape));
    }
    assert_eq!(shapes.len(), tensors.len());
    assert_eq!(metadata["format"], "pt");
    let config = read_json(&merged.join("config.json"));
    assert_eq!(config["num_classes"], CLASSES);
    let classes = &read_json(&adapter.join("adapter_config.json"))["classes"];
    assert_eq!(&config["pretrained_cfg"]["label_names"], classes);

    lotep!("export", "--adapter", adapter, "--merge", "--output", merged)
        .refused(&["already holds", "merged"]);
}

#[test]
fn a_linear_probe_on_a_resnet() {
    merges(Net::ResNet, "linear-probe", &[]);
}

#[test]
fn a_linear_probe_on_a_vit() {
    merges(Net::Vit, "linear-probe", &[]);
}

#[test]
fn an_image_prompt_on_a_vit() {
    merges(Net::Vit, "lor-vp", &["--prompt-lr", "5"]);
}

#[test]
fn the_first_blocks_prompt_on_a_vit() {
    // One of two blocks, and the image.
    merges(Net::Vit, "lotep-tk", &["--depth-ratio", "0.5"]);
}

/// Its position embeddings are resampled, and exported like that.
#[test]
fn a_vit_for_larger_images() {
    merges(Net::Vit, "linear-probe", &["--image-size", "48"]);
}

#[test]
fn what_cannot_be_merged_is_said() {
    let case = Case::new();
    let output = case.path("merged");
    let adapter = case.adapter(Net::ResNet, "lotep-tk");
    lotep!("export", "--adapter", adapter, "--merge", "--output", output)
        .refused(&["lotep-tk", "image", "layer1.0", "layer3.0"]);
    case.train(Net::Vit, "vit", &["--method", "lotep-cp", "--depth-ratio", "1"]).done();
    lotep!("export", "--adapter", case.path("vit/adapter"), "--merge", "--output", output)
        .refused(&["lotep-cp", "blocks.1"]);
    case.train(Net::ResNet, "lor", &["--method", "lor-vp"]).done();
    lotep!("export", "--adapter", case.path("lor/adapter"), "--merge", "--output", output)
        .refused(&["lor-vp", "image"]);
    assert!(!output.exists(), "nothing is written");
    lotep!("export", "--adapter", adapter, "--output", output).misused(&["--merge"]);
    lotep!("export", "--backbone", case.backbone(Net::Vit), "--merge", "--output", output)
        .refused(&["--adapter"]);
}

#[test]
fn an_exported_network_can_be_adapted_again() {
    let case = Case::new();
    let adapter = case.adapter(Net::Vit, "lor-vp");
    let (merged, run) = (case.path("merged"), case.path("again"));
    lotep!("export", "--adapter", adapter, "--merge", "--output", merged, "--format", "json").done();
    let images = case.images();
    lotep!(
        "train",
        "--backbone",
        merged,
        "--data",
        images,
        "--output",
        run,
        "--epochs",
        "1",
        "--method",
        "lotep-tk"
    )
    .done();
    let inspect = lotep!("inspect", "--backbone", merged, "--format", "json").done().json();
    assert_eq!(
        (&inspect["classes"], &inspect["preprocess"]["crop_mode"]),
        (&json!(CLASSES), &json!("squash"))
    );
}
