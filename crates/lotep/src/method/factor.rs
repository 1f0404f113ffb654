//! Low-rank tensors built from their factors.

use burn::tensor::Tensor;

/// LoR-VP: a product per colour channel, left `[C, H, r]` times right `[C, r, W]`.
pub fn per_channel(left: Tensor<3>, right: Tensor<3>) -> Tensor<3> {
    left.matmul(right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::Factors;
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
        let places: [fn(Factors) -> Tensor<3>; 2] = [Factors::image, |factors| factors.block().whole()];
        for (case, r) in [("cp_r1", 1), ("cp_r3", 3), ("cp_zero_channel_r3", 3)] {
            let matrix = |p: &Tensor<1>, length: usize| p.clone().reshape([r, length]);
            for place in places {
                check(&f, case, &["a", "b", "c"], &|p| {
                    place(Factors {
                        core: None,
                        channel: matrix(&p[0], c),
                        row: matrix(&p[1], h),
                        column: matrix(&p[2], w),
                    })
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
                    place(Factors {
                        core: Some(p[0].clone().reshape([r1, r2, r3])),
                        channel: p[1].clone().reshape([r1, c]),
                        row: p[2].clone().reshape([r2, h]),
                        column: p[3].clone().reshape([r3, w]),
                    })
                });
            }
        }
        check(&f, "lor_vp_r2", &["B", "A"], &|p| {
            per_channel(p[0].clone().reshape([c, h, 2]), p[1].clone().reshape([c, 2, w]))
        });
    }
}
