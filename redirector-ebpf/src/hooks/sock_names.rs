//! getpeername and getsockname show what they would show under iptables.

use redirector_common::Addr;
use redirector_common::abi::{DIRECT, FlowKey, List, ListenerRole, SockKind, flag, may_be_virtual};
use redirector_common::decision::is_included;
use redirector_common::rule::Counter;

use crate::active_policy::ActivePolicy;
use crate::ctx::{IPPROTO_MPTCP, OfSocket, Sock, SockAddr, TCP_CLOSE, TCP_LISTEN};
use crate::instance::Instance;
use crate::maps;
use crate::source_address::{is_bound_by_us, unspecified};
use crate::{destinations, socket_state};

#[inline(always)]
pub fn peer_name(ctx: &SockAddr) {
    if let Some((addr, port)) = peer(ctx, ctx.addr()) {
        ctx.set_name(&addr, port);
    }
}

#[inline(always)]
pub fn local_name(ctx: &SockAddr) {
    if let Some((addr, port)) = local(ctx, ctx.addr()) {
        ctx.set_name(&addr, port);
    }
}

/// The original destination of a redirected client, if `shown` is the proxy it was sent to.
#[inline(always)]
fn peer(ctx: &SockAddr, shown: Addr) -> Option<(Addr, u16)> {
    let sk = ctx.sock()?;
    let mptcp = sk.protocol() == IPPROTO_MPTCP;
    if !may_be_virtual(&shown) && !mptcp && !socket_state::has_any(sk) {
        return None;
    }
    let instance = Instance::of(ctx)?;
    let port = ctx.port();
    if let Some(original) = destinations::original(instance, &shown, port) {
        return Some((original.addr, original.port));
    }
    if mptcp {
        // The state is on the subflow that connected; the names are asked of its parent.
        let key =
            FlowKey { client: sk.local(), proxy: shown, client_port: sk.local_port(), proxy_port: port };
        let original = maps::flow(instance, &key)?;
        return Some((original.addr, original.port));
    }
    let state = socket_state::get(sk, instance)?;
    let redirected = state.kind == SockKind::REDIRECTED;
    (redirected && port == state.proxy_port && shown.same(&state.proxy))
        .then_some((state.orig, state.orig_port))
}

#[inline(always)]
fn local(ctx: &SockAddr, shown: Addr) -> Option<(Addr, u16)> {
    let sk = ctx.sock()?;
    if !may_be_virtual(&shown) && sk.state() != TCP_CLOSE && !socket_state::has_any(sk) {
        return None;
    }
    let instance = Instance::of(ctx)?;
    if let Some(original) = destinations::original(instance, &shown, ctx.port())
        && sk.state() != TCP_LISTEN
    {
        let direct = original.verdict == DIRECT;
        return Some(if direct { (original.addr, original.port) } else { (shown.localhost(), ctx.port()) });
    }
    let Some(state) = socket_state::get(sk, instance) else {
        return if sk.state() == TCP_CLOSE { not_connected(ctx, sk, instance) } else { None };
    };
    match state.kind {
        SockKind::ACCEPTED if state.verdict == DIRECT => Some((state.orig, state.orig_port)),
        // TPROXY has changed nothing.
        SockKind::ACCEPTED if state.rule == Counter::OutTproxyLoopback as u32 => None,
        // REDIRECT in OUTPUT has sent it to the loopback address and the proxy's port.
        SockKind::ACCEPTED => {
            let addr = shown.localhost();
            Some((addr, state.proxy_port))
        }
        // REDIRECT in PREROUTING has changed the port; TPROXY has not.
        SockKind::LISTENER if sk.state() != TCP_LISTEN => {
            let active = instance.active()?;
            // Of a port that takes both (`-p` and `-z`) it is registered as outbound; a guest's is told apart below.
            let guests = active.has(flag::HAS_VIRTUAL_INTERFACES);
            let both = active.policy.inbound_port == state.proxy_port && !guests;
            if state.verdict == ListenerRole::Inbound as u16 || both {
                return (!active.has(flag::TPROXY)).then_some((shown, state.proxy_port));
            }
            let from_guest = state.verdict == ListenerRole::Outbound as u16 && guests;
            from_guest.then(|| (entered_at(&active, sk.peer(), shown), state.proxy_port))
        }
        _ if sk.state() == TCP_CLOSE => not_connected(ctx, sk, instance),
        _ => None,
    }
}

/// REDIRECT in PREROUTING sends to the interface's own address (`nf_nat_redirect_ipv4`). A guest
/// is behind the interface that leads to it; if that is none of `-k`, it connected by itself.
#[inline(always)]
fn entered_at(active: &ActivePolicy, guest: Addr, shown: Addr) -> Addr {
    let list = if shown.is_v4() { List::VirtualInterfaces } else { List::VirtualInterfaces6 };
    let interface = active.route(guest).oif;
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
fn not_connected(ctx: &SockAddr, sk: Sock, instance: Instance) -> Option<(Addr, u16)> {
    let closed = sk.local_port() == 0 && sk.peer_port() == 0;
    (closed && is_bound_by_us(sk, instance)).then(|| (unspecified(ctx), ctx.port()))
}
