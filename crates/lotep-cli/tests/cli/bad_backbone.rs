//! Weight files and `config.json` that are damaged or do not fit.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::common::{Case, Net, Ran, Tensor, lotep, text, write_tensors};

/// Every command that loads a network says the same; `inspect` is the quickest.
fn inspect(backbone: &Path) -> Ran {
    lotep!("inspect", "--backbone", backbone)
}

#[test]
fn damaged_weight_files() {
    let case = Case::new();
    let dir = case.backbone(Net::ResNet);
    let file = dir.join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut large = whole.clone();
    large[..8].copy_from_slice(&90_000_000_u64.to_le_bytes());
    let mut garbled = whole.clone();
    garbled[9..60].fill(b'#');
    for bytes in
        [&whole[..whole.len() - 1], &whole[..whole.len() / 2], &whole[..7], &[], &huge, &large, &garbled]
    {
        fs::write(&file, bytes).unwrap();
        inspect(&dir).refused(&[text(&file), "not a valid safetensors file"]);
    }
    fs::remove_file(&file).unwrap();
    inspect(&dir).refused(&[text(&file)]);
    // The other commands stop there too.
    fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    case.train(Net::ResNet, "run", &[]).refused(&[text(&file)]);
    assert!(!case.path("run").exists());
    lotep!("predict", "--backbone", dir, case.images()).refused(&[text(&file)]);
    lotep!("bench", "infer", "--backbone", dir).refused(&[text(&file)]);
}

#[test]
fn weights_that_do_not_fit_the_architecture() {
    let case = Case::new();
    for net in Net::BOTH {
        let dir = case.backbone(net);
        let file = dir.join("model.safetensors");
        let whole = net.weights(1);
        let with = |change: &dyn Fn(&mut Vec<Tensor>)| {
            let mut weights = whole.clone();
            change(&mut weights);
            write_tensors(&file, &weights);
            inspect(&dir)
        };
        let name = whole[9].name.clone();
        with(&|w| drop(w.remove(9))).refused(&[text(&file), &format!("no weight `{name}`")]);
        with(&|w| w[9].name = "head.extra.weight".into())
            .refused(&[text(&file), &format!("no weight `{name}`")]);
        with(&|w| w.push(Tensor { name: "layer9.weight".into(), shape: vec![2], values: vec![0.0; 2] }))
            .refused(&[text(&file), "1 weights", "`layer9.weight`"]);
        with(&|w| {
            w[9].shape.insert(0, 1);
        })
        .refused(&[text(&file), &format!("weight `{name}` has shape [1, ")]);
        // Counters that training leaves in checkpoints are no such thing.
        with(&|w| {
            w.push(Tensor { name: "bn1.num_batches_tracked".into(), shape: vec![], values: vec![7.0] });
        })
        .done();
        // Without a classifier it can be adapted, but has no answers of its own.
        let headless =
            |w: &mut Vec<Tensor>| w.retain(|t| !t.name.starts_with("fc.") && !t.name.starts_with("head."));
        with(&headless).done();
        lotep!("predict", "--backbone", dir, case.images()).refused(&["no classifier of its own", "adapter"]);
        case.train(net, &format!("run-{net:?}"), &["--method", "linear-probe", "--epochs", "1"]).done();
    }
}

#[test]
fn numbers_that_are_no_numbers_are_found_in_training() {
    let case = Case::new();
    let mut weights = Net::Vit.weights(1);
    weights[3].values[0] = f32::NAN;
    case.backbone_with(Net::Vit, &Net::Vit.config(), &weights);
    case.train(Net::Vit, "run", &["--method", "lor-vp"]).refused(&["loss", "NaN", "step 1 "]);
}

/// `config.json` with `value` at `path`, or without it if null.
fn changed(net: Net, path: &str, value: Value) -> Value {
    let mut config = net.config();
    let (parent, key) = path.rsplit_once('/').unwrap();
    let parent = config.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    if value.is_null() {
        parent.remove(key)
    } else {
        parent.insert(key.to_owned(), value)
    };
    config
}

/// Check that `config.json` with each value at its path is refused with these words.
fn refuses(table: &[(Net, &str, Value, &[&str])]) {
    let mut faults = Vec::new();
    for (net, path, value, words) in table {
        let case = Case::new();
        let dir = case.backbone_with(*net, &changed(*net, path, value.clone()), &net.weights(1));
        faults.extend(inspect(&dir).fault(words));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_config_that_makes_no_sense() {
    refuses(&[
        (
            Net::ResNet,
            "/architecture",
            json!("resnet19"),
            &["config.json", "resnet19", "resnet18", "vit_base_patch16_224"],
        ),
        (Net::ResNet, "/architecture", json!(null), &["config.json", "architecture"]),
        (Net::ResNet, "/architecture", json!(18), &["config.json", "18"]),
        (Net::ResNet, "/pretrained_cfg/mean", json!([0.5, 0.5]), &["config.json", "`mean`", "[0.5,0.5]"]),
        (Net::ResNet, "/pretrained_cfg/mean", json!("grey"), &["config.json", "`mean`", "grey"]),
        (Net::ResNet, "/pretrained_cfg/std", json!([0.2, 0.0, 0.2]), &["config.json", "`std`"]),
        (Net::ResNet, "/pretrained_cfg/input_size", json!([3, 0, 32]), &["config.json", "`input_size`"]),
        (
            Net::ResNet,
            "/pretrained_cfg/input_size",
            json!([1, 32, 32]),
            &["config.json", "`input_size`", "[1,32,32]"],
        ),
        (Net::ResNet, "/pretrained_cfg/crop_pct", json!(0), &["config.json", "`crop_pct`"]),
        (
            Net::ResNet,
            "/pretrained_cfg/interpolation",
            json!("nearest-ish"),
            &["config.json", "`interpolation`", "nearest-ish"],
        ),
        (Net::ResNet, "/model_args/layers", json!([1, 1, 1]), &["config.json", "`layers`", "[1,1,1]"]),
        (Net::ResNet, "/model_args/layers", json!([1, 0, 1, 1]), &["config.json", "layers [1, 0, 1, 1]"]),
        (Net::ResNet, "/model_args/stem_type", json!("deep"), &["config.json", "`stem_type`", "deep"]),
        (Net::Vit, "/model_args/num_heads", json!(3), &["config.json", "embed_dim 16", "num_heads 3"]),
        (Net::Vit, "/model_args/num_heads", json!(0), &["config.json", "num_heads 0"]),
        (Net::Vit, "/model_args/patch_size", json!(0), &["config.json", "patch_size 0"]),
        (Net::Vit, "/model_args/img_size", json!(40), &["config.json", "img_size [40, 40]", "patch_size 16"]),
        (Net::Vit, "/model_args/reg_tokens", json!(4), &["config.json", "`reg_tokens`", "4"]),
    ]);
}

#[test]
fn pixel_statistics_that_make_no_sense() {
    refuses(&[
        // Means of pixels in 0 to 255, a common mistake.
        (
            Net::ResNet,
            "/pretrained_cfg/mean",
            json!([123.7, 116.3, 103.5]),
            &["config.json", "`mean`", "123.7"],
        ),
        (Net::ResNet, "/pretrained_cfg/std", json!([0.2, -0.2, 0.2]), &["config.json", "`std`", "-0.2"]),
    ]);
}

/// Sizes beyond reason are found out at once, others by the weights, before anything is computed with them.
#[test]
fn a_config_of_another_size_than_the_weights() {
    refuses(&[
        (Net::Vit, "/model_args/embed_dim", json!(0), &["config.json", "embed_dim 0"]),
        (
            Net::Vit,
            "/model_args/embed_dim",
            json!(1_u64 << 63),
            &["config.json", "embed_dim 9223372036854775808"],
        ),
        (
            Net::Vit,
            "/model_args/embed_dim",
            json!(32),
            &["model.safetensors", "patch_embed.proj.weight", "[16, 3, 16, 16]", "[32, 3, 16, 16]"],
        ),
        (Net::Vit, "/model_args/depth", json!(0), &["model.safetensors", "24 weights", "blocks.0"]),
        (Net::Vit, "/model_args/depth", json!(3), &["model.safetensors", "blocks.2"]),
        (
            Net::Vit,
            "/model_args/img_size",
            json!(48),
            &["model.safetensors", "pos_embed", "[1, 5, 16]", "[1, 10, 16]"],
        ),
        (Net::ResNet, "/model_args/layers", json!([1, 1, 1, 2]), &["model.safetensors", "layer4.1"]),
        (Net::ResNet, "/model_args/channels", json!([8, 8, 8, 9]), &["model.safetensors", "layer4.0", "[9"]),
    ]);
}

#[test]
fn a_config_that_is_none() {
    let case = Case::new();
    let dir = case.backbone(Net::Vit);
    let file = dir.join("config.json");
    for content in ["", "architecture: resnet18", "[1, 2]", "{\"architecture\": \"resnet18\"", "null"] {
        fs::write(&file, content).unwrap();
        inspect(&dir).refused(&[text(&file), "not a timm config.json"]);
    }
    fs::remove_file(&file).unwrap();
    inspect(&dir).refused(&[text(&file)]);
}

#[test]
fn names_that_lead_nowhere() {
    lotep!("inspect", "--backbone", "resnet18").refused(&["timm/resnet18.tv_in1k", "HF_HUB_OFFLINE"]);
    lotep!("inspect", "--backbone", "nowhere/model")
        .refused(&["`nowhere/model`", "no such file or directory"]);
    let case = Case::new();
    let file = case.backbone(Net::ResNet).join("model.safetensors");
    inspect(&file).refused(&[text(&file), "--arch"]);
    lotep!("inspect", "--backbone", file, "--arch", "resnet19").refused(&["resnet19", "resnet18"]);
    let notes = case.path("notes.txt");
    fs::write(&notes, "some notes").unwrap();
    lotep!("inspect", "--backbone", notes, "--arch", "resnet18")
        .refused(&["notes.txt", "not a valid safetensors file"]);
}
