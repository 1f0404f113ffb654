//! Labelled images and a model that is measured on them; shared by the commands that do.

use std::path::PathBuf;

use lotep::data::{ClassSplit, Dataset, Known, Split, nameless, open};
use lotep::{Result, bail};

use super::datasets::known_names;
use super::model::{Model, ModelArgs};
use super::names::NamesArgs;
use crate::ui::Ui;

/// Which images.
#[derive(clap::Args)]
pub(crate) struct ImagesArgs {
    /// Directory of images: train/CLASS/*, test/CLASS/*, or CLASS/*; a list, a Parquet table or a tar archive; with
    /// --dataset also the directory that holds the data set's.
    #[arg(long, visible_alias = "data-root", value_name = "DIR|FILE")]
    pub(crate) data: PathBuf,
    /// Read the original download of a known data set (`lotep datasets`).
    #[arg(long, value_name = "NAME", value_parser = known_names(), hide_possible_values = true)]
    dataset: Option<String>,
    /// Which of the classes: all, the first half, or the rest.
    #[arg(long, default_value = "all", value_parser = ["all", "base", "novel"])]
    class_split: String,
    /// Which part of the data.
    #[arg(long, default_value = "test", value_parser = ["train", "val", "test", "all"])]
    pub(crate) split: String,
    /// Share of the images that is the test split when there is no test/, as for `train`.
    #[arg(long, value_name = "SHARE", default_value_t = 0.2)]
    test_fraction: f64,
}

impl ImagesArgs {
    /// List them.
    ///
    /// # Errors
    /// As [`open`]; there is no such part, or a half of the classes is too small to be told apart.
    pub(crate) fn open(&self) -> Result<Dataset> {
        let split: Split = self.split.parse()?;
        check_test_fraction(self.test_fraction)?;
        let mut splits = open(&self.data, self.known()?)?;
        if split != Split::All {
            splits.hold_out_test(self.test_fraction);
        }
        splits.with_classes(self.class_split.parse::<ClassSplit>()?)?.get(split)
    }

    /// The known data set that they are.
    fn known(&self) -> Result<Option<Known>> {
        self.dataset.as_deref().map(str::parse::<Known>).transpose()
    }
}

/// Refuse what is no share of the images to test on.
///
/// # Errors
/// It isn't one.
pub(crate) fn check_test_fraction(share: f64) -> Result<()> {
    if (0.0..=0.9).contains(&share) {
        return Ok(());
    }
    bail!("test-fraction is {share}; 0 to 0.9 is expected")
}

/// Which model is measured, and by which names where names score.
#[derive(clap::Args)]
pub(crate) struct ScoredArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    names: NamesArgs,
    /// CLIP: score by the names of the data's classes, also where the adapter was trained for others.
    #[arg(long, conflicts_with = "classes")]
    data_classes: bool,
}

impl ScoredArgs {
    /// Load the model, and those of the images that it is to score. Names that say nothing are warned of.
    ///
    /// # Errors
    /// As [`ImagesArgs::open`] and [`ModelArgs::load_for`].
    pub(crate) fn load(&self, images: &ImagesArgs, ui: &Ui) -> Result<(Model, Dataset)> {
        let mut data = images.open()?;
        if self.data_classes {
            data = data.answers();
        }
        let names = self.names.names()?.or_else(|| self.data_classes.then(|| data.classes.clone()));
        let mut model = self.model.load_for(names, &self.names.template, ui)?;
        // A CLIP alone has no other classifier than the data's names.
        if model.loaded.words.is_some() && model.adapter.is_none() && model.named.is_none() {
            data = data.answers();
            model.score_by(data.classes.clone(), &self.names.template, ui)?;
        }
        if let Some(named) = &model.named
            && let Some(line) = nameless(&images.data, images.known()?, &named.names)
        {
            ui.note(&format!("warning: {line}"));
        }
        Ok((model, data))
    }
}

/// Number the data's classes as the model does: by name for an adapter, by order for a network's own classifier.
///
/// # Errors
/// A class of the data is none of the model's, or there are not as many as its own classifier has.
pub(crate) fn align(mut data: Dataset, classes: Option<&[String]>, own: usize) -> Result<Dataset> {
    let Some(classes) = classes else {
        if data.classes.len() != own {
            bail!(
                "{} has {} classes, the network's own classifier {own}: they can only be matched one to one, in order",
                data.name,
                data.classes.len()
            );
        }
        return Ok(data);
    };
    let place = |name: &String| classes.iter().position(|c| c == name);
    let places: Vec<_> = data.classes.iter().map(|name| (name.clone(), place(name))).collect();
    for sample in &mut data.samples {
        match &places[sample.label] {
            (_, Some(place)) => sample.label = *place,
            (name, None) => bail!(
                "{}: class `{name}` is not one of the model's {} classes ({}, …)",
                data.name,
                classes.len(),
                classes.iter().take(4).cloned().collect::<Vec<_>>().join(", ")
            ),
        }
    }
    data.among = data.among.map(|among| {
        let mut among: Vec<usize> = among.iter().filter_map(|&label| places[label].1).collect();
        among.sort_unstable();
        among.into()
    });
    data.classes = classes.to_vec();
    Ok(data)
}
