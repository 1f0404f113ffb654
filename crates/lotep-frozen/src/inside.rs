//! What can be learnt inside a transformer block, and where it lies in the operation's flat learnable input.

use std::ops::Range;

use lotep_kernels::attention::Extra;
use lotep_kernels::conv::Shape;
use lotep_kernels::correlation::kernel_gradient;
use lotep_kernels::depthwise::Pixels;
use lotep_kernels::gemm::{self, Epilogue, Matrix, Source, Store};
use lotep_kernels::{
    Operand, Tiles, excite, norm,
    thin::{self, Added},
};

use crate::linear::FrozenLinear;
use crate::{Wanted, isa};

/// How much is learnt inside a block: keys and values that stand beside the tokens' own in the attention, low-rank
/// updates of the block's layers, `y += (x downᵀ + constant) up`, and the layers themselves.
///
/// The flat input has in this order: keys and values, each `[keys, C]`, heads side by side as in the projections; then
/// of each layer with an update `down` `[rank, in]`, `constant` `[rank]`, which layers behind a norm (`qkv`, `fc1`)
/// alone have, and `up` `[rank, out]`. Behind a norm `x` is what the norm gives before its scale and shift. Last, where
/// the layers are learnt, of each its weight `[out, in]` and its bias `[out]`, with the norm's scale and shift in them: the
/// values that the block was packed from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inside {
    /// Keys, and as many values.
    pub keys: usize,
    /// Ranks of the updates of `qkv`, `proj`, `fc1` and `fc2`; 0 for none.
    pub ranks: [usize; 4],
    /// Whether the layers are learnt, of a block with neither windows nor a map to halve.
    pub layers: bool,
}

/// The layers, by their places in [`Inside::ranks`].
pub(crate) const QKV: usize = 0;
pub(crate) const PROJ: usize = 1;
pub(crate) const FC1: usize = 2;
pub(crate) const FC2: usize = 3;

/// Where everything lies in the flat input.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// Keys and values together.
    keys_values: Range<usize>,
    updates: [Option<Places>; 4],
    /// Weight and bias of each layer.
    layers: Option<[[Range<usize>; 2]; 4]>,
    len: usize,
}

#[derive(Clone, Debug)]
struct Places {
    rank: usize,
    down: Range<usize>,
    /// Empty for a layer that is not behind a norm.
    constant: Range<usize>,
    up: Range<usize>,
}

impl Layout {
    /// `sizes` are each layer's numbers of inputs and outputs.
    pub(crate) fn new(inside: Inside, sizes: [[usize; 2]; 4]) -> Self {
        let mut len = 0;
        let mut next = |count: usize| {
            len += count;
            len - count..len
        };
        let keys_values = next(2 * inside.keys * sizes[PROJ][0]);
        let updates = [QKV, PROJ, FC1, FC2].map(|i| {
            let ([inputs, outputs], rank) = (sizes[i], inside.ranks[i]);
            let constants = if i == QKV || i == FC1 { rank } else { 0 };
            (rank > 0).then(|| Places {
                rank,
                down: next(rank * inputs),
                constant: next(constants),
                up: next(rank * outputs),
            })
        });
        let layers = inside.layers.then(|| sizes.map(|[i, o]| [next(o * i), next(o)]));
        Self { keys_values, updates, layers, len }
    }
}

/// The steps of a block at which something may be learnt, in the order of the forward pass.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Qkv,
    Attention,
    Proj,
    Fc1,
    Fc2,
}

/// What is learnt, with its values; by default nothing.
#[derive(Clone, Copy, Default)]
pub(crate) struct Learnt<'a>(Option<(&'a Layout, &'a [f32])>);

impl<'a> Learnt<'a> {
    pub(crate) fn new(layout: &'a Layout, values: &'a [f32]) -> Self {
        assert_eq!(values.len(), layout.len, "values of what is learnt inside a block");
        Self(Some((layout, values)))
    }

    /// Room for its gradient where that is wanted.
    pub(crate) fn gradient(&self, wanted: Wanted) -> Vec<f32> {
        let len = self.0.map_or(0, |(layout, _)| layout.len);
        vec![0.0; if wanted.learnt { len } else { 0 }]
    }

    /// Whether the backward pass has to go on beyond `step`.
    pub(crate) fn goes_on(&self, wanted: Wanted, step: Step) -> bool {
        let learns = |(layout, _): (&Layout, &[f32])| {
            let [qkv, proj, fc1, fc2] = [QKV, PROJ, FC1, FC2].map(|i| layout.updates[i].is_some());
            let attention = !layout.keys_values.is_empty();
            let steps = [
                (Step::Qkv, qkv),
                (Step::Attention, attention),
                (Step::Proj, proj),
                (Step::Fc1, fc1),
                (Step::Fc2, fc2),
            ];
            layout.layers.is_some() || steps.into_iter().any(|(s, learns)| learns && s < step)
        };
        wanted.stream || wanted.learnt && self.0.is_some_and(learns)
    }

    /// Keys and values, as operands.
    pub(crate) fn keys_values<T: Operand>(&self, width: usize) -> Option<KeysValues<T>> {
        let (layout, values) = self.0.filter(|(layout, _)| !layout.keys_values.is_empty())?;
        let [keys, values] = halves(&values[layout.keys_values.clone()])
            .map(|part| Tiles::rounded(isa(), part, &[], &[], width));
        Some(KeysValues { keys, values })
    }

    /// Sum the gradients of keys and values over the samples, `[B, 2, keys, C]`, into their place.
    pub(crate) fn sum_keys_values(&self, samples: &[f32], gradient: &mut [f32]) {
        if let Some((layout, _)) = self.0.filter(|_| !gradient.is_empty()) {
            norm::sum_samples(isa(), samples, &mut gradient[layout.keys_values.clone()]);
        }
    }

    /// Whether what a layer saw is needed in the backward pass.
    pub(crate) fn sees(&self, layer: usize) -> bool {
        self.0.is_some_and(|(layout, _)| layout.layers.is_some() || layout.updates[layer].is_some())
    }

    /// Whether gradients of the layers are asked for.
    pub(crate) fn learns_layers(&self, wanted: Wanted) -> bool {
        wanted.learnt && self.0.is_some_and(|(layout, _)| layout.layers.is_some())
    }

    /// Put the gradient of a layer that is learnt into its place: `x` is what it saw, of so many samples, `grad` the
    /// gradient of what it gave.
    pub(crate) fn layer_gradient<T: Operand>(
        &self,
        layer: usize,
        x: &Tiles<T>,
        grad: &Tiles<T>,
        samples: usize,
        gradient: &mut [f32],
    ) {
        let layers = self.0.and_then(|(layout, _)| layout.layers.as_ref());
        let [weight, bias] = &layers.expect("layers that are learnt")[layer];
        let (inputs, outputs) = (x.columns(), grad.columns());
        let shape = Shape { inputs, outputs, side: 1, stride: 1, padding: 0 };
        kernel_gradient(isa(), shape, x, grad, 1, [x.rows(), 1], &mut gradient[weight.clone()]);
        // In two steps, as many rows lose less.
        let mut of_samples = vec![0.0; samples * outputs];
        excite::sums(isa(), grad, None, &mut of_samples);
        norm::sum_samples(isa(), &of_samples, &mut gradient[bias.clone()]);
    }

    /// The update of a layer.
    pub(crate) fn update(&self, layer: usize) -> Option<Update<'a>> {
        let (layout, values) = self.0?;
        let places = layout.updates[layer].as_ref()?;
        Some(Update { places, values })
    }
}

fn halves(x: &[f32]) -> [&[f32]; 2] {
    let (first, second) = x.split_at(x.len() / 2);
    [first, second]
}

/// Keys and values, each `[keys, C]`.
pub(crate) struct KeysValues<T> {
    keys: Tiles<T>,
    values: Tiles<T>,
}

impl<T: Operand> KeysValues<T> {
    pub(crate) fn extra(&self) -> Extra<'_, T> {
        Extra { keys: &self.keys, values: &self.values }
    }

    /// Values of the gradients of both for one sample.
    pub(crate) fn len(&self) -> usize {
        2 * self.keys.rows() * self.keys.columns()
    }
}

/// A low-rank update of one layer.
#[derive(Clone, Copy)]
pub(crate) struct Update<'a> {
    places: &'a Places,
    values: &'a [f32],
}

impl Update<'_> {
    fn rank(&self) -> usize {
        self.places.rank
    }

    fn down(&self) -> &[f32] {
        &self.values[self.places.down.clone()]
    }

    fn up(&self) -> &[f32] {
        &self.values[self.places.up.clone()]
    }

    /// `t = x downᵀ + constant`, `[rows, rank]`.
    fn narrow<T: Operand>(&self, x: &Tiles<T>) -> Vec<f32> {
        let (down, inputs, rank) = (self.down(), x.columns(), self.rank());
        let matrix = Matrix::<T>::of_weight(isa(), down, inputs);
        let mut thin = vec![0.0; x.rows() * rank];
        let store = Store::new(&mut thin, rank).bias(&self.values[self.places.constant.clone()]);
        gemm::run(isa(), x, &matrix, &store);
        thin
    }

    /// The gradient of `t`, given that of the layer's output. Where `gradient` has room, those of `down`, `constant`
    /// and `up` go to their places; `x` is what the layer saw.
    pub(crate) fn back<T: Operand>(
        &self,
        grad: &(impl Source<T> + Pixels),
        thin: &[f32],
        x: &Tiles<T>,
        gradient: &mut [f32],
    ) -> Vec<f32> {
        let (up, outputs, rank) = (self.up(), grad.depth(), self.rank());
        let matrix = Matrix::<T>::of_weight(isa(), up, outputs);
        let mut back = vec![0.0; grad.rows() * rank];
        gemm::run(isa(), grad, &matrix, &Store::new(&mut back, rank));
        if !gradient.is_empty() {
            thin::contract(isa(), thin, rank, grad, &mut gradient[self.places.up.clone()]);
            thin::contract(isa(), &back, rank, x, &mut gradient[self.places.down.clone()]);
            if !self.places.constant.is_empty() {
                norm::sum_samples(isa(), &back, &mut gradient[self.places.constant.clone()]);
            }
        }
        back
    }
}

impl<T: Operand> FrozenLinear<T> {
    /// `x Wᵀ`, and what an update adds to it, to an epilogue; gives the update's `t`, empty without one.
    pub(crate) fn forward_updated<E: Epilogue>(
        &self,
        update: Option<Update<'_>>,
        x: &Tiles<T>,
        epilogue: E,
    ) -> Vec<f32> {
        let thin = update.as_ref().map(|u| u.narrow(x)).unwrap_or_default();
        let (up, rank) = update.as_ref().map_or((&[][..], 0), |u| (u.up(), u.rank()));
        self.forward(x, &Added::new(&thin, up, rank, epilogue));
        thin
    }

    /// `g W`, and what the gradient `back` of an update's `t` adds to it, to an epilogue.
    pub(crate) fn backward_updated<A: Source<T>, E: Epilogue>(
        &self,
        update: Option<Update<'_>>,
        grad: &A,
        back: &[f32],
        epilogue: E,
    ) {
        let (down, rank) = update.as_ref().map_or((&[][..], 0), |u| (u.down(), u.rank()));
        let back = if rank == 0 { &[] } else { back };
        self.backward(grad, &Added::new(back, down, rank, epilogue));
    }
}
