//! A convolution whose kernel never changes, with a backward pass of its own.
//!
//! Burn's convolution keeps its input for a weight gradient that nobody asks for here, and takes the input
//! gradient as a transposed convolution (a product, then a serial scatter). With the kernel known beforehand, a
//! stride of one turns the input gradient into another plain convolution, by the kernel flipped and with its
//! channels exchanged; and nothing but the input's size has to be kept.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::Tensor;
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};

/// Convolutions of a frozen network.
#[backend_extension(Flex, Cube: cfg(any(feature = "cuda", feature = "wgpu")), Autodiff)]
pub(super) trait FrozenConv: Backend {
    /// `x` `[B, in, H, W]` with `kernel` `[out, in, k, k]`; `flipped` is the kernel as its input gradient needs it.
    fn frozen_conv(
        x: FloatTensor<Self>,
        kernel: FloatTensor<Self>,
        flipped: FloatTensor<Self>,
        stride: usize,
        padding: usize,
    ) -> FloatTensor<Self> {
        drop(flipped);
        Self::conv2d(x, kernel, None, ConvOptions::new([stride; 2], [padding; 2], [1, 1], 1))
    }
}

impl FrozenConv for Flex {}

#[cfg(feature = "cuda")]
impl FrozenConv for burn::backend::Cuda {}

#[cfg(all(feature = "wgpu", not(feature = "cuda")))]
impl FrozenConv for burn::backend::Wgpu {}

impl<B: FrozenConv, C: CheckpointStrategy> FrozenConv for Autodiff<B, C> {
    fn frozen_conv(
        x: FloatTensor<Self>,
        kernel: FloatTensor<Self>,
        flipped: FloatTensor<Self>,
        stride: usize,
        padding: usize,
    ) -> FloatTensor<Self> {
        let (kernel, flipped) = (kernel.into_primitive(), flipped.into_primitive());
        match InputGradient.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let x = x.into_primitive();
                let shape = x.shape();
                let state = State {
                    flipped: flipped.clone(),
                    kernel: kernel.clone(),
                    size: [shape[2], shape[3]],
                    stride,
                    padding,
                };
                prepared.finish(state, B::frozen_conv(x, kernel, flipped, stride, padding))
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(B::frozen_conv(x.into_primitive(), kernel, flipped, stride, padding))
            }
        }
    }
}

#[derive(Debug)]
struct InputGradient;

/// What the backward pass keeps: the frozen kernels (shared, not copied) and the input's size.
#[derive(Clone, Debug)]
struct State<T> {
    flipped: T,
    kernel: T,
    size: [usize; 2],
    stride: usize,
    padding: usize,
}

impl<B: Backend> Backward<B, 1> for InputGradient {
    type State = State<FloatTensor<B>>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let output = grads.consume::<B>(&ops.node);
        let State { flipped, kernel, size, stride, padding } = ops.state;
        let [Some(parent)] = ops.parents else { return };
        let side = kernel.shape()[2];
        let gradient = if stride == 1 && padding < side {
            B::conv2d(output, flipped, None, ConvOptions::new([1, 1], [side - 1 - padding; 2], [1, 1], 1))
        } else {
            // The rows and columns at the far end that no window reached.
            let rest =
                |axis: usize| size[axis] + 2 * padding - side - (output.shape()[2 + axis] - 1) * stride;
            let options = ConvTransposeOptions::new([stride; 2], [padding; 2], [rest(0), rest(1)], [1, 1], 1);
            B::conv_transpose2d(output, kernel, None, options)
        };
        grads.register::<B>(parent.id, gradient);
    }
}

/// Convolve with a kernel outside autodiff.
pub(super) fn frozen_conv(
    x: Tensor<4>,
    kernel: &Tensor<4>,
    flipped: &Tensor<4>,
    stride: usize,
    padding: usize,
) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as FrozenConv>::frozen_conv(
        x.into_dispatch(),
        kernel.clone().into_dispatch(),
        flipped.clone().into_dispatch(),
        stride,
        padding,
    ))
}
