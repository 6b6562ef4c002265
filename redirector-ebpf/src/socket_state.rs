//! State of a socket: lives and dies with it.

use core::ptr::{NonNull, null_mut};

use aya_ebpf::bindings::BPF_SK_STORAGE_GET_F_CREATE;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use redirector_common::abi::{SockKind, SockState};

use crate::ctx::Sock;
use crate::instance::Instance;
use crate::maps::SOCKETS;

#[inline(always)]
fn lookup(sk: Sock, flags: u64) -> Option<&'static mut SockState> {
    // SAFETY: a helper of every program type that calls this; the verifier knows `sk` as a socket.
    let state = unsafe { bpf_sk_storage_get(SOCKETS.raw(), sk.0.cast(), null_mut(), flags) };
    // SAFETY: freed after an RCU grace period. Hooks of a TCP socket run under its lock. Those of sendmsg() and recvmsg() do
    // not: threads that ask two DNS servers by one UDP socket may mix the two, of which one is reported anyway (`udp_dns.rs`).
    NonNull::new(state.cast::<SockState>()).map(|mut p| unsafe { p.as_mut() })
}

/// Whether a socket has a state, of whichever instance: most have none.
#[inline(always)]
pub fn has_any(sk: Sock) -> bool {
    lookup(sk, 0).is_some()
}

/// The socket's state if it has any. What an instance before this one has left counts for nothing.
#[inline(always)]
pub fn get(sk: Sock, instance: Instance) -> Option<&'static mut SockState> {
    lookup(sk, 0).filter(|state| state.instance == instance.generation)
}

/// The socket's state, zeroed if it is new; None without memory.
#[inline(always)]
pub fn get_or_create(sk: Sock, instance: Instance) -> Option<&'static mut SockState> {
    let state = lookup(sk, BPF_SK_STORAGE_GET_F_CREATE as u64)?;
    if state.instance != instance.generation {
        state.kind = SockKind::NONE;
        state.bound_by_us = 0;
        state.pending = 0;
        state.orig_port = 0;
        state.instance = instance.generation;
    }
    Some(state)
}
