use proptest::prelude::*;

use super::*;
use crate::gemm::{Activate, Activation, Store};
use crate::testing::{Sweep, assert_close, operands, sweep, values, wide};
use crate::{Operand, Tiles};

struct Maps {
    shape: Shape,
    images: usize,
    size: [usize; 2],
}

impl Sweep for Maps {
    fn check<T: Operand>(&self, isa: Isa, rounding: f64) {
        let &Self { shape, images, size: [h, w] } = self;
        let Shape { channels, side, stride, padding } = shape;
        let what = format!("{isa:?} {shape:?} {images} {h}x{w}");
        let kernel = values(channels * side * side, 1);
        let bias = values(channels, 2);
        let [oh, ow] = shape.output([h, w]);
        let x = operands::<T>(images * h * w * channels, 3);
        let grad = operands::<T>(images * oh * ow * channels, 4);
        let (wide_x, wide_grad) = (wide(&x), wide(&grad));
        let mut expected: Vec<f64> = (0..grad.len()).map(|i| f64::from(bias[i % channels])).collect();
        let mut back = vec![0.0; x.len()];
        for (image, oy, ox) in (0..images * oh * ow).map(|i| (i / (oh * ow), i / ow % oh, i % ow)) {
            for (ky, kx) in (0..side * side).map(|i| (i / side, i % side)) {
                let (y, x) = (oy * stride + ky, ox * stride + kx);
                if y < padding || x < padding || y - padding >= h || x - padding >= w {
                    continue;
                }
                let from = ((image * h + y - padding) * w + x - padding) * channels;
                let to = ((image * oh + oy) * ow + ox) * channels;
                for c in 0..channels {
                    let k = f64::from(kernel[(c * side + ky) * side + kx]);
                    expected[to + c] += k * wide_x[from + c];
                    back[from + c] += k * wide_grad[to + c];
                }
            }
        }
        let conv = Depthwise::new(shape, &kernel);
        let tiles = Tiles::from_rows(&x, channels);
        let mut out = vec![9.0; expected.len()];
        conv.run(isa, &tiles, images, [h, w], &Store::new(&mut out, channels).bias(&bias));
        assert_close(&out, &expected, 1e-5, &what);

        // From rows of f32, with an activation and what it was applied to.
        let rows: Vec<f32> = x.iter().map(|v| v.to_f32()).collect();
        let (pixels, function) = (images * oh * ow, Activation::Relu);
        let (mut out, mut before) = (Tiles::<T>::new(pixels, channels), Tiles::new(pixels, channels));
        let epilogue = Activate::new(function, &bias, &mut out).keep(&mut before);
        conv.run(isa, &Rows::new(&rows, channels), images, [h, w], &epilogue);
        assert_close(&before.to_rows(), &expected, rounding, &what);
        let positive: Vec<f64> = expected.iter().map(|v| v.max(0.0)).collect();
        let largest = expected.iter().fold(1.0_f64, |m, v| m.max(v.abs()));
        for (found, expected) in wide(&out.to_rows()).iter().zip(&positive) {
            assert!((found - expected).abs() <= rounding * largest, "{what}: {found} {expected}");
        }

        let mut out = vec![9.0; back.len()];
        let tiles = Tiles::from_rows(&grad, channels);
        conv.backward(isa, &tiles, images, [h, w], &Store::new(&mut out, channels));
        assert_close(&out, &back, 1e-5, &what);
        let rows: Vec<f32> = grad.iter().map(|v| v.to_f32()).collect();
        let mut out = Tiles::<T>::new(images * h * w, channels);
        conv.backward(isa, &Rows::new(&rows, channels), images, [h, w], &Store::tiles(&mut out));
        assert_close(&out.to_rows(), &back, rounding, &what);
    }
}

#[test]
fn kernels_of_any_geometry_agree_with_f64() {
    for (channels, side, stride, padding, images, size) in [
        (1, 3, 1, 1, 1, [1, 1]),
        (5, 7, 1, 3, 2, [2, 3]),
        (17, 7, 1, 3, 1, [9, 15]),
        (33, 5, 2, 2, 1, [6, 7]),
        (16, 3, 2, 1, 2, [5, 4]),
        (5, 7, 2, 3, 1, [1, 2]),
        // Pixels that no window reaches, steps beyond two, wide padding, an even side, no images.
        (3, 1, 2, 0, 1, [4, 5]),
        (3, 1, 2, 0, 1, [4, 17]),
        (4, 3, 3, 0, 1, [8, 7]),
        (2, 3, 1, 2, 1, [3, 4]),
        (2, 3, 4, 2, 1, [9, 6]),
        (1, 4, 1, 1, 1, [5, 5]),
        (33, 3, 1, 1, 0, [4, 4]),
        // A factor a channel.
        (50, 1, 1, 0, 2, [5, 7]),
    ] {
        sweep(&Maps { shape: Shape { channels, side, stride, padding }, images, size });
    }
}

/// Maps of several strips, and of both widths of blocks.
#[test]
#[cfg_attr(miri, ignore = "too long")]
fn large_maps_agree_with_f64() {
    for (channels, side, stride, size) in [(130, 7, 1, [56, 56]), (70, 3, 2, [65, 64])] {
        sweep(&Maps { shape: Shape { channels, side, stride, padding: side / 2 }, images: 1, size });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 1 } else { 24 }, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_shape_agrees_with_f64(
        channels in 1..40_usize,
        half in 0..4_usize,
        stride in 1..4_usize,
        images in 0..3_usize,
        height in 1..12_usize,
        width in 1..20_usize,
    ) {
        let shape = Shape { channels, side: 2 * half + 1, stride, padding: half };
        sweep(&Maps { shape, images, size: [height, width] });
    }
}

#[test]
#[should_panic(expected = "pixels and channels")]
fn maps_of_another_size_are_refused() {
    let conv = Depthwise::new(Shape { channels: 2, side: 3, stride: 1, padding: 1 }, &[1.0; 18]);
    conv.run(Isa::best(), &Rows::new(&[0.0; 8], 2), 1, [2, 3], &Store::new(&mut [0.0; 12], 2));
}

#[test]
#[should_panic(expected = "on a map of [2, 2]")]
fn maps_smaller_than_the_kernel_are_refused_without_padding() {
    Shape { channels: 1, side: 3, stride: 1, padding: 0 }.output([2, 2]);
}
