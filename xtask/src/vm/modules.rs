//! Kernel modules that the guest loads: netfilter for the comparison, links for the pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::cmd::Cmd;

/// What the tests need. One that a kernel has built in, or does not have, is left out.
const WANTED: &[&str] = &[
    "veth",
    "dummy",
    "bridge",
    "ifb",
    "tun",
    "nf_tables",
    "nft_counter",
    "nft_compat",
    "nft_chain_nat",
    "nft_nat",
    "nft_redir",
    "nft_masq",
    "nft_ct",
    "nft_meta",
    "nft_socket",
    "nft_tproxy",
    "nf_conntrack",
    "nf_nat",
    "nf_conntrack_netlink",
    "ip_tables",
    "ip6_tables",
    "iptable_nat",
    "ip6table_nat",
    "iptable_mangle",
    "ip6table_mangle",
    "iptable_filter",
    "ip6table_filter",
    "iptable_raw",
    "ip6table_raw",
    "xt_REDIRECT",
    "xt_owner",
    "xt_tcpudp",
    "xt_multiport",
    "xt_mark",
    "xt_connmark",
    "xt_conntrack",
    "xt_comment",
    "xt_socket",
    "xt_TPROXY",
    "xt_CT",
    "xt_nat",
    "xt_addrtype",
    "xt_cgroup",
    "xt_limit",
    "xt_NFQUEUE",
    "ipt_REJECT",
    "nft_reject_inet",
    "nft_limit",
    "nft_queue",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_fib_inet",
    "nf_log_syslog",
    "tcp_diag",
    "udp_diag",
    "inet_diag",
    "sch_ingress",
    "cls_bpf",
    "act_mirred",
    "sch_netem",
    "unix_diag",
    "netlink_diag",
    "sch_htb",
    "xt_MASQUERADE",
    "overlay",
    "virtio_pci",
    "virtio_blk",
    "br_netfilter",
];

/// The modules with what they depend on, in the order in which they must be loaded: name, contents.
pub fn collect(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = BTreeMap::new();
    index(&dir.join("kernel"), &mut files)?;
    let mut loader = Loader { files, seen: BTreeSet::new(), order: Vec::new() };
    for name in WANTED {
        loader.add(name)?;
    }
    Ok(loader.order)
}

fn index(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            index(&path, files)?;
        } else if let Some((name, _)) = path.file_name().and_then(|name| name.to_str()?.split_once(".ko")) {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

struct Loader {
    files: BTreeMap<String, PathBuf>,
    seen: BTreeSet<String>,
    order: Vec<(String, Vec<u8>)>,
}

impl Loader {
    fn add(&mut self, name: &str) -> Result<()> {
        let name = name.replace('-', "_");
        let Some(path) = self.files.get(&name) else { return Ok(()) };
        if !self.seen.insert(name.clone()) {
            return Ok(());
        }
        let bytes = read(path)?;
        for dependency in dependencies(&bytes) {
            self.add(&dependency)?;
        }
        self.order.push((name, bytes));
        Ok(())
    }
}

/// busybox's insmod takes only plain modules.
fn read(path: &Path) -> Result<Vec<u8>> {
    match path.extension().and_then(|end| end.to_str()) {
        Some(end @ ("xz" | "zst" | "gz")) => {
            let program = if end == "zst" { "zstd" } else { end.replace("gz", "gzip").leak() };
            Cmd::new(program).arg("-dc").arg(path).quiet(true).read_bytes()
        }
        _ => fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The value of `depends=` in the module's `.modinfo` section, which holds strings that end in a zero byte.
fn dependencies(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|window| window == key) else { return Vec::new() };
    let value = module[at + key.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_the_module() {
        assert_eq!(
            dependencies(b"xx\0license=GPL\0depends=nf_nat,x-tables\0name=y\0"),
            ["nf_nat", "x-tables"]
        );
        assert!(dependencies(b"\0depends=\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }
}
