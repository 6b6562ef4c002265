//! Events of TCP sockets: the original destination is handed from the client's socket to the one
//! the proxy accepts, and the proxy's listeners are registered.

use aya_ebpf::bindings::{
    BPF_NOEXIST, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB,
    BPF_SOCK_OPS_TCP_LISTEN_CB,
};
use redirector_common::abi::{Flow, FlowKey, SockKind, SockState, UNTAKEN_LEN};
use redirector_common::rule::{Counter, Verdict};

use crate::ctx::{Ops, TCP_CLOSE, TCP_SYN_SENT};
use crate::maps::{self, FLOWS, REFUSED, SEQUENCE, UNTAKEN, count};
use crate::{destinations, listeners, netns, socket_state, trace};

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
    let Some(state) = socket_state::get(sk) else { return trace::connecting_virtual(ops) };
    let key = key_of_client(ops);
    trace::connecting(ops, &key, state);
    let value = match state.kind {
        SockKind::REDIRECTED => Flow {
            addr: state.orig,
            port: state.orig_port,
            verdict: state.verdict,
            rule: state.rule,
            taken: 0,
            closed: 0,
        },
        // Its SYN looks as if it came from the network; this tells sk_lookup that it did not.
        SockKind::TRANSPARENT => Flow {
            addr: key.proxy,
            port: key.proxy_port,
            verdict: Verdict::Pass as u16,
            rule: 0,
            taken: 0,
            closed: 0,
        },
        _ => return,
    };
    let untaken = maps::flow(&key).is_some_and(|flow| flow.closed != 0);
    if FLOWS.insert(&key, &value, BPF_NOEXIST as u64).is_ok()
        || untaken && FLOWS.insert(&key, &value, 0).is_ok()
    {
        maps::add_live(1);
    } else if FLOWS.insert(&key, &value, 0).is_err() {
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
    // Its address tells.
    if destinations::meaning(&ops.local()).is_some() {
        return;
    }
    let key = FlowKey {
        client: ops.remote(),
        proxy: ops.local(),
        client_port: ops.remote_port(),
        proxy_port: ops.local_port(),
    };
    // A listener that takes connections from the network has its state cloned into this socket. Any other connection has
    // a flow or is not ours. Not the port tells: the policy may have changed since connect().
    let known = socket_state::get(sk);
    if known.is_none() && (maps::flow(&key).is_none() || !netns::is_ours_in_sockops(ops)) {
        return;
    }
    let Some(original) = take(&key) else {
        // From the network: it is asked for the port when the kernel has forgotten it, too.
        if let Some(state) = known {
            state.orig = key.proxy;
            state.orig_port = key.proxy_port;
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
        proxy_port: key.proxy_port,
        rule: original.rule,
    };
}

/// The flow of an accepted socket, which gets its own copy.
#[inline(always)]
fn take(key: &FlowKey) -> Option<&'static mut Flow> {
    let flow = FLOWS.get_ptr_mut(key)?;
    // SAFETY: freed after an RCU grace period; `taken` is written here alone.
    let flow = unsafe { &mut *flow };
    flow.taken = 1;
    Some(flow)
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
    let key = key_of_client(ops);
    let Some(flow) = FLOWS.get_ptr_mut(&key) else { return };
    // SAFETY: freed after an RCU grace period; `closed` is written here alone.
    let flow = unsafe { &mut *flow };
    maps::add_live(-1);
    if flow.taken == 0 && ops.arg(0) != TCP_SYN_SENT {
        flow.closed = 1;
        return keep(&key);
    }
    let _ = FLOWS.remove(&key);
}

/// Keeps the flow of a connection that was established and that no accepted socket has taken. Where packets of lo are
/// handed to another CPU (RPS), the client may connect and reset before the proxy's side of the handshake is handled.
#[inline(always)]
fn keep(key: &FlowKey) {
    let Some(sequence) = SEQUENCE.get_ptr_mut(0) else { return };
    // SAFETY: an element of an array map.
    let number = unsafe {
        let number = core::ptr::read_volatile(&raw const (*sequence).untaken);
        core::ptr::write_volatile(&raw mut (*sequence).untaken, number + 1);
        number
    };
    let Some(oldest) = UNTAKEN.get_ptr_mut(number as u32 % UNTAKEN_LEN as u32) else { return };
    // SAFETY: this CPU's own element.
    let before = unsafe { core::ptr::replace(oldest, *key) };
    // Another connection may have the same addresses and ports by now.
    if maps::flow(&before).is_some_and(|flow| flow.closed != 0) {
        let _ = FLOWS.remove(&before);
    }
}
