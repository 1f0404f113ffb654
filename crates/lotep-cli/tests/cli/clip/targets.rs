//! Data sets that are tested only.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::common::{Case, command, lotep, read_json, run};
use crate::files::write_file;

use super::clip;

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
