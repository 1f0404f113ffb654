//! Fully connected layer with frozen weights.

use burn::tensor::{Device, Tensor};

use super::{Precision, Round};

/// `y = x Wᵀ + b`, W as PyTorch stores it (`[out, in]`), kept transposed.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    precision: Precision,
}

impl Linear {
    /// Take a weight `[out, in]` and a bias `[out]`.
    pub fn new(weight: Tensor<2>, bias: Option<Tensor<1>>, precision: Precision) -> Self {
        Self { weight: precision.round(weight.transpose()), bias, precision }
    }

    /// Where its weight is, outside autodiff.
    pub fn device(&self) -> Device {
        self.weight.device().without_autodiff()
    }

    /// Number of inputs and outputs.
    pub fn dims(&self) -> [usize; 2] {
        self.weight.dims()
    }

    /// Its weight `[out, in]` and its bias `[out]`, as its products see them.
    pub fn weights(&self) -> (Tensor<2>, Tensor<1>) {
        let bias = self.bias.clone().unwrap_or_else(|| Tensor::zeros([self.dims()[1]], &self.device()));
        (self.precision.widen(self.weight.clone().transpose()), bias)
    }

    /// `[..., in]` to `[..., out]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let [inputs, outputs] = self.weight.dims();
        let mut shape = x.dims();
        let rows = shape.iter().product::<usize>() / inputs;
        // One flat product: a batched one would broadcast the weight and re-read it for each image.
        let x = self.precision.round(x.reshape([rows, inputs]));
        let mut y = self.precision.widen(x.matmul(self.weight.clone()));
        if let Some(bias) = &self.bias {
            y = y + bias.clone().unsqueeze();
        }
        shape[D - 1] = outputs;
        y.reshape(shape)
    }
}
