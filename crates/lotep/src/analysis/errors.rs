//! What an adapted network gets wrong: which classes it takes for which, and its worst images.

use serde::{Deserialize, Serialize};

use crate::data::{Dataset, Interpolation, Loader, Transform, resize};
use crate::eval::{Accuracy, Tally, score};
use crate::model::Predictor;
use crate::plot::{Anchor, Heat, Svg, data_url, heat, png};
use crate::{Result, bail};

/// A class, and how its images fared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassErrors {
    /// Its name.
    pub name: String,
    /// Its images.
    pub images: usize,
    /// Those that were recognised, in percent; `None` of no images.
    pub top1: Option<f64>,
}

/// An image that was taken for something else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mistake {
    /// Its name: a path, or a file and a number in it.
    pub image: String,
    /// What it is.
    pub class: String,
    /// What it was taken for.
    pub predicted: String,
    /// The probability that its own class was given, in [0, 1].
    pub probability: f64,
    /// Its place in the data set.
    #[serde(skip)]
    pub index: usize,
}

/// What went wrong on a data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Errors {
    /// Over all images.
    pub accuracy: Accuracy,
    /// Class by class.
    pub classes: Vec<ClassErrors>,
    /// Images of class `row` that were taken for class `column`.
    pub confusion: Vec<Vec<usize>>,
    /// Mistakes, the surest first.
    pub worst: Vec<Mistake>,
}

/// Score every image and note what it is taken for; the `worst` surest mistakes are kept.
///
/// # Errors
/// An image can't be read, none can, or `progress` stopped it.
pub fn errors(
    predictor: &Predictor,
    loader: &Loader,
    transform: &Transform,
    worst: usize,
    mut progress: impl FnMut(usize) -> bool,
) -> Result<Errors> {
    let data = loader.dataset().clone();
    let n = data.classes.len();
    let mut tally = Tally::default();
    let mut confusion = vec![vec![0; n]; n];
    let mut mistakes: Vec<Mistake> = Vec::new();
    score(predictor, loader, transform, |logits, classes, labels, indices| {
        tally.add(logits, classes, labels);
        for ((row, &label), &index) in logits.chunks_exact(classes).zip(labels).zip(indices) {
            // Of equal scores the first, as everywhere.
            let best = (1..classes).fold(0, |best, i| if row[i] > row[best] { i } else { best });
            confusion[label][best] += 1;
            if best != label {
                let sum: f64 = row.iter().map(|v| f64::from(v - row[best]).exp()).sum();
                mistakes.push(Mistake {
                    image: data.samples[index].name(),
                    class: data.classes[label].clone(),
                    predicted: data.classes[best].clone(),
                    probability: f64::from(row[label] - row[best]).exp() / sum,
                    index,
                });
            }
        }
        progress(tally.accuracy().images)
    })?;
    mistakes.sort_by(|a, b| a.probability.total_cmp(&b.probability).then(a.index.cmp(&b.index)));
    mistakes.truncate(worst);
    let class = |(k, name): (usize, &String)| {
        let images: usize = confusion[k].iter().sum();
        let top1 = (images > 0).then(|| 100.0 * confusion[k][k] as f64 / images as f64);
        ClassErrors { name: name.clone(), images, top1 }
    };
    let classes = data.classes.iter().enumerate().map(class).collect();
    Ok(Errors { accuracy: tally.accuracy(), classes, confusion, worst: mistakes })
}

impl Errors {
    /// The confusion matrix as SVG; each row is in percent of its class's images.
    ///
    /// # Errors
    /// A picture can't be compressed.
    pub fn matrix(&self) -> Result<String> {
        let names: Vec<String> = self.classes.iter().map(|c| c.name.clone()).collect();
        let share = |row: &Vec<usize>| {
            let all: usize = row.iter().sum();
            row.iter().map(|n| if all > 0 { 100.0 * *n as f64 / all as f64 } else { f64::NAN }).collect()
        };
        let values = self.confusion.iter().flat_map(|row| -> Vec<f64> { share(row) }).collect();
        let x = ("taken for".to_owned(), names.clone());
        let title = "Confusion, % of each class".to_owned();
        heat(&Heat { title, x, y: ("class".into(), names), values, range: [0.0, 100.0] })
    }

    /// The worst images as one SVG, with what they are and what they were taken for.
    ///
    /// # Errors
    /// An image can no longer be read.
    pub fn contact_sheet(&self, data: &Dataset) -> Result<String> {
        const SIDE: usize = 112;
        let columns = self.worst.len().clamp(1, 6);
        let [w, h] = [SIDE as f64 + 24.0, SIDE as f64 + 52.0];
        let rows = self.worst.len().div_ceil(columns).max(1);
        let mut svg = Svg::new(16.0 + w * columns as f64, 40.0 + h * rows as f64);
        svg.text([16.0, 24.0], Anchor::Start, 14.0, "Surest mistakes: what it is, what it was taken for");
        for (i, m) in self.worst.iter().enumerate() {
            let [x, y] = [16.0 + w * (i % columns) as f64, 40.0 + h * (i / columns) as f64];
            let Some(sample) = data.samples.get(m.index) else { bail!("{} is not in the data", m.image) };
            let small = resize(&sample.load()?, SIDE, SIDE, Interpolation::Bilinear);
            svg.image([x, y], [SIDE as f64; 2], &data_url(&png(&small.data, SIDE, SIDE)?));
            let cut = |text: &str| crate::plot::short(text, 18);
            svg.text([x, y + SIDE as f64 + 14.0], Anchor::Start, 11.0, &cut(&m.class));
            let taken = format!("→ {}", cut(&m.predicted));
            svg.text([x, y + SIDE as f64 + 28.0], Anchor::Start, 11.0, &taken);
            let own = format!("own: {:.2}%", 100.0 * m.probability);
            svg.text([x, y + SIDE as f64 + 42.0], Anchor::Start, 10.0, &own);
        }
        Ok(svg.finish())
    }
}
