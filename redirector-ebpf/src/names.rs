//! getpeername and getsockname show what they would show under iptables.

use crate::ctx::{AF_INET6, IPPROTO_MPTCP, Sock, SockAddr, TCP_CLOSE, TCP_LISTEN};
use crate::maps::{self, Active, ORIGINAL_DST};
use crate::storage;
use redirector_common::Addr;
use redirector_common::abi::{FlowKey, sock_kind};
use redirector_common::counter::Counter;
use redirector_common::decide::{Verdict, is_included};
use redirector_common::policy::{Table, flag};

pub fn peer4(ctx: &SockAddr) {
    if let Some((addr, port)) = peer(ctx, ctx.ip4()) {
        ctx.set_ip4(&addr);
        ctx.set_port(port);
    }
}

pub fn peer6(ctx: &SockAddr) {
    if let Some((addr, port)) = peer(ctx, ctx.ip6()) {
        ctx.set_ip6(&addr);
        ctx.set_port(port);
    }
}

pub fn local4(ctx: &SockAddr) {
    if let Some((addr, port)) = local(ctx, ctx.ip4()) {
        ctx.set_ip4(&addr);
        ctx.set_port(port);
    }
}

pub fn local6(ctx: &SockAddr) {
    if let Some((addr, port)) = local(ctx, ctx.ip6()) {
        ctx.set_ip6(&addr);
        ctx.set_port(port);
    }
}

/// The original destination of a redirected client, if `shown` is the proxy it was sent to.
#[inline(always)]
fn peer(ctx: &SockAddr, shown: Addr) -> Option<(Addr, u16)> {
    let sk = ctx.sock()?;
    let port = ctx.port();
    if sk.protocol() == IPPROTO_MPTCP {
        // The state is on the subflow that connected; the names are asked of its parent.
        let key =
            FlowKey { client: sk.local(), proxy: shown, client_port: sk.local_port(), proxy_port: port };
        // SAFETY: values are written once, by insert.
        let original = unsafe { ORIGINAL_DST.get(key) }?;
        return Some((original.addr, original.port));
    }
    let state = storage::get(sk)?;
    let redirected = state.kind == sock_kind::REDIRECTED;
    (redirected && port == state.proxy_port && shown.same(&state.proxy))
        .then_some((state.orig, state.orig_port))
}

#[inline(always)]
fn local(ctx: &SockAddr, shown: Addr) -> Option<(Addr, u16)> {
    let sk = ctx.sock()?;
    let state = storage::get(sk)?;
    match state.kind {
        // TPROXY has changed nothing.
        sock_kind::ACCEPTED if state.rule == Counter::OutTproxyLoopback as u32 => None,
        // REDIRECT in OUTPUT has sent it to the loopback address and the proxy's port.
        sock_kind::ACCEPTED => {
            let addr = shown.localhost();
            Some((addr, state.proxy_port))
        }
        // REDIRECT in PREROUTING has changed the port; TPROXY has not.
        sock_kind::LISTENER if sk.state() != TCP_LISTEN => {
            let active = maps::active()?;
            // Of a port that takes both (`-p` and `-z`) it is registered as outbound; a guest's is told apart below.
            let guests = active.has(flag::HAS_VIRTUAL_INTERFACES);
            let both = active.policy.inbound_port == state.proxy_port && !guests;
            if state.verdict == Verdict::Inbound as u16 || both {
                return (!active.has(flag::TPROXY)).then_some((shown, state.proxy_port));
            }
            let from_guest = state.verdict == Verdict::Outbound as u16 && guests;
            from_guest.then(|| (entered_at(&active, sk.peer(), shown), state.proxy_port))
        }
        _ if state.bound_by_us != 0 && sk.state() == TCP_CLOSE => not_connected(sk, ctx.port()),
        _ => None,
    }
}

/// REDIRECT in PREROUTING sends to the interface's own address (`nf_nat_redirect_ipv4`). A guest
/// is behind the interface that leads to it; if that is none of `-k`, it connected by itself.
#[inline(always)]
fn entered_at(active: &Active, guest: Addr, shown: Addr) -> Addr {
    let list = if shown.is_v4() { Table::VirtualInterfaces } else { Table::VirtualInterfaces6 };
    let interface = maps::route_or_unknown(active, guest).oif;
    match active.number(list, interface) {
        Some(entry) if !entry.source.is_unspecified() && is_included(active.policy, active, &shown) => {
            entry.source
        }
        _ => shown,
    }
}

/// A client whose connect failed or that was disconnected: without our bind, the kernel would
/// have taken its source address away again (`tcp_disconnect`, SOCK_BINDADDR_LOCK). One whose connection has ended, by
/// whichever side, keeps both addresses.
#[inline(always)]
fn not_connected(sk: Sock, port: u16) -> Option<(Addr, u16)> {
    if sk.local_port() != 0 || sk.peer_port() != 0 {
        return None;
    }
    let none = if sk.family() == AF_INET6 { Addr::UNSPECIFIED } else { Addr::v4(0) };
    Some((none, port))
}
