//! Options that are out of range, do not fit together, or meet another run's directory.

use crate::common::{Case, Net, Ran, lotep, read_tensors, run};

fn train(case: &Case, options: &[&str]) -> Ran {
    run(case.training(Net::ResNet, "run", options))
}

/// Check each set of options and the words of its refusal, and that none leaves anything behind.
fn refuses(table: &[(&[&str], &[&str])]) {
    let mut faults = Vec::new();
    for (options, words) in table {
        let case = Case::new();
        faults.extend(train(&case, options).fault(words));
        if case.path("run").exists() {
            faults.push(format!("{options:?}: files were written for a run that can't be"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn values_out_of_range_are_named_with_their_range() {
    refuses(&[
        (&["--rank", "0"][..], &["rank 0", "1 to"][..]),
        (&["--method", "lor-vp", "--rank", "33"], &["rank 33", "1 to 32"]),
        (&["--rank", "100000"], &["rank 100000", "1 to"]),
        (&["--rank", "18446744073709551615"], &["rank 9223372036854775807", "1 to"]),
        (
            &["--epochs", "1", "--sources-per-class", "3"],
            &["sources-per-class 3", "mapping linear", "frequency"],
        ),
        (&["--mapping", "full", "--sources-per-class", "2"], &["sources-per-class 2", "mapping full"]),
        (
            &["--mapping", "frequency", "--mapping-every", "2"],
            &["mapping-every 2", "mapping frequency", "iterative"],
        ),
        (&["--mapping-every", "5"], &["mapping-every 5", "mapping linear", "iterative"]),
        (&["--method", "lora", "--alpha", "0"], &["alpha 0", "above 0", "as the rank, 8"]),
        (&["--method", "lora", "--dropout", "1"], &["dropout 1", "0 to below 1"]),
        (&["--depth-ratio", "2"], &["depth_ratio 2", "0 to 1"]),
        (&["--depth-ratio", "nan"], &["depth_ratio NaN", "0 to 1"]),
        (&["--depth-ratio", "0", "--input-prompt", "off"], &["nothing would be learnt"]),
        (&["--batch-size", "0"], &["batch-size is 0", "1 at least"]),
        (&["--epochs", "0"], &["epochs is 0", "1 at least"]),
        (&["--accumulate", "0"], &["accumulate is 0"]),
        (&["--batch-size", "8", "--accumulate", "3"], &["accumulate 3", "batch-size 8"]),
        (&["--lr", "nan"], &["lr is NaN"]),
        (&["--lr", "inf"], &["lr is inf"]),
        (&["--lr", "-0.1"], &["lr is -0.1"]),
        (&["--momentum", "1"], &["momentum is 1"]),
        (&["--warmup-epochs", "3"], &["warmup-epochs is 3", "0 to 2"]),
        (&["--test-fraction", "1"], &["test-fraction is 1"]),
        (&["--select", "best-val", "--val-fraction", "0"], &["best-val", "val-fraction is 0"]),
        (&["--image-size", "31"], &["--image-size 31", "32 to 4096"]),
        (&["--device", "nonsense"], &["--device nonsense", "auto, cpu"]),
        (&["--device", "cuda:x"], &["--device cuda:x", "`x`"]),
    ]);
}

#[test]
fn a_subset_of_nothing_is_refused() {
    refuses(&[(&["--subset", "0"], &["subset", "0", "1 at least"])]);
}

#[test]
fn scales_that_make_no_sense_are_refused() {
    refuses(&[
        (&["--spatial-scale", "nan"], &["spatial_scale", "NaN"]),
        (&["--core-std", "-1"], &["core_std", "-1"]),
        (&["--method", "lor-vp", "--spatial-std", "inf"], &["spatial_std", "inf"]),
    ]);
}

#[test]
fn the_largest_seed_is_what_the_configuration_file_can_hold() {
    let case = Case::new();
    let seed = i64::MAX.to_string();
    train(&case, &["--method", "linear-probe", "--epochs", "1", "--seed", &seed]).done();
    assert!(std::fs::read_to_string(case.path("run/config.toml")).unwrap().contains(&seed));
    train(&case, &["--seed", &u64::MAX.to_string()]).misused(&["--seed", &seed]);
    lotep!("demo", "--seed", u64::MAX.to_string()).misused(&["--seed", &seed]);
}

#[test]
fn settings_of_another_method_are_named() {
    let case = Case::new();
    train(&case, &["--method", "linear-probe", "--rank", "3"]).refused(&["linear-probe", "rank"]);
    train(&case, &["--method", "lor-vp", "--depth-ratio", "0.5"]).refused(&["lor-vp", "depth_ratio"]);
    train(&case, &["--method", "lotep-cp", "--spatial-std", "1"]).refused(&["lotep-cp", "spatial_std"]);
}

#[test]
fn words_that_are_not_known_are_a_wrong_usage() {
    let case = Case::new();
    for (option, value, known) in [
        ("--method", "lotep", "lotep-tk"),
        ("--optimizer", "lamb", "adamw"),
        ("--select", "best-test", "best-val"),
        ("--schedule", "step", "cosine"),
        ("--precision", "fp8", "bf16"),
        ("--on-corrupt", "ignore", "skip"),
        ("--rank", "-1", "--rank"),
        ("--rank", "6.5", "--rank"),
        ("--lr", "high", "--lr"),
        ("--format", "xml", "json"),
    ] {
        train(&case, &[option, value]).misused(&[value, known]);
    }
    train(&case, &["--no-such-option"]).misused(&["--no-such-option", "--help"]);
    lotep!("trian").misused(&["trian", "train"]);
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_is_not_built_in_says_how_to_build_it() {
    let case = Case::new();
    train(&case, &["--device", "cuda"]).refused(&["--device cuda", "--features cuda"]);
    train(&case, &["--device", "cuda:1"]).refused(&["--device cuda", "--features cuda"]);
    let (backbone, images) = (case.backbone(Net::Vit), case.images());
    lotep!("predict", "--backbone", backbone, "--device", "cuda", images).refused(&["--device cuda"]);
}

/// More bytes than there are addresses, so that it fails at once and not in the machine's memory.
#[test]
fn an_image_size_beyond_reason_is_refused() {
    refuses(&[(&["--image-size", "1000000000"], &["--image-size 1000000000"])]);
}

/// A ViT's position embeddings are resampled to the patches of another size; it must have whole ones.
#[test]
fn a_vit_takes_another_image_size_and_its_adapter_remembers() {
    let case = Case::new();
    run(case.training(Net::Vit, "run", &["--image-size", "40"])).refused(&["--image-size 40x40", "16"]);
    run(case.training(Net::Vit, "run", &["--image-size", "64"])).done();
    let eval = lotep!("eval", "--adapter", case.path("run/adapter"), "--data", case.images()).done();
    assert!(eval.stdout.contains("16 images"), "{eval}");
    let (tensors, _) = read_tensors(&case.path("run/adapter/adapter_model.safetensors"));
    assert_eq!(tensors.iter().find(|t| t.name == "image.row").unwrap().shape, [6, 64]);
}

#[test]
fn a_resnet_takes_another_image_size_and_its_adapter_remembers() {
    let case = Case::new();
    train(&case, &["--image-size", "48", "--method", "lotep-tk"]).done();
    let eval = lotep!("eval", "--adapter", case.path("run/adapter"), "--data", case.images()).done();
    assert!(eval.stdout.contains("16 images"), "{eval}");
    let (tensors, _) = read_tensors(&case.path("run/adapter/adapter_model.safetensors"));
    assert_eq!(tensors.iter().find(|t| t.name == "image.row").unwrap().shape, [6, 48]);
}

#[test]
fn eval_checks_its_fraction_as_train_does() {
    let case = Case::new();
    let adapter = case.adapter(Net::Vit, "linear-probe");
    let images = case.images();
    for value in ["2", "nan", "0.95"] {
        lotep!("eval", "--adapter", adapter, "--data", images, "--test-fraction", value)
            .refused(&["test-fraction", "0 to 0.9"]);
    }
}

#[test]
fn a_directory_that_holds_a_run_is_left_alone() {
    let case = Case::new();
    train(&case, &["--method", "linear-probe"]).done();
    let before = std::fs::read(case.path("run/result.json")).unwrap();
    train(&case, &["--method", "linear-probe"]).refused(&["already holds a run", "--resume", "--output"]);
    // A file in the way is no run, and no place for one.
    std::fs::write(case.path("file"), "text").unwrap();
    run(case.training(Net::ResNet, "file", &["--method", "linear-probe"])).refused(&["file"]);
    assert_eq!(std::fs::read(case.path("run/result.json")).unwrap(), before);
}

#[test]
fn resuming_with_other_settings_names_the_setting() {
    let case = Case::new();
    train(&case, &["--method", "lotep-tk", "--rank", "3"]).done();
    for (options, words) in [
        (&["--method", "lotep-tk", "--rank", "4"][..], &["`method`", "3", "4"][..]),
        (&["--method", "lotep-tk", "--rank", "3", "--lr", "0.5"], &["`lr`", "0.002", "0.5"]),
        (&["--method", "lotep-tk", "--rank", "3", "--epochs", "3"], &["`epochs`", "2", "3"]),
        (&["--method", "lotep-tk", "--rank", "3", "--seed", "1"], &["`seed`", "0", "1"]),
    ] {
        train(&case, &[options, &["--resume"]].concat()).refused(&[words, &["last.safetensors"]].concat());
    }
}

#[test]
fn a_corrupt_checkpoint_is_refused_and_kept() {
    let case = Case::new();
    let options = ["--method", "lotep-tk", "--resume"];
    train(&case, &options).done();
    let checkpoint = case.path("run/checkpoints/last.safetensors");
    let whole = std::fs::read(&checkpoint).unwrap();
    let metrics = std::fs::read(case.path("run/metrics.jsonl")).unwrap();
    for damaged in
        [&whole[..whole.len() - 5], &whole[..whole.len() / 2], &whole[..40], &[], b"not a checkpoint"]
    {
        std::fs::write(&checkpoint, damaged).unwrap();
        train(&case, &options).refused(&["last.safetensors", "not a valid safetensors file"]);
        assert_eq!(std::fs::read(&checkpoint).unwrap(), damaged);
    }
    // A whole file of another kind.
    std::fs::copy(case.path("run/adapter/adapter_model.safetensors"), &checkpoint).unwrap();
    train(&case, &options).refused(&["last.safetensors", "not a lotep checkpoint"]);
    // A checkpoint whose progress is damaged.
    let text = String::from_utf8_lossy(&whole);
    let at = text.find("loss_sum").unwrap();
    let mut broken = whole.clone();
    broken[at] = b'k';
    std::fs::write(&checkpoint, &broken).unwrap();
    train(&case, &options).refused(&["last.safetensors", "damaged record"]);
    assert_eq!(std::fs::read(case.path("run/metrics.jsonl")).unwrap(), metrics, "records are left alone");
    std::fs::write(&checkpoint, &whole).unwrap();
    train(&case, &options).done();
}

#[test]
fn an_instruction_set_that_is_none() {
    let case = Case::new();
    for wrong in ["sse9", "AVX512", ""] {
        let mut command = crate::common::command(["bench", "infer", "--steps", "1", "--backbone"]);
        command.arg(case.backbone(Net::Vit)).env("LOTEP_ISA", wrong);
        let ran = crate::common::run(command);
        // Unset and empty are the same.
        if wrong.is_empty() { drop(ran.done()) } else { drop(ran.refused(&["LOTEP_ISA", wrong, "avx2"])) }
    }
}
