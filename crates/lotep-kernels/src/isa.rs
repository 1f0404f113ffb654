//! Which instructions this machine has, found once, and which of them to use.

use std::fmt;
use std::sync::OnceLock;

/// Environment variable that forces an instruction set by name, for tests and comparisons.
pub const ISA_VARIABLE: &str = "LOTEP_ISA";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Whatever the program was compiled for: SSE2 on x86-64, NEON on AArch64.
    Portable,
    /// 256-bit vectors with fused multiply-add.
    Avx2,
    /// 512-bit vectors.
    Avx512,
    /// 512-bit vectors with products of bfloat16 pairs.
    Avx512Bf16,
    /// Matrix tiles of bfloat16.
    Amx,
}

const KINDS: [(Kind, &str); 5] = [
    (Kind::Portable, "portable"),
    (Kind::Avx2, "avx2"),
    (Kind::Avx512, "avx512"),
    (Kind::Avx512Bf16, "avx512bf16"),
    (Kind::Amx, "amx"),
];

/// An instruction set that this machine is known to have: no other value can be made, which is what makes the
/// kernels' calls of special instructions sound.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isa(Kind);

impl Isa {
    /// Everything this machine has, weakest first.
    pub fn available() -> &'static [Self] {
        static AVAILABLE: OnceLock<Vec<Isa>> = OnceLock::new();
        AVAILABLE.get_or_init(|| KINDS.iter().filter(|k| detected(k.0)).map(|k| Self(k.0)).collect())
    }

    /// The best this machine has.
    pub fn best() -> Self {
        *Self::available().last().unwrap_or(&Self(Kind::Portable))
    }

    /// The set of that name.
    ///
    /// # Errors
    /// The name is unknown or the machine lacks it; the message lists what it has.
    pub fn named(name: &str) -> Result<Self, String> {
        let found = Self::available().iter().find(|isa| isa.name() == name);
        found.copied().ok_or_else(|| {
            let have: Vec<_> = Self::available().iter().map(|isa| isa.name()).collect();
            let known = KINDS.iter().any(|k| k.1 == name);
            let why = if known { "this machine lacks it" } else { "no such instruction set" };
            format!("instruction set `{name}`: {why}; available are {}", have.join(", "))
        })
    }

    /// What [`ISA_VARIABLE`] asks for, else the best.
    ///
    /// # Errors
    /// The variable is set to something that [`Isa::named`] refuses.
    pub fn from_environment() -> Result<Self, String> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) if !name.is_empty() => Self::named(&name).map_err(|e| format!("{ISA_VARIABLE}: {e}")),
            _ => Ok(Self::best()),
        }
    }

    /// Its name, as [`ISA_VARIABLE`] takes it.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|k| k.0 == self.0).map_or("", |k| k.1)
    }

    /// Whether products of bfloat16 run faster than those of f32.
    pub fn has_fast_bf16(self) -> bool {
        self.0 >= Kind::Avx512Bf16
    }

    pub(crate) fn kind(self) -> Kind {
        self.0
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
fn detected(kind: Kind) -> bool {
    use std::arch::is_x86_feature_detected as has;
    let avx2 = has!("avx2") && has!("fma");
    let avx512 = avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
    let bf16 = avx512 && has!("avx512bf16");
    match kind {
        Kind::Portable => true,
        Kind::Avx2 => avx2,
        Kind::Avx512 => avx512,
        Kind::Avx512Bf16 => bf16,
        Kind::Amx => bf16 && tiles_permitted(),
    }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
fn detected(kind: Kind) -> bool {
    kind == Kind::Portable
}

/// Whether the processor has bf16 tiles and the kernel lets this process use them. Linux hands out the 8 KiB of
/// tile state a thread on request (`arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`), for all threads of the
/// process, those to come included.
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
fn tiles_permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    // CPUID leaf 7, register EDX: bit 22 AMX-BF16, bit 24 AMX-TILE.
    let leaf = core::arch::x86_64::__cpuid_count(7, 0);
    if leaf.edx & (1 << 22) == 0 || leaf.edx & (1 << 24) == 0 {
        return false;
    }
    let result: i64;
    // SAFETY: a system call with two integer arguments; the kernel clobbers rcx and r11 only, and changes nothing
    // in this process but its permission.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux"), not(miri)))]
fn tiles_permitted() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways_and_unknown_ones_are_refused() {
        for isa in Isa::available() {
            assert_eq!(Isa::named(isa.name()), Ok(*isa));
        }
        let error = Isa::named("mmx").unwrap_err();
        assert!(error.contains("`mmx`") && error.contains("portable"), "{error}");
        assert_eq!(Isa::available()[0].name(), "portable");
    }
}
