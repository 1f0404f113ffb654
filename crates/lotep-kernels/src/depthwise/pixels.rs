//! What depthwise convolutions, and thin products, read.

use crate::gemm::expect_read;
use crate::repeated::Repeated;
use crate::simd::{LANES, Simd};
use crate::{Operand, Tiles};

/// A feature map's pixels, row by row and image by image: what a depthwise convolution reads.
pub trait Pixels: Sync {
    /// Number of pixels and of their channels.
    fn shape(&self) -> (usize, usize);
    /// Load `count` (up to sixteen) channels of a pixel from `channel` on; further lanes are zero. To be
    /// `#[inline(always)]`.
    fn load<S: Simd>(&self, s: S, pixel: usize, channel: usize, count: usize) -> S::F;
    /// The same of up to 32 channels.
    #[inline(always)]
    fn load_panel<S: Simd>(&self, s: S, pixel: usize, channel: usize, count: usize) -> [S::F; 2] {
        let high =
            if count > LANES { self.load(s, pixel, channel + LANES, count - LANES) } else { s.splat(0.0) };
        [self.load(s, pixel, channel, count.min(LANES)), high]
    }
    /// Ask for the memory of a panel, 32 channels from a multiple of 32 on, of `pixels` pixels, which need not be there, to read
    /// it soon. To be `#[inline(always)]` as well.
    #[inline(always)]
    fn expect<S: Simd>(&self, _s: S, _pixel: usize, _pixels: usize, _channel: usize) {}
}

impl<T: Operand> Pixels for Tiles<T> {
    fn shape(&self) -> (usize, usize) {
        (self.rows(), self.columns())
    }

    #[inline(always)]
    fn load<S: Simd>(&self, s: S, pixel: usize, channel: usize, count: usize) -> S::F {
        Tiles::load(self, s, pixel, channel, count)
    }

    #[inline(always)]
    fn expect<S: Simd>(&self, s: S, pixel: usize, pixels: usize, channel: usize) {
        Tiles::expect(self, s, pixel, pixels, channel);
    }
}

/// Pixels as rows of f32, one after another, with something added where it is given.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    x: &'a [f32],
    prompt: Repeated<'a>,
    channels: usize,
}

impl<'a> Rows<'a> {
    /// Rows of `channels` values.
    ///
    /// # Panics
    /// `x` is not made of whole rows.
    pub fn new(x: &'a [f32], channels: usize) -> Self {
        assert!(channels > 0 && x.len().is_multiple_of(channels), "{} values in rows of {channels}", x.len());
        Self { x, prompt: Repeated::NONE, channels }
    }

    /// Add one sample's rows, repeated; may be empty.
    ///
    /// # Panics
    /// `prompt` is not made of whole rows.
    #[must_use]
    pub fn prompt(self, prompt: &'a [f32]) -> Self {
        let prompt = Repeated::rows(prompt, self.channels);
        prompt.check(self.x.len());
        Self { prompt, ..self }
    }
}

impl Pixels for Rows<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.x.len() / self.channels, self.channels)
    }

    #[inline(always)]
    fn load<S: Simd>(&self, s: S, pixel: usize, channel: usize, count: usize) -> S::F {
        let at = pixel * self.channels + channel;
        let x = s.load(&self.x[at..at + count]);
        if self.prompt.is_empty() {
            return x;
        }
        let at = self.prompt.index(at);
        s.add(x, s.load(&self.prompt.values()[at..at + count]))
    }

    #[inline(always)]
    fn expect<S: Simd>(&self, s: S, pixel: usize, pixels: usize, channel: usize) {
        expect_read(s, self.x, self.channels, pixel, pixels, channel);
    }
}
