//! The entrance of a residual network.

use std::sync::Arc;

use lotep_kernels::Operand;
use lotep_kernels::memory::uncleared;
use lotep_kernels::stem::{ImageConv, pooled};

use crate::conv::Kernel;
use crate::{FrozenOp, Kept, Precision, isa, packed};

/// `max_pool(relu(conv(x) + bias))`: images `[B, 3, H, W]` to maps `[B, H/4, W/4, C]`.
///
/// Kept: which value of each window won, a bit a tap.
#[derive(Clone, Debug)]
pub struct Stem {
    /// The convolution.
    pub conv: Kernel,
}

impl Stem {
    /// Pack it.
    pub fn pack(self, precision: Precision) -> Arc<dyn FrozenOp> {
        packed!(self, precision)
    }

    fn packed<T: Operand>(self) -> Arc<dyn FrozenOp> {
        let Kernel { shape, weight, bias } = self.conv;
        Arc::new(Packed { conv: ImageConv::<T>::new(shape, &weight), bias })
    }
}

#[derive(Debug)]
struct Packed<T> {
    conv: ImageConv<T>,
    bias: Vec<f32>,
}

impl<T: Operand> FrozenOp for Packed<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        let shape = self.conv.shape();
        let [height, width] = pooled(shape.output([input[2], input[3]]));
        vec![input[0], height, width, shape.outputs]
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        assert!(prompt.is_empty(), "images have their prompt already");
        let size = [shape[0], shape[2], shape[3]];
        let mut out = uncleared(self.output_shape(shape).iter().product());
        let winners = self.conv.forward(isa(), x, size, &self.bias, keep, &mut out);
        (out, keep.then(|| Box::new(winners) as Kept))
    }

    fn backward(&self, kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        let winners = kept.downcast().expect("its own");
        let mut out = vec![0.0; shape.iter().product()];
        self.conv.backward(isa(), &winners, grad, [shape[0], shape[2], shape[3]], &mut out);
        out
    }
}
