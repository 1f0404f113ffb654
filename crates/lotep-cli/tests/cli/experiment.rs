//! `experiment`: a recipe becomes runs, and runs become tables and pages.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::common::{Case, Net, Ran, command, files_under, lotep, read_json, run};
use crate::files::write_file;

/// A recipe of two methods and two seeds on a tiny network, with `more` behind it.
fn recipe(case: &Case, more: &str) -> PathBuf {
    let path = case.path("recipe.toml");
    case.images();
    let backbone = toml::Value::String(case.backbone(Net::ResNet).display().to_string());
    let text = format!(
        r#"
title = "Two <methods>"
source = "a paper, table 1"
protocol = "the last of two epochs"
seeds = [0, 1]
[settings]
epochs = 2
batch_size = 16
[[model]]
name = "Tiny"
backbone = {backbone}
[[data]]
name = "drawn & small"
path = "images"
[[method]]
name = "Probe"
method = "linear-probe"
[[method]]
name = "LoTeP"
method = "lotep-cp"
with = {{ rank = 2 }}
[[expected]]
method = "LoTeP"
top1 = 90.5
{more}"#
    );
    write_file(&path, text);
    path
}

fn experiment(case: &Case, more: &[&str]) -> Ran {
    let mut command = command(["experiment", "run"]);
    command.arg(case.path("recipe.toml")).arg("--data-root").arg(case.path(""));
    command.arg("--output").arg(case.path("e")).args(more);
    run(command)
}

/// Files and what is in them.
fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    files_under(dir).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn a_recipe_is_run_once_and_reported() {
    let case = Case::new();
    recipe(&case, "");
    let dry = experiment(&case, &["--dry-run"]).done();
    assert!(dry.stdout.contains("tiny-drawn-small-lotep-s1") && !case.path("e").exists(), "{dry}");
    let ran = experiment(&case, &["--jobs", "2"]).done();
    let runs = case.path("e/runs");
    let top1 = |method: &str, seed: u64| -> f64 {
        let result = read_json(&runs.join(format!("tiny-drawn-small-{method}-s{seed}/result.json")));
        assert_eq!(result["run"]["config"]["seed"], seed);
        result["train"]["test"]["top1"].as_f64().unwrap()
    };
    let mean = f64::midpoint(top1("lotep", 0), top1("lotep", 1));
    let own = format!("{mean:.2}");
    assert!(ran.stdout.contains(&own) && ran.stdout.contains("(90.50)"), "{ran}");
    assert!(ran.stderr.contains("done    tiny-drawn-small-probe-s0  top1"), "{ran}");
    assert!(ran.stderr.contains("protocol  the last of two epochs"), "{ran}");

    // Again: nothing is run.
    let before = content(&runs);
    let again = experiment(&case, &[]).done();
    assert!(again.stderr.contains("4 runs, 4 of them done") && !again.stderr.contains("begun"), "{again}");
    assert_eq!(content(&runs), before);

    // One that stopped before its end goes on; its like was finished, so the result is the same.
    let half = runs.join("tiny-drawn-small-lotep-s1");
    let result = fs::read(half.join("adapter/adapter_model.safetensors")).unwrap();
    fs::remove_file(half.join("result.json")).unwrap();
    let on = experiment(&case, &[]).done();
    assert!(
        on.stderr.contains("3 of them done") && on.stderr.contains("begun   tiny-drawn-small-lotep-s1"),
        "{on}"
    );
    assert_eq!(fs::read(half.join("adapter/adapter_model.safetensors")).unwrap(), result);

    let page = lotep!("experiment", "report", case.path("e")).done();
    let page = fs::read_to_string(page.stdout.trim()).unwrap();
    assert!(
        page.contains(&own) && page.contains("paper 90.50") && page.contains("Two &lt;methods&gt;"),
        "{page}"
    );
    // Nothing is fetched: the only addresses are the name space of SVG.
    let addresses = page.matches("://").count();
    assert_eq!(addresses, page.matches("http://www.w3.org/2000/svg").count());
    assert!(!page.contains("src="), "{page}");
    let written = case.path("e/report");
    for file in ["table.md", "table.csv", "table.tex", "accuracy-1.svg", "parameters-1.svg"] {
        assert!(written.join(file).is_file(), "{file}");
    }
    let csv = lotep!("experiment", "table", case.path("e"), "--form", "csv").done();
    let line = csv.stdout.lines().find(|l| l.contains("LoTeP")).unwrap();
    assert!(line.contains(&format!("{mean}")) && line.contains("90.5"), "{line}");
    let json = lotep!("experiment", "table", case.path("e"), "--format", "json").done().json();
    assert_eq!(json["tables"][0]["rows"][1]["cells"][0]["mean"].as_f64(), Some(mean));
    let plots = lotep!("experiment", "plot", case.path("e"), "--output", case.path("plots")).done();
    assert_eq!(plots.stdout.lines().count(), 2, "{plots}");
}

#[test]
fn what_varies_is_plotted_and_features_are_compared() {
    let case = Case::new();
    let more = "[vary]\nname = \"rank\"\nset = \"method.rank\"\nvalues = [1, 2]\n[cka]\nagainst = [\"base\", \"Probe\"]\n\
                images = 16\nbatch_size = 8\n";
    let path = recipe(&case, more);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        text.replace("\"linear-probe\"", "\"linear-probe\"\nvary = false")
            .replace("seeds = [0, 1]", "seeds = [3]"),
    )
    .unwrap();
    // What a run is compared with may come later.
    experiment(&case, &["--epochs", "1", "--subset", "24", "--only", "method=LoTeP"]).done();
    let looks = read_json(&case.path("e/cka/tiny-drawn-small-lotep-2-s3/cka.json"));
    assert_eq!(looks.as_array().unwrap().len(), 1);
    let ran = experiment(&case, &["--epochs", "1", "--subset", "24"]).done();
    assert!(
        ran.stdout.contains("LoTeP, rank 2") && ran.stdout.contains("scaled: epochs 1 (recipe: 2)"),
        "{ran}"
    );
    let looks = read_json(&case.path("e/cka/tiny-drawn-small-lotep-2-s3/cka.json"));
    assert_eq!(looks[0]["name"], "LoTeP, rank 2");
    assert_eq!(looks[1]["against"], "Probe (Tiny, drawn & small)");
    lotep!("experiment", "report", case.path("e")).done();
    let page = fs::read_to_string(case.path("e/report/index.html")).unwrap();
    assert!(page.contains("Likeness of features to Probe (Tiny, drawn &amp; small)"), "{page}");
    assert!(case.path("e/report/vary-1.svg").is_file() && case.path("e/report/cka-2.svg").is_file());
    // A row has one colour: that of the dot before its name in each legend.
    let colour = |file: &str, row: &str| {
        let svg = fs::read_to_string(case.path("e/report").join(file)).unwrap();
        let before = svg.split(&format!(">{row}</text>")).next().filter(|before| before.len() < svg.len());
        let stroke = before.and_then(|before| before.rsplit("<circle").next()?.split("stroke='").nth(1));
        stroke.unwrap_or_else(|| panic!("{file} has no {row}: {svg}"))[..7].to_owned()
    };
    let [one, two] = ["LoTeP, rank 1", "LoTeP, rank 2"];
    // The second comparison is with the probe, which is a row of the others alone.
    for (file, row) in [("cka-1.svg", one), ("cka-1.svg", two), ("cka-2.svg", one), ("cka-2.svg", two)] {
        assert_eq!(colour(file, row), colour("parameters-1.svg", row), "{file}: {row}");
    }
    assert_ne!(colour("cka-1.svg", one), colour("cka-1.svg", two));
    // Nothing is compared twice.
    let again = experiment(&case, &["--epochs", "1", "--subset", "24"]).done();
    assert!(!again.stderr.contains("begun"), "{again}");
}

#[test]
fn more_runs_may_be_asked_for() {
    let case = Case::new();
    let path = recipe(&case, "");
    let few = |more: &[&str]| experiment(&case, &[&["--epochs", "1"], more].concat());
    few(&["--only", "method=LoTeP", "--seeds", "1"]).done();
    let first = content(&case.path("e/runs"));
    let record = fs::read(case.path("e/experiment.json")).unwrap();
    let dry = few(&["--dry-run"]).done();
    assert!(dry.stderr.contains("4 runs, 1 of them done") && dry.stdout.lines().count() == 4, "{dry}");
    assert_eq!(fs::read(case.path("e/experiment.json")).unwrap(), record);
    // Another method and another seed: one run, and the table of both.
    let more = few(&["--only", "method=Probe", "--seeds", "0"]).done();
    assert!(more.stderr.contains("1 run, 0 of them done; 1 more in "), "{more}");
    assert_eq!(more.stderr.matches("begun").count(), 1, "{more}");
    assert!(more.stdout.contains("scaled: epochs 1 (recipe: 2); 2 of the 4 runs"), "{more}");
    // A method that the recipe has got since, and the seeds that were missing.
    let text = fs::read_to_string(&path).unwrap();
    let third = "[[method]]\nname = \"LoTeP-TK\"\nmethod = \"lotep-tk\"\nwith = { rank = 2 }\n[[expected]]";
    fs::write(&path, text.replace("[[expected]]", third)).unwrap();
    let all = few(&[]).done();
    assert!(all.stderr.contains("6 runs, 2 of them done"), "{all}");
    let table = lotep!("experiment", "table", case.path("e"), "--format", "json").done().json();
    assert_eq!((&table["done"], &table["scaled"]), (&[6, 6].into(), &["epochs 1 (recipe: 2)"].into()));
    let rows = table["tables"][0]["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["Probe", "LoTeP", "LoTeP-TK"]);
    assert!(rows.iter().all(|row| row["cells"][0]["seeds"] == 2), "{table}");
    // What was there is as it was.
    let now = content(&case.path("e/runs"));
    assert!(first.iter().all(|file| now.contains(file)));
    // A method that is another one, or gone, and data from elsewhere.
    fs::write(&path, text.replace("rank = 2", "rank = 3")).unwrap();
    few(&["--seeds", "7"]).refused(&["[[method]] `LoTeP` with.rank = 2, not 3"]);
    fs::write(&path, &text).unwrap();
    few(&["--seeds", "7"]).refused(&["[[method]] `LoTeP-TK`, which the recipe has no more"]);
    assert_eq!(content(&case.path("e/runs")), now);
}

#[test]
fn adapters_are_measured_on_other_sets() {
    let case = Case::new();
    recipe(&case, "[[also]]\nname = \"Other\"\npath = \"other\"\n");
    for path in files_under(&case.images()) {
        let to = case.path("other").join(path.strip_prefix(case.images()).unwrap());
        write_file(&to, fs::read(&path).unwrap());
    }
    let few = ["--seeds", "0", "--epochs", "1"];
    let ran = experiment(&case, &few).done();
    assert!(ran.stdout.contains("Other"), "{ran}");
    let row = lotep!("experiment", "table", case.path("e"), "--format", "json").done().json();
    assert_eq!(row["tables"][0]["columns"], serde_json::json!(["drawn & small", "Other"]));
    for row in row["tables"][0]["rows"].as_array().unwrap() {
        // They are the same images.
        assert_eq!(row["cells"][0]["mean"], row["cells"][1]["mean"], "{row}");
        assert!(row["cells"][0]["mean"].is_number());
    }
    let again = experiment(&case, &few).done();
    assert!(!again.stderr.contains("begun"), "{again}");
    // A run that was made anew is measured anew.
    fs::remove_dir_all(case.path("e/runs/tiny-drawn-small-lotep-s0")).unwrap();
    let again = experiment(&case, &few).done();
    assert_eq!(again.stderr.matches("begun   tiny-drawn-small-lotep-s0").count(), 2, "{again}");
    assert!(again.stderr.contains("begun   tiny-drawn-small-lotep-s0 on Other"), "{again}");
    fs::write(case.path("e/also/tiny-drawn-small-lotep-s0/1.json"), "{").unwrap();
    lotep!("experiment", "table", case.path("e")).refused(&["1.json is damaged"]);
    fs::remove_dir_all(case.path("other")).unwrap();
    experiment(&case, &few).refused(&["data `Other`"]);
}

/// A pruning and a protocol as runs: resumed, told from others, reported with what all of it cost.
#[test]
fn prunings_and_protocols_are_runs() {
    let case = Case::new();
    let path = recipe(&case, "");
    let text = fs::read_to_string(&path).unwrap();
    let vit = case.backbone(Net::Vit).display().to_string();
    let text = text.replace(&case.backbone(Net::ResNet).display().to_string(), &vit);
    let (head, _) = text.split_once("[[method]]").unwrap();
    let few = "run = \"few-shot\"\nargs = [\"--shots\", \"1,2\"]\nseeds";
    let methods = "[[method]]\nname = \"Probe\"\nmethod = \"linear-probe\"\n";
    fs::write(&path, head.replace("seeds", few) + methods).unwrap();
    let ran = experiment(&case, &["--epochs", "1"]).done();
    assert!(ran.stdout.contains("1 shot ") && ran.stdout.contains("2 shots"), "{ran}");
    lotep!("experiment", "report", case.path("e")).done();
    let report = case.path("e/report");
    let table = fs::read_to_string(report.join("table.md")).unwrap();
    assert!(table.contains("| 1 shot | 2 shots |") && !table.contains("images a class"), "{table}");
    // The number of images is what varies.
    let plot = fs::read_to_string(report.join("vary-1.svg")).unwrap();
    assert!(plot.contains("training images of each class") && !plot.contains("NaN"), "{plot}");
    let again = experiment(&case, &["--epochs", "1"]).done();
    assert!(!again.stderr.contains("begun"), "{again}");
    let record = case.path("e/runs/tiny-drawn-small-probe-s0/protocol.json");
    let other = fs::read_to_string(&record).unwrap().replace("\"batch_size\": 16", "\"batch_size\": 8");
    fs::write(&record, other).unwrap();
    experiment(&case, &["--epochs", "1"]).refused(&["holds another run", "batch_size is 8, 16 is expected"]);

    fs::remove_dir_all(case.path("e")).unwrap();
    let prune = "run = \"prune\"\nargs = [\"--token-percentages\", \"40\", \"--segment-percentages\", \"25\", \"--compat\", \"repo\"]\nseeds";
    let methods = "[[method]]\nname = \"E\"\nmethod = \"e2vpt\"\nwith = { tokens = 3, segments = 8 }\n";
    fs::write(&path, head.replace("seeds", prune) + methods).unwrap();
    let small = ["--epochs", "1", "--seeds", "0", "--set", "val_fraction=0.34"];
    experiment(&case, &small).done();
    let run = case.path("e/runs/tiny-drawn-small-e-s0");
    let table = lotep!("experiment", "table", case.path("e"), "--format", "json").done().json();
    let row = &table["tables"][0]["rows"][0];
    let last = read_json(&run.join("result.json"))["runs"][0]["train"]["seconds"].as_f64().unwrap();
    assert!(row["seconds"].as_f64().unwrap() > last, "the search costs too: {row}");
    // As if it had been stopped in its search.
    fs::remove_file(run.join("result.json")).unwrap();
    fs::remove_dir_all(run.join("final")).unwrap();
    let dry = experiment(&case, &[&small[..], &["--dry-run"]].concat()).done();
    assert!(dry.stdout.contains("after 2 epochs"), "{dry}");
    let on = experiment(&case, &small).done();
    assert!(on.stderr.contains("1 run, 0 of them done"), "{on}");
    let again = experiment(&case, &small).done();
    assert!(again.stderr.contains("1 run, 1 of them done") && !again.stderr.contains("begun"), "{again}");
}

#[test]
fn what_is_missing_is_said_before_anything_runs() {
    let case = Case::new();
    let path = recipe(&case, "");
    let text = fs::read_to_string(&path).unwrap();
    let wrong = |from: &str, to: &str, words: &[&str]| {
        fs::write(&path, text.replace(from, to)).unwrap();
        experiment(&case, &[]).refused(words);
        assert!(!case.path("e").exists());
    };
    wrong("path = \"images\"", "path = \"gone\"", &["data `drawn & small`", "gone"]);
    let backbone = case.backbone(Net::ResNet).display().to_string();
    wrong(&backbone, "no/such/net", &["model `Tiny`", "no/such/net", "--model"]);
    wrong("\"lotep-cp\"", "\"lotep-xy\"", &["tiny-drawn-small-lotep-s0", "lotep-xy"]);
    wrong("rank = 2", "colour = 2", &["colour"]);
    wrong("epochs = 2", "epochs = 0", &["epochs is 0"]);
    wrong("seeds = [0, 1]", "seeds = [0, 0]", &["tiny-drawn-small-probe-s0"]);
    wrong("method = \"LoTeP\"\ntop1", "method = \"LoTuP\"\ntop1", &["recipe.toml", "LoTuP"]);
    wrong("[settings]", "[settings", &["recipe.toml is not a recipe: line"]);
    let run = "run = \"cross-data\"\nargs = [\"--shots\", \"1\"]\nseeds";
    let targets = "[[targets]]\nname = \"elsewhere\"\npath = \"elsewhere\"\n[[targets]]\nname = \"pets\"\ndataset = \"clip-pets\"\n";
    fs::write(&path, text.replace("seeds", run) + targets).unwrap();
    experiment(&case, &[]).refused(&["data `elsewhere`", "data `pets`", "does not hold clip-pets"]);
    experiment(&case, &["--only", "to=elsewhere", "--only", "method=Probe"]).refused(&["elsewhere"]);
    experiment(&case, &["--only", "to=nowhere"]).refused(&["no such to", "elsewhere, pets"]);
    fs::write(&path, text).unwrap();
    experiment(&case, &["--only", "method=Else"]).refused(&["--only method=Else", "Probe, LoTeP"]);
    experiment(&case, &["--model", "Tiny=gone"]).refused(&["gone"]);
    lotep!("experiment", "run", case.path("none.toml"), "--output", case.path("e")).refused(&["none.toml"]);
    for what in ["table", "plot", "report"] {
        lotep!("experiment", what, case.path("e")).refused(&["holds no experiment"]);
    }
    assert!(!case.path("e").exists());
}

#[test]
fn what_is_there_is_not_written_over() {
    let case = Case::new();
    recipe(&case, "");
    let small = ["--only", "method=Probe", "--epochs", "1", "--seeds", "0"];
    experiment(&case, &small).done();
    let run = case.path("e/runs/tiny-drawn-small-probe-s0");
    let before = content(&case.path("e"));
    // Another scale, another recipe, and a process that is at work there.
    experiment(&case, &["--epochs", "2"]).refused(&["with epochs = 1, not 2", "choose another --output"]);
    experiment(&case, &["--epochs", "2", "--dry-run"]).refused(&["with epochs = 1, not 2"]);
    {
        let held = File::open(case.path("e")).unwrap();
        held.lock().unwrap();
        experiment(&case, &small).refused(&["another lotep is at work"]);
    }
    assert_eq!(content(&case.path("e")), before);
    // A damaged result, another run, and something that is no run.
    let result = fs::read_to_string(run.join("result.json")).unwrap();
    fs::write(run.join("result.json"), &result[..result.len() / 2]).unwrap();
    experiment(&case, &small).refused(&["result.json is damaged", "move"]);
    let report = lotep!("experiment", "report", case.path("e")).done();
    assert!(report.stderr.contains("damaged"), "{report}");
    fs::write(run.join("result.json"), result.replace("\"epochs\": 1", "\"epochs\": 9")).unwrap();
    experiment(&case, &small).refused(&["epochs is 9, 1 is expected"]);
    fs::remove_dir_all(&run).unwrap();
    write_file(&run.join("thesis.txt"), "mine");
    experiment(&case, &small).refused(&["holds something that is no run"]);
    assert_eq!(fs::read_to_string(run.join("thesis.txt")).unwrap(), "mine");
    fs::write(case.path("e/experiment.json"), "{").unwrap();
    experiment(&case, &small).refused(&["experiment.json is damaged"]);
    write_file(&case.path("full/letter.txt"), "mine");
    let other = lotep!(
        "experiment",
        "run",
        case.path("recipe.toml"),
        "--data-root",
        case.path(""),
        "--output",
        case.path("full")
    );
    other.refused(&["is not empty (letter.txt)"]);
}

#[test]
fn a_run_that_fails_leaves_the_others_alone() {
    let case = Case::new();
    let path = recipe(&case, "");
    let text = fs::read_to_string(&path).unwrap();
    // A ResNet has no tokens to prompt.
    fs::write(&path, text.replace("\"lotep-cp\"\nwith = { rank = 2 }", "\"vpt-deep\"")).unwrap();
    let ran =
        experiment(&case, &["--epochs", "1", "--seeds", "0"]).refused(&["1 of 2 runs failed", "need a ViT"]);
    assert!(ran.stderr.contains("done    tiny-drawn-small-probe-s0"), "{ran}");
    let table = lotep!("experiment", "table", case.path("e"), "--form", "markdown").done();
    assert!(table.stdout.contains("1 of 2 have ended"), "{table}");
}

#[test]
fn a_directory_is_one_training_at_a_time() {
    let case = Case::new();
    case.train(Net::ResNet, "run", &["--method", "linear-probe"]).done();
    let held = File::open(case.path("run")).unwrap();
    held.lock().unwrap();
    case.train(Net::ResNet, "run", &["--method", "linear-probe", "--resume"])
        .refused(&["another lotep is at work"]);
}
