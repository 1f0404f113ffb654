//! What a method learns inside the convolutions of a block.

use std::sync::Arc;

use burn::tensor::Tensor;
use lotep_frozen::{Convolution, UpdateForm};

use super::{Dropout, Linear, LowRank, Precision, fast};

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
                LowRank::add(Some(&update), layer, x, precision, None)
            }
            Some(Self::Kernel(kernel)) => {
                let added = Linear::new(kernel.clone().flatten(1, 3), None, precision);
                layer.forward(x.clone()) + added.forward(x)
            }
        }
    }
}

/// `layer` with an update that sees its input with values dropped.
///
/// A convolution takes what it adds from the whole sum, so the update alone is the difference between two of those.
pub(super) fn with_dropout<const D: usize>(
    x: Tensor<D>,
    update: Option<&ConvUpdate>,
    dropout: Option<Dropout>,
    layer: impl Fn(Tensor<D>, Option<&ConvUpdate>) -> Tensor<D>,
) -> Tensor<D> {
    match (update, dropout) {
        (Some(update), Some(dropout)) => {
            let seen = dropout.apply(x.clone());
            layer(x, None) + (layer(seen.clone(), Some(update)) - layer(seen, None))
        }
        _ => layer(x, update),
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
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::fixtures::{self, assert_close};
    use crate::ops::{Conv2d, kernel};

    const FORWARD: f64 = 1e-5;
    const GRADIENT: f64 = 5e-5;
    const STRIDE: usize = 2;
    const PADDING: usize = 1;
    /// alpha / r, in the fixture's own description as the two above.
    const SCALE: f64 = 3.0;

    fn open(weight: Tensor<4>, stride: usize, padding: usize) -> OpenConv {
        let kernel = kernel(weight, None, stride, padding);
        let block = lotep_frozen::ResidualBlock { convs: vec![kernel], shortcut: None };
        OpenConv { op: block.pack(Precision::F32).convs.remove(0), scale: None }
    }

    fn through(open: &OpenConv, x: &Tensor<4>, update: &ConvUpdate) -> Tensor<4> {
        open.forward(x.clone().permute([0, 2, 3, 1]), Some(update)).permute([0, 3, 1, 2])
    }

    /// LoRA on a convolution: peft's output and gradients in float64, in either form of convolution and of update.
    #[test]
    fn lora_agrees_with_peft() {
        let Some(f) = fixtures::open("methods/lora_conv.safetensors") else { return };
        let device = Device::flex().autodiff();
        let leaf = |leaf: &str| format!("base_model.model.conv.{leaf}.weight");
        let weight = || f.tensor::<4>(&leaf("base_layer"), &Device::flex());
        let conv = Conv2d::new(weight(), None, STRIDE, PADDING, Precision::F32);
        let open = open(weight(), STRIDE, PADDING);
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
            let y = if fast { through(&open, &x, &update) } else { conv.updated(x.clone(), Some(&update)) };
            f.assert_close(&y, "y", FORWARD);
            let grads = (y * f.tensor("upstream", &device)).sum().backward();
            f.assert_close(&x.grad(&grads).unwrap(), "grad.x", GRADIENT);
            for (factor, name) in [(down, "lora_A.default"), (up, "lora_B.default")] {
                let name = format!("grad.{}", leaf(name));
                f.assert_close(&factor.grad(&grads).unwrap(), &name, GRADIENT);
            }
        }
    }

    /// Dropout is of what the update sees alone: `conv(x) + update(dropped x)`, in either form of convolution.
    #[test]
    fn an_update_sees_its_input_with_values_dropped() {
        let device = Device::flex();
        let made = |shape: [usize; 4], seed: usize| {
            let count = shape.iter().product::<usize>();
            let values: Vec<f32> = (0..count).map(|i| ((i * 7 + seed * 13) as f32 * 0.37).sin()).collect();
            Tensor::<4>::from_data(TensorData::new(values, shape), &device)
        };
        let (weight, x) = (made([6, 4, 3, 3], 1), made([3, 4, 7, 6], 2));
        let (down, up) = (made([2, 4, 3, 3], 3), made([6, 2, 1, 1], 4).flatten::<2>(1, 3));
        let update = ConvUpdate::Thin { down: down.clone(), up: up.clone() };
        let conv = Conv2d::new(weight.clone(), None, STRIDE, PADDING, Precision::F32);
        let thin = Conv2d::new(down.clone(), None, STRIDE, PADDING, Precision::F32);
        let wide = Conv2d::new(up.clone().unsqueeze_dims(&[2, 3]), None, 1, 0, Precision::F32);
        let added = |x| wide.forward(thin.forward(x));
        let values = |x: Tensor<4>| x.into_data().iter::<f32>().collect::<Vec<_>>();
        let dropout = Dropout::new(0.5, 3, 0);
        let dropped = dropout.unwrap().apply(x.clone());
        assert_ne!(values(dropped.clone()), values(x.clone()));
        let expected = values(conv.forward(x.clone()) + added(dropped));
        let found = with_dropout(x.clone(), Some(&update), dropout, |x, update| conv.updated(x, update));
        assert_close(&values(found), &expected, FORWARD, "portable");
        let none = with_dropout(x.clone(), None, dropout, |x, update| conv.updated(x, update));
        assert_eq!(values(none), values(conv.forward(x.clone())));

        // The same of a layer of single pixels, with channels last.
        let layer =
            Linear::new(weight.clone().narrow(2, 0, 1).narrow(3, 0, 1).flatten(1, 3), None, Precision::F32);
        let thin = LowRank { down: down.narrow(2, 0, 1).narrow(3, 0, 1).flatten(1, 3), up };
        let x = x.permute([0, 2, 3, 1]);
        let seen = dropout.unwrap().apply(x.clone());
        let through = |layer: &Tensor<2>, x| Linear::new(layer.clone(), None, Precision::F32).forward::<4>(x);
        let expected = values(layer.forward(x.clone()) + through(&thin.up, through(&thin.down, seen)));
        let found = LowRank::add(Some(&thin), &layer, x, Precision::F32, dropout);
        assert_close(&values(found), &expected, FORWARD, "linear");
    }

    /// Both forms of convolution agree, whatever its geometry: channels that fill no vector, pixels at the far end that
    /// no window reaches, windows that leave some out, a rank beyond the eight that are summed at once.
    #[test]
    fn any_geometry_is_updated() {
        fn made<const D: usize>(shape: [usize; D], seed: usize, device: &Device) -> Tensor<D> {
            let count = shape.iter().product::<usize>();
            let values: Vec<f32> = (0..count).map(|i| ((i * 7 + seed * 13) as f32 * 0.37).sin()).collect();
            Tensor::from_data(TensorData::new(values, shape), device)
        }
        fn flat<const D: usize>(x: Tensor<D>) -> Vec<f32> {
            x.without_autodiff().into_data().iter::<f32>().collect()
        }
        let device = Device::flex().autodiff();
        for (inputs, outputs, side, stride, padding, [h, w], rank) in [
            (1, 1, 1, 1, 0, [1, 1], 1),
            (5, 7, 1, 2, 0, [5, 6], 3),
            (40, 20, 1, 1, 0, [3, 5], 11),
            (33, 20, 3, 1, 1, [6, 5], 9),
            (36, 40, 3, 1, 1, [7, 5], 33),
            (16, 33, 3, 2, 1, [7, 8], 4),
            (4, 6, 3, 2, 1, [4, 3], 13),
            (3, 8, 7, 2, 3, [13, 10], 2),
            (8, 8, 4, 4, 0, [9, 8], 5),
        ] {
            let weight = made([outputs, inputs, side, side], 1, &Device::flex());
            let conv = Conv2d::new(weight.clone(), None, stride, padding, Precision::F32);
            let open = open(weight, stride, padding);
            for thin in [true, false] {
                let outcome = |fast: bool| {
                    let x = made([2, inputs, h, w], 2, &device).require_grad();
                    let rows = if thin { rank } else { outputs };
                    let kernel = made([rows, inputs, side, side], 3, &device).require_grad();
                    let up = made([outputs, rank], 4, &device).require_grad();
                    let update = if thin {
                        ConvUpdate::Thin { down: kernel.clone(), up: up.clone() }
                    } else {
                        ConvUpdate::Kernel(kernel.clone())
                    };
                    let y = if fast {
                        through(&open, &x, &update)
                    } else {
                        conv.updated(x.clone(), Some(&update))
                    };
                    let weights = made(y.dims(), 5, &device);
                    let grads = (y.clone() * weights).sum().backward();
                    let of_up = up.grad(&grads).map(flat).unwrap_or_default();
                    [flat(y), flat(x.grad(&grads).unwrap()), flat(kernel.grad(&grads).unwrap()), of_up]
                };
                let (fast, portable) = (outcome(true), outcome(false));
                for ((fast, portable), part) in fast.iter().zip(&portable).zip(["y", "x", "kernel", "up"]) {
                    let tolerance = if part == "y" { FORWARD } else { GRADIENT };
                    let what = format!("{part} of {inputs} to {outputs}, {side} by {stride}, thin {thin}");
                    assert_close(fast, portable, tolerance, &what);
                }
            }
        }
    }
}
