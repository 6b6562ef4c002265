//! The architecture of the guests: this machine's, or another, whose programs are built and whose tools are fetched.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::Result;
use clap::ValueEnum;

use crate::{
    archive::{Archive, Wanted},
    cmd::Cmd,
    exit, project,
    sources::sha256,
};

/// Debian's release whose tools run in a guest of another architecture.
const SUITE: (&str, &str) = ("debian", "bookworm");
/// What tests run by name there, and no more: neither Envoy nor curl.
const TOOLS: &[&str] = &[
    "busybox-static",
    "bpftool",
    "coreutils",
    "dash",
    "grep",
    "iproute2",
    "iptables",
    "mount",
    "nftables",
    "sed",
    "strace",
    "util-linux",
];

/// An architecture that has a machine in QEMU, and kernels and tools in Debian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Arch {
    /// 64-bit x86
    #[value(name = "x86_64")]
    X86,
    /// 64-bit Arm
    Aarch64,
}

impl Arch {
    /// This machine's.
    pub fn here() -> Self {
        if env::consts::ARCH == "aarch64" { Self::Aarch64 } else { Self::X86 }
    }

    /// Whether it is not this machine's.
    pub fn is_foreign(self) -> bool {
        self != Self::here()
    }

    /// Rust's name.
    pub fn rust(self) -> &'static str {
        match self {
            Self::X86 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// Debian's name.
    pub fn debian(self) -> &'static str {
        match self {
            Self::X86 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// The console as the kernel calls it.
    pub fn console(self) -> &'static str {
        match self {
            Self::X86 => "ttyS0",
            Self::Aarch64 => "ttyAMA0",
        }
    }

    /// QEMU's machine and processor, emulated.
    pub fn emulated(self) -> &'static [&'static str] {
        match self {
            // What newer processors have (wider registers, checks of each access) is what takes an emulator's time.
            Self::X86 => &["-accel", "tcg,thread=multi", "-cpu", "Nehalem"],
            // Pointer authentication as the architecture describes it takes most of an emulator's time.
            Self::Aarch64 => {
                &["-machine", "virt", "-accel", "tcg,thread=multi", "-cpu", "max,pauth-impdef=on"]
            }
        }
    }

    /// What the command line of an emulated kernel has, because without it most of an emulator's time is not the programs': QEMU
    /// translates a program anew for each address it is loaded at, and forgets translations of addresses whenever page tables
    /// change. Who loads our programs may load any: the verifier does not ask for the mitigations.
    pub fn quick(self) -> &'static str {
        match self {
            Self::X86 => "norandmaps mitigations=off",
            Self::Aarch64 => "norandmaps",
        }
    }

    /// The same, run by this machine's processor.
    pub fn virtualized(self) -> &'static [&'static str] {
        match self {
            Self::X86 => &["-accel", "kvm", "-cpu", "host"],
            Self::Aarch64 => &["-machine", "virt", "-accel", "kvm", "-cpu", "host"],
        }
    }

    /// The target for static programs, if the toolchain has it or rustup can add it.
    pub fn static_target(self) -> Option<String> {
        let target = format!("{}-unknown-linux-musl", self.rust());
        let installed = || {
            let libraries =
                Cmd::new("rustc").args(["--print", "target-libdir", "--target", &target]).probe()?;
            Path::new(&libraries).is_dir().then_some(())
        };
        installed().or_else(|| {
            Cmd::new("rustup").args(["target", "add", &target]).probe()?;
            installed()
        })?;
        Some(target)
    }

    /// `cargo` with what makes programs of `target`, one of this architecture.
    pub fn compile_for(self, target: &str, mut cargo: Cmd) -> Cmd {
        cargo = cargo.args(["--target", target]);
        if self.is_foreign() {
            let (compiler, word) = (self.cross_compiler(), target.replace('-', "_"));
            cargo = cargo.env(&format!("CC_{word}"), &compiler);
            cargo = cargo.env(&format!("CARGO_TARGET_{}_LINKER", word.to_uppercase()), &compiler);
        }
        cargo
    }

    /// Why there are no static programs of this architecture.
    pub fn no_static_target(self) -> anyhow::Error {
        let target = format!("{}-unknown-linux-musl", self.rust());
        exit::with_code(exit::CANNOT, format!("the toolchain has no target {target}, and rustup brings none"))
    }

    /// The C compiler for programs of another architecture.
    pub fn cross_compiler(self) -> String {
        format!("{}-linux-gnu-gcc", self.rust())
    }

    /// A directory with the tools of a guest of another architecture.
    pub fn tools(self) -> Result<PathBuf> {
        let recipe = sha256(TOOLS.concat().as_bytes());
        let root = project::cache("vm").join(format!("tools-{}-{}", self.debian(), &recipe[..8]));
        if !root.is_dir() {
            let wanted = Wanted { arch: self.debian(), suites: &[SUITE], sources: false };
            let archive =
                Archive::open(&project::cache("vm").join(format!("tools-{}.apt", self.debian())), wanted)?;
            // Beside its final place and renamed: what was interrupted is not taken for finished.
            let fresh = root.with_extension("new");
            archive.unpack_with_dependencies(TOOLS, &fresh)?;
            std::fs::rename(fresh, &root)?;
        }
        Ok(root)
    }
}
