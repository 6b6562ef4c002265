//! The outbound decision about a socket that connects or sends.

use redirector_common::Addr;
use redirector_common::abi::flag;
use redirector_common::decision::{self, Decision, Outgoing};
use redirector_common::routing::{self, effective};
use redirector_common::rule::Counter;

use super::ENETUNREACH;
use crate::active_policy::ActivePolicy;
use crate::ctx::{Sock, SockAddr};
use crate::socket_owner;
use crate::source_address::Bound;
use crate::verifier::opaque;

/// Where a socket sends, and the decision about it. As small as may be: it is in the frame of a hook, whose functions
/// share 512 bytes of stack with it.
pub struct Outbound {
    pub active: ActivePolicy,
    pub bound: Bound,
    pub tcp: bool,
    /// Whether its packets leave on lo.
    pub lo: bool,
    /// 0 if the kernel says that the destination is no address of the namespace any more.
    pub still_local: u16,
    pub dport: u16,
    /// By which routing refuses it, 0 if it does not.
    pub errno: u16,
    pub dst: Addr,
    /// The source address routing would choose.
    pub source: Addr,
    pub decision: Decision,
}

impl Outbound {
    /// Before the decision. (Not with zeroes for addresses: LLVM would call memset.)
    #[inline(always)]
    pub fn undecided(active: ActivePolicy, bound: Bound, tcp: bool) -> Self {
        Self {
            active,
            bound,
            tcp,
            lo: false,
            still_local: opaque(1),
            dport: 0,
            errno: 0,
            dst: bound.addr,
            source: bound.addr,
            decision: Decision::by(Counter::OutDefault),
        }
    }

    /// Decides. False if the policy is not about the destination's family.
    #[inline(always)]
    pub fn decide(&mut self, ctx: &SockAddr, sk: Sock) -> bool {
        let (active, bound) = (&self.active, &self.bound);
        let dst = opaque(effective(ctx.addr(), &bound.addr));
        if !dst.is_v4() && !active.has(flag::IPV6) {
            return false;
        }
        let mut route = opaque(*active.route(dst));
        route.local &= self.still_local;
        let owner = socket_owner::of(sk, active);
        let mut packet = Outgoing::routed(self.tcp, &bound.addr, dst, ctx.port(), &route, opaque(owner));
        packet.lo = opaque(packet.lo);
        let errno = if self.tcp {
            routing::unroutable(&dst, &bound.addr, &route, packet.lo)
        } else {
            routing::refused(&dst, &bound.addr, &route, packet.lo)
        };
        let unreachable = (self.still_local ^ 1) * ENETUNREACH;
        self.errno = opaque(errno.unwrap_or(0) | unreachable);
        self.source = opaque(route.source_for(&dst));
        (self.dst, self.dport, self.lo) = (dst, packet.dport, packet.lo);
        self.decision = opaque(decision::outgoing(active.policy, active, &packet));
        true
    }

    /// Whether the destination is an address of the namespace, as far as user space knows, to which an unbound socket can be bound.
    /// (IPv6 binds none to local prefixes and anycast addresses, `inet6_bind`, whose source is another; to a link-local one it
    /// takes the interface.)
    #[inline(always)]
    pub fn is_own(&self) -> bool {
        let own = self.tcp && self.lo && !self.dst.is_loopback() && !self.dst.is_link_local();
        let unbound = self.bound.addr.is_unspecified() && self.bound.port == 0;
        own && unbound && (self.dst.is_v4() || self.source.same(&self.dst))
    }
}
