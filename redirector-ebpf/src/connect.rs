//! connect(): the outbound decision, taken once for each connection.

use crate::bound::{ALLOW, Bound, EINVAL, effective, is_martian, refuse};
use crate::ctx::{IPPROTO_TCP, IPPROTO_UDP, Sock, SockAddr, opaque};
use crate::maps::{self, Active, count};
use crate::{dns, inbound, netns, owner, storage};
use redirector_common::Addr;
use redirector_common::abi::{Route, SockState, sock_kind};
use redirector_common::counter::Counter;
use redirector_common::decide::{self, Decision, Outgoing, Verdict};
use redirector_common::policy::flag;

const ENETUNREACH: u16 = 101;
const ENOBUFS: u16 = 105;

pub fn connect4(ctx: &SockAddr) -> i32 {
    match handle(ctx, false) {
        Ok(()) => ALLOW,
        Err(errno) if says_unreachable(ctx, errno) => {
            // tcp_v4_connect refuses a broadcast route so, without a packet.
            ctx.set_ip4(&Addr::v4(u32::MAX));
            ALLOW
        }
        Err(errno) => refuse(errno),
    }
}

pub fn connect6(ctx: &SockAddr) -> i32 {
    match handle(ctx, true) {
        Ok(()) => ALLOW,
        Err(errno) if says_unreachable(ctx, errno) => {
            // tcp_v6_connect looks for multicast before anything else: ff02::1.
            ctx.set_ip6(&Addr::v6([0xff02_0000_u32.to_be(), 0, 0, 1_u32.to_be()]));
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

/// `socket6`: the socket is of family AF_INET6, whatever the destination is.
#[inline(always)]
fn handle(ctx: &SockAddr, socket6: bool) -> Result<(), u16> {
    let Some(active) = maps::active() else { return Ok(()) };
    // An MPTCP socket connects through a subflow, which is a TCP socket of its own.
    let tcp = ctx.protocol() == IPPROTO_TCP;
    let dns = ctx.protocol() == IPPROTO_UDP && active.has(flag::DNS);
    if !(tcp || dns) || !netns::is_ours(ctx) {
        return Ok(());
    }
    if dns {
        return dns::connect(ctx, &active, socket6);
    }
    let Some(sk) = ctx.sock() else { return Ok(()) };

    let state = storage::get(sk);
    let bound = Bound::of(sk, socket6, state.as_ref().is_some_and(|s| s.bound_by_us != 0));
    let asked = if socket6 { ctx.ip6() } else { ctx.ip4() };
    let (bound, dst) = opaque((bound, effective(asked, &bound)));
    if !dst.is_v4() && !active.has(flag::IPV6) {
        return Ok(());
    }

    let route = &opaque(*maps::route_or_unknown(&active, dst));
    let source = route.source_for(&dst);
    let (uid, gid) = owner::of(sk);
    let outgoing = opaque(Outgoing {
        dst,
        dport: ctx.port(),
        src: if bound.addr.is_unspecified() { source } else { bound.addr },
        tcp: true,
        lo: route.local != 0 || dst.is_loopback(),
        oif: route.oif,
        uid,
        gid,
        proxy: active.has(flag::PROXY_CGROUP) && owner::is_in_cgroup(sk, active.policy.proxy_cgroup),
        mark: sk.mark(),
    });
    let decision = opaque(decide::outgoing(active.policy, &active, &outgoing));

    if decision.verdict as u16 == Verdict::Pass as u16 {
        let transparent = active.has(flag::TPROXY)
            && outgoing.lo
            && !bound.addr.is_unspecified()
            && !is_local(&active, &bound.addr);
        // By its entry it is told from the network's: without one it would come back to the proxy.
        if transparent && maps::live() >= active.policy.capacity as u64 {
            count(Counter::RefusedFull);
            return Err(ENOBUFS);
        }
        count(decision.rule);
        let kind = if transparent { sock_kind::TRANSPARENT } else { sock_kind::PASSED };
        return pass(ctx, sk, socket6, &bound, (kind, decision.rule));
    }
    // netfilter sees a packet only after routing has accepted it, so routing's errors come first.
    if let Some(errno) = unroutable(&dst, &bound.addr, route, outgoing.lo) {
        count(Counter::RefusedByRoute);
        return Err(errno);
    }
    if maps::live() >= active.policy.capacity as u64 {
        count(Counter::RefusedFull);
        return Err(ENOBUFS);
    }
    count(decision.rule);
    redirect(ctx, sk, socket6, &Redirect { active, bound, outgoing, decision, source })
}

/// The errno routing would give.
#[inline(always)]
fn unroutable(dst: &Addr, bound: &Addr, route: &Route, lo: bool) -> Option<u16> {
    // tcp_v6_connect refuses a link-local address without a scope. The hook does not see the
    // scope, and with one the connection would come to nothing under iptables either: the packet
    // stays bound to its interface and never reaches ::1.
    if !lo && dst.is_link_local() {
        return Some(EINVAL);
    }
    if is_martian(dst, bound, route, lo) {
        return Some(EINVAL);
    }
    (route.errno != 0).then_some(route.errno)
}

#[inline(always)]
fn is_local(active: &Active, addr: &Addr) -> bool {
    addr.is_loopback() || active.route(*addr).is_some_and(|r| r.local != 0)
}

/// The connection goes its own way. What an earlier redirect left on the socket is undone.
#[inline(always)]
fn pass(
    ctx: &SockAddr,
    sk: Sock,
    socket6: bool,
    bound: &Bound,
    (kind, rule): (u32, Counter),
) -> Result<(), u16> {
    if bound.ours {
        unbind(ctx, socket6);
    }
    // Remembered so that SO_ORIGINAL_DST can tell a client from an accepted socket. Without
    // memory for it nothing but that answer is lost, except of a transparent one its entry.
    if let Some(state) = storage::get_or_create(sk) {
        state.kind = kind;
        state.pending = 1;
        state.rule = rule as u32;
        state.verdict = Verdict::Pass as u16;
        // `bound_by_us` stays: SOCK_BINDADDR_LOCK does too, and with it the kernel keeps the
        // source address of this connection over a failed connect.
    } else if kind == sock_kind::TRANSPARENT {
        count(Counter::RefusedUnstored);
        return Err(ENOBUFS);
    }
    Ok(())
}

#[inline(always)]
fn unbind(ctx: &SockAddr, socket6: bool) {
    if socket6 {
        ctx.bind6(&Addr::UNSPECIFIED);
    } else {
        ctx.bind4(&Addr::v4(0));
    }
}

struct Redirect {
    active: Active,
    bound: Bound,
    outgoing: Outgoing,
    decision: Decision,
    /// The source address routing would choose.
    source: Addr,
}

#[inline(always)]
fn redirect(ctx: &SockAddr, sk: Sock, socket6: bool, r: &Redirect) -> Result<(), u16> {
    let policy = r.active.policy;
    let port = match r.decision.verdict {
        Verdict::Inbound => policy.inbound_port,
        Verdict::Dns => policy.dns_port,
        _ => policy.outbound_port,
    };
    // Without memory for its state the connection would lose its destination.
    let Some(state) = storage::get_or_create(sk) else {
        count(Counter::RefusedUnstored);
        return Err(ENOBUFS);
    };

    if r.decision.rule as u32 == Counter::OutTproxyLoopback as u32 {
        // TPROXY changes no address: sk_lookup gives the connection to the listener.
        *state = SockState {
            kind: sock_kind::REDIRECTED,
            bound_by_us: 0,
            pending: 1,
            verdict: r.decision.verdict as u16,
            orig: r.outgoing.dst,
            proxy: r.outgoing.dst,
            orig_port: r.outgoing.dport,
            proxy_port: r.outgoing.dport,
            rule: r.decision.rule as u32,
        };
        if r.bound.ours {
            unbind(ctx, socket6);
        }
        return Ok(());
    }
    let mut proxy = opaque(if r.outgoing.dst.is_v4() { spread(r) } else { Addr::LOOPBACK_V6 });
    if r.bound.addr.is_unspecified() && !r.source.is_unspecified() {
        if r.bound.port != 0 {
            // bpf_bind takes no socket that has a port. To its own address the kernel chooses
            // the same source as to the original destination; getsockname of the proxy is repaired.
            if !r.source.is_loopback() {
                proxy = r.source;
            }
        } else if !r.source.is_loopback() {
            state.bound_by_us = 1;
            let done = if socket6 { ctx.bind6(&r.source) } else { ctx.bind4(&r.source) };
            if !done {
                count(Counter::SourceNotBound);
            }
        } else if r.bound.ours {
            unbind(ctx, socket6);
        }
    }

    let proxy = opaque(proxy);
    *state = SockState {
        kind: sock_kind::REDIRECTED,
        bound_by_us: state.bound_by_us,
        pending: 1,
        verdict: r.decision.verdict as u16,
        orig: r.outgoing.dst,
        proxy,
        orig_port: r.outgoing.dport,
        proxy_port: port,
        rule: r.decision.rule as u32,
    };
    if socket6 {
        ctx.set_ip6(&proxy);
    } else {
        ctx.set_ip4(&proxy);
    }
    ctx.set_port(port);
    Ok(())
}

/// Where in 127.0.0.0/8 to send a connection. With one address for all destinations an app
/// would have only one connection for each of its ports; under iptables it has one for each
/// port and destination. sk_lookup brings every address to the proxy's listener, so this
/// needs a registered one; getsockname shows 127.0.0.1 to the proxy.
#[inline(always)]
fn spread(r: &Redirect) -> Addr {
    if !r.active.has(flag::SPREAD) || !inbound::is_registered(&r.active, r.decision.verdict as u32) {
        return Addr::LOOPBACK_V4;
    }
    let hash = (r.outgoing.dst.v4_be() ^ (r.outgoing.dport as u32).rotate_left(16)).wrapping_mul(0x9e37_79b1);
    // Octets 1 to 254: never 127.0.0.x, never the broadcast address of lo.
    let octet = |shift: u32| ((hash >> shift) & 0xff) % 254 + 1;
    Addr::v4((0x7f00_0000 | octet(8) << 16 | octet(16) << 8 | octet(24)).to_be())
}
