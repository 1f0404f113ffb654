//! The files of `recipes/`: each is read, tries as many settings as its paper, and runs on tiny images.

use std::path::PathBuf;

use crate::common::{Case, Net, Ran, command, read_json, run};

fn recipe(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../recipes").join(name)
}

/// Run a command with a recipe on a tiny network, with these settings and options.
fn with(case: &Case, what: &str, name: &str, net: Net, settings: &[&str], more: &[&str]) -> Ran {
    let mut command = command([what, "--config"]);
    command.arg(recipe(name)).args(more);
    let own = [
        format!("backbone={}", case.backbone(net).display()),
        format!("data={}", case.images().display()),
        "batch_size=16".to_owned(),
        "val_fraction=0.34".to_owned(),
    ];
    for setting in own.iter().map(String::as_str).chain(settings.iter().copied()) {
        command.args(["--set", setting]);
    }
    run(command)
}

#[test]
fn every_recipe_is_known_here_and_tries_what_its_paper_does() {
    let case = Case::new();
    let mut names: Vec<String> = std::fs::read_dir(recipe(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        // Those of `lotep experiment` have a folder of their own.
        .filter(|name| std::path::Path::new(name).extension().is_some_and(|e| e == "toml"))
        .collect();
    names.sort();
    assert_eq!(names, ["auto-vp.toml", "e2vpt-grid.toml", "e2vpt-prune.toml", "vpt-grid.toml"]);
    for (name, net, count) in [
        ("auto-vp.toml", Net::ResNet, 3 * 3 * 2),
        ("e2vpt-grid.toml", Net::Vit, 10 * 4),
        ("vpt-grid.toml", Net::Vit, 10 * 4),
    ] {
        let ran = with(&case, "sweep", name, net, &[], &["--list"]).done();
        assert_eq!(ran.stdout.lines().count(), count, "{ran}");
        let configs =
            with(&case, "sweep", name, net, &[], &["--list", "--format", "json"]).done().json_lines();
        assert!(configs.iter().enumerate().all(|(i, c)| !configs[..i].contains(c)), "{name}: one twice");
    }
    let one = with(&case, "sweep", "vpt-grid.toml", Net::Vit, &["lr=0.1"], &["--list"]);
    one.refused(&["lr+prompt_lr", "--set prompt_lr"]);
    assert!(!case.path("sweep").exists());
    let (first, other) = (recipe("vpt-grid.toml"), recipe("e2vpt-prune.toml"));
    let output = case.path("run");
    crate::common::lotep!("train", "--config", first, "--output", output).refused(&["lotep sweep"]);
    crate::common::lotep!("sweep", "--config", other, "--output", output).refused(&["lotep prune"]);
}

/// What is given on the command line takes the place of the recipe's values of the same settings.
#[test]
fn grids_run_on_tiny_images() {
    let short = ["epochs=1", "warmup_epochs=0", "method.tokens=3", "lr+prompt_lr=0.1,0.01"];
    for name in ["vpt-grid.toml", "e2vpt-grid.toml"] {
        let case = Case::new();
        let output = case.path("sweep");
        let options = ["--output", output.to_str().unwrap(), "--trials", "3"];
        with(&case, "sweep", name, Net::Vit, &[&short[..], &["method.dropout=0.2"]].concat(), &options)
            .done();
        let trials = read_json(&output.join("trials.json"))["trials"].clone();
        for trial in trials.as_array().unwrap() {
            let config = &trial["config"];
            assert_eq!(config["lr"], config["prompt_lr"]);
            assert!([0.1, 0.01].contains(&config["lr"].as_f64().unwrap()), "{config}");
            assert_eq!(config["weight_decay"], config["prompt_weight_decay"]);
            assert_eq!((&config["epochs"], &config["method"]["tokens"]), (&1.into(), &3.into()));
            assert_eq!(config["method"]["dropout"], 0.2);
        }
    }
}

#[test]
fn auto_vps_search_runs_on_tiny_images() {
    let case = Case::new();
    let output = case.path("sweep");
    let options = ["--output", output.to_str().unwrap(), "--trials", "5"];
    with(&case, "sweep", "auto-vp.toml", Net::ResNet, &["epochs=2", "method.size=20"], &options).done();
    let state = read_json(&output.join("trials.json"));
    // Halving is the recipe's.
    assert_eq!((&state["halving"], state["trials"].as_array().unwrap().len()), (&3.into(), 5));
    for trial in state["trials"].as_array().unwrap() {
        let config = &trial["config"];
        assert!(["full", "frequency", "iterative"].contains(&config["mapping"].as_str().unwrap()));
        assert!([0.5, 1.0, 1.5].contains(&config["method"]["scale"].as_f64().unwrap()), "{config}");
    }
}

#[test]
fn the_pruning_search_runs_on_tiny_images() {
    let case = Case::new();
    let output = case.path("pruned");
    let short = ["epochs=1", "warmup_epochs=0", "method.tokens=3", "method.segments=8"];
    let few = ["--token-percentages", "40", "--segment-percentages", "25,50", "--seeds", "7", "--jobs", "2"];
    let options = [&["--output", output.to_str().unwrap()][..], &few].concat();
    with(&case, "prune", "e2vpt-prune.toml", Net::Vit, &short, &options).done();
    let result = read_json(&output.join("result.json"));
    assert_eq!(result["trials"].as_array().unwrap().len(), 2);
    assert_eq!(result["runs"][0]["run"]["config"]["lr"], 0.25);
}

#[test]
fn a_recipe_with_mistakes_names_them() {
    let case = Case::new();
    for (text, words) in [
        ("[sweep]\nhalve = 3", &["[sweep]", "halve"][..]),
        ("[sweep.set]\nlr = 0.1", &["lr", "a list of values"]),
        ("[sweep.set]\nlr = []", &["lr", "values"]),
        ("[sweep.set]\n\"method+lr\" = [1]", &["method+lr", "by itself"]),
        ("[sweep.set]\nspeed = [1, 2]", &["speed", "unknown field"]),
        ("sweep = 3", &["`sweep` is no table"]),
        ("[sweep.set]\nseed = [1, 2]", &["seed", "can't vary"]),
    ] {
        let file = case.path("recipe.toml");
        crate::files::write_file(&file, text);
        let mut command = command(["sweep", "--list", "--set", "backbone=b", "--set", "data=d", "--config"]);
        command.arg(&file);
        run(command).refused(words);
    }
}
