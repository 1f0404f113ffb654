use super::*;
use crate::testing::{Sweep, assert_close, operands, sweep, values, wide};

struct Photos {
    shape: Shape,
    images: usize,
    size: [usize; 2],
    /// Values are whole numbers, so that there are ties, and windows without anything above zero.
    coarse: bool,
}

impl Photos {
    /// The pooling's output, and where each value comes from.
    fn pool(&self, conv: &[f64], bias: &[f64]) -> (Vec<f64>, Vec<Option<usize>>) {
        let channels = self.shape.outputs;
        let [h, w] = self.shape.output(self.size);
        let [oh, ow] = pooled([h, w]);
        let of = |i: usize| {
            let (pixel, c) = (i / channels, i % channels);
            let (b, oy, ox) = (pixel / (oh * ow), pixel / ow % oh, pixel % ow);
            let mut best = (0.0, None);
            for (y, x) in (0..9).map(|t| (2 * oy + t / 3, 2 * ox + t % 3)) {
                if y > 0 && x > 0 && y <= h && x <= w {
                    let at = ((b * h + y - 1) * w + x - 1) * channels + c;
                    let v = conv[at] + bias[c];
                    if v > best.0 {
                        best = (v, Some(at));
                    }
                }
            }
            best
        };
        (0..self.images * oh * ow * channels).map(of).unzip()
    }
}

impl Sweep for Photos {
    fn check<T: Operand>(&self, isa: Isa, rounding: f64) {
        let &Self { shape, images, size: [h, w], coarse } = self;
        let Shape { inputs, outputs, side, stride, padding } = shape;
        let what = format!("{isa:?} {shape:?} {images} {h}x{w}");
        let exact = |count, seed| -> Vec<f32> {
            let round = |v: f32| if coarse { (v * 3.0 - 1.5).round() } else { v };
            operands::<T>(count, seed).into_iter().map(|v| round(v.to_f32())).collect()
        };
        let kernel = exact(outputs * inputs * side * side, 1);
        let x = exact(images * h * w * inputs, 2);
        let [oh, ow] = shape.output([h, w]);
        let grad = operands::<T>(images * oh * ow * outputs, 3);
        let wide_grad = wide(&grad);
        let mut convolved = vec![0.0; grad.len()];
        let mut back = vec![0.0; x.len()];
        for b in 0..images {
            for (oy, ox) in (0..oh * ow).map(|i| (i / ow, i % ow)) {
                for (ky, kx) in (0..side * side).map(|i| (i / side, i % side)) {
                    let (py, px) = (oy * stride + ky, ox * stride + kx);
                    if py < padding || px < padding || py - padding >= h || px - padding >= w {
                        continue;
                    }
                    for (o, c) in (0..outputs * inputs).map(|i| (i / inputs, i % inputs)) {
                        let from = ((b * inputs + c) * h + py - padding) * w + px - padding;
                        let to = ((b * oh + oy) * ow + ox) * outputs + o;
                        let k = f64::from(kernel[((o * inputs + c) * side + ky) * side + kx]);
                        convolved[to] += k * f64::from(x[from]);
                        back[from] += k * wide_grad[to];
                    }
                }
            }
        }
        let conv = ImageConv::<T>::new(shape, &kernel);
        let mut out = vec![9.0; back.len()];
        conv.carry_back(isa, &Tiles::from_rows(&grad, outputs), [images, h, w], &mut out);
        assert_close(&out, &back, 1e-5, &what);

        let bias = exact(outputs, 4);
        let (expected, from) = self.pool(&convolved, &wide(&bias));
        let mut out = vec![9.0; expected.len()];
        let winners = conv.forward(isa, &x, [images, h, w], &bias, true, &mut out);
        assert_close(&out, &expected, 1e-5, &what);
        let mut plain = vec![9.0; expected.len()];
        conv.forward(isa, &x, [images, h, w], &bias, false, &mut plain);
        assert_eq!(plain, out, "{what}");
        if coarse {
            let grad = values(out.len(), 6);
            let mut back = vec![0.0; convolved.len()];
            for (grad, from) in grad.iter().zip(from) {
                if let Some(at) = from {
                    back[at] += f64::from(*grad);
                }
            }
            let found = unpooled::<T>(isa, &winners, &grad, images, [oh, ow], outputs);
            assert_close(&found.to_rows(), &back, rounding, &what);
        }
    }
}

#[test]
fn images_of_any_size_agree_with_f64() {
    for (inputs, outputs, side, stride, padding, images, size) in [
        (3, 12, 7, 2, 3, 2, [20, 17]),
        (1, 3, 3, 1, 1, 1, [3, 9]),
        (3, 5, 4, 4, 0, 1, [8, 12]),
        (2, 3, 9, 2, 4, 1, [7, 6]),
        (5, 33, 3, 2, 1, 1, [9, 70]),
        // Pixels between windows; and rows of a kernel that are two lines, the second in part, in either type.
        (3, 4, 2, 3, 0, 1, [8, 11]),
        (5, 3, 7, 2, 3, 1, [11, 20]),
    ] {
        for coarse in [false, true] {
            let shape = Shape { inputs, outputs, side, stride, padding };
            sweep(&Photos { shape, images, size, coarse });
        }
    }
}

/// Pooling of maps as they are, from one pixel on.
#[test]
fn maps_of_any_size_are_pooled() {
    for (images, size, channels) in [(1, [1, 1], 1), (2, [6, 7], 16), (1, [5, 4], 20), (1, [8, 8], 64)] {
        let shape = Shape { inputs: 1, outputs: channels, side: 1, stride: 1, padding: 0 };
        sweep(&Photos { shape, images, size, coarse: true });
    }
}

/// What is no number stays none, wherever it stands in a window.
#[test]
fn no_number_stays_none() {
    let shape = Shape { inputs: 1, outputs: 1, side: 1, stride: 1, padding: 0 };
    let conv = ImageConv::<f32>::new(shape, &[1.0]);
    for at in [0, 4, 8] {
        let mut x = [1.0; 9];
        x[at] = f32::NAN;
        let mut out = [0.0; 4];
        conv.forward(Isa::best(), &x, [1, 3, 3], &[0.0], false, &mut out);
        assert!(out.iter().any(|v| v.is_nan()), "{at}: {out:?}");
    }
}
