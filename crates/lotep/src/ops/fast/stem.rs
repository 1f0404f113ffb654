//! The entrance of a residual network.

use lotep_kernels::gemm::{Activate, Activation};
use lotep_kernels::stem::{ImageConv, max_pool, max_pool_backward, pooled};
use lotep_kernels::{Operand, Tiles};

use super::{FrozenOp, Kept, isa};

/// `max_pool(relu(conv(x + P) + bias + offset))`: images `[B, 3, H, W]` to maps `[B, H/4, W/4, C]`.
///
/// Kept: which value of each window won, a bit a tap.
#[derive(Clone, Debug)]
pub(crate) struct Stem<T> {
    pub(crate) conv: std::sync::Arc<ImageConv<T>>,
    pub(crate) bias: Vec<f32>,
    /// One sample's map `[H/2, W/2, C]`, what a folded image prompt adds; may be empty.
    pub(crate) offset: Vec<f32>,
}

impl<T: Operand> FrozenOp for Stem<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        let shape = self.conv.shape();
        let [height, width] = pooled(shape.output([input[2], input[3]]));
        vec![input[0], height, width, shape.outputs]
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        assert!(prompt.is_empty(), "images have their prompt already");
        let (images, size, channels) = (shape[0], [shape[2], shape[3]], self.conv.shape().outputs);
        let inner = self.conv.shape().output(size);
        let mut map = Tiles::<f32>::new(images * inner[0] * inner[1], channels);
        let activate = Activate::new(Activation::Relu, &self.bias, &mut map).offset(&self.offset);
        self.conv.run(isa(), x, images, size, &activate);
        let mut out = vec![0.0; self.output_shape(shape).iter().product()];
        let winners = max_pool(isa(), &map, images, inner, keep, &mut out);
        (out, keep.then(|| Box::new(winners) as Kept))
    }

    fn backward(&self, kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        let (images, size, channels) = (shape[0], [shape[2], shape[3]], self.conv.shape().outputs);
        let winners = kept.downcast().expect("its own");
        let inner = self.conv.shape().output(size);
        let map = max_pool_backward::<T>(isa(), &winners, grad, images, inner, channels);
        let mut out = vec![0.0; shape.iter().product()];
        self.conv.backward(isa(), &map, images, size, &mut out);
        out
    }
}
