//! A kernel of one tap: each pixel by itself, nothing is brought anywhere.

use std::ops::Range;

use super::Pixels;
use crate::gemm::{Epilogue, PANEL, TILE_ROWS};
use crate::scratch::{Line, elements};
use crate::simd::{Kernel, LANES, Simd};

/// Some pixels, all channels times a factor each.
pub(super) struct Factors<'a, X, E> {
    /// A vector for each sixteen channels.
    pub(super) weights: &'a [Line],
    pub(super) x: &'a X,
    pub(super) epilogue: &'a E,
    pub(super) pixels: Range<usize>,
}

impl<X: Pixels, E: Epilogue> Kernel for Factors<'_, X, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (_, channels) = self.x.shape();
        for first in self.pixels.clone().step_by(TILE_ROWS) {
            let tile = first..(first + TILE_ROWS).min(self.pixels.end);
            for channel in (0..channels).step_by(PANEL) {
                let count = (channels - channel).min(PANEL);
                self.x.expect(s, tile.end, TILE_ROWS, channel);
                self.epilogue.expect(s, tile.start, tile.len(), channel);
                if count == PANEL {
                    // The usual case, with the count known to the compiler.
                    self.panel(s, tile.clone(), channel, PANEL);
                } else {
                    self.panel(s, tile.clone(), channel, count);
                }
            }
        }
    }
}

impl<X: Pixels, E: Epilogue> Factors<'_, X, E> {
    /// `count` channels of some pixels.
    #[inline(always)]
    fn panel<S: Simd>(&self, s: S, pixels: Range<usize>, channel: usize, count: usize) {
        let weights = elements::<f32>(&self.weights[channel / LANES..(channel + count).div_ceil(LANES)]);
        let (low, high) = weights.split_at(LANES);
        let weights = [s.load(low), s.load(high)];
        for pixel in pixels {
            let [low, high] = self.x.load_panel(s, pixel, channel, count);
            let v = [s.mul(low, weights[0]), s.mul(high, weights[1])];
            // SAFETY: the epilogue was checked for all pixels and channels; each comes once.
            unsafe { self.epilogue.put(s, pixel, channel, count, v) };
        }
    }
}
