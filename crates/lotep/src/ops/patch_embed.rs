//! The entrance of a vision transformer: patches, class token, positions.

use std::sync::Arc;

use burn::tensor::Tensor;
use lotep_kernels::{Operand, bf16};

use super::fast::{self, FrozenLinear, FrozenOp, PatchEmbedding};
use super::{Compute, Conv2d, Precision, host};

/// `[class token; patches W + b] + positions`.
#[derive(Clone)]
pub struct PatchEmbed {
    form: Form,
    /// `[1 + patches, C]`
    positions: Tensor<2>,
    /// The class token, and for each patch the bias, `[1 + patches, C]`.
    constants: Tensor<2>,
}

#[derive(Clone)]
enum Form {
    Portable(Conv2d),
    /// The whole, and the packed projection to make others of.
    Fast(Arc<dyn FrozenOp>, Packed),
}

#[derive(Clone)]
enum Packed {
    F32(PatchEmbedding<f32>),
    Bf16(PatchEmbedding<bf16>),
}

impl Packed {
    fn with_offset(&self, offset: Vec<f32>) -> Arc<dyn FrozenOp> {
        match self {
            Self::F32(op) => Arc::new(PatchEmbedding { offset, ..op.clone() }),
            Self::Bf16(op) => Arc::new(PatchEmbedding { offset, ..op.clone() }),
        }
    }
}

impl PatchEmbed {
    /// Take a kernel `[C, 3, patch, patch]` with its bias `[C]`, if it has one, the class token `[1, C]` and the positions
    /// `[1 + patches, C]`.
    pub fn new(
        kernel: Tensor<4>,
        bias: Option<Tensor<1>>,
        class_token: Tensor<2>,
        positions: Tensor<2>,
        compute: Compute,
    ) -> Self {
        let [width, _, patch, _] = kernel.dims();
        let bias = bias.unwrap_or_else(|| Tensor::zeros([width], &kernel.device().without_autodiff()));
        let rows = bias.unsqueeze_dim::<2>(0).repeat_dim(0, positions.dims()[0] - 1);
        let constants = Tensor::cat(vec![class_token, rows], 0);
        let form = if compute.is_fast(&kernel) {
            let packed = match compute.precision {
                Precision::F32 => Packed::F32(packed(&kernel, patch)),
                Precision::Bf16 => Packed::Bf16(packed(&kernel, patch)),
            };
            Form::Fast(packed.with_offset(host(positions.clone() + constants.clone())), packed)
        } else {
            Form::Portable(Conv2d::new(kernel, None, patch, 0, compute.precision))
        };
        Self { form, positions, constants }
    }

    /// An image `[B, 3, H, W]` to tokens `[B, 1 + patches, C]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<3> {
        match &self.form {
            Form::Fast(op, _) => fast::apply(op, false, x, None::<Tensor<1>>),
            Form::Portable(conv) => {
                project(conv, x) + (self.positions.clone() + self.constants.clone()).unsqueeze()
            }
        }
    }

    /// What an added image `[1, 3, H, W]` adds to the tokens, `[1 + patches, C]`.
    pub fn linear_part(&self, image: Tensor<4>) -> Tensor<2> {
        let tokens: Tensor<3> = match &self.form {
            Form::Fast(_, packed) => {
                let zeros = packed.with_offset(vec![0.0; self.positions.shape().num_elements()]);
                fast::apply(&zeros, false, image, None::<Tensor<1>>)
            }
            Form::Portable(conv) => project(conv, image),
        };
        tokens.squeeze_dim(0)
    }

    /// The same with something added to every image's tokens, `[1 + patches, C]`.
    #[must_use]
    pub fn with_added(&self, tokens: Tensor<2>) -> Self {
        // Positions first, as they would be read from a checkpoint that this was exported to.
        let positions = self.positions.clone() + tokens;
        let form = match &self.form {
            Form::Fast(_, packed) => {
                let offset = host(positions.clone() + self.constants.clone());
                Form::Fast(packed.with_offset(offset), packed.clone())
            }
            Form::Portable(conv) => Form::Portable(conv.clone()),
        };
        Self { form, positions, constants: self.constants.clone() }
    }
}

fn packed<T: Operand>(kernel: &Tensor<4>, patch: usize) -> PatchEmbedding<T> {
    let width = kernel.dims()[0];
    let project = Arc::new(FrozenLinear::new(&host(kernel.clone()), Vec::new(), width));
    PatchEmbedding { patch, project, offset: Vec::new() }
}

/// Tokens of the patches row by row, behind a class token of zeros.
fn project(conv: &Conv2d, x: Tensor<4>) -> Tensor<3> {
    let patches = conv.forward(x).flatten::<3>(2, 3).swap_dims(1, 2);
    let [batch, _, width] = patches.dims();
    let class_token = Tensor::zeros([batch, 1, width], &patches.device().without_autodiff());
    Tensor::cat(vec![class_token, patches], 1)
}
