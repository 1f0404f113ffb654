//! Images; the JPEG decoder is lotep's own.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lotep::data::decode_bytes;

fuzz_target!(|data: &[u8]| {
    if let Ok(image) = decode_bytes(data, "fuzz") {
        assert_eq!(image.data.len(), image.width * image.height * 3);
    }
});
