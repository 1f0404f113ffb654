//! Accuracy of a model on a data set.

use serde::{Deserialize, Serialize};

use crate::data::{Loader, Transform};
use crate::model::{Predictor, pixels};
use crate::train::loss::label_ranks;
use crate::{Error, Result, bail};

/// Accuracy over a set of images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Images whose true class scored highest, in percent.
    pub top1: f64,
    /// Images whose true class is among the five best, in percent.
    pub top5: f64,
    /// Mean cross-entropy.
    pub loss: f64,
    /// Number of images.
    pub images: usize,
}

/// Sums from which an [`Accuracy`] is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    first: usize,
    five: usize,
    loss: f64,
    images: usize,
}

impl Tally {
    /// Add a batch: scores row by row and true classes.
    pub fn add(&mut self, logits: &[f32], classes: usize, labels: &[usize]) {
        for (row, (rank, &label)) in
            logits.chunks_exact(classes).zip(label_ranks(logits, classes, labels).into_iter().zip(labels))
        {
            self.first += usize::from(rank == 0);
            self.five += usize::from(rank < 5);
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|v| f64::from(v - max).exp()).sum();
            self.loss += sum.ln() - f64::from(row[label] - max);
        }
        self.images += labels.len();
    }

    /// The accuracy so far.
    pub fn accuracy(&self) -> Accuracy {
        let n = self.images.max(1) as f64;
        Accuracy {
            top1: 100.0 * self.first as f64 / n,
            top5: 100.0 * self.five as f64 / n,
            loss: self.loss / n,
            images: self.images,
        }
    }
}

/// Leave only some classes as answers, as for data sets that have part of the classes (ImageNet-R and -A).
fn only(logits: &mut [f32], classes: usize, among: &[usize]) {
    for row in logits.chunks_exact_mut(classes) {
        for (class, logit) in row.iter_mut().enumerate() {
            if among.binary_search(&class).is_err() {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// Score every image of `loader`, in order; `progress` hears how many are done and may stop it.
///
/// # Errors
/// An image can't be read (where the loader is told to fail), none can, or `progress` stopped it.
pub fn evaluate(
    predictor: &Predictor,
    loader: &Loader,
    transform: &Transform,
    mut progress: impl FnMut(usize) -> bool,
) -> Result<Accuracy> {
    let mut tally = Tally::default();
    score(predictor, loader, transform, |logits, classes, labels, _| {
        tally.add(logits, classes, labels);
        progress(tally.images)
    })?;
    Ok(tally.accuracy())
}

/// Score every image of `loader`, in order, a batch at a time: `each` hears the scores row by row, how many classes there
/// are, the true ones and the images' places in the data set, and may stop it.
///
/// # Errors
/// As [`evaluate`].
pub fn score(
    predictor: &Predictor,
    loader: &Loader,
    transform: &Transform,
    mut each: impl FnMut(&[f32], usize, &[usize], &[usize]) -> bool,
) -> Result<()> {
    let mut any = false;
    for batch in loader.in_order() {
        let batch = batch?;
        if batch.size == 0 {
            continue;
        }
        any = true;
        let (labels, indices) = (batch.labels.clone(), batch.indices.clone());
        let logits = predictor.logits(pixels(batch, transform, predictor.device()));
        let classes = logits.dims()[1];
        let mut logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
        if let Some(among) = &loader.dataset().among {
            only(&mut logits, classes, among);
        }
        if !each(&logits, classes, &labels, &indices) {
            return Err(Error::Interrupted("evaluation was stopped".into()));
        }
    }
    if !any {
        bail!("no image could be read: nothing to evaluate");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_that_the_data_lacks_are_no_answers() {
        let mut logits = [5.0, 1.0, 2.0, 0.0, 9.0, 3.0];
        only(&mut logits, 3, &[1, 2]);
        let mut tally = Tally::default();
        tally.add(&logits, 3, &[2, 1]);
        let accuracy = tally.accuracy();
        assert!((accuracy.top1 - 100.0).abs() < 1e-9, "{accuracy:?}");
        let want = f64::midpoint((1.0_f64 + (-1.0_f64).exp()).ln(), (1.0_f64 + (-6.0_f64).exp()).ln());
        assert!((accuracy.loss - want).abs() < 1e-6);
    }
}
