//! Pixels as a network wants them.

use lotep_kernels::memory::uncleared;
use lotep_kernels::norm;
use rayon::prelude::*;

use crate::{Kept, LearningOp, Wanted, isa};

/// `(x + P - mean) / std` of images `[B, C, H, W]`, channel by channel, in f32; `P` `[C, H, W]` is what is learnt, or empty.
///
/// A single pass over memory, shared out by the images' planes.
///
/// Kept: nothing.
#[derive(Clone, Debug)]
pub struct Normalise {
    /// Of each channel.
    pub mean: Vec<f32>,
    /// Of each channel.
    pub std: Vec<f32>,
}

impl Normalise {
    /// Do something with each plane of some images and its number of the channel.
    fn planes(&self, plane: usize, out: &mut [f32], each: impl Fn(usize, usize, &mut [f32]) + Sync) {
        let channels = self.mean.len();
        let planes = out.par_chunks_mut(plane.max(1)).enumerate();
        planes.for_each(|(i, out)| each(i * plane, i % channels, out));
    }

    /// The gradient before, given that behind: of images, or of what is added to them.
    fn carry_back(&self, plane: usize, grad: &[f32]) -> Vec<f32> {
        let mut out = uncleared(grad.len());
        self.planes(plane, &mut out, |at, c, out| {
            for (out, grad) in out.iter_mut().zip(&grad[at..]) {
                *out = grad / self.std[c];
            }
        });
        out
    }
}

impl LearningOp for Normalise {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        input.to_vec()
    }

    fn forward(
        &self,
        x: &[f32],
        shape: &[usize],
        _prompt: &[f32],
        learnt: &[f32],
        keep: bool,
    ) -> (Vec<f32>, Option<Kept>) {
        let plane = shape[2] * shape[3];
        let channels = self.mean.len();
        assert_eq!(shape[1], channels, "channels of the images");
        assert!(learnt.is_empty() || learnt.len() == channels * plane, "a prompt of {} values", learnt.len());
        let mut out = uncleared(x.len());
        self.planes(plane, &mut out, |at, c, out| {
            let (mean, std) = (self.mean[c], self.std[c]);
            let x = &x[at..at + out.len()];
            if learnt.is_empty() {
                for (out, x) in out.iter_mut().zip(x) {
                    *out = (x - mean) / std;
                }
            } else {
                let added = &learnt[c * plane..][..out.len()];
                for ((out, x), added) in out.iter_mut().zip(x).zip(added) {
                    *out = (x + added - mean) / std;
                }
            }
        });
        (out, keep.then(|| Box::new(()) as Kept))
    }

    fn backward(
        &self,
        _kept: Kept,
        shape: &[usize],
        learnt: &[f32],
        grad: &[f32],
        wanted: Wanted,
    ) -> (Vec<f32>, Vec<f32>) {
        let plane = shape[2] * shape[3];
        let of_learnt = || {
            let mut summed = uncleared(learnt.len());
            norm::sum_samples(isa(), grad, &mut summed);
            self.carry_back(plane, &summed)
        };
        let stream = if wanted.stream { self.carry_back(plane, grad) } else { Vec::new() };
        (stream, if wanted.learnt { of_learnt() } else { Vec::new() })
    }
}
