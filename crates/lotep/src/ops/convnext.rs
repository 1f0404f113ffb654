//! ConvNeXt's block, and the layers between its stages.

use std::sync::Arc;

use burn::tensor::Tensor;
use lotep_frozen::{FrozenOp, PackedConvNext};
use lotep_kernels::depthwise::{Depthwise, Shape};

use super::conv::depthwise_conv;
use super::{
    Compute, Conv2d, Dropout, Inside, LayerNorm, Linear, LowRank, Nonlinearity, Precision, dense, fast, host,
    kernel,
};

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

/// What is learnt inside a block; by default nothing.
#[derive(Clone, Debug, Default)]
pub struct ConvNextUpdates {
    /// Added to the weight of the perceptron's first layer.
    pub fc1: Option<LowRank>,
    /// Added to that of its second.
    pub fc2: Option<LowRank>,
    /// Of what the additions see; as [`Inside::dropout`].
    pub dropout: Option<Dropout>,
}

/// `x' = x + P`, `x' + gamma · fc2(GELU(fc1(LN(depthwise(x')))))`.
#[derive(Clone)]
pub struct ConvNextBlock {
    form: Form,
    /// In the weight of `fc2`, where there is one.
    gamma: Option<Tensor<1>>,
}

#[derive(Clone)]
enum Form {
    Portable(Box<Portable>),
    Fast(Box<Fast>),
}

#[derive(Clone)]
struct Fast {
    packed: Arc<PackedConvNext>,
    recompute: bool,
    /// Scale and shift, for what is learnt behind them.
    norm: [Tensor<1>; 2],
}

#[derive(Clone)]
struct Portable {
    kernel: Tensor<4>,
    bias: Tensor<1>,
    norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    precision: Precision,
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
        let gamma = w.gamma.clone();
        if compute.is_fast(&w.kernel) {
            let norm = w.norm.clone();
            let packed = Arc::new(plain(w).pack(compute.precision));
            let form = Form::Fast(Box::new(Fast { packed, recompute: compute.recompute, norm }));
            return Self { form, gamma };
        }
        let linear = |(weight, bias)| Linear::new(weight, Some(bias), compute.precision);
        let [scale, shift] = w.norm;
        let form = Form::Portable(Box::new(Portable {
            kernel: w.kernel,
            bias: w.bias,
            norm: LayerNorm::new(scale, shift, w.eps),
            fc1: linear(w.fc1),
            fc2: linear(scaled(w.fc2, w.gamma)),
            precision: compute.precision,
        }));
        Self { form, gamma }
    }

    /// A map `[B, C, H, W]` to the same shape, `prompt` `[C, H, W]` added to each sample as it enters, the layers'
    /// updates added to the checkpoint's weights. The fast form gives a view of channels that come last in memory, and
    /// takes such a view as it is.
    pub fn forward(&self, x: Tensor<4>, prompt: Option<Tensor<3>>, updates: ConvNextUpdates) -> Tensor<4> {
        let ConvNextUpdates { fc1, mut fc2, dropout } = updates;
        if let (Some(update), Some(gamma)) = (&mut fc2, &self.gamma) {
            update.up = update.up.clone() * gamma.clone().unsqueeze_dim(1);
        }
        let inside = Inside { fc1, fc2, dropout, ..Inside::default() };
        let block = match &self.form {
            Form::Fast(f) => return f.forward(x, prompt, &inside),
            Form::Portable(block) => block,
        };
        let x = match prompt {
            Some(prompt) => x + prompt.unsqueeze(),
            None => x,
        };
        let y = depthwise_conv(x.clone(), block.kernel.clone(), Some(block.bias.clone()), 1);
        let y = block.norm.forward(y.permute([0, 2, 3, 1]));
        let linear = |layer, update: &Option<LowRank>, leaf, x| {
            LowRank::add(update.as_ref(), layer, x, block.precision, inside.dropout_at(leaf))
        };
        let y = Nonlinearity::Gelu.apply(linear(&block.fc1, &inside.fc1, "fc1", y));
        x + linear(&block.fc2, &inside.fc2, "fc2", y).permute([0, 3, 1, 2])
    }
}

impl Fast {
    fn forward(&self, x: Tensor<4>, prompt: Option<Tensor<3>>, inside: &Inside) -> Tensor<4> {
        // Nothing of what stands behind a first norm in a transformer is learnt here.
        match inside.flat(&[self.norm.clone(), self.norm.clone()]) {
            Some((inside, learnt)) => {
                let op = self.packed.learning(inside);
                fast::apply_map_learning(op, self.recompute, x, prompt, Some(learnt))
            }
            None => fast::apply_map(self.packed.block.clone(), self.recompute, x, prompt),
        }
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
