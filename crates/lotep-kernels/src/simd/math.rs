//! Functions of sixteen lanes.

use super::Simd;

/// `e^x`, to 3e-7 relative; 0 below -87, kept finite above 88, no number of what is none.
///
/// With `x = n ln 2 + r`, `|r| <= ln 2 / 2`: `2^n` times the Taylor series of `e^r`, whose eighth term is below
/// 6e-9.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // Adding 1.5 · 2^23 leaves no bits for a fraction: the sum rounds to an integer.
    const SHIFT: f32 = 12_582_912.0;
    // ln 2 in two parts, the first with zeros enough at its end for n times it to be exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // In this order, what is no number stays none.
    let clamped = s.min(s.splat(88.0), s.max(s.splat(-87.0), x));
    let shifted = s.mul_add(clamped, s.splat(std::f32::consts::LOG2_E), s.splat(SHIFT));
    let n = s.sub(shifted, s.splat(SHIFT));
    let r = s.mul_add(n, s.splat(-LN_2_HIGH), clamped);
    let r = s.mul_add(n, s.splat(-LN_2_LOW), r);
    let mut y = s.splat(1.0 / 5040.0);
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        y = s.mul_add(y, r, s.splat(factor));
    }
    let y = s.scale_by_power(y, n);
    s.select(s.positive(s.sub(s.splat(-87.0), x)), s.splat(0.0), y)
}

/// Below this power of two a weight of a softmax, whose largest is 1, is nothing. It is far enough from the smallest
/// normal number that products of such weights are normal too: subnormal ones take hundreds of cycles each, and masks
/// make many.
const LEAST: f32 = -64.0;

/// `2^x` for `x <= 0`, to 3e-7 relative; `2^-64` below -64, no number of what is none.
///
/// `2^n` times the Taylor series of `2^r`, with `x = n + r`, `|r| <= 1/2`.
#[inline(always)]
pub fn exp2<S: Simd>(s: S, x: S::F) -> S::F {
    const FACTORS: [f32; 8] = [
        1.525_273_4e-5,
        1.540_353e-4,
        1.333_355_8e-3,
        9.618_129e-3,
        5.550_411e-2,
        0.240_226_5,
        std::f32::consts::LN_2,
        1.0,
    ];
    power_of_two(s, x, &FACTORS)
}

/// `2^x` likewise to 4e-6, for results that are rounded to bfloat16: a polynomial of degree 4 with the least largest
/// error.
#[inline(always)]
pub fn coarse_exp2<S: Simd>(s: S, x: S::F) -> S::F {
    power_of_two(s, x, &COARSE_EXP2)
}

const COARSE_EXP2: [f32; 5] = [0.009_570_102, 0.055_917_86, 0.240_247_45, 0.693_121_8, 0.999_999_3];

#[inline(always)]
fn power_of_two<S: Simd, const N: usize>(s: S, x: S::F, factors: &[f32; N]) -> S::F {
    // In this order, what is no number stays none.
    let x = s.max(s.splat(LEAST), x);
    let n = s.round(x);
    let r = s.sub(x, n);
    let mut y = s.splat(factors[0]);
    for factor in &factors[1..] {
        y = s.mul_add(y, r, s.splat(*factor));
    }
    s.scale_by_power(y, n)
}

/// The standard normal distribution's `(Φ(x), e^(-x²/2))`, to 3e-7 of the smaller of Φ and 1 - Φ for `|x| < 3`.
///
/// The further tail is `e^(-x²/2)` times a function that falls slowly: a polynomial of degree 8 in
/// `t = 1 / (1 + 0.3 |x|)`, fitted here to 9e-8 relative for `|x| < 12`.
#[inline(always)]
pub fn gaussian_cdf<S: Simd>(s: S, x: S::F) -> (S::F, S::F) {
    const FACTORS: [f32; 8] = [
        0.036_742_494,
        -0.161_682_98,
        0.214_138_93,
        -0.060_925_204,
        0.132_442_79,
        0.098_718_49,
        0.120_949_18,
        0.119_616_27,
    ];
    let negated = s.sub(s.splat(0.0), x);
    let magnitude = s.max(x, negated);
    let bell = exp(s, s.mul(s.mul(x, s.splat(-0.5)), x));
    let t = s.recip(s.mul_add(magnitude, s.splat(0.3), s.splat(1.0)));
    let mut y = s.splat(FACTORS[0]);
    for factor in &FACTORS[1..] {
        y = s.mul_add(y, t, s.splat(*factor));
    }
    let tail = s.mul(s.mul(y, t), bell);
    (s.select(s.positive(x), s.sub(s.splat(1.0), tail), tail), bell)
}

/// Φ(x) to 8e-6, for results that are rounded to bfloat16: a polynomial where `|x| < 4.5`, constant beyond.
#[inline(always)]
pub fn coarse_gaussian_cdf<S: Simd>(s: S, x: S::F) -> S::F {
    odd(
        s,
        x,
        &[
            -0.001_930_519_5,
            0.004_962_709_7,
            -0.006_070_226_4,
            0.009_653_213,
            -0.018_483_948,
            0.028_857_656,
            -0.040_236_983,
            0.054_637_488,
            -0.077_185_884,
            0.156_906_04,
        ],
    )
}

/// The derivative of `x Φ(x)` to 1e-4, likewise.
#[inline(always)]
pub fn coarse_gelu_derivative<S: Simd>(s: S, x: S::F) -> S::F {
    odd(
        s,
        x,
        &[
            0.011_935_175,
            -0.029_362_863,
            0.028_460_503,
            -0.036_211_38,
            0.069_761_485,
            -0.093_837_336,
            0.097_899_62,
            -0.093_922_02,
            0.086_987_39,
            -0.090_013_2,
            0.159_431_55,
        ],
    )
}

/// `1/2 + x p(2 (x / 4.5)² - 1)` with `x` held within ±4.5; in that variable, which spans ±1, the factors stay small.
/// Fitted here to the least largest error.
#[inline(always)]
fn odd<S: Simd, const N: usize>(s: S, x: S::F, factors: &[f32; N]) -> S::F {
    const END: f32 = 4.5;
    let x = s.min(s.splat(END), s.max(s.splat(-END), x));
    let u = s.mul_add(s.mul(x, x), s.splat(2.0 / (END * END)), s.splat(-1.0));
    let mut y = s.splat(factors[0]);
    for factor in &factors[1..] {
        y = s.mul_add(y, u, s.splat(*factor));
    }
    s.mul_add(y, x, s.splat(0.5))
}

/// `1 / (1 + e^-x)`, to 4e-7 relative.
#[inline(always)]
pub fn logistic<S: Simd>(s: S, x: S::F) -> S::F {
    s.recip(s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), x))))
}

/// The same to 5e-6, for results that are rounded to bfloat16; constant, at 2^-64 and 1, where `|x| > 64 ln 2`, about 44.4.
#[inline(always)]
pub fn coarse_logistic<S: Simd>(s: S, x: S::F) -> S::F {
    let power = s.min(s.splat(-LEAST), s.mul(x, s.splat(-std::f32::consts::LOG2_E)));
    s.recip(s.add(s.splat(1.0), power_of_two(s, power, &COARSE_EXP2)))
}

#[cfg(test)]
mod tests {
    use super::super::{Kernel, LANES, dispatch};
    use super::*;
    use crate::Isa;

    /// Worst error of the functions over a fine grid.
    struct Errors;

    impl Kernel for Errors {
        type Output = [f64; 9];

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f64; 9] {
            let mut worst = [0.0_f64; 9];
            let steps = if cfg!(miri) { 40 } else { 1_000 };
            for i in 0..steps {
                let x: [f32; LANES] =
                    std::array::from_fn(|l| ((i * LANES + l) as f32 / (steps * LANES) as f32 - 0.5) * 170.0);
                let get = |v: S::F| {
                    let mut out = [0.0_f32; LANES];
                    s.store(&mut out, v);
                    out
                };
                let e = get(exp(s, s.load(&x)));
                let small = x.map(|v| v / 10.0);
                let (cdf, bell) = gaussian_cdf(s, s.load(&small));
                let (cdf, bell) = (get(cdf), get(bell));
                let sigmoid = get(logistic(s, s.load(&small)));
                // As far as it is not constant.
                let half = x.map(|v| v / 85.0 * 44.0);
                let coarse_sigmoid = get(coarse_logistic(s, s.load(&half)));
                let coarse = get(coarse_gaussian_cdf(s, s.load(&small)));
                let slope = get(coarse_gelu_derivative(s, s.load(&small)));
                let below = x.map(|v| v - 85.0);
                let (two, coarse_two) = (exp2(s, s.load(&below)), coarse_exp2(s, s.load(&below)));
                let (two, coarse_two) = (get(two), get(coarse_two));
                for l in 0..LANES {
                    let power = f64::from(below[l].max(LEAST)).exp2();
                    let (x, y) = (f64::from(x[l]), f64::from(small[l]));
                    let gauss = (-y * y / 2.0).exp();
                    let errors = [
                        f64::from(e[l]) / x.exp() - 1.0,
                        f64::from(cdf[l]) - cdf_reference(y),
                        f64::from(bell[l]) - gauss,
                        f64::from(sigmoid[l]) * (1.0 + (-y).exp()) - 1.0,
                        f64::from(coarse[l]) - cdf_reference(y),
                        f64::from(slope[l])
                            - (cdf_reference(y) + y * gauss / (2.0 * std::f64::consts::PI).sqrt()),
                        f64::from(two[l]) / power - 1.0,
                        f64::from(coarse_two[l]) / power - 1.0,
                        f64::from(coarse_sigmoid[l]) * (1.0 + (-f64::from(half[l])).exp()) - 1.0,
                    ];
                    for (w, e) in worst.iter_mut().zip(errors) {
                        *w = w.max(e.abs());
                    }
                }
            }
            worst
        }
    }

    /// Φ by Simpson's rule from 0.
    fn cdf_reference(x: f64) -> f64 {
        let n = if cfg!(miri) { 60 } else { 200 };
        let h = x / f64::from(n);
        let f = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let sum: f64 = (0..n)
            .map(|i| {
                let a = f64::from(i) * h;
                (f(a) + 4.0 * f(a + h / 2.0) + f(a + h)) * h / 6.0
            })
            .sum();
        0.5 + sum
    }

    #[test]
    fn what_is_no_number_stays_none() {
        struct Check;
        impl Kernel for Check {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(self, s: S) {
                let nan = s.splat(f32::NAN);
                let all = [
                    exp(s, nan),
                    gaussian_cdf(s, nan).0,
                    coarse_gaussian_cdf(s, nan),
                    coarse_gelu_derivative(s, nan),
                    logistic(s, nan),
                    coarse_logistic(s, nan),
                    exp2(s, nan),
                    coarse_exp2(s, nan),
                    crate::gemm::Activation::Relu.value::<f32, S>(s, nan),
                ];
                for v in all {
                    let mut out = [0.0; LANES];
                    s.store(&mut out, v);
                    assert!(out.iter().all(|v| v.is_nan()));
                }
            }
        }
        for isa in Isa::available() {
            dispatch(*isa, Check);
        }
    }

    #[test]
    fn a_coarse_logistic_ends_where_it_should() {
        struct Ends;
        impl Kernel for Ends {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(self, s: S) {
                for x in [45.0, 100.0, 1e30, f32::INFINITY] {
                    let mut out = [[0.0; LANES]; 2];
                    s.store(&mut out[0], coarse_logistic(s, s.splat(x)));
                    s.store(&mut out[1], coarse_logistic(s, s.splat(-x)));
                    assert!(out[0].iter().all(|v| (v - 1.0).abs() < 1e-6), "{x}: {out:?}");
                    assert!(out[1].iter().all(|v| *v > 0.0 && *v < 1e-19), "{x}: {out:?}");
                }
            }
        }
        for isa in Isa::available() {
            dispatch(*isa, Ends);
        }
    }

    #[test]
    fn functions_are_as_accurate_as_they_say() {
        for isa in Isa::available() {
            let [e, cdf, bell, sigmoid, coarse, slope, two, coarse_two, coarse_sigmoid] =
                dispatch(*isa, Errors);
            assert!(e < 3e-7 && sigmoid < 4e-7, "{isa:?}: {e} {sigmoid}");
            assert!(coarse < 8e-6 && slope < 1e-4, "{isa:?}: {coarse} {slope}");
            assert!(two < 3e-7 && coarse_two < 4e-6, "{isa:?}: {two} {coarse_two}");
            assert!(coarse_sigmoid < 5e-6, "{isa:?}: {coarse_sigmoid}");
            assert!(cdf < 3e-7 && bell < 2e-7, "{isa:?}: {cdf} {bell}");
        }
    }
}
