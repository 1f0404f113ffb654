//! Adapters: the description and the tensors beside it. The first two bytes say where one ends.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lotep::adapter::Adapter;
use lotep::safetensors::TensorFile;

fuzz_target!(|data: &[u8]| {
    let [low, high, bytes @ ..] = data else { return };
    let (config, tensors) = bytes.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(bytes.len()));
    let dir = tempfile::tempdir().expect("a directory for the files");
    std::fs::write(dir.path().join("adapter_config.json"), config).expect("room for the file");
    let model = dir.path().join("adapter_model.safetensors");
    std::fs::write(&model, tensors).expect("room for the file");
    let _ = Adapter::read_config(dir.path());
    let Ok(file) = TensorFile::open(&model) else { return };
    for name in file.shapes().into_keys() {
        let _ = file.read(&name);
    }
});
