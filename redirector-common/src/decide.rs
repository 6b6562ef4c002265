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
    /// Whether every bit of `bits` is set in the policy's flags.
    #[inline(always)]
    fn has(&self, policy: &Policy, bits: u32) -> bool {
        policy.has(bits)
    }
    /// Reads a value. The kernel side reads memory anew each time: of a value in a register the
    /// verifier remembers what was tested, and follows each combination of outcomes on its own.
    #[inline(always)]
    fn fresh<T: Copy>(&self, value: &T) -> T {
        *value
    }
    /// The same decision. The kernel side makes the verifier forget how it came about, so that
    /// it follows what comes next once and not once for each rule.
    #[inline(always)]
    fn join(&self, decision: Decision) -> Decision {
        decision
    }
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

/// Which traffic the proxy's listener on a port takes. One port may take several kinds (`-p` and `-z` may be equal); its
/// listeners are registered under the first of them.
#[inline(always)]
pub const fn traffic_of_port(policy: &Policy, port: u16) -> Option<Verdict> {
    if port == policy.outbound_port {
        Some(Verdict::Outbound)
    } else if port == policy.inbound_port {
        Some(Verdict::Inbound)
    } else if port == policy.dns_port {
        Some(Verdict::Dns)
    } else {
        None
    }
}

/// The kind of traffic (as a number) under which the listeners for a verdict are registered.
#[inline(always)]
pub const fn registered_as(policy: &Policy, verdict: u32) -> u32 {
    let port = if verdict == Verdict::Inbound as u32 {
        policy.inbound_port
    } else if verdict == Verdict::Dns as u32 {
        policy.dns_port
    } else {
        return verdict;
    };
    match traffic_of_port(policy, port) {
        Some(first) => first as u32,
        None => verdict,
    }
}

/// A verdict and the rule that decided; the rule is the counter's index.
#[repr(C)]
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
    /// The socket was created in the proxy's cgroup.
    pub proxy: bool,
    /// SO_MARK of the socket.
    pub mark: u32,
}

#[inline(always)]
const fn pass(rule: Counter) -> Decision {
    Decision { verdict: Verdict::Pass, rule }
}

/// nat OUTPUT → ISTIO_OUTPUT, first match wins; in TPROXY mode also mangle OUTPUT, and mangle
/// PREROUTING for what it has marked.
#[inline(always)]
pub fn outgoing<F: Facts>(p: &Policy, facts: &F, c: &Outgoing) -> Decision {
    let decision = facts.join(nat_output(p, facts, c));
    if !facts.has(p, flag::TPROXY) || decision.verdict as u16 != Verdict::Pass as u16 {
        return decision;
    }
    // Excluded interfaces are excluded in mangle too.
    if facts.has(p, flag::HAS_EXCLUDE_INTERFACES)
        && facts.listed(Table::ExcludeInterfaces, facts.fresh(&c.oif))
    {
        return decision;
    }
    if is_marked(p, facts, c) && is_inbound_port(p, facts, facts.fresh(&c.dport)) {
        return Decision { verdict: Verdict::Inbound, rule: Counter::OutTproxyLoopback };
    }
    decision
}

/// mangle OUTPUT marks the proxy's own traffic on lo to a non-loopback destination (1338), so
/// that mangle PREROUTING takes it inbound; but not what carries the client's source (1337),
/// nor what comes from 127.0.0.6.
#[inline(always)]
fn is_marked<F: Facts>(p: &Policy, facts: &F, c: &Outgoing) -> bool {
    let passthrough =
        facts.fresh(&c.src).same(&Addr::PASSTHROUGH_V4) || facts.fresh(&c.src).same(&Addr::PASSTHROUGH_V6);
    facts.fresh(&c.lo)
        && facts.fresh(&c.tcp)
        && facts.fresh(&c.mark) != p.tproxy_mark
        && !passthrough
        && !p.is_loopback_exempt(&facts.fresh(&c.dst))
        && (is_proxy_cgroup(p, facts, c) || is_proxy_uid(p, facts, c) || is_proxy_gid(p, facts, c))
}

#[inline(always)]
fn is_proxy_cgroup<F: Facts>(p: &Policy, facts: &F, c: &Outgoing) -> bool {
    facts.has(p, flag::PROXY_CGROUP) && facts.fresh(&c.proxy)
}

#[inline(always)]
fn is_proxy_uid<F: Facts>(p: &Policy, facts: &F, c: &Outgoing) -> bool {
    facts.has(p, flag::HAS_UIDS)
        && (facts.fresh(&c.uid) == p.first_uid
            || (facts.has(p, flag::HAS_MORE_UIDS) && facts.listed(Table::ProxyUids, facts.fresh(&c.uid))))
}

#[inline(always)]
fn is_proxy_gid<F: Facts>(p: &Policy, facts: &F, c: &Outgoing) -> bool {
    facts.has(p, flag::HAS_GIDS)
        && (facts.fresh(&c.gid) == p.first_gid
            || (facts.has(p, flag::HAS_MORE_GIDS) && facts.listed(Table::ProxyGids, facts.fresh(&c.gid))))
}

/// The ports of mangle ISTIO_INBOUND.
#[inline(always)]
fn is_inbound_port<F: Facts>(p: &Policy, facts: &F, port: u16) -> bool {
    if facts.has(p, flag::INBOUND_ALL) {
        return !(facts.has(p, flag::HAS_EXCLUDE_IN_PORTS)
            && facts.listed(Table::ExcludeInPorts, port as u32));
    }
    facts.has(p, flag::INBOUND_LIST) && facts.listed(Table::IncludeInPorts, port as u32)
}

#[inline(always)]
fn nat_output<F: Facts>(p: &Policy, facts: &F, c: &Outgoing) -> Decision {
    if facts.has(p, flag::HAS_EXCLUDE_INTERFACES)
        && facts.listed(Table::ExcludeInterfaces, facts.fresh(&c.oif))
    {
        return pass(Counter::OutExcludedInterface);
    }
    if facts.has(p, flag::HAS_EXCLUDE_OUT_PORTS)
        && facts.listed(Table::ExcludeOutPorts, facts.fresh(&c.dport) as u32)
    {
        return pass(Counter::OutExcludedPort);
    }
    if facts.fresh(&c.lo)
        && (facts.fresh(&c.src).same(&Addr::PASSTHROUGH_V4)
            || facts.fresh(&c.src).same(&Addr::PASSTHROUGH_V6))
    {
        return pass(Counter::OutPassthroughSource);
    }

    // The rules of one user, in turn: own traffic on lo → inbound, others' traffic on lo passes,
    // own traffic passes. The second rule of the first user ends it for every other user on lo,
    // so that only the first is ever asked there (unless -i holds a loopback prefix). After any
    // user, it never matches for a group.
    //
    // The cgroup of the proxy is redirector's own, and counts as a user before the first.
    if facts.has(p, flag::PROXY_CGROUP) {
        if facts.fresh(&c.proxy) {
            return of_proxy_cgroup(p, facts, c);
        }
        if others_pass(p, facts, c) {
            return pass(Counter::OutNotProxyCgroupLoopback);
        }
    }
    if facts.has(p, flag::HAS_UIDS) {
        if facts.fresh(&c.uid) == p.first_uid {
            return of_proxy_uid(p, facts, c);
        }
        if others_pass(p, facts, c) {
            return pass(Counter::OutNotProxyUidLoopback);
        }
        if facts.has(p, flag::HAS_MORE_UIDS) && facts.listed(Table::ProxyUids, facts.fresh(&c.uid)) {
            return of_proxy_uid(p, facts, c);
        }
    }
    if facts.has(p, flag::HAS_GIDS) {
        if facts.fresh(&c.gid) == p.first_gid {
            return of_proxy_gid(p, facts, c);
        }
        if others_pass(p, facts, c) {
            return pass(Counter::OutNotProxyGidLoopback);
        }
        if facts.has(p, flag::HAS_MORE_GIDS) && facts.listed(Table::ProxyGids, facts.fresh(&c.gid)) {
            return of_proxy_gid(p, facts, c);
        }
    }

    if facts.has(p, flag::HAS_OWNER_GROUPS_EXCLUDE)
        && facts.listed(Table::OwnerGroupsExclude, facts.fresh(&c.gid))
    {
        return pass(Counter::OutOwnerGroupExcluded);
    }
    if facts.has(p, flag::OWNER_GROUPS_LIST) && !facts.listed(Table::OwnerGroups, facts.fresh(&c.gid)) {
        return pass(Counter::OutOwnerGroupNotIncluded);
    }
    let dns = facts.fresh(&c.dport) == 53 && facts.has(p, flag::DNS);
    if dns && (facts.has(p, flag::DNS_ALL) || facts.covered(Table::DnsServers, &facts.fresh(&c.dst))) {
        return Decision { verdict: Verdict::Dns, rule: Counter::OutDns };
    }
    if p.is_loopback_exempt(&facts.fresh(&c.dst)) {
        return pass(Counter::OutLoopback);
    }
    if facts.has(p, flag::HAS_EXCLUDE_CIDRS) && facts.covered(Table::ExcludeCidrs, &facts.fresh(&c.dst)) {
        return pass(Counter::OutExcludedCidr);
    }
    if !facts.fresh(&c.tcp) {
        return pass(Counter::OutDefault);
    }
    if facts.has(p, flag::HAS_INCLUDE_OUT_PORTS)
        && facts.listed(Table::IncludeOutPorts, facts.fresh(&c.dport) as u32)
    {
        return Decision { verdict: Verdict::Outbound, rule: Counter::OutIncludedPort };
    }
    if facts.has(p, flag::OUTBOUND_ALL) {
        return Decision { verdict: Verdict::Outbound, rule: Counter::OutAll };
    }
    if facts.has(p, flag::HAS_INCLUDE_CIDRS) && facts.covered(Table::IncludeCidrs, &facts.fresh(&c.dst)) {
        return Decision { verdict: Verdict::Outbound, rule: Counter::OutIncludedCidr };
    }
    pass(Counter::OutDefault)
}

/// The proxy calls its own pod: redirected to the inbound listener. With DNS capture the rule of
/// a user or the cgroup, but not that of a group, leaves out port 53.
#[inline(always)]
fn of_proxy_cgroup<F: Facts>(p: &Policy, facts: &F, c: &Outgoing) -> Decision {
    if is_self_call(p, facts, c) && !is_captured_dns(p, facts, c) {
        Decision { verdict: Verdict::Inbound, rule: Counter::OutProxyCgroupLoopback }
    } else {
        pass(Counter::OutProxyCgroup)
    }
}

#[inline(always)]
fn of_proxy_uid<F: Facts>(p: &Policy, facts: &F, c: &Outgoing) -> Decision {
    if is_self_call(p, facts, c) && !is_captured_dns(p, facts, c) {
        Decision { verdict: Verdict::Inbound, rule: Counter::OutProxyUidLoopback }
    } else {
        pass(Counter::OutProxyUid)
    }
}

#[inline(always)]
fn of_proxy_gid<F: Facts>(p: &Policy, facts: &F, c: &Outgoing) -> Decision {
    if is_self_call(p, facts, c) {
        Decision { verdict: Verdict::Inbound, rule: Counter::OutProxyGidLoopback }
    } else {
        pass(Counter::OutProxyGid)
    }
}

#[inline(always)]
fn is_captured_dns<F: Facts>(p: &Policy, facts: &F, c: &Outgoing) -> bool {
    facts.fresh(&c.dport) == 53 && facts.has(p, flag::DNS)
}

#[inline(always)]
fn is_self_call<F: Facts>(p: &Policy, facts: &F, c: &Outgoing) -> bool {
    facts.fresh(&c.lo)
        && facts.fresh(&c.tcp)
        && facts.fresh(&c.dport) != p.tunnel_port
        && !p.is_loopback_exempt(&facts.fresh(&c.dst))
}

/// The app's own traffic on lo passes; with DNS capture only TCP, and not to port 53.
#[inline(always)]
fn others_pass<F: Facts>(p: &Policy, facts: &F, c: &Outgoing) -> bool {
    facts.fresh(&c.lo)
        && !facts.has(p, flag::LOOPBACK_INCLUDED)
        && ((facts.fresh(&c.tcp) && facts.fresh(&c.dport) != 53) || !facts.has(p, flag::DNS))
}

/// Whether `-i` names the destination: all that counts for what enters a virtual interface.
#[inline(always)]
pub fn is_included<F: Facts>(p: &Policy, facts: &F, dst: &Addr) -> bool {
    facts.has(p, flag::OUTBOUND_ALL)
        || (facts.has(p, flag::HAS_INCLUDE_CIDRS) && facts.covered(Table::IncludeCidrs, dst))
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
    /// The destination is an address of the namespace. Of others only what enters a virtual
    /// interface is delivered here, by the routes that user space makes for it.
    pub local: bool,
}

/// nat PREROUTING → ISTIO_INBOUND, or mangle PREROUTING in TPROXY mode. First match wins.
#[inline(always)]
pub fn incoming<F: Facts>(p: &Policy, facts: &F, c: &Incoming) -> Decision {
    // The routes know the interface by its name, so it may be younger than the list.
    if facts.has(p, flag::HAS_VIRTUAL_INTERFACES)
        && (!facts.fresh(&c.local) || facts.listed(Table::VirtualInterfaces, facts.fresh(&c.iif)))
    {
        return if is_included(p, facts, &facts.fresh(&c.dst)) {
            Decision { verdict: Verdict::Outbound, rule: Counter::InVirtualCaptured }
        } else {
            pass(Counter::InVirtualPassed)
        };
    }
    if facts.has(p, flag::HAS_EXCLUDE_INTERFACES)
        && facts.listed(Table::ExcludeInterfaces, facts.fresh(&c.iif))
    {
        return pass(Counter::InExcludedInterface);
    }
    // TPROXY's chain has no rule for the tunnel port.
    let inbound = facts.has(p, flag::INBOUND_ALL) || facts.has(p, flag::INBOUND_LIST);
    if inbound && !facts.has(p, flag::TPROXY) && facts.fresh(&c.dport) == p.tunnel_port {
        return pass(Counter::InTunnel);
    }
    if facts.has(p, flag::INBOUND_ALL) {
        if facts.has(p, flag::HAS_EXCLUDE_IN_PORTS)
            && facts.listed(Table::ExcludeInPorts, facts.fresh(&c.dport) as u32)
        {
            return pass(Counter::InExcludedPort);
        }
        return Decision { verdict: Verdict::Inbound, rule: Counter::InAll };
    }
    if facts.has(p, flag::INBOUND_LIST) && facts.listed(Table::IncludeInPorts, facts.fresh(&c.dport) as u32) {
        return Decision { verdict: Verdict::Inbound, rule: Counter::InListed };
    }
    pass(Counter::InDefault)
}
