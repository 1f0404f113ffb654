//! `--config`: a run's own file repeats it, options win over it, and mistakes in it are named.

use std::fs;
use std::path::Path;

use crate::common::{Case, Net, lotep};
use crate::resume::same_end;

#[test]
fn a_runs_config_repeats_it_bit_for_bit() {
    let case = Case::new();
    let options =
        ["--method", "lotep-tk", "--rank", "3", "--optimizer", "adamw", "--lr", "0.0123", "--seed", "7"];
    let more =
        ["--rank-schedule", "linear", "--warmup-epochs", "0.5", "--momentum", "0.87", "--subset", "32"];
    case.train(Net::ResNet, "first", &[&options[..], &more].concat()).done();
    let second = case.path("second");
    lotep!("train", "--config", case.path("first/config.toml"), "--output", second).done();
    same_end(&case.path("first"), &second);
}

#[test]
fn options_win_over_the_file_and_another_method_takes_its_own_defaults() {
    let case = Case::new();
    case.train(Net::Vit, "first", &["--method", "lotep-tk", "--rank", "3"]).done();
    let config = case.path("first/config.toml");
    let settings = |output: &str, more: &[&str]| -> toml::Table {
        let mut command = crate::common::command(["train", "--epochs", "1", "--config"]);
        command.arg(&config).arg("--output").arg(case.path(output)).args(more);
        crate::common::run(command).done();
        fs::read_to_string(case.path(output).join("config.toml")).unwrap().parse().unwrap()
    };
    let same = settings("same", &["--lr", "0.5"]);
    assert_eq!(same["lr"].as_float(), Some(0.5));
    assert_eq!((same["epochs"].as_integer(), same["method"]["rank"].as_integer()), (Some(1), Some(3)));
    let other = settings("other", &["--method", "lor-vp"]);
    assert_eq!(other["method"]["method"].as_str(), Some("lor-vp"));
    assert_eq!(other["method"]["rank"].as_integer(), Some(4), "the rank was another method's");
}

#[test]
fn update_rule_and_rates_suit_method_and_family() {
    let case = Case::new();
    for (net, method, more, expected) in [
        (Net::ResNet, "lotep-tk", &[][..], ("adamw", 0.002, 0.02)),
        (Net::ResNet, "lor-vp", &[], ("adamw", 0.002, 0.005)),
        (Net::ResNet, "lotep-cp", &["--optimizer", "sgd"], ("sgd", 0.02, 0.1)),
        (Net::ResNet, "linear-probe", &[], ("sgd", 0.02, 0.02)),
        (Net::Vit, "lotep-tk", &[], ("sgd", 0.005, 0.02)),
        (Net::Vit, "lotep-tk", &["--prompt-lr", "0.3"], ("sgd", 0.005, 0.3)),
    ] {
        let output = format!("{net:?}-{method}-{}", more.len());
        case.train(net, &output, &[&["--method", method, "--epochs", "1"], more].concat()).done();
        let text = fs::read_to_string(case.path(&output).join("config.toml")).unwrap();
        let config: toml::Table = text.parse().unwrap();
        let rate = |key: &str| config[key].as_float().unwrap();
        let found = (config["optimizer"].as_str().unwrap(), rate("lr"), rate("prompt_lr"));
        assert_eq!(found, expected, "{method}");
    }
}

/// Train with `text` as the configuration.
fn with(case: &Case, text: &str) -> crate::common::Ran {
    let (config, backbone, images) = (case.path("my.toml"), case.backbone(Net::Vit), case.images());
    fs::write(&config, text).unwrap();
    let output = case.path("run");
    lotep!("train", "--config", config, "--output", output, "--backbone", backbone, "--data", images)
}

#[test]
fn mistakes_in_the_file_are_named() {
    let case = Case::new();
    with(&case, "epoch = 3\n").refused(&["my.toml", "`epoch`"]);
    with(&case, "epochs = \"ten\"\n").refused(&["my.toml", "epochs", "ten"]);
    with(&case, "epochs = -1\n").refused(&["my.toml", "epochs", "-1"]);
    with(&case, "epochs = 0\n").refused(&["epochs", "0"]);
    with(&case, "lr = nan\n").refused(&["lr", "NaN"]);
    with(&case, "optimizer = \"lamb\"\n").refused(&["lamb", "sgd", "adamw"]);
    with(&case, "method = \"lotep-tk\"\n").refused(&["my.toml", "method", "[method]"]);
    with(&case, "[method]\nmethod = \"lora-x\"\n").refused(&["my.toml", "lora-x"]);
    with(&case, "[method]\nmethod = \"lotep-tk\"\nrnak = 3\n").refused(&["my.toml", "rnak"]);
    with(&case, "[method]\nmethod = \"lotep-tk\"\nrank = \"six\"\n").refused(&["my.toml", "rank", "six"]);
    with(&case, "this is not TOML\n").refused(&["my.toml", "line 1"]);
    with(&case, "a = 1\nb = [1,\n").refused(&["my.toml", "not TOML"]);
    assert!(!case.path("run").exists(), "nothing is written for a run that can't be");
}

#[test]
fn what_is_missing_is_named() {
    let case = Case::new();
    let output = case.path("run");
    lotep!("train", "--config", case.path("no.toml"), "--output", output).refused(&["no.toml"]);
    lotep!("train", "--output", output).refused(&["--backbone", "missing"]);
    lotep!("train", "--backbone", case.backbone(Net::Vit), "--output", output)
        .refused(&["--data", "missing"]);
    lotep!("train", "--backbone", "x", "--data", "y").misused(&["--output"]);
    assert!(!Path::new(&output).exists());
}
