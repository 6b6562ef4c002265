//! DNS over UDP: queries go to the proxy's DNS server, answers seem to come from the server
//! that was asked. (DNS over TCP is a connection like any other.)

use redirector_common::abi::{EventKind, SockKind, SockState, flag};
use redirector_common::rule::{Counter, Verdict};

use super::outbound::Outbound;
use super::{ALLOW, ENOBUFS, refuse};
use crate::active_policy::ActivePolicy;
use crate::ctx::{IPPROTO_UDP, OfSocket, Sock, SockAddr};
use crate::instance::Instance;
use crate::maps;
use crate::socket_state;
use crate::source_address::{Bound, is_worth_binding};
use crate::trace;
use crate::verifier::opaque;

/// The only port that is captured.
pub const PORT: u16 = 53;

/// connect() of a UDP socket. Not `routed`: it is of IPv6, and that is not captured.
#[inline(always)]
pub fn connect(ctx: &SockAddr, sk: Sock, o: &Outbound, routed: bool) -> Result<(), u16> {
    let bound = &o.bound;
    if !routed || !is_captured(o)? {
        pass(ctx, sk, o.active.instance, bound);
        return Ok(());
    }
    let state = remember(sk, o)?;
    if bound.addr.is_unspecified() && bound.port == 0 && is_worth_binding(&o.way.source) {
        if ctx.bind(&o.way.source) {
            state.bound_by_us = 1;
        } else {
            o.active.count(Counter::SourceNotBound);
        }
    }
    ctx.set_name(&state.proxy, state.proxy_port);
    Ok(())
}

/// The socket goes its own way. What an earlier redirect left on it is undone.
#[inline(always)]
pub fn pass(ctx: &SockAddr, sk: Sock, instance: Instance, bound: &Bound) {
    if let Some(state) = socket_state::get(sk, instance) {
        state.kind = SockKind::NONE;
        bound.undo(ctx, sk, instance);
    }
}

#[inline(always)]
pub fn sendmsg(ctx: &SockAddr) -> i32 {
    match send(ctx) {
        Ok(()) => ALLOW,
        Err(errno) => refuse(errno),
    }
}

/// sendto() and sendmsg() with a destination of their own.
#[inline(always)]
fn send(ctx: &SockAddr) -> Result<(), u16> {
    let Some(active) = dns_policy(ctx) else { return Ok(()) };
    let Some(sk) = ctx.sock() else { return Ok(()) };
    if ctx.port() != PORT {
        return Ok(());
    }
    let bound = opaque(Bound::of(ctx, sk, active.instance, false));
    let o = &mut Outbound::new(active, bound, false);
    let routed = opaque(o.route(ctx, false));
    let sent = if routed {
        o.decide(sk);
        redirect(ctx, sk, o)
    } else {
        Ok(())
    };
    let outcome = if routed { sent.err().unwrap_or(0).into() } else { trace::UNDECIDED };
    trace::outgoing(ctx, o, EventKind::SEND, outcome);
    sent
}

#[inline(always)]
fn redirect(ctx: &SockAddr, sk: Sock, o: &Outbound) -> Result<(), u16> {
    if !is_captured(o)? {
        return Ok(());
    }
    // A connected socket keeps its peer.
    if sk.peer_port() == 0 {
        remember(sk, o)?;
    }
    // The proxy sees the address the query would have come from.
    if o.bound.addr.is_unspecified() && is_worth_binding(&o.way.source) {
        ctx.set_source(&o.way.source);
    }
    ctx.set_name(&o.dst.localhost(), o.active.policy.dns_port);
    Ok(())
}

/// Names the server that was asked, if the proxy's DNS server answers. With queries to
/// several servers in flight the last one that was asked is reported.
#[inline(always)]
pub fn recvmsg(ctx: &SockAddr) {
    let Some(sk) = ctx.sock() else { return };
    if !socket_state::has_any(sk) {
        return;
    }
    let Some(state) = Instance::of(ctx).and_then(|instance| socket_state::get(sk, instance)) else { return };
    let redirected = state.kind == SockKind::REDIRECTED;
    if redirected && ctx.port() == state.proxy_port && ctx.addr().same(&state.proxy) {
        ctx.set_name(&state.orig, state.orig_port);
    }
}

/// The policy in force if it captures DNS and the socket is one of ours.
#[inline(always)]
fn dns_policy(ctx: &SockAddr) -> Option<ActivePolicy> {
    if !maps::may_have(flag::DNS) || ctx.protocol() != IPPROTO_UDP {
        return None;
    }
    Instance::of(ctx)?.active().filter(|active| active.has(flag::DNS))
}

/// Whether the query goes to the proxy; the errno of routing, which comes first.
#[inline(always)]
fn is_captured(o: &Outbound) -> Result<bool, u16> {
    if o.decision.verdict as u16 != Verdict::Dns as u16 {
        o.active.count(o.decision.rule);
        return Ok(false);
    }
    if o.errno != 0 {
        o.active.count(Counter::RefusedByRoute);
        return Err(o.errno);
    }
    o.active.count(o.decision.rule);
    Ok(true)
}

/// Stores whom the socket has asked. Without memory for it the answer would come from a stranger.
#[inline(always)]
fn remember(sk: Sock, o: &Outbound) -> Result<&'static mut SockState, u16> {
    let Some(state) = socket_state::get_or_create(sk, o.active.instance) else {
        o.active.count(Counter::RefusedUnstored);
        return Err(ENOBUFS);
    };
    *state = SockState {
        kind: SockKind::REDIRECTED,
        bound_by_us: state.bound_by_us,
        pending: 0,
        verdict: Verdict::Dns as u16,
        orig: o.dst,
        proxy: o.dst.localhost(),
        orig_port: o.dport,
        proxy_port: o.active.policy.dns_port,
        rule: o.decision.rule as u32,
        instance: o.active.instance.generation,
    };
    Ok(state)
}
