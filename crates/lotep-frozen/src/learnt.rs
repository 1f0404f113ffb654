//! Stretches of a residual network whose every weight is learnt: convolutions with batch norms behind them.
//!
//! Where the batch's own statistics normalise, nothing can be folded into a kernel. The values of all weights come as the
//! operation's flat learnable input: of each convolution in turn, that on the shortcut last, the kernel `[outputs, inputs,
//! side, side]`, and the norm's scale and shift, `[outputs]` each.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use lotep_kernels::batch_norm::{self, Around, Moments, Norm};
use lotep_kernels::conv::{Conv, Shape};
use lotep_kernels::correlation::kernel_gradient;
use lotep_kernels::gemm::{Activation, Add, Masked, Multiply, Store};
use lotep_kernels::memory::uncleared;
use lotep_kernels::stem::pooled;
use lotep_kernels::{Operand, Tiles, pool};

use crate::conv::sizes;
use crate::{Kept, LearningOp, Precision, Wanted, isa, packed};

/// A convolution without bias and the batch norm behind it.
#[derive(Clone, Debug)]
pub struct NormedConv {
    /// The convolution's geometry.
    pub shape: Shape,
    /// Added to the variance.
    pub eps: f32,
    /// Mean and variance that normalise instead of the batch's own.
    pub stored: Option<[Vec<f32>; 2]>,
}

/// `relu(convs(x') + shortcut(x'))` with `x' = x + P`, a norm behind each convolution and a ReLU between them; maps are
/// `[B, H, W, C]`.
#[derive(Clone, Debug)]
pub struct LearntResidual {
    /// One after the other.
    pub convs: Vec<NormedConv>,
    /// On the shortcut, where the shape changes.
    pub shortcut: Option<NormedConv>,
}

/// `max_pool(relu(norm(conv(x))))`: images `[B, 3, H, W]` to maps `[B, H/4, W/4, C]`.
#[derive(Clone, Debug)]
pub struct LearntStem {
    /// The convolution.
    pub conv: NormedConv,
}

/// An operation with batch norms in it.
pub trait Normalising: LearningOp {
    /// The batch's moments in the last forward pass, of each norm that went by them, in the order of the weights.
    fn moments(&self) -> Vec<Option<Moments>>;
}

impl LearntResidual {
    /// Its form for a precision.
    pub fn pack(self, precision: Precision) -> Arc<dyn Normalising> {
        packed!(self, precision)
    }

    fn packed<T: Operand>(self) -> Arc<dyn Normalising> {
        let mut places = Places::default();
        let convs = self.convs.into_iter().map(|conv| places.layer(conv)).collect();
        let shortcut = self.shortcut.map(|conv| places.layer(conv));
        Arc::new(Residual::<T> { convs, shortcut, operand: std::marker::PhantomData })
    }
}

impl LearntStem {
    /// Its form for a precision.
    pub fn pack(self, precision: Precision) -> Arc<dyn Normalising> {
        packed!(self, precision)
    }

    fn packed<T: Operand>(self) -> Arc<dyn Normalising> {
        let layer = Places::default().layer(self.conv);
        Arc::new(Stem::<T> { layer, operand: std::marker::PhantomData })
    }
}

/// Hands out places in the flat input.
#[derive(Default)]
struct Places(usize);

impl Places {
    fn next(&mut self, count: usize) -> Range<usize> {
        self.0 += count;
        self.0 - count..self.0
    }

    fn layer(&mut self, conv: NormedConv) -> Layer {
        let Shape { inputs, outputs, side, .. } = conv.shape;
        let kernel = self.next(outputs * inputs * side * side);
        let [scale, shift] = [self.next(outputs), self.next(outputs)];
        Layer { conv, kernel, scale, shift, seen: Mutex::default() }
    }
}

/// A convolution and its norm, and where their weights lie.
#[derive(Debug)]
struct Layer {
    conv: NormedConv,
    kernel: Range<usize>,
    scale: Range<usize>,
    shift: Range<usize>,
    /// The batch's moments.
    seen: Mutex<Option<Moments>>,
}

/// What a convolution gave, `[pixels, outputs]`, and what normalises it.
struct Convolved {
    z: Vec<f32>,
    mean: Vec<f32>,
    inverse: Vec<f32>,
}

impl Layer {
    fn outputs(&self) -> usize {
        self.conv.shape.outputs
    }

    fn seen(&self) -> Option<Moments> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Convolve by `conv`, which has the geometry or sees its windows as rows, and find what normalises that.
    fn run<T: Operand>(&self, conv: &Conv<T>, x: &Tiles<T>, images: usize, size: [usize; 2]) -> Convolved {
        let [height, width] = conv.shape().output(size);
        let mut z = uncleared(images * height * width * self.outputs());
        conv.run(isa(), x, images, size, &Store::new(&mut z, self.outputs()));
        let [mean, variance] = self.conv.stored.clone().unwrap_or_else(|| {
            let moments = batch_norm::moments(isa(), &z, self.outputs());
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(moments.clone());
            [moments.mean, moments.variance]
        });
        let inverse = variance.iter().map(|v| (v + self.conv.eps).sqrt().recip()).collect();
        Convolved { z, mean, inverse }
    }

    fn norm<'a>(&self, result: &'a Convolved, learnt: &'a [f32]) -> Norm<'a> {
        let Convolved { mean, inverse, .. } = result;
        Norm { mean, inverse, scale: &learnt[self.scale.clone()], shift: &learnt[self.shift.clone()] }
    }

    /// The gradient of what the convolution gave, given that of the norm's result. Those of scale and shift go to their
    /// places.
    fn before_norm<T: Operand>(
        &self,
        result: &Convolved,
        learnt: &[f32],
        grad: &Tiles<T>,
        gradient: &mut [f32],
    ) -> Tiles<T> {
        let mut out = Tiles::new(grad.rows(), grad.columns());
        let (norm, batch) = (self.norm(result, learnt), self.conv.stored.is_none());
        let (scale, shift) = gradient[self.scale.start..self.shift.end].split_at_mut(self.outputs());
        batch_norm::backward(isa(), grad, &result.z, norm, batch, [scale, shift], &mut out);
        out
    }

    fn packed<T: Operand>(&self, learnt: &[f32]) -> Conv<T> {
        Conv::new(isa(), self.conv.shape, &learnt[self.kernel.clone()])
    }
}

#[derive(Debug)]
struct Residual<T> {
    convs: Vec<Layer>,
    shortcut: Option<Layer>,
    operand: std::marker::PhantomData<T>,
}

/// Kept: the input of each convolution in the operands' precision, what each gave, their packed kernels, and a bit for
/// each value of the output.
struct Saved<T> {
    entered: Tiles<T>,
    inner: Vec<Tiles<T>>,
    results: Vec<Convolved>,
    convs: Vec<Conv<T>>,
    around: Option<(Conv<T>, Convolved)>,
    mask: Vec<u16>,
}

impl<T: Operand> Residual<T> {
    /// The size of the map behind each convolution, the input's first.
    fn sizes(&self, input: &[usize]) -> Vec<[usize; 2]> {
        sizes(self.convs.iter().map(|layer| layer.conv.shape), [input[1], input[2]])
    }
}

impl<T: Operand> Normalising for Residual<T> {
    fn moments(&self) -> Vec<Option<Moments>> {
        self.convs.iter().chain(&self.shortcut).map(Layer::seen).collect()
    }
}

impl<T: Operand> LearningOp for Residual<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        let size = self.sizes(input)[self.convs.len()];
        vec![input[0], size[0], size[1], self.convs[self.convs.len() - 1].outputs()]
    }

    fn forward(
        &self,
        x: &[f32],
        shape: &[usize],
        prompt: &[f32],
        learnt: &[f32],
        keep: bool,
    ) -> (Vec<f32>, Option<Kept>) {
        let (images, sizes, last) = (shape[0], self.sizes(shape), self.convs.len() - 1);
        let entered = Tiles::<T>::rounded(isa(), x, prompt, &[], shape[3]);
        let (mut inner, mut results, mut convs) = (Vec::<Tiles<T>>::new(), Vec::new(), Vec::new());
        for (i, layer) in self.convs.iter().enumerate() {
            let conv = layer.packed(learnt);
            let result = layer.run(&conv, inner.last().unwrap_or(&entered), images, sizes[i]);
            if i < last {
                let mut out = Tiles::new(images * sizes[i + 1][0] * sizes[i + 1][1], layer.outputs());
                batch_norm::relu(isa(), &result.z, layer.norm(&result, learnt), &mut out);
                inner.push(out);
            }
            results.push(result);
            convs.push(conv);
        }
        let around = self.shortcut.as_ref().map(|layer| {
            let conv = layer.packed(learnt);
            let result = layer.run(&conv, &entered, images, sizes[0]);
            (conv, result)
        });
        let mut out = uncleared(results[last].z.len());
        let columns = self.convs[last].outputs();
        let mut mask = vec![0; if keep { out.len() / columns * columns.div_ceil(16) } else { 0 }];
        let with_prompt: Vec<f32>;
        let beside = match self.shortcut.as_ref().zip(around.as_ref()) {
            Some((layer, (_, result))) => Around::Normed(&result.z, layer.norm(result, learnt)),
            None if prompt.is_empty() => Around::Stream(x),
            None => {
                with_prompt = x.iter().zip(prompt.iter().cycle()).map(|(x, p)| x + p).collect();
                Around::Stream(&with_prompt)
            }
        };
        let norm = self.convs[last].norm(&results[last], learnt);
        batch_norm::join(isa(), &results[last].z, norm, beside, &mut out, &mut mask);
        let kept = || Box::new(Saved { entered, inner, results, convs, around, mask }) as Kept;
        (out, keep.then(kept))
    }

    fn backward(
        &self,
        kept: Kept,
        shape: &[usize],
        learnt: &[f32],
        grad: &[f32],
        wanted: Wanted,
    ) -> (Vec<f32>, Vec<f32>) {
        let Saved { entered, mut inner, mut results, mut convs, around, mask } =
            *kept.downcast::<Saved<T>>().expect("its own");
        let (images, sizes, width) = (shape[0], self.sizes(shape), shape[3]);
        let mut gradient = vec![0.0; learnt.len()];
        let joined = Tiles::<T>::rounded(isa(), grad, &[], &mask, self.convs[self.convs.len() - 1].outputs());
        let mut out = uncleared(if wanted.stream { shape.iter().product() } else { 0 });
        let mut back: Option<Tiles<T>> = None;
        for (i, layer) in self.convs.iter().enumerate().rev() {
            let result = results.pop().expect("a result of each convolution");
            let upper = layer.before_norm(&result, learnt, back.as_ref().unwrap_or(&joined), &mut gradient);
            drop(result);
            let before = inner.pop();
            let (shape, of_kernel) = (layer.conv.shape, &mut gradient[layer.kernel.clone()]);
            if wanted.learnt {
                let x = before.as_ref().unwrap_or(&entered);
                kernel_gradient(isa(), shape, x, &upper, images, sizes[i], of_kernel);
            }
            let conv = convs.pop().expect("each convolution");
            if let Some(before) = before {
                let mut under = Tiles::new(before.rows(), before.columns());
                let multiply = Multiply::new(Activation::Relu, &before, &mut under);
                conv.transposed().run(isa(), &upper, images, sizes[i], false, &multiply);
                back = Some(under);
            } else if wanted.stream && self.shortcut.is_some() {
                let store = Store::new(&mut out, width);
                conv.transposed().run(isa(), &upper, images, sizes[i], false, &store);
            } else if wanted.stream {
                let masked = Masked::new(grad, &mask, &mut out, width);
                conv.transposed().run(isa(), &upper, images, sizes[i], false, &masked);
            }
        }
        if let Some((layer, (conv, result))) = self.shortcut.as_ref().zip(around) {
            let upper = layer.before_norm(&result, learnt, &joined, &mut gradient);
            if wanted.learnt {
                let of_kernel = &mut gradient[layer.kernel.clone()];
                kernel_gradient(isa(), layer.conv.shape, &entered, &upper, images, sizes[0], of_kernel);
            }
            if wanted.stream {
                let add = Add::new(&mut out, width);
                conv.transposed().run(isa(), &upper, images, sizes[0], true, &add);
            }
        }
        (out, if wanted.learnt { gradient } else { Vec::new() })
    }
}

#[derive(Debug)]
struct Stem<T> {
    layer: Layer,
    operand: std::marker::PhantomData<T>,
}

/// Kept: the images' windows in the operands' precision, what the convolution made of them, and which values won.
struct SavedStem<T> {
    windows: Tiles<T>,
    result: Convolved,
    winners: Vec<u16>,
}

impl<T: Operand> Stem<T> {
    /// The convolution as a product of windows, which are single pixels then.
    fn flat(&self) -> Shape {
        let Shape { inputs, outputs, side, .. } = self.layer.conv.shape;
        Shape { inputs: inputs * side * side, outputs, side: 1, stride: 1, padding: 0 }
    }
}

impl<T: Operand> Normalising for Stem<T> {
    fn moments(&self) -> Vec<Option<Moments>> {
        vec![self.layer.seen()]
    }
}

impl<T: Operand> LearningOp for Stem<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        let [height, width] = pooled(self.layer.conv.shape.output([input[2], input[3]]));
        vec![input[0], height, width, self.layer.outputs()]
    }

    fn forward(
        &self,
        x: &[f32],
        shape: &[usize],
        prompt: &[f32],
        learnt: &[f32],
        keep: bool,
    ) -> (Vec<f32>, Option<Kept>) {
        assert!(prompt.is_empty(), "images have their prompt already");
        let (images, size) = (shape[0], [shape[2], shape[3]]);
        let windows = pool::windows::<T>(isa(), x, images, size, self.layer.conv.shape);
        let inner = self.layer.conv.shape.output(size);
        let conv = Conv::new(isa(), self.flat(), &learnt[self.layer.kernel.clone()]);
        let result = self.layer.run(&conv, &windows, images, inner);
        let mut out = uncleared(self.output_shape(shape).iter().product());
        let norm = self.layer.norm(&result, learnt);
        let winners = pool::forward(isa(), &result.z, norm, images, inner, keep, &mut out);
        (out, keep.then(|| Box::new(SavedStem { windows, result, winners }) as Kept))
    }

    fn backward(
        &self,
        kept: Kept,
        shape: &[usize],
        learnt: &[f32],
        grad: &[f32],
        wanted: Wanted,
    ) -> (Vec<f32>, Vec<f32>) {
        let SavedStem { windows, result, winners } = *kept.downcast::<SavedStem<T>>().expect("its own");
        let (images, size) = (shape[0], [shape[2], shape[3]]);
        let inner = self.layer.conv.shape.output(size);
        let mut gradient = vec![0.0; learnt.len()];
        let mut behind = Tiles::<T>::new(images * inner[0] * inner[1], self.layer.outputs());
        pool::backward(isa(), &winners, grad, images, inner, &mut behind);
        let upper = self.layer.before_norm(&result, learnt, &behind, &mut gradient);
        if wanted.learnt {
            let of_kernel = &mut gradient[self.layer.kernel.clone()];
            kernel_gradient(isa(), self.flat(), &windows, &upper, images, inner, of_kernel);
        } else {
            gradient.clear();
        }
        if !wanted.stream {
            return (Vec::new(), gradient);
        }
        // Few ask for that of the images: an ordinary convolution will do.
        let mut pixels = uncleared(shape.iter().product());
        let store = Store::new(&mut pixels, shape[1]);
        let conv = self.layer.packed::<T>(learnt).transposed();
        conv.run(isa(), &upper, images, size, false, &store);
        let [channels, plane] = [shape[1], size[0] * size[1]];
        let place = |i: usize| (i / (channels * plane) * plane + i % plane) * channels + i / plane % channels;
        ((0..pixels.len()).map(|i| pixels[place(i)]).collect(), gradient)
    }
}
