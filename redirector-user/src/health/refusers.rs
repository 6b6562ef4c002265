//! Programs of others at hooks that ours do not use, of a cgroup and of lo: they can refuse what sockets of the pod do.

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::captures;
use super::finding::Finding;
use crate::base::error::{Context, Result};
use crate::netlink::{self, Message, Netlink, Payload, attributes, number};
use crate::pod::cgroup::Cgroup;
use crate::policy::Policy;
use crate::sys::bpf::AttachType;
use crate::sys::netns::NetNs;
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
pub(super) const LOOPBACK: u32 = 1;
/// Attributes of IFLA_XDP (uapi/linux/if_link.h): the program of each mode, or the only one.
const IFLA_XDP: u16 = 43;
const XDP_PROGRAMS: [u16; 4] = [4, 5, 6, 7];
/// What such programs return for a packet that goes on: XDP_PASS; TCX_PASS, TCX_NEXT.
const XDP_PASSES: [u32; 1] = [2];
const TCX_PASSES: [u32; 2] = [0, u32::MAX];

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

/// Programs at lo, which every captured connection passes, that do not let it through.
pub(super) fn judge_loopback(netns: &NetNs, policy: &Policy) -> Result<Vec<Finding>> {
    let packets = packets_to_proxy(policy);
    let of_lo = netlink::within(netns, |netlink| {
        let xdp = xdp_programs(netlink)?.into_iter().map(|id| ("XDP", id, &XDP_PASSES[..]));
        let tcx = [(AttachType::TcxIngress, "tcx ingress"), (AttachType::TcxEgress, "tcx egress")];
        // Before 6.6 there is no such hook.
        let tcx = tcx.into_iter().flat_map(|(at, hook)| {
            let ids = program_query::of_interface(LOOPBACK, at).unwrap_or_default();
            ids.into_iter().map(move |id| (hook, id, &TCX_PASSES[..]))
        });
        Ok(xdp.chain(tcx).collect::<Vec<_>>())
    })?;
    let stops = |(hook, id, passes): (&str, u32, &[u32])| {
        answers(id, &packets, |answer| !passes.contains(&answer)).then(|| {
            Finding::fault(
                "foreign_program",
                format!("{} stops what is sent to the proxy", one(&format!("{hook} of lo"), id, None)),
                "captured connections time out",
                remedy(hook, id, None),
            )
        })
    };
    Ok(of_lo.into_iter().filter_map(stops).collect())
}

fn xdp_programs(netlink: &mut Netlink) -> Result<Vec<u32>> {
    const HEADER: usize = 16;
    let request = Message::new(libc::RTM_GETLINK, 0, &[0; HEADER]);
    let links = netlink.list("the interfaces", &request, |payload| {
        let link = Payload::split(payload, HEADER)?;
        let xdp = (link.number(4) == LOOPBACK).then(|| link.get(IFLA_XDP)).flatten()?;
        let of_modes = attributes(xdp).filter(|(kind, _)| XDP_PROGRAMS.contains(kind));
        Some(of_modes.filter_map(|(_, id)| number(id)).collect::<Vec<_>>())
    })?;
    let mut ids = links.concat();
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn drops(id: u32, packets: &[Vec<u8>]) -> bool {
    // Egress may add congestion by the second bit (BPF_PROG_CGROUP_INET_EGRESS_RUN_ARRAY).
    answers(id, packets, |answer| answer & 1 == 0)
}

/// A program that cannot be asked lets them through.
pub(super) fn answers(id: u32, packets: &[Vec<u8>], stops: impl Fn(u32) -> bool) -> bool {
    let Ok(program) = program_query::open(id) else { return false };
    packets.iter().any(|packet| test_run::packet(program.as_fd(), packet).is_ok_and(&stops))
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
pub(super) fn packets_to_proxy(policy: &Policy) -> Vec<Vec<u8>> {
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
