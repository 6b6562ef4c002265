//! DNS over UDP: queries go to the proxy's DNS server, answers seem to come from the server
//! that was asked. (DNS over TCP is a connection like any other.)

use super::{ALLOW, ENOBUFS, refuse};
use crate::ctx::{IPPROTO_UDP, Sock, SockAddr};
use crate::maps::{self, ActivePolicy, count};
use crate::source_address::{Bound, is_worth_binding};
use crate::verifier::opaque;
use crate::{netns, socket_owner, socket_state};
use redirector_common::Addr;
use redirector_common::abi::{SockKind, SockState, flag};
use redirector_common::decision::{self, Outgoing};
use redirector_common::routing::{self, effective};
use redirector_common::rule::{Counter, Verdict};

/// connect() of a UDP socket. `active`: the policy captures DNS.
#[inline(always)]
pub fn connect(ctx: &SockAddr, active: &ActivePolicy) -> Result<(), u16> {
    let Some(sk) = ctx.sock() else { return Ok(()) };
    let state = socket_state::get(sk);
    let bound = Bound::of(ctx, sk, state.as_deref());
    let Some(captured) = captured(ctx, active, sk, &bound)? else {
        if let Some(state) = state {
            state.kind = SockKind::NONE;
            bound.undo(ctx);
        }
        return Ok(());
    };
    let state = remember(sk, &captured)?;
    if bound.addr.is_unspecified() && bound.port == 0 && is_worth_binding(&captured.source) {
        if ctx.bind(&captured.source) {
            state.bound_by_us = 1;
        } else {
            count(Counter::SourceNotBound);
        }
    }
    ctx.set_name(&captured.proxy, captured.proxy_port);
    Ok(())
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
    let bound = Bound::of(ctx, sk, None);
    let Some(captured) = captured(ctx, &active, sk, &bound)? else { return Ok(()) };
    // A connected socket keeps its peer.
    if sk.peer_port() == 0 {
        remember(sk, &captured)?;
    }
    // The proxy sees the address the query would have come from.
    if bound.addr.is_unspecified() && is_worth_binding(&captured.source) {
        ctx.set_source(&captured.source);
    }
    ctx.set_name(&captured.proxy, captured.proxy_port);
    Ok(())
}

/// Names the server that was asked, if the proxy's DNS server answers. With queries to
/// several servers in flight the last one that was asked is reported.
#[inline(always)]
pub fn recvmsg(ctx: &SockAddr) {
    let Some(state) = ctx.sock().and_then(socket_state::get) else { return };
    let redirected = state.kind == SockKind::REDIRECTED;
    if redirected && ctx.port() == state.proxy_port && ctx.addr().same(&state.proxy) {
        ctx.set_name(&state.orig, state.orig_port);
    }
}

/// The policy in force if it captures DNS and the socket is one of ours.
#[inline(always)]
fn dns_policy(ctx: &SockAddr) -> Option<ActivePolicy> {
    let active = maps::active()?;
    let ours = active.has(flag::DNS) && ctx.protocol() == IPPROTO_UDP && netns::is_ours(ctx);
    ours.then_some(active)
}

/// A query that goes to the proxy.
struct Captured {
    dst: Addr,
    dport: u16,
    source: Addr,
    rule: Counter,
    proxy: Addr,
    proxy_port: u16,
}

/// None if the datagram goes its own way.
#[inline(always)]
fn captured(ctx: &SockAddr, active: &ActivePolicy, sk: Sock, bound: &Bound) -> Result<Option<Captured>, u16> {
    let dport = ctx.port();
    if dport != 53 {
        return Ok(None);
    }
    let dst = opaque(effective(ctx.addr(), &bound.addr));
    if !dst.is_v4() && !active.has(flag::IPV6) {
        return Ok(None);
    }
    let route = &opaque(*active.route(dst));
    let owner = socket_owner::of(sk, active);
    let outgoing = opaque(Outgoing::routed(false, &bound.addr, dst, dport, route, owner));
    let decision = opaque(decision::outgoing(active.policy, active, &outgoing));
    if decision.verdict as u16 != Verdict::Dns as u16 {
        count(decision.rule);
        return Ok(None);
    }
    if let Some(errno) = routing::refused(&dst, &bound.addr, route, outgoing.lo) {
        count(Counter::RefusedByRoute);
        return Err(errno);
    }
    count(decision.rule);
    Ok(Some(Captured {
        dst,
        dport,
        source: route.source_for(&dst),
        rule: decision.rule,
        proxy: dst.localhost(),
        proxy_port: active.policy.dns_port,
    }))
}

/// Stores whom the socket has asked. Without memory for it the answer would come from a stranger.
#[inline(always)]
fn remember(sk: Sock, c: &Captured) -> Result<&'static mut SockState, u16> {
    let Some(state) = socket_state::get_or_create(sk) else {
        count(Counter::RefusedUnstored);
        return Err(ENOBUFS);
    };
    *state = SockState {
        kind: SockKind::REDIRECTED,
        bound_by_us: state.bound_by_us,
        pending: 0,
        verdict: Verdict::Dns as u16,
        orig: c.dst,
        proxy: c.proxy,
        orig_port: c.dport,
        proxy_port: c.proxy_port,
        rule: c.rule as u32,
    };
    Ok(state)
}
