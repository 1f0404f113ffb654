//! Residual blocks one after another, the stream between them in tiles.
//!
//! What a block puts out is rounded once, with the next one's prompt in it, and is then both the operand of its products
//! and what goes around them: nobody reads it in f32. In bfloat16 precision the stream between blocks therefore is
//! bfloat16, backwards too, as in PyTorch's own bfloat16 modes; in f32 precision it is f32. At a chain's ends it is f32 in
//! either, so that a chain's blocks one by one, as chains of one, put out the same to the bit.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use lotep_kernels::gemm::Join;
use lotep_kernels::memory::uncleared;
use lotep_kernels::{Operand, Tiles, norm, stream, thin};

use crate::residual::{Behind, Kind, Link, Packed};
use crate::thin::factors_gradients;
use crate::{Kept, Wanted, isa};

/// Blocks one after another, each entered with a prompt of its own or none: maps are `[B, H, W, C]`.
///
/// Kept, of each block: a bit for each value that it puts out (whether its last ReLU let it through), and in the
/// operands' precision each convolution's input but the first one's, or in their place the block's entrance
/// ([`Keep::Entrances`]).
pub trait Chain: Debug + Send + Sync {
    /// The shape that it makes of its input's.
    fn output_shape(&self, input: &[usize]) -> Vec<usize>;

    /// A prompt of so many columns as the stream lies, for many batches.
    ///
    /// # Panics
    /// It is none, or prepared.
    fn prepare(&self, prompt: &Prompt<'_>, columns: usize) -> Prepared;

    /// Whether a prompt was prepared by a chain of this precision.
    fn takes(&self, prepared: &Prepared) -> bool;

    /// Compute from `x`, of `shape`; of `prompts` there are as many as blocks.
    fn forward(
        &self,
        x: &[f32],
        shape: &[usize],
        prompts: &[Prompt<'_>],
        keep: Keep,
    ) -> (Vec<f32>, Option<Kept>);

    /// The gradient of the input, of its `shape`, and those of what the prompts are made of, the same ones (the values of whole
    /// ones are not asked for again); what is not wanted, or was not there, is empty.
    fn backward(
        &self,
        kept: Kept,
        shape: &[usize],
        prompts: &[Prompt<'_>],
        grad: &[f32],
        wanted: Wanted,
    ) -> (Vec<f32>, Vec<[Vec<f32>; 2]>);
}

/// What is added to a map as it enters a block: `[H, W, C]`, the same for all samples.
///
/// It is rounded to the operands' precision first, as the stream is that it joins.
#[derive(Clone, Copy, Debug)]
pub enum Prompt<'a> {
    /// Nothing.
    None,
    /// Its values.
    Whole(&'a [f32]),
    /// A product, which is nowhere whole in f32, nor, between blocks, is its gradient: for a prompt of a thousandth as many
    /// values those would be passes over memory for nothing.
    Product {
        /// `[H · W, rank]`
        pixels: &'a [f32],
        /// `[rank, C]`
        channels: &'a [f32],
        /// Of both.
        rank: usize,
    },
    /// What [`Chain::prepare`] made of one, in a chain that [takes](Chain::takes) it.
    Prepared(&'a Prepared),
}

/// A prompt as the stream of a chain lies, in its precision.
#[derive(Clone)]
pub struct Prepared(Arc<dyn Any + Send + Sync>);

impl Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prepared")
    }
}

impl<'a> Prompt<'a> {
    /// Its rows where it has them already.
    ///
    /// # Panics
    /// A chain of another precision prepared it.
    fn prepared<T: Operand>(&self) -> Option<&'a Tiles<T>> {
        let Self::Prepared(Prepared(made)) = self else { return None };
        Some(made.downcast_ref().expect("a prompt for a chain of this precision"))
    }

    /// Its rows, of so many columns, as the stream lies; none where there is nothing to make.
    fn tiles<T: Operand>(&self, columns: usize) -> Option<Tiles<T>> {
        match *self {
            Self::None | Self::Prepared(_) => None,
            Self::Whole(values) => Some(Tiles::rounded(isa(), values, &[], &[], columns)),
            Self::Product { pixels, channels, rank } => {
                let mut tiles = Tiles::new(pixels.len() / rank, columns);
                thin::product_in_tiles(isa(), pixels, channels, rank, &mut tiles);
                Some(tiles)
            }
        }
    }

    /// Its gradient's parts, given the sum over the samples.
    fn gradient(&self, summed: Vec<f32>) -> [Vec<f32>; 2] {
        let Self::Product { pixels, channels, rank } = *self else { return [summed, Vec::new()] };
        factors_gradients([pixels, channels], rank, &summed, Wanted { stream: true, learnt: true })
    }

    /// Take its gradient's parts out of that of the stream, which goes on behind a ReLU's mask.
    fn take<T: Operand>(&self, behind: &mut Tiles<T>, mask: &[u16], values: usize) -> [Vec<f32>; 2] {
        if let Self::Product { pixels, channels, rank } = *self {
            return stream::take_factors(isa(), behind, mask, [pixels, channels], rank);
        }
        let mut whole = uncleared(values);
        stream::take_prompt(isa(), behind, mask, &mut whole);
        [whole, Vec::new()]
    }
}

/// What a chain keeps for its backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: there will be none.
    Nothing,
    /// What it needs.
    All,
    /// Each block's entrance instead, from which it computes the rest again, block by block.
    Entrances,
}

/// Chain blocks; if `pooled`, what the last one puts out is averaged over its pixels to `[B, C]`.
///
/// # Panics
/// There are none, or they are of different precisions.
pub fn chain<'a>(blocks: impl IntoIterator<Item = &'a Link>, pooled: bool) -> Arc<dyn Chain> {
    let (mut f32s, mut bf16s) = (Vec::new(), Vec::new());
    for block in blocks {
        match &block.0 {
            Kind::F32(block) => f32s.push(block.clone()),
            Kind::Bf16(block) => bf16s.push(block.clone()),
        }
    }
    assert!(f32s.is_empty() != bf16s.is_empty(), "a chain of blocks of one precision");
    if bf16s.is_empty() {
        Arc::new(Blocks { blocks: f32s, pooled })
    } else {
        Arc::new(Blocks { blocks: bf16s, pooled })
    }
}

#[derive(Debug)]
struct Blocks<T> {
    blocks: Vec<Arc<Packed<T>>>,
    pooled: bool,
}

/// Of a block.
struct Saved<T> {
    inside: Inside<T>,
    mask: Vec<u16>,
}

enum Inside<T> {
    Inner(Vec<Tiles<T>>),
    Entrance(Tiles<T>),
}

fn pixels(size: [usize; 2]) -> usize {
    size[0] * size[1]
}

impl<T: Operand> Blocks<T> {
    /// Of each block, the sizes of its maps.
    fn sizes(&self, shape: &[usize]) -> Vec<Vec<[usize; 2]>> {
        let mut size = [shape[1], shape[2]];
        let sizes = |block: &Arc<Packed<T>>| {
            let sizes = block.sizes(size);
            size = sizes[sizes.len() - 1];
            sizes
        };
        self.blocks.iter().map(sizes).collect()
    }
}

impl<T: Operand> Chain for Blocks<T> {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        let columns = self.blocks[self.blocks.len() - 1].outputs();
        if self.pooled {
            return vec![input[0], columns];
        }
        let sizes = self.sizes(input);
        let last = sizes.last().and_then(|sizes| sizes.last()).expect("a chain has blocks");
        vec![input[0], last[0], last[1], columns]
    }

    fn prepare(&self, prompt: &Prompt<'_>, columns: usize) -> Prepared {
        Prepared(Arc::new(prompt.tiles::<T>(columns).expect("a prompt to make")))
    }

    fn takes(&self, prepared: &Prepared) -> bool {
        prepared.0.is::<Tiles<T>>()
    }

    fn forward(
        &self,
        x: &[f32],
        shape: &[usize],
        prompts: &[Prompt<'_>],
        keep: Keep,
    ) -> (Vec<f32>, Option<Kept>) {
        assert_eq!(prompts.len(), self.blocks.len(), "a prompt, or none, for each block");
        let (images, sizes) = (shape[0], self.sizes(shape));
        let made = prompts[0].tiles::<T>(shape[3]);
        let first = prompts[0].prepared().or(made.as_ref());
        let mut stream = Some(Tiles::<T>::entered(isa(), x, first, &[], shape[3]));
        let mut out = Vec::new();
        let mut kept = Vec::new();
        for (l, (block, sizes)) in self.blocks.iter().zip(&sizes).enumerate() {
            let entered = stream.take().expect("what the block before put out");
            let inner = block.inner(&entered, images, sizes);
            let around = block.around(&entered, images, sizes);
            let around = around.as_ref().unwrap_or(&entered);
            let from = inner.last().unwrap_or(&entered);
            let (rows, columns) = (images * pixels(sizes[sizes.len() - 1]), block.outputs());
            let bits = if keep == Keep::Nothing { 0 } else { rows * columns.div_ceil(16) };
            let mut mask = vec![0; bits];
            if let Some(prompt) = prompts.get(l + 1) {
                let made = prompt.tiles::<T>(columns);
                let prompt = prompt.prepared().or(made.as_ref());
                assert!(
                    prompt.is_none_or(|prompt| prompt.rows() * images == rows),
                    "a prompt of another size"
                );
                let next = stream.insert(Tiles::new(rows, columns));
                let join = Join::tiles(around, block.bias(), next).mask(&mut mask);
                let join = join.prompt(prompt);
                block.finish(from, images, sizes, &join);
            } else {
                out = uncleared(rows * columns);
                let join = Join::rows(around, block.bias(), &mut out).mask(&mut mask);
                block.finish(from, images, sizes, &join);
            }
            let inside = match keep {
                Keep::Nothing => None,
                Keep::All => Some(Inside::Inner(inner)),
                Keep::Entrances => Some(Inside::Entrance(entered)),
            };
            kept.extend(inside.map(|inside| Saved { inside, mask }));
        }
        if self.pooled {
            out = stream::mean_rows(isa(), &out, images, self.blocks[self.blocks.len() - 1].outputs());
        }
        (out, (keep != Keep::Nothing).then(|| Box::new(kept) as Kept))
    }

    fn backward(
        &self,
        kept: Kept,
        shape: &[usize],
        prompts: &[Prompt<'_>],
        grad: &[f32],
        wanted: Wanted,
    ) -> (Vec<f32>, Vec<[Vec<f32>; 2]>) {
        let mut kept = *kept.downcast::<Vec<Saved<T>>>().expect("its own");
        let (images, all_sizes) = (shape[0], self.sizes(shape));
        let width = |l: usize| if l == 0 { shape[3] } else { self.blocks[l - 1].outputs() };
        let mut stream = Vec::new();
        let mut learnt = vec![<[Vec<f32>; 2]>::default(); self.blocks.len()];
        let prompted = |prompt: &Prompt<'_>| wanted.learnt && !matches!(prompt, Prompt::None);
        // Below the first prompt nothing needs a gradient, unless the input does.
        let first = if wanted.stream { Some(0) } else { prompts.iter().position(prompted) };
        let Some(first) = first else { return (stream, learnt) };
        let (mask, columns) = (&kept[kept.len() - 1].mask, width(self.blocks.len()));
        let mut upper = if self.pooled {
            let last = all_sizes.last().and_then(|sizes| sizes.last()).expect("a chain has blocks");
            stream::spread_rows(isa(), grad, pixels(*last), mask, columns)
        } else {
            Tiles::<T>::rounded(isa(), grad, &[], mask, columns)
        };
        for l in (first..self.blocks.len()).rev() {
            let (block, sizes, width) = (&self.blocks[l], &all_sizes[l], width(l));
            let saved = kept.pop().expect("something of each block");
            let prompted = prompted(&prompts[l]);
            let inner = match saved.inside {
                Inside::Inner(inner) => inner,
                Inside::Entrance(entered) => block.inner(&entered, images, sizes),
            };
            let size = pixels(sizes[0]) * width;
            let Some(below) = kept.last() else {
                stream = uncleared(images * size);
                block.backward(&upper, inner, images, sizes, Behind::Rows(&mut stream));
                if prompted {
                    let mut summed = uncleared(size);
                    norm::sum_samples(isa(), &stream, &mut summed);
                    learnt[l] = prompts[l].gradient(summed);
                }
                break;
            };
            let mut behind = Tiles::new(images * pixels(sizes[0]), width);
            // A prompt's gradient is that in front of the ReLU's mask.
            let mask: &[u16] = if prompted { &[] } else { &below.mask };
            block.backward(&upper, inner, images, sizes, Behind::Tiles(&mut behind, mask));
            if prompted {
                learnt[l] = prompts[l].take(&mut behind, &below.mask, size);
            }
            upper = behind;
        }
        if !wanted.stream {
            stream = Vec::new();
        }
        (stream, learnt)
    }
}

#[cfg(test)]
mod tests {
    use lotep_kernels::conv::Shape;

    use super::*;
    use crate::{Kernel, Precision, ResidualBlock};

    /// Repeatable values of order one.
    fn values(count: usize, seed: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|i| ((i * 7 + seed * 13) as f32 * 0.37).sin() * scale).collect()
    }

    fn kernel(inputs: usize, outputs: usize, side: usize, stride: usize, seed: usize) -> Kernel {
        let shape = Shape { inputs, outputs, side, stride, padding: side / 2 };
        let count = inputs * side * side;
        let scale = (2.0 / count as f32).sqrt();
        Kernel { shape, weight: values(outputs * count, seed, scale), bias: values(outputs, seed + 1, 0.3) }
    }

    const IMAGES: usize = 3;
    const SIZE: [usize; 2] = [7, 6];
    const CHANNELS: [usize; 5] = [20, 20, 36, 36, 40];

    /// Four blocks: either kind, with and without a shortcut, strided and not, channels that fill no line.
    fn blocks(precision: Precision) -> Vec<Link> {
        let [a, b, c, d, e] = CHANNELS;
        let plans = [
            (vec![kernel(a, b, 3, 1, 1), kernel(b, b, 3, 1, 3)], None),
            (
                vec![kernel(b, 9, 1, 1, 5), kernel(9, 9, 3, 2, 7), kernel(9, c, 1, 1, 9)],
                Some(kernel(b, c, 1, 2, 11)),
            ),
            (vec![kernel(c, 9, 1, 1, 13), kernel(9, 9, 3, 1, 15), kernel(9, d, 1, 1, 17)], None),
            (vec![kernel(d, e, 3, 2, 19), kernel(e, e, 3, 1, 21)], Some(kernel(d, e, 1, 2, 23))),
        ];
        let pack = |(convs, shortcut)| ResidualBlock { convs, shortcut }.pack(precision).block;
        plans.into_iter().map(pack).collect()
    }

    /// Pixels where each block is entered.
    const PIXELS: [usize; 4] = [42, 42, 12, 12];

    fn shape() -> Vec<usize> {
        vec![IMAGES, SIZE[0], SIZE[1], CHANNELS[0]]
    }

    const RANK: usize = 2;

    /// How a block is prompted.
    #[derive(Clone, Copy)]
    enum Form {
        None,
        Whole,
        Product,
    }
    use Form::{None as Bare, Product, Whole};

    /// The parts of prompts that make some entrances negative.
    fn prompts(forms: [Form; 4]) -> Vec<[Vec<f32>; 2]> {
        let prompt = |(l, form)| match form {
            Bare => [Vec::new(), Vec::new()],
            Whole => [values(PIXELS[l] * CHANNELS[l], 31 + l, 0.7), Vec::new()],
            Product => [values(PIXELS[l] * RANK, 51 + l, 0.7), values(RANK * CHANNELS[l], 61 + l, 0.7)],
        };
        forms.into_iter().enumerate().map(prompt).collect()
    }

    fn view([first, second]: &[Vec<f32>; 2]) -> Prompt<'_> {
        match [first.is_empty(), second.is_empty()] {
            [true, _] => Prompt::None,
            [_, true] => Prompt::Whole(first),
            [..] => Prompt::Product { pixels: first, channels: second, rank: RANK },
        }
    }

    fn views(prompts: &[[Vec<f32>; 2]]) -> Vec<Prompt<'_>> {
        prompts.iter().map(view).collect()
    }

    fn input() -> Vec<f32> {
        values(shape().iter().product(), 41, 1.0).iter().map(|v| v.max(0.0)).collect()
    }

    const EVERYTHING: Wanted = Wanted { stream: true, learnt: true };

    /// The result, and the gradients of the input and of the prompts, of a loss that weighs the results.
    fn outcome(precision: Precision, pooled: bool, keep: Keep, forms: [Form; 4]) -> [Vec<f32>; 2] {
        let (links, prompts) = (blocks(precision), prompts(forms));
        let chain = chain(&links, pooled);
        let (out, kept) = chain.forward(&input(), &shape(), &views(&prompts), keep);
        assert_eq!(out.len(), chain.output_shape(&shape()).iter().product::<usize>());
        let grad = values(out.len(), 43, 1.0);
        let (stream, learnt) = chain.backward(kept.unwrap(), &shape(), &views(&prompts), &grad, EVERYTHING);
        for (grad, prompt) in learnt.iter().zip(&prompts) {
            assert_eq!(grad.each_ref().map(Vec::len), prompt.each_ref().map(Vec::len));
        }
        [out, [stream, learnt.concat().concat()].concat()]
    }

    fn relative(found: &[f32], expected: &[f32]) -> f64 {
        assert_eq!(found.len(), expected.len());
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        norm(&mut found.iter().zip(expected).map(|(f, e)| f - e)) / norm(&mut expected.iter().copied())
    }

    const ALL: [Form; 4] = [Product, Whole, Product, Whole];

    /// What a chain puts out is what its blocks do one by one, to the bit in either precision; so are its gradients in
    /// f32. In bfloat16 a block alone gives its gradient in f32, where a prompt's is summed and a shortcut's added; where
    /// a rounding so falls differently, those below do. At most the two differ like computations with independent
    /// roundings of each of 12 products' gradients and each of 4 blocks', by `√(2 · 16) · 2^-10.3`, 0.45 % in the mean
    /// square; the bound is three times that.
    #[test]
    fn a_chain_is_its_blocks_one_by_one() {
        for precision in [Precision::F32, Precision::Bf16] {
            // (Factors' gradients are summed in another order where a chain is entered.)
            const FORMS: [Form; 4] = [Whole, Bare, Whole, Whole];
            let (links, prompts) = (blocks(precision), prompts(FORMS));
            let (mut x, mut at) = (input(), shape());
            let mut steps = Vec::new();
            for (link, prompt) in links.iter().zip(&prompts) {
                let one = chain([link], false);
                let (out, kept) = one.forward(&x, &at, &[view(prompt)], Keep::All);
                let after = one.output_shape(&at);
                steps.push((one, kept.unwrap(), std::mem::replace(&mut at, after)));
                x = out;
            }
            let mut grad = values(x.len(), 43, 1.0);
            let mut learnt = Vec::new();
            for ((one, kept, shape), prompt) in steps.into_iter().zip(&prompts).rev() {
                let (stream, mut own) = one.backward(kept, &shape, &[view(prompt)], &grad, EVERYTHING);
                grad = stream;
                learnt.insert(0, own.remove(0).concat());
            }
            let [out, grads] = outcome(precision, false, Keep::All, FORMS);
            assert_eq!(out, x, "{precision:?}");
            let expected = [grad, learnt.concat()].concat();
            let error = relative(&grads, &expected);
            match precision {
                Precision::F32 => assert!(grads == expected, "{error}"),
                Precision::Bf16 => assert!(error > 0.0 && error < 1.35e-2, "{error}"),
            }
        }
    }

    #[test]
    fn what_is_computed_again_is_the_same() {
        for precision in [Precision::F32, Precision::Bf16] {
            for pooled in [false, true] {
                let kept = outcome(precision, pooled, Keep::All, ALL);
                assert_eq!(outcome(precision, pooled, Keep::Entrances, ALL), kept, "{precision:?} {pooled}");
            }
        }
    }

    #[test]
    fn threads_change_nothing() {
        for precision in [Precision::F32, Precision::Bf16] {
            let [one, three] = [1, 3].map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| outcome(precision, true, Keep::All, ALL))
            });
            assert_eq!(one, three, "{precision:?}");
        }
    }

    /// Only what is wanted is given, and it is the same.
    #[test]
    fn nothing_unwanted_is_given() {
        let (links, prompts) = (blocks(Precision::F32), prompts([Bare, Bare, Product, Bare]));
        let (chain, prompts) = (chain(&links, true), views(&prompts));
        let backward = |wanted| {
            let (out, kept) = chain.forward(&input(), &shape(), &prompts, Keep::All);
            chain.backward(kept.unwrap(), &shape(), &prompts, &values(out.len(), 43, 1.0), wanted)
        };
        let (stream, learnt) = backward(EVERYTHING);
        assert!(!stream.is_empty());
        assert_eq!(backward(Wanted { stream: false, learnt: true }), (Vec::new(), learnt));
        let none = vec![<[Vec<f32>; 2]>::default(); 4];
        assert_eq!(backward(Wanted { stream: true, learnt: false }), (stream, none.clone()));
        assert_eq!(backward(Wanted { stream: false, learnt: false }), (Vec::new(), none));
        assert!(chain.forward(&input(), &shape(), &prompts, Keep::Nothing).1.is_none());
    }

    /// The slope along a direction, by central differences, is the gradient's product with it: of the input and of each
    /// prompt, of each of its factors where it has two. The loss is made of pieces that are linear, so that only the few gates
    /// that a step flips, and rounding (some 1e-7 of each value, over a step of 3e-4), keep them apart.
    #[test]
    fn gradients_are_slopes() {
        const STEP: f32 = 3e-4;
        let links = blocks(Precision::F32);
        for pooled in [false, true] {
            let chain = chain(&links, pooled);
            let prompts = prompts(ALL);
            let loss = |x: &[f32], prompts: &[[Vec<f32>; 2]]| -> f64 {
                let (out, _) = chain.forward(x, &shape(), &views(prompts), Keep::Nothing);
                let weights = values(out.len(), 43, 1.0);
                out.iter().zip(&weights).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum()
            };
            let [_, grads] = outcome(Precision::F32, pooled, Keep::All, ALL);
            let (stream, mut learnt) = grads.split_at(input().len());
            let along = |of: &[f32], direction: &[f32]| -> f64 {
                of.iter().zip(direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum()
            };
            let size = |of: &[f32]| along(of, of).sqrt();
            let stepped = |from: &[f32], direction: &[f32], by: f32| -> Vec<f32> {
                from.iter().zip(direction).map(|(v, d)| v + by * d).collect()
            };
            // Along the gradient itself, where the slope is its length.
            let unit = |grad: &[f32]| {
                let length = size(grad) as f32;
                grad.iter().map(|g| g / length).collect::<Vec<f32>>()
            };
            let direction = unit(stream);
            let [ahead, back] = [STEP, -STEP].map(|by| loss(&stepped(&input(), &direction, by), &prompts));
            let slope = (ahead - back) / f64::from(2.0 * STEP);
            assert!((slope / size(stream) - 1.0).abs() < 1e-2, "input: {slope}, not {}", size(stream));
            for (l, part) in [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (3, 0)] {
                let (grad, rest) = learnt.split_at(prompts[l][part].len());
                learnt = rest;
                let direction = unit(grad);
                let [ahead, back] = [STEP, -STEP].map(|by| {
                    let mut prompts = prompts.clone();
                    prompts[l][part] = stepped(&prompts[l][part], &direction, by);
                    loss(&input(), &prompts)
                });
                let slope = (ahead - back) / f64::from(2.0 * STEP);
                assert!((slope / size(grad) - 1.0).abs() < 1e-2, "prompt {l}: {slope}, not {}", size(grad));
            }
            assert!(learnt.is_empty());
        }
    }

    /// A product is the prompt that it makes, beforehand or not: the same results to the bit, the same gradient of the input, and
    /// those of its factors are what the whole prompt's gradient makes them.
    #[test]
    fn a_product_is_its_whole() {
        for precision in [Precision::F32, Precision::Bf16] {
            let chain = chain(&blocks(precision), false);
            let factors = prompts([Product; 4]);
            let columns = |l: usize| factors[l][1].len() / RANK;
            let whole = |l: usize| {
                let mut out = vec![0.0; PIXELS[l] * columns(l)];
                thin::product(isa(), &factors[l][0], &factors[l][1], RANK, &mut out);
                [out, Vec::new()]
            };
            let wholes: Vec<_> = (0..4).map(whole).collect();
            let [factored, whole] = [&factors, &wholes].map(|prompts| {
                let prompts = views(prompts);
                let (out, kept) = chain.forward(&input(), &shape(), &prompts, Keep::All);
                let grad = values(out.len(), 43, 1.0);
                (out, chain.backward(kept.unwrap(), &shape(), &prompts, &grad, EVERYTHING))
            });
            assert_eq!(factored.0, whole.0, "{precision:?}");
            let prepare = |(l, prompt): (usize, &Prompt<'_>)| chain.prepare(prompt, columns(l));
            let prepared: Vec<_> = views(&factors).iter().enumerate().map(prepare).collect();
            let prepared: Vec<_> = prepared.iter().map(Prompt::Prepared).collect();
            assert_eq!(
                chain.forward(&input(), &shape(), &prepared, Keep::Nothing).0,
                whole.0,
                "{precision:?}"
            );
            assert_eq!(factored.1.0, whole.1.0, "{precision:?}");
            for (l, (found, whole)) in factored.1.1.iter().zip(&whole.1.1).enumerate() {
                let expected = view(&factors[l]).gradient(whole[0].clone());
                for (found, expected) in found.iter().zip(&expected) {
                    let error = relative(found, expected);
                    assert!(error < 1e-6, "{precision:?}, block {l}: {error}");
                }
            }
        }
    }
}
