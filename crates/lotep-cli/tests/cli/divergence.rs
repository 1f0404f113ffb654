//! A run whose loss is no longer a number stops, says why, and leaves something to go back to.

use std::path::Path;

use crate::common::{Case, Net, read_tensors};

fn diverges(case: &Case, net: Net, options: &[&str], words: &[&str]) {
    let ran =
        case.train(net, "run", &[options, &["--checkpoint-steps", "1", "--schedule", "constant"]].concat());
    ran.refused(&[&["step ", "last.safetensors", "lower learning rate"], words].concat());
    assert!(!case.path("run/result.json").exists() && !case.path("run/adapter").exists());
}

/// Check that a checkpoint holds numbers only.
fn is_good(checkpoint: &Path) {
    let (tensors, _) = read_tensors(checkpoint);
    for tensor in tensors {
        let bad = tensor.values.iter().filter(|v| !v.is_finite()).count();
        assert_eq!(bad, 0, "{bad} values of `{}` in the kept checkpoint are no numbers", tensor.name);
    }
}

#[test]
fn a_classifier_that_runs_away() {
    let case = Case::new();
    let options = ["--method", "linear-probe", "--lr", "1e6", "--epochs", "40"];
    // Here it is the weights that overflow first, and they are looked at before they are saved.
    diverges(&case, Net::ResNet, &options, &["lr 1000000", "prompt-lr 0.02"]);
    is_good(&case.path("run/checkpoints/last.safetensors"));
}

#[test]
fn prompts_that_run_away() {
    let case = Case::new();
    let options = ["--method", "lotep-cp", "--optimizer", "sgd", "--prompt-lr", "1e6", "--epochs", "40"];
    diverges(&case, Net::ResNet, &options, &["loss", "lr 0.02", "prompt-lr 1000000"]);
    is_good(&case.path("run/checkpoints/last.safetensors"));
}

#[test]
fn when_nothing_has_been_saved_yet_the_message_says_so() {
    let case = Case::new();
    // Weights this large overflow in the first step already.
    let mut weights = Net::ResNet.weights(1);
    for tensor in weights.iter_mut().filter(|t| t.name.contains("conv")) {
        tensor.values.iter_mut().for_each(|v| *v *= 1e15);
    }
    case.backbone_with(Net::ResNet, &Net::ResNet.config(), &weights);
    let ran = case.train(Net::ResNet, "run", &["--method", "lotep-tk"]);
    ran.refused(&["loss", "at step 1 ", "nothing had been saved"]);
    assert!(!case.path("run/checkpoints").exists());
}
