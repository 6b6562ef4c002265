//! DNS over UDP: queries go to the proxy's DNS server, answers seem to come from the server
//! that was asked. (DNS over TCP is a connection like any other.)

use crate::bound::{ALLOW, Bound, EINVAL, effective, is_martian, refuse};
use crate::ctx::{IPPROTO_UDP, Sock, SockAddr, opaque};
use crate::maps::{self, Active, count};
use crate::{netns, owner, storage};
use redirector_common::Addr;
use redirector_common::abi::{SockState, sock_kind};
use redirector_common::counter::Counter;
use redirector_common::decide::{self, Outgoing, Verdict};
use redirector_common::policy::flag;

const ENOBUFS: u16 = 105;

/// connect() of a UDP socket. `active`: the policy captures DNS.
#[inline(always)]
pub fn connect(ctx: &SockAddr, active: &Active, socket6: bool) -> Result<(), u16> {
    let Some(sk) = ctx.sock() else { return Ok(()) };
    let state = storage::get(sk);
    let bound = Bound::of(sk, socket6, state.as_ref().is_some_and(|s| s.bound_by_us != 0));
    let Some(captured) = captured(ctx, active, sk, socket6, &bound)? else {
        if let Some(state) = state {
            state.kind = sock_kind::NONE;
            if bound.ours {
                if socket6 {
                    ctx.bind6(&Addr::UNSPECIFIED)
                } else {
                    ctx.bind4(&Addr::v4(0))
                };
            }
        }
        return Ok(());
    };
    let state = remember(sk, &captured)?;
    let source = &captured.source;
    if bound.addr.is_unspecified() && bound.port == 0 && !source.is_unspecified() && !source.is_loopback() {
        let done = if socket6 { ctx.bind6(source) } else { ctx.bind4(source) };
        if done {
            state.bound_by_us = 1;
        } else {
            count(Counter::SourceNotBound);
        }
    }
    rewrite(ctx, socket6, &captured.proxy, captured.proxy_port);
    Ok(())
}

pub fn sendmsg4(ctx: &SockAddr) -> i32 {
    match sendmsg(ctx, false) {
        Ok(()) => ALLOW,
        Err(errno) => refuse(errno),
    }
}

pub fn sendmsg6(ctx: &SockAddr) -> i32 {
    match sendmsg(ctx, true) {
        Ok(()) => ALLOW,
        Err(errno) => refuse(errno),
    }
}

/// sendto() and sendmsg() with a destination of their own.
#[inline(always)]
fn sendmsg(ctx: &SockAddr, socket6: bool) -> Result<(), u16> {
    let Some(active) = dns_policy(ctx) else { return Ok(()) };
    let Some(sk) = ctx.sock() else { return Ok(()) };
    let bound = Bound::of(sk, socket6, false);
    let Some(captured) = captured(ctx, &active, sk, socket6, &bound)? else { return Ok(()) };
    // A connected socket keeps its peer.
    if sk.peer_port() == 0 {
        remember(sk, &captured)?;
    }
    // The proxy sees the address the query would have come from.
    let source = &captured.source;
    if bound.addr.is_unspecified() && !source.is_unspecified() && !source.is_loopback() {
        if socket6 { ctx.set_source6(source) } else { ctx.set_source4(source) }
    }
    rewrite(ctx, socket6, &captured.proxy, captured.proxy_port);
    Ok(())
}

pub fn recvmsg4(ctx: &SockAddr) {
    if let Some(state) = answered(ctx, ctx.ip4()) {
        ctx.set_ip4(&state.orig);
        ctx.set_port(state.orig_port);
    }
}

pub fn recvmsg6(ctx: &SockAddr) {
    if let Some(state) = answered(ctx, ctx.ip6()) {
        ctx.set_ip6(&state.orig);
        ctx.set_port(state.orig_port);
    }
}

/// The state of a socket that asked and now hears from the proxy's DNS server. With queries to
/// several servers in flight the last one that was asked is reported.
#[inline(always)]
fn answered(ctx: &SockAddr, from: Addr) -> Option<&'static SockState> {
    let state = storage::get(ctx.sock()?)?;
    let redirected = state.kind == sock_kind::REDIRECTED;
    (redirected && ctx.port() == state.proxy_port && from.same(&state.proxy)).then_some(&*state)
}

/// The policy in force if it captures DNS and the socket is one of ours.
#[inline(always)]
fn dns_policy(ctx: &SockAddr) -> Option<Active> {
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
fn captured(
    ctx: &SockAddr,
    active: &Active,
    sk: Sock,
    socket6: bool,
    bound: &Bound,
) -> Result<Option<Captured>, u16> {
    let dport = ctx.port();
    if dport != 53 {
        return Ok(None);
    }
    let dst = opaque(effective(if socket6 { ctx.ip6() } else { ctx.ip4() }, bound));
    if !dst.is_v4() && !active.has(flag::IPV6) {
        return Ok(None);
    }
    let route = &opaque(*maps::route_or_unknown(active, dst));
    let source = route.source_for(&dst);
    let (uid, gid) = owner::of(sk);
    let outgoing = opaque(Outgoing {
        dst,
        dport,
        src: if bound.addr.is_unspecified() { source } else { bound.addr },
        tcp: false,
        lo: route.local != 0 || dst.is_loopback(),
        oif: route.oif,
        uid,
        gid,
        proxy: active.has(flag::PROXY_CGROUP) && owner::is_in_cgroup(sk, active.policy.proxy_cgroup),
        mark: sk.mark(),
    });
    let decision = opaque(decide::outgoing(active.policy, active, &outgoing));
    if decision.verdict as u16 != Verdict::Dns as u16 {
        count(decision.rule);
        return Ok(None);
    }
    if is_martian(&dst, &bound.addr, route, outgoing.lo) {
        count(Counter::RefusedByRoute);
        return Err(EINVAL);
    }
    if route.errno != 0 {
        count(Counter::RefusedByRoute);
        return Err(route.errno);
    }
    count(decision.rule);
    let proxy = dst.localhost();
    let proxy_port = active.policy.dns_port;
    Ok(Some(Captured { dst, dport, source, rule: decision.rule, proxy, proxy_port }))
}

/// Stores whom the socket has asked. Without memory for it the answer would come from a stranger.
#[inline(always)]
fn remember(sk: Sock, c: &Captured) -> Result<&'static mut SockState, u16> {
    let Some(state) = storage::get_or_create(sk) else {
        count(Counter::RefusedUnstored);
        return Err(ENOBUFS);
    };
    *state = SockState {
        kind: sock_kind::REDIRECTED,
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

#[inline(always)]
fn rewrite(ctx: &SockAddr, socket6: bool, addr: &Addr, port: u16) {
    if socket6 {
        ctx.set_ip6(addr);
    } else {
        ctx.set_ip4(addr);
    }
    ctx.set_port(port);
}
