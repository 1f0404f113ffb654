//! Facts about the machine and this process, for result records.

use serde::{Deserialize, Serialize};

/// The version of Burn that the workspace pins.
const BURN_VERSION: &str = "0.22.1";

/// What a result was computed with: without it, a time or a memory figure says nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Environment {
    /// The version of this library.
    pub lotep: String,
    /// The version of Burn.
    pub burn: String,
    /// The operating system, as Rust names it: `linux`, `macos`, `windows`.
    pub os: String,
    /// The processor's architecture: `x86_64`, `aarch64`.
    pub arch: String,
    /// The processor's name as its maker gives it, or `unknown`.
    pub cpu: String,
    /// Threads that can run at once, as this process is allowed them (affinity and container limits count).
    pub cores: usize,
    /// Main memory of the machine in GiB, where the system says.
    pub memory_gb: Option<f64>,
    /// The instruction sets that matter to the kernels and that this processor has, narrowest first.
    pub isa: Vec<String>,
}

/// Find out what this process runs on.
pub fn environment() -> Environment {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Environment {
        lotep: env!("CARGO_PKG_VERSION").into(),
        burn: BURN_VERSION.into(),
        os: std::env::consts::OS.into(),
        arch: std::env::consts::ARCH.into(),
        cpu: value_of(&cpuinfo, "model name").unwrap_or("unknown").into(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory_gb: kib(&meminfo, "MemTotal").map(|kib| kib / f64::from(1 << 20)),
        isa: isa(&cpuinfo),
    }
}

/// Return the most memory in MiB that this process has held since its start or since [`reset_peak_rss`].
///
/// `None` where the system does not say (only Linux does, in `/proc`).
pub fn peak_rss_mb() -> Option<f64> {
    kib(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM").map(|kib| kib / 1024.0)
}

/// Return the memory in MiB that is free or held by this process, as far as its limits let it.
///
/// `None` where the system does not say (only Linux does).
pub fn free_mb() -> Option<f64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let own = kib(&read("/proc/self/status")?, "VmRSS")? / 1024.0;
    let free = kib(&read("/proc/meminfo")?, "MemAvailable")? / 1024.0;
    // A container's limit, with what else is charged to it.
    let bytes = |path: &str| read(path)?.trim().parse::<f64>().ok();
    let limit = bytes("/sys/fs/cgroup/memory.max").zip(bytes("/sys/fs/cgroup/memory.current"));
    let left = limit.map_or(f64::INFINITY, |(most, now)| (most - now) / f64::from(1 << 20));
    Some(own + free.min(left).max(0.0))
}

/// Start the count of [`peak_rss_mb`] anew, where the system allows it.
///
/// Not every container does; the figure then stays the peak since the start, which is still an upper bound.
pub fn reset_peak_rss() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The value of the first `key : value` line of a `/proc` file.
fn value_of<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().filter_map(|line| line.split_once(':')).find(|(k, _)| k.trim() == key).map(|(_, v)| v.trim())
}

/// The value of a `key: 123 kB` line.
fn kib(text: &str, key: &str) -> Option<f64> {
    value_of(text, key)?.strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(target_arch = "x86_64")]
fn isa(cpuinfo: &str) -> Vec<String> {
    // The standard library cannot be asked about AMX in stable Rust; the kernel's own list can.
    let amx = value_of(cpuinfo, "flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "amx_bf16"));
    let found = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ("amx-bf16", amx),
    ];
    found.iter().filter(|(_, has)| *has).map(|(name, _)| (*name).to_string()).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn isa(_cpuinfo: &str) -> Vec<String> {
    // Neon is part of every 64-bit Arm processor, so there is nothing to ask.
    if cfg!(target_arch = "aarch64") { vec!["neon".into()] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burn_version_is_the_pinned_one() {
        let manifest = include_str!("../../../Cargo.toml");
        let pin = format!("burn = {{ version = \"={BURN_VERSION}\"");
        assert!(manifest.contains(&pin), "BURN_VERSION differs from the workspace's Cargo.toml");
    }

    #[test]
    fn proc_lines_are_read() {
        let text =
            "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nVmHWM:\t   20480 kB\nVmHWM: 1 kB\nodd line\n";
        assert_eq!(value_of(text, "model name"), Some("Some CPU @ 2.00GHz"));
        assert_eq!(kib(text, "VmHWM"), Some(20480.0));
        assert_eq!(kib(text, "VmRSS"), None);
        assert_eq!(kib(text, "model name"), None);
    }

    #[test]
    fn environment_serialises_with_its_names() {
        let json = serde_json::to_value(environment()).unwrap();
        for key in ["lotep", "burn", "os", "arch", "cpu", "cores", "memory_gb", "isa"] {
            assert!(json.get(key).is_some(), "{key} is missing in {json}");
        }
        assert!(json["cores"].as_u64().unwrap() >= 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn peak_memory_sees_a_large_allocation() {
        assert!(free_mb().unwrap() > 64.0);
        let before = peak_rss_mb().unwrap();
        let mut block = vec![0u8; 64 << 20];
        // Touch every page: memory that is only promised is not resident.
        block.iter_mut().step_by(1024).for_each(|byte| *byte = 1);
        std::hint::black_box(&block);
        let after = peak_rss_mb().unwrap();
        assert!(after >= 64.0 && after >= before, "{before} then {after} MiB");
        // Allowed or not, it must not disturb the process.
        reset_peak_rss();
        assert!(peak_rss_mb().unwrap() <= after + 1024.0);
    }
}
