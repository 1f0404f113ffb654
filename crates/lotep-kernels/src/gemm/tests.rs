use proptest::prelude::*;

use super::*;
use crate::Tiles;
use crate::testing::{Sweep, asks_once, assert_close, operands, sweep, values, wide};

/// `A W` in f64.
fn reference<T: Operand>(a: &[T], w: &dyn Fn(usize, usize) -> f32, sizes: [usize; 3]) -> Vec<f64> {
    let [rows, depth, columns] = sizes;
    let a = wide(a);
    let rounded = |k, n| f64::from(T::from_f32(w(k, n)).to_f32());
    let mut out = vec![0.0; rows * columns];
    for r in 0..rows {
        for n in 0..columns {
            out[r * columns + n] = (0..depth).map(|k| a[r * depth + k] * rounded(k, n)).sum();
        }
    }
    out
}

fn scalar(function: Activation, x: f64) -> f64 {
    let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
    match function {
        Activation::Identity => x,
        Activation::Relu => x.max(0.0),
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Silu => x * sigmoid(x),
        Activation::Gelu => {
            // Φ by Simpson's rule.
            let n = 100;
            let h = x / f64::from(n);
            let f = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let part = |i| f(f64::from(i) * h) + 4.0 * f((f64::from(i) + 0.5) * h) + f(f64::from(i + 1) * h);
            x * (0.5 + (0..n).map(part).sum::<f64>() * h / 6.0)
        }
    }
}

const FUNCTIONS: [Activation; 5] =
    [Activation::Identity, Activation::Relu, Activation::Gelu, Activation::QuickGelu, Activation::Silu];

struct Products([usize; 3], u64);

impl Sweep for Products {
    fn check<T: Operand>(&self, isa: Isa, rounding: f64) {
        let ([rows, depth, columns], seed) = (self.0, self.1);
        let what = format!("{isa:?} {} {:?}", std::any::type_name::<T>(), self.0);
        let (a, w) = (operands::<T>(rows * depth, seed), values(depth * columns, seed + 1));
        let tiles = Tiles::from_rows(&a, depth);
        let at = |k: usize, n: usize| w[k * columns + n];
        let packed = Matrix::<T>::pack(depth, columns, at);
        let exact = reference(&a, &at, self.0);

        // Plain, and from f32 rows rounded on the way; into rows further apart than they are long.
        let bias = values(columns, seed + 2);
        let mut out = vec![9.0_f32; rows * (columns + 3)];
        run(isa, &tiles, &packed, &Store::new(&mut out, columns + 3).bias(&bias));
        let with_bias: Vec<f64> =
            exact.iter().enumerate().map(|(i, v)| v + f64::from(bias[i % columns])).collect();
        // All rows at once: a row of one column may nearly cancel, and its error is that of what cancelled.
        let mut found = Vec::new();
        for row in out.chunks(columns + 3) {
            assert_eq!(row[columns..], [9.0; 3], "{what}: written past the row");
            found.extend_from_slice(&row[..columns]);
        }
        assert_close(&found, &with_bias, 1e-5, &what);
        let unrounded: Vec<f32> = a.iter().map(|v| v.to_f32()).collect();
        let mut narrow = Tiles::<T>::new(rows, columns);
        run(isa, &Rounded::new(&unrounded, depth), &packed, &Store::tiles(&mut narrow));
        assert_close(&narrow.to_rows(), &exact, rounding, &what);

        // Residual with a prompt that repeats every second row where it can.
        let period = if rows.is_multiple_of(2) { 2 } else { rows };
        let (x, prompt) = (values(rows * columns, seed + 3), values(period * columns, seed + 4));
        let mut out = vec![0.0_f32; rows * columns];
        run(isa, &tiles, &packed, &Residual::new(&x, &prompt, &bias, &mut out, columns));
        let expected: Vec<f64> = with_bias
            .iter()
            .enumerate()
            .map(|(i, v)| v + f64::from(x[i]) + f64::from(prompt[i % prompt.len()]))
            .collect();
        assert_close(&out, &expected, 1e-5, &what);

        asks_once(rows, columns, &what, |asked| run(isa, &tiles, &packed, asked));

        // Activations, and back through them.
        for function in FUNCTIONS {
            let what = format!("{what} {function:?}");
            let (mut out, mut before) = (Tiles::<T>::new(rows, columns), Tiles::<T>::new(rows, columns));
            let epilogue = Activate::new(function, &bias, &mut out).keep(&mut before);
            run(isa, &tiles, &packed, &epilogue);
            let expected: Vec<f64> = with_bias.iter().map(|v| scalar(function, *v)).collect();
            assert_close(&before.to_rows(), &with_bias, rounding, &what);
            assert_close(&out.to_rows(), &expected, rounding, &what);

            let mut out = Tiles::<T>::new(rows, columns);
            run(isa, &tiles, &packed, &Multiply::new(function, &before, &mut out));
            let before = before.to_rows();
            let slope = |x: f64| match function {
                Activation::Relu => f64::from(u8::from(x > 0.0)),
                _ => (scalar(function, x + 1e-4) - scalar(function, x - 1e-4)) / 2e-4,
            };
            let expected: Vec<f64> =
                exact.iter().zip(&before).map(|(v, x)| v * slope(f64::from(x.to_f32()))).collect();
            assert_close(&out.to_rows(), &expected, 1e-4 + rounding, &what);
        }
    }
}

/// The last has its summed axis in parts.
#[test]
fn awkward_shapes_agree_with_f64() {
    for sizes in [
        [1, 1, 1],
        [1, 33, 31],
        [2, 32, 32],
        [17, 64, 33],
        [33, 7, 65],
        [48, 100, 16],
        [33, 270, 65],
        [49, 1600, 33],
    ] {
        sweep(&Products(sizes, 7));
    }
}

/// One thread takes all panels, for which rows are turned where they may be: in parts, the last of two tiles or one.
#[test]
fn turned_rows_agree_with_f64() {
    struct Wide;
    impl Kernel for Wide {
        type Output = bool;
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> bool {
            S::WIDE
        }
    }
    for isa in Isa::available() {
        assert_ne!(block::turns(*isa), dispatch(*isa, Wide), "{isa:?}");
    }
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for sizes in [[1, 33, 40], [17, 130, 65], [33, 270, 65]] {
        alone.install(|| sweep(&Products(sizes, 7)));
    }
}

/// Shapes whose blocks are shared out by rows, by columns, and by both.
#[test]
#[cfg_attr(miri, ignore = "too long")]
fn large_shapes_agree_with_f64() {
    for sizes in [[1, 1200, 600], [197, 256, 192], [1500, 64, 64], [700, 1600, 40]] {
        sweep(&Products(sizes, 11));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 1 } else { 24 }, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_shape_agrees_with_f64(rows in 1..70_usize, depth in 1..150_usize, columns in 1..90_usize, seed in 0..1000_u64) {
        sweep(&Products([rows, depth, columns], seed));
    }
}

#[test]
fn nothing_in_nothing_out() {
    for isa in Isa::available() {
        let w = Matrix::<half::bf16>::pack(8, 5, |_, _| 1.0);
        run(*isa, &Rounded::new(&[], 8), &w, &Store::new(&mut [], 5));
    }
}

#[test]
#[should_panic(expected = "depth")]
fn shapes_that_do_not_fit_are_refused() {
    let w = Matrix::<f32>::pack(8, 5, |_, _| 1.0);
    run(Isa::best(), &Rounded::new(&[0.0; 9], 9), &w, &Store::new(&mut [0.0; 5], 5));
}

#[test]
#[should_panic(expected = "values for")]
fn a_result_without_room_is_refused() {
    let w = Matrix::<f32>::pack(8, 5, |_, _| 1.0);
    run(Isa::best(), &Rounded::new(&[0.0; 16], 8), &w, &Store::new(&mut [0.0; 9], 5));
}

/// Packed by tiles, in either direction, as one element at a time.
struct Weights([usize; 2]);

impl Sweep for Weights {
    fn check<T: Operand>(&self, isa: Isa, _rounding: f64) {
        let [depth, columns] = self.0;
        let what = format!("{isa:?} {} {depth} x {columns}", std::any::type_name::<T>());
        let weight = values(depth * columns, 1);
        let expected = Matrix::<T>::pack(depth, columns, |k, n| weight[n * depth + k]);
        let found = Matrix::<T>::of_weight(isa, &weight, depth);
        let (turned, back) = (found.transposed(), found.transposed().transposed());
        assert_eq!((turned.depth(), turned.columns()), (columns, depth), "{what}");
        // With what fills the last lines up: products read that.
        let all = |matrix: &Matrix<T>| {
            let panels = (0..matrix.panels()).flat_map(|p| matrix.panel(p).iter().map(|line| line.0));
            panels.collect::<Vec<_>>()
        };
        assert_eq!(all(&found), all(&expected), "{what}");
        assert_eq!(all(&back), all(&expected), "{what}");
        let expected = Matrix::<T>::pack(columns, depth, |n, k| weight[n * depth + k]);
        assert_eq!(all(&turned), all(&expected), "{what}");
    }
}

#[test]
fn weights_are_packed_as_their_elements_are() {
    for sizes in [[1, 1], [16, 16], [5, 33], [32, 64], [70, 17], [33, 100]] {
        sweep(&Weights(sizes));
    }
}
