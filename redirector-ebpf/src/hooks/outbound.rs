//! The outbound decision about a socket that connects or sends.

use redirector_common::Addr;
use redirector_common::abi::{Route, flag};
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
        let (active, bound) = (&self.active, &mut self.bound);
        let dst = opaque(effective(ctx.addr(), &bound.addr));
        if !dst.is_v4() && !active.has(flag::IPV6) {
            return false;
        }
        let mut route = opaque(*active.route(dst));
        if self.tcp && is_gone(ctx, bound, &dst, &route) {
            (route.local, route.errno) = opaque((0, ENETUNREACH));
        }
        let owner = socket_owner::of(sk, active);
        let packet = opaque(Outgoing::routed(self.tcp, &bound.addr, dst, ctx.port(), &route, owner));
        let errno = if self.tcp {
            routing::unroutable(&dst, &bound.addr, &route, packet.lo)
        } else {
            routing::refused(&dst, &bound.addr, &route, packet.lo)
        };
        self.errno = opaque(errno.unwrap_or(0));
        self.source = opaque(route.source_for(&dst));
        (self.dst, self.dport, self.lo) = (dst, packet.dport, packet.lo);
        self.decision = opaque(decision::outgoing(active.policy, active, &packet));
        true
    }
}

/// Whether an address of the namespace has left it since user space read the routes: the host that has it now must not be
/// reached past the proxy. The kernel knows: it binds the socket to the address, which would be the source anyway.
/// Where the application has bound the socket, or the address is link-local (a bind takes the interface), the snapshot
/// is believed; and of local prefixes and anycast addresses, which IPv6 binds to no socket (`inet6_bind`).
#[inline(always)]
fn is_gone(ctx: &SockAddr, bound: &mut Bound, dst: &Addr, route: &Route) -> bool {
    let own = route.local != 0 && route.source.is_unspecified() && !dst.is_loopback();
    if !own || !bound.addr.is_unspecified() || bound.port != 0 || dst.is_link_local() {
        return false;
    }
    let is_bound = opaque(ctx.bind(dst));
    bound.ours |= is_bound;
    !is_bound
}
