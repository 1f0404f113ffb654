//! Standard output, pipes and full disks; help and version.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use crate::common::{Case, Net, command, lotep, run};

#[test]
fn help_and_version_go_to_standard_output() {
    let ran = lotep!("--help").done();
    for name in ["train", "eval", "predict", "inspect", "export", "bench", "demo"] {
        assert!(ran.stdout.contains(&format!("\n  {name} ")), "{name} is not in {ran}");
        let help = lotep!(name, "--help").done();
        assert!(help.stdout.contains("Usage: lotep ") && help.stderr.is_empty(), "{help}");
    }
    assert!(lotep!("--version").done().stdout.starts_with("lotep "));
    // Without a command there is nothing to do.
    let ran = lotep!();
    assert_eq!(ran.code, Some(2), "{ran}");
    assert!(ran.stderr.contains("Usage: lotep") && ran.stdout.is_empty(), "{ran}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let case = Case::new();
    let (backbone, images) = (case.backbone(Net::Vit), case.images());
    // One image at a time, so that most of the output is still to come when the reader leaves.
    let mut predict = command(["predict", "--batch-size", "1", "--backbone"]);
    predict.arg(&backbone).arg(&images);
    let mut inspect = command(["inspect", "--data"]);
    inspect.arg(&images);
    for mut command in [predict, inspect] {
        let mut child = command.spawn().unwrap();
        let mut first = String::new();
        BufReader::with_capacity(16, child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        assert!(first.ends_with('\n'), "{first}");
        let status = child.wait().unwrap();
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(status.code(), Some(0), "{stderr}");
        assert!(!stderr.contains("rror") && !stderr.contains("panicked"), "{stderr}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_under_standard_output_is_an_error() {
    let case = Case::new();
    let (backbone, images) = (case.backbone(Net::Vit), case.images());
    let mut command = command(["predict", "--backbone"]);
    command.arg(&backbone).arg(&images);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    command.stdout(Stdio::from(full));
    let ran = run(command).refused(&["standard output"]);
    assert!(ran.message().contains("space"), "the system's reason is told: {ran}");
}

/// A file that can't be written to its end does not appear under its name, nor its beginnings under another.
#[cfg(unix)]
#[test]
fn a_file_that_does_not_fit_leaves_nothing_behind() {
    let case = Case::new();
    let (backbone, images) = (case.backbone(Net::Vit), case.images());
    let scores = case.path("scores/logits.safetensors");
    // The limit stands for the full disk: writing fails in the middle, as it does there.
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_lotep")]);
    shell.args(["predict", "--quiet", "--backbone"]).arg(&backbone).arg("--logits").arg(&scores).arg(&images);
    let ran = run(shell);
    assert_eq!(ran.code, Some(1), "{ran}");
    assert!(ran.message().contains("logits.safetensors"), "{ran}");
    let left = std::fs::read_dir(case.path("scores")).unwrap().count();
    assert_eq!(left, 0, "a part of the file was left");
}

/// `--logits /dev/stdout` and the like: a device or a pipe is written to. Replacing it by a file would, for a user
/// with the right to, destroy it.
#[cfg(unix)]
#[test]
fn a_pipe_is_written_to_and_not_replaced() {
    use std::os::unix::fs::FileTypeExt;
    let case = Case::new();
    let (backbone, images, pipe) = (case.backbone(Net::Vit), case.images().join("test"), case.path("pipe"));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        // Read and write, so that opening does not wait for a writer that may never come.
        move || {
            let mut file = std::fs::OpenOptions::new().read(true).write(true).open(pipe).unwrap();
            let mut length = [0; 8];
            file.read_exact(&mut length).unwrap();
            u64::from_le_bytes(length)
        }
    });
    lotep!("predict", "--backbone", backbone, "--logits", pipe, images).done();
    assert!(pipe.symlink_metadata().unwrap().file_type().is_fifo(), "the pipe was replaced by a file");
    assert!(reader.join().unwrap() > 0);
}
