//! CoAtNet's inverted bottleneck with squeeze and excitation, and its entrance.

use std::sync::Arc;

use lotep_kernels::depthwise::{Depthwise, Rows};
use lotep_kernels::excite::{self, Behind};
use lotep_kernels::gemm::{Activate, Activation, Add, Multiply, Residual, Rounded, Store};
use lotep_kernels::{Buffer, Operand, Tiles};

use super::{FrozenConv, FrozenLinear, FrozenOp, Kept, isa};

const SILU: Activation = Activation::Silu;

/// On maps `[B, H, W, C]`, with `x' = x + P` and `f` = SiLU:
/// `h = f(depthwise(f(expand(f(scale · x' + shift)))))`, `shortcut(x') + reduce(h · gate)` with
/// `gate = σ(excite(f(squeeze(mean(h)))))`.
#[derive(Debug)]
pub(crate) struct MbConv<T> {
    /// A batch norm in front of the branch: a factor a channel, as a convolution of one pixel.
    pub(crate) pre_scale: Depthwise,
    pub(crate) pre_shift: Vec<f32>,
    pub(crate) expand: FrozenLinear<T>,
    pub(crate) depthwise: Depthwise,
    pub(crate) bias: Vec<f32>,
    pub(crate) squeeze: FrozenLinear<T>,
    pub(crate) excite: FrozenLinear<T>,
    pub(crate) reduce: FrozenLinear<T>,
    /// On the shortcut, where the map is halved.
    pub(crate) means: Option<Depthwise>,
    /// On the shortcut, where the channels change.
    pub(crate) shortcut: Option<FrozenLinear<T>>,
}

/// Kept for each pixel: what the three SiLU are applied to (C and E before the stride, E behind it) in the operands'
/// precision; and for each image the gates and the squeezed means before their SiLU.
struct Saved<T> {
    before: [Tiles<T>; 3],
    squeezed: Tiles<T>,
    gate: Vec<f32>,
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

impl<T: Operand> MbConv<T> {
    /// Sizes of the maps that enter and leave.
    fn sizes(&self, shape: &[usize]) -> [[usize; 2]; 2] {
        let size = [shape[1], shape[2]];
        [size, self.depthwise.shape().output(size)]
    }

    /// The gates `[B, E]` of means `[B, E]`, and what the SiLU between was applied to.
    fn gate(&self, means: &[f32]) -> (Vec<f32>, Tiles<T>) {
        let wide = self.squeeze.matrix().depth();
        let images = means.len() / wide;
        let mut squeezed = Tiles::new(images, self.squeeze.outputs());
        let mut inner = Tiles::new(images, self.squeeze.outputs());
        let activate = Activate::new(SILU, self.squeeze.bias(), &mut inner).keep(&mut squeezed);
        self.squeeze.forward(&Rounded::new(means, wide), &activate);
        let mut gate = vec![0.0; means.len()];
        self.excite.forward(&inner, &Store::new(&mut gate, wide).bias(self.excite.bias()));
        for v in &mut gate {
            *v = sigmoid(*v);
        }
        (gate, squeezed)
    }

    /// `shortcut(x + P)`, unless it is `x + P` itself.
    fn around(&self, x: &[f32], shape: &[usize], prompt: &[f32]) -> Option<Buffer> {
        let (images, [from, to], c) = (shape[0], self.sizes(shape), shape[3]);
        let rows = images * to[0] * to[1];
        let pixels = Rows::new(x, c).prompt(prompt);
        let Some(linear) = &self.shortcut else {
            return self.means.as_ref().map(|means| {
                let mut out = Buffer::new(rows * c);
                means.run(isa(), &pixels, images, from, &Store::new(&mut out, c));
                out
            });
        };
        let narrow = match &self.means {
            Some(means) => {
                let mut narrow = Tiles::new(rows, c);
                means.run(isa(), &pixels, images, from, &Store::tiles(&mut narrow));
                narrow
            }
            None => Tiles::rounded(isa(), x, prompt, &[], c),
        };
        let mut out = Buffer::new(rows * linear.outputs());
        linear.forward(&narrow, &Store::new(&mut out, linear.outputs()));
        Some(out)
    }
}

impl<T: Operand> FrozenOp for MbConv<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        let [_, size] = self.sizes(input);
        vec![input[0], size[0], size[1], self.reduce.outputs()]
    }

    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>) {
        let (images, [from, to], c) = (shape[0], self.sizes(shape), shape[3]);
        let (wide, pixels) = (self.expand.outputs(), to[0] * to[1]);
        let [outer, inner] = [images * from[0] * from[1], images * pixels];
        let mut before =
            keep.then(|| [Tiles::new(outer, c), Tiles::new(outer, wide), Tiles::new(inner, wide)]);
        let mut first = Tiles::new(outer, c);
        let mut epilogue = Activate::new(SILU, &self.pre_shift, &mut first);
        if let Some(before) = &mut before {
            epilogue = epilogue.keep(&mut before[0]);
        }
        self.pre_scale.run(isa(), &Rows::new(x, c).prompt(prompt), images, from, &epilogue);
        let mut second = Tiles::new(outer, wide);
        let mut epilogue = Activate::new(SILU, self.expand.bias(), &mut second);
        if let Some(before) = &mut before {
            epilogue = epilogue.keep(&mut before[1]);
        }
        self.expand.forward(&first, &epilogue);
        drop(first);
        let mut third = Tiles::new(inner, wide);
        let mut epilogue = Activate::new(SILU, &self.bias, &mut third);
        if let Some(before) = &mut before {
            epilogue = epilogue.keep(&mut before[2]);
        }
        self.depthwise.run(isa(), &second, images, from, &epilogue);
        drop(second);
        let mut means = vec![0.0; images * wide];
        excite::sums(isa(), &third, None, &mut means);
        for v in &mut means {
            *v /= pixels as f32;
        }
        let (gate, squeezed) = self.gate(&means);
        let mut gated = Tiles::new(inner, wide);
        excite::scale(isa(), &third, &gate, &[], None, &mut gated);
        drop(third);
        let columns = self.reduce.outputs();
        let mut out = vec![0.0; inner * columns];
        let around = self.around(x, shape, prompt);
        let residual = match &around {
            Some(around) => Residual::new(around, &[], &[], &mut out, columns),
            None => Residual::new(x, prompt, &[], &mut out, columns),
        };
        self.reduce.forward(&gated, &residual);
        (out, before.map(|before| Box::new(Saved { before, squeezed, gate }) as Kept))
    }

    fn backward(&self, kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32> {
        let Saved { before: [first, second, third], squeezed, gate } =
            *kept.downcast::<Saved<T>>().expect("its own");
        let (images, [from, to], c) = (shape[0], self.sizes(shape), shape[3]);
        let (wide, columns, pixels) = (self.expand.outputs(), self.reduce.outputs(), to[0] * to[1]);
        let upper = Tiles::<T>::rounded(isa(), grad, &[], &[], columns);
        let mut gated = Tiles::new(images * pixels, wide);
        self.reduce.backward(&upper, &Store::tiles(&mut gated));
        // The gates' gradient, through the two layers, comes back to every pixel by the mean.
        let mut slopes = vec![0.0; images * wide];
        let times = Behind { before: &third, function: SILU };
        excite::sums(isa(), &gated, Some(times), &mut slopes);
        for (slope, gate) in slopes.iter_mut().zip(&gate) {
            *slope *= gate * (1.0 - gate);
        }
        let mut inner = Tiles::new(images, self.squeeze.outputs());
        self.excite.backward(&Rounded::new(&slopes, wide), &Multiply::new(SILU, &squeezed, &mut inner));
        let mut means = vec![0.0; images * wide];
        self.squeeze.backward(&inner, &Store::new(&mut means, wide));
        for v in &mut means {
            *v /= pixels as f32;
        }
        let mut back = Tiles::new(images * pixels, wide);
        excite::scale(isa(), &gated, &gate, &means, Some(times), &mut back);
        drop((gated, third));
        let mut wider = Tiles::new(second.rows(), wide);
        self.depthwise.backward(isa(), &back, images, from, &Multiply::new(SILU, &second, &mut wider));
        drop((back, second));
        let mut narrow = Tiles::new(first.rows(), c);
        self.expand.backward(&wider, &Multiply::new(SILU, &first, &mut narrow));
        drop((wider, first));
        let mut out = vec![0.0; shape.iter().product()];
        // The shortcut first, then the branch on top.
        let skipped: Option<Buffer> = self.shortcut.as_ref().map(|linear| {
            let mut skipped = Buffer::new(images * pixels * c);
            linear.backward(&upper, &Store::new(&mut skipped, c));
            skipped
        });
        let skipped = skipped.as_deref().unwrap_or(grad);
        if let Some(means) = &self.means {
            means.backward(isa(), &Rows::new(skipped, c), images, from, &Store::new(&mut out, c));
            self.pre_scale.backward(isa(), &narrow, images, from, &Add::new(&mut out, c));
        } else {
            let residual = Residual::new(skipped, &[], &[], &mut out, c);
            self.pre_scale.backward(isa(), &narrow, images, from, &residual);
        }
        out
    }
}

/// `conv2(SiLU(conv1(x) + bias + offset))`: images as maps `[B, H, W, 3]` to maps `[B, H/2, W/2, C]`.
///
/// Kept: what the SiLU is applied to, in the operands' precision.
#[derive(Clone, Debug)]
pub(crate) struct ConvStem<T> {
    pub(crate) first: Arc<FrozenConv<T>>,
    pub(crate) second: Arc<FrozenConv<T>>,
    /// One sample's map behind the first convolution, what a folded image prompt adds; may be empty.
    pub(crate) offset: Vec<f32>,
}

impl<T: Operand> ConvStem<T> {
    /// What an added image `[H, W, 3]` adds behind the first convolution.
    pub(crate) fn linear_part(&self, image: &[f32], size: [usize; 2]) -> Vec<f32> {
        let shape = self.first.forward.shape();
        let [h, w] = shape.output(size);
        let mut out = vec![0.0; h * w * shape.outputs];
        let x = Tiles::rounded(isa(), image, &[], &[], shape.inputs);
        self.first.forward.run(isa(), &x, 1, size, &Store::new(&mut out, shape.outputs));
        out
    }
}

impl<T: Operand> FrozenOp for ConvStem<T> {
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
        let mut activate = Activate::new(SILU, &self.first.bias, &mut inner).offset(&self.offset);
        if let Some(before) = &mut before {
            activate = activate.keep(before);
        }
        self.first.forward.run(isa(), &entered, images, size, &activate);
        let mut out = vec![0.0; self.output_shape(shape).iter().product()];
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
