//! The entrance of a network that cuts images into patches.

use lotep_kernels::patches::{self, Grid};
use lotep_kernels::{Buffer, Operand, Tiles, norm};

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

/// `LN(patches(x + P) W + offset)`: images `[B, 3, H, W]` to `[B, patches, C]`, the entrance of ConvNeXt and Swin.
///
/// Kept: the normalised rows in the operands' precision, and an f32 each.
#[derive(Clone, Debug)]
pub(crate) struct PatchStem<T> {
    pub(crate) patch: usize,
    pub(crate) project: std::sync::Arc<FrozenLinear<T>>,
    /// What a folded image prompt adds to each patch, the bias included, `[patches, C]`; empty without one.
    pub(crate) offset: Vec<f32>,
    pub(crate) norm: [Vec<f32>; 2],
    pub(crate) eps: f32,
}

struct Normed<T> {
    rows: Tiles<T>,
    inverse: Vec<f32>,
}

impl<T: Operand> PatchStem<T> {
    fn grid(&self, shape: &[usize]) -> Grid {
        Grid { images: shape[0], channels: shape[1], height: shape[2], width: shape[3], patch: self.patch }
    }

    /// Patches behind the convolution, before the norm.
    pub(crate) fn patches(&self, x: &[f32], shape: &[usize], prompt: &[f32]) -> Buffer {
        let (grid, width) = (self.grid(shape), self.project.outputs());
        let mut out = Buffer::new(grid.images * grid.patches() * width);
        let plain: Vec<f32>;
        let offset = if self.offset.is_empty() {
            plain = self.project.bias().repeat(grid.patches());
            &plain
        } else {
            &self.offset
        };
        patches::embed(isa(), grid, x, prompt, self.project.matrix(), offset, &mut out);
        out
    }
}

impl<T: Operand> FrozenOp for PatchStem<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        vec![input[0], self.grid(input).patches(), self.project.outputs()]
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        let patches = self.patches(x, shape, prompt);
        let width = self.project.outputs();
        let count = patches.len() / width;
        let mut rows = keep.then(|| Tiles::<T>::new(count, width));
        let (mut out, mut inverse) = (vec![0.0; patches.len()], vec![0.0; count]);
        let [scale, shift] = &self.norm;
        norm::channels(isa(), &patches, [scale, shift], self.eps, rows.as_mut(), &mut out, &mut inverse);
        (out, rows.map(|rows| Box::new(Normed { rows, inverse }) as Kept))
    }

    fn backward(&self, kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        let Normed { rows, inverse } = *kept.downcast::<Normed<T>>().expect("its own");
        let mut patches = Buffer::new(grad.len());
        norm::channels_backward(isa(), &rows, &inverse, &self.norm[0], grad, &mut patches);
        let mut out = vec![0.0; shape.iter().product()];
        patches::embed_backward(isa(), self.grid(shape), &patches, self.project.transposed(), &mut out);
        out
    }
}
