//! `cargo xtask deps`: the programs that the tests and the benchmark run.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::{apt, envoy, project, vm::Arch};

/// Debian's name of this machine's architecture.
pub const DEBIAN_ARCH: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// A Debian package and the programs we need from it.
#[derive(Clone, Copy)]
struct Package {
    name: &'static str,
    programs: &'static [&'static str],
}

const IPROUTE2: Package = Package { name: "iproute2", programs: &["ip", "ss", "tc"] };
const MUSL: Package = Package { name: "musl-tools", programs: &["musl-gcc"] };

const ALL: &[Package] = &[
    IPROUTE2,
    Package { name: "iptables", programs: &["iptables", "ip6tables", "iptables-save", "iptables-restore"] },
    Package { name: "nftables", programs: &["nft"] },
    Package { name: "bpftool", programs: &["bpftool"] },
    Package { name: "redsocks", programs: &["redsocks"] },
    Package { name: "strace", programs: &["strace"] },
    Package { name: "systemd", programs: &["systemctl"] },
    Package { name: "curl", programs: &["curl"] },
    Package { name: "util-linux", programs: &["flock", "nsenter", "setpriv", "unshare"] },
    Package { name: "bind9-dnsutils", programs: &["dig"] },
    Package { name: "dnsmasq-base", programs: &["dnsmasq"] },
    MUSL,
    // A web server; and the first program of a guest, for which the other package of this program needs libraries.
    Package { name: "busybox-static", programs: &["busybox"] },
];

/// What a node is made of, besides Kubernetes.
const NODE: &[Package] = &[
    Package { name: "containerd", programs: &["containerd", "ctr"] },
    Package { name: "runc", programs: &["runc"] },
    Package { name: "containernetworking-plugins", programs: &["/usr/lib/cni/bridge"] },
    Package { name: "etcd-server", programs: &["etcd"] },
    Package { name: "openssl", programs: &["openssl"] },
];

/// Installs the parts of a node, and what all tests need.
pub fn for_node() -> Result<()> {
    all(true)?;
    apt::install(&missing(NODE), true)
}

/// Installs everything, Envoy included.
pub fn all(quiet: bool) -> Result<()> {
    apt::install(&missing(ALL), quiet)?;
    let envoy = envoy::ensure()?;
    if !quiet {
        for package in ALL {
            println!("{:<12}{}", package.name, where_it_is(package));
        }
        println!("{:<12}{}", "envoy", envoy.strip_prefix(project::root()).unwrap_or(&envoy).display());
    }
    Ok(())
}

/// Installs the little the demonstration needs.
pub fn for_demo() -> Result<()> {
    apt::install(&missing(&[IPROUTE2]), true)
}

/// Installs what `cargo xtask vm` needs besides the programs of the tests; QEMU's path.
pub fn for_vm(arch: Arch) -> Result<PathBuf> {
    let qemu = match arch {
        Arch::X86 => Package { name: "qemu-system-x86", programs: &["qemu-system-x86_64"] },
        Arch::Aarch64 => Package { name: "qemu-system-arm", programs: &["qemu-system-aarch64"] },
    };
    let here = [qemu, Package { name: "xz-utils", programs: &["xz"] }];
    apt::install(&missing(&here), true)?;
    apt::install(&missing(ALL), true)?;
    for_static(arch)?;
    let found = qemu.programs.iter().find_map(|program| apt::find_program(program));
    found.with_context(|| format!("{} brought no {}", qemu.name, qemu.programs.join(" ")))
}

/// Installs what makes the disks of a node that is a guest, and its client of the runtime.
pub fn for_guest_node() -> Result<()> {
    let packages = [
        Package { name: "mmdebstrap", programs: &["mmdebstrap"] },
        Package { name: "e2fsprogs", programs: &["mke2fs"] },
        Package { name: "protobuf-compiler", programs: &["protoc"] },
    ];
    apt::install(&missing(&packages), true)
}

/// Installs the C compiler for static programs of an architecture.
pub fn for_static(arch: Arch) -> Result<()> {
    if !arch.is_foreign() {
        return apt::install(&missing(&[MUSL]), true);
    }
    // Crates with C in them want the headers, which the compiler only recommends.
    let headers = format!("/usr/{}-linux-gnu/include/stdint.h", arch.rust());
    if apt::find_program(&arch.cross_compiler()).is_some() && Path::new(&headers).exists() {
        return Ok(());
    }
    let compiler = format!("gcc-{}-linux-gnu", arch.rust().replace('_', "-"));
    apt::install(&[&compiler, &format!("libc6-dev-{}-cross", arch.debian())], true)
}

fn missing(packages: &[Package]) -> Vec<&'static str> {
    packages
        .iter()
        .filter(|package| package.programs.iter().any(|program| apt::find_program(program).is_none()))
        .map(|package| package.name)
        .collect()
}

fn where_it_is(package: &Package) -> String {
    let found = package.programs.iter().filter_map(|program| apt::find_program(program));
    found.map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_absent_is_installed() {
        let packages = [
            Package { name: "there", programs: &["sh"] },
            Package { name: "half", programs: &["sh", "no-such-program-anywhere"] },
        ];
        assert_eq!(missing(&packages), ["half"]);
    }
}
