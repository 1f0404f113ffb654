//! ConvNeXt's block, and what halves maps between its stages.

use std::sync::Arc;

use lotep_kernels::depthwise::{Depthwise, Rows};
use lotep_kernels::gemm::{Activate, Activation, Multiply, Residual, Rounded, Store};
use lotep_kernels::memory::uncleared;
use lotep_kernels::{Operand, Tiles, norm};

use crate::conv::{FrozenConv, Kernel};
use crate::inside::{FC1, FC2, Layout, Learnt, Step};
use crate::linear::{Dense, FrozenLinear};
use crate::{FrozenOp, Inside, Kept, LearningOp, Precision, Wanted, isa, packed};

/// `x' = x + P`, `x' + fc2(GELU(fc1(LN(depthwise(x') + bias))))` on maps `[B, H, W, C]`, the norm's scale and shift
/// inside `fc1`, the layer scale inside `fc2`.
#[derive(Debug)]
pub struct ConvNext {
    /// Padded to keep its size.
    pub depthwise: Depthwise,
    /// Its bias, `[C]`.
    pub bias: Vec<f32>,
    /// Added to the norm's variance.
    pub eps: f32,
    /// The perceptron's first layer.
    pub fc1: Dense,
    /// Its second.
    pub fc2: Dense,
}

/// A packed block.
pub struct PackedConvNext {
    /// As it is.
    pub block: Arc<dyn FrozenOp>,
    learns: Arc<dyn Learns>,
}

impl PackedConvNext {
    /// The same block with updates of its two layers, all else of [`Inside`] being nothing. The packed weights are
    /// shared.
    pub fn learning(&self, inside: Inside) -> Arc<dyn LearningOp> {
        self.learns.clone().learning(inside)
    }
}

/// A block of either precision, as [`PackedConvNext::learning`] sees it.
trait Learns: Send + Sync {
    fn learning(self: Arc<Self>, inside: Inside) -> Arc<dyn LearningOp>;
}

impl ConvNext {
    /// Pack it.
    pub fn pack(self, precision: Precision) -> PackedConvNext {
        packed!(self, precision)
    }

    fn packed<T: Operand>(self) -> PackedConvNext {
        let Self { depthwise, bias, eps, fc1, fc2 } = self;
        let [fc1, fc2] = [fc1, fc2].map(FrozenLinear::<T>::new);
        let block = Arc::new(Packed { depthwise, bias, eps, fc1, fc2 });
        PackedConvNext { learns: block.clone(), block }
    }
}

#[derive(Debug)]
struct Packed<T> {
    depthwise: Depthwise,
    bias: Vec<f32>,
    eps: f32,
    fc1: FrozenLinear<T>,
    fc2: FrozenLinear<T>,
}

/// Kept for each pixel of C channels: the normalised row (C) and the perceptron before its activation (4 C) in the
/// operands' precision, and an f32.
struct Saved<T> {
    normed: Tiles<T>,
    inverse: Vec<f32>,
    before: Tiles<T>,
    inside: SavedInside<T>,
}

/// Kept beside that for what is learnt inside: each update's `t`, and what `fc2` saw (4 C) where it is updated.
struct SavedInside<T> {
    thin: [Vec<f32>; 2],
    inner: Option<Tiles<T>>,
}

impl<T: Operand> Packed<T> {
    fn forward_updated(
        &self,
        x: &[f32],
        shape: &[usize],
        prompt: &[f32],
        learnt: Learnt<'_>,
        keep: bool,
    ) -> (Vec<f32>, Option<Kept>) {
        let (images, size, width) = (shape[0], [shape[1], shape[2]], shape[3]);
        let rows = images * size[0] * size[1];
        let mut y = uncleared(rows * width);
        let pixels = Rows::new(x, width).prompt(prompt);
        self.depthwise.run(isa(), &pixels, images, size, &Store::new(&mut y, width).bias(&self.bias));
        let (mut normed, mut inverse) = (Tiles::new(rows, width), vec![0.0; rows]);
        norm::forward(isa(), &y, &[], self.eps, &mut normed, &mut inverse);
        drop(y);
        let hidden = self.fc1.outputs();
        let mut before = keep.then(|| Tiles::new(rows, hidden));
        let mut inner = Tiles::new(rows, hidden);
        let mut activate = Activate::new(Activation::Gelu, self.fc1.bias(), &mut inner);
        if let Some(before) = &mut before {
            activate = activate.keep(before);
        }
        let thin_fc1 = self.fc1.forward_updated(learnt.update(FC1), &normed, activate);
        let mut out = uncleared(rows * width);
        let update = learnt.update(FC2);
        let residual = Residual::new(x, prompt, self.fc2.bias(), &mut out, width);
        let thin_fc2 = self.fc2.forward_updated(update, &inner, residual);
        let kept = before.map(|before| {
            let inside = SavedInside { thin: [thin_fc1, thin_fc2], inner: update.is_some().then_some(inner) };
            Box::new(Saved { normed, inverse, before, inside }) as Kept
        });
        (out, kept)
    }

    /// The gradients of the stream and of what is learnt, as far as they are wanted.
    fn backward_updated(
        &self,
        kept: Kept,
        shape: &[usize],
        learnt: Learnt<'_>,
        grad: &[f32],
        wanted: Wanted,
    ) -> (Vec<f32>, Vec<f32>) {
        let Saved { normed, inverse, before, inside } = *kept.downcast::<Saved<T>>().expect("its own");
        let SavedInside { thin: [thin_fc1, thin_fc2], inner } = inside;
        let (images, size, width) = (shape[0], [shape[1], shape[2]], shape[3]);
        let mut gradient = learnt.gradient(wanted);
        let (upper, update) = (Rounded::new(grad, width), learnt.update(FC2));
        let back = update.map(|update| {
            let inner = inner.as_ref().expect("kept where fc2 is updated");
            update.back(&upper, &thin_fc2, inner, &mut gradient)
        });
        if !learnt.goes_on(wanted, Step::Fc2) {
            return (Vec::new(), gradient);
        }
        drop(inner);
        let mut inner = Tiles::new(before.rows(), before.columns());
        let multiply = Multiply::new(Activation::Gelu, &before, &mut inner);
        self.fc2.backward_updated(update, &upper, &back.unwrap_or_default(), multiply);
        drop(before);
        let update = learnt.update(FC1);
        let back = update.map(|update| update.back(&inner, &thin_fc1, &normed, &mut gradient));
        if !wanted.stream {
            return (Vec::new(), gradient);
        }
        let mut branch = uncleared(grad.len());
        let store = Store::new(&mut branch, width);
        self.fc1.backward_updated(update, &inner, &back.unwrap_or_default(), store);
        drop(inner);
        let mut y = uncleared(grad.len());
        norm::backward(isa(), &normed, &inverse, &branch, &[], &mut y);
        let mut out = uncleared(grad.len());
        let around = Residual::new(grad, &[], &[], &mut out, width);
        self.depthwise.backward(isa(), &Rows::new(&y, width), images, size, &around);
        (out, gradient)
    }
}

impl<T: Operand> FrozenOp for Packed<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        input.to_vec()
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        self.forward_updated(x, shape, prompt, Learnt::default(), keep)
    }

    fn backward(&self, kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        let wanted = Wanted { stream: true, learnt: false };
        self.backward_updated(kept, shape, Learnt::default(), grad, wanted).0
    }
}

impl<T: Operand> Learns for Packed<T> {
    fn learning(self: Arc<Self>, inside: Inside) -> Arc<dyn LearningOp> {
        let size = |layer: &FrozenLinear<T>| [layer.inputs(), layer.outputs()];
        let layout = Layout::new(inside, [[0; 2], [0; 2], size(&self.fc1), size(&self.fc2)]);
        Arc::new(Learning { block: self, layout })
    }
}

/// The block with updates inside.
#[derive(Debug)]
struct Learning<T> {
    block: Arc<Packed<T>>,
    layout: Layout,
}

impl<T: Operand> LearningOp for Learning<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        self.block.output_shape(input)
    }

    fn forward(
        &self,
        x: &[f32],
        shape: &[usize],
        prompt: &[f32],
        learnt: &[f32],
        keep: bool,
    ) -> (Vec<f32>, Option<Kept>) {
        self.block.forward_updated(x, shape, prompt, Learnt::new(&self.layout, learnt), keep)
    }

    fn backward(
        &self,
        kept: Kept,
        shape: &[usize],
        learnt: &[f32],
        grad: &[f32],
        wanted: Wanted,
    ) -> (Vec<f32>, Vec<f32>) {
        self.block.backward_updated(kept, shape, Learnt::new(&self.layout, learnt), grad, wanted)
    }
}

/// `conv(LN(x)) + bias` on maps `[B, H, W, C]`, the norm's scale and shift inside the convolution, which is not padded.
///
/// Kept: the normalised rows in the operands' precision, and an f32 each.
#[derive(Debug)]
pub struct NormDown {
    /// Without padding.
    pub conv: Kernel,
    /// Added to the norm's variance.
    pub eps: f32,
}

impl NormDown {
    /// Pack it.
    pub fn pack(self, precision: Precision) -> Arc<dyn FrozenOp> {
        packed!(self, precision)
    }

    fn packed<T: Operand>(self) -> Arc<dyn FrozenOp> {
        Arc::new(PackedDown { conv: FrozenConv::<T>::new(self.conv), eps: self.eps })
    }
}

#[derive(Debug)]
struct PackedDown<T> {
    conv: FrozenConv<T>,
    eps: f32,
}

struct Normed<T> {
    rows: Tiles<T>,
    inverse: Vec<f32>,
}

impl<T: Operand> FrozenOp for PackedDown<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        let shape = self.conv.forward.shape();
        let [height, width] = shape.output([input[1], input[2]]);
        vec![input[0], height, width, shape.outputs]
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        let width = shape[3];
        let count = x.len() / width;
        let (mut rows, mut inverse) = (Tiles::<T>::new(count, width), vec![0.0; count]);
        norm::forward(isa(), x, prompt, self.eps, &mut rows, &mut inverse);
        let mut out = uncleared(self.output_shape(shape).iter().product());
        let store = Store::new(&mut out, self.conv.outputs()).bias(&self.conv.bias);
        self.conv.forward.run(isa(), &rows, shape[0], [shape[1], shape[2]], &store);
        (out, keep.then(|| Box::new(Normed { rows, inverse }) as Kept))
    }

    fn backward(&self, kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        let Normed { rows, inverse } = *kept.downcast::<Normed<T>>().expect("its own");
        let (width, size) = (shape[3], [shape[1], shape[2]]);
        let upper = Tiles::<T>::rounded(isa(), grad, &[], &[], self.conv.outputs());
        let mut branch = uncleared(rows.rows() * width);
        self.conv.backward().run(isa(), &upper, shape[0], size, false, &Store::new(&mut branch, width));
        let mut out = uncleared(branch.len());
        norm::backward(isa(), &rows, &inverse, &branch, &[], &mut out);
        out
    }
}
