//! ImageNet-1K's classes: WordNet's identifiers in the order of the networks' outputs, which is that of their names.

use std::collections::BTreeMap;
use std::path::Path;

use crate::{Error, Result, bail};

static LIST: &str = include_str!("imagenet_wnids.txt");

/// The 1,000 identifiers, sorted.
pub(super) fn all() -> Vec<&'static str> {
    LIST.lines().collect()
}

/// Names for the classes: those of CoOp's `classnames.txt` (`n01440764 tench`) where that is in `dir`, and the
/// identifiers otherwise.
///
/// # Errors
/// The file lacks a class, or gives two the same name.
pub(super) fn names(dir: &Path) -> Result<Vec<String>> {
    let path = dir.join("classnames.txt");
    if !path.is_file() {
        return Ok(all().into_iter().map(str::to_owned).collect());
    }
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let named: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.trim().split_once(' ')).collect();
    let mut names: Vec<String> = Vec::with_capacity(1000);
    for wnid in all() {
        match named.get(wnid) {
            None => bail!("{} has no name for {wnid}", path.display()),
            // The list has a few twice (crane, maillot), which are two classes all the same.
            Some(name) if names.iter().any(|n| n == name) => names.push(format!("{name} ({wnid})")),
            Some(name) => names.push((*name).to_owned()),
        }
    }
    Ok(names)
}
