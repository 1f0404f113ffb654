//! Weights by timm's names: strict about what is missing, mis-shaped or left over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::checkpoint::Checkpoint;
use crate::ops::{BatchNorm, BatchStatistics, DropPath, Linear, Precision, Training};
use crate::safetensors::NamedTensor;
use crate::{Result, bail, input_error};

/// Where values come from.
enum Source {
    File(Checkpoint),
    /// Seeded values of the right scale, for benchmarks without a weight file.
    Random(Mutex<ChaCha8Rng>),
    /// Tensors at hand, such as the leaves of a training step.
    Tensors(BTreeMap<String, Tensor<1>>),
}

/// A source of weights that notes what was taken from it.
pub struct Weights {
    source: Source,
    device: Device,
    tracked: Option<Mutex<BTreeMap<String, Tensor<1>>>>,
    /// Beginnings of the names of weights that are given inside autodiff, without gradients of their own.
    unpacked: Vec<String>,
    training: Option<Training>,
    /// Other values than the source's.
    changed: BTreeMap<String, NamedTensor>,
    taken: Mutex<BTreeMap<String, Vec<usize>>>,
    resampled: Mutex<Vec<NamedTensor>>,
}

/// Buffers that checkpoints carry and evaluation does not use, and CLIP's text tower, which is taken and checked elsewhere.
fn is_known_extra(name: &str) -> bool {
    let ends = ["num_batches_tracked", "relative_position_index", "attn_mask", "position_ids", "logit_scale"];
    let starts = ["pre_logits.", "_fx.", super::text::PREFIX];
    ends.iter().any(|end| name.ends_with(end)) || starts.iter().any(|start| name.starts_with(start))
}

impl Weights {
    /// Read from stored weights.
    pub fn from_file(file: Checkpoint, device: &Device) -> Self {
        Self::new(Source::File(file), device)
    }

    /// Make up seeded values.
    pub fn random(seed: u64, device: &Device) -> Self {
        Self::new(Source::Random(Mutex::new(ChaCha8Rng::seed_from_u64(seed))), device)
    }

    /// Take from tensors at hand, flattened; gradients flow back to them.
    pub fn from_tensors(tensors: BTreeMap<String, Tensor<1>>, device: &Device) -> Self {
        Self::new(Source::Tensors(tensors), device)
    }

    fn new(source: Source, device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        Self {
            source,
            device,
            tracked: None,
            unpacked: Vec::new(),
            training: None,
            changed: BTreeMap::new(),
            taken: Mutex::default(),
            resampled: Mutex::default(),
        }
    }

    /// Take the values of these weights from here.
    #[must_use]
    pub fn with(mut self, changed: Vec<NamedTensor>) -> Self {
        self.changed = changed.into_iter().map(|t| (t.name.clone(), t)).collect();
        self
    }

    /// Track the gradient of every weight: [`Weights::leaves`] gives them.
    #[must_use]
    pub fn tracked(mut self) -> Self {
        self.device = self.device.autodiff();
        self.tracked = Some(Mutex::default());
        self
    }

    /// Give the weights whose names begin like that inside autodiff, so that what they are for takes its portable form.
    #[must_use]
    pub(super) fn unpacked(mut self, beginnings: &[String]) -> Self {
        self.unpacked = beginnings.to_vec();
        self
    }

    /// Build networks in training mode: batch norms use the batch's statistics, Swin drops paths. Only the portable
    /// form of a network, which tracked weights have, knows it.
    #[must_use]
    pub fn training(mut self, training: Training) -> Self {
        self.training = Some(training);
        self
    }

    /// What drops a share `rate` of the samples' paths; nothing in evaluation mode.
    pub(super) fn drop_path(&self, rate: f64) -> Option<DropPath> {
        let training = self.training.clone().filter(|_| rate > 0.0)?;
        Some(DropPath { rate, training })
    }

    /// The tracked weights by name, flattened.
    pub fn leaves(&self) -> BTreeMap<String, Tensor<1>> {
        self.tracked.as_ref().map(|t| lock(t).clone()).unwrap_or_default()
    }

    /// Number of parameters taken so far (batch-norm statistics are not parameters).
    pub fn parameters(&self) -> usize {
        let parameter = |(name, shape): (&String, &Vec<usize>)| {
            (!name.contains(".running_")).then(|| shape.iter().product::<usize>())
        };
        lock(&self.taken).iter().filter_map(parameter).sum()
    }

    /// Names and shapes of everything taken so far.
    pub fn taken(&self) -> BTreeMap<String, Vec<usize>> {
        lock(&self.taken).clone()
    }

    /// Take the tensor `name`, which must have `shape`.
    ///
    /// # Errors
    /// The tensor is absent or of another shape; the message names both.
    pub fn take<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Tensor<D>> {
        lock(&self.taken).insert(name.to_owned(), shape.to_vec());
        let values = match &self.source {
            Source::Tensors(tensors) => {
                let found = tensors.get(name).filter(|t| t.dims()[0] == shape.iter().product::<usize>());
                return match found {
                    Some(tensor) => Ok(tensor.clone().reshape(shape)),
                    None => bail!("no weight `{name}` {shape:?}, which this architecture needs"),
                };
            }
            Source::File(file) => {
                let path = file.path().display();
                match file.shape(name) {
                    None => bail!("{path} has no weight `{name}` {shape:?}, which this architecture needs"),
                    Some(found) if found != shape => {
                        bail!(
                            "{path}: weight `{name}` has shape {found:?}, this architecture needs {shape:?}"
                        )
                    }
                    Some(_) => file.read(name)?,
                }
            }
            Source::Random(rng) => random(name, &shape, &mut lock(rng)),
        };
        let values = match self.changed.get(name) {
            Some(changed) if changed.shape == shape => changed.values.clone(),
            Some(changed) => {
                bail!("weight `{name}` is changed to shape {:?}, {shape:?} is expected", changed.shape)
            }
            None => values,
        };
        let flat =
            Tensor::<1>::from_data(TensorData::new(values, [shape.iter().product::<usize>()]), &self.device);
        let is_unpacked = self.unpacked.iter().any(|beginning| name.starts_with(beginning.as_str()));
        let flat = if is_unpacked { flat.autodiff() } else { flat };
        let Some(tracked) = &self.tracked else { return Ok(flat.reshape(shape)) };
        let leaf = flat.require_grad();
        lock(tracked).insert(name.to_owned(), leaf.clone());
        Ok(leaf.reshape(shape))
    }

    /// Take the tensor `name`, stored for another grid than it is used with if there is something to `fit` it.
    pub(super) fn take_resampled<const D: usize>(
        &self,
        name: &str,
        stored: [usize; D],
        fit: Option<impl FnOnce(Tensor<D>) -> Tensor<D>>,
    ) -> Result<Tensor<D>> {
        let x = self.take(name, stored)?;
        let Some(fit) = fit else { return Ok(x) };
        let x = fit(x);
        let values = x.clone().without_autodiff().into_data().iter::<f32>().collect();
        lock(&self.resampled).push(NamedTensor { name: name.into(), shape: x.dims().into(), values });
        Ok(x)
    }

    /// Weights that were resampled to another grid than the stored ones are for.
    pub fn resampled(&self) -> Vec<NamedTensor> {
        lock(&self.resampled).clone()
    }

    /// A normalisation's scale and shift, `[width]` each.
    pub(super) fn norm(&self, name: &str, width: usize) -> Result<[Tensor<1>; 2]> {
        let take = |leaf: &str| self.take(&format!("{name}.{leaf}"), [width]);
        Ok([take("weight")?, take("bias")?])
    }

    /// A batch norm with its statistics.
    pub(super) fn batch_norm(&self, name: &str, width: usize, eps: f64) -> Result<BatchNorm> {
        let take = |leaf: &str| self.take(&format!("{name}.{leaf}"), [width]);
        Ok(BatchNorm {
            weight: take("weight")?,
            bias: take("bias")?,
            mean: take("running_mean")?,
            var: take("running_var")?,
            eps,
            batch: self.training.clone().map(|training| BatchStatistics { name: name.into(), training }),
        })
    }

    /// A fully connected layer's weight `[outputs, inputs]` and bias `[outputs]`.
    pub(super) fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<(Tensor<2>, Tensor<1>)> {
        let weight = self.take(&format!("{name}.weight"), [outputs, inputs])?;
        Ok((weight, self.take(&format!("{name}.bias"), [outputs])?))
    }

    /// The same, stored as a convolution of 1×1 pixels.
    pub(super) fn pointwise(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<(Tensor<2>, Tensor<1>)> {
        let weight: Tensor<4> = self.take(&format!("{name}.weight"), [outputs, inputs, 1, 1])?;
        Ok((weight.reshape([outputs, inputs]), self.take(&format!("{name}.bias"), [outputs])?))
    }

    /// A classifier, in f32; none for no classes.
    pub(super) fn head(&self, name: &str, classes: usize, width: usize) -> Result<Option<Linear>> {
        if classes == 0 {
            return Ok(None);
        }
        let (weight, bias) = self.linear(name, classes, width)?;
        Ok(Some(Linear::new(weight, Some(bias), Precision::F32)))
    }

    /// Check that nothing in the file was left unused.
    ///
    /// # Errors
    /// Names the first few weights that this architecture does not have.
    pub fn finish(&self) -> Result<()> {
        let Source::File(file) = &self.source else { return Ok(()) };
        let taken = lock(&self.taken);
        let extra: BTreeSet<_> = file
            .shapes()
            .into_keys()
            .filter(|name| !taken.contains_key(name) && !is_known_extra(name))
            .collect();
        if extra.is_empty() {
            return Ok(());
        }
        let first: Vec<_> = extra.iter().take(4).map(|n| format!("`{n}`")).collect();
        Err(input_error!(
            "{} has {} weights that this architecture does not: {}{}",
            file.path().display(),
            extra.len(),
            first.join(", "),
            if extra.len() > 4 { ", …" } else { "" }
        ))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Values that keep activations of order one: kernels `N(0, 1/fan_in)`, norms near the identity.
fn random(name: &str, shape: &[usize], rng: &mut ChaCha8Rng) -> Vec<f32> {
    let count: usize = shape.iter().product();
    let mut normal = |scale: f32| -> Vec<f32> {
        (0..count)
            .map(|_| scale * <StandardNormal as Distribution<f32>>::sample(&StandardNormal, rng))
            .collect()
    };
    match shape.len() {
        1 if name.ends_with("running_var") => vec![1.0; count],
        1 if name.ends_with("weight") => vec![1.0; count],
        1 => normal(0.02),
        _ if name.ends_with("pos_embed") || name.ends_with("cls_token") => normal(0.02),
        _ => normal((shape[1..].iter().product::<usize>() as f32).powf(-0.5)),
    }
}
