//! OUTPUT → ISTIO_OUTPUT: connections of the pod's own sockets.

use super::{Decision, Lists, Question, fields};
use crate::Addr;
use crate::abi::{List, Policy, flag};
use crate::rule::Counter::{self, *};

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
    /// fsuid of the socket's file, [`crate::routing::Owner::NOBODY`] if it has none.
    pub uid: u32,
    /// fsgid of the socket's file.
    pub gid: u32,
    /// The socket was created in the proxy's cgroup.
    pub proxy: bool,
    /// SO_MARK of the socket.
    pub mark: u32,
}

/// nat OUTPUT → ISTIO_OUTPUT; in TPROXY mode also mangle OUTPUT, and mangle PREROUTING for what OUTPUT has marked.
#[inline(always)]
pub fn outgoing<L: Lists>(policy: &Policy, lists: &L, connection: &Outgoing) -> Decision {
    let c = Question { policy, lists, connection };
    let decision = lists.join(c.nat_output());
    if c.has(flag::TPROXY) && decision.is_pass() && c.mangle_captures() {
        return Decision::by(OutTproxyLoopback);
    }
    decision
}

/// The three rules of a user, a group or a cgroup, in turn: own traffic on lo → inbound, others' traffic on lo passes,
/// own traffic passes. The second rule of the first user ends it for every other user on lo, so that only the first is
/// ever asked there (unless `-i` holds a loopback prefix). After any user, it never matches for a group.
struct OwnerRules {
    on_lo: Counter,
    others_on_lo: Counter,
    own: Counter,
    /// With DNS capture the first rule leaves out port 53.
    spares_dns: bool,
}

/// redirector's own: the cgroup counts as a user before the first.
const PROXY_CGROUP: OwnerRules = OwnerRules {
    on_lo: OutProxyCgroupLoopback,
    others_on_lo: OutNotProxyCgroupLoopback,
    own: OutProxyCgroup,
    spares_dns: true,
};
const PROXY_UID: OwnerRules = OwnerRules {
    on_lo: OutProxyUidLoopback,
    others_on_lo: OutNotProxyUidLoopback,
    own: OutProxyUid,
    spares_dns: true,
};
const PROXY_GID: OwnerRules = OwnerRules {
    on_lo: OutProxyGidLoopback,
    others_on_lo: OutNotProxyGidLoopback,
    own: OutProxyGid,
    spares_dns: false,
};

impl<L: Lists> Question<'_, L, Outgoing> {
    /// First match wins.
    #[inline(always)]
    fn nat_output(&self) -> Decision {
        if let Some(rule) = self.excluded() {
            return rule;
        }
        if let Some(rule) = self.by_owner() {
            return rule;
        }
        if let Some(rule) = self.by_owner_group() {
            return rule;
        }
        if self.is_captured_dns() {
            return Decision::by(OutDns);
        }
        self.by_destination()
    }

    /// What no owner matters for.
    #[inline(always)]
    fn excluded(&self) -> Option<Decision> {
        if self.in_list(List::ExcludeInterfaces, self.oif()) {
            return Some(Decision::by(OutExcludedInterface));
        }
        if self.in_list(List::ExcludeOutPorts, self.dport().into()) {
            return Some(Decision::by(OutExcludedPort));
        }
        if self.lo() && self.is_from_passthrough() {
            return Some(Decision::by(OutPassthroughSource));
        }
        None
    }

    /// The proxy's cgroup, users and groups.
    #[inline(always)]
    fn by_owner(&self) -> Option<Decision> {
        if self.has(flag::PROXY_CGROUP)
            && let Some(rule) = self.rules_of(&PROXY_CGROUP, self.proxy(), || false)
        {
            return Some(rule);
        }
        if self.has(flag::HAS_UIDS)
            && let Some(rule) = self.rules_of(&PROXY_UID, self.uid() == self.policy.first_uid, || {
                self.in_list(List::ProxyUids, self.uid())
            })
        {
            return Some(rule);
        }
        if self.has(flag::HAS_GIDS)
            && let Some(rule) = self.rules_of(&PROXY_GID, self.gid() == self.policy.first_gid, || {
                self.in_list(List::ProxyGids, self.gid())
            })
        {
            return Some(rule);
        }
        None
    }

    /// The rules of the first owner of a kind, then those of the others.
    #[inline(always)]
    fn rules_of(
        &self,
        rules: &OwnerRules,
        is_first: bool,
        is_other: impl FnOnce() -> bool,
    ) -> Option<Decision> {
        if is_first {
            return Some(self.own(rules));
        }
        if self.others_pass() {
            return Some(Decision::by(rules.others_on_lo));
        }
        is_other().then(|| self.own(rules))
    }

    /// What is the proxy's own: a call of its own pod is redirected to the inbound listener.
    #[inline(always)]
    fn own(&self, rules: &OwnerRules) -> Decision {
        if self.is_self_call() && !(rules.spares_dns && self.is_dns()) {
            Decision::by(rules.on_lo)
        } else {
            Decision::by(rules.own)
        }
    }

    #[inline(always)]
    fn by_owner_group(&self) -> Option<Decision> {
        if self.in_list(List::OwnerGroupsExclude, self.gid()) {
            return Some(Decision::by(OutOwnerGroupExcluded));
        }
        if self.has(flag::OWNER_GROUPS_LIST) && !self.lists.holds(List::OwnerGroups, self.gid()) {
            return Some(Decision::by(OutOwnerGroupNotIncluded));
        }
        None
    }

    /// The rules about addresses; all that redirect are about TCP.
    #[inline(always)]
    fn by_destination(&self) -> Decision {
        if self.policy.is_loopback_exempt(&self.dst()) {
            return Decision::by(OutLoopback);
        }
        if self.in_networks(List::ExcludeCidrs, &self.dst()) {
            return Decision::by(OutExcludedCidr);
        }
        if !self.tcp() {
            return Decision::by(OutDefault);
        }
        if self.in_list(List::IncludeOutPorts, self.dport().into()) {
            return Decision::by(OutIncludedPort);
        }
        if self.has(flag::OUTBOUND_ALL) {
            return Decision::by(OutAll);
        }
        if self.in_networks(List::IncludeCidrs, &self.dst()) {
            return Decision::by(OutIncludedCidr);
        }
        Decision::by(OutDefault)
    }

    /// mangle OUTPUT marks the proxy's own traffic on lo to a non-loopback destination (1338), so
    /// that mangle PREROUTING takes it inbound; but not what carries the client's source (1337), comes from 127.0.0.6 or
    /// leaves on an excluded interface.
    #[inline(always)]
    fn mangle_captures(&self) -> bool {
        !self.in_list(List::ExcludeInterfaces, self.oif())
            && self.lo()
            && self.tcp()
            && self.mark() != self.policy.tproxy_mark
            && !self.is_from_passthrough()
            && !self.policy.is_loopback_exempt(&self.dst())
            && self.is_proxys()
            && self.is_inbound_port(self.dport())
    }

    #[inline(always)]
    fn is_proxys(&self) -> bool {
        self.has(flag::PROXY_CGROUP) && self.proxy()
            || self.has(flag::HAS_UIDS)
                && (self.uid() == self.policy.first_uid || self.in_list(List::ProxyUids, self.uid()))
            || self.has(flag::HAS_GIDS)
                && (self.gid() == self.policy.first_gid || self.in_list(List::ProxyGids, self.gid()))
    }

    #[inline(always)]
    fn is_captured_dns(&self) -> bool {
        self.is_dns() && (self.has(flag::DNS_ALL) || self.lists.covers(List::DnsServers, &self.dst()))
    }

    #[inline(always)]
    fn is_dns(&self) -> bool {
        self.dport() == 53 && self.has(flag::DNS)
    }

    #[inline(always)]
    fn is_self_call(&self) -> bool {
        self.lo()
            && self.tcp()
            && self.dport() != self.policy.tunnel_port
            && !self.policy.is_loopback_exempt(&self.dst())
    }

    /// The app's own traffic on lo passes; with DNS capture only TCP, and not to port 53.
    #[inline(always)]
    fn others_pass(&self) -> bool {
        self.lo()
            && !self.has(flag::LOOPBACK_INCLUDED)
            && ((self.tcp() && self.dport() != 53) || !self.has(flag::DNS))
    }

    #[inline(always)]
    fn is_from_passthrough(&self) -> bool {
        self.src().same(&Addr::PASSTHROUGH_V4) || self.src().same(&Addr::PASSTHROUGH_V6)
    }

    fields! { dst: Addr, src: Addr, dport: u16, oif: u32, uid: u32, gid: u32, mark: u32, tcp: bool, lo: bool, proxy: bool }
}
