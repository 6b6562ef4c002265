//! The outbound decision about a socket that connects or sends.

use redirector_common::Addr;
use redirector_common::abi::flag;
use redirector_common::decision::{self, Decision, Outgoing};
use redirector_common::routing::{self, Way, effective};
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
    pub dport: u16,
    /// By which routing refuses it, 0 if it does not.
    pub errno: u16,
    pub dst: Addr,
    pub way: Way,
    pub decision: Decision,
}

impl Outbound {
    /// Before it is routed. (Not with zeroes for addresses: LLVM would call memset.)
    #[inline(always)]
    pub fn new(active: ActivePolicy, bound: Bound, tcp: bool) -> Self {
        Self {
            active,
            bound,
            tcp,
            dport: 0,
            errno: 0,
            dst: bound.addr,
            way: Way { source: bound.addr, oif: 0, lo: false },
            decision: Decision::by(Counter::OutDefault),
        }
    }

    /// Where the kernel sends it. False if the policy is not about the destination's family.
    ///
    /// An address may have left the namespace since user space read the routes: the host that has it now must not be reached
    /// past the proxy. The kernel knows: it binds the socket to the address, which would be the source anyway. Where the
    /// application has bound the socket the snapshot is believed.
    #[inline(always)]
    pub fn route(&mut self, ctx: &SockAddr, tcp: bool) -> bool {
        let bound = &self.bound.addr;
        let dst = opaque(effective(ctx.addr(), bound));
        if !dst.is_v4() && !self.active.has(flag::IPV6) {
            return false;
        }
        let route = opaque(*self.active.route(dst));
        let way = opaque(Way::of(&route, &dst));
        let refusal = if tcp {
            routing::unroutable(&dst, bound, &route, way.lo)
        } else {
            routing::refused(&dst, bound, &route, way.lo)
        };
        let own = tcp && self.can_be_bound_to(&dst, &way);
        let here = own && ctx.bind(&dst);
        let left = opaque(own && !here);
        self.bound.ours = opaque(self.bound.ours | here);
        self.errno = opaque(refusal.unwrap_or(0) | (u16::from(left) * ENETUNREACH));
        let way = Way { lo: way.lo & !left, ..way };
        (self.dst, self.dport, self.way) = (opaque(dst), ctx.port(), opaque(way));
        true
    }

    /// Whether the destination is an address of the namespace, as far as user space knows, to which an unbound socket can be bound.
    /// (IPv6 binds none to local prefixes and anycast addresses, `inet6_bind`, whose source is another; to a link-local one it
    /// takes the interface.)
    #[inline(always)]
    fn can_be_bound_to(&self, dst: &Addr, way: &Way) -> bool {
        let own = way.lo && !dst.is_loopback() && !dst.is_link_local();
        let unbound = self.bound.addr.is_unspecified() && self.bound.port == 0;
        own && unbound && (dst.is_v4() || way.source.same(dst))
    }

    /// Decides about what is routed.
    #[inline(always)]
    pub fn decide(&mut self, sk: Sock) {
        let active = &self.active;
        let owner = opaque(socket_owner::of(sk, active));
        let mut packet = Outgoing::routed(self.tcp, &self.bound.addr, self.dst, self.dport, self.way, owner);
        packet.src = opaque(packet.src);
        self.decision = opaque(decision::outgoing(active.policy, active, &packet));
    }
}
