//! A tiny data set in each of the forms that authors publish, written as they write it.

use std::fmt::Write;
use std::path::Path;

use super::*;
use crate::data::mat::written::{bytes, cell, deflated, file, numbers, structure, text};
use crate::data::test_files::{shared, write_bytes, write_image};
use crate::data::{Dataset, open};

pub(super) fn known(name: &str) -> Known {
    name.parse().unwrap()
}

pub(super) fn write(path: impl AsRef<Path>, text: &str) {
    write_bytes(path, text.as_bytes());
}

/// `FILE class` of each image.
pub(super) fn images(data: Option<Dataset>) -> Vec<String> {
    let data = data.unwrap();
    let one = |s: &crate::data::Sample| {
        format!("{} {}", s.name().rsplit('/').next().unwrap(), data.classes[s.label])
    };
    data.samples.iter().map(one).collect()
}

pub(super) fn refused(root: &Path, name: &str) -> String {
    let message = open(root, Some(known(name))).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn the_table_is_sound() {
    let mut names: Vec<_> = Known::all().map(|known| known.about().name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), TABLE.len(), "names are distinct");
    for row in Known::all() {
        assert_eq!(row.to_string().parse::<Known>().unwrap(), row);
        let text = serde_json::to_string(&row).unwrap();
        assert_eq!(serde_json::from_str::<Known>(&text).unwrap(), row);
        let about = row.about();
        assert!(about.classes > 1 && about.images[2] > 0 && !about.get.is_empty() && !about.holds.is_empty());
        // Nothing there is a message, for each of them.
        let dir = tempfile::tempdir().unwrap();
        let message = refused(dir.path(), about.name);
        assert!(message.contains(about.name), "{message}");
    }
    assert!(
        "mnist".parse::<Known>().unwrap_err().to_string().contains("'mnist' is not known: `lotep datasets`")
    );
    assert_eq!(Known::all().filter(|known| known.about().name.starts_with("vtab-")).count(), 19);
    // ImageNet is the eleventh of CLIP's.
    assert_eq!(Known::all().filter(|known| known.about().name.starts_with("clip-")).count(), 10);
}

#[test]
fn text_lists() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for (part, image) in
        [("train1", "dotted/dotted_1.png"), ("val1", "banded/banded_2.png"), ("test1", "dotted/dotted_3.png")]
    {
        write_image(root.join("dtd/images").join(image), 1);
        write(root.join(format!("dtd/labels/{part}.txt")), &format!("{image}\n"));
    }
    let splits = open(root, Some(known("dtd"))).unwrap();
    assert!(
        splits.layout.contains("NOT as published: 2 classes instead of 47, 2 train images instead of 3760")
    );
    assert_eq!(images(splits.train), ["banded_2.png banded", "dotted_1.png dotted"]);
    assert_eq!(images(splits.test), ["dotted_3.png dotted"]);
    write(root.join("dtd/labels/val1.txt"), "banded/absent.png\n");
    assert!(refused(root, "dtd").contains("val1.txt names `banded/absent.png`, which is not in"));
    write(root.join("dtd/labels/val1.txt"), "../../x.png\n");
    assert!(refused(root, "dtd").contains("not below the images' directory"));
    std::fs::remove_file(root.join("dtd/labels/val1.txt")).unwrap();
    assert!(refused(root, "dtd").starts_with("cannot read") && refused(root, "dtd").contains("val1.txt"));

    for image in ["apple_pie/1.jpg", "baklava/2.jpg"] {
        write_image(root.join("food-101/images").join(image), 1);
    }
    write(root.join("food-101/meta/train.txt"), "apple_pie/1\nbaklava/2\n");
    write(root.join("food-101/meta/test.txt"), "baklava/2\n");
    let splits = open(root, Some(known("food101"))).unwrap();
    assert_eq!(images(splits.train), ["1.jpg apple pie", "2.jpg baklava"]);

    for image in ["Abyssinian_1", "american_bulldog_7"] {
        write_image(root.join(format!("oxford-iiit-pet/images/{image}.jpg")), 1);
    }
    write(
        root.join("oxford-iiit-pet/annotations/trainval.txt"),
        "Abyssinian_1 1 1 1\namerican_bulldog_7 2 2 1\n",
    );
    write(root.join("oxford-iiit-pet/annotations/test.txt"), "#Image CLASS-ID\namerican_bulldog_7 2 2 1\n");
    let splits = open(root, Some(known("pets"))).unwrap();
    assert_eq!(
        images(splits.train),
        ["Abyssinian_1.jpg abyssinian", "american_bulldog_7.jpg american bulldog"]
    );

    let aircraft = root.join("fgvc-aircraft-2013b/data");
    for (part, line) in
        [("train", "0000001 707-320\n0000002 DH 82"), ("val", "0000002 DH 82"), ("test", "0000001 707-320")]
    {
        write(aircraft.join(format!("images_variant_{part}.txt")), line);
    }
    for image in ["0000001", "0000002"] {
        write_image(aircraft.join(format!("images/{image}.jpg")), 1);
    }
    let splits = open(root, Some(known("clip-aircraft"))).unwrap();
    assert_eq!(images(splits.train), ["0000001.jpg 707-320", "0000002.jpg DH 82"]);
    assert_eq!(images(splits.val), ["0000002.jpg DH 82"]);
}

#[test]
fn birds_in_both_forms() {
    let dir = tempfile::tempdir().unwrap();
    for (folder, ids, classes, names) in [
        (
            "CUB_200_2011",
            ["1", "2", "3"],
            ["1", "2", "2"],
            "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n",
        ),
        (
            "nabirds",
            ["a-1", "b-2", "c-3"],
            ["817", "1010", "1010"],
            "0 Birds\n817 Oak Titmouse\n1010 Dark-eyed Junco (Slate)\n",
        ),
    ] {
        let root = dir.path().join(folder);
        let (mut lists, mut labels, mut parts) = (String::new(), String::new(), String::new());
        for (i, id) in ids.iter().enumerate() {
            let image = format!("{}/{i}.jpg", classes[i]);
            write_image(root.join("images").join(&image), 1);
            writeln!(lists, "{id} {image}").unwrap();
            writeln!(labels, "{id} {}", classes[i]).unwrap();
            writeln!(parts, "{id} {}", u8::from(i < 2)).unwrap();
        }
        for (file, text) in [
            ("images.txt", &*lists),
            ("image_class_labels.txt", &*labels),
            ("train_test_split.txt", &*parts),
            ("classes.txt", names),
        ] {
            write(root.join(file), text);
        }
    }
    let cub = open(dir.path(), Some(known("cub200"))).unwrap();
    assert_eq!(images(cub.train), ["0.jpg Black footed Albatross", "1.jpg Laysan Albatross"]);
    let birds = open(dir.path(), Some(known("nabirds"))).unwrap();
    assert_eq!(images(birds.train), ["0.jpg Oak Titmouse", "1.jpg Dark-eyed Junco (Slate)"]);
    assert_eq!(images(birds.test), ["2.jpg Dark-eyed Junco (Slate)"]);
    write(dir.path().join("nabirds/train_test_split.txt"), "a-1 1\n");
    assert!(refused(dir.path(), "nabirds").contains("image b-2 has no class or no part"));
}

#[test]
fn traffic_signs_in_ppm() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("gtsrb/GTSRB");
    let ppm = |grey: u8| [b"P6\n2 2\n255\n".to_vec(), vec![grey; 12]].concat();
    for (file, grey) in [
        ("Training/00000/1.ppm", 7),
        ("Training/00011/2.ppm", 8),
        ("Final_Training/Images/00011/3.ppm", 8),
        ("Final_Test/Images/00000.ppm", 9),
    ] {
        write_bytes(root.join(file), &ppm(grey));
    }
    let heading = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2";
    write(root.join("Training/00000/GT-00000.csv"), heading);
    write(
        root.join("Final_Test/Images/GT-final_test.test.csv"),
        &format!("{heading}\n00000.ppm;2;2;0;0;1;1\n"),
    );
    assert!(refused(dir.path(), "gtsrb").contains("GTSRB_Final_Test_GT.zip"));
    write(
        dir.path().join("gtsrb/GT-final_test.csv"),
        &format!("{heading};ClassId\r\n00000.ppm;2;2;0;0;1;1;11\r\n"),
    );
    let splits = open(dir.path(), Some(known("gtsrb"))).unwrap();
    assert_eq!(splits.test.as_ref().unwrap().samples[0].load().unwrap().data, [9; 12]);
    assert_eq!(images(splits.train), ["1.ppm 0", "2.ppm 11"]);
    assert_eq!(images(splits.test), ["00000.ppm 11"]);
    assert_eq!(open(dir.path(), Some(known("gtsrb-final"))).unwrap().train.unwrap().samples.len(), 1);
}

#[test]
fn digits_of_svhn() {
    let dir = tempfile::tempdir().unwrap();
    // Row 1, column 2 of the second image is (10, 20, 30); everything else is black.
    let mut pixels = vec![0_u8; 32 * 32 * 3 * 2];
    for colour in 0..3 {
        pixels[3072 + colour * 1024 + 2 * 32 + 1] = 10 * (colour as u8 + 1);
    }
    for name in ["train_32x32.mat", "test_32x32.mat"] {
        let x = deflated(&bytes("X", 9, &[32, 32, 3, 2], &pixels));
        write_bytes(
            dir.path().join("SVHN").join(name),
            &file(&[x, deflated(&bytes("y", 9, &[2, 1], &[10, 3]))]),
        );
    }
    let splits = open(dir.path(), Some(known("svhn"))).unwrap();
    let train = splits.train.unwrap();
    assert_eq!(train.samples.iter().map(|s| s.label).collect::<Vec<_>>(), [0, 3]);
    let image = train.samples[1].load().unwrap();
    assert_eq!(image.data[(32 + 2) * 3..][..3], [10, 20, 30]);
    assert_eq!(image.data.iter().filter(|b| **b != 0).count(), 3);
    let write = |x: Vec<u8>, y: Vec<u8>| write_bytes(dir.path().join("SVHN/test_32x32.mat"), &file(&[x, y]));
    write(bytes("X", 9, &[32, 32, 3, 2], &pixels), bytes("y", 9, &[1, 1], &[1]));
    assert!(refused(dir.path(), "svhn").contains("a label for each of 2 images"));
    write(bytes("X", 9, &[32, 32, 3, 2], &pixels), bytes("y", 9, &[2, 1], &[1, 11]));
    assert!(refused(dir.path(), "svhn").contains("image 1 has label 11"));
    write(bytes("X", 9, &[32, 32, 6, 1], &pixels), bytes("y", 9, &[1, 1], &[1]));
    assert!(refused(dir.path(), "svhn").contains("32 x 32 x 3 x N is expected"));
    std::fs::remove_file(dir.path().join("SVHN/test_32x32.mat")).unwrap();
    assert!(refused(dir.path(), "svhn").contains("test_32x32.mat"));
}

#[test]
fn flowers_dogs_and_cars_with_matlab_files() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("flowers-102");
    for id in 1..=3 {
        write_image(root.join(format!("jpg/image_{id:05}.jpg")), 1);
    }
    write_bytes(root.join("imagelabels.mat"), &file(&[deflated(&numbers("labels", &[77, 9, 77]))]));
    let sets =
        |test: u16| file(&[numbers("trnid", &[1, 2]), numbers("valid", &[3]), numbers("tstid", &[test])]);
    write_bytes(root.join("setid.mat"), &sets(2));
    let splits = open(dir.path(), Some(known("flowers102"))).unwrap();
    assert_eq!(images(splits.train), ["image_00001.jpg 77", "image_00002.jpg 9"]);
    assert_eq!(
        (images(splits.val), images(splits.test)),
        (vec!["image_00003.jpg 77".into()], vec!["image_00002.jpg 9".into()])
    );
    for wrong in [0, 4] {
        write_bytes(root.join("setid.mat"), &sets(wrong));
        assert!(refused(dir.path(), "flowers102").contains(&format!("names image {wrong}, and")));
    }

    let root = dir.path().join("StanfordDogs");
    let (dog, other) = ("n02085620-Chihuahua/n02085620_1.jpg", "n02085782-Japanese_spaniel/n02085782_2.jpg");
    for image in [dog, other] {
        write_image(root.join("Images").join(image), 1);
    }
    write_bytes(
        root.join("lists/train_list.mat"),
        &file(&[cell("file_list", &[text("", dog), text("", other)])]),
    );
    write_bytes(root.join("lists/test_list.mat"), &file(&[deflated(&cell("file_list", &[text("", other)]))]));
    let splits = open(dir.path(), Some(known("stanford-dogs"))).unwrap();
    assert_eq!(images(splits.train), ["n02085620_1.jpg Chihuahua", "n02085782_2.jpg Japanese spaniel"]);

    let root = dir.path().join("stanford_cars");
    let row = |class: u16, file: &str| vec![numbers("", &[1]), numbers("", &[class]), text("", file)];
    let annotations = |rows: &[Vec<Vec<u8>>]| {
        file(&[deflated(&structure("annotations", &["bbox_x1", "class", "fname"], rows))])
    };
    for image in ["cars_train/00001.jpg", "cars_train/00002.jpg", "cars_test/00001.jpg"] {
        write_image(root.join(image), 1);
    }
    write_bytes(
        root.join("devkit/cars_meta.mat"),
        &file(&[cell("class_names", &[text("", "Volvo 240"), text("", "Acura TL")])]),
    );
    write_bytes(
        root.join("devkit/cars_train_annos.mat"),
        &annotations(&[row(2, "00001.jpg"), row(1, "00002.jpg")]),
    );
    assert!(refused(dir.path(), "stanford-cars").contains("has no cars_test_annos_withlabels.mat"));
    write_bytes(root.join("cars_test_annos_withlabels.mat"), &annotations(&[row(2, "00001.jpg")]));
    let splits = open(dir.path(), Some(known("stanford-cars"))).unwrap();
    assert_eq!(images(splits.train), ["00002.jpg Volvo 240", "00001.jpg Acura TL"]);
    assert_eq!(images(splits.test), ["00001.jpg Acura TL"]);
    write_bytes(root.join("cars_test_annos_withlabels.mat"), &annotations(&[row(3, "00001.jpg")]));
    assert!(refused(dir.path(), "stanford-cars").contains("none of 2 classes"));
}

#[test]
fn imagenet_and_its_variants_share_their_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let (tench, goldfish, last) = ("n01440764", "n01443537", "n15075141");
    for image in
        [format!("train/{tench}/1.JPEG"), format!("train/{last}/2.JPEG"), format!("val/{last}/3.JPEG")]
    {
        write_image(root.join("imagenet").join(image).with_extension("jpg"), 1);
    }
    let splits = open(root, Some(known("imagenet"))).unwrap();
    let labels =
        |data: &Option<Dataset>| data.as_ref().unwrap().samples.iter().map(|s| s.label).collect::<Vec<_>>();
    assert_eq!((labels(&splits.train), labels(&splits.test)), (vec![0, 999], vec![999]));
    assert!(splits.layout.contains("2 train images instead of 1281167, 1 test images instead of 50000"));
    assert_eq!(splits.train.unwrap().classes.len(), 1000);

    // Kaggle's validation images are flat.
    std::fs::remove_dir_all(root.join("imagenet/val")).unwrap();
    write_image(root.join("x.jpg"), 1);
    std::fs::create_dir_all(root.join("imagenet/val")).unwrap();
    std::fs::rename(root.join("x.jpg"), root.join("imagenet/val/ILSVRC2012_val_00000001.JPEG")).unwrap();
    write(
        root.join("imagenet/LOC_val_solution.csv"),
        &format!(
            "ImageId,PredictionString\nILSVRC2012_val_00000001,{goldfish} 1 2 3 4 {goldfish} 5 6 7 8 \n"
        ),
    );
    assert_eq!(labels(&open(root, Some(known("imagenet"))).unwrap().test), [1]);

    // So are those of the challenge itself, whose development kit has numbers of its own.
    std::fs::remove_file(root.join("imagenet/LOC_val_solution.csv")).unwrap();
    assert!(
        refused(root, "imagenet")
            .contains("val is flat: class folders, LOC_val_solution.csv or ILSVRC2012_devkit")
    );
    let kit = root.join("imagenet/ILSVRC2012_devkit_t12/data");
    let synset =
        |id: u16, wnid: &str| vec![numbers("", &[id]), text("", wnid), text("", "words, more words")];
    let synsets = [synset(1, goldfish), synset(2, last), synset(3, tench), synset(1001, "n00001740")];
    let fields = ["ILSVRC2012_ID", "WNID", "words"];
    write_bytes(kit.join("meta.mat"), &file(&[deflated(&structure("synsets", &fields, &synsets))]));
    write(kit.join("ILSVRC2012_validation_ground_truth.txt"), "2\n");
    assert_eq!(labels(&open(root, Some(known("imagenet"))).unwrap().test), [999]);
    for (truth, words) in [
        ("1001\n", "line 1: `1001` is no class of"),
        ("one\n", "line 1: `one` is no class of"),
        ("2\n3\n", "ILSVRC2012_val_00000002.JPEG`, which is not in"),
    ] {
        write(kit.join("ILSVRC2012_validation_ground_truth.txt"), truth);
        assert!(refused(root, "imagenet").contains(words), "{}", refused(root, "imagenet"));
    }
    write_bytes(
        kit.join("meta.mat"),
        &file(&[deflated(&structure("synsets", &fields[1..], &[synset(1, last)[1..].to_vec()]))]),
    );
    assert!(refused(root, "imagenet").contains("meta.mat has a synset without ILSVRC2012_ID"));

    for (folder, name, label) in [("imagenet-r", goldfish, 1), ("imagenet-sketch", tench, 0)] {
        write_image(root.join(folder).join(name).join("1.jpg"), 1);
        let test = open(root, Some(known(folder))).unwrap().test.unwrap();
        assert_eq!((test.classes.len(), test.samples[0].label), (1000, label));
        assert_eq!(test.among.as_deref(), Some(&[label][..]), "the others are no answers");
    }
    write_image(root.join("imagenet-r/n00000000/1.jpg"), 1);
    assert!(refused(root, "imagenet-r").contains("n00000000 is none of ImageNet-1K's classes"));
    // Numbers are numbers: 10 comes after 9.
    for class in ["9", "10", "999"] {
        write_image(root.join("imagenetv2-matched-frequency-format-val").join(class).join("1.jpg"), 1);
    }
    let v2 = open(root, Some(known("imagenet-v2"))).unwrap();
    assert_eq!(labels(&v2.test), [9, 10, 999]);
    write(root.join("imagenet-sketch/classnames.txt"), "n01440764 tench\n");
    assert!(refused(root, "imagenet-sketch").contains("has no name for n01443537"));
}

#[test]
fn tiny_imagenet() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tiny-imagenet-200");
    for class in ["n01443537", "n01629819"] {
        write_image(root.join(format!("train/{class}/images/{class}_0.jpg")), 1);
        write(root.join(format!("train/{class}/{class}_boxes.txt")), "x\t0\t0\t1\t1\n");
    }
    write_image(root.join("val/images/val_0.jpg"), 1);
    write(root.join("val/val_annotations.txt"), "val_0.jpg\tn01629819\t0\t32\t44\t62\n");
    write(root.join("wnids.txt"), "n01629819\nn01443537\n");
    write(
        root.join("words.txt"),
        "n01443537\tgoldfish, Carassius auratus\nn01629819\tEuropean fire salamander, Salamandra\n",
    );
    let splits = open(dir.path(), Some(known("tiny-imagenet"))).unwrap();
    assert_eq!(
        images(splits.train),
        ["n01443537_0.jpg goldfish", "n01629819_0.jpg European fire salamander"]
    );
    assert_eq!(images(splits.test), ["val_0.jpg European fire salamander"]);
    write(root.join("val/val_annotations.txt"), "val_0.jpg\n");
    assert!(refused(dir.path(), "tiny-imagenet").contains("has a line without a class: val_0.jpg"));
}

#[test]
fn vtab_prepared_and_by_names() {
    let dir = tempfile::tempdir().unwrap();
    let prepared = dir.path().join("vtab-1k/sun397");
    for image in ["images/train/000000.jpg", "images/val/000000.jpg", "images/test/000000.jpg"] {
        write_image(prepared.join(image), 1);
    }
    // A class of the test images has none to learn from.
    write(prepared.join("train800.txt"), "images/train/000000.jpg 2\n");
    write(prepared.join("val200.txt"), "images/val/000000.jpg 0\n");
    write(prepared.join("test.txt"), "images/test/000000.jpg 10\n");
    // Lists for other tasks beside it change nothing.
    write(dir.path().join(vtab::NAMES), "{}");
    let splits = open(dir.path(), Some(known("vtab-sun397"))).unwrap();
    assert_eq!(images(splits.train), ["000000.jpg 2"]);
    assert_eq!(
        (images(splits.val), images(splits.test)),
        (vec!["000000.jpg 0".into()], vec!["000000.jpg 10".into()])
    );

    let root = dir.path().join("other");
    for (part, image) in
        [("train1", "dotted/dotted_1.jpg"), ("val1", "banded/banded_2.jpg"), ("test1", "dotted/dotted_3.jpg")]
    {
        write_image(root.join("dtd/images").join(image), 1);
        write(root.join(format!("dtd/labels/{part}.txt")), image);
    }
    let lists = |val: &str| {
        write(
            root.join(vtab::NAMES),
            &format!(r#"{{"dtd": {{"train": ["dotted/dotted_1.jpg"], "val": ["{val}"]}}}}"#),
        );
    };
    lists("banded/banded_2.jpg");
    let splits = open(&root, Some(known("vtab-dtd"))).unwrap();
    assert_eq!(
        (images(splits.train), images(splits.val)),
        (vec!["dotted_1.jpg dotted".into()], vec!["banded_2.jpg banded".into()])
    );
    assert_eq!(images(splits.test), ["dotted_3.jpg dotted"]);
    lists("banded/banded_9.jpg");
    assert!(refused(&root, "vtab-dtd").contains("`banded/banded_9.jpg` is no training image of dtd"));
    assert!(refused(&root, "vtab-pets").contains("has no task `oxford_iiit_pet`"));
}

#[test]
fn coops_files_with_val_apart_or_joined() {
    let Some(lists) = shared("data/lists/coop_splits") else { return };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("eurosat");
    let path = root.join("split_zhou_EuroSAT.json");
    write_bytes(&path, &std::fs::read(lists.join("split_zhou_EuroSAT.json")).unwrap());
    // Empty files will do to count.
    let text = std::fs::read_to_string(&path).unwrap();
    let split: std::collections::BTreeMap<String, Vec<(String, usize, String)>> =
        serde_json::from_str(&text).unwrap();
    for (class, _) in split.values().flatten().map(|(image, ..)| image.split_once('/').unwrap()) {
        std::fs::create_dir_all(root.join("2750").join(class)).unwrap();
    }
    for (image, ..) in split.values().flatten() {
        std::fs::File::create(root.join("2750").join(image)).unwrap();
    }
    for name in ["eurosat", "clip-eurosat"] {
        let splits = open(dir.path(), Some(known(name))).unwrap();
        assert_eq!(known(name).differs(&splits), Vec::<String>::new(), "{}", splits.layout);
        assert!(!splits.layout.contains("NOT"), "{}", splits.layout);
    }
}
