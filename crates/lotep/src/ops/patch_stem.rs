//! The entrance of ConvNeXt and Swin: patches, normalised.

use std::sync::Arc;

use burn::tensor::Tensor;
use lotep_frozen::Entrance;

use super::{Compute, Conv2d, LayerNorm, dense, fast, host};

/// `LN(conv(x))`, the convolution's stride its side.
#[derive(Clone)]
pub struct PatchStem(Form);

#[derive(Clone)]
enum Form {
    /// What a folded image adds behind the convolution is `[1, C, H / patch, W / patch]`.
    Portable {
        conv: Conv2d,
        offset: Option<Tensor<4>>,
        norm: LayerNorm,
    },
    Fast(Arc<dyn Entrance>),
}

impl PatchStem {
    /// Take a kernel `[C, 3, patch, patch]` with its bias, and the norm behind it.
    pub fn new(kernel: Tensor<4>, bias: Tensor<1>, norm: [Tensor<1>; 2], eps: f64, compute: Compute) -> Self {
        if compute.is_fast(&kernel) {
            let patch = kernel.dims()[2];
            let project = dense(kernel.flatten(1, 3), Some(bias));
            let stem = lotep_frozen::PatchStem { patch, project, norm: norm.map(host), eps: eps as f32 };
            return Self(Form::Fast(stem.pack(compute.precision)));
        }
        let patch = kernel.dims()[2];
        let [scale, shift] = norm;
        let conv = Conv2d::new(kernel, Some(bias), patch, 0, compute.precision);
        Self(Form::Portable { conv, offset: None, norm: LayerNorm::new(scale, shift, eps) })
    }

    /// Images `[B, 3, H, W]` to their patches, row by row, `[B, H/patch · W/patch, C]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<3> {
        match &self.0 {
            Form::Fast(op) => fast::apply(op.clone(), false, x, None::<Tensor<1>>),
            Form::Portable { conv, offset, norm } => {
                let mut y = conv.forward(x);
                if let Some(offset) = offset {
                    y = y + offset.clone();
                }
                norm.forward(y.flatten::<3>(2, 3).swap_dims(1, 2))
            }
        }
    }

    /// The same with an image `[1, 3, H, W]` added to what comes in.
    #[must_use]
    pub fn with_added(&self, image: Tensor<4>) -> Self {
        Self(match &self.0 {
            Form::Portable { conv, norm, .. } => {
                let offset = Some(conv.linear_part(image));
                Form::Portable { conv: conv.clone(), offset, norm: norm.clone() }
            }
            Form::Fast(op) => {
                let shape = image.dims();
                Form::Fast(op.with_offset(op.linear_part(&host(image), &shape)))
            }
        })
    }
}
