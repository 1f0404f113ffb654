//! From planes of samples to RGB.

use lotep_kernels::simd::{Kernel, Simd};

use super::frame::Frame;
use super::scan::Plane;

/// Upsampling and conversion to RGB, a row at a time: `height * width * 3` bytes.
pub(super) struct ToRgb<'a> {
    pub(super) frame: &'a Frame<'a>,
    pub(super) planes: &'a [Plane],
}

impl Kernel for ToRgb<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Vec<u8> {
        let (width, height) = (self.frame.width, self.frame.height);
        let mut data = Vec::with_capacity(width * height * 3);
        let mut out = vec![0; width * 3];
        let (luma, chroma) = self.planes.split_first().expect("a frame has components");
        let [wide, high] = self.frame.components[0].factors;
        let (narrow, low) = (width.div_ceil(wide), height.div_ceil(high));
        // One more sample at either end, and one more where the width is odd.
        let mut sums = vec![0_u16; narrow + 2];
        let mut full = [vec![0_u8; 2 * narrow], vec![0_u8; 2 * narrow]];
        for y in 0..height {
            let luma = luma.row(y, width);
            let [cb, cr] = chroma else {
                for (out, &v) in out.chunks_exact_mut(3).zip(luma) {
                    out.fill(v);
                }
                data.extend_from_slice(&out);
                continue;
            };
            if wide == 1 {
                convert(luma, cb.row(y, width), cr.row(y, width), &mut out);
                data.extend_from_slice(&out);
                continue;
            }
            for (plane, full) in [cb, cr].into_iter().zip(&mut full) {
                let near = plane.row(y / high, narrow);
                if high == 1 {
                    for (sum, &v) in sums[1..].iter_mut().zip(near) {
                        *sum = u16::from(v);
                    }
                    widen::<1, 2, 2>(&mut sums, full);
                    continue;
                }
                let far = if y % 2 == 0 { (y / 2).saturating_sub(1) } else { (y / 2 + 1).min(low - 1) };
                for ((sum, &near), &far) in sums[1..].iter_mut().zip(near).zip(plane.row(far, narrow)) {
                    *sum = 3 * u16::from(near) + u16::from(far);
                }
                widen::<8, 7, 4>(&mut sums, full);
            }
            convert(luma, &full[0], &full[1], &mut out);
            data.extend_from_slice(&out);
        }
        data
    }
}

/// Twice as many values as there are between the ends of `sums`: each a quarter of one neighbour and three of the
/// other. libjpeg rounds even and odd ones differently, so that the error has no direction.
#[inline(always)]
fn widen<const EVEN: u16, const ODD: u16, const SHIFT: u32>(sums: &mut [u16], out: &mut [u8]) {
    let end = sums.len() - 1;
    (sums[0], sums[end]) = (sums[1], sums[end - 1]);
    let [left, here, right] = [&sums[..end - 1], &sums[1..end], &sums[2..]];
    for (((out, left), here), right) in out.chunks_exact_mut(2).zip(left).zip(here).zip(right) {
        out[0] = ((3 * here + left + EVEN) >> SHIFT) as u8;
        out[1] = ((3 * here + right + ODD) >> SHIFT) as u8;
    }
}

/// A row of YCbCr to RGB.
#[inline(always)]
fn convert(luma: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    const HALF: i32 = 1 << 15;
    for (((out, &y), &cb), &cr) in out.chunks_exact_mut(3).zip(luma).zip(cb).zip(cr) {
        let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
        let byte = |v: i32| (y + v).clamp(0, 255) as u8;
        out[0] = byte((91_881 * cr + HALF) >> 16);
        out[1] = byte((-22_554 * cb - 46_802 * cr + HALF) >> 16);
        out[2] = byte((116_130 * cb + HALF) >> 16);
    }
}
