//! Data sets by name, and images in lists and archives.

use std::fmt::Write;
use std::path::Path;

use crate::common::{Case, Net, TEST, TRAIN, files_under, lotep, read_json, text};
use crate::files::write_file;

#[test]
fn they_are_listed_with_where_to_get_them() {
    let listed = lotep!("datasets").done().stdout;
    for name in ["cifar10", "tiny-imagenet", "imagenet-r", "cub200", "clip-sun397", "vtab-smallnorb-ele"] {
        assert!(listed.lines().any(|line| line.split_whitespace().next() == Some(name)), "{name}: {listed}");
    }
    let all = lotep!("datasets", "--format", "json").done().json_lines();
    assert_eq!(all.len() + 1, listed.lines().count());
    let one = lotep!("datasets", "dtd").done().stdout;
    for word in ["3760 train", "47 classes", "robots.ox.ac.uk", "labels/train1.txt"] {
        assert!(one.contains(word), "{word}: {one}");
    }
    assert_eq!(
        lotep!("datasets", "dtd", "--format", "json").done().json()["images"],
        serde_json::json!([3760, 0, 1880])
    );
    lotep!("datasets", "dtb").misused(&["dtb", "dtd"]);
    let case = Case::new();
    std::fs::create_dir(case.path("empty")).unwrap();
    lotep!("inspect", "--dataset", "dtd", "--data-root", case.path("empty")).refused(&[
        "does not hold dtd",
        "labels/train1.txt",
        "robots.ox.ac.uk",
        "lotep datasets dtd",
    ]);
}

/// The drawn images as DTD's authors would publish them, as a list, and as a tar archive.
fn forms(case: &Case) -> [(std::path::PathBuf, Vec<&'static str>); 3] {
    let images = case.images();
    let root = case.path("downloads");
    let (mut lists, mut rows, mut archive) =
        ([String::new(), String::new()], "path,label,split\n".to_owned(), Vec::new());
    for path in files_under(&images) {
        let inside = path.strip_prefix(&images).unwrap().to_str().unwrap().to_owned();
        let [part, class, file] = inside.split('/').collect::<Vec<_>>()[..] else { panic!("{inside}") };
        let bytes = std::fs::read(&path).unwrap();
        // Train and test images may have the same name.
        write_file(&root.join(format!("dtd/images/{class}/{part}_{file}")), &bytes);
        writeln!(lists[usize::from(part == "test")], "{class}/{part}_{file}").unwrap();
        writeln!(rows, "{inside},{class},{part}").unwrap();
        archive.extend(member(&inside, &bytes));
    }
    write_file(&root.join("dtd/labels/train1.txt"), &lists[0]);
    write_file(&root.join("dtd/labels/val1.txt"), "");
    write_file(&root.join("dtd/labels/test1.txt"), &lists[1]);
    write_file(&images.join("list.csv"), rows);
    archive.extend([0; 1024]);
    write_file(&case.path("archive.tar"), archive);
    [(root, vec!["--dataset", "dtd"]), (images.join("list.csv"), vec![]), (case.path("archive.tar"), vec![])]
}

/// A file in a tar archive.
fn member(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[148..156].fill(b' ');
    header[156] = b'0';
    let sum: u64 = header.iter().map(|b: &u8| u64::from(*b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header.extend_from_slice(content);
    header.resize(header.len().next_multiple_of(512), 0);
    header
}

#[test]
fn the_same_images_in_any_form_give_the_same() {
    let case = Case::new();
    let backbone = case.backbone(Net::Vit);
    let accuracy = |name: &str, data: &Path, more: &[&str]| {
        let mut command = crate::common::command([
            "train",
            "--method",
            "linear-probe",
            "--epochs",
            "2",
            "--batch-size",
            "16",
        ]);
        command
            .arg("--backbone")
            .arg(&backbone)
            .arg("--data")
            .arg(data)
            .arg("--output")
            .arg(case.path(name))
            .args(more);
        let ran = crate::common::run(command).done();
        (read_json(&case.path(name).join("result.json")), ran.stderr)
    };
    let (folders, _) = accuracy("folders", &case.images(), &[]);
    for (i, (data, more)) in forms(&case).iter().enumerate() {
        let (found, said) = accuracy(&format!("form{i}"), data, more);
        assert_eq!(found["run"]["classes"], folders["run"]["classes"], "{data:?}");
        assert_eq!(found["train"]["test"]["images"], TEST, "{data:?}");
        let facts = found["run"]["data"].as_str().unwrap();
        assert!(facts.contains(&format!("{TRAIN} train")), "{facts}");
        // A tar's images come in another order in an epoch.
        if !text(data).ends_with("tar") {
            assert_eq!(found["train"]["test"], folders["train"]["test"], "{data:?}");
        }
        if i == 0 {
            assert!(
                said.contains("NOT as published: 8 classes instead of 47, 48 train images instead of 3760"),
                "{said}"
            );
            let report = lotep!("inspect", "--dataset", "dtd", "--data-root", data).done().stdout;
            assert!(report.contains("16 test images instead of 1880"), "{report}");
        }
    }
    let mut command = case.training(Net::Vit, "joined", &["--join-val"]);
    command.stdin(std::process::Stdio::null());
    crate::common::run(command).refused(&["no validation images to join"]);
}
