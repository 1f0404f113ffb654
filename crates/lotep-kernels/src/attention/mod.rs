//! Multi-head self-attention, forward and backward, over a fused query-key-value projection.
//!
//! A head's tokens are few enough (197 to some thousands) for a strip of scores, 32 queries with every key, to stay
//! in the cache; so a strip is finished, softmax included, before the next begins. Nothing of size
//! tokens × tokens outlives a head: the backward pass computes the scores again.
//!
//! Beside the tokens' own there may be extra keys and values, the same for every sample (prompts in attention).

mod backward;
mod forward;
mod operands;
mod softmax;

use rayon::prelude::*;

use crate::gemm::micro::Sums;
use crate::gemm::{PANEL, TILE_ROWS, line};
use crate::scratch::{self, Line};
use crate::simd::{LANES, Simd, dispatch};
use crate::{Isa, Operand, SharedMut, SharedTiles, Tiles};
use operands::Rows;

/// Rows of a strip: two tiles.
const STRIP: usize = 2 * TILE_ROWS;
/// Queries whose probabilities the backward pass holds at once, for the gradients of keys and values.
const QUERY_BLOCK: usize = 256;
const SUMS_LINES: usize = size_of::<Sums>() / size_of::<Line>();

/// The sizes of an attention, and what is added to its scores.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Samples, or windows.
    pub batch: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// How many of them, from the first on, ask: a last block whose class token alone is read needs one.
    pub queries: usize,
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub width: usize,
    /// Added to the scaled scores, `[heads, tokens, tokens]`; may be empty. Extra keys have none.
    pub bias: &'a [f32],
    /// Added as well, `[windows, tokens, tokens]`, sample `b` using `b mod windows`; may be empty.
    pub mask: &'a [f32],
    /// Where windows find their tokens; none where those follow each other.
    pub places: Option<Places<'a>>,
}

/// The windows of larger samples: each window counts as a sample, and its tokens lie anywhere in the larger one.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// For each window of a sample after the other, its tokens' rows, `[windows, tokens]`; `rows` stands for padding.
    /// No row comes twice.
    pub of: &'a [u32],
    /// Rows of a sample.
    pub rows: usize,
}

/// Keys and values that every sample attends to beside its own tokens', each `[extra, C]`.
#[derive(Clone, Copy, Debug)]
pub struct Extra<'a, T: Operand> {
    /// Keys, of heads side by side as in the projections.
    pub keys: &'a Tiles<T>,
    /// Values.
    pub values: &'a Tiles<T>,
}

impl Attention<'_> {
    /// Neither bias nor mask, and all tokens ask.
    pub fn plain(batch: usize, tokens: usize, heads: usize, width: usize) -> Self {
        Self { batch, tokens, queries: tokens, heads, width, bias: &[], mask: &[], places: None }
    }

    /// The row of a sample's token; `None` for padding.
    #[inline(always)]
    fn row(&self, sample: usize, token: usize) -> Option<usize> {
        let Some(places) = &self.places else { return Some(sample * self.tokens + token) };
        let windows = places.of.len() / self.tokens;
        let place = places.of[sample % windows * self.tokens + token] as usize;
        (place < places.rows).then(|| sample / windows * places.rows + place)
    }

    fn channels(&self) -> usize {
        self.heads * self.width
    }

    fn check<T: Operand>(
        &self,
        projections: &[&Tiles<T>],
        outputs: &[&Tiles<T>],
        extra: Option<&Extra<'_, T>>,
    ) {
        let channels = self.channels();
        assert!(self.queries <= self.tokens, "{} queries of {} tokens", self.queries, self.tokens);
        let [mut asked, mut all] = [self.batch * self.queries, self.batch * self.tokens];
        let mut padding = 0;
        if let Some(places) = &self.places {
            let windows = places.of.len() / self.tokens.max(1);
            assert!(windows > 0 && self.batch.is_multiple_of(windows), "{} of {windows} windows", self.batch);
            assert!(self.queries == self.tokens && places.of.len() == windows * self.tokens, "whole windows");
            let mut seen = vec![false; places.rows];
            for place in places.of {
                match seen.get_mut(*place as usize) {
                    Some(seen) => assert!(!std::mem::replace(seen, true), "row {place} twice"),
                    None => padding = 1,
                }
            }
            all = self.batch / windows * places.rows;
            asked = all;
        }
        for (of, rows, columns) in [(projections, all, 3 * channels), (outputs, asked, channels)] {
            for (i, tiles) in of.iter().enumerate() {
                // What is read has the padding's row at its end.
                let rows = rows + if columns > channels && i == 0 { padding } else { 0 };
                assert_eq!((tiles.rows(), tiles.columns()), (rows, columns), "[B · N, 3 · C] and [B · Q, C]");
            }
        }
        if let Some(extra) = extra {
            let size = |tiles: &Tiles<T>| (tiles.rows(), tiles.columns());
            assert_eq!(size(extra.keys), (extra.values.rows(), channels), "extra keys [M, C]");
            assert_eq!(size(extra.values), (extra.keys.rows(), channels), "extra values [M, C]");
        }
        let square = self.tokens * self.tokens;
        assert!(self.bias.is_empty() || self.bias.len() == self.heads * square, "bias [heads, N, N]");
        assert!(self.mask.is_empty() || self.mask.len().is_multiple_of(square), "mask [windows, N, N]");
    }

    /// The first column of head `head` in part `part` of the projections.
    fn column(&self, head: usize, part: usize) -> usize {
        part * self.channels() + head * self.width
    }

    /// All tokens of a head of a sample, in the projections.
    fn rows<'a, T: Operand>(&'a self, tiles: &'a Tiles<T>, [sample, head, part]: [usize; 3]) -> Rows<'a, T> {
        self.head_rows(tiles, sample, self.tokens, self.column(head, part))
    }

    /// All queries of a head of a sample, in the output.
    fn outputs<'a, T: Operand>(&'a self, tiles: &'a Tiles<T>, [sample, head]: [usize; 2]) -> Rows<'a, T> {
        self.head_rows(tiles, sample, self.queries, self.column(head, 0))
    }

    fn head_rows<'a, T: Operand>(
        &'a self,
        tiles: &'a Tiles<T>,
        sample: usize,
        count: usize,
        column: usize,
    ) -> Rows<'a, T> {
        let Some(places) = self.places else {
            return Rows::new(tiles, sample * count, count, column, self.width);
        };
        let windows = places.of.len() / self.tokens;
        let first = sample / windows * places.rows;
        let at = sample % windows * self.tokens;
        let samples = self.batch / windows * places.rows;
        let padding = (tiles.rows() > samples).then_some(samples);
        let rows = Rows::new(tiles, first, count, column, self.width);
        rows.at_places(&places.of[at..at + count], places.rows, padding)
    }

    /// What is added to the scores of query `q`: up to two rows of a value for each token. Where no other keys follow the
    /// tokens, a row goes on to a whole vector, with values that belong to no key.
    #[inline(always)]
    fn added(&self, [sample, head]: [usize; 2], q: usize, keys: usize) -> [&[f32]; 2] {
        let n = self.tokens;
        let length = if keys > n { n } else { n.next_multiple_of(LANES) };
        let windows = (self.mask.len() / (n * n)).max(1);
        [(self.bias, head), (self.mask, sample % windows)].map(|(table, index)| {
            let row = (index * n + q) * n;
            if table.is_empty() { table } else { &table[row..table.len().min(row + length)] }
        })
    }

    /// Sample and head of each task.
    fn each(&self, run: impl Fn([usize; 2]) + Sync) {
        let tasks = self.batch * self.heads;
        (0..tasks).into_par_iter().for_each(|i| run([i / self.heads, i % self.heads]));
    }
}

/// How long operands are, in lines or panels.
#[derive(Clone, Copy)]
struct Extents {
    /// Keys: the tokens and the extra ones.
    keys: usize,
    /// Panels of keys.
    key_panels: usize,
    /// Lines of all keys along a summed axis.
    key_lines: usize,
    /// Lines of a row of a head's width.
    width_lines: usize,
    /// Panels of a head's width.
    width_panels: usize,
}

impl Extents {
    fn new<T: Operand>(sizes: &Attention<'_>, extra: Option<&Extra<'_, T>>) -> Self {
        let keys = sizes.tokens + extra.map_or(0, |extra| extra.keys.rows());
        let key_panels = keys.div_ceil(PANEL);
        Self {
            keys,
            key_panels,
            key_lines: key_panels * PANEL / line::<T>(),
            width_lines: sizes.width.div_ceil(line::<T>()),
            width_panels: sizes.width.div_ceil(PANEL),
        }
    }

    /// Lines of all keys, or of as many tokens, as left operand or its transpose.
    fn face(&self) -> usize {
        self.key_panels * 2 * TILE_ROWS * self.width_lines
    }

    /// Lines of a right operand a head's width wide whose summed axis is a line long.
    fn width_right(&self) -> usize {
        self.width_panels * 2 * TILE_ROWS
    }

    /// Values of a row of a strip's scores.
    fn score_row(&self) -> usize {
        self.key_panels * PANEL
    }

    /// Lines of a strip's scores.
    fn scores(&self) -> usize {
        self.key_panels * SUMS_LINES
    }
}

/// `softmax(q kᵀ / √d + bias + mask) v` for every head.
///
/// `qkv` is `[B · N, 3 · C]`, packed `[q | k | v]`, each of `heads × d`; `out` is `[B · Q, C]`. Where windows find their
/// tokens in larger samples, both have the samples' rows, and if there is padding `qkv` one more, the projection of
/// padding.
///
/// # Panics
/// The lengths do not fit the sizes.
pub fn forward<T: Operand>(
    isa: Isa,
    sizes: Attention<'_>,
    qkv: &Tiles<T>,
    extra: Option<&Extra<'_, T>>,
    out: &mut Tiles<T>,
) {
    sizes.check(&[qkv], &[out], extra);
    let out = out.share();
    let extents = Extents::new(&sizes, extra);
    sizes.each(|at| {
        scratch::with(forward::scratch(&extents), |lines| {
            dispatch(isa, forward::Forward { sizes, extents, qkv, extra, out, at, lines });
        });
    });
}

/// The gradient of `qkv`, given that of the output; both in their forward layouts, zero for what does not ask and
/// without a row for padding. That of the extra keys and values goes to `extra_grad`, `[B, 2, M, C]` (keys, then
/// values), to be summed over the samples.
///
/// # Panics
/// The lengths do not fit the sizes.
pub fn backward<T: Operand>(
    isa: Isa,
    sizes: Attention<'_>,
    qkv: &Tiles<T>,
    extra: Option<(&Extra<'_, T>, &mut [f32])>,
    grad: &Tiles<T>,
    out: &mut Tiles<T>,
) {
    let (extra, extra_grad) = extra.unzip();
    sizes.check(&[qkv, out], &[grad], extra);
    let extra_grad = extra_grad.unwrap_or_default();
    let expected = extra.map_or(0, |extra| sizes.batch * 2 * extra.keys.rows() * sizes.channels());
    assert_eq!(extra_grad.len(), expected, "gradients of extra keys and values [B, 2, M, C]");
    let (out, extra_grad) = (out.share(), SharedMut::new(extra_grad));
    let extents = Extents::new(&sizes, extra);
    sizes.each(|at| {
        scratch::with(backward::scratch::<T>(&extents), |lines| {
            let kernel = backward::Backward { sizes, extents, qkv, extra, grad, out, extra_grad, at, lines };
            dispatch(isa, kernel);
        });
    });
}

/// Store up to 32 values of a row that belong to a head.
///
/// # Safety
/// No other task writes this head of this row.
#[inline(always)]
unsafe fn store<T: Operand, S: Simd>(
    s: S,
    out: &SharedTiles<'_, T>,
    row: usize,
    column: usize,
    count: usize,
    v: [S::F; 2],
) {
    // SAFETY: the caller's; panels that are whole and in line go as one.
    unsafe {
        if count == PANEL && column.is_multiple_of(PANEL) && row < out.rows() {
            return out.store_panel(s, row, column, PANEL, v);
        }
        out.store(s, row, column, count.min(LANES), v[0]);
        if count > LANES {
            out.store(s, row, column + LANES, count - LANES, v[1]);
        }
    }
}

#[cfg(test)]
mod tests;
