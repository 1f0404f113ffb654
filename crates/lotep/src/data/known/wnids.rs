//! ImageNet-1K's classes: WordNet's identifiers in the order of the networks' outputs, which is that of their names.

use std::collections::BTreeMap;
use std::path::Path;

use super::Known;
use crate::{Error, Result, bail};

static LIST: &str = include_str!("imagenet_wnids.txt");

/// The 1,000 identifiers, sorted.
pub(super) fn all() -> Vec<&'static str> {
    LIST.lines().collect()
}

/// CoOp's list of names.
const NAMES: &str = "classnames.txt";

/// Names for the classes: those of CoOp's `classnames.txt` (`n01440764 tench`) where that is in `dir` or, as CoOp has it
/// for ImageNet's variants, in the directory above, and the identifiers otherwise.
///
/// # Errors
/// The file lacks a class, or gives two the same name.
pub(super) fn names(dir: &Path) -> Result<Vec<String>> {
    let places = [Some(dir), dir.parent()].into_iter().flatten().map(|place| place.join(NAMES));
    let Some(path) = places.into_iter().find(|path| path.is_file()) else {
        return Ok(all().into_iter().map(str::to_owned).collect());
    };
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

/// Whether a class is called by an identifier: `n` and eight digits.
fn is_identifier(name: &str) -> bool {
    let digits = name.strip_prefix('n').filter(|digits| digits.len() == 8);
    digits.is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
}

/// What is wrong, and what to do, where classes that names are to score are called by identifiers; nothing where they are
/// not. `path` and `known` are as the data set was opened.
pub fn nameless(path: &Path, known: Option<Known>, classes: &[String]) -> Option<String> {
    let mut without = classes.iter().filter(|name| is_identifier(name));
    let first = without.next()?;
    let place = known.and_then(|known| known.find(path).ok()).unwrap_or_else(|| path.to_owned());
    let advice = match known.map(|known| known.about().name) {
        Some("tiny-imagenet") => format!("put its words.txt into {}", place.display()),
        Some(_) => format!(
            "put CoOp's {NAMES} (a line `n01440764 tench` for each; github.com/KaiyangZhou/CoOp tells where to get it) \
             into {} or the directory above",
            place.display()
        ),
        None => format!(
            "name the folders of {} by words; ImageNet's, with --dataset imagenet, are named by CoOp's {NAMES}",
            place.display()
        ),
    };
    Some(format!(
        "{} of {} classes are scored by WordNet's identifiers, such as `{first}`, which say nothing as words: {advice}",
        without.count() + 1,
        classes.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_told_from_words() {
        let classes = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let path = Path::new("photos");
        assert_eq!(
            nameless(path, None, &classes(&["nail", "n0144076", "crane (n03126707)", "n0144076x"])),
            None
        );
        let own = nameless(path, None, &classes(&["tench", "n01440764"])).unwrap();
        assert!(own.contains("1 of 2 classes") && own.contains("folders of photos"), "{own}");
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("imagenet-adversarial/imagenet-a");
        std::fs::create_dir_all(below.join("n01498041")).unwrap();
        let known: Known = "imagenet-a".parse().unwrap();
        let said = nameless(dir.path(), Some(known), &classes(&["n01440764", "n01498041"])).unwrap();
        assert!(said.contains("2 of 2 classes") && said.contains("classnames.txt"), "{said}");
        assert!(said.contains(&below.display().to_string()), "{said}");
        assert_eq!(names(&below).unwrap()[6], "n01498041");
        // Beside the variant, as CoOp has it.
        let lines: Vec<String> = all().iter().map(|wnid| format!("{wnid} word {wnid}")).collect();
        std::fs::write(dir.path().join("imagenet-adversarial").join(NAMES), lines.join("\n")).unwrap();
        assert_eq!(names(&below).unwrap()[6], "word n01498041");
    }
}
