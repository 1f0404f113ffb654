//! VTAB-1k's sets as their authors publish them, tiny.

use std::collections::BTreeSet;
use std::path::Path;

use super::tests::{images, known, refused, write};
use super::vtab;
use crate::data::mat::written::{bytes, file};
use crate::data::test_files::{write_bytes, write_image};
use crate::data::{Dataset, Splits, open};

/// The file of lists, with one task.
fn lists(root: &Path, task: &str, train: &[&str], val: &[&str]) {
    let lists = serde_json::json!({ task: { "train": train, "val": val } });
    write(root.join(vtab::NAMES), &lists.to_string());
}

fn read(root: &Path, name: &str) -> Splits {
    open(root, Some(known(name))).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn count(data: Option<&Dataset>) -> usize {
    data.map_or(0, |data| data.samples.len())
}

/// No image is in two parts, and the same ones are drawn each time.
fn apart(root: &Path, name: &str) -> [usize; 3] {
    let all = |splits: &Splits| -> Vec<String> {
        splits.parts().flat_map(|(_, data)| data.samples.iter().map(crate::data::Sample::name)).collect()
    };
    let splits = read(root, name);
    let names = all(&splits);
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{name}");
    assert_eq!(names, all(&read(root, name)));
    [splits.train, splits.val, splits.test].map(|part| count(part.as_ref()))
}

#[test]
fn folders_of_which_lists_name_images() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for class in ["Forest", "SeaLake"] {
        for i in 1..=4 {
            write_image(root.join(format!("2750/{class}/{class}_{i}.jpg")), 1);
        }
    }
    lists(root, "eurosat", &["Forest_2.jpg", "SeaLake_1.jpg"], &["Forest_4.jpg"]);
    let splits = read(root, "vtab-eurosat");
    assert_eq!(images(splits.train), ["Forest_2.jpg Forest", "SeaLake_1.jpg SeaLake"]);
    assert_eq!(images(splits.val), ["Forest_4.jpg Forest"]);
    assert!(splits.layout.contains("; 5 images to test on drawn here"), "{}", splits.layout);
    assert_eq!(apart(root, "vtab-eurosat"), [2, 1, 5]);
    lists(root, "eurosat", &["Forest_9.jpg"], &[]);
    assert!(refused(root, "vtab-eurosat").contains("`Forest_9.jpg` is no training image of eurosat"));

    for class in ["cloud", "tennis_court"] {
        for i in 1..=2 {
            write_image(root.join(format!("NWPU-RESISC45/{class}/{class}_00{i}.jpg")), 1);
        }
    }
    lists(root, "resisc45", &["tennis_court_002.jpg"], &["cloud_001.jpg"]);
    assert_eq!(images(read(root, "vtab-resisc45").train), ["tennis_court_002.jpg tennis_court"]);
    assert_eq!(apart(root, "vtab-resisc45"), [1, 1, 2]);
    std::fs::remove_dir_all(root.join("NWPU-RESISC45")).unwrap();
    assert!(refused(root, "vtab-resisc45").contains("holds none of NWPU-RESISC45"));
    assert!(refused(root, "vtab-kitti").contains("has no task `kitti("));
}

#[test]
fn scenes_of_sun397() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    // Two rooms have an image of one name.
    for image in
        ["a/abbey/sun_a.jpg", "c/church/outdoor/sun_b.jpg", "c/church/indoor/sun_b.jpg", "a/abbey/sun_c.jpg"]
    {
        write_image(root.join("SUN397").join(image), 1);
    }
    lists(root, "sun397", &["/c/church/outdoor/sun_b.jpg"], &["/a/abbey/sun_a.jpg"]);
    let splits = read(root, "vtab-sun397");
    assert_eq!(images(splits.train), ["sun_b.jpg church outdoor"]);
    assert_eq!(images(splits.val), ["sun_a.jpg abbey"]);
    assert!(splits.layout.contains("2 images to test on drawn here"), "{}", splits.layout);
    write(root.join("sun397_tfds_te.txt"), "/a/abbey/sun_c.jpg\n");
    let splits = read(root, "vtab-sun397");
    assert_eq!(images(splits.test), ["sun_c.jpg abbey"]);
    assert!(!splits.layout.contains("drawn"), "{}", splits.layout);
    write(root.join("sun397_tfds_te.txt"), "/a/abbey/sun_c.jpg\n/a/abbey/sun_x.jpg\n");
    assert!(refused(root, "vtab-sun397").contains("names 2 images, of which 1 are in"));
}

#[test]
fn eyes_of_kaggle() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for image in ["train/10_left", "train/10_right", "test/1_left", "test/1_right"] {
        write_bytes(root.join(format!("{image}.jpeg")), b"");
    }
    write(root.join("trainLabels.csv"), "image,level\n10_left,0\n10_right,4\n");
    write(root.join("retinopathy_solution.csv"), "image,level,Usage\n1_left,1,Private\n1_right,2,Public\n");
    lists(root, "diabetic_retinopathy(config=\"btgraham-300\")", &["10_right"], &["1_right"]);
    let splits = read(root, "vtab-retinopathy");
    assert!(!splits.layout.contains("trained on"), "{}", splits.layout);
    assert_eq!(images(splits.train), ["10_right.jpeg 4"]);
    assert_eq!(
        (images(splits.val), images(splits.test)),
        (vec!["1_right.jpeg 2".into()], vec!["1_left.jpeg 1".into()])
    );
    write(root.join("retinopathy_solution.csv"), "image,level,Usage\n1_left,1,Secret\n");
    assert!(refused(root, "vtab-retinopathy").contains("1_left is neither Public nor Private"));
    write(root.join("trainLabels.csv"), "image,level\n10_left,7\n");
    write(root.join("retinopathy_solution.csv"), "image,level,Usage\n");
    assert!(refused(root, "vtab-retinopathy").contains("is of class `7`"));
}

/// The thresholds are those of `task_adaptation`'s own tests: 1, 10 and 30 m, and no vehicle.
#[test]
fn distances_of_kitti() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let object = |kind: &str, z: &str| {
        format!("{kind} 0.00 0 -1.58 587.0 173.3 614.1 200.1 1.65 1.67 3.64 -0.65 1.71 {z} -1.59\n")
    };
    let scenes = [
        object("Car", "1.0"),
        object("Van", "10.0"),
        object("Truck", "30.0"),
        object("Pedestrian", "3.0"),
        object("Car", "30.0") + &object("Van", "8.01"),
        object("DontCare", "-1000") + &object("Car", "8.0"),
    ];
    for (i, scene) in scenes.iter().enumerate() {
        write_image(root.join(format!("training/image_2/{i:06}.png")), 1);
        write(root.join(format!("training/label_2/{i:06}.txt")), scene);
    }
    let names = ["000000.png", "000001.png", "000002.png", "000003.png", "000004.png"];
    lists(root, "kitti(task=\"closest_vehicle_distance\")", &names, &[]);
    let splits = read(root, "vtab-kitti");
    let found = images(splits.train);
    let classes = ["within 8 m", "8 to 20 m", "beyond 20 m", "no vehicle", "8 to 20 m"];
    for ((name, class), image) in names.iter().zip(classes).zip(&found) {
        assert_eq!(image, &format!("{name} {class}"));
    }
    assert_eq!(images(splits.test), ["000005.png within 8 m"]);
    write(root.join("training/label_2/000003.txt"), "Car 0.00 0\n");
    assert!(refused(root, "vtab-kitti").contains("000003.txt has a vehicle without a place: Car 0.00 0"));
}

#[test]
fn scenes_of_clevr() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let scene = |part: &str, i: usize, depths: &[f64]| {
        let name = format!("CLEVR_{part}_{i:06}.png");
        write_image(root.join("CLEVR_v1.0/images").join(part).join(&name), 1);
        let objects: Vec<_> = depths
            .iter()
            .map(|depth| serde_json::json!({ "shape": "cube", "pixel_coords": [10, 20, depth], "rotation": 1.5 }))
            .collect();
        serde_json::json!({ "image_index": i, "image_filename": name, "split": part, "objects": objects,
                            "relationships": { "left": [[1], []] } })
    };
    let write_scenes = |part: &str, scenes: Vec<serde_json::Value>| {
        let text = serde_json::json!({ "info": { "split": part }, "scenes": scenes }).to_string();
        write(root.join(format!("CLEVR_v1.0/scenes/CLEVR_{part}_scenes.json")), &text);
    };
    write_scenes(
        "train",
        vec![
            scene("train", 0, &[7.9, 12.0, 9.0]),
            scene("train", 1, &[10.5; 10]),
            scene("train", 2, &[8.5, 9.7, 9.9, 11.0]),
        ],
    );
    write_scenes("val", vec![scene("val", 0, &[9.6, 9.7, 10.1])]);
    let names = ["CLEVR_train_000000.png", "CLEVR_train_000001.png"];
    for (name, task, classes, held, tested) in [
        ("vtab-clevr-count", "count_all", ["3", "10"], "4", "3"),
        ("vtab-clevr-dist", "closest_object_distance", ["up to 8", "beyond 10"], "8 to 8.5", "9.5 to 10"),
    ] {
        lists(root, &format!("clevr(task=\"{task}\")"), &names, &["CLEVR_train_000002.png"]);
        let splits = read(root, name);
        assert_eq!(images(splits.train), [0, 1].map(|i| format!("{} {}", names[i], classes[i])), "{name}");
        assert_eq!(images(splits.val), [format!("CLEVR_train_000002.png {held}")]);
        assert_eq!(images(splits.test), [format!("CLEVR_val_000000.png {tested}")]);
    }
    write_scenes("val", vec![scene("val", 0, &[9.6])]);
    lists(root, "clevr(task=\"count_all\")", &names, &[]);
    assert!(
        refused(root, "vtab-clevr-count").contains("CLEVR_val_000000.png has 1 objects, which is no class")
    );
    write(root.join("CLEVR_v1.0/scenes/CLEVR_val_scenes.json"), "{\"scenes\": [{}]}");
    assert!(refused(root, "vtab-clevr-count").contains("is no file of CLEVR's scenes"));
}

/// A file in `SmallNORB`'s form.
fn matrix(kind: u32, shape: &[u32], values: &[u8]) -> Vec<u8> {
    let mut words = vec![kind, shape.len() as u32];
    words.extend(shape);
    words.resize(words.len().max(5), 1);
    words.iter().flat_map(|word| word.to_le_bytes()).chain(values.iter().copied()).collect()
}

#[test]
fn toys_of_smallnorb() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("smallnorb");
    let part = |name: &str, count: u32| {
        // The left camera's pixels say which image it is; the right one's are white.
        let pixels: Vec<u8> = (0..count).flat_map(|i| [[(i % 251) as u8; 6], [255; 6]].concat()).collect();
        write_bytes(root.join(format!("{name}-dat.mat")), &matrix(0x1E3D_4C55, &[count, 2, 2, 3], &pixels));
        let info: Vec<u8> =
            (0..count).flat_map(|i| [7, i % 9, 2 * (i % 18), 5].map(u32::to_le_bytes).concat()).collect();
        write_bytes(root.join(format!("{name}-info.mat")), &matrix(0x1E3D_4C54, &[count, 4], &info));
    };
    let (train, test) =
        ("smallnorb-5x46789x9x18x6x2x96x96-training", "smallnorb-5x01235x9x18x6x2x96x96-testing");
    part(train, 1080);
    part(test, 36);
    for (name, modulus, step, first) in [("vtab-smallnorb-azi", 18, 20, 0), ("vtab-smallnorb-ele", 9, 5, 30)]
    {
        assert_eq!(apart(dir.path(), name), [800, 200, 36]);
        let splits = read(dir.path(), name);
        assert!(splits.layout.starts_with("800 and 200 images drawn here"), "{}", splits.layout);
        for (_, data) in splits.parts() {
            for sample in &data.samples {
                let name = sample.name();
                let index: usize = name.rsplit('#').next().unwrap().parse().unwrap();
                assert_eq!(data.classes[sample.label], (first + step * (index % modulus)).to_string());
                let image = sample.load().unwrap();
                assert_eq!((image.width, image.height), (3, 2));
                assert_eq!(image.data, [(index % 251) as u8; 18]);
            }
        }
    }
    let info = root.join(format!("{test}-info.mat"));
    let whole = std::fs::read(&info).unwrap();
    for (bytes, words) in [
        (whole[..whole.len() - 1].to_vec(), "cut short or damaged"),
        (whole[..10].to_vec(), "it is cut short"),
        (vec![1, 2, 3, 4], "begins with another word"),
        (matrix(0x1E3D_4C54, &[36, 3], &[0; 432]), "[36, 4] is expected"),
        (matrix(0x1E3D_4C54, &[36, 4], &[99; 576]), "image 0 is of none of 18 classes"),
        (matrix(0x1E3D_4C54, &[u32::MAX; 4], &[]), "cut short or damaged"),
    ] {
        write_bytes(&info, &bytes);
        let message = refused(dir.path(), "vtab-smallnorb-azi");
        assert!(message.contains(words) && message.contains("testing-info.mat"), "{words}: {message}");
    }
    std::fs::rename(&info, info.with_extension("mat.gz")).unwrap();
    assert!(refused(dir.path(), "vtab-smallnorb-azi").contains("info.mat.gz has to be decompressed"));
}

#[test]
fn sets_whose_images_no_list_tells_are_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let digits = |count: u32| {
        let labels: Vec<u8> = (0..count).map(|i| (i % 10 + 1) as u8).collect();
        file(&[
            bytes("X", 9, &[32, 32, 3, count], &vec![0; 3072 * count as usize]),
            bytes("y", 9, &[count, 1], &labels),
        ])
    };
    write_bytes(root.join("SVHN/train_32x32.mat"), &digits(1010));
    write_bytes(root.join("SVHN/test_32x32.mat"), &digits(20));
    assert_eq!(apart(root, "vtab-svhn"), [800, 200, 20]);
    write_bytes(root.join("SVHN/train_32x32.mat"), &digits(1000));
    assert!(refused(root, "vtab-svhn").contains("has 1000 training images: more than 1000 are expected"));

    // Thirty of each class are learnt from, of which a thousand are taken; the others are tested on.
    for class in 0..35 {
        for i in 1..=31 {
            let image = format!("101_ObjectCategories/class_{class:02}/image_{i:04}.jpg");
            write_bytes(root.join("caltech-101").join(&image), b"");
        }
    }
    assert_eq!(apart(root, "vtab-caltech101"), [800, 200, 35]);
    let splits = read(root, "vtab-caltech101");
    assert!(
        splits.layout.contains("35 classes instead of 102, 35 test images instead of 6084"),
        "{}",
        splits.layout
    );
    let tested = splits.test.unwrap();
    assert_eq!(tested.samples.iter().map(|s| s.label).collect::<Vec<_>>(), (0..35).collect::<Vec<_>>());
}
