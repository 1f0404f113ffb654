//! ConvNeXt's block, and the layers between its stages.

use std::sync::Arc;

use burn::tensor::Tensor;
use lotep_frozen::FrozenOp;
use lotep_kernels::depthwise::{Depthwise, Shape};

use super::conv::depthwise_conv;
use super::{Compute, Conv2d, LayerNorm, Linear, Nonlinearity, dense, fast, host, kernel};

/// The weights of a block: a depthwise kernel `[C, 1, side, side]` with its bias, a norm's scale and shift, two layers,
/// and what the branch is multiplied by.
pub struct ConvNextWeights {
    /// Depthwise, padded to keep its size.
    pub kernel: Tensor<4>,
    /// Its bias.
    pub bias: Tensor<1>,
    /// Over channels.
    pub norm: [Tensor<1>; 2],
    /// Added to the norm's variance.
    pub eps: f64,
    /// The perceptron's first layer.
    pub fc1: (Tensor<2>, Tensor<1>),
    /// Its second.
    pub fc2: (Tensor<2>, Tensor<1>),
    /// Layer scale, `[C]`.
    pub gamma: Option<Tensor<1>>,
}

/// `x' = x + P`, `x' + gamma · fc2(GELU(fc1(LN(depthwise(x')))))`.
#[derive(Clone)]
pub struct ConvNextBlock(Form);

#[derive(Clone)]
enum Form {
    Portable(Box<Portable>),
    Fast(Arc<dyn FrozenOp>, bool),
}

#[derive(Clone)]
struct Portable {
    kernel: Tensor<4>,
    bias: Tensor<1>,
    norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

/// Layer scale belongs into the layer before it: `gamma · (W x + b)`.
fn scaled((weight, bias): (Tensor<2>, Tensor<1>), gamma: Option<Tensor<1>>) -> (Tensor<2>, Tensor<1>) {
    match gamma {
        Some(gamma) => (weight * gamma.clone().unsqueeze_dim(1), bias * gamma),
        None => (weight, bias),
    }
}

impl ConvNextBlock {
    /// Take the weights.
    pub fn new(w: ConvNextWeights, compute: Compute) -> Self {
        if compute.is_fast(&w.kernel) {
            return Self(Form::Fast(plain(w).pack(compute.precision), compute.recompute));
        }
        let linear = |(weight, bias)| Linear::new(weight, Some(bias), compute.precision);
        let [scale, shift] = w.norm;
        Self(Form::Portable(Box::new(Portable {
            kernel: w.kernel,
            bias: w.bias,
            norm: LayerNorm::new(scale, shift, w.eps),
            fc1: linear(w.fc1),
            fc2: linear(scaled(w.fc2, w.gamma)),
        })))
    }

    /// A map `[B, C, H, W]` to the same shape, `prompt` `[C, H, W]` added to each sample as it enters. The fast form
    /// gives a view of channels that come last in memory, and takes such a view as it is.
    pub fn forward(&self, x: Tensor<4>, prompt: Option<Tensor<3>>) -> Tensor<4> {
        let block = match &self.0 {
            Form::Fast(op, recompute) => return fast::apply_map(op.clone(), *recompute, x, prompt),
            Form::Portable(block) => block,
        };
        let x = match prompt {
            Some(prompt) => x + prompt.unsqueeze(),
            None => x,
        };
        let y = depthwise_conv(x.clone(), block.kernel.clone(), Some(block.bias.clone()), 1);
        let y = block.norm.forward(y.permute([0, 2, 3, 1]));
        let y = block.fc2.forward(Nonlinearity::Gelu.apply(block.fc1.forward(y)));
        x + y.permute([0, 3, 1, 2])
    }
}

fn plain(w: ConvNextWeights) -> lotep_frozen::ConvNext {
    let [channels, _, side, _] = w.kernel.dims();
    let shape = Shape { channels, side, stride: 1, padding: side / 2 };
    let [scale, shift] = w.norm.map(host);
    let (weight, bias) = scaled(w.fc2, w.gamma);
    lotep_frozen::ConvNext {
        depthwise: Depthwise::new(shape, &host(w.kernel)),
        bias: host(w.bias),
        eps: w.eps as f32,
        fc1: dense(w.fc1.0, Some(w.fc1.1)).behind_norm(&scale, &shift),
        fc2: dense(weight, Some(bias)),
    }
}

/// `conv(LN(x))`, a convolution of 2 × 2 pixels without overlap: what halves a map between stages.
#[derive(Clone)]
pub struct NormDown(DownForm);

#[derive(Clone)]
enum DownForm {
    Portable(LayerNorm, Conv2d),
    Fast(Arc<dyn FrozenOp>, bool),
}

impl NormDown {
    /// Take the norm's scale and shift `[C]`, and a kernel `[C', C, side, side]` with its bias.
    pub fn new(norm: [Tensor<1>; 2], eps: f64, weight: Tensor<4>, bias: Tensor<1>, compute: Compute) -> Self {
        let side = weight.dims()[2];
        if compute.is_fast(&weight) {
            let op = plain_down(norm, eps, weight, bias).pack(compute.precision);
            return Self(DownForm::Fast(op, compute.recompute));
        }
        let [scale, shift] = norm;
        let conv = Conv2d::new(weight, Some(bias), side, 0, compute.precision);
        Self(DownForm::Portable(LayerNorm::new(scale, shift, eps), conv))
    }

    /// `[B, C, H, W]` to `[B, C', H / side, W / side]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.0 {
            DownForm::Fast(op, recompute) => fast::apply_map(op.clone(), *recompute, x, None),
            DownForm::Portable(norm, conv) => {
                conv.forward(norm.forward(x.permute([0, 2, 3, 1])).permute([0, 3, 1, 2]))
            }
        }
    }
}

fn plain_down(norm: [Tensor<1>; 2], eps: f64, weight: Tensor<4>, bias: Tensor<1>) -> lotep_frozen::NormDown {
    let [outputs, inputs, side, _] = weight.dims();
    // Without padding, scale and shift of the norm belong into the kernel and the bias.
    let [scale, shift] = norm;
    let shifted = weight.clone() * shift.reshape([1, inputs, 1, 1]);
    let bias = bias + shifted.sum_dims(&[1, 2, 3]).reshape([outputs]);
    let weight = weight * scale.reshape([1, inputs, 1, 1]);
    lotep_frozen::NormDown { conv: kernel(weight, Some(bias), side, 0), eps: eps as f32 }
}
