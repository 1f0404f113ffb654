//! Mean gradients of a trained run's parameters over its training images.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use super::config::TrainConfig;
use super::observe::{Event, Observer};
use super::run::{RunDir, open};
use super::setup::class_texts;
use super::step::{Input, Stepper};
use crate::backbone::Loaded;
use crate::head::Head;
use crate::method::{MethodConfig, Site};
use crate::model::{Frozen, pixels};
use crate::params::Params;
use crate::safetensors::NamedTensor;
use crate::{Error, Result, bail};

/// The mean loss of one training step on images `[B, 3, H, W]` in [0, 1], and its gradients by the parameters' names, in
/// which nothing is dropped: to be compared with others' implementations. `names` are the classes', of which the images
/// are `labels`.
///
/// # Errors
/// The parameters are not the method's, or a name makes no text.
pub fn step_gradients(
    loaded: &Loaded,
    method: &MethodConfig,
    head: Head,
    params: &Params,
    names: &[String],
    (pixels, labels): (Tensor<4>, &[usize]),
) -> Result<(f64, Vec<NamedTensor>)> {
    let frozen = Frozen::new(loaded);
    let texts = class_texts(loaded, method, head, names)?;
    let mut stepper = Stepper::new(&frozen, method, head, Site::of(loaded)).with_texts(texts.as_deref());
    stepper.accumulate(params, Input::Pixels(pixels), labels)?;
    let (loss, gradients) = stepper.loss_and_gradients();
    let named = params.learnt().zip(gradients).map(|(param, gradient)| NamedTensor {
        name: param.name.clone(),
        shape: param.shape.clone(),
        values: gradient.into_data().iter::<f32>().collect(),
    });
    Ok((loss, named.collect()))
}

/// The mean over mini-batches of the mean loss's gradient, or of its magnitude, by the names of the parameters; at the last
/// checkpoint of the run in `dir`, whose training images are taken as in its first epoch.
pub(crate) fn mean_gradients(
    config: &TrainConfig,
    dir: &RunDir,
    names: &[&str],
    magnitude: bool,
    observer: &mut dyn Observer,
) -> Result<BTreeMap<String, Vec<f64>>> {
    let run = open(config, dir, observer)?;
    let (setup, params) = (&run.setup, &run.state.params);
    let mut sums: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let (mut batches, mut done) = (0.0, 0);
    let images = setup.images.train.dataset().samples.len();
    observer.event(Event::Begin { what: "importance", images, done });
    // As in training: mini-batches of all classes, however many parts they are computed in.
    let order = setup.images.train.shuffled(setup.config.seed, 0);
    let mut loaded = setup.images.train.epoch(order);
    loop {
        let parts: Vec<_> = loaded.by_ref().take(setup.config.accumulate).collect::<Result<_>>()?;
        if parts.is_empty() {
            break;
        }
        let method = &setup.config.method;
        let mut stepper = Stepper::new(&run.frozen, method, setup.config.head(), Site::of(&setup.loaded))
            .with_texts(setup.texts.as_deref());
        for batch in parts.into_iter().filter(|batch| batch.size > 0) {
            let labels = batch.labels.clone();
            let x = Input::Pixels(pixels(batch, &setup.images.transform, &setup.device));
            stepper.accumulate(params, x, &labels)?;
            done += labels.len();
        }
        if stepper.sums.images == 0 {
            continue;
        }
        for (param, grad) in params.learnt().zip(stepper.mean_gradients()) {
            if !names.contains(&param.name.as_str()) {
                continue;
            }
            let values = grad.into_data();
            let sum = sums.entry(param.name.clone()).or_insert_with(|| vec![0.0; values.num_elements()]);
            for (sum, value) in sum.iter_mut().zip(values.iter::<f64>()) {
                *sum += if magnitude { value.abs() } else { value };
            }
        }
        batches += 1.0;
        observer.event(Event::Advance { done, running: None });
        if observer.stop() {
            return Err(Error::Interrupted("stopped while measuring importance".into()));
        }
    }
    if sums.len() != names.len() {
        bail!("{} has no parameters {}", setup.config.method.name(), names.join(", "));
    }
    sums.values_mut().flatten().for_each(|sum| *sum /= batches);
    Ok(sums)
}
