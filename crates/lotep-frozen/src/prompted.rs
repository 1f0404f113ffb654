//! Prompt tokens within windows of attention: every window of a sample attends to them, and each asks for itself; what the
//! windows make of a prompt is averaged (VPT on Swin).
//!
//! Windows that share rows are gathered into matrices of their own, the only case in which that is needed: all others are
//! read where they lie.

use lotep_kernels::attention::Attention;
use lotep_kernels::{Operand, RowSums, Tiles};

use crate::windows::{Windows, beside};

/// Windows with prompts in them, and the ways between them and the samples.
#[derive(Debug)]
pub(crate) struct Prompted {
    windows: Windows,
    bias: Vec<f32>,
    /// Samples to windows, and its transpose.
    gather: RowSums,
    sum: RowSums,
    /// Windows to samples, prompts averaged, and its transpose.
    mean: RowSums,
    spread: RowSums,
}

impl Prompted {
    /// Put `prompts` tokens before the map's; `bias` is `[heads, N, N]` for a window without them, or empty.
    pub(crate) fn new(windows: &Windows, bias: &[f32], prompts: usize) -> Self {
        let bias = beside(bias, windows.size, prompts);
        let windows = windows.with_prompts(prompts);
        let mut readers = vec![Vec::new(); windows.tokens];
        for (i, place) in windows.places.iter().enumerate() {
            // Nothing becomes of padding.
            if let Some(readers) = readers.get_mut(*place as usize) {
                readers.push(i as u32);
            }
        }
        let share = |place: usize| if place < windows.prompts { 1.0 / windows.count() as f32 } else { 1.0 };
        let gathered = windows.places.len();
        let spread = |place: &u32| match *place as usize {
            place if place < windows.tokens => (vec![place as u32], share(place)),
            _ => (Vec::new(), 1.0),
        };
        Self {
            gather: RowSums::new(windows.tokens, windows.places.iter().map(|place| (vec![*place], 1.0))),
            spread: RowSums::new(windows.tokens, windows.places.iter().map(spread)),
            sum: RowSums::new(gathered, readers.iter().map(|of| (of.clone(), 1.0))),
            mean: RowSums::new(gathered, readers.iter().enumerate().map(|(i, of)| (of.clone(), share(i)))),
            windows,
            bias,
        }
    }

    /// The attention over gathered windows.
    pub(crate) fn attention(&self, samples: usize, heads: usize, width: usize) -> Attention<'_> {
        let plain = Attention::plain(samples * self.windows.count(), self.windows.size, heads, width);
        Attention { bias: &self.bias, mask: &self.windows.mask, ..plain }
    }

    /// The windows' tokens.
    pub(crate) fn gather<T: Operand>(&self, x: &Tiles<T>, samples: usize) -> Tiles<T> {
        self.gather.run(crate::isa(), x, samples)
    }

    /// The samples' tokens, what windows made of a prompt averaged.
    pub(crate) fn mean<T: Operand>(&self, x: &Tiles<T>, samples: usize) -> Tiles<T> {
        self.mean.run(crate::isa(), x, samples)
    }

    /// The gradient of what [`mean`](Self::mean) took, given that of what it gave.
    pub(crate) fn spread<T: Operand>(&self, grad: &Tiles<T>, samples: usize) -> Tiles<T> {
        self.spread.run(crate::isa(), grad, samples)
    }

    /// The gradient of what [`gather`](Self::gather) took, given that of what it gave.
    pub(crate) fn sum<T: Operand>(&self, grad: &Tiles<T>, samples: usize) -> Tiles<T> {
        self.sum.run(crate::isa(), grad, samples)
    }
}
