//! `lotep prune`: masks, degrees of pruning, a choice on held-out images, final runs.

use std::fs;

use crate::common::{CLASSES, Case, Net, TEST, TRAIN, lotep, read_json, read_tensors};

fn settings(case: &Case) -> Vec<String> {
    let given = |key: &str, value: &str| ["--set".to_owned(), format!("{key}={value}")];
    [
        given("backbone", case.backbone(Net::Vit).to_str().unwrap()),
        given("data", case.images().to_str().unwrap()),
        given("epochs", "2"),
        given("batch_size", "16"),
        given("val_fraction", "0.34"),
        given("method.tokens", "3"),
        given("method.segments", "8"),
    ]
    .concat()
}

fn prune(case: &Case, more: &[&str]) -> crate::common::Ran {
    let output = case.path("pruned");
    let mut command = crate::common::command(["prune", "--output", output.to_str().unwrap()]);
    command.args(settings(case)).args(more);
    crate::common::run(command)
}

#[test]
fn a_degree_is_chosen_and_trained_for_every_seed() {
    let case = Case::new();
    let degrees = ["--token-percentages", "0,40", "--segment-percentages", "25,50", "--seeds", "1,2"];
    let ran = prune(&case, &degrees).done();
    let dir = case.path("pruned");
    let result = read_json(&dir.join("result.json"));
    assert!(ran.stdout.contains("test top1") && ran.stdout.contains("±"), "{ran}");
    let importance = &result["importance"];
    assert_eq!(importance["tokens"].as_array().unwrap().len(), 3);
    for segments in importance["segments"].as_array().unwrap() {
        let scores: Vec<f64> = segments.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert!(scores.len() == 8 && scores.iter().all(|s| *s > 0.0), "{scores:?}");
    }
    let trials = result["trials"].as_array().unwrap();
    assert_eq!(trials.len(), 4);
    // What is pruned are the tokens and segments of the least influence.
    let lowest = |scores: &serde_json::Value, count: usize| {
        let scores: Vec<f64> = scores.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
        order.truncate(count);
        order.sort_unstable();
        order
    };
    for trial in trials {
        let method = &trial["config"]["method"];
        let segments = method["pruned_segments"].as_array().unwrap();
        let count = segments[0].as_array().unwrap().len();
        assert!([2, 4].contains(&count), "{method}");
        for (pruned, scores) in segments.iter().zip(importance["segments"].as_array().unwrap()) {
            assert_eq!(*pruned, serde_json::json!(lowest(scores, count)));
        }
        if let Some(tokens) = method["pruned_tokens"].as_array() {
            assert_eq!(serde_json::json!(tokens), serde_json::json!(lowest(&importance["tokens"], 1)));
        }
        let held_out = trial["rounds"][0]["best"]["top1"].as_f64();
        assert!(held_out.is_some(), "{trial}");
    }
    let chosen = &trials[0]["config"]["method"];
    let tests: Vec<f64> = ["1", "2"]
        .iter()
        .zip(result["runs"].as_array().unwrap())
        .map(|(seed, run)| {
            let config = &run["run"]["config"];
            assert_eq!((&config["method"], config["select"].as_str().unwrap()), (chosen, "last"));
            assert_eq!(config["seed"].to_string(), *seed);
            assert!(run["run"]["data"].as_str().unwrap().contains(&format!("{TRAIN} train, 0 val")));
            assert_eq!(run["train"]["test"]["images"], TEST);
            // Only what remains is learnt: two blocks of width 16.
            let gone = chosen["pruned_tokens"].as_array().map_or(0, Vec::len);
            let segments = 8 - chosen["pruned_segments"][0].as_array().unwrap().len();
            let prompts = 2 * ((3 - gone) * segments * 2 + 5 * 16);
            assert_eq!(run["train"]["prompt_parameters"], prompts);
            let adapter = dir.join(format!("final/seed-{seed}/adapter"));
            let stored: usize = read_tensors(&adapter.join("adapter_model.safetensors"))
                .0
                .iter()
                .map(|t| t.values.len())
                .sum();
            assert_eq!(stored, prompts + CLASSES * 17);
            run["train"]["test"]["top1"].as_f64().unwrap()
        })
        .collect();
    assert!((result["mean"].as_f64().unwrap() - f64::midpoint(tests[0], tests[1])).abs() < 1e-9);

    // Without the tokens that stand as zeros there are fewer of them, and the tensors are the same.
    let (adapter, smaller) = (dir.join("final/seed-1/adapter"), case.path("smaller"));
    let command = |output: &std::path::Path| {
        lotep!("export", "--adapter", adapter, "--remove-pruned", "--data", case.images(), "--output", output)
    };
    if chosen["pruned_tokens"].is_array() {
        let ran = command(&smaller).done();
        assert!(ran.stdout.contains("as zeros"), "{ran}");
        let config = read_json(&smaller.join("adapter_config.json"));
        assert_eq!(config["method"]["keep_pruned"], false);
        let tensors = |dir: &std::path::Path| fs::read(dir.join("adapter_model.safetensors")).unwrap();
        assert_eq!(tensors(&smaller), tensors(&adapter));
        lotep!("eval", "--adapter", smaller, "--data", case.images()).done();
    } else {
        command(&smaller).refused(&["no pruned tokens"]);
    }

    // The same command again trains nothing and finds the same.
    let before = fs::read(dir.join("degrees/trials.json")).unwrap();
    prune(&case, &degrees).done();
    assert_eq!(fs::read(dir.join("degrees/trials.json")).unwrap(), before);
    let again = read_json(&dir.join("result.json"));
    assert_eq!(again["trials"], result["trials"]);
    prune(&case, &["--seeds", "3"]).refused(&["another pruning", "--output"]);
}

#[test]
fn only_tokens_can_be_pruned() {
    let case = Case::new();
    prune(&case, &["--set", "method.key_values=2", "--set", "lr=0.1,0.2"]).refused(&["one value"]);
    prune(&case, &["--token-percentages", "100"]).refused(&["100 %"]);
    let (backbone, images, output) = (case.backbone(Net::ResNet), case.images(), case.path("resnet"));
    let set = |key: &str, value: &std::path::Path| format!("{key}={}", value.display());
    lotep!("prune", "--set", set("backbone", &backbone), "--set", set("data", &images), "--output", output)
        .refused(&["e2vpt", "need a ViT or a Swin"]);
}
