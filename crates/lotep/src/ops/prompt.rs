//! What is added to a feature map, or to a grid of tokens, as it enters a block.

use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;
use lotep_frozen::Prepared;

use super::held::Part;
use super::thin_product;

/// As many as a prompt is made of at most.
pub(super) const PARTS: usize = 4;

/// A prompt `[C, H, W]`, shared by all samples, as a whole or by its factors.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Its values.
    Whole(Tensor<3>),
    /// What it is the product of.
    Product(Product),
}

/// The factors of a LoTeP prompt: channels `[r, C]`, rows `[r, H]` and columns `[r, W]` in CP form, eq. 7,
/// `P[i,j,k] = Σ_t a[t,i] b[t,j] c[t,k]`; with a core `[r₁, r₂, r₃]`, each of the three of its own rank, in Tucker form, eq. 5,
/// `P[i,j,k] = Σ G[t₁,t₂,t₃] u[t₁,i] v[t₂,j] w[t₃,k]`.
#[derive(Clone, Debug)]
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
    /// For a block's entrance.
    ///
    /// # Panics
    /// A rank is zero.
    pub fn block(self) -> Prompt {
        let ranks = [&self.channel, &self.row, &self.column].map(|factor| factor.dims()[0]);
        assert!(!ranks.contains(&0), "a prompt of ranks {ranks:?}");
        Prompt::Product(Product { factors: self, whole: Arc::default(), prepared: Arc::default() })
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

/// A prompt of low rank for a block's entrance.
///
/// Its values lie as the activations do that they are added to, pixel by pixel, channels being multiplied last, and are computed
/// when somebody asks, once. The fast form of residual blocks does not ask: it takes the factors, and gives their gradients.
#[derive(Clone, Debug)]
pub struct Product {
    factors: Factors,
    whole: Arc<OnceLock<Tensor<3>>>,
    prepared: Ready,
}

/// For predictions: what a chain of blocks made of a prompt once.
pub(super) type Ready = Arc<OnceLock<Prepared>>;

impl Product {
    fn whole(&self) -> Tensor<3> {
        if let Some(made) = self.whole.get() {
            return made.clone();
        }
        let Factors { core, channel, row, column } = self.factors.clone();
        let [channels, h, w] = [&channel, &row, &column].map(|factor| factor.dims()[1]);
        let product = thin_product(pairs(core, row, column), channel);
        // Computed before the cell is asked to wait: the thread may meanwhile take up another task that asks for the same.
        let whole = product.reshape([h, w, channels]).permute([2, 0, 1]);
        self.whole.get_or_init(|| whole).clone()
    }
}

impl Prompt {
    /// Its values `[C, H, W]`.
    pub fn whole(self) -> Tensor<3> {
        match self {
            Self::Whole(values) => values,
            Self::Product(product) => product.whole(),
        }
    }

    /// Where its prepared form is kept, if there is one.
    pub(super) fn ready(&self) -> Option<Ready> {
        if let Self::Product(product) = self { Some(product.prepared.clone()) } else { None }
    }

    /// What it is made of: its values, pixel by pixel `[H · W, C]`, or its factors, [`Factors`]' channels, rows, columns and core.
    pub(super) fn parts(self) -> [Option<Part>; PARTS] {
        match self {
            Self::Whole(values) => [Some(values.flatten::<2>(1, 2).transpose().into()), None, None, None],
            Self::Product(Product { factors: Factors { core, channel, row, column }, .. }) => {
                [Some(channel.into()), Some(row.into()), Some(column.into()), core.map(Part::from)]
            }
        }
    }
}

impl From<Tensor<3>> for Prompt {
    fn from(values: Tensor<3>) -> Self {
        Self::Whole(values)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::fixtures::assert_close;
    use crate::ops::{BatchNorm, Compute, ConvNorm, Precision, ResidualBlock};
    use crate::params::normal;

    fn made<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
        let values = normal(shape.iter().product(), 0.3, &mut ChaCha8Rng::seed_from_u64(seed));
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn flat<const D: usize>(x: Tensor<D>) -> Vec<f32> {
        x.without_autodiff().into_data().iter::<f32>().collect()
    }

    const SHAPE: [usize; 4] = [2, 12, 7, 5];

    fn blocks(compute: Compute) -> Vec<ResidualBlock> {
        let device = Device::flex();
        let conv = |seed| {
            let [weight, bias, mean] = [1, 2, 3].map(|own| made([12], seed + own, &device));
            let var = made([12], seed + 4, &device).square() + 0.5;
            let norm = BatchNorm { weight: weight + 1.0, bias, mean, var, eps: 1e-5, batch: None };
            ConvNorm { kernel: made([12, 12, 3, 3], seed, &device) * 0.3, norm, stride: 1 }
        };
        let block = |i: u64| ResidualBlock::new(vec![conv(20 * i), conv(20 * i + 10)], None, compute);
        (0..5).map(block).collect()
    }

    /// Of prompts in CP form, of rank 3 and 1, and in Tucker form.
    fn factors(device: &Device) -> [Factors; 3] {
        let made = |(seed, [r1, r2, r3]): (u64, [usize; 3])| Factors {
            core: (r1 != r2).then(|| made([r1, r2, r3], seed, device)),
            channel: made([r1, 12], seed + 1, device),
            row: made([r2, 7], seed + 2, device),
            column: made([r3, 5], seed + 3, device),
        };
        [(102, [3; 3]), (112, [1; 3]), (122, [3, 2, 4])].map(made)
    }

    /// A product, nothing, a whole one, and two more products.
    fn prompts(factors: [Factors; 3], whole: Tensor<3>) -> Vec<Option<Prompt>> {
        let [first, second, last] = factors.map(Factors::block);
        vec![Some(first), None, Some(whole.into()), Some(second), Some(last)]
    }

    /// Residual blocks take prompts of every kind side by side, and give the gradients of what each is made of, as the
    /// portable form does, which asks for whole ones.
    #[test]
    fn blocks_give_the_gradients_of_parts() {
        let outcome = |portable: bool| {
            let blocks = blocks(Compute { portable, ..Compute::default() });
            let device = Device::flex().autodiff();
            let x = made(SHAPE, 100, &device).require_grad();
            let whole = made([12, 7, 5], 101, &device).require_grad();
            let factors = factors(&device).map(|Factors { core, channel, row, column }| {
                let [channel, row, column] = [channel, row, column].map(Tensor::require_grad);
                Factors { core: core.map(Tensor::require_grad), channel, row, column }
            });
            let prompts = prompts(factors.clone(), whole.clone());
            let y = ResidualBlock::stretch(&blocks.iter().collect::<Vec<_>>(), x.clone(), prompts);
            let grads = (y.clone() * made(SHAPE, 110, &device)).sum().backward();
            let mut all = vec![flat(y), flat(x.grad(&grads).unwrap()), flat(whole.grad(&grads).unwrap())];
            for Factors { core, channel, row, column } in factors {
                all.extend([channel, row, column].map(|factor| flat(factor.grad(&grads).unwrap())));
                all.extend(core.map(|core| flat(core.grad(&grads).unwrap())));
            }
            all
        };
        for (i, (fast, portable)) in outcome(false).iter().zip(&outcome(true)).enumerate() {
            assert!(fast.iter().any(|v| *v != 0.0), "{i}");
            assert_close(fast, portable, if i == 0 { 1e-5 } else { 5e-5 }, &format!("{i}"));
        }
    }

    /// For predictions prompts are prepared once: any number of batches, of any size, and another precision between them, give
    /// what blocks give that are about to go back, to the bit.
    #[test]
    fn predictions_prepare_prompts_once() {
        let [f32s, bf16s] = [Precision::F32, Precision::Bf16]
            .map(|precision| blocks(Compute { precision, ..Compute::default() }));
        let run = |blocks: &[ResidualBlock], x: Tensor<4>, prompts: Vec<Option<Prompt>>| {
            flat(ResidualBlock::stretch(&blocks.iter().collect::<Vec<_>>(), x, prompts))
        };
        let tracked = |blocks: &[ResidualBlock]| {
            let device = Device::flex().autodiff();
            let whole = made([12, 7, 5], 101, &device);
            run(blocks, made(SHAPE, 100, &device).require_grad(), prompts(factors(&device), whole))
        };
        let device = Device::flex();
        let x = made(SHAPE, 100, &device);
        let ready = prompts(factors(&device), made([12, 7, 5], 101, &device));
        for (blocks, images) in [(&f32s, 2), (&bf16s, 2), (&f32s, 1), (&bf16s, 1), (&f32s, 2)] {
            let found = run(blocks, x.clone().narrow(0, 0, images), ready.clone());
            assert_eq!(found, tracked(blocks)[..found.len()], "{images} images");
        }
    }
}
