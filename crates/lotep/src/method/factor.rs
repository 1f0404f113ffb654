//! Low-rank tensors built from their factors.

use burn::tensor::Tensor;

use crate::ops::thin_product;

/// How a prompt `[C, H, W]` lies in memory. It is the same prompt; one that lies as the activations do, to which it will be
/// added, need not be rearranged at every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Channel by channel, as images.
    ChannelsFirst,
    /// Pixel by pixel, as the feature maps and tokens of the fast form.
    ChannelsLast,
}

impl Order {
    /// `P[i,j,k] = Σ_t a[t,i] p[t,(j,k)]`; a `[r, C]`, p `[r, H · W]`.
    fn product(self, a: Tensor<2>, planes: Tensor<2>, [h, w]: [usize; 2]) -> Tensor<3> {
        let channels = a.dims()[1];
        match self {
            Self::ChannelsFirst => thin_product(a.transpose(), planes).reshape([channels, h, w]),
            Self::ChannelsLast => {
                thin_product(planes.transpose(), a).reshape([h, w, channels]).permute([2, 0, 1])
            }
        }
    }
}

/// CP form, LoTeP eq. 7: `P[i,j,k] = Σ_t a[t,i] b[t,j] c[t,k]`; a `[r, C]`, b `[r, H]`, c `[r, W]`.
pub fn cp(a: Tensor<2>, b: Tensor<2>, c: Tensor<2>, order: Order) -> Tensor<3> {
    let ([r, _], [_, h], [_, w]) = (a.dims(), b.dims(), c.dims());
    let planes = b.reshape([r, h, 1]) * c.reshape([r, 1, w]);
    order.product(a, planes.reshape([r, h * w]), [h, w])
}

/// Tucker form, LoTeP eq. 5: `P[i,j,k] = Σ G[t₁,t₂,t₃] u[t₁,i] v[t₂,j] w[t₃,k]`; G `[r₁, r₂, r₃]`,
/// u `[r₁, C]`, v `[r₂, H]`, w `[r₃, W]`.
pub fn tucker(core: Tensor<3>, u: Tensor<2>, v: Tensor<2>, w: Tensor<2>, order: Order) -> Tensor<3> {
    let [r1, r2, r3] = core.dims();
    let ([_, height], [_, width]) = (v.dims(), w.dims());
    // Contract the width, then the height, then the channels: the large result appears once.
    let x = core.reshape([r1 * r2, r3]).matmul(w).reshape([r1, r2, width]);
    let x = x.swap_dims(1, 2).reshape([r1 * width, r2]).matmul(v).reshape([r1, width, height]);
    let planes = x.swap_dims(1, 2).reshape([r1, height * width]);
    order.product(u, planes, [height, width])
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
        let orders = [Order::ChannelsFirst, Order::ChannelsLast];
        for (case, r) in [("cp_r1", 1), ("cp_r3", 3), ("cp_zero_channel_r3", 3)] {
            let matrix = |p: &Tensor<1>, length: usize| p.clone().reshape([r, length]);
            for order in orders {
                check(&f, case, &["a", "b", "c"], &|p| {
                    cp(matrix(&p[0], c), matrix(&p[1], h), matrix(&p[2], w), order)
                });
            }
        }
        for (case, [r1, r2, r3]) in [
            ("tucker_1_1_1", [1, 1, 1]),
            ("tucker_3_3_3", [3, 3, 3]),
            ("tucker_2_3_4", [2, 3, 4]),
            ("tucker_zero_channel_3_3_3", [3, 3, 3]),
        ] {
            for order in orders {
                check(&f, case, &["core", "u", "v", "w"], &|p| {
                    tucker(
                        p[0].clone().reshape([r1, r2, r3]),
                        p[1].clone().reshape([r1, c]),
                        p[2].clone().reshape([r2, h]),
                        p[3].clone().reshape([r3, w]),
                        order,
                    )
                });
            }
        }
        check(&f, "lor_vp_r2", &["B", "A"], &|p| {
            per_channel(p[0].clone().reshape([c, h, 2]), p[1].clone().reshape([c, 2, w]))
        });
    }
}
