use sha2::{Digest, Sha256};

use super::*;

fn decoded(isa: Isa, bytes: &[u8]) -> Option<Rgb8> {
    decode(isa, bytes, 16_384, 1 << 29)
}

/// Small files that PIL wrote, and the SHA-256 of the RGB bytes that it read back (libjpeg-turbo 3).
const FILES: [(&[u8], [usize; 2], &str); 5] = [
    (
        include_bytes!("../../../assets/jpeg/444.jpg"),
        [37, 19],
        "99e6762f49b0c220629f610aeaf3a54da21e87b7c6c0075932d584d138c92300",
    ),
    (
        include_bytes!("../../../assets/jpeg/422.jpg"),
        [35, 21],
        "262b56d23dfe3e127200edbdde89cf92e18e34ef285484e2fa2ec9671e26ac19",
    ),
    (
        include_bytes!("../../../assets/jpeg/420.jpg"),
        [45, 35],
        "ce6046842a49d0fdbfe917f541acf941f65db701906df1f352b5ad8116bcdefb",
    ),
    (
        include_bytes!("../../../assets/jpeg/420-restarts.jpg"),
        [83, 37],
        "4a9da011f302c25876568e07e97e6057446acd84e8c19e01f89374ce8317de37",
    ),
    (
        include_bytes!("../../../assets/jpeg/grey.jpg"),
        [29, 18],
        "a6e3db3fea1990664f9bcfa5d1996cd661457296b0d58ffb02f536da4122ddaa",
    ),
];

#[test]
fn pixels_are_libjpegs_to_the_bit() {
    for (bytes, size, want) in FILES {
        for &isa in Isa::available() {
            let image = decoded(isa, bytes).unwrap();
            assert_eq!([image.width, image.height], size);
            let byte = |i: usize| u8::from_str_radix(&want[2 * i..2 * i + 2], 16).unwrap();
            let same = Sha256::digest(&image.data).iter().enumerate().all(|(i, &b)| b == byte(i));
            assert!(same, "{size:?} {}", isa.name());
        }
    }
}

/// The general decoder has its own transform and upsampling; it can't be far away.
#[test]
fn pixels_are_near_another_decoders() {
    for (bytes, ..) in FILES {
        let ours = decoded(Isa::best(), bytes).unwrap();
        let theirs = image::load_from_memory(bytes).unwrap().into_rgb8().into_raw();
        let sum: u64 = ours.data.iter().zip(&theirs).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        assert!(sum as f64 / (theirs.len() as f64) < 1.5, "{sum}");
    }
}

#[test]
fn no_damage_is_taken_for_an_image_or_panics() {
    let mut state = 1_u32;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    for (bytes, size, _) in FILES {
        for length in 0..bytes.len() {
            assert!(decoded(Isa::best(), &bytes[..length]).is_none(), "{size:?} cut to {length}");
        }
        for _ in 0..2000 {
            let mut damaged = bytes.to_vec();
            for _ in 0..=random(3) {
                let at = random(bytes.len());
                damaged[at] = random(256) as u8;
            }
            // What it makes of it does not matter, but it must be an image.
            if let Some(image) = decode(Isa::best(), &damaged, 2048, 1 << 24) {
                assert_eq!(image.data.len(), image.width * image.height * 3);
            }
        }
    }
}

#[test]
fn limits_and_other_kinds_are_left_to_the_general_decoder() {
    let (bytes, ..) = FILES[2];
    assert!(decode(Isa::best(), bytes, 44, 1 << 29).is_none());
    assert!(decode(Isa::best(), bytes, 45, 45 * 35 * 3 - 1).is_none());
    assert!(decode(Isa::best(), bytes, 45, 45 * 35 * 3).is_some());
    // Progressive, by its marker.
    let mut progressive = bytes.to_vec();
    let start = bytes.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    progressive[start + 1] = 0xc2;
    assert!(decoded(Isa::best(), &progressive).is_none());
    assert!(decoded(Isa::best(), b"GIF89a").is_none() && decoded(Isa::best(), b"").is_none());
}
