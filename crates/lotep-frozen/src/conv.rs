//! A frozen convolution, packed for either direction.

use std::sync::OnceLock;

use lotep_kernels::Operand;
use lotep_kernels::conv::{Conv, ConvBackward, Shape};

use crate::isa;

/// A convolution's weights as they come.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its geometry.
    pub shape: Shape,
    /// `[outputs, inputs, side, side]`
    pub weight: Vec<f32>,
    /// `[outputs]`; may be empty.
    pub bias: Vec<f32>,
}

/// The size of the map behind each of some convolutions, one after another; the input's first.
pub(crate) fn sizes(shapes: impl Iterator<Item = Shape>, input: [usize; 2]) -> Vec<[usize; 2]> {
    let mut sizes = vec![input];
    for shape in shapes {
        sizes.push(shape.output(sizes[sizes.len() - 1]));
    }
    sizes
}

/// A frozen convolution with its bias; the input gradient is packed at the first backward pass.
#[derive(Debug)]
pub(crate) struct FrozenConv<T> {
    pub(crate) forward: Conv<T>,
    pub(crate) bias: Vec<f32>,
    backward: OnceLock<ConvBackward<T>>,
}

impl<T: Operand> FrozenConv<T> {
    pub(crate) fn new(kernel: Kernel) -> Self {
        let forward = Conv::new(isa(), kernel.shape, &kernel.weight);
        Self { forward, bias: kernel.bias, backward: OnceLock::new() }
    }

    pub(crate) fn backward(&self) -> &ConvBackward<T> {
        self.backward.get_or_init(|| self.forward.transposed())
    }

    pub(crate) fn outputs(&self) -> usize {
        self.forward.shape().outputs
    }
}
