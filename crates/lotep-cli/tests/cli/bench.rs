//! `bench`: the names that scripts rely on.

use crate::common::{Case, Net, lotep};

#[test]
fn training_and_prediction_are_timed() {
    let case = Case::new();
    let backbone = case.backbone(Net::Vit);
    for mode in ["train", "infer"] {
        for method in ["lotep-tk", "linear-probe"] {
            let ran = lotep!(
                "bench",
                mode,
                "--backbone",
                backbone,
                "--method",
                method,
                "--batch-size",
                "2",
                "--steps",
                "3",
                "--warmup",
                "1",
                "--classes",
                "3",
                "--format",
                "json"
            );
            let report = ran.done().json();
            let number = |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("{key} in {report}"));
            assert!(number("step_ms") > 0.0 && number("images_per_second") > 0.0, "{report}");
            // Two images in the median step.
            assert!(
                (number("images_per_second") * number("step_ms") / 2000.0 - 1.0).abs() < 1e-9,
                "{report}"
            );
            assert!(number("step_ms_min") <= number("step_ms") && number("step_ms") <= number("step_ms_max"));
            assert_eq!((&report["mode"], &report["method"]), (&mode.into(), &method.into()));
            if cfg!(target_os = "linux") {
                assert!(number("peak_rss_mb") > 1.0, "{report}");
            }
        }
    }
}

#[test]
fn random_weights_need_no_file() {
    for mode in ["train", "infer"] {
        let ran = lotep!(
            "bench",
            mode,
            "--backbone",
            "resnet18",
            "--random-weights",
            "--image-size",
            "32",
            "--batch-size",
            "1",
            "--steps",
            "1",
            "--warmup",
            "0"
        );
        let ran = ran.done();
        for word in ["resnet18", "ms a step", "images/s"] {
            assert!(ran.stdout.contains(word), "{ran}");
        }
    }
}

#[test]
fn wrong_values_are_named() {
    lotep!("bench", "train", "--backbone", "resnet19", "--random-weights").refused(&["resnet19", "resnet18"]);
    lotep!("bench", "train", "--backbone", "resnet18").refused(&["resnet18", "--arch"]);
    lotep!("bench", "train", "--backbone", "resnet18", "--random-weights", "--image-size", "8").refused(&[
        "--image-size",
        "8",
        "32",
    ]);
    lotep!("bench", "fly", "--backbone", "resnet18").misused(&["fly", "train", "infer"]);
    lotep!("bench", "train", "--backbone", "resnet18", "--steps", "0").misused(&["--steps", "0"]);
    lotep!("bench", "train", "--backbone", "resnet18", "--batch-size", "0").misused(&["--batch-size", "0"]);
}
