//! The entrance of a network that cuts images into patches.

use std::sync::Arc;

use lotep_kernels::memory::uncleared;
use lotep_kernels::patches::{self, Grid};
use lotep_kernels::{Operand, Tiles, norm};

use crate::linear::{Dense, FrozenLinear};
use crate::{Entrance, FrozenOp, Kept, Precision, isa, packed};

/// `tokens = [class; patches(x + P) W] + positions`, for an image `[B, 3, H, W]`, to `[B, 1 + patches, C]`.
///
/// It is linear: nothing is kept.
///
/// Behind [`with_offset`](Entrance::with_offset), the constants are class token, positions and bias, added.
#[derive(Clone, Debug)]
pub struct PatchEmbedding {
    /// Side of a patch.
    pub patch: usize,
    /// Of the patches' pixels, `[3, patch, patch]`, without bias.
    pub project: Dense,
    /// Class token, positions and bias, added: `[1 + patches, C]`.
    pub offset: Vec<f32>,
}

impl PatchEmbedding {
    /// Pack it.
    pub fn pack(self, precision: Precision) -> Arc<dyn Entrance> {
        packed!(self, precision)
    }

    fn packed<T: Operand>(self) -> Arc<dyn Entrance> {
        let project = Arc::new(FrozenLinear::<T>::new(self.project));
        Arc::new(Packed { patch: self.patch, project, offset: self.offset })
    }
}

#[derive(Clone, Debug)]
struct Packed<T> {
    patch: usize,
    project: Arc<FrozenLinear<T>>,
    offset: Vec<f32>,
}

fn grid(shape: &[usize], patch: usize) -> Grid {
    Grid { images: shape[0], channels: shape[1], height: shape[2], width: shape[3], patch }
}

impl<T: Operand> Entrance for Packed<T> {
    fn linear_part(&self, image: &[f32], shape: &[usize]) -> Vec<f32> {
        let zeros = vec![0.0; self.offset.len()];
        let mut out = vec![0.0; shape[0] * zeros.len()];
        patches::embed(isa(), grid(shape, self.patch), image, &[], self.project.matrix(), &zeros, &mut out);
        out
    }

    fn with_offset(&self, offset: Vec<f32>) -> Arc<dyn Entrance> {
        Arc::new(Self { offset, ..self.clone() })
    }
}

impl<T: Operand> FrozenOp for Packed<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        let width = self.project.outputs();
        vec![input[0], self.offset.len() / width, width]
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        let mut out = vec![0.0; shape[0] * self.offset.len()];
        let w = self.project.matrix();
        patches::embed(isa(), grid(shape, self.patch), x, prompt, w, &self.offset, &mut out);
        (out, keep.then(|| Box::new(()) as Kept))
    }

    fn backward(&self, _kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; shape.iter().product()];
        patches::embed_backward(isa(), grid(shape, self.patch), grad, self.project.transposed(), &mut out);
        out
    }
}

/// `LN(patches(x + P) W + bias)`: images `[B, 3, H, W]` to `[B, patches, C]`, the entrance of ConvNeXt and Swin.
///
/// Kept: the normalised rows in the operands' precision, and an f32 each.
#[derive(Clone, Debug)]
pub struct PatchStem {
    /// Side of a patch.
    pub patch: usize,
    /// Of the patches' pixels, `[3, patch, patch]`.
    pub project: Dense,
    /// Scale and shift.
    pub norm: [Vec<f32>; 2],
    /// Added to the norm's variance.
    pub eps: f32,
}

impl PatchStem {
    /// Pack it.
    pub fn pack(self, precision: Precision) -> Arc<dyn FrozenOp> {
        packed!(self, precision)
    }

    fn packed<T: Operand>(self) -> Arc<dyn FrozenOp> {
        let Self { patch, project, norm, eps } = self;
        Arc::new(PackedStem { patch, project: FrozenLinear::<T>::new(project), norm, eps })
    }
}

#[derive(Debug)]
struct PackedStem<T> {
    patch: usize,
    project: FrozenLinear<T>,
    norm: [Vec<f32>; 2],
    eps: f32,
}

struct Normed<T> {
    rows: Tiles<T>,
    inverse: Vec<f32>,
}

impl<T: Operand> PackedStem<T> {
    /// Patches behind the convolution, before the norm.
    fn patches(&self, x: &[f32], shape: &[usize], prompt: &[f32]) -> Vec<f32> {
        let (grid, width) = (grid(shape, self.patch), self.project.outputs());
        let mut out = uncleared(grid.images * grid.patches() * width);
        let bias = self.project.bias().repeat(grid.patches());
        patches::embed(isa(), grid, x, prompt, self.project.matrix(), &bias, &mut out);
        out
    }
}

impl<T: Operand> FrozenOp for PackedStem<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        vec![input[0], grid(input, self.patch).patches(), self.project.outputs()]
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        let patches = self.patches(x, shape, prompt);
        let width = self.project.outputs();
        let count = patches.len() / width;
        let mut rows = keep.then(|| Tiles::<T>::new(count, width));
        let (mut out, mut inverse) = (uncleared(patches.len()), vec![0.0; count]);
        let [scale, shift] = &self.norm;
        norm::channels(isa(), &patches, [scale, shift], self.eps, rows.as_mut(), &mut out, &mut inverse);
        (out, rows.map(|rows| Box::new(Normed { rows, inverse }) as Kept))
    }

    fn backward(&self, kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        let Normed { rows, inverse } = *kept.downcast::<Normed<T>>().expect("its own");
        let mut patches = uncleared(grad.len());
        norm::channels_backward(isa(), &rows, &inverse, &self.norm[0], grad, &mut patches);
        let mut out = vec![0.0; shape.iter().product()];
        patches::embed_backward(
            isa(),
            grid(shape, self.patch),
            &patches,
            self.project.transposed(),
            &mut out,
        );
        out
    }
}
