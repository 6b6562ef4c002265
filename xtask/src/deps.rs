//! `cargo xtask deps`: the programs that the tests and the benchmark run.

use anyhow::Result;

use crate::{apt, envoy, project};

/// A Debian package and the programs we need from it.
struct Package {
    name: &'static str,
    programs: &'static [&'static str],
}

const IPROUTE2: Package = Package { name: "iproute2", programs: &["ip", "ss", "tc"] };

const ALL: &[Package] = &[
    IPROUTE2,
    Package { name: "iptables", programs: &["iptables", "ip6tables", "iptables-save", "iptables-restore"] },
    Package { name: "nftables", programs: &["nft"] },
    Package { name: "bpftool", programs: &["bpftool"] },
    Package { name: "redsocks", programs: &["redsocks"] },
    Package { name: "strace", programs: &["strace"] },
    Package { name: "curl", programs: &["curl"] },
    Package { name: "util-linux", programs: &["nsenter", "setpriv", "unshare"] },
    Package { name: "bind9-dnsutils", programs: &["dig"] },
    Package { name: "dnsmasq-base", programs: &["dnsmasq"] },
    Package { name: "musl-tools", programs: &["musl-gcc"] },
];

/// What a node is made of, besides Kubernetes.
const NODE: &[Package] = &[
    Package { name: "containerd", programs: &["containerd", "ctr"] },
    Package { name: "runc", programs: &["runc"] },
    Package { name: "containernetworking-plugins", programs: &["/usr/lib/cni/bridge"] },
    Package { name: "busybox-static", programs: &["busybox"] },
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
    let envoy = envoy::ensure(quiet)?;
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
