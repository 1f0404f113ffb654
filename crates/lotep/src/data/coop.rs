//! CoOp's split files (`split_zhou_NAME.json`), which CLIP's methods share: for each part, images with label and class name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::dataset::{Dataset, Sample, Source, Splits, name_of};
use super::files::listed;
use crate::{Error, Result, bail, input_error};

#[derive(Deserialize)]
struct File {
    train: Vec<Entry>,
    #[serde(default)]
    val: Vec<Entry>,
    test: Vec<Entry>,
}

/// Path below the images' directory, label, class name.
type Entry = (String, usize, String);

/// Read a split file. Images are looked for in its directory, and in the directories there.
pub(super) fn read(path: &Path) -> Result<Splits> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let file: File = serde_json::from_str(&text).map_err(|e| {
        input_error!(
            "{} is no split file as CoOp has them (train, val and test with [path, label, class] each): {e}",
            path.display()
        )
    })?;
    let parts = [("train", &file.train), ("val", &file.val), ("test", &file.test)];
    let mut names: BTreeMap<usize, &str> = BTreeMap::new();
    for (part, entries) in parts {
        for (image, label, name) in entries {
            let known = names.entry(*label).or_insert(name);
            if known != name {
                bail!("{}: {part}: {image}: label {label} is `{known}` and `{name}`", path.display());
            }
        }
    }
    // Labels are numbered as they come in order; a file need not begin at 0.
    let places: BTreeMap<usize, usize> = names.keys().enumerate().map(|(i, label)| (*label, i)).collect();
    let classes: Vec<String> = names.into_values().map(str::to_owned).collect();
    let first = parts.iter().find_map(|(_, entries)| entries.first());
    let Some((first, ..)) = first else { bail!("{} names no images", path.display()) };
    let root = root(path, first)?;
    let dataset = |(_, entries): (&str, &Vec<Entry>)| -> Result<Option<Dataset>> {
        let samples = entries.iter().map(|(image, label, _)| {
            let file = listed(path, &root, image)?;
            Ok(Sample { source: Source::File(file), label: places[label] })
        });
        let samples = samples.collect::<Result<Vec<_>>>()?;
        let name = name_of(path.parent().unwrap_or(path));
        Ok((!samples.is_empty()).then(|| Dataset::new(name, classes.clone(), samples)))
    };
    let [train, val, test] = parts.map(dataset);
    let layout = format!("split file {}", path.file_name().unwrap_or_default().to_string_lossy());
    Ok(Splits { train: train?, val: val?, test: test?, layout })
}

/// The directory that the file's paths start from.
fn root(path: &Path, first: &str) -> Result<PathBuf> {
    let home = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut places = vec![home.to_owned()];
    let listed = std::fs::read_dir(home).map_err(Error::io("read", home))?;
    let mut below: Vec<PathBuf> = listed.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    below.sort();
    places.append(&mut below);
    match places.iter().find(|place| place.join(first).is_file()) {
        Some(place) => Ok(place.clone()),
        None => bail!(
            "{} names `{first}`, which is neither in {} nor in a directory there: is the data set unpacked beside it?",
            path.display(),
            home.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use crate::data::open;
    use crate::data::test_files::write_image;

    #[test]
    fn split_files_are_read_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["images/a/1.png", "images/a/2.png", "images/b/1.png", "images/b/2.png"] {
            write_image(dir.path().join(file), 1);
        }
        let path = dir.path().join("split_zhou_Tiny.json");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        let refused = || open(&path, None).unwrap_err().to_string();
        write(
            r#"{"train": [["b/1.png", 1, "bee"], ["a/1.png", 0, "ant"]], "val": [["a/2.png", 0, "ant"]],
                "test": [["b/2.png", 1, "bee"]]}"#,
        );
        let splits = open(&path, None).unwrap();
        let [train, val, test] = [splits.train, splits.val, splits.test].map(Option::unwrap);
        assert_eq!(train.classes, ["ant", "bee"]);
        assert_eq!(train.samples.iter().map(|s| s.label).collect::<Vec<_>>(), [1, 0]);
        assert!(test.samples[0].name().ends_with("images/b/2.png") && val.samples.len() == 1);
        assert!(splits.layout.contains("split_zhou_Tiny.json"));

        write(r#"{"train": [["a/1.png", 0, "ant"], ["a/9.png", 0, "ant"]], "test": []}"#);
        assert!(refused().contains("names `a/9.png`, which is not in"), "{}", refused());
        write(r#"{"train": [["c/1.png", 0, "ant"]], "test": []}"#);
        assert!(refused().contains("unpacked beside it"), "{}", refused());
        write(r#"{"train": [["a/1.png", 0, "ant"], ["a/2.png", 0, "bee"]], "test": []}"#);
        assert!(refused().contains("label 0 is `ant` and `bee`"), "{}", refused());
        write(r#"{"train": [["a/1.png", 0, "ant"], ["../x.png", 0, "ant"]], "test": []}"#);
        assert!(refused().contains("not below the images' directory"), "{}", refused());
        for text in [r#"{"train": [], "test": []}"#, r#"{"train": 3}"#, "x"] {
            write(text);
            assert!(refused().contains("split_zhou_Tiny.json"), "{}", refused());
        }
    }
}
