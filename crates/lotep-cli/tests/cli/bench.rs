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
    lotep!("bench", "train", "--backbone", "resnet18").refused(&["resnet18.tv_in1k", "cache"]);
    lotep!("bench", "train", "--backbone", "resnet18", "--random-weights", "--image-size", "8").refused(&[
        "--image-size",
        "8",
        "32",
    ]);
    lotep!("bench", "fly", "--backbone", "resnet18").misused(&["fly"]);
    lotep!("bench", "train", "--backbone", "resnet18", "--method", "lor-vp,x")
        .misused(&["x", "none", "lor-vp"]);
    lotep!("bench", "decode").misused(&["PATH"]);
    lotep!("bench", "decode", "nowhere").refused(&["nowhere"]);
    lotep!("bench", "train", "--backbone", "resnet18", "--steps", "0").misused(&["--steps", "0"]);
    lotep!("bench", "train", "--backbone", "resnet18", "--batch-size", "0").misused(&["--batch-size", "0"]);
}

#[test]
fn methods_take_turns_and_are_compared_with_the_first() {
    let case = Case::new();
    let backbone = case.backbone(Net::Vit);
    for mode in ["train", "infer"] {
        let bench = |format: &str| {
            let methods = "none,lor-vp,lotep-tk";
            let ran = lotep!(
                "bench",
                mode,
                "--backbone",
                &backbone,
                "--method",
                methods,
                "--batch-size",
                "1",
                "--steps",
                "4",
                "--format",
                format
            );
            ran.done()
        };
        let reports = bench("json").json_lines();
        let names: Vec<_> = reports.iter().map(|r| r["method"].as_str().unwrap()).collect();
        assert_eq!(names, ["none", "lor-vp", "lotep-tk"]);
        assert!(reports[0].get("ratio").is_none(), "{}", reports[0]);
        for report in &reports[1..] {
            let ratio = &report["ratio"];
            let number = |key: &str| ratio[key].as_f64().unwrap_or_else(|| panic!("{key} in {report}"));
            assert_eq!(ratio["to"], "none");
            assert!(0.0 < number("low") && number("low") <= number("median"), "{report}");
            assert!(number("median") <= number("high"), "{report}");
            assert!(report["peak_rss_mb"].is_null(), "whose memory it is, is not known: {report}");
        }
        let text = bench("text");
        assert_eq!(text.stdout.matches(" of none (quartiles ").count(), 2, "{text}");
    }
}

#[test]
fn reading_images_is_timed() {
    let case = Case::new();
    let images = case.images();
    let ran = lotep!(
        "bench",
        "decode",
        &images,
        "--image-size",
        "16",
        "--interpolation",
        "bicubic",
        "--workers",
        "1,2",
        "--passes",
        "2",
        "--format",
        "json"
    );
    let reports = ran.done().json_lines();
    let threads: Vec<_> = reports.iter().map(|r| r["threads"].as_u64().unwrap()).collect();
    assert_eq!(threads, [1, 2]);
    for report in &reports {
        let rate = |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("{key} in {report}"));
        assert!(report["images"].as_u64().unwrap() > 0 && report["mode"] == "decode", "{report}");
        assert!(0.0 < rate("images_per_second_min"), "{report}");
        assert!(rate("images_per_second_min") <= rate("images_per_second"), "{report}");
        assert!(rate("images_per_second") <= rate("images_per_second_max"), "{report}");
    }
    let ran = lotep!("bench", "decode", &images, "--passes", "1", "--workers", "1").done();
    assert!(ran.stdout.contains(" on 1 thread: ") && ran.stdout.contains(" images/s"), "{ran}");
}
