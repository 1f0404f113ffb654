//! Protocols of few images and of new classes: so many training images of each class, and classes in two halves.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::dataset::{Dataset, Sample, Splits};
use super::split::{shuffled_classes, with};
use crate::{Error, Result, bail, input_error};

/// Which of the classes are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClassSplit {
    /// All.
    #[default]
    All,
    /// The first half, in order, one more where they are odd.
    Base,
    /// The others.
    Novel,
}

impl FromStr for ClassSplit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "all" => Ok(Self::All),
            "base" => Ok(Self::Base),
            "novel" => Ok(Self::Novel),
            other => Err(input_error!("'{other}' is no part of the classes: use all, base or novel")),
        }
    }
}

impl fmt::Display for ClassSplit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "all",
            Self::Base => "base",
            Self::Novel => "novel",
        })
    }
}

impl ClassSplit {
    /// The labels of this part of `classes`.
    pub fn labels(self, classes: usize) -> std::ops::Range<usize> {
        let middle = classes.div_ceil(2);
        match self {
            Self::All => 0..classes,
            Self::Base => 0..middle,
            Self::Novel => middle..classes,
        }
    }

    /// Leave out what belongs to other classes; labels are counted anew from 0.
    pub fn of(self, data: &Dataset) -> Dataset {
        let labels = self.labels(data.classes.len());
        let kept = |sample: &Sample| {
            let label = labels.contains(&sample.label).then(|| sample.label - labels.start)?;
            Some(Sample { source: sample.source.clone(), label })
        };
        let samples = data.samples.iter().filter_map(kept).collect();
        let among = data.among.as_deref().map(|among| {
            among.iter().filter(|label| labels.contains(label)).map(|label| label - labels.start).collect()
        });
        Dataset { among, ..Dataset::new(data.name.clone(), data.classes[labels.clone()].to_vec(), samples) }
    }
}

impl Splits {
    /// The same data set with part of its classes.
    ///
    /// # Errors
    /// Fewer than two classes are left.
    pub fn with_classes(mut self, split: ClassSplit) -> Result<Self> {
        if split == ClassSplit::All {
            return Ok(self);
        }
        let classes = self.parts().next().map_or(0, |(_, data)| data.classes.len());
        let left = split.labels(classes).len();
        if left < 2 {
            bail!("the {split} half of {classes} classes has {left}: there is nothing to tell apart");
        }
        for part in [&mut self.train, &mut self.val, &mut self.test].into_iter().flatten() {
            *part = split.of(part);
        }
        self.layout = format!("{}; its {left} {split} classes", self.layout);
        Ok(self)
    }
}

/// Keep `shots` images of each class, drawn by the seed, in the original order; a class with fewer keeps all.
pub fn few_shot(data: &Dataset, shots: usize, seed: u64) -> Dataset {
    let mut keep = vec![false; data.samples.len()];
    for members in shuffled_classes(data, seed, FEW) {
        members.iter().take(shots).for_each(|&index| keep[index] = true);
    }
    with(data, |index| keep[index])
}

/// The generator's stream.
const FEW: u64 = u64::MAX - 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::Source;

    fn data(sizes: &[usize]) -> Dataset {
        let sample =
            |label: usize, i: usize| Sample { source: Source::File(format!("{label}/{i}").into()), label };
        let samples = sizes.iter().enumerate().flat_map(|(c, &n)| (0..n).map(move |i| sample(c, i)));
        let classes = (0..sizes.len()).map(|c| format!("c{c}")).collect();
        Dataset::new("d".into(), classes, samples.collect())
    }

    fn counts(data: &Dataset) -> Vec<usize> {
        let mut counts = vec![0; data.classes.len()];
        data.samples.iter().for_each(|s| counts[s.label] += 1);
        counts
    }

    #[test]
    fn every_class_has_its_shots() {
        let data = data(&[50, 3, 20]);
        for shots in [1, 2, 4, 8, 16] {
            assert_eq!(counts(&few_shot(&data, shots, 1)), [shots, shots.min(3), shots]);
        }
        let names = |seed| few_shot(&data, 4, seed).samples.iter().map(Sample::name).collect::<Vec<_>>();
        assert_eq!(names(1), names(1));
        assert_ne!(names(1), names(2));
    }

    #[test]
    fn classes_are_halved_in_order() {
        let data = data(&[1, 2, 3, 4, 5]);
        let (base, novel) = (ClassSplit::Base.of(&data), ClassSplit::Novel.of(&data));
        assert_eq!((base.classes.len(), counts(&base)), (3, vec![1, 2, 3]));
        assert_eq!((novel.classes.clone(), counts(&novel)), (vec!["c3".into(), "c4".into()], vec![4, 5]));
        assert_eq!(novel.samples[0].name(), "3/0");
        let splits = |data| Splits { train: Some(data), val: None, test: None, layout: "x".into() };
        let halves = splits(data).with_classes(ClassSplit::Novel).unwrap();
        assert!(halves.layout.contains("its 2 novel classes"));
        let few = splits(self::data(&[1, 1, 1])).with_classes(ClassSplit::Novel);
        assert!(few.unwrap_err().to_string().contains("novel half of 3 classes has 1"));
        for split in [ClassSplit::All, ClassSplit::Base, ClassSplit::Novel] {
            assert_eq!(split.to_string().parse::<ClassSplit>().unwrap(), split);
        }
        assert!("new".parse::<ClassSplit>().unwrap_err().to_string().contains("use all, base or novel"));
    }
}
