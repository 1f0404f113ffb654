//! A run that was killed, however often and wherever, ends with the same bits as one that was left alone.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::common::{Case, Dice, Net, files_under, read_json, read_tensors, run, sha256};

/// Small batches and a checkpoint after each, so that there are many places to be killed at.
const SMALL: [&str; 6] = ["--batch-size", "4", "--checkpoint-steps", "1", "--epochs", "5"];

/// Wait until the run's checkpoint is another than `before`; false if the run ended first.
pub(crate) fn checkpoint_changes(child: &mut Child, checkpoint: &Path, before: Option<&[u8]>) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(30) {
        let now = fs::read(checkpoint).ok();
        if now.is_some() && now.as_deref() != before {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        sleep(Duration::from_millis(1));
    }
    panic!("no new checkpoint in {} for 30 s", checkpoint.display());
}

/// Check that two runs of the same settings ended alike in everything but time.
pub(crate) fn same_end(a: &Path, b: &Path) {
    // Numbers first, for a difference in them is worse than one in how they are written.
    let tensors = |run: &Path| read_tensors(&run.join("adapter/adapter_model.safetensors")).0;
    for (a, b) in tensors(a).iter().zip(&tensors(b)) {
        assert!(a == b, "`{}` has other values", a.name);
    }
    for file in ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "config.toml"] {
        assert!(fs::read(a.join(file)).unwrap() == fs::read(b.join(file)).unwrap(), "{file} differs");
    }
    let facts = |run: &Path| {
        let result = read_json(&run.join("result.json"));
        ["epoch", "steps", "val", "test", "best_test", "skipped"].map(|key| result["train"][key].clone())
    };
    assert_eq!(facts(a), facts(b), "result.json");
    let metrics = |run: &Path| -> Vec<Value> {
        let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let line = |line: &str| {
            let mut value: Value = serde_json::from_str(line).unwrap();
            for time in ["seconds", "images_per_second"] {
                assert!(value.as_object_mut().unwrap().remove(time).is_some(), "{line}");
            }
            value
        };
        text.lines().map(line).collect()
    };
    assert_eq!(metrics(a), metrics(b), "metrics.jsonl");
}

/// Kill a run again and again at random moments, let it end, and compare it with one that was left alone.
fn killed_and_left_alone(net: Net, options: &[&str]) {
    let case = Case::new();
    let options = [&SMALL[..], options].concat();
    case.train(net, "alone", &options).done();

    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    eprintln!("the moments follow from seed {seed}");
    let mut dice = Dice(seed);
    let (checkpoint, mut hits) = (case.path("killed/checkpoints/last.safetensors"), 0);
    for _ in 0..4 {
        let before = fs::read(&checkpoint).ok();
        // --resume begins a run that has not begun, so that one command line serves from first to last.
        let mut child =
            case.training(net, "killed", &[&options[..], &["--resume"]].concat()).spawn().unwrap();
        if checkpoint_changes(&mut child, &checkpoint, before.as_deref()) {
            sleep(Duration::from_micros(dice.next() % 15_000));
        }
        child.kill().unwrap();
        hits += usize::from(child.wait().unwrap().code().is_none());
        // Whatever was being written, the file under its name is whole.
        read_tensors(&checkpoint);
    }
    assert!(hits >= 2, "the run was killed {hits} times only: it is too short for this test");
    let ran = case.train(net, "killed", &[&options[..], &["--resume"]].concat()).done();
    assert!(ran.stderr.contains("resuming"), "{ran}");
    same_end(&case.path("alone"), &case.path("killed"));
    let litter = files_under(&case.path("killed/adapter")).len();
    assert_eq!(litter, 2, "nothing but the adapter's two files is in its directory");
}

#[test]
fn lotep_tk_with_sgd_in_parts() {
    let options = ["--method", "lotep-tk", "--optimizer", "sgd", "--prompt-lr", "0.05", "--accumulate", "2"];
    killed_and_left_alone(Net::ResNet, &options);
}

#[test]
fn lotep_cp_with_adamw_and_selection() {
    let options =
        ["--method", "lotep-cp", "--optimizer", "adamw", "--prompt-lr", "0.01", "--select", "best-val"];
    killed_and_left_alone(
        Net::Vit,
        &[&options[..], &["--test-every-epoch", "--val-fraction", "0.3"]].concat(),
    );
}

#[test]
fn tokens_with_dropout_in_parts() {
    let options = ["--method", "vpt-deep", "--dropout", "0.3", "--accumulate", "2", "--prompt-lr", "0.1"];
    killed_and_left_alone(Net::Vit, &options);
}

#[test]
fn lora_with_dropout() {
    killed_and_left_alone(Net::Vit, &["--method", "lora", "--dropout", "0.3", "--targets", "q,fc1"]);
}

#[test]
fn linear_probe_with_adamw() {
    killed_and_left_alone(Net::ResNet, &["--method", "linear-probe", "--optimizer", "adamw"]);
}

#[test]
fn lor_vp_with_warm_up_in_parts() {
    let options =
        ["--method", "lor-vp", "--optimizer", "adamw", "--accumulate", "4", "--warmup-epochs", "1.5"];
    killed_and_left_alone(Net::Vit, &options);
}

#[test]
fn two_runs_are_the_same_to_the_bit_and_another_seed_is_another_run() {
    let case = Case::new();
    for (output, seed, workers) in [("a", "3", "1"), ("b", "3", "5"), ("c", "4", "1")] {
        case.train(Net::ResNet, output, &["--seed", seed, "--workers", workers, "--prompt-lr", "0.05"])
            .done();
    }
    let adapter = |run: &str| read_tensors(&case.path(run).join("adapter/adapter_model.safetensors")).0;
    assert!(adapter("a") == adapter("b"), "the number of threads that read images changes nothing");
    assert!(adapter("a") != adapter("c"));
}

/// Whatever a file's order is left to chance for shows in a few runs.
#[test]
fn the_adapters_file_is_the_same_to_the_byte_every_time() {
    let case = Case::new();
    let runs = ["a", "b", "c", "d", "e", "f"];
    for output in runs {
        case.train(Net::Vit, output, &["--method", "linear-probe", "--epochs", "1"]).done();
    }
    let hashes = runs.map(|run| sha256(&case.path(run).join("adapter/adapter_model.safetensors")));
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:#?}");
}

#[test]
fn the_result_of_a_run_killed_before_it_wrote_it_lists_skipped_images_all_the_same() {
    let case = Case::new();
    let broken = files_under(&case.images().join("train"))[7].clone();
    fs::write(&broken, "not an image").unwrap();
    let options = ["--method", "lotep-cp", "--on-corrupt", "skip"];
    case.train(Net::Vit, "alone", &options).done();
    case.train(Net::Vit, "killed", &options).done();
    // As after a kill between the last checkpoint and the result.
    fs::remove_file(case.path("killed/result.json")).unwrap();
    fs::remove_dir_all(case.path("killed/adapter")).unwrap();
    case.train(Net::Vit, "killed", &[&options[..], &["--resume"]].concat()).done();
    same_end(&case.path("alone"), &case.path("killed"));
}

#[test]
fn an_option_that_is_left_out_on_resume_is_another_run() {
    let case = Case::new();
    case.train(Net::Vit, "run", &["--method", "linear-probe", "--subset", "8"]).done();
    let before = fs::read(case.path("run/config.toml")).unwrap();
    case.train(Net::Vit, "run", &["--method", "linear-probe", "--resume"])
        .refused(&["subset", "was 8", "absent"]);
    assert_eq!(fs::read(case.path("run/config.toml")).unwrap(), before);
}

#[test]
fn resuming_a_finished_run_changes_nothing() {
    let case = Case::new();
    case.train(Net::Vit, "a", &["--method", "lotep-tk"]).done();
    case.train(Net::Vit, "b", &["--method", "lotep-tk"]).done();
    case.train(Net::Vit, "b", &["--method", "lotep-tk", "--resume"]).done();
    same_end(&case.path("a"), &case.path("b"));
}

#[test]
fn what_the_numbers_do_not_depend_on_may_change_on_resume() {
    let case = Case::new();
    case.train(Net::Vit, "run", &["--method", "lotep-tk"]).done();
    let free =
        ["--resume", "--workers", "1", "--cache-mb", "0", "--checkpoint-steps", "7", "--device", "cpu"];
    run(case.training(Net::Vit, "run", &[&["--method", "lotep-tk"], &free[..]].concat())).done();
}
