//! The entrance of a network that cuts images into patches: those as rows of a product, and back.

use crate::gemm::{self, Epilogue, Matrix, PANEL, PackedRow, Source, line};
use crate::repeated::Repeated;
use crate::simd::{LANES, Simd};
use crate::{Isa, Operand, SharedMut};

/// The geometry of the square patches of some images `[B, C, H, W]`.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Images.
    pub images: usize,
    /// Channels of each.
    pub channels: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Side of a patch; what is left over at the far edges belongs to none.
    pub patch: usize,
}

impl Grid {
    fn columns(self) -> usize {
        self.width / self.patch
    }

    /// Patches of an image.
    pub fn patches(self) -> usize {
        self.height / self.patch * self.columns()
    }

    /// Where row `y` of channel `c` of patch `row` (among all images) begins.
    #[inline(always)]
    fn at(self, row: usize, c: usize, y: usize) -> usize {
        let (image, patch) = (row / self.patches(), row % self.patches());
        let (py, px) = (patch / self.columns(), patch % self.columns());
        ((image * self.channels + c) * self.height + py * self.patch + y) * self.width + px * self.patch
    }
}

/// Patches of images, with a prompt added, one a row: channel by channel, row by row.
struct Patches<'a> {
    x: &'a [f32],
    prompt: Repeated<'a>,
    grid: Grid,
}

impl<T: Operand> Source<T> for Patches<'_> {
    fn rows(&self) -> usize {
        self.grid.images * self.grid.patches()
    }

    fn depth(&self) -> usize {
        self.grid.channels * self.grid.patch * self.grid.patch
    }

    #[inline(always)]
    fn pack<S: Simd>(&self, s: S, row: usize, mut out: PackedRow<'_>) {
        let p = self.grid.patch;
        let depth = <Self as Source<T>>::depth(self);
        let mut k = 0;
        // A run of up to sixteen values that crosses neither a line's half nor a patch's row.
        while k < depth {
            let (c, y, x) = (k / (p * p), k / p % p, k % p);
            let count = (p - x).min(LANES - k % LANES);
            let at = self.grid.at(row, c, y) + x;
            let mut v = s.load(&self.x[at..at + count]);
            if !self.prompt.is_empty() {
                let at = self.prompt.index(at);
                v = s.add(v, s.load(&self.prompt.values()[at..at + count]));
            }
            let into = &mut out.line::<T>(k / line::<T>())[k % line::<T>()..];
            T::store(s, &mut into[..count], v);
            k += count;
        }
        if !depth.is_multiple_of(line::<T>()) {
            out.line::<T>(depth / line::<T>())[depth % line::<T>()..].fill(T::default());
        }
    }
}

/// Gradients of tokens as rows, without those of the tokens ahead.
struct PatchTokens<'a> {
    grad: &'a [f32],
    ahead: usize,
    patches: usize,
    width: usize,
}

impl<T: Operand> Source<T> for PatchTokens<'_> {
    fn rows(&self) -> usize {
        self.grad.len() / self.width / (self.ahead + self.patches) * self.patches
    }

    fn depth(&self) -> usize {
        self.width
    }

    #[inline(always)]
    fn pack<S: Simd>(&self, s: S, row: usize, mut out: PackedRow<'_>) {
        let token = row / self.patches * (self.ahead + self.patches) + self.ahead + row % self.patches;
        let values = &self.grad[token * self.width..(token + 1) * self.width];
        for (i, part) in values.chunks(line::<T>()).enumerate() {
            let mut halves = part.chunks(LANES);
            for out in out.line::<T>(i).chunks_mut(LANES) {
                T::store(s, out, s.load(halves.next().unwrap_or(&[])));
            }
        }
    }
}

/// Puts each patch's gradient back in its place; patches do not overlap.
#[derive(Clone, Copy)]
struct Unpatch<'a> {
    out: SharedMut<'a, f32>,
    grid: Grid,
}

impl Epilogue for Unpatch<'_> {
    fn check(&self, rows: usize, columns: usize) {
        let g = self.grid;
        assert_eq!((rows, columns), (g.images * g.patches(), g.channels * g.patch * g.patch));
        assert_eq!(self.out.len(), g.images * g.channels * g.height * g.width);
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, sums: [S::F; 2]) {
        let mut values = [0.0; PANEL];
        s.store(&mut values[..LANES], sums[0]);
        s.store(&mut values[LANES..], sums[1]);
        let p = self.grid.patch;
        let mut i = 0;
        while i < count {
            let k = column + i;
            let run = (p - k % p).min(count - i);
            let at = self.grid.at(row, k / (p * p), k / p % p) + k % p;
            // SAFETY: patches do not overlap, and each of their values comes once ([`Epilogue`]).
            unsafe { self.out.part(at..at + run) }.copy_from_slice(&values[i..i + run]);
            i += run;
        }
    }
}

/// Puts the tokens of patches behind those ahead of them.
#[derive(Clone, Copy)]
struct Tokens<'a> {
    out: SharedMut<'a, f32>,
    /// Added to every image's tokens, `[ahead + patches, C]`.
    offset: &'a [f32],
    ahead: usize,
    patches: usize,
}

impl Epilogue for Tokens<'_> {
    fn check(&self, rows: usize, columns: usize) {
        assert_eq!(self.offset.len(), (self.ahead + self.patches) * columns, "offsets [ahead + patches, C]");
        assert_eq!(self.out.len(), rows / self.patches * self.offset.len(), "tokens [B, ahead + patches, C]");
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, sums: [S::F; 2]) {
        let width = self.offset.len() / (self.ahead + self.patches);
        let (image, patch) = (row / self.patches, row % self.patches);
        let within = (self.ahead + patch) * width + column;
        let at = image * self.offset.len() + within;
        // SAFETY: each element comes once ([`Epilogue`]), and tokens do not overlap.
        let out = unsafe { self.out.part(at..at + count) };
        let offset = &self.offset[within..within + count];
        for (half, sums) in sums.into_iter().enumerate() {
            let part = (half * LANES).min(count)..((half + 1) * LANES).min(count);
            s.store(&mut out[part.clone()], s.add(sums, s.load(&offset[part])));
        }
    }
}

/// `tokens = [0; patches(x + prompt) W] + offset`: images `[B, C, H, W]` to `[B, ahead + patches, D]`, as many tokens
/// ahead of the patches' (the class token, or none) as `offset` has beyond them. `prompt` is one image, added to each,
/// and may be empty. Rows of `w` run over a patch's channels, rows and columns.
///
/// # Panics
/// The lengths do not fit the grid.
pub fn embed<T: Operand>(
    isa: Isa,
    grid: Grid,
    x: &[f32],
    prompt: &[f32],
    w: &Matrix<T>,
    offset: &[f32],
    out: &mut [f32],
) {
    let image = grid.channels * grid.height * grid.width;
    assert!(
        x.len() == grid.images * image && (prompt.is_empty() || prompt.len() == image),
        "images [B, C, H, W]"
    );
    let ahead =
        (offset.len() / w.columns()).checked_sub(grid.patches()).expect("offsets [ahead + patches, D]");
    for tokens in out.chunks_exact_mut(offset.len().max(1)) {
        tokens[..ahead * w.columns()].copy_from_slice(&offset[..ahead * w.columns()]);
    }
    let epilogue = Tokens { out: SharedMut::new(out), offset, ahead, patches: grid.patches() };
    let prompt = Repeated::rows(prompt, image);
    prompt.check(x.len());
    gemm::run(isa, &Patches { x, prompt, grid }, w, &epilogue);
}

/// The gradient of the images, given that of the tokens and the transposed matrix.
///
/// # Panics
/// The lengths do not fit the grid.
pub fn embed_backward<T: Operand>(
    isa: Isa,
    grid: Grid,
    grad: &[f32],
    transposed: &Matrix<T>,
    out: &mut [f32],
) {
    let (patches, width) = (grid.patches(), transposed.depth());
    let tokens = grad.len() / (grid.images * width).max(1);
    assert_eq!(grad.len(), grid.images * tokens * width, "tokens [B, ahead + patches, D]");
    let ahead = tokens.saturating_sub(patches);
    out.fill(0.0);
    gemm::run(
        isa,
        &PatchTokens { grad, ahead, patches, width },
        transposed,
        &Unpatch { out: SharedMut::new(out), grid },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Sweep, assert_close, sweep, values};

    /// Grid, width, tokens ahead.
    struct Images(Grid, usize, usize);

    impl Sweep for Images {
        fn check<T: Operand>(&self, isa: Isa, rounding: f64) {
            let &Self(grid, width, ahead) = self;
            let what = format!("{isa:?} {grid:?}");
            let (patches, p) = (grid.patches(), grid.patch);
            let image = grid.channels * grid.height * grid.width;
            let depth = grid.channels * p * p;
            // Sums of two values that both types hold exactly.
            let coarse = |v: Vec<f32>| v.into_iter().map(|v| (v * 16.0).round() / 16.0).collect::<Vec<_>>();
            let x = coarse(values(grid.images * image, 1));
            let prompt = coarse(values(image, 2));
            let w = values(depth * width, 3).into_iter().map(|v| T::from_f32(v).to_f32()).collect::<Vec<_>>();
            let offset = values((ahead + patches) * width, 5);
            let mut out = vec![9.0; grid.images * (ahead + patches) * width];
            let matrix = Matrix::<T>::pack(depth, width, |k, n| w[k * width + n]);
            embed(isa, grid, &x, &prompt, &matrix, &offset, &mut out);
            let pixel = |image: usize, patch: usize, k: usize| {
                let columns = grid.width / p;
                let (c, y, x) = (k / (p * p), k / p % p, k % p);
                let (row, column) = (patch / columns * p + y, patch % columns * p + x);
                ((image * grid.channels + c) * grid.height + row) * grid.width + column
            };
            let mut expected: Vec<f64> = Vec::new();
            for b in 0..grid.images {
                for t in 0..ahead + patches {
                    for n in 0..width {
                        let mut v = f64::from(offset[t * width + n]);
                        if t >= ahead {
                            for k in 0..depth {
                                let at = pixel(b, t - ahead, k);
                                v += f64::from(x[at] + prompt[at % image]) * f64::from(w[k * width + n]);
                            }
                        }
                        expected.push(v);
                    }
                }
            }
            assert_close(&out, &expected, 1e-5, &what);

            let grad = values(out.len(), 6);
            let mut back = vec![9.0; x.len()];
            embed_backward(isa, grid, &grad, &matrix.transposed(), &mut back);
            let mut expected = vec![0.0; x.len()];
            for b in 0..grid.images {
                for t in 0..patches {
                    for k in 0..depth {
                        let row = (b * (ahead + patches) + ahead + t) * width;
                        let sum = (0..width).map(|n| f64::from(grad[row + n]) * f64::from(w[k * width + n]));
                        expected[pixel(b, t, k)] = sum.sum();
                    }
                }
            }
            assert_close(&back, &expected, rounding, &what);
        }
    }

    #[test]
    fn patches_of_any_size_agree_with_f64() {
        for (images, channels, height, width, patch, tokens) in
            [(2, 3, 8, 12, 4, 5), (1, 3, 32, 48, 16, 33), (1, 2, 15, 11, 5, 8), (1, 3, 28, 28, 14, 20)]
        {
            for ahead in [1, 0] {
                sweep(&Images(Grid { images, channels, height, width, patch }, tokens, ahead));
            }
        }
    }
}
