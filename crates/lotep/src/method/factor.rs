//! Low-rank tensors built from their factors.

use burn::tensor::Tensor;

use crate::backbone::{Product, Prompt};
use crate::ops::thin_product;

/// The planes of the CP form, LoTeP eq. 7, where `P[i,j,k] = Σ_t a[t,i] b[t,j] c[t,k]`: all but the channels' factor, `[r, H · W]`;
/// b `[r, H]`, c `[r, W]`.
pub fn cp(b: Tensor<2>, c: Tensor<2>) -> Tensor<2> {
    let ([r, h], [_, w]) = (b.dims(), c.dims());
    (b.reshape([r, h, 1]) * c.reshape([r, 1, w])).reshape([r, h * w])
}

/// The planes of the Tucker form, LoTeP eq. 5, where `P[i,j,k] = Σ G[t₁,t₂,t₃] u[t₁,i] v[t₂,j] w[t₃,k]`: all but u, `[r₁, H · W]`;
/// G `[r₁, r₂, r₃]`, v `[r₂, H]`, w `[r₃, W]`.
pub fn tucker(core: Tensor<3>, v: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    let [r1, r2, r3] = core.dims();
    let ([_, height], [_, width]) = (v.dims(), w.dims());
    let x = core.reshape([r1 * r2, r3]).matmul(w).reshape([r1, r2, width]);
    let x = x.swap_dims(1, 2).reshape([r1 * width, r2]).matmul(v).reshape([r1, width, height]);
    x.swap_dims(1, 2).reshape([r1, height * width])
}

/// A prompt of planes `[r, H · W]` and channels `[r, C]`, for a block's entrance: `P[i,(j,k)] = Σ_t channels[t,i] planes[t,(j,k)]`.
pub fn block(channels: Tensor<2>, planes: Tensor<2>, size: [usize; 2]) -> Prompt {
    Prompt::Product(Product::new(planes.transpose(), channels, size))
}

/// The same for an image, `[C, H, W]` channel by channel as that lies in memory.
pub fn image(channels: Tensor<2>, planes: Tensor<2>, [h, w]: [usize; 2]) -> Tensor<3> {
    let count = channels.dims()[1];
    thin_product(channels.transpose(), planes).reshape([count, h, w])
}

/// LoR-VP: a product per colour channel, left `[C, H, r]` times right `[C, r, W]`.
pub fn per_channel(left: Tensor<3>, right: Tensor<3>) -> Tensor<3> {
    left.matmul(right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{self, Fixture};
    use burn::tensor::Device;

    /// Build P from the fixture's factors, weigh it with `upstream` and compare P and every gradient.
    fn check(fixture: &Fixture, case: &str, names: &[&str], build: &dyn Fn(&[Tensor<1>]) -> Tensor<3>) {
        let device = Device::flex().autodiff();
        let leaves: Vec<Tensor<1>> = names
            .iter()
            .map(|n| fixture.tensor::<1>(&format!("{case}.{n}"), &device).require_grad())
            .collect();
        let prompt = build(&leaves);
        let upstream = fixture.tensor::<1>(&format!("{case}.upstream"), &device).reshape(prompt.dims());
        fixture.assert_close(&prompt, &format!("{case}.P"), 2e-6);
        let grads = (prompt * upstream).sum().backward();
        for (leaf, name) in leaves.iter().zip(names) {
            fixture.assert_close(&leaf.grad(&grads).unwrap(), &format!("{case}.grad.{name}"), 2e-6);
        }
    }

    #[test]
    fn reconstructions_and_gradients() {
        let Some(f) = fixtures::open("methods/tensor_prompts.safetensors") else { return };
        let (c, h, w) = (6, 4, 5);
        let places: [fn(Tensor<2>, Tensor<2>, [usize; 2]) -> Tensor<3>; 2] =
            [image, |channels, planes, size| block(channels, planes, size).whole()];
        for (case, r) in [("cp_r1", 1), ("cp_r3", 3), ("cp_zero_channel_r3", 3)] {
            let matrix = |p: &Tensor<1>, length: usize| p.clone().reshape([r, length]);
            for place in places {
                check(&f, case, &["a", "b", "c"], &|p| {
                    place(matrix(&p[0], c), cp(matrix(&p[1], h), matrix(&p[2], w)), [h, w])
                });
            }
        }
        for (case, [r1, r2, r3]) in [
            ("tucker_1_1_1", [1, 1, 1]),
            ("tucker_3_3_3", [3, 3, 3]),
            ("tucker_2_3_4", [2, 3, 4]),
            ("tucker_zero_channel_3_3_3", [3, 3, 3]),
        ] {
            for place in places {
                check(&f, case, &["core", "u", "v", "w"], &|p| {
                    let planes = tucker(
                        p[0].clone().reshape([r1, r2, r3]),
                        p[2].clone().reshape([r2, h]),
                        p[3].clone().reshape([r3, w]),
                    );
                    place(p[1].clone().reshape([r1, c]), planes, [h, w])
                });
            }
        }
        check(&f, "lor_vp_r2", &["B", "A"], &|p| {
            per_channel(p[0].clone().reshape([c, h, 2]), p[1].clone().reshape([c, 2, w]))
        });
    }
}
