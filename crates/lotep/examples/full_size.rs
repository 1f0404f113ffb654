//! Compare a network at full size with timm: logits, loss and gradients of one file, as a row of a table.
//!
//! `benches/peers/full_size.py` writes the files (random weights under timm's names, and timm's float64 answers
//! under `_fx.`, which the loader ignores) and runs this on each: `full_size FILE.safetensors --arch resnet50`.

use std::process::ExitCode;

use burn::tensor::{Device, Int, Tensor, TensorData, activation::log_softmax};
use lotep::backbone::{LoadOptions, load};
use lotep::method::Prompts;
use lotep::safetensors::TensorFile;
use lotep::{Result, bail};

/// Allowed max|Δ| / max|reference| of logits and loss.
const FORWARD: f64 = 1e-5;
/// The same of gradients.
const GRADIENT: f64 = 5e-5;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [file, "--arch", arch] = args.iter().map(String::as_str).collect::<Vec<_>>()[..] else {
        eprintln!("usage: full_size FILE.safetensors --arch NAME");
        return ExitCode::from(2);
    };
    match compare(file, arch) {
        Ok(row) => {
            println!("{row}");
            ExitCode::from(u8::from(!row.agrees()))
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(1)
        }
    }
}

/// Deviations from the reference, each as max|Δ| / max|reference|.
struct Row {
    name: String,
    classes: usize,
    image: [usize; 2],
    logits: f64,
    loss: f64,
    input: f64,
    /// The worst of all prompts, and its block.
    prompt: (f64, String),
}

impl Row {
    fn agrees(&self) -> bool {
        self.logits <= FORWARD && self.loss <= FORWARD && self.input <= GRADIENT && self.prompt.0 <= GRADIENT
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, classes, image: [h, w], logits, loss, input, prompt: (prompt, block) } = self;
        let verdict = if self.agrees() { "ok" } else { "FAIL" };
        write!(f, "| {name} | {classes} | {h}x{w} | {logits:.1e} | {loss:.1e} | {input:.1e} ")?;
        write!(f, "| {prompt:.1e} ({block}) | {verdict} |")
    }
}

fn compare(path: &str, arch: &str) -> Result<Row> {
    let device = Device::flex().autodiff();
    let file = TensorFile::open(path)?;
    let Some(&[_, _, height, width]) = file.shape("_fx.input").as_deref() else {
        bail!("{path} has no image _fx.input")
    };
    let options = LoadOptions {
        arch: Some(arch.into()),
        image: Some([height, width]),
        device: device.clone(),
        ..LoadOptions::plain(path)
    };
    let loaded = load(&options, &mut ())?;
    let Some(head) = loaded.network.head() else { bail!("{path} has no classifier: nothing to compare") };
    let (values, shape) = file.read("_fx.input")?;
    let input = Tensor::<4>::from_data(TensorData::new(values, shape), &device).require_grad();
    let zeros = |c, h, w| Tensor::<3>::zeros([c, h, w], &device).require_grad();
    let prompts: Vec<_> = loaded.blocks.iter().map(|b| zeros(b.channels, b.height, b.width)).collect();
    let hooks = Prompts {
        blocks: prompts.iter().cloned().map(|prompt| Some(prompt.into())).collect(),
        ..Prompts::default()
    };
    let logits = head.forward(loaded.network.features(input.clone(), &hooks));

    let target: Vec<i64> = file.read("_fx.target")?.0.into_iter().map(|t| t as i64).collect();
    let rows = target.len();
    let target = Tensor::<2, Int>::from_data(TensorData::new(target, [rows, 1]), &device);
    let loss = log_softmax(logits.clone(), 1).gather(1, target).mean().neg();

    let mut grads = loss.backward();
    let input = deviation(&file, "_fx.grad_input", input.grad_remove(&mut grads))?;
    let mut worst = (0.0, String::from("none"));
    for (l, (prompt, block)) in prompts.iter().zip(&loaded.blocks).enumerate() {
        let found = deviation(&file, &format!("_fx.grad_prompt.{l}"), prompt.grad_remove(&mut grads))?;
        if found > worst.0 {
            worst = (found, block.name.clone());
        }
    }
    Ok(Row {
        name: loaded.config.name.clone(),
        classes: loaded.config.classes,
        image: [height, width],
        logits: deviation(&file, "_fx.logits", Some(logits))?,
        loss: deviation(&file, "_fx.loss", Some(loss))?,
        input,
        prompt: worst,
    })
}

/// max|Δ| / max|reference|; infinite where a value is not a number.
fn deviation<const D: usize>(file: &TensorFile, name: &str, found: Option<Tensor<D>>) -> Result<f64> {
    let Some(found) = found else { bail!("nothing was computed for `{name}`: no gradient reached it") };
    let found: Vec<f32> = found.without_autodiff().into_data().iter::<f32>().collect();
    let (expected, shape) = file.read(name)?;
    if found.len() != expected.len() {
        bail!("`{name}` has {} values, {shape:?} are expected", found.len());
    }
    let scale = expected.iter().fold(0.0_f64, |m, v| m.max(f64::from(v.abs())));
    let delta = found.iter().zip(&expected).map(|(a, e)| (f64::from(*a) - f64::from(*e)).abs());
    let worst = delta.fold(0.0, |m, v| if v.is_nan() { f64::INFINITY } else { f64::max(m, v) });
    Ok(worst / scale.max(f64::MIN_POSITIVE))
}
