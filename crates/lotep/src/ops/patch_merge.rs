//! What halves Swin's maps between stages.

use std::sync::Arc;

use burn::tensor::Tensor;
use lotep_frozen::FrozenOp;

use super::{Compute, LayerNorm, Linear, dense, fast, host};

/// `W · LN([x(0,0), x(1,0), x(0,1), x(1,1)])` of each 2 × 2 pixels (row, column); odd sides are padded with zeros.
#[derive(Clone)]
pub struct PatchMerge(Form);

#[derive(Clone)]
enum Form {
    Portable(LayerNorm, Linear),
    Fast(Arc<dyn FrozenOp>, bool),
}

impl PatchMerge {
    /// Take the norm's scale and shift `[4 C]` and a weight `[C', 4 C]`.
    pub fn new(norm: [Tensor<1>; 2], eps: f64, weight: Tensor<2>, compute: Compute) -> Self {
        if compute.is_fast(&weight) {
            let [scale, shift] = norm.map(host);
            let reduce = dense(weight, None).behind_norm(&scale, &shift);
            let op = lotep_frozen::PatchMerge { reduce, eps: eps as f32 }.pack(compute.precision);
            return Self(Form::Fast(op, compute.recompute));
        }
        let [scale, shift] = norm;
        Self(Form::Portable(LayerNorm::new(scale, shift, eps), Linear::new(weight, None, compute.precision)))
    }

    /// Prompts `[B, n, C]` that go on beside a map, to `[B, n, C']`: each as four pixels that are all the same (VPT on
    /// Swin).
    pub fn prompts(&self, x: Tensor<3>) -> Tensor<3> {
        let [b, n, c] = x.dims();
        let four =
            x.swap_dims(1, 2).reshape([b, c, 1, n, 1]).expand([b, c, 2, n, 2]).reshape([b, c, 2, 2 * n]);
        let merged = self.forward(four);
        let width = merged.dims()[1];
        merged.reshape([b, width, n]).swap_dims(1, 2)
    }

    /// `[B, C, H, W]` to `[B, C', ⌈H/2⌉, ⌈W/2⌉]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let (norm, linear) = match &self.0 {
            Form::Fast(op, recompute) => return fast::apply_map(op.clone(), *recompute, x, None),
            Form::Portable(norm, linear) => (norm, linear),
        };
        let mut x = x;
        for axis in [2, 3] {
            let mut dims = x.dims();
            if dims[axis] % 2 == 1 {
                dims[axis] = 1;
                let zeros = Tensor::zeros(dims, &x.device().without_autodiff());
                x = Tensor::cat(vec![x, zeros], axis);
            }
        }
        let [b, c, h, w] = x.dims();
        // The row within the pair varies fastest.
        let four = x.reshape([b, c, h / 2, 2, w / 2, 2]).permute([0, 2, 4, 5, 3, 1]);
        linear.forward(norm.forward(four.reshape([b, h / 2, w / 2, 4 * c]))).permute([0, 3, 1, 2])
    }
}
