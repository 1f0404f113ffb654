//! The entrance of a residual network.

use std::sync::Arc;

use lotep_kernels::Operand;
use lotep_kernels::Tiles;
use lotep_kernels::conv::Conv;
use lotep_kernels::gemm::Store;
use lotep_kernels::stem::{ImageConv, pooled};

use crate::conv::Kernel;
use crate::{Entrance, FrozenOp, Kept, Precision, isa, packed};

/// `max_pool(relu(conv(x + P) + bias + offset))`: images `[B, 3, H, W]` to maps `[B, H/4, W/4, C]`.
///
/// Kept: which value of each window won, a bit a tap.
///
/// The constants of [`with_offset`](Entrance::with_offset) are a map `[H/2, W/2, C]`; images for
/// [`linear_part`](Entrance::linear_part) are `[1, 3, H, W]`.
#[derive(Clone, Debug)]
pub struct Stem {
    /// The convolution.
    pub conv: Kernel,
}

impl Stem {
    /// Pack it.
    pub fn pack(self, precision: Precision) -> Arc<dyn Entrance> {
        packed!(self, precision)
    }

    fn packed<T: Operand>(self) -> Arc<dyn Entrance> {
        let conv = Arc::new(ImageConv::<T>::new(self.conv.shape, &self.conv.weight));
        Arc::new(Packed { conv, kernel: Arc::new(self.conv), offset: Vec::new() })
    }
}

#[derive(Clone, Debug)]
struct Packed<T> {
    conv: Arc<ImageConv<T>>,
    /// For its bias, and to fold images with.
    kernel: Arc<Kernel>,
    /// May be empty.
    offset: Vec<f32>,
}

impl<T: Operand> Entrance for Packed<T> {
    fn linear_part(&self, image: &[f32], shape: &[usize]) -> Vec<f32> {
        let (channels, size) = (shape[1], [shape[2], shape[3]]);
        let pixels = size[0] * size[1];
        // The fast convolution of images ends in the pooling, and this is asked once: an ordinary one will do.
        let rows: Vec<T> = (0..pixels * channels)
            .map(|i| T::from_f32(image[i % channels * pixels + i / channels]))
            .collect();
        let conv = Conv::<T>::new(isa(), self.kernel.shape, &self.kernel.weight);
        let [height, width] = conv.shape().output(size);
        let columns = conv.shape().outputs;
        let mut out = vec![0.0; height * width * columns];
        conv.run(isa(), &Tiles::from_rows(&rows, channels), 1, size, &Store::new(&mut out, columns));
        out
    }

    fn with_offset(&self, offset: Vec<f32>) -> Arc<dyn Entrance> {
        Arc::new(Self { offset, ..self.clone() })
    }
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
        let mut out = vec![0.0; self.output_shape(shape).iter().product()];
        let winners = self.conv.forward(isa(), x, size, &self.kernel.bias, &self.offset, keep, &mut out);
        (out, keep.then(|| Box::new(winners) as Kept))
    }

    fn backward(&self, kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        let winners = kept.downcast().expect("its own");
        let mut out = vec![0.0; shape.iter().product()];
        self.conv.backward(isa(), &winners, grad, [shape[0], shape[2], shape[3]], &mut out);
        out
    }
}
