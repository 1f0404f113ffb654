//! The parts of an inverted bottleneck around its convolutions of one pixel, as operations of their own.

use std::sync::Arc;

use lotep_kernels::depthwise::{Depthwise, Rows};
use lotep_kernels::gemm::{Multiply, Store};
use lotep_kernels::{Operand, Tiles};

use super::{Activated, Gated, Packed, SILU};
use crate::{FrozenOp, Kept, isa};

/// What is in front of `expand`, by itself.
#[derive(Debug)]
pub(super) struct First<T> {
    pub(super) block: Arc<Packed<T>>,
    /// Factors that change nothing: rows of one kind become those of another as the results of a convolution do.
    pub(super) ones: Depthwise,
}

impl<T: Operand> FrozenOp for First<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        let [_, [height, width], _] = self.block.sizes(input);
        vec![input[0], height, width, input[3]]
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        let (images, [_, middle, _], c) = (shape[0], self.block.sizes(shape), shape[3]);
        let Activated { out: first, before } = self.block.first(x, shape, prompt, keep);
        let mut out = vec![0.0; first.rows() * c];
        self.ones.run(isa(), &first, images, middle, &Store::new(&mut out, c));
        (out, before.map(|before| Box::new(before) as Kept))
    }

    fn backward(&self, kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        let before = *kept.downcast::<Tiles<T>>().expect("its own");
        let (images, [from, _, _], c) = (shape[0], self.block.sizes(shape), shape[3]);
        let mut narrow = Tiles::new(before.rows(), c);
        let multiply = Multiply::new(self.block.entrance, &before, &mut narrow);
        let down = self.block.down.as_ref().unwrap_or(&self.ones);
        down.backward(isa(), &Rows::new(grad, c), images, from, &multiply);
        let mut out = vec![0.0; shape.iter().product()];
        self.block.pre_scale.backward(isa(), &narrow, images, from, &Store::new(&mut out, c));
        out
    }
}

/// What is between `expand` and `reduce`, by itself.
#[derive(Debug)]
pub(super) struct Middle<T> {
    pub(super) block: Arc<Packed<T>>,
    /// As in [`First`].
    pub(super) ones: Depthwise,
}

impl<T: Operand> Middle<T> {
    /// Sizes of the map that enters and of the one that leaves.
    fn sizes(&self, shape: &[usize]) -> [[usize; 2]; 2] {
        let from = [shape[1], shape[2]];
        [from, self.block.depthwise.shape().output(from)]
    }
}

impl<T: Operand> FrozenOp for Middle<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        let [_, to] = self.sizes(input);
        vec![input[0], to[0], to[1], input[3]]
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        let (images, [from, to], wide) = (shape[0], self.sizes(shape), shape[3]);
        let mut second = Activated::<T>::new(x.len() / wide, wide, keep);
        let pixels = Rows::new(x, wide).prompt(prompt);
        self.ones.run(isa(), &pixels, images, from, &second.epilogue(SILU, &[]));
        let (gated, kept) = self.block.middle(second.out, images, [from, to], keep);
        let mut out = vec![0.0; gated.rows() * wide];
        self.ones.run(isa(), &gated, images, to, &Store::new(&mut out, wide));
        let kept = second.before.zip(kept).map(|both| Box::new(both) as Kept);
        (out, kept)
    }

    fn backward(&self, kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        let (second, gated) = *kept.downcast::<(Tiles<T>, Gated<T>)>().expect("its own");
        let (images, [from, to], wide) = (shape[0], self.sizes(shape), shape[3]);
        let product = if self.block.early.is_some() {
            let mut product = Tiles::new(gated.before.rows(), wide);
            let multiply = Multiply::new(SILU, &gated.before, &mut product);
            self.ones.run(isa(), &Rows::new(grad, wide), images, to, &multiply);
            product
        } else {
            Tiles::rounded(isa(), grad, &[], &[], wide)
        };
        let back = self.block.middle_backward(product, gated, images, to);
        let mut wider = Tiles::<T>::new(second.rows(), wide);
        let multiply = Multiply::new(SILU, &second, &mut wider);
        self.block.depthwise.backward(isa(), &back, images, from, &multiply);
        let mut out = vec![0.0; shape.iter().product()];
        self.ones.run(isa(), &wider, images, from, &Store::new(&mut out, wide));
        out
    }
}

/// The means of 2 × 2 pixels, by themselves.
#[derive(Debug)]
pub(super) struct Means(pub(super) Depthwise);

impl FrozenOp for Means {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        let [height, width] = self.0.shape().output([input[1], input[2]]);
        vec![input[0], height, width, input[3]]
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        let (size, c) = ([shape[1], shape[2]], shape[3]);
        let mut out = vec![0.0; self.output_shape(shape).iter().product()];
        let pixels = Rows::new(x, c).prompt(prompt);
        self.0.run(isa(), &pixels, shape[0], size, &Store::new(&mut out, c));
        (out, keep.then(|| Box::new(()) as Kept))
    }

    fn backward(&self, _kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        let (size, c) = ([shape[1], shape[2]], shape[3]);
        let mut out = vec![0.0; shape.iter().product()];
        self.0.backward(isa(), &Rows::new(grad, c), shape[0], size, &Store::new(&mut out, c));
        out
    }
}
