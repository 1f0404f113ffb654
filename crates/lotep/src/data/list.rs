//! Lists of images: CSV or TSV (`path,label[,split]`), JSON and JSON lines.

use std::path::Path;

use serde::Deserialize;

use super::dataset::{Source, Split, Splits, name_of};
use super::files::listed;
use super::gather::{Named, by_name, part};
use crate::{Error, Result, bail, input_error};

/// An entry of a JSON list.
#[derive(Deserialize)]
struct Entry {
    #[serde(alias = "file_name", alias = "image", alias = "file")]
    path: String,
    #[serde(alias = "class")]
    label: Label,
    split: Option<String>,
}

/// A class's name or number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Label {
    Number(u64),
    Name(String),
}

/// Whether a JSON file is a list of images rather than one of CoOp's split files, which is an object.
pub(super) fn is_list(path: &Path) -> Result<bool> {
    Ok(read_text(path)?.trim_start().starts_with('['))
}

/// Read a list. Paths start from the list's directory.
pub(super) fn read(path: &Path) -> Result<Splits> {
    let text = read_text(path)?;
    let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
    let rows = match ending.to_str().unwrap_or_default() {
        "json" => json(path, &text)?,
        "jsonl" => json_lines(path, &text)?,
        "tsv" => table(path, &text, '\t')?,
        _ => table(path, &text, ',')?,
    };
    let home = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut images = Named::with_capacity(rows.len());
    for [image, label, split] in rows {
        let part = match split.as_str() {
            "" => Some(Split::Train),
            word => part(word),
        };
        let Some(part) = part else {
            bail!("{}: `{image}` is of split `{split}`: train, val or test is expected", path.display());
        };
        if label.is_empty() {
            bail!("{}: `{image}` has no label", path.display());
        }
        images.push((part, Source::File(listed(path, home, &image)?), label));
    }
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    by_name(name_of(home), format!("list {file}"), images)
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let text = String::from_utf8(bytes).map_err(|_| input_error!("{} is not UTF-8 text", path.display()))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

fn row(entry: Entry) -> [String; 3] {
    let label = match entry.label {
        Label::Number(n) => n.to_string(),
        Label::Name(name) => name,
    };
    [entry.path, label, entry.split.unwrap_or_default()]
}

fn json(path: &Path, text: &str) -> Result<Vec<[String; 3]>> {
    let entries: Vec<Entry> = serde_json::from_str(text)
        .map_err(|e| input_error!("{} is no list of {{path, label, split}}: {e}", path.display()))?;
    Ok(entries.into_iter().map(row).collect())
}

fn json_lines(path: &Path, text: &str) -> Result<Vec<[String; 3]>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let entry = |(at, line): (usize, &str)| {
        let entry: Entry = serde_json::from_str(line)
            .map_err(|e| input_error!("{}, line {}: {e}", path.display(), at + 1))?;
        Ok(row(entry))
    };
    lines.map(entry).collect()
}

/// Columns are told by a heading, or are path, label and split.
fn table(path: &Path, text: &str, mark: char) -> Result<Vec<[String; 3]>> {
    let mut rows = records(text, mark);
    let Some(first) = rows.first() else { bail!("{} is empty", path.display()) };
    let column = |names: &[&str]| {
        first.iter().position(|cell| names.iter().any(|name| name.eq_ignore_ascii_case(cell.trim())))
    };
    let heading = [
        column(&["path", "file", "filename", "file_name", "image"]),
        column(&["label", "class"]),
        column(&["split", "part"]),
    ];
    // Of the file, of which a heading is one.
    let mut number = 1;
    let columns = match heading {
        [Some(image), Some(label), split] => {
            rows.remove(0);
            number += 1;
            [Some(image), Some(label), split]
        }
        _ if (2..=3).contains(&first.len()) => [Some(0), Some(1), (first.len() == 3).then_some(2)],
        _ => bail!(
            "{} begins with {} columns and no heading: path{mark}label or path{mark}label{mark}split is expected",
            path.display(),
            first.len()
        ),
    };
    let pick = |(at, row): (usize, Vec<String>)| -> Result<[String; 3]> {
        let cell = |column: Option<usize>| match column {
            None => Ok(String::new()),
            Some(column) => row.get(column).map(|c| c.trim().to_owned()).ok_or_else(|| {
                input_error!("{}, record {}: {} columns only", path.display(), at + number, row.len())
            }),
        };
        Ok([cell(columns[0])?, cell(columns[1])?, cell(columns[2])?])
    };
    rows.into_iter().enumerate().map(pick).collect()
}

/// Records of a table with quotes as in RFC 4180; empty lines are left out.
pub(super) fn records(text: &str, mark: char) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut cell) = (Vec::new(), Vec::new(), String::new());
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                cell.push('"');
                chars.next();
            }
            '"' if quoted || cell.is_empty() => quoted = !quoted,
            c if c == mark && !quoted => row.push(std::mem::take(&mut cell)),
            '\r' if !quoted && chars.peek() == Some(&'\n') => {}
            '\n' if !quoted => {
                row.push(std::mem::take(&mut cell));
                rows.push(std::mem::take(&mut row));
            }
            c => cell.push(c),
        }
    }
    row.push(cell);
    rows.push(row);
    rows.retain(|row| row.iter().any(|cell| !cell.trim().is_empty()));
    rows
}

#[cfg(test)]
mod tests {
    use crate::data::test_files::{write_bytes, write_image};
    use crate::data::{Dataset, open};

    fn labels(data: &Dataset) -> Vec<(String, &str)> {
        let one = |s: &crate::data::Sample| {
            (s.name().rsplit('/').next().unwrap().to_owned(), data.classes[s.label].as_str())
        };
        data.samples.iter().map(one).collect()
    }

    #[test]
    fn lists_in_all_forms_say_the_same() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["pics/1.png", "pics/2, two.png", "pics/3.png", "pics/4.png"] {
            write_image(dir.path().join(file), 1);
        }
        let forms = [
            (
                "a.csv",
                "path,label,split\r\npics/1.png,bee,train\r\n\"pics/2, two.png\",ant,train\r\npics/3.png,bee,val\r\npics/4.png,ant,test\r\n",
            ),
            (
                "b.csv",
                "pics/1.png,bee,train\n\"pics/2, two.png\",ant,Train\n\npics/3.png,bee,valid\npics/4.png,ant,test",
            ),
            (
                "c.tsv",
                "split\tclass\tfilename\ntrain\tbee\tpics/1.png\ntrain\tant\tpics/2, two.png\nval\tbee\tpics/3.png\ntest\tant\tpics/4.png\n",
            ),
            (
                "d.json",
                r#" [{"path": "pics/1.png", "label": "bee"}, {"path": "pics/2, two.png", "label": "ant", "split": "train"},
                {"path": "pics/3.png", "label": "bee", "split": "validation"}, {"path": "pics/4.png", "label": "ant", "split": "test"}]"#,
            ),
            (
                "e.jsonl",
                "{\"file_name\": \"pics/1.png\", \"label\": \"bee\"}\n{\"file_name\": \"pics/2, two.png\", \"label\": \"ant\"}\n{\"image\": \"pics/3.png\", \"label\": \"bee\", \"split\": \"val\"}\n{\"path\": \"pics/4.png\", \"class\": \"ant\", \"split\": \"test\"}\n",
            ),
        ];
        for (name, text) in forms {
            write_bytes(dir.path().join(name), text.as_bytes());
            let splits = open(&dir.path().join(name), None).unwrap_or_else(|e| panic!("{name}: {e}"));
            let [train, val, test] = [splits.train, splits.val, splits.test].map(Option::unwrap);
            assert_eq!(train.classes, ["ant", "bee"], "{name}");
            assert_eq!(labels(&train), [("1.png".into(), "bee"), ("2, two.png".into(), "ant")], "{name}");
            assert_eq!(labels(&val), [("3.png".into(), "bee")]);
            assert_eq!(labels(&test), [("4.png".into(), "ant")]);
        }
        // Numbers are in the order of numbers.
        write_bytes(dir.path().join("n.csv"), b"pics/1.png,10\npics/3.png,9\n");
        assert_eq!(open(&dir.path().join("n.csv"), None).unwrap().train.unwrap().classes, ["9", "10"]);
    }

    #[test]
    fn mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        write_image(dir.path().join("1.png"), 1);
        write_image(dir.path().join("../outside.png"), 1);
        for (name, text, message) in [
            ("a.csv", "", "a.csv is empty"),
            ("a.csv", "1.png\n", "begins with 1 columns"),
            ("a.csv", "1.png,a,train,x\n", "begins with 4 columns"),
            ("a.csv", "1.png,a\n1.png\n", "record 2: 1 columns only"),
            ("a.csv", "path,label\n1.png,a\n1.png\n", "record 3: 1 columns only"),
            ("a.csv", "1.png,a,learn\n", "split `learn`: train, val or test"),
            ("a.csv", "1.png,\n", "`1.png` has no label"),
            ("a.csv", "2.png,a\n", "names `2.png`, which is not in"),
            ("a.csv", "../outside.png,a\n", "not below the images' directory"),
            ("a.csv", "/etc/hostname,a\n", "not below the images' directory"),
            (
                "a.csv",
                "1.png,a,train\n1.png,b,test\n",
                "is of class `b`, which the training images do not have",
            ),
            ("a.json", "[{\"path\": 3}]", "a.json is no list"),
            ("a.json", "[]", "holds no images"),
            ("a.jsonl", "{\"path\": \"1.png\", \"label\": 1}\n{", "a.jsonl, line 2"),
        ] {
            write_bytes(dir.path().join(name), text.as_bytes());
            let error = open(&dir.path().join(name), None).unwrap_err().to_string();
            assert!(error.contains(message) && !error.contains('\n'), "{text}: {error}");
        }
        write_bytes(dir.path().join("a.csv"), b"\xff\xfe");
        assert!(open(&dir.path().join("a.csv"), None).unwrap_err().to_string().contains("not UTF-8"));
        std::fs::remove_file(dir.path().join("../outside.png")).unwrap();
    }
}
