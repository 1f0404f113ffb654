//! Convolution with the batch norm that follows it folded in.

use burn::tensor::module::{conv2d, max_pool2d};
use burn::tensor::Tensor;
use burn::tensor::ops::{ConvOptions, MaxPoolOptions};

use super::{Precision, lift};

/// A batch norm in evaluation mode, as stored: scale, shift, running mean and variance, each `[channels]`.
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
}

/// A 2-D convolution, NCHW, square stride and symmetric padding.
#[derive(Clone, Debug)]
pub struct Conv2d {
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: usize,
    padding: usize,
    precision: Precision,
}

impl Conv2d {
    /// Take a kernel `[out, in, kh, kw]` and a bias `[out]`.
    pub fn new(
        weight: Tensor<4>,
        bias: Option<Tensor<1>>,
        stride: usize,
        padding: usize,
        precision: Precision,
    ) -> Self {
        Self { weight: precision.round(weight), bias, stride, padding, precision }
    }

    /// Fold `norm`, which follows the bias-free kernel `weight`, into it: with `s = w / sqrt(var + eps)` the
    /// kernel of output channel `o` becomes `s[o] · weight[o]` and the bias `b - s · mean`.
    pub fn with_norm(
        weight: Tensor<4>,
        norm: BatchNorm,
        stride: usize,
        padding: usize,
        precision: Precision,
    ) -> Self {
        let scale = norm.weight / (norm.var + norm.eps).sqrt();
        let bias = norm.bias - scale.clone() * norm.mean;
        let out = scale.dims()[0];
        let weight = weight * scale.reshape([out, 1, 1, 1]);
        Self::new(weight, Some(bias), stride, padding, precision)
    }

    /// `[B, in, H, W]` to `[B, out, H', W']`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let bias = self.bias.as_ref().map(|b| lift(b, &x));
        self.convolve(x, bias)
    }

    /// The same without the bias: what an added image adds to the output.
    pub(crate) fn linear_part(&self, x: Tensor<4>) -> Tensor<4> {
        self.convolve(x, None)
    }

    fn convolve(&self, x: Tensor<4>, bias: Option<Tensor<1>>) -> Tensor<4> {
        let weight = lift(&self.weight, &x);
        let options = ConvOptions::new([self.stride; 2], [self.padding; 2], [1, 1], 1);
        conv2d(self.precision.round(x), weight, bias, options)
    }
}

/// The stem's pooling: 3×3, stride 2, padding 1 with −∞, size rounded down.
pub fn max_pool_3x3_s2(x: Tensor<4>) -> Tensor<4> {
    max_pool2d(
        x,
        MaxPoolOptions { kernel_size: [3, 3], stride: [2, 2], padding: [(1, 1); 2], dilation: [1, 1], ceil_mode: false },
    )
}
