//! The entrance of a vision transformer: patches, class token, positions.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use lotep_frozen::{Entrance, PatchEmbedding};

use super::{Compute, Linear, dense, fast, host};

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
    /// One product: patches do not overlap, and GPUs take far longer over a convolution with a kernel that large.
    Portable {
        project: Linear,
        patch: usize,
    },
    Fast(Arc<dyn Entrance>),
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
            let offset = host(positions.clone() + constants.clone());
            let project = dense(kernel.flatten(1, 3), None);
            Form::Fast(PatchEmbedding { patch, project, offset }.pack(compute.precision))
        } else {
            Form::Portable { project: Linear::new(kernel.flatten(1, 3), None, compute.precision), patch }
        };
        Self { form, positions, constants }
    }

    /// An image `[B, 3, H, W]` to tokens `[B, 1 + patches, C]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<3> {
        match &self.form {
            Form::Fast(op) => fast::apply(op.clone(), false, x, None::<Tensor<1>>),
            Form::Portable { project, patch } => {
                tokens(project, *patch, x) + (self.positions.clone() + self.constants.clone()).unsqueeze()
            }
        }
    }

    /// What an added image `[1, 3, H, W]` adds to the tokens, `[1 + patches, C]`.
    pub fn linear_part(&self, image: Tensor<4>) -> Tensor<2> {
        match &self.form {
            Form::Fast(op) => {
                let (shape, device) = (image.dims(), image.device());
                let tokens = op.linear_part(&host(image), &shape);
                Tensor::from_data(TensorData::new(tokens, self.positions.dims()), &device)
            }
            Form::Portable { project, patch } => tokens(project, *patch, image).squeeze_dim(0),
        }
    }

    /// The same with something added to every image's tokens, `[1 + patches, C]`.
    #[must_use]
    pub fn with_added(&self, tokens: Tensor<2>) -> Self {
        // Positions first, as they would be read from a checkpoint that this was exported to.
        let positions = self.positions.clone() + tokens;
        let form = match &self.form {
            Form::Fast(op) => Form::Fast(op.with_offset(host(positions.clone() + self.constants.clone()))),
            portable @ Form::Portable { .. } => portable.clone(),
        };
        Self { form, positions, constants: self.constants.clone() }
    }
}

/// Tokens of the patches row by row, behind a class token of zeros.
fn tokens(project: &Linear, patch: usize, x: Tensor<4>) -> Tensor<3> {
    let [batch, channels, height, width] = x.dims();
    let [down, across] = [height / patch, width / patch];
    let x = x.narrow(2, 0, down * patch).narrow(3, 0, across * patch);
    // [B, down, across, C, patch, patch]
    let patches = x.reshape([batch, channels, down, patch, across, patch]).permute([0, 2, 4, 1, 3, 5]);
    let patches = project.forward(patches.reshape([batch, down * across, channels * patch * patch]));
    let class_token = Tensor::zeros([batch, 1, patches.dims()[2]], &patches.device().without_autodiff());
    Tensor::cat(vec![class_token, patches], 1)
}
