//! Events of TCP sockets: the original destination is handed from the client's socket to the one
//! the proxy accepts, and the proxy's listeners are registered.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB,
    BPF_SOCK_OPS_TCP_LISTEN_CB,
};
use aya_log_ebpf::warn;
use redirector_common::abi::{Flow, FlowKey, SockKind, SockState, UNTAKEN_LEN};
use redirector_common::rule::{Counter, Verdict};

use crate::ctx::{OfSocket, Ops, TCP_CLOSE, TCP_SYN_SENT};
use crate::instance::Instance;
use crate::maps::{self, FLOWS, REFUSED, SEQUENCE, UNTAKEN, count, whole};
use crate::{destinations, listeners, socket_state};

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
    if !socket_state::has_any(sk) {
        return;
    }
    let Some(instance) = Instance::of(ops) else { return };
    let Some(state) = socket_state::get(sk, instance) else { return };
    let key = key_of_client(ops);
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
        SockKind::LOCAL => Flow {
            addr: key.proxy,
            port: key.proxy_port,
            verdict: Verdict::Pass as u16,
            rule: 0,
            taken: 0,
            closed: 0,
        },
        _ => return,
    };
    // One that nobody has taken when its client closed counts no more.
    let counts = maps::flow(instance, &key).is_some_and(|flow| flow.closed == 0);
    let stored = FLOWS.of(instance).is_some_and(|flows| flows.insert(&whole(&key), &value, 0).is_ok());
    if stored && !counts {
        maps::add_live(instance, 1);
    } else if !stored {
        count(instance, Counter::RefusedUnstored);
        warn!(ops, "no memory for a connection from port {}: it is refused", key.client_port);
        if let Some(refused) = REFUSED.of(instance) {
            let _ = refused.insert(&key, &1, 0);
        }
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
    let Some(instance) = Instance::of(ops) else { return };
    // Its address tells.
    if destinations::meaning(instance, &ops.local()).is_some() {
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
    let known = socket_state::get(sk, instance);
    let original = take(instance, &key).filter(|flow| flow.verdict != Verdict::Pass as u16);
    let Some(original) = original else {
        // Not redirected in connect(): it is asked for the port when the kernel has forgotten it, too.
        if let Some(state) = known {
            state.orig = key.proxy;
            state.orig_port = key.proxy_port;
        }
        return;
    };
    let state = match known {
        Some(state) => state,
        None => match socket_state::get_or_create(sk, instance) {
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
        instance: instance.generation,
    };
}

/// The flow of an accepted socket, which gets its own copy.
#[inline(always)]
fn take(instance: Instance, key: &FlowKey) -> Option<&'static mut Flow> {
    let mut flow = FLOWS.get(instance, &whole(key))?;
    // SAFETY: freed after an RCU grace period; `taken` is written here alone.
    let flow = unsafe { flow.as_mut() };
    flow.taken = 1;
    Some(flow)
}

/// A client's connection has ended: its entry ends with it.
#[inline(always)]
fn closed(ops: &Ops) {
    let Some(sk) = ops.sock() else { return };
    if !socket_state::has_any(sk) {
        return;
    }
    let Some(instance) = Instance::of(ops) else { return };
    let Some(state) = socket_state::get(sk, instance) else { return };
    if state.kind != SockKind::REDIRECTED && state.kind != SockKind::LOCAL {
        return;
    }
    state.kind = SockKind::NONE;
    if state.pending != 0 {
        return;
    }
    let (client, Some(flows)) = (key_of_client(ops), FLOWS.of(instance)) else { return };
    let key = whole(&client);
    let Some(mut flow) = flows.get(&key) else { return };
    // SAFETY: freed after an RCU grace period; `closed` is written here alone.
    let flow = unsafe { flow.as_mut() };
    maps::add_live(instance, -1);
    // Of one that passes nobody asks.
    if flow.taken == 0 && flow.verdict != Verdict::Pass as u16 && ops.arg(0) != TCP_SYN_SENT {
        flow.closed = 1;
        return keep(instance, &client);
    }
    flows.remove(&key);
}

/// Keeps the flow of a connection that was established and that no accepted socket has taken. Where packets of lo are
/// handed to another CPU (RPS), the client may connect and reset before the proxy's side of the handshake is handled.
#[inline(always)]
fn keep(instance: Instance, key: &FlowKey) {
    let Some(sequence) = SEQUENCE.get(instance, &0) else { return };
    let sequence = sequence.as_ptr();
    // SAFETY: an element of an array map.
    let number = unsafe {
        let number = core::ptr::read_volatile(&raw const (*sequence).untaken);
        core::ptr::write_volatile(&raw mut (*sequence).untaken, number + 1);
        number
    };
    let Some(oldest) = UNTAKEN.get(instance, &(number as u32 % UNTAKEN_LEN as u32)) else { return };
    // SAFETY: this CPU's own element.
    let before = unsafe { core::ptr::replace(oldest.as_ptr(), *key) };
    // Another connection may have the same addresses and ports by now.
    let Some(flows) = FLOWS.of(instance) else { return };
    // SAFETY: values are freed after an RCU grace period.
    let before = whole(&before);
    if flows.get(&before).is_some_and(|flow| unsafe { flow.as_ref() }.closed != 0) {
        flows.remove(&before);
    }
}
