//! `analyze`: what differs, what was learnt, what goes wrong, what it cost.

use std::fs;

use crate::common::{Case, Net, TEST, lotep, read_json};

#[test]
fn cka_of_a_network_with_itself_is_one_and_with_an_adapted_one_less() {
    let case = Case::new();
    for net in Net::BOTH {
        let (backbone, images) = (case.backbone(net), case.images());
        case.train(net, &format!("{net:?}-run"), &["--method", "lotep-cp", "--prompt-lr", "0.3"]).done();
        let run = case.path(&format!("{net:?}-run"));
        let output = case.path(&format!("{net:?}-looks"));
        let against = format!("itself={}", run.display());
        let ran = lotep!(
            "analyze",
            "cka",
            "--adapter",
            run.join("adapter"),
            "--data",
            images,
            "--against",
            "base",
            "--against",
            backbone,
            "--against",
            against,
            "--batch-size",
            "8",
            "--output",
            output,
            "--format",
            "json"
        );
        let found = ran.done().json_lines();
        assert_eq!(found.len(), 3);
        let diagonal = |i: usize| -> Vec<f64> {
            let rows = found[i]["cka"].as_array().unwrap();
            rows.iter().enumerate().map(|(l, row)| row[l].as_f64().unwrap()).collect()
        };
        assert_eq!(found[2]["against"], "itself");
        assert_eq!(found[2]["batches"], TEST / 8);
        assert!(diagonal(2).iter().all(|v| (v - 1.0).abs() < 1e-3), "{:?}", diagonal(2));
        // The frozen network by its name and by its place are the same.
        assert_eq!(diagonal(0), diagonal(1));
        assert!(diagonal(0).iter().any(|v| *v < 0.99999), "{:?}", diagonal(0));
        assert_eq!(read_json(&output.join("cka.json")).as_array().unwrap().len(), 3);
        for file in ["blocks.svg", "heat-1-base.svg", "heat-3-itself.svg"] {
            let svg = fs::read_to_string(output.join(file)).unwrap();
            assert!(
                svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>") && !svg.contains("NaN"),
                "{file}"
            );
        }
    }
}

#[test]
fn cka_refuses_what_it_can_not_compare() {
    let case = Case::new();
    let (backbone, images) = (case.backbone(Net::ResNet), case.images());
    let output = case.path("out");
    let cka = |more: [&str; 2]| {
        lotep!(
            "analyze",
            "cka",
            "--backbone",
            backbone,
            "--data",
            images,
            "--output",
            output,
            more[0],
            more[1]
        )
    };
    cka(["--batch-size", "3"]).refused(&["batch-size is 3", "four"]);
    cka(["--batch-size", "64"]).refused(&["16 images are fewer than a batch of 64"]);
    cka(["--on-corrupt", "skip"]).refused(&["on-corrupt"]);
    cka(["--against", "nowhere/at/all"]).refused(&["nowhere/at/all"]);
    assert!(!output.exists());
}

#[test]
fn ranks_and_pictures_of_prompts() {
    let case = Case::new();
    case.train(Net::ResNet, "naive", &["--method", "naive-deep", "--depth-ratio", "0.5"]).done();
    let adapter = case.path("naive/adapter");
    let output = case.path("looks");
    let ran = lotep!("analyze", "rank", "--adapter", adapter, "--output", output, "--format", "json").done();
    let found = ran.json();
    let prompts = found["prompts"].as_array().unwrap();
    assert_eq!(prompts.len(), 3, "the image and two of four blocks: {ran}");
    assert_eq!(prompts[1]["place"], "layer1.0");
    // r is at most the channels that a block's first convolution takes: eight behind the first block.
    let r = found["kernel_rank"].as_u64().unwrap();
    for (l, p) in prompts[1..].iter().enumerate() {
        assert_eq!(p["bound"], (4 - l as u64) * r + 1);
        let most = p["spectrum"].as_array().unwrap().len() as u64;
        assert!((1..=most).contains(&p["rank"].as_u64().unwrap()), "{p}");
    }
    let ran = lotep!("analyze", "prompt", "--adapter", adapter, "--output", output).done();
    assert!(ran.stdout.contains("layer2.0"), "{ran}");
    for file in ["rank.json", "rank.svg", "spectrum.svg", "prompt.json", "energy.svg", "block-layer1.0.svg"] {
        assert!(output.join(file).is_file(), "{file}");
    }
    assert!(fs::read(output.join("image.png")).unwrap().starts_with(b"\x89PNG"));
    let probe = case.path("probe");
    case.train(Net::ResNet, "probe", &["--method", "linear-probe"]).done();
    for what in ["rank", "prompt"] {
        lotep!("analyze", what, "--adapter", probe.join("adapter"), "--output", output)
            .refused(&["linear-probe"]);
    }
    lotep!("analyze", "rank", "--adapter", adapter, "--tolerance", "2", "--output", output)
        .refused(&["tolerance is 2"]);
}

#[test]
fn channels_beside_the_image_are_pictures_and_additions_to_weights_are_weighed() {
    let case = Case::new();
    let look = |method: &str, more: &[&str]| {
        case.train(Net::ResNet, method, &[&["--method", method], more].concat()).done();
        let output = case.path(&format!("looks-{method}"));
        lotep!("analyze", "prompt", "--adapter", case.path(method).join("adapter"), "--output", output)
            .done();
        (read_json(&output.join("prompt.json"))["prompts"].clone(), output)
    };
    let (found, output) = look("vpt-below", &["--channels", "2"]);
    assert_eq!(found.as_array().unwrap().len(), 1, "{found}");
    assert_eq!((&found[0]["place"], &found[0]["shape"][0]), (&"channels".into(), &2.into()));
    for file in ["channel-1.png", "channel-2.png"] {
        assert!(fs::read(output.join(file)).unwrap().starts_with(b"\x89PNG"), "{file}");
    }
    let (found, output) = look("lora", &["--rank", "2"]);
    let places: Vec<&str> = found.as_array().unwrap().iter().map(|e| e["place"].as_str().unwrap()).collect();
    assert!(places.iter().any(|p| p.starts_with("layer2.") && p.ends_with(" weight")), "{places:?}");
    assert!(found.as_array().unwrap().iter().any(|e| e["energy"].as_f64().unwrap() > 0.0), "{found}");
    assert!(output.join("energy.svg").is_file() && !output.join("image.png").exists());
}

#[test]
fn errors_are_those_of_eval() {
    let case = Case::new();
    let adapter = case.adapter(Net::Vit, "linear-probe");
    let (images, output) = (case.images(), case.path("looks"));
    let eval = lotep!("eval", "--adapter", adapter, "--data", images, "--format", "json").done().json();
    let ran = lotep!(
        "analyze",
        "errors",
        "--adapter",
        adapter,
        "--data",
        images,
        "--output",
        output,
        "--worst",
        "5"
    );
    assert!(ran.done().stdout.contains("surest mistakes"));
    let found = read_json(&output.join("errors.json"));
    assert_eq!(found["accuracy"]["top1"], eval["top1"]);
    let rows = found["confusion"].as_array().unwrap();
    let at = |i: usize, j: usize| rows[i][j].as_u64().unwrap();
    let n = rows.len();
    let all: u64 = (0..n).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| at(i, j)).sum();
    let right: u64 = (0..n).map(|i| at(i, i)).sum();
    assert_eq!(all, TEST as u64);
    assert!((100.0 * right as f64 / all as f64 - eval["top1"].as_f64().unwrap()).abs() < 1e-9);
    let worst = found["worst"].as_array().unwrap();
    assert_eq!(worst.len(), 5.min((all - right) as usize));
    let sheet = fs::read_to_string(output.join("worst.svg")).unwrap();
    assert_eq!(sheet.matches("data:image/png;base64,").count(), worst.len());
    assert!(fs::read_to_string(output.join("confusion.svg")).unwrap().contains("<title>"));
}

#[test]
fn efficiency_is_read_from_results() {
    let case = Case::new();
    for method in ["linear-probe", "lotep-cp"] {
        case.train(Net::ResNet, method, &["--method", method]).done();
    }
    let output = case.path("cost");
    let runs = ["linear-probe", "lotep-cp"].map(|m| case.path(m));
    let ran = lotep!("analyze", "efficiency", runs[0], runs[1], "--steps", "3", "--output", output);
    assert!(ran.done().stdout.contains("| lotep-cp | 2 | 16 |"));
    let found = read_json(&output.join("efficiency.json"));
    for (cost, run) in found.as_array().unwrap().iter().zip(&runs) {
        let result = read_json(&run.join("result.json"));
        assert_eq!(cost["parameters"], result["train"]["trainable_parameters"]);
        assert_eq!(cost["top1"], result["train"]["test"]["top1"]);
        assert!(cost["latency_ms"].as_f64().unwrap() > 0.0);
    }
    fs::remove_file(runs[1].join("result.json")).unwrap();
    lotep!("analyze", "efficiency", runs[1], "--output", output).refused(&["has not ended", "--resume"]);
    fs::write(runs[1].join("result.json"), "{\"run\":").unwrap();
    lotep!("analyze", "efficiency", runs[1], "--output", output).refused(&["result.json is damaged"]);
    lotep!("analyze", "efficiency", case.path("none"), "--output", output).refused(&["holds no run"]);
}
