//! Decisions, told to `redirector trace` as they are carried out. Where nobody wants them that is a constant, and the
//! verifier removes all of this.

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::btf_maps::{PerCpuArray, RingBuf};
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
    bpf_get_socket_cookie, bpf_ktime_get_ns,
};
use aya_ebpf::macros::btf_map;
use redirector_common::abi::{Event, EventKind, NO_RULE};
use redirector_common::rule::Counter;

use crate::ctx::{Family, IPPROTO_TCP, IPPROTO_UDP, Lookup, SockAddr};
use crate::hooks::connect::ECONNREFUSED;
use crate::hooks::outbound::Outbound;
use crate::source_address::EADDRNOTAVAIL;
use crate::verifier::opaque;

const LEN: usize = 128 * 1024;

#[btf_map]
static EVENTS: RingBuf<Event, LEN> = RingBuf::new();
#[btf_map]
static LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Set by the loader to 0 or 1. No constant of the programs has this value: LLVM makes one of equal constants, and the keys
/// of maps with one element would change with it.
#[unsafe(no_mangle)]
static TELLS: u32 = 0x5445_4c4c;

/// A constant to the verifier.
#[inline(always)]
fn is_wanted() -> bool {
    // SAFETY: a static; volatile, or LLVM would take the value for good.
    unsafe { core::ptr::read_volatile(&raw const TELLS) == 1 }
}

/// In the outcome of a system call: no rule was asked, because its family is not captured.
pub const UNDECIDED: u32 = 1 << 16;

/// What a system call becomes; `outcome` is its errno, or 0.
#[inline(always)]
pub fn outgoing(ctx: &SockAddr, o: &Outbound, kind: EventKind, outcome: u32) {
    if !is_wanted() {
        return;
    }
    match ctx.family {
        Family::V4 => tell_outgoing::<{ Family::V4 as u8 }>(ctx.raw(), o, kind, opaque(outcome)),
        Family::V6 => tell_outgoing::<{ Family::V6 as u8 }>(ctx.raw(), o, kind, opaque(outcome)),
    }
}

/// A function of its own, after those that decide and carry out: it uses the part of the stack that they have used.
#[inline(never)]
fn tell_outgoing<const FAMILY: u8>(ctx: *mut bpf_sock_addr, o: &Outbound, kind: EventKind, outcome: u32) {
    let Some(mut entry) = EVENTS.reserve(0) else { return count_lost() };
    let to = SockAddr::of::<FAMILY>(ctx);
    let decided = outcome & UNDECIDED == 0;
    let errno = outcome as u16;
    let event = entry.as_mut_ptr();
    // SAFETY: the fields of the entry. Each by itself: of a whole event LLVM would make a copy on the stack. The hook runs
    // in the context of the caller, whom the helpers tell (5.7).
    unsafe {
        (*event).time = bpf_ktime_get_ns();
        (*event).cookie = bpf_get_socket_cookie(ctx.cast());
        (*event).cgroup = bpf_get_current_cgroup_id();
        (*event).pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        (*event).uid = bpf_get_current_uid_gid() as u32;
        bpf_get_current_comm((&raw mut (*event).comm).cast(), 16);
        (*event).client = if o.bound.addr.is_unspecified() { o.way.source } else { o.bound.addr };
        (*event).client_port = o.bound.port;
        (*event).destination = if decided { o.dst } else { to.addr() };
        (*event).destination_port = if decided { o.dport } else { to.port() };
        (*event).redirected = to.addr();
        (*event).redirected_port = to.port();
        (*event).kind = kind;
        (*event).verdict = o.decision.verdict as u16;
        (*event).errno = errno;
        (*event).rule = if decided { o.decision.rule as u32 } else { NO_RULE };
        (*event).refused = refusal(o, errno);
        (*event).protocol = if o.tcp { IPPROTO_TCP } else { IPPROTO_UDP };
    }
    entry.submit(0);
}

/// The counter of a refusal.
#[inline(always)]
fn refusal(o: &Outbound, errno: u16) -> u32 {
    match errno {
        0 => NO_RULE,
        errno if errno == o.errno => Counter::RefusedByRoute as u32,
        ECONNREFUSED => Counter::RefusedNoListener as u32,
        EADDRNOTAVAIL => Counter::RefusedWithoutSource as u32,
        _ if o.tcp && o.active.is_full() => Counter::RefusedFull as u32,
        _ => Counter::RefusedUnstored as u32,
    }
}

/// What a connection becomes that arrives.
#[inline(always)]
pub fn arriving(ctx: &Lookup, kind: EventKind, verdict: u32, rule: u32, refused: u32) {
    if is_wanted() {
        let decision = opaque(u64::from(verdict) << 32 | u64::from(rule));
        tell_arriving(ctx.raw(), kind, decision, opaque(refused));
    }
}

/// Tells nothing of a process: a packet is handled by any.
#[inline(never)]
fn tell_arriving(ctx: *mut c_void, kind: EventKind, decision: u64, refused: u32) {
    let Some(mut entry) = EVENTS.reserve(0) else { return count_lost() };
    let ctx = Lookup::new(ctx.cast());
    let event = entry.as_mut_ptr();
    // SAFETY: as in `outgoing`.
    unsafe {
        (*event).time = bpf_ktime_get_ns();
        (*event).cookie = 0;
        (*event).cgroup = 0;
        (*event).pid = 0;
        (*event).uid = 0;
        (*event).comm = [0; 16];
        (*event).client = ctx.remote();
        (*event).client_port = ctx.remote_port();
        (*event).destination = ctx.local();
        (*event).destination_port = ctx.local_port();
        (*event).redirected = ctx.local();
        (*event).redirected_port = ctx.local_port();
        (*event).kind = kind;
        (*event).verdict = (decision >> 32) as u16;
        (*event).errno = 0;
        (*event).rule = decision as u32;
        (*event).refused = refused;
        (*event).protocol = IPPROTO_TCP;
    }
    entry.submit(0);
}

#[inline(always)]
fn count_lost() {
    if let Some(lost) = LOST.get_ptr_mut(0) {
        // SAFETY: this CPU's own element.
        unsafe { *lost += 1 };
    }
}
