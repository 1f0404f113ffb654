//! A directory holds one piece of work: what another command finished there is refused, whole, and nothing is written.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{Case, Net, Ran, command, files_under, run};
use crate::files::write_file;

/// Commands that leave a directory of their own, with what each is called when another finds it.
const COMMANDS: [(&str, &str); 5] = [
    ("train", "a training run (config.toml)"),
    ("sweep", "a sweep (trials.json)"),
    ("prune", "a pruning (prune.json)"),
    ("protocol", "a protocol's runs (protocol.json)"),
    ("experiment", "an experiment (experiment.json)"),
];

/// A short work of `what`, into `output`.
fn work(case: &Case, what: &str, output: &Path, more: &[&str]) -> Ran {
    let (backbone, images) = (case.backbone(Net::Vit), case.images());
    let set = |key: &str, value: &str| -> [OsString; 2] { ["--set".into(), format!("{key}={value}").into()] };
    let mut common: Vec<OsString> = Vec::new();
    for (key, value) in [("epochs", "1"), ("batch_size", "16"), ("val_fraction", "0.34")] {
        common.extend(set(key, value));
    }
    common.extend(set("backbone", backbone.to_str().unwrap()));
    common.extend(set("data", images.to_str().unwrap()));
    let mut command = match what {
        "train" => {
            let mut command = command(["train", "--method", "linear-probe", "--epochs", "1"]);
            command.arg("--backbone").arg(backbone).arg("--data").arg(images);
            command
        }
        "sweep" => {
            let mut command = command(["sweep", "--set", "method=linear-probe", "--set", "lr=0.1,0.2"]);
            command.args(common);
            command
        }
        "prune" => {
            let few = ["--token-percentages", "40", "--segment-percentages", "25", "--seeds", "1"];
            let mut command = command(["prune", "--set", "method.tokens=3", "--set", "method.segments=8"]);
            command.args(few).args(common);
            command
        }
        "protocol" => {
            let few = ["--shots", "2", "--seeds", "1", "--set", "method=linear-probe"];
            let mut command = command(["protocol", "few-shot"]);
            command.args(few).args(common);
            command
        }
        _ => {
            let path = case.path("recipe.toml");
            let backbone = toml::Value::String(backbone.display().to_string());
            let text = format!(
                "title = \"T\"\nsource = \"S\"\nprotocol = \"P\"\nseeds = [0]\n[settings]\nepochs = 1\nbatch_size = 16\n\
                 [[model]]\nname = \"M\"\nbackbone = {backbone}\n[[data]]\nname = \"D\"\npath = \"images\"\n\
                 [[method]]\nname = \"Probe\"\nmethod = \"linear-probe\"\n"
            );
            write_file(&path, text);
            let mut command = command(["experiment", "run"]);
            command.arg(path).arg("--data-root").arg(case.path(""));
            command
        }
    };
    command.arg("--output").arg(output).args(more);
    run(command)
}

fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    files_under(dir).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn no_command_writes_over_what_another_finished() {
    let case = Case::new();
    for (what, _) in COMMANDS {
        work(&case, what, &case.path(what), &[]).done();
        assert!(what == "experiment" || case.path(what).join("result.json").is_file(), "{what}");
    }
    let mut wrong = Vec::new();
    for (there, called) in COMMANDS {
        let dir = case.path(there);
        let before = content(&dir);
        for (asked, _) in COMMANDS.iter().filter(|(asked, _)| *asked != there) {
            let more: &[&[&str]] = if *asked == "train" { &[&[], &["--resume"]] } else { &[&[]] };
            for more in more {
                let ran = work(&case, asked, &dir, more);
                let fault = ran.fault(&[called, "choose another --output", dir.to_str().unwrap()]);
                wrong.extend(fault.map(|fault| format!("{asked} {more:?} on {there}: {fault}")));
                if content(&dir) != before {
                    wrong.push(format!("{asked} {more:?} changed what {there} left"));
                }
            }
        }
        // Without its mark it is still somebody's result.
        if there != "train" && there != "experiment" {
            let (_, mark) = called.split_once('(').unwrap();
            fs::remove_file(dir.join(mark.trim_end_matches(')'))).unwrap();
            let ran = work(&case, there, &dir, &[]);
            wrong.extend(ran.fault(&["holds other results (result.json)"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
