//! Channel ranks of learnt prompts, against the bound that LoTeP's Proposition 1 gives for naive ones (`spec/methods.md`
//! 1.1): of the prompt that enters block i of L, read as `C × H·W`, at most `(1 + L − i) r + 1`.
//!
//! Why: the loss's gradient reaches that entrance through the first convolution of each block from the i-th on, each of
//! which leaves channels in a space of its kernel's own rank, at most r, and through the residual path from the pooled
//! features, where all pixels have the same gradient. Sums of such gradients stay there; AdamW, which divides each
//! element by its own size, and weight decay towards zero aside from it, do not keep to it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::spectrum::singular_values;
use crate::adapter::Adapter;
use crate::backbone::Loaded;
use crate::method::{Method, Site};
use crate::{Result, bail};

/// The rank of one prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptRank {
    /// Where it is: `image` or a block's name.
    pub place: String,
    /// Channels, rows and columns.
    pub shape: [usize; 3],
    /// Singular values of `C × H·W`, largest first.
    pub spectrum: Vec<f64>,
    /// How many of them are above the tolerance.
    pub rank: usize,
    /// What the rank would be if all mattered alike: (Σ σ²)² / Σ σ⁴.
    pub effective_rank: f64,
    /// Proposition 1's bound, where the network has such convolutions and the prompt is a block's.
    pub bound: Option<usize>,
}

impl PromptRank {
    /// Channels or pixels, whichever are fewer: no rank is above it.
    pub fn most(&self) -> usize {
        self.shape[0].min(self.shape[1] * self.shape[2])
    }

    /// Whether the bound says more than the prompt's own size.
    pub fn binding(&self) -> bool {
        self.bound.is_some_and(|bound| bound < self.most())
    }
}

/// Ranks of all prompts of an adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ranks {
    /// The method.
    pub method: String,
    /// The backbone.
    pub backbone: String,
    /// Singular values below this share of a prompt's largest count as zero.
    pub tolerance: f64,
    /// Blocks of the network.
    pub blocks: usize,
    /// r: the largest rank of the first convolutions of the blocks, read as inputs × (outputs · kernel).
    pub kernel_rank: Option<usize>,
    /// The prompts, from the image on.
    pub prompts: Vec<PromptRank>,
}

fn rank(spectrum: &[f64], tolerance: f64) -> usize {
    let least = tolerance * spectrum.first().copied().unwrap_or(0.0);
    spectrum.iter().filter(|s| **s > least).count()
}

/// Ranks of the maps that an adapter adds to the image and to blocks.
///
/// # Errors
/// It adds none; a value is no number; the weights can no longer be read.
pub fn ranks(loaded: &Loaded, adapter: &Adapter, tolerance: f64) -> Result<Ranks> {
    let method = &adapter.config.method;
    let prompts = method.prompts(&Site::of(loaded), &adapter.params);
    let kernel_rank = kernel_rank(loaded, tolerance)?;
    let count = loaded.blocks.len();
    let image = prompts.image.map(|p| ("image".to_owned(), None, p));
    let blocks = prompts.blocks.into_iter().zip(&loaded.blocks).enumerate();
    let blocks = blocks.filter_map(|(l, (p, block))| p.map(|p| (block.name.clone(), Some(l), p.whole())));
    let mut found = Vec::new();
    for (place, block, prompt) in image.into_iter().chain(blocks) {
        let shape = prompt.dims();
        let values: Vec<f32> = prompt.into_data().iter::<f32>().collect();
        let spectrum = singular_values(&values, shape[0], shape[1] * shape[2])?;
        let energy: f64 = spectrum.iter().map(|s| s * s).sum();
        let fourth: f64 = spectrum.iter().map(|s| s.powi(4)).sum();
        found.push(PromptRank {
            place,
            shape,
            rank: rank(&spectrum, tolerance),
            effective_rank: if fourth > 0.0 { energy * energy / fourth } else { 0.0 },
            spectrum,
            // The block's number is l + 1.
            bound: block.zip(kernel_rank).map(|(l, r)| (count - l) * r + 1),
        });
    }
    if found.is_empty() {
        bail!(
            "{} adds no map to the image or to blocks, whose rank could be looked at: naive-deep, grouped, lor-vp, \
             deep-lor-vp, lotep-cp and lotep-tk do",
            method.name()
        );
    }
    Ok(Ranks {
        method: method.name().into(),
        backbone: loaded.config.name.clone(),
        tolerance,
        blocks: count,
        kernel_rank,
        prompts: found,
    })
}

/// The largest rank of the blocks' first convolutions; `None` for networks whose blocks do not begin with one.
fn kernel_rank(loaded: &Loaded, tolerance: f64) -> Result<Option<usize>> {
    let first = |name: &str| {
        let wanted = format!("{name}.conv1");
        loaded.layers.iter().find(|l| l.convolution && l.name == wanted).map(|l| format!("{}.weight", l.name))
    };
    let names: Option<BTreeSet<String>> = loaded.blocks.iter().map(|b| first(&b.name)).collect();
    let Some(names) = names else { return Ok(None) };
    let mut most = 0;
    for weight in loaded.values(&names)? {
        let [outputs, inputs, ..] = weight.shape[..] else { continue };
        let kernel = weight.values.len() / (outputs * inputs).max(1);
        let mut by_input = Vec::with_capacity(weight.values.len());
        for i in 0..inputs {
            for o in 0..outputs {
                by_input.extend_from_slice(&weight.values[(o * inputs + i) * kernel..][..kernel]);
            }
        }
        most = most.max(rank(&singular_values(&by_input, inputs, outputs * kernel)?, tolerance));
    }
    Ok(Some(most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::made_up;
    use crate::backbone::parity::architecture;
    use crate::head::Head;
    use crate::method::MethodConfig;
    use crate::train::setup::init_params;

    fn of(method: &MethodConfig, network: &str, image: [usize; 2]) -> Result<Ranks> {
        let loaded = made_up(architecture(network), image);
        let mut params = init_params(&loaded, method, Head::default(), 3, 0).unwrap();
        // Factors that begin at zero would leave nothing to look at.
        for (k, param) in params.iter_mut().enumerate() {
            let values = crate::params::normal(param.value.dims()[0], 1.0, &mut seeded(k as u64));
            param.value = burn::tensor::Tensor::<1>::from_floats(values.as_slice(), &loaded.device);
        }
        let classes = vec!["a".into(), "b".into(), "c".into()];
        let adapter = Adapter::new(&loaded, method.clone(), Head::default(), classes, params).unwrap();
        ranks(&loaded, &adapter, 1e-5)
    }

    fn seeded(seed: u64) -> rand_chacha::ChaCha8Rng {
        rand::SeedableRng::seed_from_u64(seed)
    }

    #[test]
    fn low_rank_prompts_have_the_rank_of_their_schedule() {
        let ranks = of(&MethodConfig::named("lotep-cp").unwrap(), "resnet18", [64, 64]).unwrap();
        let found: Vec<usize> = ranks.prompts.iter().map(|p| p.rank).collect();
        let blocks = ranks.blocks as f64;
        assert_eq!(ranks.prompts[0].place, "image");
        // Three channels have no more; the first block has rank six, the last prompted one rank one.
        assert_eq!((found[0], found[1], found[found.len() - 1]), (3, 6.min(ranks.prompts[1].most()), 1));
        assert_eq!(found.len() - 1, (0.8 * blocks) as usize);
        let r = ranks.kernel_rank.unwrap();
        for (l, p) in ranks.prompts[1..].iter().enumerate() {
            assert_eq!(p.bound, Some((ranks.blocks - l) * r + 1), "{}", p.place);
            assert!(p.spectrum.is_sorted_by(|a, b| a >= b) && p.effective_rank <= p.rank as f64 + 1e-6);
        }
    }

    #[test]
    fn full_maps_have_full_rank_and_transformers_no_bound() {
        let ranks = of(&MethodConfig::named("naive-deep").unwrap(), "vit_b16", [48, 64]).unwrap();
        assert!(ranks.prompts.iter().all(|p| p.rank == p.most() && p.bound.is_none()));
        let error = of(&MethodConfig::named("vpt-deep").unwrap(), "vit_b16", [48, 64]).unwrap_err();
        assert!(error.to_string().contains("naive-deep"), "{error}");
    }
}
