//! What a method learns inside the convolutions of a block.

use std::sync::Arc;

use burn::tensor::Tensor;
use lotep_frozen::{Convolution, UpdateForm};

use super::{Linear, LowRank, Precision, fast};

/// What is added to a frozen convolution.
#[derive(Clone, Debug)]
pub enum ConvUpdate {
    /// `y += up · conv(x, down)`, the scale being in `up`.
    Thin {
        /// To the rank, `[r, in, k, k]`, with the convolution's own stride and padding.
        down: Tensor<4>,
        /// To the outputs, `[out, r]`.
        up: Tensor<2>,
    },
    /// `y += conv(x, kernel)`, `[out, in, k, k]`, the scale inside.
    Kernel(Tensor<4>),
}

impl ConvUpdate {
    /// The same for a weight that has the norm behind it folded in, which multiplies by `scale` `[out]`.
    pub(super) fn behind(&self, scale: Option<&Tensor<1>>) -> Self {
        let Some(scale) = scale.cloned() else { return self.clone() };
        match self.clone() {
            Self::Thin { down, up } => Self::Thin { down, up: up * scale.unsqueeze_dim(1) },
            Self::Kernel(kernel) => {
                let out = scale.dims()[0];
                Self::Kernel(kernel * scale.reshape([out, 1, 1, 1]))
            }
        }
    }

    /// As `lotep_frozen` takes it, its values in a row.
    fn flat(self) -> (UpdateForm, Tensor<1>) {
        match self {
            Self::Thin { down, up } => {
                let form = UpdateForm::Thin(down.dims()[0]);
                (form, Tensor::cat(vec![down.flatten(0, 3), up.transpose().flatten(0, 1)], 0))
            }
            Self::Kernel(kernel) => (UpdateForm::Kernel, kernel.flatten(0, 3)),
        }
    }

    /// `layer(x)`, the layer being a convolution of one pixel, with an update if there is one; `x` is `[B, H, W, in]`.
    pub(super) fn add(
        update: Option<&Self>,
        layer: &Linear,
        x: Tensor<4>,
        precision: Precision,
    ) -> Tensor<4> {
        match update {
            None => layer.forward(x),
            Some(Self::Thin { down, up }) => {
                let update = LowRank { down: down.clone().flatten(1, 3), up: up.clone() };
                LowRank::add(Some(&update), layer, x, precision)
            }
            Some(Self::Kernel(kernel)) => {
                let added = Linear::new(kernel.clone().flatten(1, 3), None, precision);
                layer.forward(x.clone()) + added.forward(x)
            }
        }
    }
}

/// A convolution of a fused block by itself.
#[derive(Clone)]
pub(super) struct OpenConv {
    /// Its weights are the fused block's.
    pub(super) op: Arc<dyn Convolution>,
    /// What the norm in its weight multiplies by, where there is one.
    pub(super) scale: Option<Tensor<1>>,
}

impl OpenConv {
    /// `[B, H, W, in]` to `[B, H', W', out]`.
    pub(super) fn forward(&self, x: Tensor<4>, update: Option<&ConvUpdate>) -> Tensor<4> {
        let none = None::<Tensor<3>>;
        match update {
            None => fast::apply(self.op.clone(), false, x, none),
            Some(update) => {
                let (form, values) = update.behind(self.scale.as_ref()).flat();
                fast::apply_learning(self.op.clone().updated(form), false, x, none, Some(values))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::fixtures;
    use crate::ops::{Conv2d, kernel};

    const FORWARD: f64 = 1e-5;
    const GRADIENT: f64 = 5e-5;
    const STRIDE: usize = 2;
    const PADDING: usize = 1;
    /// alpha / r, in the fixture's own description as the two above.
    const SCALE: f64 = 3.0;

    /// LoRA on a convolution: peft's output and gradients in float64, in either form of convolution and of update.
    #[test]
    fn lora_agrees_with_peft() {
        let Some(f) = fixtures::open("methods/lora_conv.safetensors") else { return };
        let device = Device::flex().autodiff();
        let leaf = |leaf: &str| format!("base_model.model.conv.{leaf}.weight");
        let weight = || f.tensor::<4>(&leaf("base_layer"), &Device::flex());
        let conv = Conv2d::new(weight(), None, STRIDE, PADDING, Precision::F32);
        let kernel = kernel(weight(), None, STRIDE, PADDING);
        let block = lotep_frozen::ResidualBlock { convs: vec![kernel], shortcut: None };
        let op = block.pack(Precision::F32).convs.remove(0);
        let open = OpenConv { op, scale: None };
        for (fast, thin) in [(false, true), (false, false), (true, true), (true, false)] {
            let [x, down, up] = ["x", &leaf("lora_A.default"), &leaf("lora_B.default")]
                .map(|name| f.tensor::<4>(name, &device).require_grad());
            let scaled = up.clone().flatten::<2>(1, 3) * SCALE;
            let update = if thin {
                ConvUpdate::Thin { down: down.clone(), up: scaled }
            } else {
                let sizes = [scaled.dims()[0], down.dims()[1], down.dims()[2], down.dims()[3]];
                ConvUpdate::Kernel(scaled.matmul(down.clone().flatten(1, 3)).reshape(sizes))
            };
            let y = if fast {
                let y = open.forward(x.clone().permute([0, 2, 3, 1]), Some(&update));
                y.permute([0, 3, 1, 2])
            } else {
                conv.updated(x.clone(), Some(&update))
            };
            f.assert_close(&y, "y", FORWARD);
            let grads = (y * f.tensor("upstream", &device)).sum().backward();
            f.assert_close(&x.grad(&grads).unwrap(), "grad.x", GRADIENT);
            for (factor, name) in [(down, "lora_A.default"), (up, "lora_B.default")] {
                let name = format!("grad.{}", leaf(name));
                f.assert_close(&factor.grad(&grads).unwrap(), &name, GRADIENT);
            }
        }
    }
}
