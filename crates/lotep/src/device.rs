//! Choosing where to compute.

use burn::tensor::Device;

use crate::{Result, bail};

/// The device that `--device` names: `auto`, `cpu`, `cuda`, `cuda:1`, `wgpu`.
///
/// # Errors
/// The name is unknown, its support is not compiled in, or there is no such device.
pub fn open(name: &str) -> Result<Device> {
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => match index.parse::<usize>() {
            Ok(index) => (kind, index),
            Err(_) => bail!("--device {name}: `{index}` is not a device number"),
        },
        None => (name, 0),
    };
    match kind {
        "auto" | "cpu" if name == kind => Ok(Device::flex()),
        "cuda" => cuda(index),
        "wgpu" => wgpu(index),
        _ => bail!("--device {name} is unknown; known are auto, cpu, cuda, cuda:N and wgpu"),
    }
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Device> {
    probe(&format!("cuda:{index}"), move || Device::cuda(index))
}

#[cfg(not(feature = "cuda"))]
fn cuda(_index: usize) -> Result<Device> {
    bail!(
        "--device cuda: this lotep was built without CUDA; build with `cargo build --release --features cuda`"
    )
}

#[cfg(feature = "wgpu")]
fn wgpu(index: usize) -> Result<Device> {
    use burn::tensor::DeviceKind;
    let kind = if index == 0 { DeviceKind::DefaultDevice } else { DeviceKind::DiscreteGpu(index - 1) };
    probe("wgpu", move || Device::wgpu(kind))
}

#[cfg(not(feature = "wgpu"))]
fn wgpu(_index: usize) -> Result<Device> {
    bail!(
        "--device wgpu: this lotep was built without wgpu; build with `cargo build --release --features wgpu`"
    )
}

/// Drivers answer an absent device with a panic deep inside, often in a thread of their own: try a small sum first and
/// turn that into an error.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn probe(name: &str, make: impl FnOnce() -> Device + std::panic::UnwindSafe) -> Result<Device> {
    use std::sync::{Arc, OnceLock};

    use burn::tensor::Tensor;
    // The first panic names the cause; those that follow from it, in other threads, say nothing more.
    let cause = Arc::new(OnceLock::new());
    let heard = cause.clone();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        _ = heard.set(panic.payload_as_str().unwrap_or("no reason given").to_owned());
    }));
    let found = std::panic::catch_unwind(|| {
        let device = make();
        let sum = Tensor::<1>::ones([4], &device).sum().try_into_scalar::<f32>();
        sum.map(|sum| ((sum - 4.0).abs() < 1e-6).then_some(device)).map_err(|e| e.to_string())
    });
    std::panic::set_hook(hook);
    match found {
        Ok(Ok(Some(device))) => Ok(device),
        Ok(Ok(None)) => bail!("--device {name}: the device does not compute correctly"),
        failed => {
            let said = failed.ok().and_then(std::result::Result::err);
            let text = cause.get().cloned().or(said).unwrap_or_else(|| "no reason given".into());
            bail!("--device {name} is not available: {}", text.lines().next().unwrap_or(&text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_say_what_is_known() {
        assert!(open("cpu").is_ok() && open("auto").is_ok());
        for name in ["gpu", "cuda:x", "cpu:1", ""] {
            assert!(open(name).unwrap_err().to_string().contains("--device"), "{name}");
        }
    }
}
