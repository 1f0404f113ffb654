//! Convolution with the batch norm that follows it folded in.

use burn::tensor::Tensor;
use burn::tensor::module::{conv2d, max_pool2d};
use burn::tensor::ops::{ConvOptions, MaxPoolOptions};

use super::frozen_conv::frozen_conv;
use super::training::BatchStatistics;
use super::{Below, ConvUpdate, Precision, Round};

/// A batch norm as stored: scale, shift, running mean and variance, each `[channels]`.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    /// Scale.
    pub weight: Tensor<1>,
    /// Shift.
    pub bias: Tensor<1>,
    /// Running mean.
    pub mean: Tensor<1>,
    /// Running variance.
    pub var: Tensor<1>,
    /// Added to the variance.
    pub eps: f64,
    /// In training mode it normalises by the batch's own statistics, and the running ones follow; in evaluation mode
    /// by the running ones.
    pub batch: Option<BatchStatistics>,
}

impl BatchNorm {
    /// What it multiplies the channels by once it is folded into the kernel before it; nothing in training mode, where
    /// it is not.
    pub(super) fn folded_scale(&self) -> Option<Tensor<1>> {
        self.batch.is_none().then(|| {
            let [scale, _] = affine(self.clone());
            scale
        })
    }

    /// Normalise the channels of `[B, C, H, W]`.
    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let (x, [scale, shift]) = match &self.batch {
            Some(batch) => {
                let x = batch.normalise(x, [&self.mean, &self.var], self.eps);
                (x, [self.weight.clone(), self.bias.clone()])
            }
            None => (x, affine(self.clone())),
        };
        let [scale, shift] = [scale, shift].map(per_channel);
        x * scale + shift
    }
}

/// What comes behind a convolution.
#[derive(Clone, Debug)]
pub(super) enum Behind {
    Nothing,
    Bias(Tensor<1>),
    /// A norm in training mode, which can't be folded.
    Norm(BatchNorm),
}

impl Behind {
    /// Fold `norm` into the kernel, unless it is in training mode.
    pub(super) fn absorbed(kernel: Tensor<4>, norm: BatchNorm) -> (Tensor<4>, Self) {
        if norm.batch.is_some() {
            return (kernel, Self::Norm(norm));
        }
        let (kernel, bias) = folded(kernel, norm);
        (kernel, Self::Bias(bias))
    }

    pub(super) fn forward(&self, y: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Nothing => y,
            Self::Bias(bias) => y + per_channel(bias.clone()),
            Self::Norm(norm) => norm.forward(y),
        }
    }
}

fn per_channel(x: Tensor<1>) -> Tensor<4> {
    let channels = x.dims()[0];
    x.reshape([1, channels, 1, 1])
}

/// A 2-D convolution, NCHW, square stride and symmetric padding.
#[derive(Clone, Debug)]
pub struct Conv2d {
    kernel: Tensor<4>,
    /// The kernel rotated by half a turn, input and output channels exchanged: what the input gradient convolves
    /// with. Only where the kernel is frozen.
    flipped: Option<Tensor<4>>,
    behind: Behind,
    /// What a norm in the kernel multiplies by.
    scale: Option<Tensor<1>>,
    stride: usize,
    padding: usize,
    precision: Precision,
}

impl Conv2d {
    /// Take a kernel `[out, in, k, k]` and a bias `[out]`.
    pub fn new(
        kernel: Tensor<4>,
        bias: Option<Tensor<1>>,
        stride: usize,
        padding: usize,
        precision: Precision,
    ) -> Self {
        Self::with(kernel, bias.map_or(Behind::Nothing, Behind::Bias), stride, padding, precision)
    }

    fn with(kernel: Tensor<4>, behind: Behind, stride: usize, padding: usize, precision: Precision) -> Self {
        let kernel = precision.round(kernel);
        let flipped = (!kernel.is_autodiff()).then(|| kernel.clone().swap_dims(0, 1).flip([2, 3]));
        Self { kernel, flipped, behind, scale: None, stride, padding, precision }
    }

    /// Fold `norm`, which follows the bias-free kernel, into it: with `s = w / sqrt(var + eps)` the kernel of output
    /// channel `o` becomes `s[o] · kernel[o]` and the bias `b - s · mean`. A norm in training mode stays what it is.
    pub fn with_norm(
        kernel: Tensor<4>,
        norm: BatchNorm,
        stride: usize,
        padding: usize,
        precision: Precision,
    ) -> Self {
        let scale = norm.folded_scale();
        let (kernel, behind) = Behind::absorbed(kernel, norm);
        Self { scale, ..Self::with(kernel, behind, stride, padding, precision) }
    }

    /// `[B, in, H, W]` to `[B, out, H', W']`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.behind.forward(self.linear_part(x))
    }

    /// The same with what further channels beside `x` add.
    pub(super) fn beside(&self, x: Tensor<4>, below: Option<&Below>) -> Tensor<4> {
        let y = self.forward(x);
        let Some(Below { channels, kernel }) = below else { return y };
        let slice = Self::new(kernel.clone(), None, self.stride, self.padding, self.precision);
        let added = slice.linear_part(channels.clone().unsqueeze());
        y + match &self.scale {
            Some(scale) => added * per_channel(scale.clone()),
            None => added,
        }
    }

    /// The same with an update added to the checkpoint's kernel: in front of the norm, in the kernel or not.
    pub(super) fn updated(&self, x: Tensor<4>, update: Option<&ConvUpdate>) -> Tensor<4> {
        let Some(update) = update else { return self.forward(x) };
        let like = |kernel| Self::new(kernel, None, self.stride, self.padding, self.precision);
        let added = match update.behind(self.scale.as_ref()) {
            ConvUpdate::Thin { down, up } => {
                let up = Self::new(up.unsqueeze_dims(&[2, 3]), None, 1, 0, self.precision);
                up.forward(like(down).forward(x.clone()))
            }
            ConvUpdate::Kernel(kernel) => like(kernel).forward(x.clone()),
        };
        self.behind.forward(self.linear_part(x) + added)
    }

    /// The same without the bias.
    fn linear_part(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.precision.round(x);
        let y = if let Some(flipped) = &self.flipped {
            frozen_conv(x, &self.kernel, flipped, self.stride, self.padding)
        } else {
            let options = ConvOptions::new([self.stride; 2], [self.padding; 2], [1, 1], 1);
            conv2d(x, self.kernel.clone(), None, options)
        };
        self.precision.widen(y)
    }
}

/// A kernel and the bias that `norm` behind it makes of it.
pub(super) fn folded(kernel: Tensor<4>, norm: BatchNorm) -> (Tensor<4>, Tensor<1>) {
    let [scale, bias] = affine(norm);
    let out = scale.dims()[0];
    (kernel * scale.reshape([out, 1, 1, 1]), bias)
}

/// A batch norm as factor and summand of each channel.
pub(super) fn affine(norm: BatchNorm) -> [Tensor<1>; 2] {
    let scale = norm.weight / (norm.var + norm.eps).sqrt();
    let shift = norm.bias - scale.clone() * norm.mean;
    [scale, shift]
}

/// A convolution with a kernel `[C, 1, side, side]` for each channel, padded to keep its size but for the stride.
pub(super) fn depthwise_conv(
    x: Tensor<4>,
    kernel: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: usize,
) -> Tensor<4> {
    let [channels, _, side, _] = kernel.dims();
    conv2d(x, kernel, bias, ConvOptions::new([stride; 2], [side / 2; 2], [1, 1], channels))
}

/// The stem's pooling: 3×3, stride 2, padding 1 with −∞, size rounded down.
pub(super) fn max_pool_3x3_s2(x: Tensor<4>) -> Tensor<4> {
    max_pool2d(
        x,
        MaxPoolOptions {
            kernel_size: [3, 3],
            stride: [2, 2],
            padding: [(1, 1); 2],
            dilation: [1, 1],
            ceil_mode: false,
        },
    )
}
