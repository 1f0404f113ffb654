//! What turns the network's output into class scores: a new classifier, or the network's own seen through a mapping of
//! the classes it was trained on (the source classes) to the new ones (the target classes).

pub mod linear;
mod sources;
mod text;
mod text_cache;

use burn::tensor::Tensor;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use sources::Counts;
pub(crate) use text::unit;
pub use text::{ClassTexts, SharedTexts};

use crate::backbone::{Backbone, Loaded};
use crate::ops::Linear;
use crate::params::Params;
use crate::{Result, bail, input_error};

/// How class scores come about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mapping {
    /// A new classifier of the pooled features.
    #[default]
    Linear,
    /// A new classifier of the source classes' scores (AutoVP's FullyMap).
    Full,
    /// The first source classes, in order (Bahng et al.).
    First,
    /// Source classes drawn at random (ILM-VP's RLM).
    Random,
    /// For each target class the source classes that its training images are taken for most often, found once before
    /// training (ILM-VP's FLM).
    Frequency,
    /// The same, found again as the prompt changes (ILM-VP's ILM).
    Iterative,
    /// CLIP's: cosines with what its text tower makes of the classes' names ([`ClassTexts`]). Nothing is learnt here.
    Text,
}

/// A mapping and its quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Head {
    /// How class scores come about.
    pub mapping: Mapping,
    /// Source classes of a target class, whose scores are averaged; where classes are matched.
    pub sources: usize,
}

impl Default for Head {
    fn default() -> Self {
        Self { mapping: Mapping::Linear, sources: 1 }
    }
}

impl Head {
    /// Whether classes are matched by what images are taken for.
    pub fn counts(self) -> bool {
        matches!(self.mapping, Mapping::Frequency | Mapping::Iterative)
    }

    /// Lay out the parameters for so many target classes; where classes are matched by counting, the first match is made
    /// up.
    ///
    /// # Errors
    /// The network has no classifier to map from, or too small a one.
    pub fn init(self, loaded: &Loaded, classes: usize, rng: &mut ChaCha8Rng) -> Result<Params> {
        let device = &loaded.device;
        if self.mapping == Mapping::Linear {
            return Ok(linear::init(loaded.network.feature_width(), classes, rng, device));
        }
        if self.mapping == Mapping::Text {
            loaded.words()?;
            return Ok(Params::default());
        }
        let own = own(loaded)?.dims()[1];
        if self.mapping == Mapping::Full {
            return Ok(linear::init(own, classes, rng, device));
        }
        let quota = self.sources;
        if quota == 0 || classes.saturating_mul(quota) > own {
            bail!(
                "sources-per-class {quota} for {classes} classes does not go with the {own} classes of {}: 1 to {} is \
                 possible",
                loaded.config.name,
                own / classes.max(1)
            );
        }
        let matched = match self.mapping {
            Mapping::Random => sources::random(own, classes * quota, rng),
            _ => (0..classes * quota).collect(),
        };
        Ok(sources::layout(&matched, classes, device))
    }

    /// Check a match that was read from somewhere.
    ///
    /// # Errors
    /// A source class is none of the network's, or serves twice.
    pub fn check(self, loaded: &Loaded, params: &Params) -> Result<()> {
        match self.mapping {
            Mapping::Linear | Mapping::Full | Mapping::Text => Ok(()),
            _ => sources::check(params, own(loaded)?.dims()[1]),
        }
    }

    /// Logits `[B, classes]` of features `[B, F]`.
    pub fn logits(self, network: &dyn Backbone, params: &Params, features: Tensor<2>) -> Tensor<2> {
        match self.mapping {
            Mapping::Linear => linear::logits(params, features),
            Mapping::Text => unreachable!("names score through `ClassTexts`"),
            // A classifier of the features again, but a gradient had to go through its product with the network's.
            Mapping::Full => linear::logits(params, source(network).forward(features)),
            _ => {
                let (weight, bias) = self.classifier(network, params);
                features.matmul(weight.transpose()) + bias.unsqueeze()
            }
        }
    }

    /// The same as one classifier: weight `[classes, F]` and bias `[classes]`.
    pub fn classifier(self, network: &dyn Backbone, params: &Params) -> (Tensor<2>, Tensor<1>) {
        match self.mapping {
            Mapping::Linear => (params.get(linear::WEIGHT), params.get(linear::BIAS)),
            Mapping::Full => {
                let (weight, bias): (Tensor<2>, Tensor<1>) =
                    (params.get(linear::WEIGHT), params.get(linear::BIAS));
                let (own, own_bias) = source(network).weights();
                let behind = weight.clone().matmul(own_bias.unsqueeze_dim(1)).squeeze_dim(1);
                (weight.matmul(own), behind + bias)
            }
            Mapping::Text => unreachable!("names score through `ClassTexts`"),
            _ => sources::select(params, source(network)),
        }
    }

    /// Match classes anew by what images were taken for.
    pub fn rematch(self, params: &mut Params, counts: &Counts) {
        sources::store(params, &counts.assign(self.sources));
    }
}

/// The network's own classifier.
fn own(loaded: &Loaded) -> Result<&Linear> {
    loaded.network.head().ok_or_else(|| {
        input_error!(
            "{} has no classifier of its own, whose classes could be mapped: --mapping linear is possible",
            loaded.config.name
        )
    })
}

fn source(network: &dyn Backbone) -> &Linear {
    network.head().expect("checked when the head was laid out")
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Distribution, TensorData};
    use rand::SeedableRng;

    use super::*;
    use crate::backbone::made_up;
    use crate::backbone::parity::architecture;
    use crate::fixtures::assert_close;
    use crate::params::{Group, normal};

    const MAPPINGS: [Mapping; 6] = [
        Mapping::Linear,
        Mapping::Full,
        Mapping::First,
        Mapping::Random,
        Mapping::Frequency,
        Mapping::Iterative,
    ];

    fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
        x.into_data().iter::<f32>().collect()
    }

    /// Each against the source scores themselves, from the definition.
    #[test]
    fn logits_are_those_of_the_source_classes() {
        let loaded = made_up(architecture("vit_b16"), [48, 64]);
        let network = loaded.network.as_ref();
        let width = network.feature_width();
        let features = Tensor::<2>::random([3, width], Distribution::Normal(0.0, 1.0), &loaded.device);
        let scores = values(network.head().unwrap().forward(features.clone()));
        for mapping in MAPPINGS {
            for quota in [1, 2] {
                let head = Head { mapping, sources: quota };
                let mut rng = ChaCha8Rng::seed_from_u64(7);
                let mut params = head.init(&loaded, 2, &mut rng).unwrap();
                if head.counts() {
                    let mut counts = Counts::new(5, 2);
                    counts.add(4, 0);
                    counts.add(1, 1);
                    head.rematch(&mut params, &counts);
                }
                let found = values(head.logits(network, &params, features.clone()));
                let expected: Vec<f32> = match mapping {
                    Mapping::Linear => values(linear::logits(&params, features.clone())),
                    Mapping::Full => {
                        let (w, b) =
                            (values(params.get::<2>(linear::WEIGHT)), values(params.get::<1>(linear::BIAS)));
                        let at = |i: usize, k: usize| {
                            (0..5).map(|s| scores[i * 5 + s] * w[k * 5 + s]).sum::<f32>() + b[k]
                        };
                        (0..6).map(|i| at(i / 2, i % 2)).collect()
                    }
                    _ => {
                        let matched: Vec<usize> =
                            values(params.get::<2>("head.sources")).iter().map(|v| *v as usize).collect();
                        let mut sorted = matched.clone();
                        sorted.dedup();
                        assert_eq!(sorted.len(), 2 * quota, "{mapping:?}: a source class serves once");
                        if head.counts() {
                            assert_eq!((matched[0], matched[quota]), (4, 1), "{mapping:?}");
                        }
                        let at = |i: usize, k: usize| {
                            let own = &matched[k * quota..][..quota];
                            own.iter().map(|s| scores[i * 5 + s]).sum::<f32>() / quota as f32
                        };
                        (0..6).map(|i| at(i / 2, i % 2)).collect()
                    }
                };
                assert_close(&found, &expected, 1e-5, &format!("{mapping:?}"));
                let (weight, bias) = head.classifier(network, &params);
                let merged = features.clone().matmul(weight.transpose()) + bias.unsqueeze();
                assert_close(&values(merged), &expected, 1e-5, &format!("{mapping:?} merged"));
                let learnt = match mapping {
                    Mapping::Linear => 2 * (width + 1),
                    Mapping::Full => 2 * (5 + 1),
                    _ => 0,
                };
                assert_eq!((params.count(Group::Head), params.total()), (learnt, learnt), "{mapping:?}");
            }
        }
    }

    #[test]
    fn gradients_pass_a_full_mapping() {
        let loaded = made_up(architecture("vit_b16"), [48, 64]);
        let network = loaded.network.as_ref();
        let width = network.feature_width();
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let head = Head { mapping: Mapping::Full, sources: 1 };
        let params = head.init(&loaded, 2, &mut rng).unwrap();
        let x =
            Tensor::<2>::from_data(TensorData::new(normal(width, 1.0, &mut rng), [1, width]), &loaded.device);
        let (weight, _) = head.classifier(network, &params);
        let leaves = params.leaves();
        let leaf = x.clone().autodiff().require_grad();
        let mut tape = head.logits(network, &leaves, leaf.clone()).narrow(1, 1, 1).sum().backward();
        let to_features = values(leaf.grad_remove(&mut tape).unwrap());
        assert_close(&to_features, &values(weight.narrow(0, 1, 1)), 1e-5, "features");
        let scores = values(network.head().unwrap().forward(x));
        let grads: Vec<Vec<f32>> =
            leaves.iter().map(|p| values(p.value.grad_remove(&mut tape).unwrap())).collect();
        assert_close(&grads[0][5..], &scores, 1e-5, "weight");
        assert_eq!(grads[1], [0.0, 1.0]);
    }

    #[test]
    fn a_match_that_is_none_is_refused() {
        let loaded = made_up(architecture("vit_b16"), [48, 64]);
        let head = Head { mapping: Mapping::Iterative, sources: 1 };
        let mut params = head.init(&loaded, 2, &mut ChaCha8Rng::seed_from_u64(0)).unwrap();
        head.check(&loaded, &params).unwrap();
        for wrong in [[0.0, 5.0], [1.0, 1.0], [f32::NAN, 1.0], [-1.0, 1.0], [0.5, 1.0], [1e30, 1.0]] {
            for param in params.iter_mut() {
                param.value = Tensor::from_floats(wrong, &loaded.device);
            }
            let error = head.check(&loaded, &params).unwrap_err().to_string();
            assert!(error.contains("head.sources") && error.contains("0 to 4"), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_mapped_is_refused() {
        let loaded = made_up(architecture("vit_b16"), [48, 64]);
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut refused = |mapping, sources, classes| {
            Head { mapping, sources }.init(&loaded, classes, &mut rng).unwrap_err().to_string()
        };
        assert!(refused(Mapping::First, 1, 6).contains("5 classes"), "more classes than the network has");
        assert!(refused(Mapping::Iterative, 3, 2).contains("1 to 2"));
        assert!(refused(Mapping::Random, 0, 2).contains("sources-per-class 0"));
    }
}
