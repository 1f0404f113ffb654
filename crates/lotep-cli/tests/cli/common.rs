//! What the tests share: the program's runner, and a directory of a test's own with a network and drawn images.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

use crate::files::write_file;
pub(crate) use crate::files::{Tensor, files_under, read_json, read_tensors, sha256, text, write_tensors};
pub(crate) use crate::net::{Dice, Net, OWN_CLASSES};

/// Classes, training images and test images of [`Case::images`].
pub(crate) const CLASSES: usize = 8;
pub(crate) const TRAIN: usize = 48;
pub(crate) const TEST: usize = 16;

/// Run the program with these arguments, strings and paths alike.
macro_rules! lotep {
    ($($arg:expr),* $(,)?) => { $crate::common::run($crate::common::command::<&std::ffi::OsStr>([$($arg.as_ref()),*])) };
}
pub(crate) use lotep;

/// The program, not yet started. It asks no hub, whatever a test calls its networks, and keeps nothing for later.
pub(crate) fn command<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lotep"));
    command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", env!("CARGO_TARGET_TMPDIR"));
    command.env("LOTEP_TEXT_CACHE", "off");
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a finished run showed.
pub(crate) struct Ran {
    /// Exit status; none after a signal.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    what: String,
}

pub(crate) fn run(mut command: Command) -> Ran {
    let output = command.output().expect("the program starts");
    Ran::new(output, format!("{:?}", command.get_args().collect::<Vec<_>>()))
}

impl Ran {
    pub(crate) fn new(output: std::process::Output, what: String) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program writes UTF-8");
        let ran = Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
            what,
        };
        // Whatever else a test looks for: a user never sees a panic.
        assert!(!ran.stderr.contains("panicked") && ran.code != Some(101), "{ran}");
        ran
    }

    /// Check that it did what it was asked.
    #[track_caller]
    pub(crate) fn done(self) -> Self {
        assert_eq!(self.code, Some(0), "{self}");
        self
    }

    /// Check that it refused the user's input: status 1, no result, and as the last line a message of one line with
    /// each of `words`.
    #[track_caller]
    pub(crate) fn refused(self, words: &[&str]) -> Self {
        assert_eq!(self.fault(words), None);
        self
    }

    /// What keeps this from being such a refusal, for tables that should be gone through to the end.
    pub(crate) fn fault(&self, words: &[&str]) -> Option<String> {
        if self.code != Some(1) {
            return Some(format!("status 1 is expected: {self}"));
        }
        if !self.stdout.is_empty() {
            return Some(format!("a refusal has no result: {self}"));
        }
        let message = self.message();
        words.iter().find(|w| !message.contains(**w)).map(|w| format!("`{w}` is not in the message: {self}"))
    }

    /// Check that the command line itself was refused: status 2 and a hint at the usage.
    #[track_caller]
    pub(crate) fn misused(self, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(2), "{self}");
        for word in words.iter().chain(&["error: "]) {
            assert!(self.stderr.contains(word), "`{word}` is not in the message: {self}");
        }
        self
    }

    /// The error, which is the last line and the only one of its kind.
    #[track_caller]
    pub(crate) fn message(&self) -> &str {
        let errors = self.stderr.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!(errors, 1, "one error line is expected: {self}");
        let last = self.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: "), "the message is longer than its line: {self}");
        last
    }

    /// The one JSON value on standard output.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        let values = self.json_lines();
        assert_eq!(values.len(), 1, "one JSON line is expected: {self}");
        values.into_iter().next().unwrap()
    }

    /// Standard output, each line a JSON value.
    #[track_caller]
    pub(crate) fn json_lines(&self) -> Vec<Value> {
        let parse =
            |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("`{line}`: {e}: {self}"));
        self.stdout.lines().map(parse).collect()
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { code, stdout, stderr, what } = self;
        write!(f, "lotep {what}\nstatus {code:?}\n--- stdout\n{stdout}--- stderr\n{stderr}")
    }
}

/// A directory of a test's own, gone with the test.
pub(crate) struct Case(TempDir);

impl Case {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A tiny network in timm's hub layout; the one that is there already, if there is one.
    pub(crate) fn backbone(&self, net: Net) -> PathBuf {
        let dir = self.path(&format!("{net:?}"));
        if dir.exists() { dir } else { self.backbone_with(net, &net.config(), &net.weights(1)) }
    }

    /// The same with another `config.json` or other weights.
    pub(crate) fn backbone_with(&self, net: Net, config: &Value, weights: &[Tensor]) -> PathBuf {
        let dir = self.path(&format!("{net:?}"));
        write_file(&dir.join("config.json"), config.to_string());
        write_tensors(&dir.join("model.safetensors"), weights);
        dir
    }

    /// Drawn images, `train/CLASS/*` and `test/CLASS/*`; those that are there already, if there are any.
    pub(crate) fn images(&self) -> PathBuf {
        let dir = self.path("images");
        if !dir.exists() {
            for (name, bytes) in drawn() {
                write_file(&dir.join(name), bytes);
            }
        }
        dir
    }

    /// A short training on the drawn images with `more` options, into `run`.
    pub(crate) fn train(&self, net: Net, output: &str, more: &[&str]) -> Ran {
        run(self.training(net, output, more))
    }

    /// The same, not yet started.
    pub(crate) fn training(&self, net: Net, output: &str, more: &[&str]) -> Command {
        let mut command = command(["train"]);
        command.arg("--backbone").arg(self.backbone(net)).arg("--data").arg(self.images());
        command.arg("--output").arg(self.path(output));
        for (option, value) in [("--batch-size", "16"), ("--epochs", "2")] {
            if !more.contains(&option) {
                command.args([option, value]);
            }
        }
        command.args(more);
        command
    }

    /// The adapter of a short training.
    pub(crate) fn adapter(&self, net: Net, method: &str) -> PathBuf {
        self.train(net, "run", &["--method", method]).done();
        self.path("run").join("adapter")
    }
}

/// The drawn images: drawn once by the program, kept in memory, written anew for each test.
fn drawn() -> &'static [(String, Vec<u8>)] {
    static FILES: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let case = Case::new();
        let dir = case.path("drawn");
        lotep!("demo", "draw", "--task", "adapt", "--output", dir, "--images", "6", "--size", "32").done();
        let mut files = Vec::new();
        for path in files_under(&dir) {
            let name = path.strip_prefix(&dir).unwrap().to_str().unwrap().to_owned();
            files.push((name, fs::read(&path).unwrap()));
        }
        assert_eq!(files.len(), TRAIN + TEST);
        files
    })
}
