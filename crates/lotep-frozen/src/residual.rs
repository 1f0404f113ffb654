//! A residual block of convolutions.

use std::sync::Arc;

use lotep_kernels::gemm::{Activate, Activation, Add, Masked, Multiply, Residual, Store};
use lotep_kernels::memory::uncleared;
use lotep_kernels::{Buffer, Operand, Tiles};

use crate::conv::{FrozenConv, Kernel};
use crate::{Convolution, FrozenOp, Kept, Precision, isa, packed};

/// `relu(convs(x') + shortcut(x'))` with `x' = x + P`, a ReLU between the convolutions; maps are `[B, H, W, C]`.
#[derive(Clone, Debug)]
pub struct ResidualBlock {
    /// One after the other.
    pub convs: Vec<Kernel>,
    /// On the shortcut, where the shape changes.
    pub shortcut: Option<Kernel>,
}

/// A block, and its convolutions one by one, which share their packed weights with it.
#[derive(Debug)]
pub struct PackedResidual {
    /// All of it.
    pub block: Arc<dyn FrozenOp>,
    /// On the branch, without the ReLUs.
    pub convs: Vec<Arc<dyn Convolution>>,
    /// On the shortcut.
    pub shortcut: Option<Arc<dyn Convolution>>,
}

impl ResidualBlock {
    /// Pack it.
    pub fn pack(self, precision: Precision) -> PackedResidual {
        packed!(self, precision)
    }

    fn packed<T: Operand>(self) -> PackedResidual {
        let conv = |kernel| Arc::new(FrozenConv::<T>::new(kernel));
        let convs: Vec<_> = self.convs.into_iter().map(conv).collect();
        let shortcut = self.shortcut.map(conv);
        let open = |conv: &Arc<FrozenConv<T>>| conv.clone() as Arc<dyn Convolution>;
        PackedResidual {
            convs: convs.iter().map(open).collect(),
            shortcut: shortcut.as_ref().map(open),
            block: Arc::new(Packed { convs, shortcut }),
        }
    }
}

#[derive(Debug)]
struct Packed<T> {
    convs: Vec<Arc<FrozenConv<T>>>,
    shortcut: Option<Arc<FrozenConv<T>>>,
}

/// Kept: each convolution's input but the first, in the operands' precision, for where its ReLU let through; and
/// a bit for each value of the output.
struct Saved<T> {
    inner: Vec<Tiles<T>>,
    mask: Vec<u16>,
}

impl<T: Operand> Packed<T> {
    /// The size of the map behind each convolution, the input's first.
    fn sizes(&self, input: &[usize]) -> Vec<[usize; 2]> {
        let mut sizes = vec![[input[1], input[2]]];
        for conv in &self.convs {
            sizes.push(conv.forward.shape().output(sizes[sizes.len() - 1]));
        }
        sizes
    }
}

impl<T: Operand> FrozenOp for Packed<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        let size = self.sizes(input)[self.convs.len()];
        vec![input[0], size[0], size[1], self.convs[self.convs.len() - 1].outputs()]
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        let (images, sizes) = (shape[0], self.sizes(shape));
        let pixels = |size: [usize; 2]| images * size[0] * size[1];
        let entered = Tiles::<T>::rounded(isa(), x, prompt, &[], shape[3]);
        let (last, convs) = self.convs.split_last().expect("a block has convolutions");
        let mut inner: Vec<Tiles<T>> = Vec::new();
        for (conv, size) in convs.iter().zip(sizes.windows(2)) {
            let mut out = Tiles::new(pixels(size[1]), conv.outputs());
            let activate = Activate::new(Activation::Relu, &conv.bias, &mut out);
            conv.forward.run(isa(), inner.last().unwrap_or(&entered), images, size[0], &activate);
            inner.push(out);
        }
        let (columns, size) = (last.outputs(), sizes[convs.len()]);
        let rows = pixels(sizes[convs.len() + 1]);
        let mut out = uncleared(rows * columns);
        let mut mask = vec![0; if keep { rows * columns.div_ceil(16) } else { 0 }];
        let around = self.shortcut.as_ref().map(|conv| {
            let mut around = Buffer::new(rows * columns);
            let store = Store::new(&mut around, columns).bias(&conv.bias);
            conv.forward.run(isa(), &entered, images, sizes[0], &store);
            around
        });
        let residual = match &around {
            Some(around) => Residual::new(around, &[], &last.bias, &mut out, columns),
            None => Residual::new(x, prompt, &last.bias, &mut out, columns),
        };
        let from = inner.last().unwrap_or(&entered);
        last.forward.run(isa(), from, images, size, &residual.relu(&mut mask));
        (out, keep.then(|| Box::new(Saved { inner, mask }) as Kept))
    }

    fn backward(&self, kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        let Saved { mut inner, mask } = *kept.downcast::<Saved<T>>().expect("its own");
        let (images, sizes, width) = (shape[0], self.sizes(shape), shape[3]);
        let columns = self.convs[self.convs.len() - 1].outputs();
        let upper = Tiles::<T>::rounded(isa(), grad, &[], &mask, columns);
        let mut back: Option<Tiles<T>> = None;
        for (i, conv) in self.convs.iter().enumerate().skip(1).rev() {
            let before = inner.pop().expect("an input of each convolution");
            let mut out = Tiles::new(before.rows(), before.columns());
            let multiply = Multiply::new(Activation::Relu, &before, &mut out);
            let from = back.as_ref().unwrap_or(&upper);
            conv.backward().run(isa(), from, images, sizes[i], false, &multiply);
            back = Some(out);
        }
        let first = self.convs[0].backward();
        let from = back.as_ref().unwrap_or(&upper);
        let mut out = uncleared(shape.iter().product());
        if let Some(shortcut) = &self.shortcut {
            first.run(isa(), from, images, sizes[0], false, &Store::new(&mut out, width));
            shortcut.backward().run(isa(), &upper, images, sizes[0], true, &Add::new(&mut out, width));
        } else {
            first.run(isa(), from, images, sizes[0], false, &Masked::new(grad, &mask, &mut out, width));
        }
        out
    }
}
