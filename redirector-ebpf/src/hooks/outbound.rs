//! The outbound decision about a socket that connects or sends.

use crate::ctx::{Sock, SockAddr};
use crate::maps::ActivePolicy;
use crate::socket_owner;
use crate::source_address::Bound;
use crate::verifier::opaque;
use redirector_common::Addr;
use redirector_common::abi::{Route, flag};
use redirector_common::decision::{self, Decision, Outgoing};
use redirector_common::routing::effective;

/// What a socket sends first, and the decision about it.
pub struct Outbound<'a> {
    pub active: &'a ActivePolicy,
    pub bound: &'a Bound,
    pub route: Route,
    /// The source address routing would choose.
    pub source: Addr,
    pub packet: Outgoing,
    pub decision: Decision,
}

/// None if the policy is not about the destination's family.
#[inline(always)]
pub fn decide<'a>(
    ctx: &SockAddr,
    active: &'a ActivePolicy,
    sk: Sock,
    bound: &'a Bound,
    tcp: bool,
) -> Option<Outbound<'a>> {
    let dst = opaque(effective(ctx.addr(), &bound.addr));
    if !dst.is_v4() && !active.has(flag::IPV6) {
        return None;
    }
    let route = opaque(*active.route(dst));
    let source = opaque(route.source_for(&dst));
    let owner = socket_owner::of(sk, active);
    let packet = opaque(Outgoing::routed(tcp, &bound.addr, dst, ctx.port(), &route, owner));
    let decision = opaque(decision::outgoing(active.policy, active, &packet));
    Some(Outbound { active, bound, route, source, packet, decision })
}
