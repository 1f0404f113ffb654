//! A frozen convolution by itself, and with something added to its weight that is learnt.

use std::fmt::Debug;
use std::sync::Arc;

use lotep_kernels::conv::{Conv, Shape};
use lotep_kernels::correlation::kernel_gradient;
use lotep_kernels::gemm::{self, Add, Matrix, Rounded, Store};
use lotep_kernels::thin::{self, Added};
use lotep_kernels::{Operand, Tiles};

use crate::conv::FrozenConv;
use crate::{FrozenOp, Kept, LearningOp, Wanted, isa};

/// A convolution of a fused block as an operation of its own, on maps `[B, H, W, C]`: what the block is made of while
/// something is learnt inside it. The packed weights are the fused block's.
pub trait Convolution: FrozenOp {
    /// With an update added to its weight.
    fn updated(self: Arc<Self>, update: UpdateForm) -> Arc<dyn LearningOp>;
}

/// How the weight of a convolution is updated. The values come as the operation's flat learnable input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateForm {
    /// `y += up · conv(x, down)` of this rank: `down` `[rank, inputs, side, side]`, then `up` as `[rank, outputs]`.
    Thin(usize),
    /// `y += conv(x, kernel)`: `[outputs, inputs, side, side]`.
    Kernel,
}

impl<T: Operand> FrozenOp for FrozenConv<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        let [height, width] = self.forward.shape().output([input[1], input[2]]);
        vec![input[0], height, width, self.outputs()]
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        let x = Tiles::<T>::rounded(isa(), x, prompt, &[], shape[3]);
        let mut out = vec![0.0; self.output_shape(shape).iter().product()];
        let store = Store::new(&mut out, self.outputs()).bias(&self.bias);
        self.forward.run(isa(), &x, shape[0], [shape[1], shape[2]], &store);
        (out, keep.then(|| Box::new(()) as Kept))
    }

    fn backward(&self, _kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        let upper = Tiles::<T>::rounded(isa(), grad, &[], &[], self.outputs());
        let mut out = vec![0.0; shape.iter().product()];
        let store = Store::new(&mut out, shape[3]);
        FrozenConv::backward(self).run(isa(), &upper, shape[0], [shape[1], shape[2]], false, &store);
        out
    }
}

impl<T: Operand> Convolution for FrozenConv<T> {
    fn updated(self: Arc<Self>, update: UpdateForm) -> Arc<dyn LearningOp> {
        Arc::new(Updated { conv: self, update })
    }
}

#[derive(Debug)]
struct Updated<T> {
    conv: Arc<FrozenConv<T>>,
    update: UpdateForm,
}

/// Kept: the input in the operands' precision, and what `down` gave.
struct Saved<T> {
    x: Tiles<T>,
    thin: Vec<f32>,
}

impl<T: Operand> Updated<T> {
    /// The geometry of the learnt convolution.
    fn shape(&self) -> Shape {
        let shape = self.conv.forward.shape();
        match self.update {
            UpdateForm::Thin(rank) => Shape { outputs: rank, ..shape },
            UpdateForm::Kernel => shape,
        }
    }

    /// The kernel of the learnt convolution, and `up` where there is one.
    fn parts<'a>(&self, learnt: &'a [f32]) -> (&'a [f32], &'a [f32]) {
        let Shape { inputs, outputs, side, .. } = self.shape();
        learnt.split_at(outputs * inputs * side * side)
    }
}

impl<T: Operand> LearningOp for Updated<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        self.conv.output_shape(input)
    }

    fn forward(
        &self,
        x: &[f32],
        shape: &[usize],
        prompt: &[f32],
        learnt: &[f32],
        keep: bool,
    ) -> (Vec<f32>, Option<Kept>) {
        let (images, size, columns) = (shape[0], [shape[1], shape[2]], self.conv.outputs());
        let (kernel, up) = self.parts(learnt);
        let learnt = Conv::<T>::new(isa(), self.shape(), kernel);
        let x = Tiles::<T>::rounded(isa(), x, prompt, &[], shape[3]);
        let mut out = vec![0.0; self.output_shape(shape).iter().product()];
        let mut thin = Vec::new();
        if let UpdateForm::Thin(rank) = self.update {
            thin = vec![0.0; out.len() / columns * rank];
            learnt.run(isa(), &x, images, size, &Store::new(&mut thin, rank));
        }
        let store = Store::new(&mut out, columns).bias(&self.conv.bias);
        let (up, rank) = match self.update {
            UpdateForm::Thin(rank) => (up, rank),
            UpdateForm::Kernel => (&[][..], 0),
        };
        self.conv.forward.run(isa(), &x, images, size, &Added::new(&thin, up, rank, store));
        if self.update == UpdateForm::Kernel {
            learnt.run(isa(), &x, images, size, &Add::new(&mut out, columns));
        }
        (out, keep.then(|| Box::new(Saved { x, thin }) as Kept))
    }

    fn backward(
        &self,
        kept: Kept,
        shape: &[usize],
        learnt: &[f32],
        grad: &[f32],
        wanted: Wanted,
    ) -> (Vec<f32>, Vec<f32>) {
        let Saved { x, thin } = *kept.downcast::<Saved<T>>().expect("its own");
        let (images, size, columns) = (shape[0], [shape[1], shape[2]], self.conv.outputs());
        let (kernel, up) = self.parts(learnt);
        let upper = Tiles::<T>::rounded(isa(), grad, &[], &[], columns);
        // The gradient of what the learnt convolution gave, where that is another.
        let back = match self.update {
            UpdateForm::Thin(rank) => {
                let matrix = Matrix::<T>::of_weight(isa(), up, columns);
                let mut back = Tiles::new(upper.rows(), rank);
                gemm::run(isa(), &upper, &matrix, &Store::tiles(&mut back));
                Some(back)
            }
            UpdateForm::Kernel => None,
        };
        let mut gradient = vec![0.0; if wanted.learnt { learnt.len() } else { 0 }];
        if wanted.learnt {
            let (of_kernel, of_up) = gradient.split_at_mut(kernel.len());
            if let UpdateForm::Thin(rank) = self.update {
                thin::contract(isa(), &thin, rank, &Rounded::new(grad, columns), of_up);
            }
            let back = back.as_ref().unwrap_or(&upper);
            kernel_gradient(isa(), self.shape(), &x, back, images, size, of_kernel);
        }
        if !wanted.stream {
            return (Vec::new(), gradient);
        }
        drop(x);
        let mut out = vec![0.0; shape.iter().product()];
        let store = Store::new(&mut out, shape[3]);
        self.conv.backward().run(isa(), &upper, images, size, false, &store);
        let learnt = Conv::<T>::new(isa(), self.shape(), kernel).transposed();
        learnt.run(isa(), back.as_ref().unwrap_or(&upper), images, size, true, &Add::new(&mut out, shape[3]));
        (out, gradient)
    }
}
