//! Data sets in large files: tables, archives, MATLAB's files, lists. The first byte says which.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lotep::data::{Known, open};

fuzz_target!(|data: &[u8]| {
    let [kind, bytes @ ..] = data else { return };
    let dir = tempfile::tempdir().expect("a directory for the file");
    let name = ["a.parquet", "a.tar", "a.csv", "a.json", "train_32x32.mat", "a.tsv", "a.jsonl"][usize::from(*kind) % 7];
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).expect("room for the file");
    let opened = if name == "train_32x32.mat" {
        std::fs::write(dir.path().join("test_32x32.mat"), bytes).expect("room for the file");
        let known: Known = "svhn".parse().expect("a known data set");
        open(dir.path(), Some(known))
    } else {
        open(&path, None)
    };
    let Ok(splits) = opened else { return };
    for sample in splits.parts().flat_map(|(_, data)| &data.samples).take(8) {
        if let Ok(image) = sample.load() {
            assert_eq!(image.data.len(), image.width * image.height * 3);
        }
    }
});
