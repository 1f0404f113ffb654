//! Adapters that are damaged, incomplete, newer, or meet another network than their own.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::common::{Case, Net, Ran, lotep, read_json, read_tensors, sha256, text, write_tensors};

/// An adapter, and what the commands that take one say to it.
struct Adapted {
    case: Case,
    adapter: PathBuf,
}

impl Adapted {
    fn new() -> Self {
        let case = Case::new();
        let adapter = case.adapter(Net::ResNet, "lotep-tk");
        Self { case, adapter }
    }

    fn config(&self) -> PathBuf {
        self.adapter.join("adapter_config.json")
    }

    fn tensors(&self) -> PathBuf {
        self.adapter.join("adapter_model.safetensors")
    }

    /// Predict with it, on `backbone` or on its own.
    fn predict(&self, backbone: Option<&Path>) -> Ran {
        let mut command = crate::common::command(["predict", "--adapter"]);
        command.arg(&self.adapter).args(backbone.iter().flat_map(|b| ["--backbone".as_ref(), b.as_os_str()]));
        command.arg(self.case.images().join("test"));
        crate::common::run(command)
    }

    /// The same with `value` at `path` of its configuration.
    fn changed(&self, path: &str, value: Value) -> Ran {
        let before = fs::read(self.config()).unwrap();
        let mut config = read_json(&self.config());
        *config.pointer_mut(path).expect("the field is there") = value;
        fs::write(self.config(), config.to_string()).unwrap();
        let ran = self.predict(None);
        fs::write(self.config(), before).unwrap();
        ran
    }
}

#[test]
fn another_network_of_the_same_architecture() {
    let adapted = Adapted::new();
    // The shapes are the same, the numbers are not: without the hash it would give wrong answers in silence.
    let other = Case::new();
    let dir = other.backbone_with(Net::ResNet, &Net::ResNet.config(), &Net::ResNet.weights(2));
    adapted.predict(Some(&dir)).refused(&["adapter_config.json", "`backbone.sha256`", text(&dir)]);
    let vit = other.backbone(Net::Vit);
    adapted.predict(Some(&vit)).refused(&["`backbone.name`", "resnet18", "vit_tiny_patch16_224"]);
    let images = adapted.case.images();
    lotep!("eval", "--adapter", adapted.adapter, "--backbone", dir, "--data", images)
        .refused(&["`backbone.sha256`"]);
    let merged = adapted.case.path("merged");
    lotep!("export", "--adapter", adapted.adapter, "--backbone", dir, "--merge", "--output", merged)
        .refused(&["`backbone.sha256`"]);
    // The same weights under other statistics of the pixels.
    let mut config = Net::ResNet.config();
    config["pretrained_cfg"]["mean"] = json!([0.1, 0.1, 0.1]);
    let dir = other.backbone_with(Net::ResNet, &config, &Net::ResNet.weights(1));
    adapted.predict(Some(&dir)).refused(&["adapter_config.json", "`input.mean`", "0.45"]);
    adapted.predict(None).done();
}

#[test]
fn damaged_tensors() {
    let adapted = Adapted::new();
    let file = adapted.tensors();
    let whole = fs::read(&file).unwrap();
    for bytes in [&whole[..whole.len() - 4], &whole[..whole.len() / 3], &whole[..3], b""] {
        fs::write(&file, bytes).unwrap();
        adapted.predict(None).refused(&[text(&file), "not a valid safetensors file"]);
        lotep!("inspect", "--adapter", adapted.adapter).refused(&[text(&file)]);
    }
    // One bit: the shapes are right, only the hash tells.
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(&file, flipped).unwrap();
    adapted.predict(None).refused(&[text(&file), "`tensors_sha256`"]);
    fs::remove_file(&file).unwrap();
    adapted.predict(None).refused(&[text(&file)]);
}

#[test]
fn tensors_that_are_not_the_methods() {
    let adapted = Adapted::new();
    let (tensors, _) = read_tensors(&adapted.tensors());
    let with = |tensors: &[crate::common::Tensor]| {
        write_tensors(&adapted.tensors(), tensors);
        // The hash is made right, so that the tensors themselves have to be looked at.
        adapted.changed("/tensors_sha256", json!(sha256(&adapted.tensors())))
    };
    let mut less = tensors.clone();
    let gone = less.swap_remove(0).name;
    with(&less).refused(&["adapter_model.safetensors", &gone]);
    let mut more = tensors.clone();
    more.push(crate::common::Tensor { name: "stray".into(), shape: vec![1], values: vec![0.0] });
    with(&more).refused(&["adapter_model.safetensors", "`stray`", "lotep-tk"]);
    let mut other = tensors.clone();
    other[0].shape.push(1);
    with(&other).refused(&["adapter_model.safetensors", &other[0].name, "shape"]);
    with(&tensors).done();
}

#[test]
fn a_description_that_does_not_fit() {
    let adapted = Adapted::new();
    adapted.changed("/format", json!(2)).refused(&["adapter_config.json", "`format` is 2", "upgrade"]);
    adapted.changed("/format", json!("one")).refused(&["adapter_config.json"]);
    adapted.changed("/classes", json!([])).refused(&["adapter_config.json", "`classes`"]);
    adapted.changed("/classes", json!(["a", "b"])).refused(&[
        "adapter_model.safetensors",
        "head.weight",
        "[2, 8]",
    ]);
    adapted.changed("/method/method", json!("lotep-xx")).refused(&["adapter_config.json", "lotep-xx"]);
    adapted.changed("/method/rank", json!(0)).refused(&["adapter_config.json", "rank 0"]);
    adapted.changed("/method/rank", json!(5)).refused(&["adapter_model.safetensors", "shape"]);
    adapted
        .changed("/method/rank", json!(1_u64 << 40))
        .refused(&["adapter_config.json", "rank 1099511627776"]);
    adapted.changed("/input/std", json!([1.0, 1.0, 1.0])).refused(&["adapter_config.json", "`input.std`"]);
    adapted.changed("/backbone/source", json!("nowhere")).refused(&["`nowhere`"]);
    for content in ["", "{", "[]", "{\"format\": 1}"] {
        fs::write(adapted.config(), content).unwrap();
        adapted.predict(None).refused(&["adapter_config.json", "not a lotep adapter description"]);
    }
}

#[test]
fn directories_that_hold_no_adapter() {
    let case = Case::new();
    let images = case.images();
    let nowhere = case.path("nowhere");
    for dir in [&nowhere, &images] {
        lotep!("predict", "--adapter", dir, images).refused(&[
            text(dir),
            "adapter_config.json",
            "RUN/adapter",
        ]);
        lotep!("eval", "--adapter", dir, "--data", images).refused(&[text(dir), "adapter_config.json"]);
        lotep!("inspect", "--adapter", dir).refused(&[text(dir), "adapter_config.json"]);
    }
}
