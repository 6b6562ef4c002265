//! connect(): the outbound decision, taken once for each connection.

use super::outbound::{self, Outbound};
use super::{ALLOW, ENOBUFS, refuse, udp_dns};
use crate::ctx::{Family, IPPROTO_TCP, IPPROTO_UDP, Sock, SockAddr};
use crate::maps::{self, count};
use crate::source_address::{self, Bound, is_worth_binding};
use crate::verifier::opaque;
use crate::{listeners, netns, socket_state};
use redirector_common::Addr;
use redirector_common::abi::{SockKind, SockState, flag};
use redirector_common::routing;
use redirector_common::rule::{Counter, Verdict};

const ENETUNREACH: u16 = 101;
const ECONNREFUSED: u16 = 111;

#[inline(always)]
pub fn connect(ctx: &SockAddr) -> i32 {
    match handle(ctx) {
        Ok(()) => ALLOW,
        Err(errno) if says_unreachable(ctx, errno) => {
            ctx.set_addr(&unreachable(ctx));
            ALLOW
        }
        Err(errno) => refuse(errno),
    }
}

/// Whether to have the kernel itself say ENETUNREACH, by a destination that is never reachable: without
/// `bpf_set_retval` a refusal is EPERM, which a program that tries one address after the other may
/// take for final. Not for UDP, to which a broadcast may be reachable.
#[inline(always)]
fn says_unreachable(ctx: &SockAddr, errno: u16) -> bool {
    !maps::has_set_retval() && errno == ENETUNREACH && ctx.protocol() == IPPROTO_TCP
}

/// tcp_v4_connect refuses a broadcast route without a packet; tcp_v6_connect looks for multicast before anything else.
#[inline(always)]
fn unreachable(ctx: &SockAddr) -> Addr {
    match ctx.family {
        Family::V4 => Addr::v4(u32::MAX),
        Family::V6 => Addr::v6([0xff02_0000_u32.to_be(), 0, 0, 1_u32.to_be()]),
    }
}

#[inline(always)]
fn handle(ctx: &SockAddr) -> Result<(), u16> {
    let Some(active) = maps::active() else { return Ok(()) };
    // An MPTCP socket connects through a subflow, which is a TCP socket of its own.
    let tcp = ctx.protocol() == IPPROTO_TCP;
    let dns = ctx.protocol() == IPPROTO_UDP && active.has(flag::DNS);
    if !(tcp || dns) || !netns::is_ours(ctx) {
        return Ok(());
    }
    let Some(sk) = ctx.sock() else { return Ok(()) };
    let bound = &opaque(Bound::of(ctx, sk, socket_state::get(sk).as_deref()));
    if !tcp && ctx.port() != udp_dns::PORT {
        udp_dns::pass(ctx, sk, bound);
        return Ok(());
    }
    let tcp = opaque(tcp);
    let outbound = outbound::decide(ctx, &active, sk, bound, tcp);
    if !tcp {
        return udp_dns::connect(ctx, sk, bound, outbound.as_ref());
    }
    let Some(o) = outbound else { return Ok(()) };
    if o.decision.is_pass() {
        let kind = passing(&o);
        // By its ORIGINAL_DST entry sk_lookup tells it from a connection of the network. Without the entry it would
        // loop back to the proxy.
        if kind == SockKind::TRANSPARENT && active.is_full() {
            count(Counter::RefusedFull);
            return Err(ENOBUFS);
        }
        return pass(ctx, sk, bound, kind, o.decision.rule);
    }
    // netfilter sees a packet only after routing has accepted it, so routing's errors come first.
    if let Some(errno) = routing::unroutable(&o.packet.dst, &bound.addr, &o.route, o.packet.lo) {
        count(Counter::RefusedByRoute);
        return Err(errno);
    }
    if active.is_full() {
        count(Counter::RefusedFull);
        return Err(ENOBUFS);
    }
    redirect(ctx, sk, &o)
}

/// What a socket is whose connection passes: in TPROXY mode the proxy may connect from its client's address.
#[inline(always)]
fn passing(o: &Outbound<'_>) -> SockKind {
    let bound = &o.bound.addr;
    let transparent = o.active.has(flag::TPROXY)
        && o.packet.lo
        && !bound.is_unspecified()
        && !bound.is_loopback()
        && !o.active.is_local(*bound);
    if transparent { SockKind::TRANSPARENT } else { SockKind::PASSED }
}

/// The connection goes its own way. What an earlier redirect left on the socket is undone.
#[inline(always)]
fn pass(ctx: &SockAddr, sk: Sock, bound: &Bound, kind: SockKind, rule: Counter) -> Result<(), u16> {
    bound.undo(ctx);
    // Remembered so that SO_ORIGINAL_DST can tell a client from an accepted socket. Without
    // memory for it nothing but that answer is lost, except of a transparent one its entry.
    if let Some(state) = socket_state::get_or_create(sk) {
        state.kind = kind;
        state.pending = 1;
        state.rule = rule as u32;
        state.verdict = Verdict::Pass as u16;
        // `bound_by_us` stays: SOCK_BINDADDR_LOCK does too, and with it the kernel keeps the
        // source address of this connection over a failed connect.
    } else if kind == SockKind::TRANSPARENT {
        count(Counter::RefusedUnstored);
        return Err(ENOBUFS);
    }
    count(rule);
    Ok(())
}

#[inline(always)]
fn redirect(ctx: &SockAddr, sk: Sock, o: &Outbound<'_>) -> Result<(), u16> {
    // Without memory for its state the connection would lose its destination.
    let Some(state) = socket_state::get_or_create(sk) else {
        count(Counter::RefusedUnstored);
        return Err(ENOBUFS);
    };
    if o.decision.rule as u32 == Counter::OutTproxyLoopback as u32 {
        // TPROXY changes no address: sk_lookup gives the connection to the listener.
        *state = redirected(o, 0, o.packet.dst, o.packet.dport);
        count(o.decision.rule);
        o.bound.undo(ctx);
        return Ok(());
    }
    let policy = o.active.policy;
    let port = match o.decision.verdict {
        Verdict::Inbound => policy.inbound_port,
        Verdict::Dns => policy.dns_port,
        _ => policy.outbound_port,
    };
    let itself = o.bound.port == port;
    let proxy = match source_address::bind(ctx, o.bound, &o.source, state) {
        Some(from) => proxy_address(o, if itself { &Addr::UNSPECIFIED } else { &from }),
        // To its own address the kernel chooses the same source as to the original destination; getsockname of the
        // proxy is repaired.
        None if !itself => o.source,
        None => {
            count(Counter::RefusedNoListener);
            return Err(ECONNREFUSED);
        }
    };
    let proxy = opaque(proxy);
    count(o.decision.rule);
    *state = redirected(o, state.bound_by_us, proxy, port);
    ctx.set_name(&proxy, port);
    Ok(())
}

#[inline(always)]
fn redirected(o: &Outbound<'_>, bound_by_us: u8, proxy: Addr, proxy_port: u16) -> SockState {
    SockState {
        kind: SockKind::REDIRECTED,
        bound_by_us,
        pending: 1,
        verdict: o.decision.verdict as u16,
        orig: o.packet.dst,
        proxy,
        orig_port: o.packet.dport,
        proxy_port,
        rule: o.decision.rule as u32,
    }
}

/// Where to connect to from an address of the socket.
///
/// Not from another address to `::1`: the kernel answers there only for a socket (`tcp_v6_send_response` looks up the
/// route without the device, and what answers for no socket leaves the pod). From an address to itself it stays on lo.
#[inline(always)]
fn proxy_address(o: &Outbound<'_>, from: &Addr) -> Addr {
    let dst = &o.packet.dst;
    if !listeners::is_registered(o.active, o.decision.verdict as u32, dst) {
        return dst.localhost();
    }
    if dst.is_v4() {
        return spread(o);
    }
    if is_worth_binding(from) && o.active.is_local(*from) { *from } else { Addr::LOOPBACK_V6 }
}

/// Where in 127.0.0.0/8 to send a connection. With one address for all destinations an app
/// would have only one connection for each of its ports; under iptables it has one for each
/// port and destination. sk_lookup brings every address to the proxy's listener, so this
/// needs a registered one; getsockname shows 127.0.0.1 to the proxy.
#[inline(always)]
fn spread(o: &Outbound<'_>) -> Addr {
    if !o.active.has(flag::SPREAD) {
        return Addr::LOOPBACK_V4;
    }
    let hash = (o.packet.dst.v4_be() ^ (o.packet.dport as u32).rotate_left(16)).wrapping_mul(0x9e37_79b1);
    // Octets 1 to 254: never 127.0.0.x, never the broadcast address of lo.
    let octet = |shift: u32| ((hash >> shift) & 0xff) % 254 + 1;
    Addr::v4((0x7f00_0000 | octet(8) << 16 | octet(16) << 8 | octet(24)).to_be())
}
