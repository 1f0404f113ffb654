//! LoRA adapters to PEFT's files and back.

use std::fs;

use serde_json::json;

use crate::common::{CLASSES, Case, Net, lotep, read_json, read_tensors, write_tensors};
use crate::files::write_file;

#[test]
fn a_lora_goes_to_pefts_files_and_comes_back() {
    for more in [
        &[][..],
        &["--targets", "qkv,proj,fc1", "--dropout", "0.2"],
        &["--rank", "3", "--alpha", "12", "--targets", "q,v,fc2"],
    ] {
        let case = Case::new();
        case.train(Net::Vit, "run", &[&["--method", "lora", "--lr", "0.1"], more].concat()).done();
        let (adapter, files, back) = (case.path("run/adapter"), case.path("peft"), case.path("back"));
        lotep!("export", "--adapter", adapter, "--peft", "--output", files).done();
        let config = read_json(&files.join("adapter_config.json"));
        assert_eq!((&config["peft_type"], &config["modules_to_save"]), (&json!("LORA"), &json!(["head"])));
        let dropout = if more.contains(&"--dropout") { 0.2 } else { 0.0 };
        assert_eq!(config["lora_dropout"], dropout);
        let (tensors, _) = read_tensors(&files.join("adapter_model.safetensors"));
        assert!(tensors.iter().all(|t| t.name.starts_with("base_model.model.")));
        let imported =
            lotep!("import", "--peft", files, "--backbone", case.backbone(Net::Vit), "--output", back);
        if more.contains(&"q,v,fc2") {
            // Parts of qkv have twice the rank as one addition: PEFT can say so, one rank cannot.
            imported.refused(&["one rank", "{3, 6}"]);
            continue;
        }
        imported.done();
        let classes = |dir: &std::path::Path| read_json(&dir.join("adapter_config.json"))["classes"].clone();
        assert_eq!(classes(&back), classes(&adapter));
        let method = read_json(&back.join("adapter_config.json"))["method"].clone();
        assert_eq!(method["dropout"], dropout);
        let images = case.images().join("test");
        let logits = |adapter: &std::path::Path, name: &str| {
            let file = case.path(name);
            lotep!("predict", "--adapter", adapter, "--precision", "f32", "--logits", file, images).done();
            read_tensors(&file).0.swap_remove(0).values
        };
        let (before, after) = (logits(&adapter, "before"), logits(&back, "after"));
        let most = before.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        for (a, b) in before.iter().zip(&after) {
            assert!((a - b).abs() < 1e-5 * most, "{a} {b}");
        }
    }
}

#[test]
fn what_is_no_plain_lora_is_refused() {
    let case = Case::new();
    case.train(Net::Vit, "run", &["--method", "lora"]).done();
    let (adapter, files) = (case.path("run/adapter"), case.path("peft"));
    lotep!("export", "--adapter", adapter, "--peft", "--output", files).done();
    lotep!("export", "--adapter", adapter, "--peft", "--output", files).refused(&["already holds"]);
    let config = read_json(&files.join("adapter_config.json"));
    let (tensors, _) = read_tensors(&files.join("adapter_model.safetensors"));
    let backbone = case.backbone(Net::Vit);
    let import =
        |name: &str, config: &serde_json::Value, tensors: &[crate::common::Tensor], more: &[&str]| {
            let dir = case.path(name);
            write_file(&dir.join("adapter_config.json"), config.to_string());
            write_tensors(&dir.join("adapter_model.safetensors"), tensors);
            let output = case.path("never");
            let mut command =
                crate::common::command(["import", "--peft", dir.to_str().unwrap(), "--backbone"]);
            command.arg(&backbone).arg("--output").arg(&output).args(more);
            let ran = crate::common::run(command);
            assert!(!output.exists(), "nothing is written");
            ran
        };
    let with = |key: &str, value: serde_json::Value| {
        let mut config = config.clone();
        config[key] = value;
        config
    };
    import("dora", &with("use_dora", true.into()), &tensors, &[]).refused(&["use_dora", "plain LoRA"]);
    import("bias", &with("bias", "all".into()), &tensors, &[]).refused(&["bias"]);
    import("ia3", &with("peft_type", "IA3".into()), &tensors, &[]).refused(&["peft_type"]);
    import("pissa", &with("init_lora_weights", "pissa".into()), &tensors, &[])
        .refused(&["init_lora_weights"]);
    let pattern = with("alpha_pattern", json!({ "blocks.\\d+.attn.qkv": 16.0 }));
    import("pattern", &pattern, &tensors, &[]).refused(&["alpha_pattern"]);
    let huge = with("alpha_pattern", json!({ "blocks.1.attn.qkv": 1e300 }));
    import("huge", &huge, &tensors, &[]).refused(&["blocks.1.attn.qkv", "no numbers"]);
    let twice = ["a"; CLASSES].join(",");
    import("twice", &config, &tensors, &["--classes", &twice]).refused(&["named twice"]);
    import("alpha", &with("lora_alpha", "much".into()), &tensors, &[]).refused(&["adapter_config.json"]);
    let names: Vec<&str> = vec!["a"; CLASSES + 1];
    import("names", &config, &tensors, &["--classes", &names.join(",")]).refused(&["8 classes, 9 names"]);
    let without = |end: &str| {
        let left = tensors.iter().filter(|t| !t.name.ends_with(end));
        left.cloned().collect::<Vec<_>>()
    };
    import("head", &config, &without("head.bias"), &[]).refused(&["head.bias", "modules_to_save"]);
    import("half", &config, &without("blocks.1.attn.qkv.lora_B.weight"), &[])
        .refused(&["blocks.1.attn.qkv", "factors"]);
    let mut other = tensors.clone();
    other[0].name = "base_model.model.norm.weight".into();
    import("other", &config, &other, &[]).refused(&["norm.weight"]);
    let plain = case.path("plain");
    write_file(&plain.join("adapter_config.json"), "{}");
    lotep!("import", "--peft", plain, "--backbone", backbone, "--output", case.path("never"))
        .refused(&["peft_type"]);
    case.train(Net::Vit, "other", &["--method", "lor-vp"]).done();
    lotep!("export", "--adapter", case.path("other/adapter"), "--peft", "--output", case.path("never"))
        .refused(&["LoRA alone", "lor-vp"]);
    assert!(fs::read_dir(case.path("never")).is_err());
}
