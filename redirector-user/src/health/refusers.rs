//! Programs of others at hooks of a cgroup that ours do not use: they can refuse what sockets of the pod do.

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::captures;
use super::finding::Finding;
use crate::base::error::{Context, Result};
use crate::pod::cgroup::Cgroup;
use crate::policy::Policy;
use crate::sys::bpf::AttachType;
use crate::sys::{program_query, test_run};

/// Where packets are let through or dropped.
const PACKETS: [(AttachType, &str); 2] = [(AttachType::Ingress, "ingress"), (AttachType::Egress, "egress")];
/// Where a socket is refused. Those above the pod are the node's affair.
const SOCKETS: [(AttachType, &str); 5] = [
    (AttachType::SockCreate, "sock_create"),
    (AttachType::Bind4, "bind4"),
    (AttachType::Bind6, "bind6"),
    (AttachType::PostBind4, "post_bind4"),
    (AttachType::PostBind6, "post_bind6"),
];

/// What is to be said of them. Programs for packets are asked what they would do with one to the proxy; those that let it
/// through (firewalls and accounting of systemd, say) are nobody's affair.
pub(super) fn judge(cgroup: &Cgroup, below: &[PathBuf], policy: &Policy) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let packets = packets_to_proxy(policy);
    for (at, hook) in PACKETS {
        let ids = program_query::effective(cgroup.as_fd(), at)
            .context(|| format!("ask for the programs at {hook}"))?;
        let own = ids.into_iter().map(|id| (id, None));
        let lower =
            below.iter().flat_map(|path| attached(path, at).into_iter().map(move |id| (id, Some(path))));
        for (id, path) in own.chain(lower) {
            if drops(id, &packets) {
                let what =
                    format!("{} drops what is sent to the proxy", one(hook, id, path.map(PathBuf::as_path)));
                let effect = "captured connections time out";
                findings.push(Finding::fault("foreign_program", what, effect, remedy(hook, id, path)));
            }
        }
    }
    for path in std::iter::once(&cgroup.path).chain(below) {
        for (at, hook) in SOCKETS {
            findings.extend(attached(path, at).into_iter().map(|id| {
                let what = one(hook, id, Some(path));
                let effect = "it may refuse sockets of the pod, and their ports";
                Finding::notice("foreign_program", what, effect, remedy(hook, id, Some(path)))
            }));
        }
    }
    Ok(findings)
}

/// Of a cgroup itself, which may have gone meanwhile.
fn attached(path: &Path, at: AttachType) -> Vec<u32> {
    let ids = File::open(path).and_then(|dir| program_query::attached(dir.as_fd(), at));
    ids.map(|attached| attached.ids).unwrap_or_default()
}

/// A program that cannot be asked lets them through.
fn drops(id: u32, packets: &[Vec<u8>]) -> bool {
    let Ok(program) = program_query::open(id) else { return false };
    packets.iter().any(|packet| test_run::lets_through(program.as_fd(), packet).is_ok_and(|lets| !lets))
}

fn one(hook: &str, id: u32, path: Option<&Path>) -> String {
    let place = path.map(|path| format!(" in {}", path.display())).unwrap_or_default();
    let name = program_query::name(id).unwrap_or_default();
    format!("{hook}{place}: program {id} {}", if name.is_empty() { "without a name" } else { &name })
}

fn remedy(hook: &str, id: u32, path: Option<&PathBuf>) -> String {
    match path {
        Some(path) => {
            format!("if it does not belong there: bpftool cgroup detach {} {hook} id {id}", path.display())
        }
        None => format!("see whose it is: bpftool prog show id {id}"),
    }
}

/// The SYNs of captured connections, each with an Ethernet header.
fn packets_to_proxy(policy: &Policy) -> Vec<Vec<u8>> {
    if !captures::outbound(policy) {
        return Vec::new();
    }
    // Source port 40000, sequence 0, a header of five words, SYN.
    let mut tcp = vec![0x9c, 0x40];
    tcp.extend(policy.outbound_port.to_be_bytes());
    tcp.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let (v4, v6) = (Ipv4Addr::LOCALHOST.octets(), Ipv6Addr::LOCALHOST.octets());
    let ip4 = [&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0][..], &v4, &v4].concat();
    let ip6 = [&[0x60, 0, 0, 0, 0, 20, 6, 64][..], &v6, &v6].concat();
    let mut packets = vec![[&[0; 12][..], &[0x08, 0x00], &ip4, &tcp].concat()];
    if policy.ipv6 {
        packets.push([&[0; 12][..], &[0x86, 0xdd], &ip6, &tcp].concat());
    }
    packets
}
