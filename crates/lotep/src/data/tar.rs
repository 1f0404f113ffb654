//! Tar archives, as webdataset writes its shards (`KEY.jpg` beside `KEY.cls` or `KEY.json`) or of class folders.
//!
//! Only headers are read when an archive is opened; an image is read from its place when it is its turn. Nothing is
//! unpacked, so that no name in an archive is ever a path on this machine.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::dataset::{Source, Split, Splits, name_of};
use super::files::is_image;
use super::gather::{Named, by_name, numbered, part};
use super::packed::Packed;
use super::shards::Parts;
use crate::mapped::Mapped;
use crate::{Error, Result, bail, input_error};

const BLOCK: usize = 512;
/// More than any label or long name takes.
const MAX_TEXT: usize = 1 << 20;

/// One member: its name and place.
struct Member {
    name: String,
    bytes: std::ops::Range<usize>,
}

/// Read archives. Class numbers get names from `classes.txt`, a line each, where that is beside the archives.
pub(super) fn read(path: &Path, parts: &Parts) -> Result<Splits> {
    let mut images = Named::new();
    for (split, file) in &parts.0 {
        let mapped = Arc::new(Mapped::open(file)?);
        let members = members(mapped.bytes())
            .map_err(|why| input_error!("{} is no tar archive that can be read: {why}", file.display()))?;
        gather(file, &mapped, members, *split, &mut images)?;
    }
    let layout = parts.count("tar archive");
    let home = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    let names = home.join("classes.txt");
    if !names.is_file() {
        return by_name(name_of(path), layout, images);
    }
    let text = std::fs::read_to_string(&names).map_err(Error::io("read", &names))?;
    let classes: Vec<String> = text.lines().map(|l| l.trim().to_owned()).filter(|l| !l.is_empty()).collect();
    for (.., class) in &mut images {
        if let Ok(number) = class.parse::<usize>() {
            let Some(name) = classes.get(number) else {
                bail!(
                    "{} names {} classes, and an image is of class {number}",
                    names.display(),
                    classes.len()
                );
            };
            name.clone_into(class);
        }
    }
    numbered(name_of(path), layout, classes, images)
}

/// The images of one archive with their labels, in the archive's order.
fn gather(
    file: &Path,
    mapped: &Arc<Mapped>,
    members: Vec<Member>,
    split: Split,
    images: &mut Named,
) -> Result<()> {
    let mut labels: HashMap<String, String> = HashMap::new();
    // JSON beside no image, such as annotations of all of them, is not the label of one.
    let of_images = members.iter().filter(|m| is_image(Path::new(&m.name))).map(|m| key(&m.name).0);
    let of_images: HashSet<&str> = of_images.collect();
    for member in &members {
        let (key, ending) = key(&member.name);
        if ending == "json" && !of_images.contains(key) {
            continue;
        }
        let bytes = &mapped.bytes()[member.bytes.clone()];
        let label = match ending.as_str() {
            "cls" | "json" if bytes.len() > MAX_TEXT => {
                bail!("{}: {} is too long for a label", file.display(), member.name)
            }
            "cls" => Some(String::from_utf8_lossy(bytes).trim().to_owned()),
            "json" => {
                json_label(bytes).map_err(|e| input_error!("{}: {}: {e}", file.display(), member.name))?
            }
            _ => None,
        };
        if let Some(label) = label {
            labels.insert(key.to_owned(), label);
        }
    }
    for member in members.into_iter().filter(|m| is_image(Path::new(&m.name))) {
        let (split, label) = if labels.is_empty() {
            let Some((part, class)) = folder(&member.name) else {
                bail!(
                    "{}: {} has neither a .cls or .json beside it nor a class folder",
                    file.display(),
                    member.name
                );
            };
            (part.unwrap_or(split), class)
        } else {
            let Some(label) = labels.get(key(&member.name).0).filter(|label| !label.is_empty()) else {
                bail!("{}: {} has no label: no .cls or .json of that name", file.display(), member.name);
            };
            (split, label.clone())
        };
        images.push((split, Source::Packed(Packed::new(mapped, &member.name, member.bytes, None)), label));
    }
    Ok(())
}

/// Key and ending as webdataset has them: a name up to the first dot of its last part, and what follows.
fn key(name: &str) -> (&str, String) {
    let start = name.rfind('/').map_or(0, |at| at + 1);
    match name[start..].find('.') {
        Some(dot) => (&name[..start + dot], name[start + dot + 1..].to_ascii_lowercase()),
        None => (name, String::new()),
    }
}

/// The class folder that an image is in, and the part that the folder above says.
fn folder(name: &str) -> Option<(Option<Split>, String)> {
    let mut folders: Vec<&str> = name.split('/').filter(|f| !f.is_empty() && *f != ".").collect();
    folders.pop();
    let class = folders.pop()?;
    Some((folders.iter().rev().find_map(|f| part(f)), class.to_owned()))
}

fn json_label(bytes: &[u8]) -> std::result::Result<Option<String>, String> {
    let facts: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    match facts.get("label").or(facts.get("cls")).or(facts.get("class")) {
        None => Ok(None),
        Some(serde_json::Value::String(name)) => Ok(Some(name.clone())),
        Some(serde_json::Value::Number(n)) => Ok(Some(n.to_string())),
        Some(other) => Err(format!("label {other} is neither a name nor a number")),
    }
}

/// The files of an archive, in order: ustar, with GNU's and POSIX's long names.
fn members(archive: &[u8]) -> std::result::Result<Vec<Member>, String> {
    if archive.starts_with(&[0x1f, 0x8b])
        || archive.starts_with(b"BZh")
        || archive.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
    {
        return Err("it is compressed; decompress it first (images gain nothing from it)".into());
    }
    let mut members = Vec::new();
    let (mut at, mut long, mut size) = (0, None, None);
    loop {
        let Some(header) = archive.get(at..at + BLOCK) else {
            return if at == 0 {
                Err("it is shorter than a header".into())
            } else {
                Err("it is cut short".into())
            };
        };
        if header.iter().all(|b| *b == 0) {
            return Ok(members);
        }
        let sum: u64 = header
            .iter()
            .enumerate()
            .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u64::from(*b) })
            .sum();
        if number(&header[148..156]) != Some(sum) {
            return Err(format!("the header at byte {at} is damaged"));
        }
        let claimed = size.take().or_else(|| number(&header[124..136])).ok_or("a size is no number")?;
        let start = at + BLOCK;
        let room = (archive.len() - start) as u64;
        if claimed > room {
            return Err(format!("a member at byte {at} claims {claimed} bytes and {room} are left"));
        }
        let bytes = start..start + claimed as usize;
        let text = |limit: usize| match archive[bytes.clone()].get(..claimed as usize) {
            Some(text) if text.len() <= limit => Ok(String::from_utf8_lossy(text).into_owned()),
            _ => Err(format!("a name of {claimed} bytes")),
        };
        match header[156] {
            b'L' => long = Some(text(MAX_TEXT)?.trim_end_matches('\0').to_owned()),
            b'x' => {
                let text = text(MAX_TEXT)?;
                long = record(&text, "path").or(long);
                size = record(&text, "size").and_then(|s| s.parse().ok());
            }
            0 | b'0' | b'7' => {
                let name = long.take().unwrap_or_else(|| name(header));
                let parts: Vec<&str> = name.split(['/', '\\']).collect();
                if name.starts_with('/') || parts.contains(&"..") {
                    return Err(format!("`{name}` leads out of the archive"));
                }
                // Hidden files, as those that macOS puts beside each file.
                if !parts.last().is_some_and(|last| last.starts_with('.')) {
                    members.push(Member { name, bytes });
                }
            }
            _ => long = None,
        }
        at = start + (claimed as usize).next_multiple_of(BLOCK);
    }
}

fn name(header: &[u8]) -> String {
    let field = |bytes: &[u8]| {
        String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
    };
    let (name, prefix) = (field(&header[..100]), field(&header[345..500]));
    if &header[257..263] == b"ustar\0" && !prefix.is_empty() { format!("{prefix}/{name}") } else { name }
}

/// An octal number, or one in base 256 where octal digits don't suffice.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        return field[1..].iter().try_fold(0_u64, |n, b| n.checked_mul(256)?.checked_add(u64::from(*b)));
    }
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches(|c| c == '\0' || c == ' ');
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

/// A value of a POSIX header, whose records are `LENGTH KEY=VALUE\n`.
fn record(text: &str, key: &str) -> Option<String> {
    let value = |line: &str| line.split_once(' ')?.1.strip_prefix(key)?.strip_prefix('=').map(str::to_owned);
    text.lines().find_map(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::open;
    use crate::data::test_files::{png, write_bytes};

    /// A member as tar writes it.
    fn member(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut header = [0_u8; BLOCK];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[156] = kind;
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u64 = header.iter().map(|b| u64::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut bytes = header.to_vec();
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            members.iter().flat_map(|(name, content)| member(name, b'0', content)).collect();
        bytes.resize(bytes.len() + 2 * BLOCK, 0);
        bytes
    }

    #[test]
    fn shards_of_webdataset_are_read_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let images: Vec<Vec<u8>> = (0..4).map(|i| png(i * 10)).collect();
        let train = [
            archive(&[("s/0001.png", &images[0]), ("s/0001.cls", b"1\n"), ("s/0001.txt", b"a caption")]),
            archive(&[("s/0002.cls", b"0"), ("s/0002.png", &images[1]), ("s/._0002.png", b"rubbish")]),
        ];
        for (i, bytes) in train.iter().enumerate() {
            write_bytes(dir.path().join(format!("train-00000{i}.tar")), bytes);
        }
        let long = format!("{}/0003", "n".repeat(120));
        let pax = format!("{} path={long}.json\n", long.len() + 15);
        let mut test = member("@LongLink", b'L', format!("{long}.png\0").as_bytes());
        test.extend(member("cut", b'0', &images[2]));
        test.extend(member("pax", b'x', pax.as_bytes()));
        test.extend(archive(&[("cut", br#"{"label": 1, "width": 8}"#)]));
        write_bytes(dir.path().join("test-000000.tar"), &test);

        let splits = open(dir.path(), None).unwrap();
        let (train, test) = (splits.train.unwrap(), splits.test.unwrap());
        assert_eq!(train.classes, ["0", "1"]);
        assert_eq!(train.samples.iter().map(|s| s.label).collect::<Vec<_>>(), [1, 0]);
        assert_eq!((test.samples.len(), test.samples[0].label), (1, 1));
        assert!(train.samples[1].name().ends_with("train-000001.tar:s/0002.png"));
        assert_eq!(train.samples[1].load().unwrap().data[0], 10);
        assert_eq!(test.samples[0].load().unwrap().data[0], 20);

        write_bytes(dir.path().join("classes.txt"), b"ant\nbee\n");
        assert_eq!(open(dir.path(), None).unwrap().train.unwrap().classes, ["ant", "bee"]);
        write_bytes(dir.path().join("classes.txt"), b"ant\n");
        let error = open(dir.path(), None).unwrap_err().to_string();
        assert!(error.contains("names 1 classes, and an image is of class 1"), "{error}");
    }

    #[test]
    fn class_folders_in_an_archive_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let (path, image) = (dir.path().join("pets.tar"), png(3));
        write_bytes(
            &path,
            &archive(&[
                ("./train/cat/1.png", &image),
                ("./train/dog/1.png", &image),
                ("./test/dog/2.png", &image),
                // Of all images, not of one.
                ("annotations.json", b"[{\"image\": 1}]"),
            ]),
        );
        let splits = open(&path, None).unwrap();
        assert_eq!(splits.train.unwrap().classes, ["cat", "dog"]);
        assert_eq!(splits.test.unwrap().samples[0].label, 1);
    }

    #[test]
    fn hostile_archives_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        let image = png(1);
        let whole = archive(&[("a.png", &image), ("a.cls", b"1")]);
        let mut size = whole.clone();
        size[124..136].copy_from_slice(b"77777777777\0");
        let mut resummed = member("a.png", b'0', b"");
        resummed[124..136].copy_from_slice(b"77777777777\0");
        resummed[148..156].fill(b' ');
        let sum: u64 = resummed[..BLOCK].iter().map(|b| u64::from(*b)).sum();
        resummed[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let cases: &[(&[u8], &str)] = &[
            (b"", "a.tar"),
            (b"short", "shorter than a header"),
            (&whole[..BLOCK * 2 - 100], "is cut short"),
            (&whole[..BLOCK + 10], "claims"),
            (&size, "header at byte 0 is damaged"),
            (&resummed, "claims 8589934591 bytes"),
            (&[0x1f, 0x8b, 8, 0], "decompress it first"),
            (&archive(&[("../../etc/a.png", &image)]), "leads out of the archive"),
            (&archive(&[("/etc/a.png", &image)]), "leads out of the archive"),
            (&archive(&[("a.png", &image), ("b.cls", b"1")]), "a.png has no label"),
            (&archive(&[("a.png", &image)]), "nor a class folder"),
            (&archive(&[("a.png", &image), ("a.json", b"{")]), "a.json: EOF"),
            (&archive(&[("a.png", &image), ("a.json", br#"{"label": [1]}"#)]), "neither a name nor a number"),
            (&archive(&[("a.cls", b"1")]), "holds no images"),
        ];
        for (bytes, message) in cases {
            write_bytes(&path, bytes);
            let error = open(&path, None).unwrap_err().to_string();
            assert!(error.contains(message) && !error.contains('\n'), "{message}: {error}");
        }
        write_bytes(dir.path().join("train-0.tar"), &whole);
        let error = open(dir.path(), None).unwrap_err().to_string();
        assert!(error.contains("a.tar does not say which part it is"), "{error}");
    }
}
