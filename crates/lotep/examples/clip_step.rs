//! One training step of a method of CLIP's: the terms of its loss and the gradients of what it learns, for comparison with
//! PyTorch.
//!
//! `benches/peers/clip.py check` writes INPUT.safetensors: `pixels` `[B, 3, H, W]` in [0, 1], `labels` `[B]`, the method's
//! parameters under the names that an adapter has, and one entry of metadata, `step`, a JSON of the classes' `names` and
//! the `method`. OUTPUT.safetensors gets `loss.entropy`, `loss.text`, `loss.image` and `loss.logits`, weighted, their sum
//! `loss`, the gradients as `grad.NAME`, and the sixty sentences of the frozen tower as metadata.

use std::path::Path;
use std::process::ExitCode;

use burn::tensor::{Tensor, TensorData};
use lotep::backbone::{LoadOptions, load};
use lotep::head::{Head, Mapping};
use lotep::method::{Method, MethodConfig, Site};
use lotep::safetensors::{NamedTensor, TensorFile, serialize};
use lotep::text::templates;
use lotep::train::step_gradients;
use lotep::{Result, bail, input_error, write_atomic};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Step {
    names: Vec<String>,
    method: Value,
}

/// The weights of the terms in a method's settings, and what the terms are called.
const TERMS: [(&str, &str); 3] =
    [("text_consistency", "text"), ("image_consistency", "image"), ("logit_consistency", "logits")];
/// A weight at which a term stands out of the rounding of the others.
const LARGE: f64 = 1000.0;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [backbone, input, output] = args.iter().map(String::as_str).collect::<Vec<_>>()[..] else {
        eprintln!("usage: clip_step BACKBONE INPUT.safetensors OUTPUT.safetensors");
        return ExitCode::from(2);
    };
    match step(backbone, input, Path::new(output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(1)
        }
    }
}

fn step(backbone: &str, input: &str, output: &Path) -> Result<()> {
    let file = TensorFile::open(input)?;
    let asked = file.metadata().remove("step").unwrap_or_default();
    let asked: Step = serde_json::from_str(&asked).map_err(|e| input_error!("{input}: `step`: {e}"))?;
    let loaded = load(&LoadOptions::plain(backbone), &mut ())?;
    let (values, shape) = file.read("pixels")?;
    let pixels = Tensor::<4>::from_data(TensorData::new(values, shape), &loaded.device);
    let labels: Vec<usize> = file.read("labels")?.0.into_iter().map(|label| label as usize).collect();
    let head = Head { mapping: Mapping::Text, sources: 1 };
    let method = |weights: [Option<f64>; 3]| -> Result<MethodConfig> {
        let mut json = asked.method.clone();
        for ((key, _), weight) in TERMS.iter().zip(weights) {
            if let Some(weight) = weight {
                json[*key] = json!(weight);
            }
        }
        serde_json::from_value(json).map_err(|e| input_error!("{input}: the method: {e}"))
    };
    let whole = method([None; 3])?;
    let mut params = whole.init(&Site::of(&loaded), 0)?;
    for param in params.iter_mut() {
        let (values, shape) = file.read(&param.name)?;
        if shape != param.shape {
            bail!("{input}: `{}` has shape {shape:?}, {:?} is expected", param.name, param.shape);
        }
        let length = values.len();
        param.value = Tensor::from_data(TensorData::new(values, [length]), &loaded.device);
    }
    let run = |method: &MethodConfig| {
        let images = (pixels.clone(), labels.as_slice());
        step_gradients(&loaded, method, head, &params, &asked.names, images)
    };
    let own = serde_json::to_value(&whole).map_err(|e| input_error!("cannot describe the method: {e}"))?;
    let one = |name: String, value: f64| NamedTensor { name, shape: vec![1], values: vec![value as f32] };
    let (entropy, _) = run(&method([Some(0.0); 3])?)?;
    let mut tensors = vec![one("loss.entropy".into(), entropy)];
    for (i, (key, term)) in TERMS.iter().enumerate() {
        let weight = own[*key].as_f64().unwrap_or_default();
        let mut weights = [Some(0.0); 3];
        weights[i] = Some(LARGE);
        let (loss, _) = run(&method(weights)?)?;
        tensors.push(one(format!("loss.{term}"), (loss - entropy) * weight / LARGE));
    }
    let (loss, gradients) = run(&whole)?;
    tensors.push(one("loss".into(), loss));
    tensors.extend(gradients.into_iter().map(|g| NamedTensor { name: format!("grad.{}", g.name), ..g }));
    let sentences = json!(templates::sixty()).to_string();
    write_atomic(output, &serialize(&tensors, Some(("sentences", sentences)))?)
}
