//! timm's `config.json`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lotep::backbone::ModelConfig;

fuzz_target!(|data: &[u8]| {
    let dir = tempfile::tempdir().expect("a directory for the file");
    let path = dir.path().join("config.json");
    std::fs::write(&path, data).expect("room for the file");
    let Ok(Some(config)) = ModelConfig::from_hub(&path) else { return };
    // What is accepted has a size, and another image size is taken or refused.
    assert!(config.architecture.size()[0] > 0);
    let _ = config.architecture.clone().resized([96, 160]);
    std::fs::write(&path, config.to_hub().to_string()).expect("room for the file");
    assert_eq!(ModelConfig::from_hub(&path).expect("what lotep writes it reads"), Some(config));
});
