//! The frame around an image: four strips of learnt pixels, the space inside left free.

use burn::tensor::{Device, Tensor};

use crate::params::{Group, Params};

/// The strips' names in an adapter: over and under the inner image, as wide as the outer one; beside it, as high as it.
const STRIPS: [&str; 4] = ["frame.top", "frame.bottom", "frame.left", "frame.right"];

/// An image of `inner` height and width in the middle of one of `outer`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) outer: [usize; 2],
    pub(super) inner: [usize; 2],
}

/// Pixels before and behind `inner` of `outer`; where they don't divide evenly, one more behind.
pub(super) fn around(outer: usize, inner: usize) -> [usize; 2] {
    let free = outer.saturating_sub(inner);
    [free / 2, free - free / 2]
}

impl Frame {
    fn shapes(self) -> [[usize; 3]; 4] {
        let ([height, width], [inner, _]) = (self.outer, self.inner);
        let ([top, bottom], [left, right]) = (around(height, inner), around(width, self.inner[1]));
        [[3, top, width], [3, bottom, width], [3, inner, left], [3, inner, right]]
    }

    /// Lay the strips out, `3 (H W − h w)` values in all, each strip drawn from `values`.
    pub(super) fn init(self, device: &Device, mut values: impl FnMut(usize) -> Vec<f32>) -> Params {
        let mut params = Params::default();
        for (name, shape) in STRIPS.iter().zip(self.shapes()) {
            let count = shape.iter().product();
            if count > 0 {
                params.push(*name, &shape, Group::Prompt, values(count), device);
            }
        }
        params
    }

    /// The frame `[3, H, W]` with what `pixels` makes of each strip, and zeros inside.
    pub(super) fn build(self, params: &Params, pixels: impl Fn(Tensor<3>) -> Tensor<3>) -> Tensor<3> {
        let shapes = self.shapes();
        let strip = |i: usize| (!shapes[i].contains(&0)).then(|| pixels(params.get(STRIPS[i])));
        let joined = |parts: [Option<Tensor<3>>; 3], dim| {
            Tensor::cat(parts.into_iter().flatten().collect::<Vec<_>>(), dim)
        };
        let [height, width] = self.inner;
        let device = params.iter().next().map_or_else(Device::flex, |p| p.value.device());
        let free = Tensor::zeros([3, height, width], &device);
        let middle = joined([strip(2), Some(free), strip(3)], 2);
        joined([strip(0), Some(middle), strip(1)], 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_surround_the_inner_image() {
        let frame = Frame { outer: [5, 4], inner: [2, 4] };
        let mut next = 0.0;
        let params = frame.init(&Device::flex(), |count| {
            (0..count)
                .map(|_| {
                    next += 1.0;
                    next
                })
                .collect()
        });
        assert_eq!(params.count(Group::Prompt), 3 * (5 * 4 - 2 * 4));
        let built = frame.build(&params, |strip| strip * 2.0);
        let values: Vec<f32> = built.into_data().iter::<f32>().collect();
        let (first, rows) = (&values[..20], values[..20].chunks(4).map(|r| r[0]).collect::<Vec<_>>());
        assert_eq!(&first[..4], [2.0, 4.0, 6.0, 8.0]);
        // One row above, two below; above come 3 × 4 values.
        assert_eq!(rows, [2.0, 0.0, 0.0, 26.0, 34.0]);
    }
}
