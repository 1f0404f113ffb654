//! The entrance of a vision transformer.

use lotep_kernels::Operand;
use lotep_kernels::patches::{self, Grid};

use super::{FrozenLinear, FrozenOp, Kept, isa};

/// `tokens = [class; patches(x + P) W] + positions`, for an image `[B, 3, H, W]`, to `[B, 1 + patches, C]`.
///
/// It is linear: nothing is kept.
#[derive(Clone, Debug)]
pub(crate) struct PatchEmbedding<T> {
    pub(crate) patch: usize,
    pub(crate) project: std::sync::Arc<FrozenLinear<T>>,
    /// Class token, positions and bias, added: `[1 + patches, C]`.
    pub(crate) offset: Vec<f32>,
}

impl<T: Operand> PatchEmbedding<T> {
    fn grid(&self, shape: &[usize]) -> Grid {
        Grid { images: shape[0], channels: shape[1], height: shape[2], width: shape[3], patch: self.patch }
    }
}

impl<T: Operand> FrozenOp for PatchEmbedding<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        let width = self.project.outputs();
        vec![input[0], self.offset.len() / width, width]
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        let mut out = vec![0.0; shape[0] * self.offset.len()];
        let w = self.project.matrix();
        patches::embed(isa(), self.grid(shape), x, prompt, w, &self.offset, &mut out);
        (out, keep.then(|| Box::new(()) as Kept))
    }

    fn backward(&self, _kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; shape.iter().product()];
        patches::embed_backward(isa(), self.grid(shape), grad, self.project.transposed(), &mut out);
        out
    }
}
