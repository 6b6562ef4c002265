//! The decision: which connection goes where, and the rule that says so.
//!
//! The rules and their order are those of istio-iptables (`tools/istio-iptables/pkg/capture/run.go`),
//! nat OUTPUT → ISTIO_OUTPUT and nat PREROUTING → ISTIO_INBOUND. The functions are pure: what
//! they must look up comes through [`Facts`], which the kernel side implements with a map and
//! tests implement with plain sets.

use crate::policy::{Policy, Table, flag};
use crate::{Addr, counter::Counter};

/// What a policy's lists say.
pub trait Facts {
    /// Whether a list of numbers (ports, users, groups, interface indices) holds `value`.
    fn listed(&self, table: Table, value: u32) -> bool;
    /// Whether a list of prefixes covers `addr`.
    fn covered(&self, table: Table, addr: &Addr) -> bool;
}

/// Where a connection goes.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On its own way, untouched.
    Pass = 0,
    /// To the proxy's outbound listener (15001).
    Outbound = 1,
    /// To the proxy's inbound listener (15006).
    Inbound = 2,
    /// To the proxy's DNS listener (15053).
    Dns = 3,
}

/// A verdict and the rule that decided; the rule is the counter's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where it goes.
    pub verdict: Verdict,
    /// Why.
    pub rule: Counter,
}

/// A uid or gid that no process has: a socket without a file. `xt_owner` matches such a
/// socket to no `--uid-owner`, and to every `! --uid-owner`.
pub const NOBODY: u32 = u32::MAX;

/// An outgoing connection (or datagram) as the OUTPUT chain would see its first packet.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing {
    /// Destination after the kernel's own rewriting of 0.0.0.0 and `::`.
    pub dst: Addr,
    /// Destination port, host byte order.
    pub dport: u16,
    /// Source address: the bound one, else the one routing chooses.
    pub src: Addr,
    /// TCP, as opposed to UDP.
    pub tcp: bool,
    /// It leaves on `lo`: the destination is loopback or an address of the namespace.
    pub lo: bool,
    /// Index of the interface it leaves on.
    pub oif: u32,
    /// fsuid of the socket's file, [`NOBODY`] if it has none.
    pub uid: u32,
    /// fsgid of the socket's file.
    pub gid: u32,
}

#[inline(always)]
const fn pass(rule: Counter) -> Decision {
    Decision { verdict: Verdict::Pass, rule }
}

/// nat OUTPUT → ISTIO_OUTPUT. First match wins.
#[inline(always)]
pub fn outgoing<F: Facts>(p: &Policy, facts: &F, c: &Outgoing) -> Decision {
    let dns_port = c.dport == 53;
    let dns = p.has(flag::DNS);

    if p.has(flag::HAS_EXCLUDE_INTERFACES) && facts.listed(Table::ExcludeInterfaces, c.oif) {
        return pass(Counter::OutExcludedInterface);
    }
    if p.has(flag::HAS_EXCLUDE_OUT_PORTS) && facts.listed(Table::ExcludeOutPorts, c.dport as u32) {
        return pass(Counter::OutExcludedPort);
    }
    if c.lo && (c.src.same(&Addr::PASSTHROUGH_V4) || c.src.same(&Addr::PASSTHROUGH_V6)) {
        return pass(Counter::OutPassthroughSource);
    }

    let exempt = p.is_loopback_exempt(&c.dst);
    let loopback_included = p.has(flag::LOOPBACK_INCLUDED);
    // The rules of one user, in turn: own traffic on lo → inbound, others' traffic on lo passes,
    // own traffic passes. The second rule of the first user ends it for every other user on lo,
    // so that only the first is ever asked there (unless -i holds a loopback prefix).
    let self_call = c.lo && !exempt && c.tcp && c.dport != p.tunnel_port;
    let others_pass = c.lo && !loopback_included && (!dns || (c.tcp && !dns_port));

    let is_first_uid = c.uid == p.first_uid;
    if self_call && !(dns && dns_port) && is_first_uid {
        return Decision { verdict: Verdict::Inbound, rule: Counter::OutProxyUidLoopback };
    }
    if others_pass && !is_first_uid {
        return pass(Counter::OutNotProxyUidLoopback);
    }
    if is_first_uid {
        return pass(Counter::OutProxyUid);
    }
    if p.has(flag::HAS_MORE_UIDS) && facts.listed(Table::ProxyUids, c.uid) {
        if self_call && !(dns && dns_port) {
            return Decision { verdict: Verdict::Inbound, rule: Counter::OutProxyUidLoopback };
        }
        return pass(Counter::OutProxyUid);
    }

    let is_first_gid = c.gid == p.first_gid;
    if self_call && is_first_gid {
        return Decision { verdict: Verdict::Inbound, rule: Counter::OutProxyGidLoopback };
    }
    if others_pass && !is_first_gid {
        return pass(Counter::OutNotProxyGidLoopback);
    }
    if is_first_gid {
        return pass(Counter::OutProxyGid);
    }
    if p.has(flag::HAS_MORE_GIDS) && facts.listed(Table::ProxyGids, c.gid) {
        if self_call {
            return Decision { verdict: Verdict::Inbound, rule: Counter::OutProxyGidLoopback };
        }
        return pass(Counter::OutProxyGid);
    }

    if p.has(flag::HAS_OWNER_GROUPS_EXCLUDE) && facts.listed(Table::OwnerGroupsExclude, c.gid) {
        return pass(Counter::OutOwnerGroupExcluded);
    }
    if p.has(flag::OWNER_GROUPS_LIST) && !facts.listed(Table::OwnerGroups, c.gid) {
        return pass(Counter::OutOwnerGroupNotIncluded);
    }
    if dns && dns_port && (p.has(flag::DNS_ALL) || facts.covered(Table::DnsServers, &c.dst)) {
        return Decision { verdict: Verdict::Dns, rule: Counter::OutDns };
    }
    if exempt {
        return pass(Counter::OutLoopback);
    }
    if p.has(flag::HAS_EXCLUDE_CIDRS) && facts.covered(Table::ExcludeCidrs, &c.dst) {
        return pass(Counter::OutExcludedCidr);
    }
    if !c.tcp {
        return pass(Counter::OutDefault);
    }
    if p.has(flag::HAS_INCLUDE_OUT_PORTS) && facts.listed(Table::IncludeOutPorts, c.dport as u32) {
        return Decision { verdict: Verdict::Outbound, rule: Counter::OutIncludedPort };
    }
    if p.has(flag::OUTBOUND_ALL) {
        return Decision { verdict: Verdict::Outbound, rule: Counter::OutAll };
    }
    if p.has(flag::HAS_INCLUDE_CIDRS) && facts.covered(Table::IncludeCidrs, &c.dst) {
        return Decision { verdict: Verdict::Outbound, rule: Counter::OutIncludedCidr };
    }
    pass(Counter::OutDefault)
}

/// A TCP connection that arrives from the network (never one that arrives on `lo`: its
/// decision was taken in [`outgoing`], as netfilter takes it in OUTPUT).
#[derive(Clone, Copy, Debug)]
pub struct Incoming {
    /// Destination.
    pub dst: Addr,
    /// Destination port, host byte order.
    pub dport: u16,
    /// Index of the interface it arrived on.
    pub iif: u32,
}

/// nat PREROUTING → ISTIO_INBOUND, or mangle PREROUTING in TPROXY mode. First match wins.
#[inline(always)]
pub fn incoming<F: Facts>(p: &Policy, facts: &F, c: &Incoming) -> Decision {
    if p.has(flag::HAS_VIRTUAL_INTERFACES) && facts.listed(Table::VirtualInterfaces, c.iif) {
        let captured = p.has(flag::OUTBOUND_ALL)
            || (p.has(flag::HAS_INCLUDE_CIDRS) && facts.covered(Table::IncludeCidrs, &c.dst));
        return if captured {
            Decision { verdict: Verdict::Outbound, rule: Counter::InVirtualCaptured }
        } else {
            pass(Counter::InVirtualPassed)
        };
    }
    if p.has(flag::HAS_EXCLUDE_INTERFACES) && facts.listed(Table::ExcludeInterfaces, c.iif) {
        return pass(Counter::InExcludedInterface);
    }
    // TPROXY's chain has no rule for the tunnel port.
    let inbound = p.flags & (flag::INBOUND_ALL | flag::INBOUND_LIST) != 0;
    if inbound && !p.has(flag::TPROXY) && c.dport == p.tunnel_port {
        return pass(Counter::InTunnel);
    }
    if p.has(flag::INBOUND_ALL) {
        if p.has(flag::HAS_EXCLUDE_IN_PORTS) && facts.listed(Table::ExcludeInPorts, c.dport as u32) {
            return pass(Counter::InExcludedPort);
        }
        return Decision { verdict: Verdict::Inbound, rule: Counter::InAll };
    }
    if p.has(flag::INBOUND_LIST) && facts.listed(Table::IncludeInPorts, c.dport as u32) {
        return Decision { verdict: Verdict::Inbound, rule: Counter::InListed };
    }
    pass(Counter::InDefault)
}
