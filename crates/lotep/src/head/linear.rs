//! A new linear classifier, trained beside the prompts.

use burn::tensor::{Device, Tensor};
use rand_chacha::ChaCha8Rng;

use crate::params::{Group, Params, uniform};

/// Name of the weight `[classes, features]` in an adapter.
pub const WEIGHT: &str = "head.weight";
/// Name of the bias `[classes]`.
pub const BIAS: &str = "head.bias";

/// PyTorch's default for a linear layer: weight and bias from `U(±1/sqrt(features))`.
pub fn init(features: usize, classes: usize, rng: &mut ChaCha8Rng, device: &Device) -> Params {
    let bound = (features as f64).powf(-0.5);
    let mut params = Params::default();
    params.push(WEIGHT, &[classes, features], Group::Head, uniform(classes * features, bound, rng), device);
    params.push(BIAS, &[classes], Group::Head, uniform(classes, bound, rng), device);
    params
}

/// Logits `[B, classes]` of features `[B, F]`.
pub fn logits(params: &Params, features: Tensor<2>) -> Tensor<2> {
    features.matmul(params.get::<2>(WEIGHT).transpose()) + params.get::<1>(BIAS).unsqueeze()
}
