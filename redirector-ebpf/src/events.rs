//! Events of TCP sockets: hand the original destination from the client's socket to the one
//! the proxy accepts, and keep the registry of the proxy's listeners.

use crate::ctx::{AF_INET6, Ops, TCP_CLOSE};
use crate::maps::{self, LISTENERS, ORIGINAL_DST, REFUSED, count};
use crate::{netns, storage, trace};
use aya_ebpf::bindings::{
    BPF_NOEXIST, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB,
    BPF_SOCK_OPS_TCP_LISTEN_CB,
};
use aya_ebpf::helpers::generated::bpf_sock_map_update;
use core::hint::black_box;
use redirector_common::abi::{FlowKey, LISTENER_SLOTS, OriginalDst, SockState, listener_slot, sock_kind};
use redirector_common::counter::Counter;
use redirector_common::decide::{Verdict, traffic_of_port};

pub fn handle(ops: &Ops) {
    match ops.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(ops),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(ops),
        BPF_SOCK_OPS_TCP_LISTEN_CB => listening(ops),
        BPF_SOCK_OPS_STATE_CB if ops.arg(1) == TCP_CLOSE => closed(ops),
        _ => {}
    }
}

/// The key of a connection, seen from the client.
#[inline(always)]
fn key_of_client(ops: &Ops) -> FlowKey {
    FlowKey {
        client: ops.local(),
        proxy: ops.remote(),
        client_port: ops.local_port(),
        proxy_port: ops.remote_port(),
    }
}

/// The client has its source port and the SYN has not left yet: publish where it wanted to go.
/// Nothing can be refused here any more (the return value is ignored), so what cannot be
/// stored is marked, and sk_lookup drops its SYN.
#[inline(always)]
fn connecting(ops: &Ops) {
    let Some(sk) = ops.sock() else { return };
    let Some(state) = storage::get(sk) else { return };
    let key = key_of_client(ops);
    trace::connecting(ops, &key, state);
    let value = match state.kind {
        sock_kind::REDIRECTED => {
            OriginalDst { addr: state.orig, port: state.orig_port, verdict: state.verdict, rule: state.rule }
        }
        // Its SYN looks as if it came from the network; this tells sk_lookup that it did not.
        sock_kind::TRANSPARENT => {
            OriginalDst { addr: key.proxy, port: key.proxy_port, verdict: Verdict::Pass as u16, rule: 0 }
        }
        _ => return,
    };
    if ORIGINAL_DST.insert(&key, &value, BPF_NOEXIST as u64).is_ok() {
        maps::add_live(1);
    } else if ORIGINAL_DST.insert(&key, &value, 0).is_err() {
        count(Counter::RefusedUnstored);
        let _ = REFUSED.insert(&key, &1, 0);
        return;
    }
    state.pending = 0;
    ops.watch_state();
}

/// A connection is established at the proxy: its socket gets its own copy of the original
/// destination, before accept() can return it.
#[inline(always)]
fn accepted(ops: &Ops) {
    let Some(sk) = ops.sock() else { return };
    // Either a listener of the proxy is known, and its state was cloned into this socket, or
    // it could not be registered (MPTCP), and its port tells.
    let port = ops.local_port();
    let known = storage::get(sk);
    if known.is_none() {
        let Some(active) = maps::active() else { return };
        if traffic_of_port(active.policy, port).is_none() || !netns::is_ours_in_sockops(ops) {
            return;
        }
    }
    let key = FlowKey {
        client: ops.remote(),
        proxy: ops.local(),
        client_port: ops.remote_port(),
        proxy_port: port,
    };
    // SAFETY: values are written once, by insert.
    let Some(original) = (unsafe { ORIGINAL_DST.get(&key) }) else {
        // From the network: it is asked for the port when the kernel has forgotten it, too.
        if let Some(state) = known {
            state.orig = key.proxy;
            state.orig_port = port;
        }
        return;
    };
    if original.verdict == Verdict::Pass as u16 {
        return;
    }
    let state = match known {
        Some(state) => state,
        None => match storage::get_or_create(sk) {
            Some(state) => state,
            None => return,
        },
    };
    *state = SockState {
        kind: sock_kind::ACCEPTED,
        bound_by_us: 0,
        pending: 0,
        verdict: original.verdict,
        orig: original.addr,
        proxy: key.proxy,
        orig_port: original.port,
        proxy_port: port,
        rule: original.rule,
    };
}

/// listen(): if it is on a port of the proxy, register the socket.
#[inline(always)]
fn listening(ops: &Ops) {
    // Also while the instance is being made: user space has looked for older listeners, or will.
    let Some(active) = maps::active_or_next() else { return };
    let Some(sk) = ops.sock() else { return };
    let (address, port) = (ops.local(), ops.local_port());
    let Some(verdict) = traffic_of_port(active.policy, port) else {
        // A client may have become a listener, whose state the accepted sockets inherit.
        if let Some(state) = storage::get(sk) {
            state.kind = sock_kind::NONE;
        }
        return;
    };
    // REDIRECT never sends to another loopback address.
    if address.is_loopback() && !address.is_localhost() || !netns::is_ours_in_sockops(ops) {
        return;
    }
    if let Some(state) = storage::get_or_create(sk) {
        state.kind = sock_kind::LISTENER;
        state.verdict = verdict as u16;
        state.proxy_port = port;
    }
    let first = listener_slot(active.slot, verdict as u32, ops.family() == AF_INET6);
    let mut n = 0;
    while n < LISTENER_SLOTS {
        // Or LLVM would count the slot instead, whose bounds the verifier does not know.
        let mut slot = first + black_box(n);
        n += 1;
        let key = &raw mut slot;
        // SAFETY: the context of this run, a map, a key. A slot empties by itself when its socket closes.
        if unsafe { bpf_sock_map_update(ops.raw(), LISTENERS.raw(), key.cast(), BPF_NOEXIST as u64) } == 0 {
            return;
        }
    }
    count(Counter::ListenerNotRegistered);
}

/// A client's connection has ended: its entry ends with it.
#[inline(always)]
fn closed(ops: &Ops) {
    let Some(sk) = ops.sock() else { return };
    let Some(state) = storage::get(sk) else { return };
    if state.kind != sock_kind::REDIRECTED && state.kind != sock_kind::TRANSPARENT {
        return;
    }
    state.kind = sock_kind::NONE;
    if state.pending != 0 {
        return;
    }
    if ORIGINAL_DST.remove(key_of_client(ops)).is_ok() {
        maps::add_live(-1);
    }
}
