//! The entrance of ConvNeXt and Swin: patches, normalised.

use std::sync::Arc;

use burn::tensor::Tensor;
use lotep_kernels::{Operand, bf16};

use super::fast::{self, FrozenLinear, FrozenOp};
use super::{Compute, Conv2d, LayerNorm, Precision, host};

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
    Fast(Arc<dyn FrozenOp>, Packed),
}

#[derive(Clone)]
enum Packed {
    F32(fast::PatchStem<f32>),
    Bf16(fast::PatchStem<bf16>),
}

impl PatchStem {
    /// Take a kernel `[C, 3, patch, patch]` with its bias, and the norm behind it.
    pub fn new(kernel: Tensor<4>, bias: Tensor<1>, norm: [Tensor<1>; 2], eps: f64, compute: Compute) -> Self {
        if compute.is_fast(&kernel) {
            let packed = match compute.precision {
                Precision::F32 => Packed::F32(packed(kernel, bias, norm, eps)),
                Precision::Bf16 => Packed::Bf16(packed(kernel, bias, norm, eps)),
            };
            return Self(Form::Fast(packed.with_offset(Vec::new()), packed));
        }
        let patch = kernel.dims()[2];
        let [scale, shift] = norm;
        let conv = Conv2d::new(kernel, Some(bias), patch, 0, compute.precision);
        Self(Form::Portable { conv, offset: None, norm: LayerNorm::new(scale, shift, eps) })
    }

    /// Images `[B, 3, H, W]` to their patches, row by row, `[B, H/patch · W/patch, C]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<3> {
        match &self.0 {
            Form::Fast(op, _) => fast::apply(op, false, x, None::<Tensor<1>>),
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
            Form::Fast(_, packed) => {
                let shape = image.dims();
                let image = host(image);
                let offset = match packed {
                    Packed::F32(op) => op.patches(&image, &shape, &[]).to_vec(),
                    Packed::Bf16(op) => op.patches(&image, &shape, &[]).to_vec(),
                };
                Form::Fast(packed.with_offset(offset), packed.clone())
            }
        })
    }
}

impl Packed {
    fn with_offset(&self, offset: Vec<f32>) -> Arc<dyn FrozenOp> {
        match self {
            Self::F32(op) => Arc::new(fast::PatchStem { offset, ..op.clone() }),
            Self::Bf16(op) => Arc::new(fast::PatchStem { offset, ..op.clone() }),
        }
    }
}

fn packed<T: Operand>(
    kernel: Tensor<4>,
    bias: Tensor<1>,
    norm: [Tensor<1>; 2],
    eps: f64,
) -> fast::PatchStem<T> {
    let [width, _, patch, _] = kernel.dims();
    let project = Arc::new(FrozenLinear::new(&host(kernel), host(bias), width));
    fast::PatchStem { patch, project, offset: Vec::new(), norm: norm.map(host), eps: eps as f32 }
}
