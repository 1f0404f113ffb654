//! `lotep demo`: offline, four methods, and the order that the papers promise.

use crate::common::{Case, lotep};
use crate::files::text;

#[test]
fn four_methods_are_compared_and_prompts_help() {
    let case = Case::new();
    let output = case.path("demo");
    let ran = lotep!("demo", "--epochs", "4", "--format", "json", "--output", text(&output)).done();
    let outcomes = ran.json();
    let outcomes = outcomes.as_array().unwrap();
    let top1 = |i: usize| outcomes[i]["train"]["test"]["top1"].as_f64().unwrap();
    let names: Vec<_> =
        outcomes.iter().map(|o| o["run"]["config"]["method"]["method"].as_str().unwrap()).collect();
    assert_eq!(names, ["linear-probe", "lor-vp", "lotep-cp", "lotep-tk"]);
    // A film over the images, which a frozen network can't see through and a prompt can take away.
    assert!(top1(2) > top1(0) + 5.0 && top1(3) > top1(0) + 5.0, "{:?}", [top1(0), top1(1), top1(2), top1(3)]);
    // What it kept works as any run does.
    let adapter = output.join("runs/lotep-tk/adapter");
    let eval = lotep!(
        "eval",
        "--adapter",
        text(&adapter),
        "--data",
        text(&output.join("images")),
        "--format",
        "json"
    );
    assert_eq!(eval.done().json()["top1"], outcomes[3]["train"]["test"]["top1"]);
    lotep!("demo", "--output", text(&output)).refused(&["earlier demonstration", "--output"]);
}
