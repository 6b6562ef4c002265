//! The registry of the proxy's listeners: a listener is registered when it starts to listen, and given the connections
//! that are for it.

use crate::ctx::{AF_INET6, Lookup, Ops, Sock};
use crate::maps::{self, ActivePolicy, LISTENERS, count};
use crate::verifier::opaque;
use crate::{netns, socket_state};
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release, bpf_sock_map_update};
use core::hint::black_box;
use redirector_common::Addr;
use redirector_common::abi::{LISTENER_SLOTS, ListenerRole, SockKind};
use redirector_common::rule::Counter;

/// listen(): if it is on a port of the proxy, register the socket.
#[inline(always)]
pub fn register(ops: &Ops) {
    // Also while the instance is being made: user space has looked for older listeners, or will.
    let Some(active) = maps::active_or_next() else { return };
    let Some(sk) = ops.sock() else { return };
    let (address, port) = (ops.local(), ops.local_port());
    let Some(role) = ListenerRole::of_port(active.policy, port) else {
        // A client may have become a listener, whose state the accepted sockets inherit.
        if let Some(state) = socket_state::get(sk) {
            state.kind = SockKind::NONE;
        }
        return;
    };
    // REDIRECT never sends to another loopback address.
    if address.is_loopback() && !address.is_localhost() || !netns::is_ours_in_sockops(ops) {
        return;
    }
    if let Some(state) = socket_state::get_or_create(sk) {
        state.kind = SockKind::LISTENER;
        state.verdict = role as u16;
        state.proxy_port = port;
    }
    let first = role.first_element(active.slot, ops.family() == AF_INET6);
    let mut n = 0;
    while n < LISTENER_SLOTS {
        // Or LLVM would count the element instead, whose bounds the verifier does not know.
        let mut element = first + black_box(n);
        n += 1;
        let key = &raw mut element;
        // SAFETY: the context of this run, a map, a key. An element empties by itself when its socket closes.
        if unsafe { bpf_sock_map_update(ops.raw(), LISTENERS.raw(), key.cast(), BPF_NOEXIST as u64) } == 0 {
            return;
        }
    }
    count(Counter::ListenerNotRegistered);
}

/// Gives a connection to a registered listener: for IPv4 first to IPv4 listeners, then to dual-stack ones
/// (their elements follow). `to`: where REDIRECT would send it.
#[inline(always)]
pub fn assign(ctx: &Lookup, active: &ActivePolicy, role: u32, to: &Addr) -> bool {
    let Some(first) = first_element(active, role) else { return false };
    let first = opaque(first);
    let mut n = if ctx.family() == AF_INET6 { LISTENER_SLOTS } else { 0 };
    while n < 2 * LISTENER_SLOTS {
        // Or LLVM would count the element instead, whose bounds the verifier does not know.
        let element = first + black_box(n);
        n += 1;
        let Some(sk) = get(element) else { continue };
        let assigned = opaque(is_reachable(sk, to))
            // SAFETY: helper of sk_lookup programs; EAFNOSUPPORT for a v6only socket and IPv4.
            && unsafe { bpf_sk_assign(ctx.raw(), sk.0.cast(), 0) } == 0;
        release(sk);
        if assigned {
            return true;
        }
    }
    false
}

/// Whether a listener that takes IPv4 is registered (cheap: the first element of each family).
#[inline(always)]
pub fn is_registered(active: &ActivePolicy, role: u32) -> bool {
    let Some(first) = first_element(active, role) else { return false };
    let found = get(first).or_else(|| get(first + LISTENER_SLOTS));
    found.is_some_and(|sk| {
        release(sk);
        true
    })
}

/// The first element for a role, which is given as a number.
#[inline(always)]
fn first_element(active: &ActivePolicy, role: u32) -> Option<u32> {
    let registered = opaque(ListenerRole::from_number(role)?.registered(active.policy) as u32);
    Some(ListenerRole::from_number(registered)?.first_element(active.slot, false))
}

/// Whether REDIRECT would reach this listener. It goes to 127.0.0.1 or ::1 on lo, and to the pod's address from the
/// network: a listener on another address beside the proxy must not get the proxy's connections.
#[inline(always)]
fn is_reachable(sk: Sock, to: &Addr) -> bool {
    let bound = sk.local();
    bound.is_unspecified() || bound.same(to)
}

/// The listener in an element, with a reference that must be released.
#[inline(always)]
fn get(element: u32) -> Option<Sock> {
    // SAFETY: a sockmap lookup; the map is a static definition.
    let sk = unsafe { bpf_map_lookup_elem(LISTENERS.raw(), (&raw const element).cast()) };
    if sk.is_null() { None } else { Some(Sock(sk.cast())) }
}

#[inline(always)]
fn release(sk: Sock) {
    // SAFETY: the reference that `get` took.
    unsafe { bpf_sk_release(sk.0.cast()) };
}
