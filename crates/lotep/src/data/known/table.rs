//! The table of known data sets. A new one is a row here, and a function where its form is like no other's.

use std::path::Path;

use super::text_lists::{self, Lists};
use super::{About, birds, class_folders, gtsrb, matlab, originals, vtab};
use crate::Result;
use crate::data::dataset::Splits;
use crate::data::{cifar, coop};

static FOOD: Lists = Lists {
    title: "Food-101 with its authors' lists",
    parts: [&["meta/train.txt"], &[], &["meta/test.txt"]],
    images: "images",
    line: text_lists::folder_stem,
};

static DTD: Lists = Lists {
    title: "Describable Textures, first split, trained on train and val",
    parts: [&["labels/train1.txt", "labels/val1.txt"], &[], &["labels/test1.txt"]],
    images: "images",
    line: text_lists::folder,
};

static PETS: Lists = Lists {
    title: "Oxford-IIIT Pets with its authors' lists",
    parts: [&["annotations/trainval.txt"], &[], &["annotations/test.txt"]],
    images: "images",
    line: text_lists::pet,
};

static AIRCRAFT: Lists = Lists {
    title: "FGVC-Aircraft's variants with its authors' lists",
    parts: [&["images_variant_train.txt"], &["images_variant_val.txt"], &["images_variant_test.txt"]],
    images: "images",
    line: text_lists::variant,
};

/// A row of CLIP's eleven, with CoOp's split file beside the images.
const fn clip(
    name: &'static str,
    title: &'static str,
    classes: usize,
    images: [usize; 3],
    folders: &'static [&'static str],
    markers: &'static [&'static str],
    read: fn(&Path) -> Result<Splits>,
) -> About {
    About {
        name,
        title,
        classes,
        images,
        folders,
        markers,
        get: "the authors' page, and CoOp's split file from github.com/KaiyangZhou/CoOp (DATASETS.md)",
        holds: "CoOp's split_zhou_*.json beside the images' directory; train, val and test as it says",
        read,
    }
}

/// A row of VTAB-1k in its prepared form.
const fn prepared(
    name: &'static str,
    title: &'static str,
    classes: usize,
    test: usize,
    folders: &'static [&'static str],
) -> About {
    About {
        name,
        title,
        classes,
        images: [800, 200, test],
        folders,
        markers: &[vtab::PREPARED],
        get: "github.com/ZhangYuanhan-AI/NOAH, or made by TensorFlow Datasets",
        holds: "train800.txt, val200.txt and test.txt (`PATH LABEL` a line) and the images below",
        read: vtab::prepared,
    }
}

/// What a row of VTAB-1k says that is read from its prepared form or from something else too.
macro_rules! or_else {
    ($other:literal) => {
        concat!(
            "train800.txt, val200.txt and test.txt (`PATH LABEL` a line) and the images below; or ",
            $other
        )
    };
}

/// A row of VTAB-1k that is also chosen from the original download by lists of names, in the same directory.
const fn by_names(row: About, holds: &'static str, read: fn(&Path) -> Result<Splits>) -> About {
    About { markers: &[vtab::PREPARED, vtab::NAMES], holds, read, ..row }
}

/// A row of VTAB-1k that is also drawn from the original download.
const fn drawn(
    row: About,
    markers: &'static [&'static str],
    holds: &'static str,
    read: fn(&Path) -> Result<Splits>,
) -> About {
    About { markers, holds, read, ..row }
}

pub(super) static TABLE: [About; 50] = [
    About {
        name: "cifar10",
        title: "CIFAR-10",
        classes: 10,
        images: [50_000, 0, 10_000],
        folders: &["cifar-10-batches-bin"],
        markers: &[""],
        get: "www.cs.toronto.edu/~kriz/cifar.html (binary version)",
        holds: "data_batch_1.bin to data_batch_5.bin, test_batch.bin, batches.meta.txt",
        read: |dir| cifar::read_from(dir, &cifar::TEN),
    },
    About {
        name: "cifar100",
        title: "CIFAR-100",
        classes: 100,
        images: [50_000, 0, 10_000],
        folders: &["cifar-100-binary"],
        markers: &[""],
        get: "www.cs.toronto.edu/~kriz/cifar.html (binary version)",
        holds: "train.bin, test.bin, fine_label_names.txt; read with the fine labels",
        read: |dir| cifar::read_from(dir, &cifar::HUNDRED),
    },
    About {
        name: "tiny-imagenet",
        title: "Tiny-ImageNet",
        classes: 200,
        images: [100_000, 0, 10_000],
        folders: &["tiny-imagenet-200"],
        markers: &["wnids.txt"],
        get: "cs231n.stanford.edu/tiny-imagenet-200.zip",
        holds: "wnids.txt, words.txt, train/WNID/images/*, val/images/* with val/val_annotations.txt; the validation images \
                are tested on, since the test images have no labels",
        read: class_folders::tiny,
    },
    About {
        name: "pets",
        title: "Oxford-IIIT Pets",
        classes: 37,
        images: [3_680, 0, 3_669],
        folders: &["oxford-iiit-pet", "oxford_pets"],
        markers: &["annotations/trainval.txt"],
        get: "www.robots.ox.ac.uk/~vgg/data/pets (images and annotations)",
        holds: "images/*.jpg, annotations/trainval.txt and test.txt",
        read: |dir| text_lists::read(dir, &PETS),
    },
    About {
        name: "eurosat",
        title: "EuroSAT (RGB)",
        classes: 10,
        images: [18_900, 0, 8_100],
        folders: &["EuroSAT"],
        markers: &["split_zhou_EuroSAT.json"],
        get: "zenodo.org/records/7711810 (EuroSAT_RGB), and CoOp's split file from github.com/KaiyangZhou/CoOp",
        holds: "2750/CLASS/*.jpg and split_zhou_EuroSAT.json; it has no split of its own, so that CoOp's is taken, trained on \
                train and val",
        read: |dir| Ok(coop::read(&dir.join("split_zhou_EuroSAT.json"))?.join_val()),
    },
    About {
        name: "food101",
        title: "Food-101",
        classes: 101,
        images: [75_750, 0, 25_250],
        folders: &["food-101"],
        markers: &["meta/train.txt"],
        get: "data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
        holds: "images/CLASS/*.jpg, meta/train.txt and test.txt",
        read: |dir| text_lists::read(dir, &FOOD),
    },
    About {
        name: "dtd",
        title: "Describable Textures",
        classes: 47,
        images: [3_760, 0, 1_880],
        folders: &["dtd/dtd"],
        markers: &["labels/train1.txt"],
        get: "www.robots.ox.ac.uk/~vgg/data/dtd",
        holds: "images/CLASS/*.jpg, labels/train1.txt, val1.txt and test1.txt; trained on train and val",
        read: |dir| text_lists::read(dir, &DTD),
    },
    About {
        name: "flowers102",
        title: "Oxford Flowers 102, its authors' split",
        classes: 102,
        images: [1_020, 1_020, 6_149],
        folders: &["flowers-102", "oxford_flowers"],
        markers: &["setid.mat"],
        get: "www.robots.ox.ac.uk/~vgg/data/flowers/102",
        holds: "jpg/image_*.jpg, imagelabels.mat, setid.mat",
        read: matlab::flowers,
    },
    About {
        name: "flowers102-coop",
        title: "Oxford Flowers 102, CoOp's split",
        classes: 102,
        images: [5_726, 0, 2_463],
        folders: &["oxford_flowers", "flowers-102"],
        markers: &["split_zhou_OxfordFlowers.json"],
        get: "www.robots.ox.ac.uk/~vgg/data/flowers/102, and CoOp's split file from github.com/KaiyangZhou/CoOp",
        holds: "jpg/image_*.jpg and split_zhou_OxfordFlowers.json; trained on train and val, as the papers on pixel prompts do",
        read: |dir| Ok(coop::read(&dir.join("split_zhou_OxfordFlowers.json"))?.join_val()),
    },
    About {
        name: "svhn",
        title: "Street View House Numbers, cropped digits",
        classes: 10,
        images: [73_257, 0, 26_032],
        folders: &["SVHN"],
        markers: &["train_32x32.mat"],
        get: "ufldl.stanford.edu/housenumbers (format 2)",
        holds: "train_32x32.mat, test_32x32.mat; the extra images are not used",
        read: matlab::svhn,
    },
    About {
        name: "gtsrb",
        title: "German traffic signs, the competition's training images",
        classes: 43,
        images: [26_640, 0, 12_630],
        folders: &["gtsrb/GTSRB", "GTSRB"],
        markers: &["Training"],
        get: "benchmark.ini.rub.de (GTSRB-Training_fixed.zip, GTSRB_Final_Test_Images.zip and GTSRB_Final_Test_GT.zip)",
        holds: "Training/000*/*.ppm, Final_Test/Images/*.ppm, and GT-final_test.csv here or in the directory above",
        read: |dir| gtsrb::read(dir, "Training"),
    },
    About {
        name: "gtsrb-final",
        title: "German traffic signs, all training images",
        classes: 43,
        images: [39_209, 0, 12_630],
        folders: &["gtsrb/GTSRB", "GTSRB"],
        markers: &["Final_Training"],
        get: "benchmark.ini.rub.de (GTSRB_Final_Training_Images.zip, GTSRB_Final_Test_Images.zip and GTSRB_Final_Test_GT.zip)",
        holds: "Final_Training/Images/000*/*.ppm, Final_Test/Images/*.ppm, and GT-final_test.csv here or in the directory above",
        read: |dir| gtsrb::read(dir, "Final_Training/Images"),
    },
    About {
        name: "imagenet",
        title: "ImageNet-1K (ILSVRC 2012)",
        classes: 1000,
        images: [1_281_167, 0, 50_000],
        folders: &["imagenet-1k", "ILSVRC2012"],
        markers: &["train/n01440764", "images/train/n01440764", "ILSVRC/Data/CLS-LOC/train"],
        get: "www.image-net.org, or Kaggle's ImageNet Object Localization Challenge",
        holds: "train/WNID/*, and val/WNID/*, or val/* with Kaggle's LOC_val_solution.csv or the development kit \
                (ILSVRC2012_devkit_t12); the validation images are tested on; CoOp's classnames.txt (`n01440764 tench` a line) \
                here or above names the classes, for CLIP",
        read: class_folders::imagenet,
    },
    About {
        name: "imagenet-r",
        title: "ImageNet-R(endition)",
        classes: 200,
        images: [0, 0, 30_000],
        folders: &["imagenet-rendition/imagenet-r"],
        markers: &["n01443537"],
        get: "github.com/hendrycks/imagenet-r",
        holds: "WNID/*; answers are these 200 of ImageNet's classes; CoOp's classnames.txt here or above names them, for CLIP",
        read: class_folders::variant,
    },
    About {
        name: "imagenet-sketch",
        title: "ImageNet-Sketch",
        classes: 1000,
        images: [0, 0, 50_889],
        folders: &["sketch", "imagenet-sketch/images"],
        markers: &["n01440764"],
        get: "github.com/HaohanWang/ImageNet-Sketch",
        holds: "WNID/*; CoOp's classnames.txt here or above names the classes, for CLIP",
        read: class_folders::variant,
    },
    About {
        name: "imagenet-a",
        title: "ImageNet-A(dversarial)",
        classes: 200,
        images: [0, 0, 7_500],
        folders: &["imagenet-adversarial/imagenet-a"],
        markers: &["n01498041"],
        get: "github.com/hendrycks/natural-adv-examples",
        holds: "WNID/*; answers are these 200 of ImageNet's classes; CoOp's classnames.txt here or above names them, for CLIP",
        read: class_folders::variant,
    },
    About {
        name: "imagenet-v2",
        title: "ImageNet-V2, matched frequency",
        classes: 1000,
        images: [0, 0, 10_000],
        folders: &[
            "imagenetv2-matched-frequency-format-val",
            "imagenetv2/imagenetv2-matched-frequency-format-val",
        ],
        markers: &["999"],
        get: "github.com/modestyachts/ImageNetV2",
        holds: "0/* to 999/*, numbers of ImageNet's classes; CoOp's classnames.txt here or above names them, for CLIP",
        read: class_folders::numbers,
    },
    About {
        name: "cub200",
        title: "Caltech-UCSD Birds 200-2011 (FGVC)",
        classes: 200,
        images: [5_994, 0, 5_794],
        folders: &["CUB_200_2011"],
        markers: &["train_test_split.txt"],
        get: "www.vision.caltech.edu/datasets/cub_200_2011",
        holds: "images/*, images.txt, image_class_labels.txt, train_test_split.txt, classes.txt",
        read: birds::read,
    },
    About {
        name: "nabirds",
        title: "NABirds (FGVC)",
        classes: 555,
        images: [23_929, 0, 24_633],
        folders: &["nabirds"],
        markers: &["train_test_split.txt"],
        get: "dl.allaboutbirds.org/nabirds",
        holds: "images/*, images.txt, image_class_labels.txt, train_test_split.txt, classes.txt",
        read: birds::read,
    },
    About {
        name: "stanford-dogs",
        title: "Stanford Dogs (FGVC)",
        classes: 120,
        images: [12_000, 0, 8_580],
        folders: &["StanfordDogs", "stanford_dogs"],
        markers: &["train_list.mat", "lists/train_list.mat"],
        get: "vision.stanford.edu/aditya86/ImageNetDogs (images.tar, lists.tar)",
        holds: "Images/CLASS/*.jpg, train_list.mat, test_list.mat (or in lists/)",
        read: matlab::dogs,
    },
    About {
        name: "stanford-cars",
        title: "Stanford Cars (FGVC)",
        classes: 196,
        images: [8_144, 0, 8_041],
        folders: &["stanford_cars"],
        markers: &["devkit/cars_meta.mat"],
        get: "ai.stanford.edu/~jkrause/cars/car_dataset.html, now kept by mirrors such as Kaggle's",
        holds: "cars_train/*.jpg, cars_test/*.jpg, devkit/cars_meta.mat and cars_train_annos.mat, cars_test_annos_withlabels.mat",
        read: matlab::cars,
    },
    clip(
        "clip-caltech101",
        "Caltech-101 (CoOp)",
        100,
        [4_128, 1_649, 2_465],
        &["caltech-101"],
        &["split_zhou_Caltech101.json"],
        |dir| coop::read(&dir.join("split_zhou_Caltech101.json")),
    ),
    clip(
        "clip-pets",
        "Oxford-IIIT Pets (CoOp)",
        37,
        [2_944, 736, 3_669],
        &["oxford_pets"],
        &["split_zhou_OxfordPets.json"],
        |dir| coop::read(&dir.join("split_zhou_OxfordPets.json")),
    ),
    clip(
        "clip-cars",
        "Stanford Cars (CoOp)",
        196,
        [6_509, 1_635, 8_041],
        &["stanford_cars"],
        &["split_zhou_StanfordCars.json"],
        |dir| coop::read(&dir.join("split_zhou_StanfordCars.json")),
    ),
    clip(
        "clip-flowers",
        "Oxford Flowers 102 (CoOp)",
        102,
        [4_093, 1_633, 2_463],
        &["oxford_flowers"],
        &["split_zhou_OxfordFlowers.json"],
        |dir| coop::read(&dir.join("split_zhou_OxfordFlowers.json")),
    ),
    clip(
        "clip-food101",
        "Food-101 (CoOp)",
        101,
        [50_500, 20_200, 30_300],
        &["food-101"],
        &["split_zhou_Food101.json"],
        |dir| coop::read(&dir.join("split_zhou_Food101.json")),
    ),
    clip(
        "clip-sun397",
        "SUN397 (CoOp)",
        397,
        [15_880, 3_970, 19_850],
        &["sun397"],
        &["split_zhou_SUN397.json"],
        |dir| coop::read(&dir.join("split_zhou_SUN397.json")),
    ),
    clip(
        "clip-dtd",
        "Describable Textures (CoOp)",
        47,
        [2_820, 1_128, 1_692],
        &["dtd"],
        &["split_zhou_DescribableTextures.json"],
        |dir| coop::read(&dir.join("split_zhou_DescribableTextures.json")),
    ),
    clip(
        "clip-eurosat",
        "EuroSAT (CoOp)",
        10,
        [13_500, 5_400, 8_100],
        &["eurosat", "EuroSAT"],
        &["split_zhou_EuroSAT.json"],
        |dir| coop::read(&dir.join("split_zhou_EuroSAT.json")),
    ),
    clip(
        "clip-ucf101",
        "UCF101's middle frames (CoOp)",
        101,
        [7_639, 1_898, 3_783],
        &["ucf101"],
        &["split_zhou_UCF101.json"],
        |dir| coop::read(&dir.join("split_zhou_UCF101.json")),
    ),
    About {
        name: "clip-aircraft",
        title: "FGVC-Aircraft, variants",
        classes: 100,
        images: [3_334, 3_333, 3_333],
        folders: &["fgvc_aircraft", "fgvc-aircraft-2013b/data", "data"],
        markers: &["images_variant_train.txt"],
        get: "www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft",
        holds: "images/*.jpg, images_variant_train.txt, images_variant_val.txt, images_variant_test.txt",
        read: |dir| text_lists::read(dir, &AIRCRAFT),
    },
    by_names(
        prepared("vtab-cifar100", "VTAB-1k: CIFAR-100", 100, 10_000, &["vtab-1k/cifar"]),
        or_else!("vtab_trainval_splits.json and the binary version of CIFAR-100"),
        |dir| vtab::choose(dir, &vtab::CIFAR),
    ),
    drawn(
        prepared(
            "vtab-caltech101",
            "VTAB-1k: Caltech-101",
            102,
            6_084,
            &["vtab-1k/caltech101", "caltech-101"],
        ),
        &[vtab::PREPARED, "101_ObjectCategories"],
        or_else!(
            "101_ObjectCategories/CLASS/*.jpg, of which 30 a class are learnt from: drawn here, VTAB's own are in no list"
        ),
        |dir| vtab::choose(dir, &vtab::CALTECH),
    ),
    by_names(
        prepared("vtab-dtd", "VTAB-1k: Describable Textures", 47, 1_880, &["vtab-1k/dtd"]),
        or_else!("vtab_trainval_splits.json and the authors' dtd/"),
        |dir| vtab::choose(dir, &vtab::DTD),
    ),
    by_names(
        prepared("vtab-flowers102", "VTAB-1k: Oxford Flowers", 102, 6_149, &["vtab-1k/oxford_flowers102"]),
        or_else!("vtab_trainval_splits.json and the authors' flowers-102/"),
        |dir| vtab::choose(dir, &vtab::FLOWERS),
    ),
    by_names(
        prepared("vtab-pets", "VTAB-1k: Oxford-IIIT Pets", 37, 3_669, &["vtab-1k/oxford_iiit_pet"]),
        or_else!("vtab_trainval_splits.json and the authors' oxford-iiit-pet/"),
        |dir| vtab::choose(dir, &vtab::PETS),
    ),
    drawn(
        prepared("vtab-svhn", "VTAB-1k: SVHN", 10, 26_032, &["vtab-1k/svhn", "svhn", "SVHN"]),
        &[vtab::PREPARED, "train_32x32.mat"],
        or_else!("train_32x32.mat and test_32x32.mat: drawn here, VTAB's own are in no list"),
        |dir| vtab::choose(dir, &vtab::SVHN),
    ),
    by_names(
        prepared("vtab-sun397", "VTAB-1k: SUN397", 397, 21_750, &["vtab-1k/sun397"]),
        or_else!(
            "vtab_trainval_splits.json, SUN397/a/abbey/* and so on, and TensorFlow Datasets' sun397_tfds_te.txt, without which \
                  the images to test on are drawn"
        ),
        |dir| vtab::choose(dir, &vtab::SUN),
    ),
    prepared("vtab-camelyon", "VTAB-1k: Patch Camelyon", 2, 32_768, &["vtab-1k/patch_camelyon"]),
    by_names(
        prepared("vtab-eurosat", "VTAB-1k: EuroSAT", 10, 5_400, &["vtab-1k/eurosat"]),
        or_else!("vtab_trainval_splits.json and 2750/CLASS/*.jpg, of which those to test on are drawn"),
        |dir| vtab::choose(dir, &vtab::EUROSAT),
    ),
    by_names(
        prepared("vtab-resisc45", "VTAB-1k: RESISC45", 45, 6_300, &["vtab-1k/resisc45"]),
        or_else!(
            "vtab_trainval_splits.json and NWPU-RESISC45/CLASS/*.jpg, of which those to test on are drawn"
        ),
        |dir| vtab::choose(dir, &vtab::RESISC),
    ),
    by_names(
        prepared(
            "vtab-retinopathy",
            "VTAB-1k: Diabetic Retinopathy",
            5,
            42_670,
            &["vtab-1k/diabetic_retinopathy"],
        ),
        or_else!(
            "vtab_trainval_splits.json and Kaggle's trainLabels.csv, retinopathy_solution.csv, train/*.jpeg and test/*.jpeg, \
                  which are not brought to Graham's radius and colours"
        ),
        |dir| vtab::choose(dir, &vtab::RETINOPATHY),
    ),
    by_names(
        prepared(
            "vtab-clevr-count",
            "VTAB-1k: CLEVR, number of objects",
            8,
            15_000,
            &["vtab-1k/clevr_count"],
        ),
        or_else!("vtab_trainval_splits.json and CLEVR_v1.0/"),
        |dir| vtab::choose(dir, &vtab::CLEVR_COUNT),
    ),
    by_names(
        prepared(
            "vtab-clevr-dist",
            "VTAB-1k: CLEVR, distance of the closest object",
            6,
            15_000,
            &["vtab-1k/clevr_dist"],
        ),
        or_else!("vtab_trainval_splits.json and CLEVR_v1.0/"),
        |dir| vtab::choose(dir, &vtab::CLEVR_DIST),
    ),
    prepared("vtab-dmlab", "VTAB-1k: DMLab", 6, 22_735, &["vtab-1k/dmlab"]),
    by_names(
        prepared("vtab-kitti", "VTAB-1k: KITTI, distance of the closest vehicle", 4, 711, &["vtab-1k/kitti"]),
        or_else!(
            "vtab_trainval_splits.json, training/image_2/*.png and training/label_2/*.txt, of which those to test on are \
                  drawn, image by image and not drive by drive"
        ),
        |dir| vtab::choose(dir, &vtab::KITTI),
    ),
    prepared("vtab-dsprites-loc", "VTAB-1k: dSprites, location", 16, 73_728, &["vtab-1k/dsprites_loc"]),
    prepared("vtab-dsprites-ori", "VTAB-1k: dSprites, orientation", 16, 73_728, &["vtab-1k/dsprites_ori"]),
    drawn(
        prepared(
            "vtab-smallnorb-azi",
            "VTAB-1k: SmallNORB, azimuth",
            18,
            12_150,
            &["vtab-1k/smallnorb_azi", "smallnorb"],
        ),
        &[vtab::PREPARED, originals::NORB],
        or_else!(
            "the authors' six files smallnorb-*.mat, decompressed: drawn here, VTAB's own are in no list"
        ),
        |dir| vtab::choose(dir, &vtab::NORB_AZIMUTH),
    ),
    drawn(
        prepared(
            "vtab-smallnorb-ele",
            "VTAB-1k: SmallNORB, elevation",
            9,
            12_150,
            &["vtab-1k/smallnorb_ele", "smallnorb"],
        ),
        &[vtab::PREPARED, originals::NORB],
        or_else!(
            "the authors' six files smallnorb-*.mat, decompressed: drawn here, VTAB's own are in no list"
        ),
        |dir| vtab::choose(dir, &vtab::NORB_ELEVATION),
    ),
];
