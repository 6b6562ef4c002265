//! What stops packets on lo beside netfilter and the hooks of eBPF: filters and queueing disciplines of traffic control,
//! and policies of xfrm.

use std::ffi::CStr;

use super::captures;
use super::finding::{Finding, Level};
use super::refusers::{LOOPBACK, answers, packets_to_proxy};
use crate::base::error::Result;
use crate::netlink::{self, Message, Netlink, NetlinkError, Payload, attributes, if_present, number};
use crate::policy::Policy;
use crate::sys::netns::NetNs;

/// struct tcmsg: family, interface, handle, parent, info.
const TCMSG: usize = 20;
const INTERFACE: usize = 4;
const PARENT: usize = 12;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
/// The two chains of clsact, of which the qdisc `ingress` has the first.
const CHAINS: [(&str, u32); 2] = [("ingress", 0xffff_fff2), ("egress", 0xffff_fff3)];
const TCA_BPF_ID: u16 = 11;
/// Where the filters of a kind have their actions (uapi/linux/pkt_cls.h: TCA_U32_ACT and its like).
const ACTIONS: [(&CStr, u16); 6] =
    [(c"u32", 7), (c"flower", 3), (c"matchall", 2), (c"bpf", 1), (c"basic", 3), (c"fw", 4)];
const TCA_ACT_OPTIONS: u16 = 2;
/// TCA_GACT_PARMS, and of other actions the same: a struct that begins as tc_gen does: index, capab, action.
const PARAMETERS: u16 = 2;
/// TC_ACT_SHOT, TC_ACT_STOLEN, TC_ACT_QUEUED, TC_ACT_REDIRECT, TC_ACT_TRAP: the packet goes no further here.
const STOPS: [u32; 5] = [2, 4, 5, 7, 8];
/// What every lo may have, and what only holds filters.
const HARMLESS: [&CStr; 3] = [c"noqueue", c"clsact", c"ingress"];
/// struct tc_stats: bytes (8), packets (4), drops.
const TCA_STATS: u16 = 3;
const DROPS: usize = 12;

/// NETLINK_XFRM (uapi/linux/xfrm.h).
const XFRM: u32 = 6;
const XFRM_MSG_GETPOLICY: u16 = 0x15;
/// Of struct xfrm_userpolicy_id, the question; of struct xfrm_userpolicy_info, the answer: the family, and what is done.
const POLICY_ID: usize = 64;
const POLICY_INFO: usize = 168;
const POLICY_FAMILY: usize = 40;
const POLICY_ACTION: usize = 161;
const XFRM_POLICY_BLOCK: u8 = 1;

/// What is to be said of them.
pub(super) fn judge(netns: &NetNs, policy: &Policy) -> Result<Vec<Finding>> {
    if !captures::outbound(policy) {
        return Ok(Vec::new());
    }
    let packets = packets_to_proxy(policy);
    let mut findings = netlink::within(netns, |netlink| {
        let disciplines = disciplines(netlink)?;
        let mut findings: Vec<Finding> = disciplines.iter().filter_map(Discipline::judge).collect();
        for (chain, parent) in CHAINS {
            let has_chain = |kind: &CStr| kind == c"clsact" || kind == c"ingress" && chain == "ingress";
            if disciplines.iter().any(|discipline| has_chain(&discipline.kind)) {
                findings.extend(filters(netlink, chain, parent, &packets)?);
            }
        }
        Ok(findings)
    })?;
    // IPv4 looks for no policy at lo (net/ipv4/devinet.c sets disable_xfrm there).
    if policy.ipv6 && netns.run(blocks_ipv6)? {
        findings.push(Finding::fault(
            "packets_dropped",
            "a policy of xfrm blocks IPv6 in the pod".into(),
            "captured connections that it selects are refused or time out",
            "see whose it is: ip xfrm policy, in the namespace".into(),
        ));
    }
    Ok(findings)
}

/// A queueing discipline of lo.
struct Discipline {
    kind: Box<CStr>,
    /// Packets that it has dropped so far.
    drops: u32,
}

impl Discipline {
    fn judge(&self) -> Option<Finding> {
        let harmless = HARMLESS.iter().any(|kind| **kind == *self.kind);
        let (level, consequence) = match self.drops {
            0 => (Level::Notice, "it may delay or drop what goes to the proxy"),
            _ => (Level::Fault, "captured connections lose packets, and are slow or time out"),
        };
        (!harmless).then(|| {
            Finding::new(
                level,
                "packets_dropped",
                format!(
                    "lo has the queueing discipline {}, which has dropped {} packets",
                    self.kind.to_string_lossy(),
                    self.drops
                ),
                consequence,
                "if it does not belong there, in the namespace: tc qdisc del dev lo root".into(),
            )
        })
    }
}

fn disciplines(netlink: &mut Netlink) -> Result<Vec<Discipline>> {
    let request = Message::new(libc::RTM_GETQDISC, 0, &[0; TCMSG]);
    let list = netlink.list("the queueing disciplines", &request, |payload| {
        let discipline = Payload::split(payload, TCMSG)?;
        let kind = kind(&discipline).filter(|_| discipline.number(INTERFACE) == LOOPBACK)?;
        let drops =
            discipline.get(TCA_STATS).and_then(|stats| number(stats.get(DROPS..)?)).unwrap_or_default();
        Some(Discipline { kind: kind.into(), drops })
    });
    Ok(if_present(list)?)
}

/// The filters of lo that stop packets. Programs are asked what they would do with one to the proxy.
fn filters(netlink: &mut Netlink, chain: &str, parent: u32, packets: &[Vec<u8>]) -> Result<Vec<Finding>> {
    let mut header = [0; TCMSG];
    header[INTERFACE..][..4].copy_from_slice(&LOOPBACK.to_ne_bytes());
    header[PARENT..][..4].copy_from_slice(&parent.to_ne_bytes());
    let request = Message::new(libc::RTM_GETTFILTER, 0, &header);
    let list = netlink.list("the filters of lo", &request, |payload| {
        let filter = Payload::split(payload, TCMSG)?;
        let (kind, options) = (kind(&filter)?, filter.get(TCA_OPTIONS)?);
        let program = Payload::split(options, 0)?.get_number(TCA_BPF_ID);
        let stops = drops(kind, options)
            || program.is_some_and(|id| answers(id, packets, |answer| STOPS.contains(&answer)));
        stops.then(|| {
            let what = format!("a filter at {chain} of lo ({}) drops packets", kind.to_string_lossy());
            let remedy = format!("see whose it is, in the namespace: tc filter show dev lo {chain}");
            Finding::fault("packets_dropped", what, "captured connections that it selects time out", remedy)
        })
    });
    Ok(if_present(list)?)
}

fn kind<'a>(of: &Payload<'a>) -> Option<&'a CStr> {
    CStr::from_bytes_until_nul(of.get(TCA_KIND)?).ok()
}

/// Whether an action of a filter stops what it selects.
fn drops(kind: &CStr, options: &[u8]) -> bool {
    let of_kind = ACTIONS.iter().filter(|(name, _)| *name == kind).map(|(_, attribute)| *attribute);
    let lists = of_kind.filter_map(|attribute| Payload::split(options, 0)?.get(attribute));
    let verdict = |action: &[u8]| -> Option<u32> {
        let parameters =
            Payload::split(Payload::split(action, 0)?.get(TCA_ACT_OPTIONS)?, 0)?.get(PARAMETERS)?;
        number(parameters.get(8..)?)
    };
    lists.flat_map(attributes).filter_map(|(_, action)| verdict(action)).any(|it| STOPS.contains(&it))
}

/// Whether the namespace of the calling thread has a policy that blocks IPv6.
fn blocks_ipv6() -> Result<bool> {
    let protocol = rustix::net::Protocol::from_raw(XFRM.try_into().expect("not zero"));
    let mut netlink = match Netlink::open_protocol(Some(protocol)) {
        // A kernel without xfrm.
        Err(NetlinkError::Socket(e)) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(false),
        other => other?,
    };
    let request = Message::new(XFRM_MSG_GETPOLICY, 0, &[0; POLICY_ID]);
    let blocks = netlink.list("the policies of xfrm", &request, |payload| {
        let policy = Payload::split(payload, POLICY_INFO)?;
        let family = policy.byte(POLICY_FAMILY);
        Some(policy.byte(POLICY_ACTION) == XFRM_POLICY_BLOCK && family != libc::AF_INET as u8)
    });
    Ok(blocks?.contains(&true))
}
