//! Products with matrices a few columns wide: what a low-rank update adds to a layer, and its gradients.
//!
//! An update adds `t W` to a layer's sums, with `t` `[rows, rank]` and `W` `[rank, columns]`. For the ranks in use (up to
//! some dozens) that is little next to the layer itself, so it needs no operands of its own: [`Added`] adds it while the
//! sums are in registers. [`contract`] is what the gradients need, a product that sums over the many rows. [`product`] and
//! [`product_of_transposed`] are the other products of such matrices alone, which pack nothing.

use std::ops::Range;

use crate::depthwise::Pixels;
use crate::gemm::{Epilogue, Output, PANEL, Plain, load};
use crate::parallel::ranges;
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::{Isa, Operand, SharedMut, Tiles};

/// Rows summed in registers before they join the total: so many that 32 columns of them stay in the first-level cache
/// until all ranks are done; and a total of hundreds of thousands of rows loses less when it is summed in two steps.
const BLOCK: usize = 256;

/// Add `thin wide` to the sums before another epilogue takes them; with rank 0 nothing, so that one compiled product
/// serves both.
#[derive(Clone, Copy)]
pub struct Added<'a, E> {
    thin: &'a [f32],
    wide: &'a [f32],
    rank: usize,
    columns: usize,
    then: E,
}

impl<'a, E> Added<'a, E> {
    /// `thin` is `[rows, rank]`, `wide` `[rank, columns]`; both empty for rank 0.
    ///
    /// # Panics
    /// They are not made of whole rows.
    pub fn new(thin: &'a [f32], wide: &'a [f32], rank: usize, then: E) -> Self {
        let whole = |x: &[f32]| if rank == 0 { x.is_empty() } else { x.len().is_multiple_of(rank) };
        assert!(whole(thin) && whole(wide), "{} and {} values of rank {rank}", thin.len(), wide.len());
        Self { thin, wide, rank, columns: wide.len().checked_div(rank).unwrap_or_default(), then }
    }
}

impl<E: Epilogue> Epilogue for Added<'_, E> {
    fn check(&self, rows: usize, columns: usize) {
        let have = self.thin.len().checked_div(self.rank).map(|rows| (rows, self.columns));
        assert_eq!(have.unwrap_or((rows, columns)), (rows, columns), "rows and columns of what is added");
        self.then.check(rows, columns);
    }

    #[inline(always)]
    fn expect<S: Simd>(&self, s: S, row: usize, rows: usize, column: usize) {
        self.then.expect(s, row, rows, column);
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, row: usize, column: usize, count: usize, sums: [S::F; 2]) {
        let mut sums = sums;
        // SAFETY: both factors were checked for these rows and columns, as `then` was; of rank 0 there is nothing to read.
        unsafe {
            let thin = self.thin.get_unchecked(row * self.rank..(row + 1) * self.rank);
            for (k, t) in thin.iter().enumerate() {
                let w = load(s, self.wide, k * self.columns + column, count);
                let t = s.splat(*t);
                sums = [s.mul_add(t, w[0], sums[0]), s.mul_add(t, w[1], sums[1])];
            }
            self.then.put(s, row, column, count, sums);
        }
    }
}

/// `out = thinᵀ wide`, summed over the rows: `thin` is `[rows, rank]`, `wide` `[rows, columns]`, `out`
/// `[rank, columns]`. Columns are shared out among the threads, so their number changes nothing.
///
/// # Panics
/// The lengths do not fit each other.
pub fn contract<P: Pixels>(isa: Isa, thin: &[f32], rank: usize, wide: &P, out: &mut [f32]) {
    let (rows, columns) = wide.shape();
    assert!(thin.len() == rows * rank && out.len() == rank * columns, "{rows} rows, {columns} columns");
    out.fill(0.0);
    let out = SharedMut::new(out);
    ranges(columns, PANEL, 1, |range| {
        dispatch(isa, Contract { thin, rank, wide, columns: range, out });
    });
}

/// Add what [`contract`] gives, in some columns.
pub(crate) struct Contract<'a, P> {
    pub(crate) thin: &'a [f32],
    pub(crate) rank: usize,
    pub(crate) wide: &'a P,
    pub(crate) columns: Range<usize>,
    pub(crate) out: SharedMut<'a, f32>,
}

impl<P: Pixels> Kernel for Contract<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.wide.shape().0;
        for column in self.columns.clone().step_by(PANEL) {
            for first in (0..rows).step_by(BLOCK) {
                let block = first..rows.min(first + BLOCK);
                // Eight ranks at a time, two vectors of sums each, where registers hold them; what is left in smaller powers
                // of two.
                let mut k = 0;
                while k < self.rank {
                    k += match self.rank - k {
                        8.. if S::WIDE => self.block::<8, S>(s, block.clone(), column, k),
                        4.. if S::WIDE => self.block::<4, S>(s, block.clone(), column, k),
                        2.. => self.block::<2, S>(s, block.clone(), column, k),
                        _ => self.block::<1, S>(s, block.clone(), column, k),
                    };
                }
            }
        }
    }
}

impl<P: Pixels> Contract<'_, P> {
    /// Add some rows' products to `N` rows of the result from `k` on, in up to 32 columns; gives `N`.
    #[inline(always)]
    fn block<const N: usize, S: Simd>(&self, s: S, rows: Range<usize>, column: usize, k: usize) -> usize {
        let (all, count) = (self.wide.shape().1, (self.columns.end - column).min(PANEL));
        let mut sums = [[s.splat(0.0); 2]; N];
        for row in rows {
            let [first, second] = self.wide.load_panel(s, row, column, count);
            let at = row * self.rank + k;
            for (sums, t) in sums.iter_mut().zip(&self.thin[at..at + N]) {
                let t = s.splat(*t);
                *sums = [s.mul_add(t, first, sums[0]), s.mul_add(t, second, sums[1])];
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            let at = (k + i) * all + column;
            // SAFETY: columns are shared out among the tasks.
            let out = unsafe { self.out.part(at..at + count) };
            for (out, sums) in out.chunks_mut(LANES).zip(sums) {
                let total = s.add(s.load(out), sums);
                s.store(out, total);
            }
        }
        N
    }
}

/// `out = thin wide`: `[rows, rank]` with `[rank, columns]` to `[rows, columns]`.
///
/// # Panics
/// The lengths do not fit each other.
pub fn product(isa: Isa, thin: &[f32], wide: &[f32], rank: usize, out: &mut [f32]) {
    let [rows, columns] = sizes(thin, wide, rank, out.len());
    store_product(isa, thin, wide, [rows, rank, columns], Plain::new(out, columns));
}

/// The same into tiles, rounded.
///
/// # Panics
/// The sizes do not fit each other.
pub fn product_in_tiles<T: Operand>(isa: Isa, thin: &[f32], wide: &[f32], rank: usize, out: &mut Tiles<T>) {
    let [rows, columns] = sizes(thin, wide, rank, out.rows() * out.columns());
    store_product(isa, thin, wide, [rows, rank, columns], out.share());
}

fn store_product<O: Output>(isa: Isa, thin: &[f32], wide: &[f32], sizes: [usize; 3], out: O) {
    let [rows, _, columns] = sizes;
    out.check(rows, columns);
    ranges(rows, AT_ONCE, 2, |rows| dispatch(isa, Product { thin, wide, sizes, rows, out }));
}

/// `out = grad wideᵀ`: `[rows, columns]` with `[rank, columns]` to `[rows, rank]`, what the gradient of [`product`]'s thin
/// factor is.
///
/// # Panics
/// The lengths do not fit each other.
pub fn product_of_transposed(isa: Isa, grad: &[f32], wide: &[f32], rank: usize, out: &mut [f32]) {
    let [rows, columns] = sizes(out, wide, rank, grad.len());
    let out = SharedMut::new(out);
    ranges(rows, AT_ONCE, 2, |rows| {
        // SAFETY: ranges do not overlap.
        let out = unsafe { out.part(rows.start * rank..rows.end * rank) };
        let grad = &grad[rows.start * columns..rows.end * columns];
        dispatch(isa, OfTransposed { grad, wide, rank, out });
    });
}

/// Rows and columns, given `[rows, rank]`, `[rank, columns]` and the size of `[rows, columns]`.
pub(crate) fn sizes(thin: &[f32], wide: &[f32], rank: usize, whole: usize) -> [usize; 2] {
    assert!(rank > 0, "a rank");
    let (rows, columns) = (thin.len() / rank, wide.len() / rank);
    let lengths = [thin.len(), wide.len(), whole];
    assert_eq!(lengths, [rows * rank, rank * columns, rows * columns], "values, with rank {rank}");
    [rows, columns]
}

/// Rows that share each load of the wide factor.
const AT_ONCE: usize = 4;

struct Product<'a, O> {
    thin: &'a [f32],
    wide: &'a [f32],
    /// Rows, rank and columns of all.
    sizes: [usize; 3],
    rows: Range<usize>,
    out: O,
}

impl<O: Output> Kernel for Product<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut row = self.rows.start;
        while row < self.rows.end {
            row += match self.rows.end - row {
                AT_ONCE.. if S::WIDE => self.block::<AT_ONCE, S>(s, row),
                2.. => self.block::<2, S>(s, row),
                _ => self.block::<1, S>(s, row),
            };
        }
    }
}

impl<O: Output> Product<'_, O> {
    /// `N` rows from `row` on; gives `N`.
    #[inline(always)]
    fn block<const N: usize, S: Simd>(&self, s: S, row: usize) -> usize {
        let [_, rank, columns] = self.sizes;
        let thin = &self.thin[row * rank..(row + N) * rank];
        for column in (0..columns).step_by(PANEL) {
            let count = (columns - column).min(PANEL);
            let mut sums = [[s.splat(0.0); 2]; N];
            for k in 0..rank {
                // SAFETY: the factor has these columns in each of its rows.
                let w = unsafe { load(s, self.wide, k * columns + column, count) };
                for (sums, thin) in sums.iter_mut().zip(thin.chunks_exact(rank)) {
                    let t = s.splat(thin[k]);
                    *sums = [s.mul_add(t, w[0], sums[0]), s.mul_add(t, w[1], sums[1])];
                }
            }
            for (i, sums) in sums.into_iter().enumerate() {
                // SAFETY: checked for these rows and columns; rows are shared out among the tasks.
                unsafe { self.out.put(s, row + i, column, count, sums) };
            }
        }
        N
    }
}

/// What [`product_of_transposed`] makes of some rows.
pub(crate) struct OfTransposed<'a> {
    pub(crate) grad: &'a [f32],
    pub(crate) wide: &'a [f32],
    pub(crate) rank: usize,
    pub(crate) out: &'a mut [f32],
}

impl Kernel for OfTransposed<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { grad, wide, rank, out } = self;
        let columns = wide.len() / rank;
        // Without columns all sums are empty.
        let rows = grad.chunks(AT_ONCE * columns.max(1)).chain(std::iter::repeat(&[][..]));
        for (grad, out) in rows.zip(out.chunks_mut(AT_ONCE * rank)) {
            let mut k = 0;
            while k < rank {
                k += match rank - k {
                    4.. if S::WIDE => of_transposed::<4, S>(s, grad, wide, [rank, columns], k, out),
                    2.. => of_transposed::<2, S>(s, grad, wide, [rank, columns], k, out),
                    _ => of_transposed::<1, S>(s, grad, wide, [rank, columns], k, out),
                };
            }
        }
    }
}

/// `N` of the ranks, from `k` on, of up to [`AT_ONCE`] rows; gives `N`.
#[inline(always)]
fn of_transposed<const N: usize, S: Simd>(
    s: S,
    grad: &[f32],
    wide: &[f32],
    [rank, columns]: [usize; 2],
    k: usize,
    out: &mut [f32],
) -> usize {
    let mut sums = [[s.splat(0.0); N]; AT_ONCE];
    for column in (0..columns).step_by(LANES) {
        let count = (columns - column).min(LANES);
        let mut w = [s.splat(0.0); N];
        for (i, w) in w.iter_mut().enumerate() {
            *w = s.load(&wide[(k + i) * columns + column..][..count]);
        }
        for (sums, grad) in sums.iter_mut().zip(grad.chunks_exact(columns)) {
            let grad = s.load(&grad[column..column + count]);
            for (sum, w) in sums.iter_mut().zip(&w) {
                *sum = s.mul_add(grad, *w, *sum);
            }
        }
    }
    for (out, sums) in out.chunks_exact_mut(rank).zip(&sums) {
        for (out, sum) in out[k..k + N].iter_mut().zip(sums) {
            *out = s.sum(*sum);
        }
    }
    N
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::depthwise::Rows;
    use crate::gemm::{self, Activate, Activation, Matrix, Rounded, Store};
    use crate::testing::{Sweep, assert_close, operands, sweep, values, wide};

    /// Rows, rank, columns.
    struct Sizes(usize, usize, usize);

    impl Sweep for Sizes {
        fn check<T: Operand>(&self, isa: Isa, _rounding: f64) {
            let &Self(rows, rank, columns) = self;
            let what = format!("{isa:?} {rows} rows, rank {rank}, {columns} columns");
            let thin = values(rows * rank, 1);
            let expected = |x: &[f64]| -> Vec<f64> {
                let sum = |k: usize, c: usize| {
                    (0..rows).map(|r| f64::from(thin[r * rank + k]) * x[r * columns + c]).sum()
                };
                (0..rank * columns).map(|i| sum(i / columns, i % columns)).collect()
            };
            // Products of f32 in sums of two steps: far fewer roundings count than there are rows.
            let tolerance = 1e-5;
            let x = operands::<T>(rows * columns, 2);
            let mut out = vec![9.0; rank * columns];
            contract(isa, &thin, rank, &Tiles::from_rows(&x, columns), &mut out);
            assert_close(&out, &expected(&wide(&x)), tolerance, &what);
            let x = values(rows * columns, 3);
            contract(isa, &thin, rank, &Rows::new(&x, columns), &mut out);
            assert_close(&out, &expected(&wide(&x)), tolerance, &what);
            let mut again = vec![9.0; rank * columns];
            contract(isa, &thin, rank, &Rounded::new(&x, columns), &mut again);
            assert_eq!(out, again, "{what}");
        }
    }

    /// Rows, rank, columns.
    struct Thin([usize; 3]);

    impl Sweep for Thin {
        fn check<T: Operand>(&self, isa: Isa, _rounding: f64) {
            let [rows, rank, columns] = self.0;
            let what = format!("{isa:?} {:?}", self.0);
            let (thin, w) = (values(rows * rank, 1), values(rank * columns, 2));
            let (xs, ws) = (wide(&thin), wide(&w));
            let sum = |i: usize| -> f64 {
                (0..rank).map(|k| xs[i / columns * rank + k] * ws[k * columns + i % columns]).sum()
            };
            let mut out = vec![9.0; rows * columns];
            product(isa, &thin, &w, rank, &mut out);
            let expected: Vec<f64> = (0..out.len()).map(sum).collect();
            assert_close(&out, &expected, 1e-5, &what);
            let mut tiles = Tiles::<T>::new(rows, columns);
            product_in_tiles(isa, &thin, &w, rank, &mut tiles);
            let rounded: Vec<T> = out.iter().map(|v| T::from_f32(*v)).collect();
            assert_eq!(tiles.to_rows(), rounded, "{what}");
            let grad = values(rows * columns, 3);
            let gs = wide(&grad);
            let sum = |i: usize| -> f64 {
                (0..columns).map(|c| gs[i / rank * columns + c] * ws[i % rank * columns + c]).sum()
            };
            let mut out = vec![9.0; rows * rank];
            product_of_transposed(isa, &grad, &w, rank, &mut out);
            let expected: Vec<f64> = (0..out.len()).map(sum).collect();
            assert_close(&out, &expected, 1e-5, &what);
        }
    }

    #[test]
    fn thin_products_agree_with_f64() {
        for sizes in [[1, 1, 1], [4, 2, 16], [5, 3, 33], [7, 6, 70], [0, 2, 5], [3, 4, 0], [41, 13, 40]] {
            if !cfg!(miri) || sizes[0] < 41 {
                sweep(&Thin(sizes));
            }
        }
    }

    #[test]
    fn contractions_agree_with_f64() {
        let many: &[_] = if cfg!(miri) { &[(9, 3, 40)] } else { &[(600, 11, 70), (1000, 40, 33)] };
        for &(rows, rank, columns) in many {
            sweep(&Sizes(rows, rank, columns));
        }
        let ranks: &[usize] = if cfg!(miri) { &[1, 3] } else { &[1, 2, 3, 4, 5, 7, 8, 13, 16, 31, 40] };
        for &rank in ranks {
            for (rows, columns) in [(0, 5), (1, 1), (1, 32), (7, 17), (33, 63)] {
                sweep(&Sizes(rows, rank, columns));
            }
        }
    }

    /// Threads share out columns, and their number is nobody's business.
    #[test]
    #[cfg_attr(miri, ignore = "too long")]
    fn contractions_do_not_depend_on_threads() {
        let (rows, rank, columns) = (700, 5, 200);
        let (thin, x) = (values(rows * rank, 1), values(rows * columns, 2));
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut out = vec![9.0; rank * columns];
            pool.install(|| contract(Isa::best(), &thin, rank, &Rows::new(&x, columns), &mut out));
            out
        };
        let alone = with(1);
        for threads in [2, 3, 5] {
            assert_eq!(with(threads), alone, "{threads} threads");
        }
    }

    /// A product and an update behind it: rows, depth, rank, columns.
    struct Updated([usize; 4]);

    impl Sweep for Updated {
        fn check<T: Operand>(&self, isa: Isa, rounding: f64) {
            let [rows, depth, rank, columns] = self.0;
            let what = format!("{isa:?} {:?}", self.0);
            let (x, w) = (operands::<T>(rows * depth, 1), operands::<T>(depth * columns, 2));
            let (thin, update) = (values(rows * rank, 3), values(rank * columns, 4));
            let bias = values(columns, 5);
            let (xs, ws) = (wide(&x), wide(&w));
            let expected: Vec<f64> = (0..rows * columns)
                .map(|i| {
                    let (r, c) = (i / columns, i % columns);
                    let own: f64 = (0..depth).map(|k| xs[r * depth + k] * ws[k * columns + c]).sum();
                    let more: f64 = (0..rank)
                        .map(|k| f64::from(thin[r * rank + k]) * f64::from(update[k * columns + c]))
                        .sum();
                    own + more + f64::from(bias[c])
                })
                .collect();
            let matrix = Matrix::<T>::pack(depth, columns, |k, n| w[k * columns + n].to_f32());
            let x = Tiles::from_rows(&x, depth);
            let mut out = vec![9.0; rows * columns];
            let store = Store::new(&mut out, columns).bias(&bias);
            gemm::run(isa, &x, &matrix, &Added::new(&thin, &update, rank, store));
            assert_close(&out, &expected, 1e-5, &what);
            let mut out = Tiles::<T>::new(rows, columns);
            let activate = Activate::new(Activation::Relu, &bias, &mut out);
            gemm::run(isa, &x, &matrix, &Added::new(&thin, &update, rank, activate));
            let expected: Vec<f64> = expected.iter().map(|v| v.max(0.0)).collect();
            assert_close(&out.to_rows(), &expected, rounding + 1e-5, &what);
            // An update of zeros changes no bit.
            let (mut plain, mut none) = (vec![9.0; rows * columns], vec![8.0; rows * columns]);
            gemm::run(isa, &x, &matrix, &Store::new(&mut plain, columns));
            let zeros = vec![0.0; rank * columns];
            gemm::run(isa, &x, &matrix, &Added::new(&thin, &zeros, rank, Store::new(&mut none, columns)));
            assert_eq!(plain, none, "{what}");
        }
    }

    #[test]
    fn updates_agree_with_f64() {
        for sizes in [[1, 1, 1, 1], [5, 7, 3, 33], [0, 4, 2, 8], [37, 40, 8, 70]] {
            if !cfg!(miri) || sizes[0] < 37 {
                sweep(&Updated(sizes));
            }
        }
    }
}
