//! Weight files: safetensors, PyTorch's checkpoints, indices of several files. The first byte says which.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lotep::backbone::Checkpoint;

/// More values than any input of a fuzzer's stands for; a tensor that claims more must have been refused.
const MOST: usize = 1 << 24;

fuzz_target!(|data: &[u8]| {
    let [kind, bytes @ ..] = data else { return };
    let dir = tempfile::tempdir().expect("a directory for the file");
    let name = ["model.safetensors", "model.pth", "model.safetensors.index.json"][usize::from(*kind) % 3];
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).expect("room for the file");
    let Ok(weights) = Checkpoint::open(&path) else { return };
    for (name, shape) in weights.shapes() {
        if let Ok(values) = weights.read(&name) {
            assert_eq!(values.len(), shape.iter().product::<usize>());
            assert!(values.len() <= MOST);
        }
    }
});
