//! `sweep`: settings tried on held-out images, the best one trained to its end.

use std::path::Path;

use serde_json::Value;

use crate::common::{Case, Net, Ran, TEST, command, lotep, read_json, read_tensors, run};

/// A sweep over a tiny network's settings into `sweep`, with these values and options.
fn sweep(case: &Case, settings: &[&str], more: &[&str]) -> Ran {
    let mut command = command(["sweep", "--output"]);
    command.arg(case.path("sweep")).args(more);
    let own = [
        format!("backbone={}", case.backbone(Net::ResNet).display()),
        format!("data={}", case.images().display()),
        "batch_size=16".to_owned(),
        "val_fraction=0.3".to_owned(),
    ];
    for setting in own.iter().map(String::as_str).chain(settings.iter().copied()) {
        command.args(["--set", setting]);
    }
    run(command)
}

/// The best of a run's epochs on held-out images.
fn best(run: &Path) -> f64 {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let val = |line: &str| serde_json::from_str::<Value>(line).unwrap()["val"]["top1"].as_f64().unwrap();
    text.lines().map(val).fold(f64::NEG_INFINITY, f64::max)
}

#[test]
fn a_grid_is_tried_and_the_best_is_chosen() {
    let case = Case::new();
    let settings = ["epochs=2", "method=lor-vp", "lr=0.0001,0.05", "method.rank=1,2"];
    let ran = sweep(&case, &settings, &["--format", "json"]).done();
    let result = ran.json();
    let trials = result["trials"].as_array().unwrap();
    let order = [
        "lr=0.0001 method.rank=1",
        "lr=0.0001 method.rank=2",
        "lr=0.05 method.rank=1",
        "lr=0.05 method.rank=2",
    ];
    let found = read_json(&case.path("sweep/trials.json"));
    for (i, (trial, settings)) in found["trials"].as_array().unwrap().iter().zip(order).enumerate() {
        assert_eq!(trial["settings"], settings);
        let run = case.path(&format!("sweep/trials/{:03}", i + 1));
        assert_eq!(trial["rounds"][0]["best"]["top1"], best(&run), "{settings}");
        let config: toml::Table = std::fs::read_to_string(run.join("config.toml")).unwrap().parse().unwrap();
        assert_eq!(config["method"]["rank"].as_integer(), Some(1 + (i as i64 & 1)));
        assert_eq!(config["select"].as_str(), Some("best-val"));
    }
    let scores: Vec<f64> = trials.iter().map(|t| t["rounds"][0]["best"]["top1"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    // The test split is looked at for the chosen one alone.
    let runs = (1..=4).map(|i| case.path(&format!("sweep/trials/{i:03}")));
    let tested: Vec<_> = runs.filter(|run| run.join("result.json").exists()).collect();
    assert_eq!(tested, [Path::new(result["run"].as_str().unwrap())]);
    assert_eq!(best(&tested[0]).to_bits(), scores[0].to_bits());
    assert_eq!(result["outcome"]["train"]["test"]["images"], TEST);
    let eval =
        lotep!("eval", "--adapter", tested[0].join("adapter"), "--data", case.images(), "--format", "json");
    assert_eq!(eval.done().json()["top1"], result["outcome"]["train"]["test"]["top1"]);

    // Again: nothing is trained, the same is said.
    let again = sweep(&case, &settings, &["--format", "json"]).done();
    assert_eq!(again.json()["trials"], result["trials"]);
    assert!(!again.stderr.contains("images/s"), "{again}");
    sweep(&case, &["epochs=2", "lr=0.1,0.2"], &[]).refused(&["another sweep"]);
    // Nor may what does not vary be another.
    let longer = ["epochs=3", "method=lor-vp", "lr=0.0001,0.05", "method.rank=1,2"];
    sweep(&case, &longer, &[]).refused(&["another sweep"]);
    assert_eq!(read_json(&case.path("sweep/trials.json")), found);
}

#[test]
fn successive_halving_trains_the_better_ones_on() {
    let case = Case::new();
    let settings = ["epochs=4", "method=lotep-cp", "prompt_lr=0.3,0.1,0.03,0.0001"];
    let ran = sweep(&case, &settings, &["--halving", "2"]).done();
    let trials = read_json(&case.path("sweep/result.json"))["trials"].clone();
    let epochs: Vec<u64> = trials
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["rounds"].as_array().unwrap().last().unwrap()["epochs"].as_u64().unwrap())
        .collect();
    assert_eq!(epochs, [4, 2, 1, 1], "{ran}");
    assert!(ran.stdout.contains("adapter in "), "{ran}");
    // The chosen one is what it would have been alone.
    let (first, result) =
        (trials[0]["settings"].as_str().unwrap(), read_json(&case.path("sweep/result.json")));
    let rate = first.strip_prefix("prompt_lr=").unwrap();
    let alone = ["--method", "lotep-cp", "--epochs", "4", "--val-fraction", "0.3", "--select", "best-val"];
    case.train(Net::ResNet, "alone", &[&alone[..], &["--prompt-lr", rate]].concat()).done();
    let tensors = |run: &Path| read_tensors(&run.join("adapter/adapter_model.safetensors")).0;
    assert!(tensors(&case.path("alone")) == tensors(Path::new(result["run"].as_str().unwrap())), "{first}");
}

#[test]
fn a_trial_that_diverges_loses() {
    let case = Case::new();
    let settings = ["epochs=40", "method=lotep-cp", "optimizer=sgd", "schedule=constant"];
    let ran = sweep(&case, &[&settings[..], &["prompt_lr=1e6,0.02"]].concat(), &[]).done();
    assert!(ran.stderr.contains("warning: prompt_lr=1e6: the loss became"), "{ran}");
    assert!(ran.stdout.contains("failed"), "{ran}");
    let result = read_json(&case.path("sweep/result.json"));
    assert_eq!(result["trials"][0]["settings"], "prompt_lr=0.02");
    let all = Case::new();
    let ran = sweep(&all, &[&settings[..], &["prompt_lr=1e6,9e5"]].concat(), &[]);
    ran.refused(&["every trial failed", "the loss became"]);
}

#[test]
fn settings_vary_together_and_may_be_lists() {
    let case = Case::new();
    let settings = ["epochs=1", "method=lor-vp", "lr+prompt_lr=0.01,0.02"];
    sweep(&case, &settings, &[]).done();
    let trials = read_json(&case.path("sweep/trials.json"));
    for (trial, rate) in trials["trials"].as_array().unwrap().iter().zip([0.01, 0.02]) {
        let config = &trial["config"];
        assert_eq!((config["lr"].as_f64(), config["prompt_lr"].as_f64()), (Some(rate), Some(rate)));
        assert_eq!(trial["settings"], format!("lr+prompt_lr={rate}"));
    }
    let lists = Case::new();
    let vit = format!("backbone={}", lists.backbone(Net::Vit).display());
    let data = format!("data={}", lists.images().display());
    let targets = r#"method.targets=["q","v"],["fc1"]"#;
    let output = lists.path("sweep");
    let given = ["epochs=1", "batch_size=16", "val_fraction=0.3", "method=lora", "method.rank=2", targets];
    let mut command = command(["sweep", "--output", output.to_str().unwrap()]);
    for setting in [vit.as_str(), data.as_str()].into_iter().chain(given) {
        command.args(["--set", setting]);
    }
    run(command).done();
    let trials = read_json(&output.join("trials.json"));
    assert_eq!(trials["trials"][0]["config"]["method"]["targets"], serde_json::json!(["q", "v"]));
    assert_eq!(trials["trials"][1]["config"]["method"]["targets"], serde_json::json!(["fc1"]));
}

/// A list's items may have a plus between.
#[test]
fn lists_need_no_quotes() {
    let case = Case::new();
    let given = ["backbone=b", "data=d", "method=lora", "method.targets=q+v,qkv,[\"fc1\"]"];
    let mut command = command(["sweep", "--list", "--format", "json"]);
    for setting in given {
        command.args(["--set", setting]);
    }
    let targets: Vec<Value> =
        run(command).done().json_lines().iter().map(|config| config["method"]["targets"].clone()).collect();
    assert_eq!(
        targets,
        [serde_json::json!(["q", "v"]), serde_json::json!(["qkv"]), serde_json::json!(["fc1"])]
    );
    sweep(&case, &["method=lora", "method.targets=q+"], &[]).refused(&["targets"]);
}

/// Beside each other, on a part of the threads, trials come to the same bits.
#[test]
fn trials_beside_each_other_come_to_the_same() {
    let outcome = |jobs: &str| {
        let case = Case::new();
        let settings = ["epochs=2", "method=lotep-cp", "prompt_lr=0.3,0.1,0.03,0.01,0.0001"];
        let ran = sweep(&case, &settings, &["--halving", "2", "--jobs", jobs]).done();
        assert_eq!(ran.stderr.contains("% in epoch"), jobs != "1", "{ran}");
        let trials = read_json(&case.path("sweep/trials.json"))["trials"].clone();
        let rounds: Vec<_> =
            trials.as_array().unwrap().iter().map(|t| (t["settings"].clone(), t["rounds"].clone())).collect();
        let result = read_json(&case.path("sweep/result.json"));
        let adapter = Path::new(result["run"].as_str().unwrap()).join("adapter/adapter_model.safetensors");
        (rounds, result["trials"][0]["settings"].clone(), read_tensors(&adapter).0)
    };
    let alone = outcome("1");
    for jobs in ["2", "4"] {
        assert!(outcome(jobs) == alone, "{jobs} jobs");
    }
}

#[test]
fn a_draw_of_the_combinations_is_repeatable() {
    let case = Case::new();
    let settings =
        ["epochs=1", "method=linear-probe", "lr=0.1,0.2,0.3,0.4,0.5", "weight_decay=0,0.1,0.2,0.3"];
    sweep(&case, &settings, &["--trials", "3"]).done();
    let trials = read_json(&case.path("sweep/trials.json"));
    assert_eq!(trials["trials"].as_array().unwrap().len(), 3);
    sweep(&case, &settings, &["--trials", "3"]).done();
    sweep(&case, &settings, &["--trials", "3", "--draw-seed", "1"]).refused(&["another sweep"]);
}

#[test]
fn settings_that_are_none() {
    let case = Case::new();
    let wrong: [(&str, &[&str]); 14] = [
        ("lr+seed=1,2", &["seed", "can't vary"]),
        ("lr+=0.1", &["lr+=0.1", "KEY=VALUE"]),
        ("method+lr=lor-vp", &["varies alone"]),
        ("seed=1,2", &["seed", "can't vary", "held-out"]),
        ("join_val=true,false", &["join_val", "can't vary"]),
        ("lr", &["--set lr", "KEY=VALUE"]),
        ("lr=", &["--set lr=", "KEY=VALUE"]),
        ("lr=0.1,,0.2", &["--set lr=0.1,,0.2", "KEY=VALUE"]),
        ("nothing=3", &["nothing", "unknown field"]),
        ("lr=fast,0.1", &["lr=fast", "lr"]),
        ("batch_size=4", &["batch_size", "twice"]),
        ("lr=0.1,1e7", &["lr=1e7", "0 to 1000000"]),
        ("method=magic", &["magic", "lotep-tk"]),
        ("method.depth=3,4", &["method.depth=3", "unknown field"]),
    ];
    for (setting, words) in wrong {
        sweep(&case, &[setting], &[]).refused(words);
    }
    lotep!("sweep", "--output", case.path("s"), "--set", "lr=1,2").refused(&["`backbone` is missing"]);
    lotep!("sweep", "--set", "backbone=b", "--set", "data=d").refused(&["--output"]);
    sweep(&case, &["epochs=1,2", "lr=0.1"], &["--halving", "3"]).refused(&["same length"]);
    assert!(!case.path("sweep").exists());
}
