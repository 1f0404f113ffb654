//! Low-rank tensors built from their factors.

use burn::tensor::Tensor;

use crate::backbone::{Product, Prompt};
use crate::ops::thin_product;

/// The factors of a LoTeP prompt: channels `[r, C]`, rows `[r, H]` and columns `[r, W]` in CP form, eq. 7,
/// `P[i,j,k] = Σ_t a[t,i] b[t,j] c[t,k]`; with a core `[r₁, r₂, r₃]`, each of the three of its own rank, in Tucker form, eq. 5,
/// `P[i,j,k] = Σ G[t₁,t₂,t₃] u[t₁,i] v[t₂,j] w[t₃,k]`.
pub struct Factors {
    /// None in CP form.
    pub core: Option<Tensor<3>>,
    /// Of the channels.
    pub channel: Tensor<2>,
    /// Of the height.
    pub row: Tensor<2>,
    /// Of the width.
    pub column: Tensor<2>,
}

impl Factors {
    /// For a block's entrance, whose activations lie pixel by pixel: channels are multiplied last.
    pub fn block(self) -> Prompt {
        let Self { core, channel, row, column } = self;
        let size = [row.dims()[1], column.dims()[1]];
        Prompt::Product(Product::new(pairs(core, row, column), channel, size))
    }

    /// For an image, `[C, H, W]` channel by channel: columns are multiplied last, so that nothing else is as large.
    pub fn image(self) -> Tensor<3> {
        let Self { core, channel, row, column } = self;
        let shape = [&channel, &row, &column].map(|factor| factor.dims()[1]);
        let core = core.map(|core| core.permute([2, 0, 1]));
        thin_product(pairs(core, channel, row), column).reshape(shape)
    }
}

/// All but one factor of a prompt, that of the core's first axis: the other two are `[r₂, J]` and `[r₃, K]`, the result
/// `[J · K, r₁]`. Only small tensors are rearranged.
fn pairs(core: Option<Tensor<3>>, v: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    let ([rank, height], [_, width]) = (v.dims(), w.dims());
    let (v, w) = (v.transpose(), w.transpose());
    let Some(core) = core else {
        return (v.reshape([height, 1, rank]) * w.reshape([1, width, rank])).reshape([height * width, rank]);
    };
    let [r1, r2, r3] = core.dims();
    let x = w.matmul(core.permute([2, 1, 0]).reshape([r3, r2 * r1])).reshape([width, r2, r1]);
    v.matmul(x.swap_dims(0, 1).reshape([r2, width * r1])).reshape([height * width, r1])
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
