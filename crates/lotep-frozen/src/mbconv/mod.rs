//! CoAtNet's inverted bottleneck with squeeze and excitation, and its entrance.

mod parts;

use std::sync::Arc;

use lotep_kernels::depthwise::{Depthwise, Rows, Shape};
use lotep_kernels::excite::{self, Behind};
use lotep_kernels::gemm::{Activate, Activation, Add, Multiply, Residual, Rounded, Store};
use lotep_kernels::memory::uncleared;
use lotep_kernels::{Operand, Tiles, conv};

use self::parts::{First, Means, Middle};
use crate::conv::{FrozenConv, Kernel};
use crate::linear::{Dense, FrozenLinear};
use crate::transformer::means;
use crate::{Convolution, FrozenOp, Kept, Precision, isa, packed};

const SILU: Activation = Activation::Silu;

/// On maps `[B, H, W, C]`, with `x' = x + P` and `f` = SiLU:
/// `h = f(depthwise(f(expand(down(f₀(scale · x' + shift))))))`, `shortcut(x') + reduce(h · gate)` with
/// `gate = σ(excite(f₁(squeeze(mean(h)))))`.
///
/// An early gate is made of and multiplied to what the depthwise convolution gives, before its norm:
/// `h = f(s · gate · depthwise(…) + t)`, `shortcut(x') + reduce(h)`.
#[derive(Debug)]
pub struct MbConv {
    /// In front of the branch, `[C]`.
    pub scale: Vec<f32>,
    /// Likewise.
    pub shift: Vec<f32>,
    /// `f₀`.
    pub entrance: Activation,
    /// Whether the map is halved.
    pub halved: Option<Halving>,
    /// From C to E channels.
    pub expand: Dense,
    /// With a stride of 2 where that halves the map.
    pub depthwise: Depthwise,
    /// Its bias, `[E]`; none where the gate is early.
    pub bias: Vec<f32>,
    /// From E to few.
    pub squeeze: Dense,
    /// `f₁`.
    pub middle: Activation,
    /// And back to E.
    pub excite: Dense,
    /// `s` and `t` of an early gate, `[E]` each.
    pub early: Option<[Vec<f32>; 2]>,
    /// From E to the output's channels.
    pub reduce: Dense,
    /// On the shortcut, where the channels change.
    pub shortcut: Option<Dense>,
}

/// What halves a map's sides on the branch; the shortcut takes the means of 2 × 2 pixels in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halving {
    /// The depthwise convolution.
    Stride,
    /// `down`, means of 2 × 2 pixels.
    Means,
}

/// A block, and its parts one by one, which share their packed weights with it: it is
/// `shortcut(means(x)) + reduce(middle(expand(first(x))))`.
#[derive(Debug)]
pub struct PackedMbConv {
    /// All of it.
    pub block: Arc<dyn FrozenOp>,
    /// In front of `expand`.
    pub first: Arc<dyn FrozenOp>,
    /// To the wide channels.
    pub expand: Arc<dyn Convolution>,
    /// From there to `reduce`: both activations, the depthwise convolution and the gate.
    pub middle: Arc<dyn FrozenOp>,
    /// To the output's channels.
    pub reduce: Arc<dyn Convolution>,
    /// On the shortcut, where the map is halved.
    pub means: Option<Arc<dyn FrozenOp>>,
    /// On the shortcut, where the channels change.
    pub shortcut: Option<Arc<dyn Convolution>>,
}

impl MbConv {
    /// Pack it.
    pub fn pack(self, precision: Precision) -> PackedMbConv {
        packed!(self, precision)
    }

    fn packed<T: Operand>(self) -> PackedMbConv {
        let factors = |factors: &[f32]| Depthwise::new(Shape { channels: factors.len(), ..ONE }, factors);
        let inputs = self.scale.len();
        let wide = self.expand.outputs;
        let block = Arc::new(Packed {
            pre_scale: factors(&self.scale),
            pre_shift: self.shift,
            entrance: self.entrance,
            down: (self.halved == Some(Halving::Means)).then(|| means(inputs)),
            expand: pointwise::<T>(self.expand),
            depthwise: self.depthwise,
            bias: self.bias,
            squeeze: FrozenLinear::new(self.squeeze),
            middle: self.middle,
            excite: FrozenLinear::new(self.excite),
            early: self.early.map(|[scale, shift]| (factors(&scale), shift)),
            reduce: pointwise(self.reduce),
            means: self.halved.map(|_| Arc::new(Means(means(inputs)))),
            shortcut: self.shortcut.map(pointwise),
        });
        PackedMbConv {
            first: Arc::new(First { block: block.clone(), ones: factors(&vec![1.0; inputs]) }),
            expand: block.expand.clone(),
            middle: Arc::new(Middle { block: block.clone(), ones: factors(&vec![1.0; wide]) }),
            reduce: block.reduce.clone(),
            means: block.means.clone().map(|means| means as Arc<dyn FrozenOp>),
            shortcut: block.shortcut.clone().map(|conv| conv as Arc<dyn Convolution>),
            block,
        }
    }
}

/// A layer as a convolution of one pixel.
fn pointwise<T: Operand>(dense: Dense) -> Arc<FrozenConv<T>> {
    let Dense { weight, bias, outputs } = dense;
    let shape = conv::Shape { inputs: weight.len() / outputs, outputs, side: 1, stride: 1, padding: 0 };
    Arc::new(FrozenConv::new(Kernel { shape, weight, bias }))
}

/// A factor a channel is a convolution of one pixel.
const ONE: Shape = Shape { channels: 1, side: 1, stride: 1, padding: 0 };

#[derive(Debug)]
struct Packed<T> {
    pre_scale: Depthwise,
    pre_shift: Vec<f32>,
    entrance: Activation,
    /// On the branch, where means halve the map.
    down: Option<Depthwise>,
    expand: Arc<FrozenConv<T>>,
    depthwise: Depthwise,
    bias: Vec<f32>,
    squeeze: FrozenLinear<T>,
    middle: Activation,
    excite: FrozenLinear<T>,
    /// The norm behind an early gate.
    early: Option<(Depthwise, Vec<f32>)>,
    reduce: Arc<FrozenConv<T>>,
    /// On the shortcut, where the map is halved.
    means: Option<Arc<Means>>,
    shortcut: Option<Arc<FrozenConv<T>>>,
}

/// Kept for each pixel: what the first two activations are applied to (C and E before the map is halved, or E behind it)
/// in the operands' precision.
struct Saved<T> {
    before: [Tiles<T>; 2],
    gated: Gated<T>,
}

/// Kept for each pixel behind the depthwise convolution: what the third activation is applied to (E), and where the gate
/// is early what it multiplies; and for each image the gates and the squeezed means before their activation.
struct Gated<T> {
    before: Tiles<T>,
    early: Option<Tiles<T>>,
    squeezed: Tiles<T>,
    gate: Vec<f32>,
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

impl<T: Operand> Packed<T> {
    /// Sizes of the maps that enter the block and its depthwise convolution, and that leave.
    fn sizes(&self, shape: &[usize]) -> [[usize; 2]; 3] {
        let from = [shape[1], shape[2]];
        let middle = self.down.as_ref().map_or(from, |down| down.shape().output(from));
        [from, middle, self.depthwise.shape().output(middle)]
    }

    /// The gates `[B, E]` of each image's pixels, and what the activation between was applied to.
    fn gate(&self, x: &Tiles<T>, images: usize) -> (Vec<f32>, Tiles<T>) {
        let wide = self.squeeze.inputs();
        let mut means = vec![0.0; images * wide];
        excite::sums(isa(), x, None, &mut means);
        self.divide(&mut means, x.rows() / images.max(1));
        let mut squeezed = Tiles::new(images, self.squeeze.outputs());
        let mut inner = Tiles::new(images, self.squeeze.outputs());
        let activate = Activate::new(self.middle, self.squeeze.bias(), &mut inner).keep(&mut squeezed);
        self.squeeze.forward(&Rounded::new(&means, wide), &activate);
        let mut gate = vec![0.0; means.len()];
        self.excite.forward(&inner, &Store::new(&mut gate, wide).bias(self.excite.bias()));
        for v in &mut gate {
            *v = sigmoid(*v);
        }
        (gate, squeezed)
    }

    /// The gradient of the values that a gate was made of and multiplied to: from `grad`, that of the product, and those
    /// values, `f(before)`; times `f'(before)` if `behind` gives it.
    fn gate_backward(
        &self,
        grad: &Tiles<T>,
        values: Behind<'_, T>,
        behind: Option<Behind<'_, T>>,
        gate: &[f32],
        squeezed: &Tiles<T>,
    ) -> Tiles<T> {
        let (wide, images) = (self.squeeze.inputs(), squeezed.rows());
        let mut slopes = vec![0.0; gate.len()];
        excite::sums(isa(), grad, Some(values), &mut slopes);
        for (slope, gate) in slopes.iter_mut().zip(gate) {
            *slope *= gate * (1.0 - gate);
        }
        let mut inner = Tiles::new(images, self.squeeze.outputs());
        let multiply = Multiply::new(self.middle, squeezed, &mut inner);
        self.excite.backward(&Rounded::new(&slopes, wide), &multiply);
        // The means bring it back to every pixel.
        let mut means = vec![0.0; gate.len()];
        self.squeeze.backward(&inner, &Store::new(&mut means, wide));
        self.divide(&mut means, grad.rows() / images.max(1));
        let mut back = Tiles::new(grad.rows(), wide);
        excite::scale(isa(), grad, gate, &means, behind, &mut back);
        back
    }

    fn divide(&self, sums: &mut [f32], pixels: usize) {
        for v in sums {
            *v /= pixels as f32;
        }
    }

    /// `shortcut(x + P)`, unless it is `x + P` itself.
    fn around(&self, x: &[f32], shape: &[usize], prompt: &[f32]) -> Option<Vec<f32>> {
        let (images, [from, _, to], c) = (shape[0], self.sizes(shape), shape[3]);
        let rows = images * to[0] * to[1];
        let pixels = Rows::new(x, c).prompt(prompt);
        let Some(conv) = &self.shortcut else {
            return self.means.as_ref().map(|means| {
                let mut out = uncleared(rows * c);
                means.0.run(isa(), &pixels, images, from, &Store::new(&mut out, c));
                out
            });
        };
        let narrow = match &self.means {
            Some(means) => {
                let mut narrow = Tiles::new(rows, c);
                means.0.run(isa(), &pixels, images, from, &Store::tiles(&mut narrow));
                narrow
            }
            None => Tiles::rounded(isa(), x, prompt, &[], c),
        };
        let mut out = uncleared(rows * conv.outputs());
        let store = Store::new(&mut out, conv.outputs()).bias(&conv.bias);
        conv.forward.run(isa(), &narrow, images, to, &store);
        Some(out)
    }

    /// What goes into `expand`.
    fn first(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> Activated<T> {
        let (images, [from, middle, _], c) = (shape[0], self.sizes(shape), shape[3]);
        let [outer, between] = [from, middle].map(|size| images * size[0] * size[1]);
        let mut first = Activated::new(outer, c, keep);
        let pixels = Rows::new(x, c).prompt(prompt);
        let epilogue = first.epilogue(self.entrance, &self.pre_shift);
        self.pre_scale.run(isa(), &pixels, images, from, &epilogue);
        if let Some(down) = &self.down {
            let mut half = Tiles::new(between, c);
            down.run(isa(), &first.out, images, from, &Store::tiles(&mut half));
            first.out = half;
        }
        first
    }

    /// What goes into `reduce`, from what the depthwise convolution reads.
    fn middle(
        &self,
        x: Tiles<T>,
        images: usize,
        [middle, to]: [[usize; 2]; 2],
        keep: bool,
    ) -> (Tiles<T>, Option<Gated<T>>) {
        let (rows, wide) = (images * to[0] * to[1], x.columns());
        let mut third = Activated::new(rows, wide, keep);
        let mut gated = Tiles::new(rows, wide);
        let (gate, squeezed);
        let mut early = None;
        if let Some((scale, shift)) = &self.early {
            let mut raw = Tiles::new(rows, wide);
            self.depthwise.run(isa(), &x, images, middle, &Store::tiles(&mut raw));
            drop(x);
            (gate, squeezed) = self.gate(&raw, images);
            excite::scale(isa(), &raw, &gate, &[], None, &mut gated);
            early = keep.then_some(raw);
            scale.run(isa(), &gated, images, to, &third.epilogue(SILU, shift));
            gated = third.out;
        } else {
            let epilogue = third.epilogue(SILU, &self.bias);
            self.depthwise.run(isa(), &x, images, middle, &epilogue);
            drop(x);
            (gate, squeezed) = self.gate(&third.out, images);
            excite::scale(isa(), &third.out, &gate, &[], None, &mut gated);
            drop(third.out);
        }
        (gated, third.before.map(|before| Gated { before, early, squeezed, gate }))
    }

    /// The gradient of what the depthwise convolution gives; `product` is that of what goes into `reduce`, or where the
    /// gate is early of what its activation is applied to.
    fn middle_backward(&self, product: Tiles<T>, kept: Gated<T>, images: usize, to: [usize; 2]) -> Tiles<T> {
        let Gated { before, early, squeezed, gate } = kept;
        if let (Some((scale, _)), Some(raw)) = (&self.early, early) {
            drop(before);
            let mut behind = Tiles::new(product.rows(), product.columns());
            scale.backward(isa(), &product, images, to, &Store::tiles(&mut behind));
            let values = Behind { before: &raw, function: Activation::Identity };
            self.gate_backward(&behind, values, None, &gate, &squeezed)
        } else {
            let values = Behind { before: &before, function: SILU };
            self.gate_backward(&product, values, Some(values), &gate, &squeezed)
        }
    }
}

/// An activation's output, and what it was applied to where the backward pass will ask for that.
struct Activated<T> {
    out: Tiles<T>,
    before: Option<Tiles<T>>,
}

impl<T: Operand> Activated<T> {
    fn new(rows: usize, columns: usize, keep: bool) -> Self {
        Self { out: Tiles::new(rows, columns), before: keep.then(|| Tiles::new(rows, columns)) }
    }

    fn epilogue<'a>(&'a mut self, function: Activation, bias: &'a [f32]) -> Activate<'a, T> {
        let activate = Activate::new(function, bias, &mut self.out);
        match &mut self.before {
            Some(before) => activate.keep(before),
            None => activate,
        }
    }
}

impl<T: Operand> FrozenOp for Packed<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        let [_, _, size] = self.sizes(input);
        vec![input[0], size[0], size[1], self.reduce.outputs()]
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        let (images, [_, middle, to]) = (shape[0], self.sizes(shape));
        let first = self.first(x, shape, prompt, keep);
        let mut second = Activated::new(first.out.rows(), self.expand.outputs(), keep);
        let epilogue = second.epilogue(SILU, &self.expand.bias);
        self.expand.forward.run(isa(), &first.out, images, middle, &epilogue);
        drop(first.out);
        let (gated, kept) = self.middle(second.out, images, [middle, to], keep);
        let columns = self.reduce.outputs();
        let mut out = uncleared(gated.rows() * columns);
        let around = self.around(x, shape, prompt);
        let residual = match &around {
            Some(around) => Residual::new(around, &[], &self.reduce.bias, &mut out, columns),
            None => Residual::new(x, prompt, &self.reduce.bias, &mut out, columns),
        };
        self.reduce.forward.run(isa(), &gated, images, to, &residual);
        let kept = match (first.before, second.before, kept) {
            (Some(first), Some(second), Some(gated)) => {
                Some(Box::new(Saved { before: [first, second], gated }) as Kept)
            }
            _ => None,
        };
        (out, kept)
    }

    fn backward(&self, kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        let Saved { before: [first, second], gated } = *kept.downcast::<Saved<T>>().expect("its own");
        let (images, [from, middle, to], c) = (shape[0], self.sizes(shape), shape[3]);
        let (wide, columns, pixels) = (self.expand.outputs(), self.reduce.outputs(), to[0] * to[1]);
        let upper = Tiles::<T>::rounded(isa(), grad, &[], &[], columns);
        let mut product = Tiles::new(images * pixels, wide);
        let reduce = self.reduce.backward();
        if self.early.is_some() {
            let multiply = Multiply::new(SILU, &gated.before, &mut product);
            reduce.run(isa(), &upper, images, to, false, &multiply);
        } else {
            reduce.run(isa(), &upper, images, to, false, &Store::tiles(&mut product));
        }
        let back = self.middle_backward(product, gated, images, to);
        let mut wider = Tiles::new(second.rows(), wide);
        self.depthwise.backward(isa(), &back, images, middle, &Multiply::new(SILU, &second, &mut wider));
        drop((back, second));
        let mut narrow = Tiles::new(first.rows(), c);
        let expand = self.expand.backward();
        if let Some(down) = &self.down {
            let mut half = Tiles::<T>::new(wider.rows(), c);
            expand.run(isa(), &wider, images, middle, false, &Store::tiles(&mut half));
            let multiply = Multiply::new(self.entrance, &first, &mut narrow);
            down.backward(isa(), &half, images, from, &multiply);
        } else {
            let multiply = Multiply::new(self.entrance, &first, &mut narrow);
            expand.run(isa(), &wider, images, middle, false, &multiply);
        }
        drop((wider, first));
        let mut out = vec![0.0; shape.iter().product()];
        // The shortcut first, then the branch on top.
        let skipped: Option<Vec<f32>> = self.shortcut.as_ref().map(|conv| {
            let mut skipped = uncleared(images * pixels * c);
            conv.backward().run(isa(), &upper, images, to, false, &Store::new(&mut skipped, c));
            skipped
        });
        let skipped = skipped.as_deref().unwrap_or(grad);
        if let Some(means) = &self.means {
            means.0.backward(isa(), &Rows::new(skipped, c), images, from, &Store::new(&mut out, c));
            self.pre_scale.backward(isa(), &narrow, images, from, &Add::new(&mut out, c));
        } else {
            let residual = Residual::new(skipped, &[], &[], &mut out, c);
            self.pre_scale.backward(isa(), &narrow, images, from, &residual);
        }
        out
    }
}

/// `conv2(SiLU(conv1(x) + bias))`: images as maps `[B, H, W, 3]` to maps `[B, H/2, W/2, C]`.
///
/// Kept: what the SiLU is applied to, in the operands' precision.
#[derive(Clone, Debug)]
pub struct ConvStem {
    /// The first convolution.
    pub first: Kernel,
    /// The second.
    pub second: Kernel,
}

impl ConvStem {
    /// Pack it.
    pub fn pack(self, precision: Precision) -> Arc<dyn FrozenOp> {
        packed!(self, precision)
    }

    fn packed<T: Operand>(self) -> Arc<dyn FrozenOp> {
        let [first, second] = [self.first, self.second].map(FrozenConv::<T>::new);
        Arc::new(PackedStem { first, second })
    }
}

#[derive(Debug)]
struct PackedStem<T> {
    first: FrozenConv<T>,
    second: FrozenConv<T>,
}

impl<T: Operand> FrozenOp for PackedStem<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        let second = self.second.forward.shape();
        let size = second.output(self.first.forward.shape().output([input[1], input[2]]));
        vec![input[0], size[0], size[1], second.outputs]
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        let (images, size) = (shape[0], [shape[1], shape[2]]);
        let conv = self.first.forward.shape();
        let middle = conv.output(size);
        let rows = images * middle[0] * middle[1];
        let entered = Tiles::<T>::rounded(isa(), x, prompt, &[], shape[3]);
        let mut before = keep.then(|| Tiles::new(rows, conv.outputs));
        let mut inner = Tiles::new(rows, conv.outputs);
        let mut activate = Activate::new(SILU, &self.first.bias, &mut inner);
        if let Some(before) = &mut before {
            activate = activate.keep(before);
        }
        self.first.forward.run(isa(), &entered, images, size, &activate);
        let mut out = uncleared(self.output_shape(shape).iter().product());
        let store = Store::new(&mut out, self.second.outputs());
        self.second.forward.run(isa(), &inner, images, middle, &store);
        (out, before.map(|before| Box::new(before) as Kept))
    }

    fn backward(&self, kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        let before = *kept.downcast::<Tiles<T>>().expect("its own");
        let (images, size) = (shape[0], [shape[1], shape[2]]);
        let middle = self.first.forward.shape().output(size);
        let upper = Tiles::<T>::rounded(isa(), grad, &[], &[], self.second.outputs());
        let mut inner = Tiles::new(before.rows(), before.columns());
        let multiply = Multiply::new(SILU, &before, &mut inner);
        self.second.backward().run(isa(), &upper, images, middle, false, &multiply);
        let mut out = vec![0.0; shape.iter().product()];
        self.first.backward().run(isa(), &inner, images, size, false, &Store::new(&mut out, shape[3]));
        out
    }
}
