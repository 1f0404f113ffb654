//! CLIP as a user meets it: classes by name, the methods for both towers, protocols, and what can be wrong with words.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::common::{CLASSES, Case, Net, Ran, TEST, command, lotep, read_json, read_tensors, run};
use crate::files::{Tensor, write_file, write_tensors};
use crate::net::Dice;

const WIDTH: usize = 16;
const FEATURES: usize = 8;

/// A CLIP of two blocks a tower with a vocabulary of bytes, and its directory.
fn clip(case: &Case) -> PathBuf {
    let dir = case.path("clip");
    if dir.exists() {
        return dir;
    }
    let known = write_words(&dir);
    let config = json!({
        "architecture": "vit_tiny_patch16_clip_quickgelu_224", "num_classes": FEATURES,
        "model_args": { "img_size": 32, "patch_size": 16, "embed_dim": WIDTH, "depth": 2, "num_heads": 2 },
        "text_args": { "num_heads": 2 },
    });
    write_file(&dir.join("config.json"), config.to_string());
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |name: &str, shape: &[usize]| shapes.push((name.to_owned(), shape.to_vec()));
    add("patch_embed.proj.weight", &[WIDTH, 3, 16, 16]);
    add("cls_token", &[1, 1, WIDTH]);
    add("pos_embed", &[1, 5, WIDTH]);
    add("head.weight", &[FEATURES, WIDTH]);
    add("head.bias", &[FEATURES]);
    add("text.token_embedding.weight", &[known, WIDTH]);
    add("text.pos_embed", &[77, WIDTH]);
    add("text.head.weight", &[FEATURES, WIDTH]);
    add("logit_scale", &[]);
    for norm in ["norm_pre", "norm", "text.norm"] {
        for leaf in ["weight", "bias"] {
            add(&format!("{norm}.{leaf}"), &[WIDTH]);
        }
    }
    for block in (0..2).flat_map(|i| [format!("blocks.{i}"), format!("text.blocks.{i}")]) {
        for (leaf, outputs, inputs) in [
            ("norm1", WIDTH, None),
            ("attn.qkv", 3 * WIDTH, Some(WIDTH)),
            ("attn.proj", WIDTH, Some(WIDTH)),
            ("norm2", WIDTH, None),
            ("mlp.fc1", 4 * WIDTH, Some(WIDTH)),
            ("mlp.fc2", WIDTH, Some(4 * WIDTH)),
        ] {
            let weight: Vec<usize> = [Some(outputs), inputs].into_iter().flatten().collect();
            add(&format!("{block}.{leaf}.weight"), &weight);
            add(&format!("{block}.{leaf}.bias"), &[outputs]);
        }
    }
    let mut dice = Dice(5);
    let tensors: Vec<Tensor> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            let one = |dice: &mut Dice| match shape.len() {
                0 => 2.0,
                1 if name.ends_with("weight") => 1.0,
                1 => 0.0,
                _ => (dice.uniform() - 0.5) * 3.4 / (shape[1..].iter().product::<usize>() as f32).sqrt(),
            };
            let values = (0..count).map(|_| one(&mut dice)).collect();
            Tensor { name, shape, values }
        })
        .collect();
    write_tensors(&dir.join("model.safetensors"), &tensors);
    dir
}

/// Words of single letters, digits and stops, in the files of transformers; how many tokens there are.
fn write_words(dir: &std::path::Path) -> usize {
    let signs: Vec<char> = ('!'..='~').collect();
    let ends = signs.iter().map(|c| format!("{c}</w>"));
    let tokens: Vec<String> = signs
        .iter()
        .map(char::to_string)
        .chain(ends)
        .chain(["<|startoftext|>".into(), "<|endoftext|>".into()])
        .collect();
    let ids: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(i, t)| (t.clone(), i.into())).collect();
    write_file(&dir.join("vocab.json"), Value::Object(ids).to_string());
    write_file(&dir.join("merges.txt"), "#version: 0.2\n");
    tokens.len()
}

/// A short training of `method` on the drawn images.
fn train(case: &Case, method: &str, more: &[&str]) -> Ran {
    let mut command = command(["train", "--method", method, "--epochs", "2", "--batch-size", "16"]);
    command.arg("--backbone").arg(clip(case)).arg("--data").arg(case.images());
    command.arg("--output").arg(case.path(method)).args(more);
    run(command)
}

/// Settings that two blocks allow.
fn small(method: &str) -> &'static [&'static str] {
    match method {
        "mmlop" | "ivlp" | "promptsrc" | "maple" => &["--depth", "2", "--prompt-lr", "0.05"],
        "coop" => &["--tokens", "4", "--prompt-lr", "0.05"],
        _ => &[],
    }
}

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

/// Data sets as their authors publish them, below one directory: two of CoOp's Pets, two of ImageNet-A's classes.
fn published(case: &Case) -> PathBuf {
    let root = case.path("sets");
    let mut drawn: Vec<PathBuf> = fs::read_dir(case.images().join("test"))
        .unwrap()
        .flat_map(|class| fs::read_dir(class.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .collect();
    drawn.sort();
    let mut drawn = drawn.into_iter().cycle();
    let mut copy = |to: &str| {
        let to = root.join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(drawn.next().unwrap(), to).unwrap();
    };
    let mut split = Vec::new();
    for (label, name) in ["birman", "basset hound"].into_iter().enumerate() {
        for i in 0..3 {
            copy(&format!("oxford_pets/images/{label}_{i}.png"));
            split.push(json!([format!("{label}_{i}.png"), label, name]));
        }
    }
    let split = json!({ "train": split, "val": [], "test": split });
    write_file(&root.join("oxford_pets/split_zhou_OxfordPets.json"), split.to_string());
    for class in ["n01498041", "n01531178"] {
        (0..2).for_each(|i| copy(&format!("imagenet-adversarial/imagenet-a/{class}/{i}.png")));
    }
    root
}

/// CoOp's names for ImageNet's classes, made up but for their form.
fn class_names() -> String {
    let list = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../lotep/src/data/known/imagenet_wnids.txt");
    let wnids = fs::read_to_string(list).unwrap();
    let lines: Vec<String> = wnids.lines().enumerate().map(|(i, wnid)| format!("{wnid} thing {i}")).collect();
    lines.join("\n")
}

/// Targets are opened as `train` opens its data, checked before anything is trained, and measured once.
#[test]
fn targets_in_any_form() {
    let case = Case::new();
    let (backbone, images, sets) = (clip(&case), case.images(), published(&case));
    let follow = |name: &str, more: &[&str]| {
        let mut command =
            command(["protocol", "cross-data", "--format", "json", "--seeds", "1", "--shots", "1"]);
        for setting in [
            format!("backbone={}", backbone.display()),
            format!("data={}", images.display()),
            "batch_size=8".to_owned(),
            "method.tokens=4".to_owned(),
        ] {
            command.args(["--set", &setting]);
        }
        command.arg("--output").arg(case.path(name)).args(more);
        run(command)
    };
    let to = |text: &str| text.replace("SETS", &sets.display().to_string());
    let (pets, adversarial, own) =
        (to("Pets=clip-pets:SETS"), to("imagenet-a:SETS"), images.display().to_string());
    let coop = ["--set", "method=coop", "--set", "epochs=1"];
    let all = [&coop[..], &["--to", &pets, "--to", &adversarial, "--to", &own]].concat();
    let ran = follow("all", &all).done();
    for words in [
        "warning: imagenet-a: 2 of 2 classes",
        "classnames.txt",
        "imagenet-adversarial/imagenet-a",
        "as in its paper",
    ] {
        assert!(ran.stderr.contains(words), "{words}: {ran}");
    }
    let row = ran.json();
    let names: Vec<&str> =
        row["columns"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names[..3], ["source", "Pets", "imagenet-a"]);
    assert_eq!(row["columns"][0]["top1"], row["columns"][3]["top1"]);
    // Two classes, four images: half or quarters of them, not thousandths.
    assert!(row["columns"][2]["mean"].as_f64().unwrap() % 25.0 == 0.0, "{row}");
    // With names nobody warns; and what is measured is kept.
    write_file(&sets.join("imagenet-adversarial/classnames.txt"), class_names());
    let kept = case.path("all/shots-1-seed-1/others.json");
    let measured = read_json(&kept);
    assert_eq!(measured["Pets"], row["columns"][1]["mean"]);
    let again = follow("all", &all).done();
    assert!(!again.stderr.contains("WordNet"), "{again}");
    assert_eq!(again.json(), row);
    let eval = |more: &[&str]| {
        let mut command = command(["eval", "--dataset", "imagenet-a", "--format", "json", "--data"]);
        command.arg(&sets).args(more);
        run(command)
    };
    let adapter = case.path("all/shots-1-seed-1/adapter").display().to_string();
    let found = eval(&["--adapter", &adapter, "--data-classes"]).done();
    assert!(!found.stderr.contains("WordNet") && found.json()["images"] == 4, "{found}");
    fs::remove_file(sets.join("imagenet-adversarial/classnames.txt")).unwrap();
    let found = eval(&["--backbone", backbone.to_str().unwrap()]).done();
    assert!(found.stderr.contains("warning: 2 of 2 classes are scored by WordNet's identifiers"), "{found}");
    write_file(&kept, "{");
    follow("all", &all).refused(&["others.json is damaged", "remove it"]);

    // All that is missing is named, and nothing was begun.
    let (nowhere, flat) = (to("X=clip-pets:SETS/imagenet-adversarial"), to("Y=SETS/oxford_pets/images"));
    let wrong = [&coop[..], &["--to", &nowhere, "--to", &flat, "--to", &own]].concat();
    follow("none", &wrong).refused(&[
        "data set `X`",
        "split_zhou_OxfordPets.json",
        "data set `Y`",
        "no class folders",
    ]);
    for class in ["cat", "größe"] {
        fs::create_dir_all(case.path("umlaut").join(class)).unwrap();
        let image = sets.join("oxford_pets/images");
        for i in 0..2 {
            let name = format!("0_{i}.png");
            fs::copy(image.join(&name), case.path("umlaut").join(class).join(&name)).unwrap();
        }
    }
    let umlaut = case.path("umlaut").display().to_string();
    follow("none", &[&coop[..], &["--to", &umlaut]].concat()).refused(&[
        "data set `umlaut`",
        "größe",
        "is no token",
    ]);
    assert!(!case.path("none").exists());
    follow("none", &[&coop[..], &["--to", "=x"]].concat()).misused(&["NAME=DATASET:PLACE"]);
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

/// A recipe's targets, as `lotep protocol` has them.
#[test]
fn recipes_have_targets() {
    let case = Case::new();
    let sets = published(&case);
    let recipe = |targets: &str| {
        format!(
            "title = \"Elsewhere\"\nsource = \"here\"\nprotocol = \"the last epoch\"\nrun = \"cross-data\"\n\
             args = [\"--shots\", \"1\"]\nseeds = [1, 2]\n[settings]\nepochs = 1\nbatch_size = 8\n\
             [[model]]\nname = \"CLIP\"\nbackbone = {:?}\n[[data]]\nname = \"Drawn\"\npath = {:?}\n\
             [[method]]\nname = \"CoOp\"\nmethod = \"coop\"\nwith = {{ tokens = 4 }}\n{targets}",
            clip(&case),
            case.images()
        )
    };
    let file = case.path("recipe.toml");
    let run = |name: &str| {
        let output = case.path(name);
        lotep!("experiment", "run", file, "--data-root", sets, "--output", output, "--format", "json")
    };
    write_file(
        &file,
        recipe(
            "[[targets]]\nname = \"Two pets\"\ndataset = \"clip-pets\"\n\
        [[targets]]\nname = \"A\"\ndataset = \"imagenet-a\"\n",
        ),
    );
    let ran = run("done").done();
    assert!(ran.stderr.contains("warning: A: ") && ran.stderr.contains("classnames.txt"), "{ran}");
    let report = ran.json();
    assert_eq!(
        report["tables"][0]["columns"],
        json!(["source", "Two pets", "A", "mean of the others"]),
        "{report}"
    );
    write_file(&file, recipe("[[targets]]\nname = \"Cars\"\ndataset = \"clip-cars\"\n"));
    run("none").refused(&["data `Cars`", "split_zhou_StanfordCars.json"]);
    write_file(&file, recipe("[[targets]]\nname = \"Cars\"\ndataset = \"cars\"\n"));
    run("none").refused(&["'cars' is not known"]);
    write_file(&file, recipe(""));
    run("none").refused(&["[[targets]]", "cross-data"]);
    assert!(!case.path("none").exists());
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
