//! Events of TCP sockets: the original destination is handed from the client's socket to the one
//! the proxy accepts, and the proxy's listeners are registered.

use crate::ctx::{Ops, TCP_CLOSE};
use crate::maps::{self, ORIGINAL_DST, REFUSED, count};
use crate::{listeners, netns, socket_state, trace};
use aya_ebpf::bindings::{
    BPF_NOEXIST, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB,
    BPF_SOCK_OPS_TCP_LISTEN_CB,
};
use redirector_common::abi::{FlowKey, ListenerRole, OriginalDst, SockKind, SockState};
use redirector_common::rule::{Counter, Verdict};

pub fn handle(ops: &Ops) {
    match ops.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(ops),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(ops),
        BPF_SOCK_OPS_TCP_LISTEN_CB => listeners::register(ops),
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
    let Some(state) = socket_state::get(sk) else { return };
    let key = key_of_client(ops);
    trace::connecting(ops, &key, state);
    let value = match state.kind {
        SockKind::REDIRECTED => {
            OriginalDst { addr: state.orig, port: state.orig_port, verdict: state.verdict, rule: state.rule }
        }
        // Its SYN looks as if it came from the network; this tells sk_lookup that it did not.
        SockKind::TRANSPARENT => {
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
    // The state of a known listener was cloned into this socket. A listener that could not be registered (MPTCP) has
    // none, and its port tells.
    let port = ops.local_port();
    let known = socket_state::get(sk);
    if known.is_none() {
        let Some(active) = maps::active() else { return };
        if ListenerRole::of_port(active.policy, port).is_none() || !netns::is_ours_in_sockops(ops) {
            return;
        }
    }
    let key = FlowKey {
        client: ops.remote(),
        proxy: ops.local(),
        client_port: ops.remote_port(),
        proxy_port: port,
    };
    let Some(original) = maps::original_dst(&key) else {
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
        None => match socket_state::get_or_create(sk) {
            Some(state) => state,
            None => return,
        },
    };
    *state = SockState {
        kind: SockKind::ACCEPTED,
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

/// A client's connection has ended: its entry ends with it.
#[inline(always)]
fn closed(ops: &Ops) {
    let Some(sk) = ops.sock() else { return };
    let Some(state) = socket_state::get(sk) else { return };
    if state.kind != SockKind::REDIRECTED && state.kind != SockKind::TRANSPARENT {
        return;
    }
    state.kind = SockKind::NONE;
    if state.pending != 0 {
        return;
    }
    if ORIGINAL_DST.remove(key_of_client(ops)).is_ok() {
        maps::add_live(-1);
    }
}
