//! Named trainable tensors: what a method and a head learn, what an adapter stores.

use burn::tensor::{Device, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};
use serde::{Deserialize, Serialize};

use crate::safetensors::NamedTensor;
use crate::{Result, bail};

/// Which learning rate a parameter follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// A prompt's factors.
    Prompt,
    /// The classifier.
    Head,
    /// Kept with the others, but not learnt by gradients: no rate applies.
    Fixed,
}

/// One trainable tensor, held flat: shapes differ, optimisers do not care.
#[derive(Clone, Debug)]
pub struct Param {
    /// Its name in an adapter.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whose learning rate it follows.
    pub group: Group,
    /// Its values, outside autodiff.
    pub value: Tensor<1>,
}

impl Param {
    /// Read back from the device.
    pub fn to_named(&self) -> NamedTensor {
        NamedTensor {
            name: self.name.clone(),
            shape: self.shape.clone(),
            values: self.value.to_data().iter::<f32>().collect(),
        }
    }
}

/// An ordered set of trainable tensors.
#[derive(Clone, Debug, Default)]
pub struct Params(Vec<Param>);

impl Params {
    /// Add a tensor of the given values.
    pub fn push(
        &mut self,
        name: impl Into<String>,
        shape: &[usize],
        group: Group,
        values: Vec<f32>,
        device: &Device,
    ) {
        let length = values.len();
        debug_assert_eq!(length, shape.iter().product::<usize>());
        let value = Tensor::from_data(TensorData::new(values, [length]), &device.clone().without_autodiff());
        self.0.push(Param { name: name.into(), shape: shape.to_vec(), group, value });
    }

    /// Add all of `other`.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Those that are learnt, in order.
    pub fn learnt(&self) -> impl Iterator<Item = &Param> {
        self.0.iter().filter(|p| p.group != Group::Fixed)
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = &Param> {
        self.0.iter()
    }

    /// In order, to change values.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        self.0.iter_mut()
    }

    /// Number of scalars in a group.
    pub fn count(&self, group: Group) -> usize {
        self.0.iter().filter(|p| p.group == group).map(|p| p.value.dims()[0]).sum()
    }

    /// Number of scalars that are learnt.
    pub fn total(&self) -> usize {
        self.learnt().map(|p| p.value.dims()[0]).sum()
    }

    /// What is learnt as gradient leaves.
    #[must_use]
    pub fn leaves(&self) -> Self {
        let leaf = |p: &Param| match p.group {
            Group::Fixed => p.clone(),
            _ => Param { value: p.value.clone().autodiff().require_grad(), ..p.clone() },
        };
        Self(self.0.iter().map(leaf).collect())
    }

    /// The tensor `name`, in its own shape.
    ///
    /// # Panics
    /// If there is no such tensor of that rank: the caller made the set.
    pub fn get<const D: usize>(&self, name: &str) -> Tensor<D> {
        let param = self.0.iter().find(|p| p.name == name).expect("a method asks for what it made");
        let shape: [usize; D] = param.shape.clone().try_into().expect("the rank it was made with");
        param.value.clone().reshape(shape)
    }

    /// Read back from the device, for writing.
    pub fn to_named(&self) -> Vec<NamedTensor> {
        self.0.iter().map(Param::to_named).collect()
    }

    /// Replace every value from `read`, which must know all names with the same shapes.
    ///
    /// # Errors
    /// A tensor is missing or of another shape; `what` names the source.
    pub fn load(&mut self, what: &str, read: impl Fn(&str) -> Result<(Vec<f32>, Vec<usize>)>) -> Result<()> {
        for param in &mut self.0 {
            let (values, shape) = read(&param.name)?;
            if shape != param.shape {
                bail!("{what}: `{}` has shape {shape:?}, {:?} is expected", param.name, param.shape);
            }
            let length = values.len();
            param.value = Tensor::from_data(TensorData::new(values, [length]), &param.value.device());
        }
        Ok(())
    }
}

/// `count` draws from `N(0, std²)`.
pub(crate) fn normal(count: usize, std: f64, rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..count)
        .map(|_| (std * <StandardNormal as Distribution<f64>>::sample(&StandardNormal, rng)) as f32)
        .collect()
}

/// `count` draws from `U(-bound, bound)`.
pub(crate) fn uniform(count: usize, bound: f64, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let Ok(distribution) = Uniform::new_inclusive(-bound, bound) else { return vec![0.0; count] };
    (0..count).map(|_| distribution.sample(rng) as f32).collect()
}
