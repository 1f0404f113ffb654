//! German traffic signs: PPM images in folders by class to learn from, and a flat folder with a table to test on.

use std::path::Path;

use crate::data::dataset::{Source, Split, Splits, name_of};
use crate::data::files::{entries, listed, walk};
use crate::data::gather::{Named, by_name};
use crate::data::list::records;
use crate::{Error, Result, bail, input_error};

/// Read `train`, one of the two training archives' folders, and the test images with their classes.
pub(super) fn read(dir: &Path, train: &str) -> Result<Splits> {
    let mut images = Named::new();
    for class in entries(&dir.join(train))?.dirs {
        let name = class.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let number: u32 = name
            .parse()
            .map_err(|_| input_error!("{} is no class: folders are named 00000 to 00042", class.display()))?;
        let mut files = Vec::new();
        walk(&class, &mut files)?;
        images.extend(files.into_iter().map(|file| (Split::Train, Source::File(file), number.to_string())));
    }
    let root = dir.join("Final_Test/Images");
    let name = "GT-final_test.csv";
    let places = [dir.join(name), root.join(name), dir.join("..").join(name)];
    let Some(table) = places.iter().find(|path| path.is_file()) else {
        bail!(
            "{} has no {name}, which says what the test images are (in GTSRB_Final_Test_GT.zip)",
            dir.display()
        );
    };
    let text = std::fs::read_to_string(table).map_err(Error::io("read", table))?;
    let mut rows = records(&text, ';').into_iter();
    let heading = rows.next().unwrap_or_default();
    let column = |name: &str| heading.iter().position(|cell| cell.trim() == name);
    let (Some(file), Some(class)) = (column("Filename"), column("ClassId")) else {
        bail!("{} has no columns Filename and ClassId: is it the table without answers?", table.display());
    };
    for row in rows {
        let (Some(image), Some(class)) =
            (row.get(file), row.get(class).and_then(|c| c.trim().parse::<u32>().ok()))
        else {
            bail!("{} has a line without a class: {}", table.display(), row.join(";"));
        };
        images.push((Split::Test, Source::File(listed(table, &root, image)?), class.to_string()));
    }
    let mut splits = by_name(name_of(dir), format!("GTSRB, trained on {train}"), images)?;
    for part in [&mut splits.train, &mut splits.test].into_iter().flatten() {
        part.samples.sort_by_key(|sample| sample.label);
    }
    Ok(splits)
}
