//! CUB-200-2011 and NABirds: lists by identifiers, `images.txt`, `image_class_labels.txt`, `train_test_split.txt` and `classes.txt`.

use std::collections::HashMap;
use std::path::Path;

use crate::data::dataset::{Source, Split, Splits, name_of};
use crate::data::files::listed;
use crate::data::gather::{Named, by_name};
use crate::{Error, Result, bail};

/// Read either. Classes without images, which NABirds has as the higher levels of its tree, are left out.
pub(super) fn read(dir: &Path) -> Result<Splits> {
    let table = |name: &str| -> Result<Vec<(String, String)>> {
        let path = dir.join(name);
        let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let pair = |line: &str| match line.trim().split_once(' ') {
            Some((id, value)) => Ok((id.to_owned(), value.trim().to_owned())),
            None => bail!("{} has a line without a value: {line}", path.display()),
        };
        lines.map(pair).collect()
    };
    let classes: HashMap<String, String> = table("image_class_labels.txt")?.into_iter().collect();
    let parts: HashMap<String, String> = table("train_test_split.txt")?.into_iter().collect();
    let names: HashMap<String, String> = table("classes.txt")?.into_iter().collect();
    let (list, root) = (dir.join("images.txt"), dir.join("images"));
    let mut images = Named::new();
    for (id, image) in table("images.txt")? {
        let (Some(class), Some(part)) = (classes.get(&id), parts.get(&id)) else {
            bail!("{}: image {id} has no class or no part in the other lists", list.display());
        };
        let split = if part == "1" { Split::Train } else { Split::Test };
        images.push((split, Source::File(listed(&list, &root, &image)?), class.clone()));
    }
    let mut splits = by_name(name_of(dir), "lists of images, classes and parts".into(), images)?;
    let found = splits.parts().next().map(|(_, data)| data.classes.clone()).unwrap_or_default();
    let mut named = Vec::with_capacity(found.len());
    for class in &found {
        let Some(name) = names.get(class) else {
            bail!("{} does not name class {class}", dir.join("classes.txt").display());
        };
        // CUB numbers its names: `001.Black_footed_Albatross`.
        let bare =
            name.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches('.').replace('_', " ");
        named.push(if named.contains(&bare) { format!("{bare} ({class})") } else { bare });
    }
    for part in [&mut splits.train, &mut splits.test].into_iter().flatten() {
        part.classes.clone_from(&named);
        part.samples.sort_by_key(|sample| sample.label);
    }
    Ok(splits)
}
