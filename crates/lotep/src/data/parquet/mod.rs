//! Parquet tables with images, as Hugging Face's data sets store them: a column `image` of `{bytes, path}` and a column
//! `label`, whose class names are in the file's metadata.
//!
//! Of the format that is what those files are made of: flat columns, pages of version 1, plain or by a dictionary,
//! uncompressed or by Snappy. Opening reads the page headers and lengths; an image's page is decompressed when it is its
//! turn: general libraries decode columns from the front and don't say where a value is.

mod column;
pub(super) mod snappy;
mod thrift;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use column::{Chunk, Item};
use thrift::Value;

use super::dataset::{Source, Splits, name_of};
use super::gather::{Named, by_name, numbered};
use super::packed::Packed;
use super::shards::Parts;
use crate::mapped::Mapped;
use crate::{Result, bail, input_error};

/// Columns by the names that data sets give them, in the order in which they are looked for.
const IMAGES: [&str; 4] = ["image", "img", "jpg", "png"];
const LABELS: [&str; 4] = ["label", "labels", "fine_label", "class"];

type Parsed<T> = std::result::Result<T, String>;

/// Read tables.
pub(super) fn read(path: &Path, parts: &Parts) -> Result<Splits> {
    let mut images = Named::new();
    let mut before: Option<Vec<String>> = None;
    for (split, file) in &parts.0 {
        let mapped = Arc::new(Mapped::open(file)?);
        let table = table(mapped.bytes())
            .map_err(|why| input_error!("{} is no Parquet file that can be read: {why}", file.display()))?;
        let names = before.get_or_insert(table.names.clone());
        if *names != table.names {
            bail!("{} has other class names than the files before it", file.display());
        }
        for (row, (image, label)) in table.rows.into_iter().enumerate() {
            let Some(Item::Place(bytes, page)) = image else {
                bail!("{}: row {row} has no image", file.display());
            };
            let label = match label {
                Some(Item::Int(n)) if names.is_empty() && n >= 0 => n.to_string(),
                Some(Item::Int(n)) => match usize::try_from(n).ok().and_then(|n| names.get(n)) {
                    Some(name) => name.clone(),
                    // Hugging Face writes -1 where a test set's labels are secret.
                    None => bail!(
                        "{}: row {row} has label {n}, and there are {} classes",
                        file.display(),
                        names.len()
                    ),
                },
                Some(Item::Text(name)) => name,
                _ => bail!("{}: row {row} has no label", file.display()),
            };
            images.push((
                *split,
                Source::Packed(Packed::new(&mapped, &format!("row {row}"), bytes, page)),
                label,
            ));
        }
    }
    let layout = parts.count("Parquet table");
    let names = before.unwrap_or_default();
    if names.is_empty() {
        by_name(name_of(path), layout, images)
    } else {
        numbered(name_of(path), layout, names, images)
    }
}

struct Table {
    rows: Vec<(Option<Item>, Option<Item>)>,
    /// Names of the classes; none where the file has none.
    names: Vec<String>,
}

fn table(file: &[u8]) -> Parsed<Table> {
    if file.len() < 12 || !file.starts_with(b"PAR1") || !file.ends_with(b"PAR1") {
        return Err("it does not begin and end as one: is it cut short?".into());
    }
    let end = file.len() - 8;
    let length = file[end..].first_chunk().map_or(0, |b| u32::from_le_bytes(*b)) as usize;
    let footer = end.checked_sub(length).and_then(|start| file.get(start..end));
    let (about, _) = thrift::read(footer.ok_or_else(|| format!("its description claims {length} bytes"))?)?;
    let leaves = leaves(about.list(2))?;
    let find = |wanted: &[&str], inner: Option<&str>| {
        wanted.iter().find_map(|name| {
            let path = inner.map_or(vec![*name], |inner| vec![*name, inner]);
            leaves.iter().find(|(leaf, _)| *leaf == path)
        })
    };
    let columns = || leaves.iter().map(|(path, _)| path.join(".")).collect::<Vec<_>>().join(", ");
    let image = find(&IMAGES, Some("bytes")).or_else(|| find(&IMAGES, None));
    let image =
        image.ok_or_else(|| format!("it has no column `image` of {{bytes, path}}; it has: {}", columns()))?;
    let label =
        find(&LABELS, None).ok_or_else(|| format!("it has no column `label`; it has: {}", columns()))?;
    // With this no claimed number of rows takes more memory than the file's size allows.
    let total = about.size(3)?;
    if total > file.len() {
        return Err(format!("it claims {total} rows in {} bytes", file.len()));
    }
    let mut rows = Vec::new();
    for group in about.list(4) {
        let count = group.size(3)?;
        if count > total - rows.len() {
            return Err(format!("its groups have more than its {total} rows"));
        }
        let read = |(path, levels): &(Vec<&str>, u32), text: bool| {
            let chunk = chunk(group, path, *levels, text)?;
            if chunk.values != count {
                return Err(format!("column {} has {} values in {count} rows", path.join("."), chunk.values));
            }
            column::read(file, &chunk)
        };
        rows.extend(read(image, false)?.into_iter().zip(read(label, true)?));
    }
    Ok(Table { rows, names: names(&about, label.0[0]) })
}

/// Every column's path, and the levels at which its values may be absent.
fn leaves<'a>(schema: &[Value<'a>]) -> Parsed<Vec<(Vec<&'a str>, u32)>> {
    /// Elements under one that are still to come, with the path and levels up to it.
    type Open<'a> = (i64, Vec<&'a str>, u32, bool);
    let (mut open, mut leaves): (Vec<Open<'a>>, Vec<_>) = (vec![], vec![]);
    for (at, element) in schema.iter().enumerate() {
        while open.last().is_some_and(|(left, ..)| *left <= 0) {
            open.pop();
        }
        let (mut path, mut levels, mut lists) = (vec![], 0, false);
        if let Some((left, above, up, repeated)) = open.last_mut() {
            *left -= 1;
            (path, levels, lists) = (above.clone(), *up, *repeated);
        }
        if at > 0 {
            path.push(element.get(4).and_then(Value::text).ok_or("a column has no name")?);
            levels += u32::from(element.int(3) == Some(1));
            lists |= element.int(3) == Some(2);
        }
        match element.int(5) {
            Some(children) if children > 0 => open.push((children, path, levels, lists)),
            // What is in lists is neither image nor label.
            _ if lists => {}
            _ => leaves.push((path, levels)),
        }
        if open.len() > 64 {
            return Err("its columns are nested too deep".into());
        }
    }
    Ok(leaves)
}

fn chunk(group: &Value<'_>, path: &[&str], levels: u32, text: bool) -> Parsed<Chunk> {
    let is_it = |about: &&Value<'_>| about.list(3).iter().map(Value::text).eq(path.iter().map(|p| Some(*p)));
    let mut columns = group.list(1).iter().filter_map(|c| c.get(3));
    let about =
        columns.find(is_it).ok_or_else(|| format!("a group of rows lacks column {}", path.join(".")))?;
    let data = about.size(9)?;
    // Some writers say 0 for no dictionary.
    let dictionary = about.size(11).ok().filter(|start| *start > 0);
    Ok(Chunk {
        start: dictionary.map_or(data, |start| start.min(data)),
        values: about.size(5)?,
        kind: about.int(1).unwrap_or(-1),
        codec: about.int(4).unwrap_or(-1),
        levels,
        text,
    })
}

/// Class names from the metadata that Hugging Face's library writes.
fn names(about: &Value<'_>, label: &str) -> Vec<String> {
    let pairs = about.list(5).iter().filter_map(|pair| Some((pair.get(1)?.text()?, pair.get(2)?.text()?)));
    let facts: BTreeMap<&str, &str> = pairs.collect();
    let facts: serde_json::Value =
        facts.get("huggingface").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let names = facts.pointer(&format!("/info/features/{label}/names")).and_then(|names| names.as_array());
    let name = |name: &serde_json::Value| name.as_str().map(str::to_owned);
    names.and_then(|names| names.iter().map(name).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
