//! Ctrl-C: status 130, a line that says how to go on, and the same bits in the end.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crate::common::{Case, Net, Ran, files_under, run};
use crate::resume::{checkpoint_changes, same_end};

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").arg(name).arg(child.id().to_string()).status().unwrap();
    assert!(sent.success());
}

/// Send a signal and wait until the program says that it stops: a signal may arrive long after it was sent. Returns
/// all that was said until then.
#[track_caller]
fn stop(child: &mut Child, name: &str) -> Vec<u8> {
    signal(child, name);
    let (_done, wait) = mpsc::channel::<()>();
    let id = child.id().to_string();
    thread::spawn(move || {
        if wait.recv_timeout(Duration::from_secs(30)) == Err(RecvTimeoutError::Timeout) {
            _ = Command::new("kill").args(["-KILL", &id]).status();
        }
    });
    let mut said = Vec::new();
    let stderr = child.stderr.as_mut().unwrap();
    // Byte by byte, for what comes after stays in the pipe.
    while !said.ends_with(b"stopping after this step (again to stop at once)\n") {
        let mut byte = [0];
        let read = stderr.read(&mut byte).unwrap();
        assert_eq!(read, 1, "it ended before it said so: {}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }
    said
}

/// Wait for the end after [`stop`].
fn ended(child: Child, said: Vec<u8>, what: &str) -> Ran {
    let mut output = child.wait_with_output().unwrap();
    output.stderr.splice(..0, said);
    Ran::new(output, what.into())
}

/// Wait for the end after [`stop`], and check that it is the end of an interrupted run.
#[track_caller]
fn interrupted(child: Child, said: Vec<u8>, words: &[&str]) -> Ran {
    let ran = ended(child, said, "(interrupted)");
    assert_eq!(ran.code, Some(130), "{ran}");
    assert_eq!(ran.stdout, "", "there is no result: {ran}");
    let last = ran.stderr.lines().last().unwrap();
    for word in words {
        assert!(last.contains(word), "`{word}` is not in the last line: {ran}");
    }
    ran
}

/// Put a pipe in an image's place: its reader waits until [`feed`] gives it the image, so that a signal can be sent
/// at exactly that point. Returns the image.
fn hold(image: &Path) -> Vec<u8> {
    let bytes = std::fs::read(image).unwrap();
    std::fs::remove_file(image).unwrap();
    assert!(Command::new("mkfifo").arg(image).status().unwrap().success());
    bytes
}

/// Give the waiting reader the image. Opening the pipe waits for that reader.
fn feed(image: &Path, bytes: &[u8]) {
    std::fs::write(image, bytes).unwrap();
}

fn wait_for(what: &Path) {
    let start = Instant::now();
    while !what.exists() {
        assert!(start.elapsed() < Duration::from_secs(30), "{} does not appear", what.display());
        sleep(Duration::from_millis(1));
    }
}

fn first_image(case: &Case, split: &str) -> PathBuf {
    files_under(&case.images().join(split))[0].clone()
}

#[test]
fn a_stopped_run_says_how_to_go_on_and_ends_with_the_same_bits() {
    let options = ["--method", "lotep-tk", "--batch-size", "4", "--epochs", "30", "--optimizer", "adamw"];
    let case = Case::new();
    case.train(Net::Vit, "alone", &options).done();
    let resume = [&options[..], &["--resume"]].concat();
    let checkpoint = case.path("stopped/checkpoints/last.safetensors");
    for name in ["-INT", "-TERM"] {
        let before = std::fs::read(&checkpoint).ok();
        let mut child = case.training(Net::Vit, "stopped", &resume).spawn().unwrap();
        assert!(checkpoint_changes(&mut child, &checkpoint, before.as_deref()));
        let said = stop(&mut child, name);
        interrupted(child, said, &["stopped in epoch", "after step", "last.safetensors", "--resume"]);
        assert!(!case.path("stopped/result.json").exists());
    }
    case.train(Net::Vit, "stopped", &resume).done();
    same_end(&case.path("alone"), &case.path("stopped"));
}

#[test]
fn stopped_while_features_are_computed() {
    let case = Case::new();
    let image = first_image(&case, "train");
    let bytes = hold(&image);
    let mut child = case.training(Net::ResNet, "run", &["--method", "linear-probe"]).spawn().unwrap();
    wait_for(&case.path("run/metrics.jsonl"));
    let said = stop(&mut child, "-INT");
    feed(&image, &bytes);
    interrupted(child, said, &["stopped while computing features", "--resume"]);
    std::fs::remove_file(&image).unwrap();
    std::fs::write(&image, &bytes).unwrap();
    case.train(Net::ResNet, "run", &["--method", "linear-probe", "--resume"]).done();
}

#[test]
fn stopped_during_the_last_evaluation() {
    let case = Case::new();
    let options = ["--method", "lor-vp", "--epochs", "1"];
    case.train(Net::Vit, "alone", &options).done();
    let image = first_image(&case, "test");
    let bytes = hold(&image);
    let mut child = case.training(Net::Vit, "run", &options).spawn().unwrap();
    let checkpoint = case.path("run/checkpoints/last.safetensors");
    assert!(checkpoint_changes(&mut child, &checkpoint, None));
    let said = stop(&mut child, "-INT");
    feed(&image, &bytes);
    interrupted(child, said, &["--resume"]);
    std::fs::remove_file(&image).unwrap();
    std::fs::write(&image, &bytes).unwrap();
    case.train(Net::Vit, "run", &[&options[..], &["--resume"]].concat()).done();
    same_end(&case.path("alone"), &case.path("run"));
}

#[test]
fn a_second_signal_ends_the_program_at_once() {
    let case = Case::new();
    let image = first_image(&case, "train");
    hold(&image);
    // The image never comes, so that "after this step" never comes either.
    let mut child = case.training(Net::Vit, "run", &["--method", "lor-vp"]).spawn().unwrap();
    wait_for(&case.path("run/metrics.jsonl"));
    // Two signals at the same moment may arrive as one: the second waits until the first was seen.
    stop(&mut child, "-INT");
    signal(&child, "-INT");
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > Duration::from_secs(10) {
            child.kill().unwrap();
            panic!("still running 10 s after the second signal");
        }
        sleep(Duration::from_millis(5));
    };
    assert_eq!(status.code(), Some(130));
}

#[test]
fn eval_and_predict_stop_too() {
    let case = Case::new();
    let adapter = case.adapter(Net::Vit, "linear-probe");
    let image = first_image(&case, "test");
    let bytes = hold(&image);
    let arguments = |name: &'static str| {
        let mut command = crate::common::command([name, "--adapter"]);
        command.arg(&adapter);
        match name {
            "eval" => command.arg("--data").arg(case.images()),
            _ => command.arg("--logits").arg(case.path("scores")).arg(case.images().join("test")),
        };
        command
    };
    for (name, word) in [("eval", "evaluation was stopped"), ("predict", "prediction was stopped")] {
        let mut child = arguments(name).spawn().unwrap();
        // The pipe's other end opens once the image is wanted, and by then signals are caught.
        let mut pipe = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
        let said = stop(&mut child, "-INT");
        std::io::Write::write_all(&mut pipe, &bytes).unwrap();
        drop(pipe);
        let ran = ended(child, said, name);
        assert_eq!(ran.code, Some(130), "{ran}");
        assert!(ran.stderr.contains(word), "{ran}");
    }
    assert!(!case.path("scores").exists(), "a part of the scores is not written");
    std::fs::remove_file(&image).unwrap();
    std::fs::write(&image, &bytes).unwrap();
    run(arguments("predict")).done();
}

/// Trials that run beside each other all stop, and the same command takes them up again.
#[test]
fn a_stopped_sweep_goes_on_and_comes_to_the_same() {
    let case = Case::new();
    let command = |output: &str, jobs: &str| {
        let mut command = crate::common::command(["sweep", "--jobs", jobs, "--output"]);
        command.arg(case.path(output));
        for setting in [
            format!("backbone={}", case.backbone(Net::Vit).display()),
            format!("data={}", case.images().display()),
            "method=lotep-tk".into(),
            "epochs=30".into(),
            "batch_size=4".into(),
            "val_fraction=0.3".into(),
            "prompt_lr=0.1,0.05,0.01".into(),
        ] {
            command.args(["--set", &setting]);
        }
        command
    };
    let mut child = command("stopped", "2").spawn().unwrap();
    for trial in ["002", "003"] {
        wait_for(&case.path(&format!("stopped/trials/{trial}/checkpoints/last.safetensors")));
    }
    let said = stop(&mut child, "-INT");
    interrupted(child, said, &["the same command goes on from here"]);
    assert!(!case.path("stopped/result.json").exists());
    run(command("stopped", "2")).done();
    run(command("alone", "1")).done();
    let rounds = |output: &str| {
        let trials = crate::common::read_json(&case.path(output).join("trials.json"))["trials"].clone();
        trials.as_array().unwrap().iter().map(|t| t["rounds"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(rounds("stopped"), rounds("alone"));
    for trial in ["001", "002", "003"] {
        let checkpoint = |output: &str| {
            let run = case.path(output).join("trials").join(trial);
            crate::common::read_tensors(&run.join("checkpoints/last.safetensors")).0
        };
        assert!(checkpoint("stopped") == checkpoint("alone"), "{trial}");
    }
}
