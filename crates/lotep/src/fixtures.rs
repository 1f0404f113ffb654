//! The reference outputs in `../shared/fixtures`, for tests. Absent on a plain checkout: tests then say so.

use std::path::PathBuf;

use burn::tensor::{Device, Tensor, TensorData};

use crate::safetensors::TensorFile;

/// The shared folder beside the project, or what `LOTEP_SHARED` names.
pub(crate) fn shared() -> PathBuf {
    std::env::var_os("LOTEP_SHARED")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from)
}

/// Where the networks' parity is tested: the CPU, or what `LOTEP_TEST_DEVICE` names (see `--device`). GPUs multiply f32
/// with fewer bits (TF32): `LOTEP_TEST_SLACK` is a factor on every tolerance, and every error is printed.
pub(crate) fn device() -> Device {
    std::env::var("LOTEP_TEST_DEVICE")
        .map_or_else(|_| Device::flex(), |name| crate::device::open(&name).unwrap())
}

/// The factor, on another device only: what is computed here keeps its tolerances, whatever was left in the environment.
fn slack() -> Option<f64> {
    let set = |name: &str| std::env::var(name).ok();
    slack_of(set("LOTEP_TEST_DEVICE").as_deref(), set("LOTEP_TEST_SLACK").as_deref())
}

fn slack_of(device: Option<&str>, slack: Option<&str>) -> Option<f64> {
    device.and(slack).map(|slack| slack.parse().unwrap())
}

/// A path in the shared folder; `None`, said loudly, where it is absent.
pub(crate) fn path(relative: &str) -> Option<PathBuf> {
    let path = shared().join(relative);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {} is absent, so this test checks nothing here", path.display());
    None
}

/// A JSON fixture.
pub(crate) fn json(name: &str) -> Option<serde_json::Value> {
    let path = path(&format!("fixtures/{name}"))?;
    Some(serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
}

/// A safetensors fixture.
pub(crate) struct Fixture(pub(crate) TensorFile);

/// Open a safetensors fixture.
pub(crate) fn open(name: &str) -> Option<Fixture> {
    Some(Fixture(TensorFile::open(path(&format!("fixtures/{name}"))?).unwrap()))
}

impl Fixture {
    pub(crate) fn values(&self, name: &str) -> Vec<f32> {
        self.0.read(name).unwrap().0
    }

    /// A tensor with its own shape, or flattened to one axis.
    pub(crate) fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        let (values, shape) = self.0.read(name).unwrap();
        let shape = if D == 1 { vec![values.len()] } else { shape };
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    /// Check `max|Δ| / max|ref| <= tolerance`, and exactly zero where the reference is.
    #[track_caller]
    pub(crate) fn assert_close<const D: usize>(&self, actual: &Tensor<D>, name: &str, tolerance: f64) {
        let actual: Vec<f32> = actual.clone().without_autodiff().into_data().iter::<f32>().collect();
        assert_close(&actual, &self.values(name), tolerance, name);
    }
}

/// What a tolerance is where the tests run.
pub(crate) fn allowed(tolerance: f64) -> f64 {
    tolerance * slack().unwrap_or(1.0)
}

/// `max|Δ| / max|ref|`.
pub(crate) fn error(actual: &[f32], expected: &[f32]) -> f64 {
    let scale = expected.iter().fold(0.0_f64, |m, v| m.max(f64::from(v.abs())));
    let differences = actual.iter().zip(expected).map(|(a, e)| (f64::from(*a) - f64::from(*e)).abs());
    let error = differences.fold(0.0_f64, |m, v| if v.is_nan() { f64::INFINITY } else { m.max(v) });
    if error > 0.0 { error / scale } else { 0.0 }
}

/// Check that the [`error`] is at most `tolerance`.
#[track_caller]
pub(crate) fn assert_close(actual: &[f32], expected: &[f32], tolerance: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}: number of values");
    let error = error(actual, expected);
    if slack().is_some() {
        println!("{what}: {error:.1e}");
    }
    let tolerance = allowed(tolerance);
    assert!(error <= tolerance, "{what}: relative error {error:e}, allowed {tolerance:e}");
}

#[test]
fn what_is_computed_here_keeps_its_tolerances() {
    assert_eq!(slack_of(None, Some("1000")), None);
    assert_eq!(slack_of(Some("cuda"), Some("1000")), Some(1000.0));
    assert_eq!(slack_of(Some("cuda"), None), None);
}
