//! ConvNeXt's block, and the layers between its stages.

use std::sync::Arc;

use burn::tensor::Tensor;
use lotep_kernels::conv::{Conv, Shape};
use lotep_kernels::depthwise::{self, Depthwise};
use lotep_kernels::{Operand, bf16};

use super::conv::depthwise_conv;
use super::fast::{self, FrozenConv, FrozenLinear, FrozenOp};
use super::{Compute, Conv2d, LayerNorm, Linear, Nonlinearity, Precision, host};

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
            let op = match compute.precision {
                Precision::F32 => packed::<f32>(w),
                Precision::Bf16 => packed::<bf16>(w),
            };
            return Self(Form::Fast(op, compute.recompute));
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
            Form::Fast(op, recompute) => return fast::apply_map(op, *recompute, x, prompt),
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

fn packed<T: Operand>(w: ConvNextWeights) -> Arc<dyn FrozenOp> {
    let [channels, _, side, _] = w.kernel.dims();
    let shape = depthwise::Shape { channels, side, stride: 1, padding: side / 2 };
    let [scale, shift] = w.norm.map(host);
    let hidden = w.fc1.0.dims()[0];
    let (weight, bias) = scaled(w.fc2, w.gamma);
    Arc::new(fast::ConvNext::<T> {
        depthwise: Depthwise::new(shape, &host(w.kernel)),
        bias: host(w.bias),
        eps: w.eps as f32,
        fc1: FrozenLinear::behind_norm(&host(w.fc1.0), &host(w.fc1.1), hidden, &scale, &shift),
        fc2: FrozenLinear::new(&host(weight), host(bias), channels),
    })
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
    pub fn new(norm: [Tensor<1>; 2], eps: f64, kernel: Tensor<4>, bias: Tensor<1>, compute: Compute) -> Self {
        let side = kernel.dims()[2];
        if compute.is_fast(&kernel) {
            let op = match compute.precision {
                Precision::F32 => packed_down::<f32>(norm, eps, kernel, bias),
                Precision::Bf16 => packed_down::<bf16>(norm, eps, kernel, bias),
            };
            return Self(DownForm::Fast(op, compute.recompute));
        }
        let [scale, shift] = norm;
        let conv = Conv2d::new(kernel, Some(bias), side, 0, compute.precision);
        Self(DownForm::Portable(LayerNorm::new(scale, shift, eps), conv))
    }

    /// `[B, C, H, W]` to `[B, C', H / side, W / side]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.0 {
            DownForm::Fast(op, recompute) => fast::apply_map(op, *recompute, x, None),
            DownForm::Portable(norm, conv) => {
                conv.forward(norm.forward(x.permute([0, 2, 3, 1])).permute([0, 3, 1, 2]))
            }
        }
    }
}

fn packed_down<T: Operand>(
    norm: [Tensor<1>; 2],
    eps: f64,
    kernel: Tensor<4>,
    bias: Tensor<1>,
) -> Arc<dyn FrozenOp> {
    let [outputs, inputs, side, _] = kernel.dims();
    // Without padding, scale and shift of the norm belong into the kernel and the bias.
    let [scale, shift] = norm;
    let shifted = kernel.clone() * shift.reshape([1, inputs, 1, 1]);
    let bias = bias + shifted.sum_dims(&[1, 2, 3]).reshape([outputs]);
    let kernel = kernel * scale.reshape([1, inputs, 1, 1]);
    let shape = Shape { inputs, outputs, side, stride: side, padding: 0 };
    let conv = FrozenConv::new(Conv::<T>::new(shape, &host(kernel)), host(bias));
    Arc::new(fast::NormDown { conv, eps: eps as f32 })
}
