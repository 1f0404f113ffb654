//! CoAtNet's inverted bottleneck with squeeze and excitation, and its entrance.

use std::sync::Arc;

use burn::tensor::{Tensor, activation::sigmoid};
use lotep_kernels::conv::{Conv, Shape};
use lotep_kernels::depthwise::{self, Depthwise};
use lotep_kernels::{Operand, bf16};

use super::conv::{BatchNorm, Behind, Conv2d, affine, depthwise_conv, folded};
use super::fast::{self, FrozenConv, FrozenLinear, FrozenOp};
use super::{Compute, ConvNorm, Linear, Nonlinearity, Precision, host};

/// The weights of a block; convolutions have no bias, those of squeeze and excitation have.
pub struct MbConvWeights {
    /// Before everything on the branch.
    pub pre_norm: BatchNorm,
    /// To the wide channels, `[E, C, 1, 1]`, and the norm behind.
    pub expand: (Tensor<4>, BatchNorm),
    /// Depthwise, `[E, 1, side, side]`, and the norm behind.
    pub depthwise: (Tensor<4>, BatchNorm),
    /// Step between its windows; with 2 the shortcut takes means of 2 × 2.
    pub stride: usize,
    /// Means to the narrow layer.
    pub squeeze: (Tensor<2>, Tensor<1>),
    /// And to the gates.
    pub excite: (Tensor<2>, Tensor<1>),
    /// Back to few channels, `[C', E]`.
    pub reduce: Tensor<2>,
    /// On the shortcut, `[C', C]`, where the channels change.
    pub shortcut: Option<Tensor<2>>,
}

/// With `x' = x + P` and `f` = SiLU: `h = f(BN(depthwise(f(BN(expand(f(BN(x'))))))))`,
/// `shortcut(x') + reduce(h · σ(excite(f(squeeze(mean(h))))))`.
#[derive(Clone)]
pub struct MbConv(Form);

#[derive(Clone)]
enum Form {
    Portable(Box<Portable>),
    Fast(Arc<dyn FrozenOp>, bool),
}

#[derive(Clone)]
struct Portable {
    pre_norm: BatchNorm,
    expand: Conv2d,
    depthwise: (Tensor<4>, Behind),
    stride: usize,
    squeeze: Linear,
    excite: Linear,
    reduce: Linear,
    shortcut: Option<Linear>,
}

impl MbConv {
    /// Take the weights.
    pub fn new(w: MbConvWeights, compute: Compute) -> Self {
        if compute.is_fast(&w.reduce) {
            let op = match compute.precision {
                Precision::F32 => packed::<f32>(w),
                Precision::Bf16 => packed::<bf16>(w),
            };
            return Self(Form::Fast(op, compute.recompute));
        }
        let linear = |weight, bias| Linear::new(weight, bias, compute.precision);
        Self(Form::Portable(Box::new(Portable {
            pre_norm: w.pre_norm,
            expand: Conv2d::with_norm(w.expand.0, w.expand.1, 1, 0, compute.precision),
            depthwise: Behind::absorbed(w.depthwise.0, w.depthwise.1),
            stride: w.stride,
            squeeze: linear(w.squeeze.0, Some(w.squeeze.1)),
            excite: linear(w.excite.0, Some(w.excite.1)),
            reduce: linear(w.reduce, None),
            shortcut: w.shortcut.map(|weight| linear(weight, None)),
        })))
    }

    /// A map `[B, C, H, W]` to `[B, C', H / stride, W / stride]`, `prompt` `[C, H, W]` added to each sample as it enters.
    pub fn forward(&self, x: Tensor<4>, prompt: Option<Tensor<3>>) -> Tensor<4> {
        let block = match &self.0 {
            Form::Fast(op, recompute) => return fast::apply_map(op, *recompute, x, prompt),
            Form::Portable(block) => block,
        };
        let x = match prompt {
            Some(prompt) => x + prompt.unsqueeze(),
            None => x,
        };
        let silu = |x: Tensor<4>| Nonlinearity::Silu.apply(x);
        let y = silu(block.expand.forward(silu(block.pre_norm.forward(x.clone()))));
        let (kernel, behind) = &block.depthwise;
        let y = silu(behind.forward(depthwise_conv(y, kernel.clone(), None, block.stride)));
        let [b, wide, _, _] = y.dims();
        let mean = y.clone().mean_dims(&[2, 3]).reshape([b, wide]);
        let gate = sigmoid(block.excite.forward(Nonlinearity::Silu.apply(block.squeeze.forward(mean))));
        let y = y * gate.reshape([b, wide, 1, 1]);
        let last = |x: Tensor<4>| x.permute([0, 2, 3, 1]);
        let y = block.reduce.forward(last(y));
        let mut around = x;
        if block.stride == 2 {
            let [b, c, h, w] = around.dims();
            let pairs = around.reshape([b, c, h / 2, 2, w / 2, 2]);
            around = pairs.mean_dims(&[3, 5]).reshape([b, c, h / 2, w / 2]);
        }
        let around = last(around);
        let around = match &block.shortcut {
            Some(linear) => linear.forward(around),
            None => around,
        };
        (around + y).permute([0, 3, 1, 2])
    }
}

fn packed<T: Operand>(w: MbConvWeights) -> Arc<dyn FrozenOp> {
    let [expanded, inputs, _, _] = w.expand.0.dims();
    let [scale, shift] = affine(w.pre_norm).map(host);
    let one = depthwise::Shape { channels: inputs, side: 1, stride: 1, padding: 0 };
    let side = w.depthwise.0.dims()[2];
    let shape = depthwise::Shape { channels: expanded, side, stride: w.stride, padding: side / 2 };
    let (expand, expand_bias) = folded(w.expand.0, w.expand.1);
    let (kernel, bias) = folded(w.depthwise.0, w.depthwise.1);
    let linear = |weight: Tensor<2>, bias: Vec<f32>| {
        let outputs = weight.dims()[0];
        FrozenLinear::<T>::new(&host(weight), bias, outputs)
    };
    Arc::new(fast::MbConv {
        pre_scale: Depthwise::new(one, &scale),
        pre_shift: shift,
        expand: FrozenLinear::new(&host(expand), host(expand_bias), expanded),
        depthwise: Depthwise::new(shape, &host(kernel)),
        bias: host(bias),
        squeeze: linear(w.squeeze.0, host(w.squeeze.1)),
        excite: linear(w.excite.0, host(w.excite.1)),
        reduce: linear(w.reduce, Vec::new()),
        means: (w.stride == 2).then(|| fast::means(inputs)),
        shortcut: w.shortcut.map(|weight| linear(weight, Vec::new())),
    })
}

/// CoAtNet's entrance: `conv2(SiLU(BN(conv1(x))))`.
#[derive(Clone)]
pub struct ConvStem(StemForm);

#[derive(Clone)]
enum StemForm {
    /// What a folded image adds behind the first convolution is `[1, C, H / 2, W / 2]`.
    Portable {
        first: Conv2d,
        offset: Option<Tensor<4>>,
        second: Conv2d,
    },
    Fast(PackedStem, Arc<dyn FrozenOp>),
}

#[derive(Clone)]
enum PackedStem {
    F32(fast::ConvStem<f32>),
    Bf16(fast::ConvStem<bf16>),
}

impl PackedStem {
    fn with_offset(&self, offset: Vec<f32>) -> Arc<dyn FrozenOp> {
        match self {
            Self::F32(op) => Arc::new(fast::ConvStem { offset, ..op.clone() }),
            Self::Bf16(op) => Arc::new(fast::ConvStem { offset, ..op.clone() }),
        }
    }
}

impl ConvStem {
    /// Take the convolutions, both padded to keep a map's size but for their stride.
    pub fn new(first: ConvNorm, second: Tensor<4>, compute: Compute) -> Self {
        if compute.is_fast(&second) {
            let packed = match compute.precision {
                Precision::F32 => PackedStem::F32(packed_stem(first, second)),
                Precision::Bf16 => PackedStem::Bf16(packed_stem(first, second)),
            };
            return Self(StemForm::Fast(packed.clone(), packed.with_offset(Vec::new())));
        }
        let padding = |kernel: &Tensor<4>| kernel.dims()[2] / 2;
        let (p1, p2) = (padding(&first.kernel), padding(&second));
        let first = Conv2d::with_norm(first.kernel, first.norm, first.stride, p1, compute.precision);
        let second = Conv2d::new(second, None, 1, p2, compute.precision);
        Self(StemForm::Portable { first, offset: None, second })
    }

    /// Images `[B, 3, H, W]` to maps `[B, C, H/2, W/2]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.0 {
            StemForm::Fast(_, op) => fast::apply_map(op, false, x, None),
            StemForm::Portable { first, offset, second } => {
                let mut y = first.forward(x);
                if let Some(offset) = offset {
                    y = y + offset.clone();
                }
                second.forward(Nonlinearity::Silu.apply(y))
            }
        }
    }

    /// The same with an image `[1, 3, H, W]` added to what comes in.
    #[must_use]
    pub fn with_added(&self, image: Tensor<4>) -> Self {
        Self(match &self.0 {
            StemForm::Portable { first, second, .. } => {
                let offset = Some(first.linear_part(image));
                StemForm::Portable { first: first.clone(), offset, second: second.clone() }
            }
            StemForm::Fast(packed, _) => {
                let [_, _, h, w] = image.dims();
                let image = host(image.permute([0, 2, 3, 1]));
                let offset = match packed {
                    PackedStem::F32(op) => op.linear_part(&image, [h, w]),
                    PackedStem::Bf16(op) => op.linear_part(&image, [h, w]),
                };
                StemForm::Fast(packed.clone(), packed.with_offset(offset))
            }
        })
    }
}

fn packed_stem<T: Operand>(first: ConvNorm, second: Tensor<4>) -> fast::ConvStem<T> {
    let conv = |kernel: Tensor<4>, bias: Vec<f32>, stride: usize| {
        let [outputs, inputs, side, _] = kernel.dims();
        let shape = Shape { inputs, outputs, side, stride, padding: side / 2 };
        Arc::new(FrozenConv::new(Conv::<T>::new(shape, &host(kernel)), bias))
    };
    let (kernel, bias) = folded(first.kernel, first.norm);
    fast::ConvStem {
        first: conv(kernel, host(bias), first.stride),
        second: conv(second, Vec::new(), 1),
        offset: Vec::new(),
    }
}
