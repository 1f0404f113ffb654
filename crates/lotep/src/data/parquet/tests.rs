//! Files written by pyarrow, as Hugging Face's library calls it: six 8 x 8 images in two groups, three classes.

use crate::data::test_files::write_bytes;
use crate::data::{Dataset, open};

const SNAPPY: &[u8] = include_bytes!("snappy.parquet");
const PLAIN: &[u8] = include_bytes!("plain.parquet");
const NAMES: &[u8] = include_bytes!("names.parquet");
const ZSTD: &[u8] = include_bytes!("zstd.parquet");

fn greys(data: &Dataset) -> Vec<(u8, &str)> {
    let one = |s: &crate::data::Sample| (s.load().unwrap().data[0], data.classes[s.label].as_str());
    data.samples.iter().map(one).collect()
}

#[test]
fn images_labels_and_names_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    for bytes in [SNAPPY, PLAIN] {
        write_bytes(&path, bytes);
        let train = open(&path, None).unwrap().train.unwrap();
        assert_eq!(train.classes, ["ant", "bee", "cat"]);
        let want = [(10, "ant"), (20, "bee"), (30, "cat"), (40, "bee"), (50, "ant"), (20, "bee")];
        assert_eq!(greys(&train), want);
        assert!(train.samples[4].name().ends_with("a.parquet:row 4"));
    }
    write_bytes(&path, NAMES);
    let train = open(&path, None).unwrap().train.unwrap();
    assert_eq!(train.classes, ["x", "y"]);
    assert_eq!(greys(&train)[..2], [(10, "x"), (20, "y")]);
}

#[test]
fn files_are_parts_by_their_names() {
    let dir = tempfile::tempdir().unwrap();
    write_bytes(dir.path().join("data/train-00000-of-00002.parquet"), SNAPPY);
    write_bytes(dir.path().join("data/train-00001-of-00002.parquet"), PLAIN);
    write_bytes(dir.path().join("data/test-00000-of-00001.parquet"), PLAIN);
    let splits = open(dir.path(), None).unwrap();
    assert_eq!((splits.train.unwrap().samples.len(), splits.test.unwrap().samples.len()), (12, 6));
    assert_eq!(splits.layout, "3 Parquet tables");
    write_bytes(dir.path().join("data/test-00000-of-00001.parquet"), NAMES);
    let error = open(dir.path(), None).unwrap_err().to_string();
    assert!(error.contains("other class names"), "{error}");
}

#[test]
fn what_is_not_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let refused = |bytes: &[u8]| {
        write_bytes(&path, bytes);
        open(&path, None).unwrap_err().to_string()
    };
    assert!(refused(ZSTD).ends_with("compressed by Zstandard: Snappy or none is read"), "{}", refused(ZSTD));
    assert!(refused(b"").contains("a.parquet"));
    assert!(refused(b"PAR1 and so on PAR1").contains("its description claims"));
    let renamed = |from: &str, to: &str| {
        let text: Vec<u8> = SNAPPY.to_vec();
        let mut at = 0;
        let mut out = Vec::new();
        while at < text.len() {
            if text[at..].starts_with(from.as_bytes()) {
                out.extend_from_slice(to.as_bytes());
                at += from.len();
            } else {
                out.push(text[at]);
                at += 1;
            }
        }
        out
    };
    let error = refused(&renamed("label", "lebal"));
    assert!(error.contains("no column `label`; it has: image.bytes, image.path, lebal"), "{error}");
    assert!(refused(&renamed("bytes", "bites")).contains("no column `image`"));
}

/// Cut short anywhere, or with any byte changed, a file is read or refused, and nothing else happens.
#[test]
fn damage_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    for whole in [SNAPPY, NAMES] {
        for at in 0..whole.len() {
            write_bytes(&path, &whole[..at]);
            assert!(open(&path, None).is_err(), "cut at {at}");
            let mut changed = whole.to_vec();
            changed[at] ^= [0xff, 0x01, 0x80][at % 3];
            write_bytes(&path, &changed);
            if let Ok(splits) = open(&path, None) {
                for sample in splits.parts().flat_map(|(_, data)| &data.samples) {
                    drop(sample.load());
                }
            }
        }
    }
}
