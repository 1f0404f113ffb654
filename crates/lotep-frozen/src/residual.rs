//! A residual block of convolutions.

use std::sync::Arc;

use lotep_kernels::gemm::{Activate, Activation, Add, AddTo, Epilogue, Multiply, Part, Store};
use lotep_kernels::{Operand, Tiles, bf16};

use crate::conv::{FrozenConv, Kernel, sizes};
use crate::{Convolution, Precision, isa};

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
    /// All of it, to be put into a [`chain`](crate::chain).
    pub block: Link,
    /// On the branch, without the ReLUs.
    pub convs: Vec<Arc<dyn Convolution>>,
    /// On the shortcut.
    pub shortcut: Option<Arc<dyn Convolution>>,
}

/// A packed block.
#[derive(Clone, Debug)]
pub struct Link(pub(crate) Kind);

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    F32(Arc<Packed<f32>>),
    Bf16(Arc<Packed<bf16>>),
}

impl ResidualBlock {
    /// Pack it.
    pub fn pack(self, precision: Precision) -> PackedResidual {
        match precision {
            Precision::F32 => self.packed(Kind::F32),
            Precision::Bf16 => self.packed(Kind::Bf16),
        }
    }

    fn packed<T: Operand>(self, kind: impl FnOnce(Arc<Packed<T>>) -> Kind) -> PackedResidual {
        let conv = |kernel| Arc::new(FrozenConv::<T>::new(kernel));
        let convs: Vec<_> = self.convs.into_iter().map(conv).collect();
        let shortcut = self.shortcut.map(conv);
        let open = |conv: &Arc<FrozenConv<T>>| conv.clone() as Arc<dyn Convolution>;
        PackedResidual {
            convs: convs.iter().map(open).collect(),
            shortcut: shortcut.as_ref().map(open),
            block: Link(kind(Arc::new(Packed { convs, shortcut }))),
        }
    }
}

/// A block in the precision of its operands.
#[derive(Debug)]
pub(crate) struct Packed<T> {
    convs: Vec<Arc<FrozenConv<T>>>,
    shortcut: Option<Arc<FrozenConv<T>>>,
}

/// Where the gradient of a block's entrance goes.
pub(crate) enum Behind<'a, T> {
    /// Out of the chain.
    Rows(&'a mut [f32]),
    /// To the block before, through its ReLU's mask; an empty one lets all through.
    Tiles(&'a mut Tiles<T>, &'a [u16]),
}

impl<T: Operand> Packed<T> {
    /// The size of the map behind each convolution, the input's first.
    pub(crate) fn sizes(&self, input: [usize; 2]) -> Vec<[usize; 2]> {
        sizes(self.convs.iter().map(|conv| conv.forward.shape()), input)
    }

    /// Channels that it puts out.
    pub(crate) fn outputs(&self) -> usize {
        self.last().outputs()
    }

    fn last(&self) -> &FrozenConv<T> {
        self.convs.last().expect("a block has convolutions")
    }

    /// Each convolution's input but the first one's; `sizes` are those of [`sizes`](Self::sizes).
    pub(crate) fn inner(&self, entered: &Tiles<T>, images: usize, sizes: &[[usize; 2]]) -> Vec<Tiles<T>> {
        let mut inner: Vec<Tiles<T>> = Vec::new();
        for (conv, size) in self.convs[..self.convs.len() - 1].iter().zip(sizes.windows(2)) {
            let mut out = Tiles::new(images * size[1][0] * size[1][1], conv.outputs());
            let activate = Activate::new(Activation::Relu, &conv.bias, &mut out);
            conv.forward.run(isa(), inner.last().unwrap_or(entered), images, size[0], &activate);
            inner.push(out);
        }
        inner
    }

    /// What goes around the branch, where that is not the entrance itself.
    pub(crate) fn around(&self, entered: &Tiles<T>, images: usize, sizes: &[[usize; 2]]) -> Option<Tiles<T>> {
        self.shortcut.as_ref().map(|conv| {
            let size = sizes[sizes.len() - 1];
            let mut around = Tiles::new(images * size[0] * size[1], self.outputs());
            let store = Store::tiles(&mut around).bias(&conv.bias);
            conv.forward.run(isa(), entered, images, sizes[0], &store);
            around
        })
    }

    /// The last convolution of what it reads, with its sums given to `epilogue`.
    pub(crate) fn finish<E: Epilogue>(
        &self,
        from: &Tiles<T>,
        images: usize,
        sizes: &[[usize; 2]],
        epilogue: &E,
    ) {
        self.last().forward.run(isa(), from, images, sizes[self.convs.len() - 1], epilogue);
    }

    /// The last convolution's bias.
    pub(crate) fn bias(&self) -> &[f32] {
        &self.last().bias
    }

    /// Carry the gradient behind the block, taken through its last ReLU already, to its entrance.
    pub(crate) fn backward(
        &self,
        upper: &Tiles<T>,
        mut inner: Vec<Tiles<T>>,
        images: usize,
        sizes: &[[usize; 2]],
        behind: Behind<'_, T>,
    ) {
        let mut back: Option<Tiles<T>> = None;
        for (i, conv) in self.convs.iter().enumerate().skip(1).rev() {
            let before = inner.pop().expect("an input of each convolution");
            let mut out = Tiles::new(before.rows(), before.columns());
            let multiply = Multiply::new(Activation::Relu, &before, &mut out);
            conv.backward().run(isa(), back.as_ref().unwrap_or(upper), images, sizes[i], false, &multiply);
            back = Some(out);
        }
        let (first, from, width) =
            (self.convs[0].backward(), back.as_ref().unwrap_or(upper), self.convs[0].forward.shape().inputs);
        match (behind, &self.shortcut) {
            (Behind::Rows(out), None) => {
                first.run(isa(), from, images, sizes[0], false, &Part::rows(upper, out));
            }
            (Behind::Tiles(out, mask), None) => {
                first.run(isa(), from, images, sizes[0], false, &Part::tiles(Some(upper), mask, out));
            }
            (Behind::Rows(out), Some(shortcut)) => {
                first.run(isa(), from, images, sizes[0], false, &Store::new(out, width));
                shortcut.backward().run(isa(), upper, images, sizes[0], true, &Add::new(out, width));
            }
            (Behind::Tiles(out, mask), Some(shortcut)) => {
                first.run(isa(), from, images, sizes[0], false, &Part::tiles(None, mask, out));
                shortcut.backward().run(isa(), upper, images, sizes[0], true, &AddTo::new(mask, out));
            }
        }
    }
}
