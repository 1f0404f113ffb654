//! What the tests share: a directory of their own, the program's runner, tiny networks and drawn images.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Classes, training images and test images of [`Case::images`].
pub(crate) const CLASSES: usize = 8;
pub(crate) const TRAIN: usize = 48;
pub(crate) const TEST: usize = 16;

/// Run the program with these arguments, strings and paths alike.
macro_rules! lotep {
    ($($arg:expr),* $(,)?) => { $crate::common::run($crate::common::command::<&std::ffi::OsStr>([$($arg.as_ref()),*])) };
}
pub(crate) use lotep;

/// The program, not yet started.
pub(crate) fn command<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lotep"));
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
        let ran =
            Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr), what };
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
        assert_eq!(self.code, Some(1), "{self}");
        assert_eq!(self.stdout, "", "a refusal has no result: {self}");
        let message = self.message();
        for word in words {
            assert!(message.contains(word), "`{word}` is not in the message: {self}");
        }
        self
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
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("`{line}`: {e}: {self}"));
        self.stdout.lines().map(parse).collect()
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { code, stdout, stderr, what } = self;
        write!(f, "lotep {what}\nstatus {code:?}\n--- stdout\n{stdout}--- stderr\n{stderr}")
    }
}

/// A tiny network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Net {
    ResNet,
    Vit,
}

/// Classes of a tiny network's own classifier.
pub(crate) const OWN_CLASSES: usize = 5;

impl Net {
    pub(crate) const BOTH: [Self; 2] = [Self::ResNet, Self::Vit];

    /// Width of the features.
    pub(crate) fn width(self) -> usize {
        if self == Self::ResNet { 8 } else { 16 }
    }

    /// timm's `config.json`.
    pub(crate) fn config(self) -> Value {
        let (architecture, args) = match self {
            Self::ResNet => ("resnet18", json!({ "layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8] })),
            Self::Vit => (
                "vit_tiny_patch16_224",
                json!({ "img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2 }),
            ),
        };
        json!({
            "architecture": architecture, "num_classes": OWN_CLASSES, "model_args": args,
            "pretrained_cfg": { "input_size": [3, 32, 32], "mean": [0.5, 0.45, 0.4], "std": [0.25, 0.25, 0.2] },
        })
    }

    /// Names and shapes of the weights.
    pub(crate) fn shapes(self) -> Vec<(String, Vec<usize>)> {
        let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
        let mut add = |name: String, shape: &[usize]| shapes.push((name, shape.to_vec()));
        let (width, classes) = (self.width(), OWN_CLASSES);
        if self == Self::ResNet {
            let mut conv = |conv: &str, norm: &str, shape: [usize; 4]| {
                add(format!("{conv}.weight"), &shape);
                for leaf in ["weight", "bias", "running_mean", "running_var"] {
                    add(format!("{norm}.{leaf}"), &shape[..1]);
                }
            };
            conv("conv1", "bn1", [64, 3, 7, 7]);
            for (stage, input) in [(1, 64), (2, 8), (3, 8), (4, 8)] {
                let block = format!("layer{stage}.0");
                conv(&format!("{block}.conv1"), &format!("{block}.bn1"), [8, input, 3, 3]);
                conv(&format!("{block}.conv2"), &format!("{block}.bn2"), [8, 8, 3, 3]);
                conv(&format!("{block}.downsample.0"), &format!("{block}.downsample.1"), [8, input, 1, 1]);
            }
            add("fc.weight".into(), &[classes, width]);
            add("fc.bias".into(), &[classes]);
            return shapes;
        }
        add("cls_token".into(), &[1, 1, width]);
        add("pos_embed".into(), &[1, 5, width]);
        add("patch_embed.proj.weight".into(), &[width, 3, 16, 16]);
        add("patch_embed.proj.bias".into(), &[width]);
        let mut linear = |name: String, output: usize, input: Option<usize>| {
            let shape: Vec<usize> = [Some(output), input].into_iter().flatten().collect();
            add(format!("{name}.weight"), &shape);
            add(format!("{name}.bias"), &[output]);
        };
        for block in (0..2).map(|i| format!("blocks.{i}")) {
            linear(format!("{block}.norm1"), width, None);
            linear(format!("{block}.attn.qkv"), 3 * width, Some(width));
            linear(format!("{block}.attn.proj"), width, Some(width));
            linear(format!("{block}.norm2"), width, None);
            linear(format!("{block}.mlp.fc1"), 4 * width, Some(width));
            linear(format!("{block}.mlp.fc2"), width, Some(4 * width));
        }
        linear("norm".into(), width, None);
        linear("head".into(), classes, Some(width));
        shapes
    }

    /// Weights that keep activations of order one, different for every seed.
    pub(crate) fn weights(self, seed: u64) -> Vec<Tensor> {
        let mut dice = Dice(seed);
        let value = |name: &str, shape: &[usize], dice: &mut Dice| {
            let noise = dice.normal();
            match shape.len() {
                1 if name.ends_with("weight") || name.ends_with("running_var") => 1.0 + 0.1 * noise.abs(),
                1 => 0.1 * noise,
                _ => noise * (2.0 / shape[1..].iter().product::<usize>() as f32).sqrt(),
            }
        };
        let tensor = |(name, shape): (String, Vec<usize>)| {
            let count = shape.iter().product();
            let values = (0..count).map(|_| value(&name, &shape, &mut dice)).collect();
            Tensor { name, shape, values }
        };
        self.shapes().into_iter().map(tensor).collect()
    }
}

/// Random numbers that need no crate: SplitMix64.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub(crate) fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u64 << 24) as f32
    }

    /// Near enough to a standard normal: twelve uniform numbers have variance one.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }
}

/// A named tensor of f32.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// Write a safetensors file.
pub(crate) fn write_tensors(path: &Path, tensors: &[Tensor]) {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|t| t.values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|(t, bytes)| {
        (t.name.as_str(), TensorView::new(Dtype::F32, t.shape.clone(), bytes).expect("the shape fits"))
    });
    write(path, safetensors::serialize(views, None).unwrap());
}

/// Read a safetensors file as another program would, with its metadata.
pub(crate) fn read_tensors(path: &Path) -> (Vec<Tensor>, BTreeMap<String, String>) {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(name, view): (String, TensorView<'_>)| Tensor {
        name,
        shape: view.shape().to_vec(),
        values: view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    };
    let metadata = header.metadata().clone().unwrap_or_default();
    (file.tensors().into_iter().map(tensor).collect(), metadata.into_iter().collect())
}

/// Write a file and the directories it lies in.
pub(crate) fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

pub(crate) fn read_json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> String {
    Sha256::digest(fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
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
        write(&dir.join("config.json"), config.to_string());
        write_tensors(&dir.join("model.safetensors"), weights);
        dir
    }

    /// Drawn images, `train/CLASS/*` and `test/CLASS/*`; those that are there already, if there are any.
    pub(crate) fn images(&self) -> PathBuf {
        let dir = self.path("images");
        if !dir.exists() {
            for (name, bytes) in drawn() {
                write(&dir.join(name), bytes);
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

/// All files under `dir`, sorted.
pub(crate) fn files_under(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_under(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

/// A path as text.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("temporary directories have plain names")
}
