//! How the papers of CLIP's methods train them, in each of the comparisons that they make (`spec/methods.md` 9 to 11).
//!
//! Lengths, rates and averages are those of the papers and of their published configurations. Where a method's own paper
//! has nothing for a comparison, the family's setting stands in, which is PromptSRC's: IVLP's and MaPLe's 50 epochs on few
//! images, MMLoP's 30 on other data sets.

use std::collections::BTreeSet;

use super::config::TrainConfig;
use crate::Result;
use crate::data::Known;
use crate::method::MethodConfig;

/// What a training is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// Itself.
    None,
    /// Half of the classes, and the other half by their names.
    BaseToNovel,
    /// All classes from few images.
    FewShot,
    /// Other data sets by the names of their classes.
    CrossData,
}

/// How long is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Epochs(usize),
    /// So many steps for every image that a class has.
    StepsPerShot(usize),
}

/// A method's settings in its paper.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Paper {
    length: Length,
    pub(super) batch_size: usize,
    pub(super) warmup_epochs: f64,
    pub(super) weight_decay: f64,
    pub(super) rate: f64,
    /// Prompted blocks, where not the method's own number.
    depth: Option<usize>,
    /// Mean and standard deviation of the average over epochs, likewise.
    aggregate: Option<[f64; 2]>,
}

/// Sets whose features PromptSRC moves further from CLIP's when images are few, so that it averages late epochs alone.
const FAR: [&str; 9] = [
    "clip-cars",
    "clip-flowers",
    "clip-aircraft",
    "clip-dtd",
    "clip-eurosat",
    "flowers102-coop",
    "dtd",
    "eurosat",
    "stanford-cars",
];

/// A method's settings for a comparison on `shots` images a class of a data set; nothing for methods that need no CLIP.
pub(super) fn paper(
    method: &MethodConfig,
    comparison: Comparison,
    shots: usize,
    known: Option<Known>,
) -> Option<Paper> {
    use Comparison::{CrossData, FewShot};
    let name = known.map_or("", |known| known.about().name);
    let tokens = |epochs, rate| Paper {
        length: Length::Epochs(epochs),
        batch_size: 4,
        warmup_epochs: 1.0,
        weight_decay: 5e-4,
        rate,
        depth: (comparison == CrossData).then_some(3),
        aggregate: None,
    };
    let words = |epochs, batch_size| Paper { batch_size, depth: None, ..tokens(epochs, 0.002) };
    Some(match method {
        MethodConfig::CoOp(_) => words(
            match (comparison, shots) {
                // Its paper never trains longer on ImageNet.
                (FewShot, 2..=4) if name != "imagenet" => 100,
                (FewShot, 5..) if name != "imagenet" => 200,
                _ => 50,
            },
            32,
        ),
        MethodConfig::CoCoOp(_) => words(10, 1),
        MethodConfig::Ivlp(_) => tokens(if comparison == FewShot { 50 } else { 20 }, 0.0025),
        MethodConfig::MaPLe(_) => match comparison {
            CrossData => tokens(2, 0.0026),
            FewShot => tokens(50, 0.0035),
            _ => tokens(5, 0.0035),
        },
        MethodConfig::PromptSrc(_) => match comparison {
            CrossData => Paper { aggregate: Some([6.0, 10.0]), ..tokens(20, 0.0025) },
            FewShot => {
                let aggregate = if FAR.contains(&name) { [45.0, 5.0] } else { [30.0, 30.0] };
                Paper { aggregate: Some(aggregate), ..tokens(50, 0.0025) }
            }
            _ => tokens(20, 0.0025),
        },
        MethodConfig::Mmlop(_) => tokens(if comparison == FewShot { 50 } else { 30 }, 0.0025),
        MethodConfig::ClipLora(_) => {
            let length = match comparison {
                Comparison::None => Length::Epochs(50),
                _ => Length::StepsPerShot(500),
            };
            let (warmup_epochs, weight_decay) = (0.0, 1e-2);
            Paper { length, warmup_epochs, weight_decay, rate: 2e-4, ..words(50, 32) }
        }
        _ => return None,
    })
}

impl Paper {
    /// Epochs where nothing is known of the images.
    pub(super) fn alone(&self) -> usize {
        match self.length {
            Length::Epochs(epochs) => epochs,
            Length::StepsPerShot(steps) => steps,
        }
    }

    /// Epochs over so many images, `batch` at a step; a part of one counts as a whole.
    pub(super) fn epochs(
        &self,
        shots: usize,
        images: impl FnOnce() -> Result<usize>,
        batch: usize,
    ) -> Result<usize> {
        Ok(match self.length {
            Length::Epochs(epochs) => epochs,
            Length::StepsPerShot(steps) => {
                let an_epoch = images()?.div_ceil(batch.max(1)).max(1);
                steps.saturating_mul(shots).div_ceil(an_epoch).max(1)
            }
        })
    }
}

/// Put a number where a method has it.
fn set(method: &mut MethodConfig, key: &str, value: f64) {
    let (depth, aggregate) = match method {
        MethodConfig::Ivlp(m) => (&mut m.depth, None),
        MethodConfig::MaPLe(m) => (&mut m.depth, None),
        MethodConfig::Mmlop(m) => (&mut m.depth, None),
        MethodConfig::PromptSrc(m) => (&mut m.depth, Some((&mut m.aggregate_mean, &mut m.aggregate_std))),
        _ => return,
    };
    match (key, aggregate) {
        ("method.depth", _) => *depth = value as usize,
        ("method.aggregate_mean", Some((mean, _))) => *mean = value,
        ("method.aggregate_std", Some((_, std))) => *std = value,
        _ => {}
    }
}

impl TrainConfig {
    /// Train as the method's paper does for a comparison on `images` images, `shots` of each class; settings that were
    /// `given`, by their keys in config.toml, stay. What was set, for people.
    ///
    /// # Errors
    /// The images can't be counted.
    pub(crate) fn as_in_paper(
        &mut self,
        comparison: Comparison,
        shots: usize,
        images: impl FnOnce() -> Result<usize>,
        given: &BTreeSet<String>,
    ) -> Result<Vec<String>> {
        let Some(paper) = paper(&self.method, comparison, shots, self.dataset) else {
            return Ok(Vec::new());
        };
        let open = |key: &str| !given.contains(key);
        let mut said = Vec::new();
        if open("epochs") {
            self.epochs = paper.epochs(shots, images, self.batch_size)?;
            said.push(format!("epochs {}", self.epochs));
        }
        for (key, rate) in [("lr", &mut self.lr), ("prompt_lr", &mut self.prompt_lr)] {
            if open(key) {
                *rate = Some(paper.rate);
            }
        }
        if open("prompt_lr") {
            said.push(format!("rate {}", paper.rate));
        }
        let [mean, std] = paper.aggregate.map_or([None; 2], |bell| bell.map(Some));
        let depth = paper.depth.map(|depth| depth as f64);
        for (key, value) in
            [("method.depth", depth), ("method.aggregate_mean", mean), ("method.aggregate_std", std)]
        {
            if let Some(value) = value.filter(|_| open(key)) {
                set(&mut self.method, key, value);
                said.push(format!("{} {value}", key.trim_start_matches("method.").replace('_', " ")));
            }
        }
        Ok(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(method: &str, dataset: &str) -> TrainConfig {
        let mut config = TrainConfig::new("b", "d", MethodConfig::named(method).unwrap());
        config.dataset = dataset.parse().ok();
        config
    }

    /// Epochs and rate.
    fn length(method: &str, dataset: &str, comparison: Comparison, shots: usize) -> (usize, f64) {
        let mut config = config(method, dataset);
        config.as_in_paper(comparison, shots, || Ok(100 * shots), &BTreeSet::new()).unwrap();
        assert_eq!(config.lr, config.prompt_lr);
        config.validate().unwrap();
        (config.epochs, config.lr.unwrap())
    }

    #[test]
    fn lengths_and_rates_are_the_papers() {
        use Comparison::{BaseToNovel, CrossData, FewShot};
        let coop = |dataset, shots| length("coop", dataset, FewShot, shots).0;
        assert_eq!([1, 2, 4, 8, 16].map(|n| coop("clip-dtd", n)), [50, 100, 100, 200, 200]);
        assert_eq!([1, 16].map(|n| coop("imagenet", n)), [50, 50]);
        assert_eq!(length("coop", "", BaseToNovel, 16), (50, 0.002));
        assert_eq!(length("cocoop", "", CrossData, 16), (10, 0.002));
        assert_eq!(length("maple", "", BaseToNovel, 16), (5, 0.0035));
        assert_eq!(length("maple", "imagenet", CrossData, 16), (2, 0.0026));
        for (method, expected) in
            [("ivlp", [20, 50, 20]), ("promptsrc", [20, 50, 20]), ("mmlop", [30, 50, 30])]
        {
            let found = [BaseToNovel, FewShot, CrossData].map(|c| length(method, "", c, 16));
            assert_eq!(found, expected.map(|epochs| (epochs, 0.0025)), "{method}");
        }
    }

    /// 500 steps a shot: a hundred classes have 4 steps of 32 images in an epoch of one shot each, 50 of sixteen.
    #[test]
    fn clip_loras_steps_become_epochs() {
        use Comparison::FewShot;
        assert_eq!(length("clip-lora", "", FewShot, 1), (125, 2e-4));
        assert_eq!(length("clip-lora", "", FewShot, 16).0, 160);
        let mut one = config("clip-lora", "");
        one.as_in_paper(FewShot, 1, || Ok(1000), &BTreeSet::new()).unwrap();
        assert_eq!(one.epochs, 500_usize.div_ceil(1000_usize.div_ceil(32)));
        one.as_in_paper(FewShot, 1, || Ok(3_000_000), &BTreeSet::new()).unwrap();
        assert_eq!(one.epochs, 1);
        assert_eq!(config("clip-lora", "").epochs, 50);
    }

    #[test]
    fn depth_and_average_are_the_papers_and_what_is_given_stays() {
        let source = |dataset: &str, comparison, given: &[&str]| {
            let mut config = config("promptsrc", dataset);
            let given = given.iter().map(|key| (*key).to_owned()).collect();
            config.as_in_paper(comparison, 16, || Ok(1600), &given).unwrap();
            let MethodConfig::PromptSrc(m) = config.method else { panic!() };
            (m.depth, [m.aggregate_mean, m.aggregate_std], config.epochs)
        };
        assert_eq!(source("imagenet", Comparison::BaseToNovel, &[]), (9, [15.0, 1.0], 20));
        assert_eq!(source("imagenet", Comparison::CrossData, &[]), (3, [6.0, 10.0], 20));
        assert_eq!(source("clip-pets", Comparison::FewShot, &[]), (9, [30.0, 30.0], 50));
        assert_eq!(source("clip-eurosat", Comparison::FewShot, &[]), (9, [45.0, 5.0], 50));
        let given = ["epochs", "method.depth", "method.aggregate_mean"];
        assert_eq!(source("", Comparison::CrossData, &given), (9, [15.0, 10.0], 20));
        let mut plain = config("vpt-deep", "");
        assert!(plain.as_in_paper(Comparison::FewShot, 1, || Ok(10), &BTreeSet::new()).unwrap().is_empty());
        assert_eq!(plain, config("vpt-deep", ""));
        let mut maple = config("maple", "");
        maple.prompt_lr = Some(0.5);
        maple.as_in_paper(Comparison::CrossData, 16, || Ok(10), &["prompt_lr".to_owned()].into()).unwrap();
        assert_eq!((maple.prompt_lr, maple.lr), (Some(0.5), Some(0.0026)));
    }
}
