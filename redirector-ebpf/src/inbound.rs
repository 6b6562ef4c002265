//! sk_lookup: which listener gets a SYN. It runs once for each connection, never for packets
//! of established ones.

use crate::ctx::{AF_INET6, IPPROTO_TCP, Lookup, Sock, opaque};
use crate::maps::{self, Active, GUESTS, LISTENERS, ORIGINAL_DST, REFUSED, count};
use crate::trace;
use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::helpers::generated::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release};
use core::hint::black_box;
use redirector_common::Addr;
use redirector_common::abi::{FlowKey, LISTENER_KINDS, LISTENER_SLOTS, listener_slot};
use redirector_common::counter::Counter;
use redirector_common::decide::{self, Incoming, Verdict};
use redirector_common::policy::flag;

/// Index of `lo` in every network namespace (LOOPBACK_IFINDEX).
const LOOPBACK_IFINDEX: u32 = 1;

pub fn select(ctx: &Lookup) -> u32 {
    if ctx.protocol() != IPPROTO_TCP {
        return SK_PASS;
    }
    let Some(active) = maps::active() else { return SK_PASS };
    let guests = active.has(flag::HAS_VIRTUAL_INTERFACES);
    if guests && maps::is_probed(ctx.remote_port(), ctx.local_port()) {
        return SK_DROP;
    }
    let answer = if is_from_lo(ctx, &active) { from_lo(ctx) } else { from_network(ctx, &active) };
    let wanted = match answer {
        Ok(wanted) => opaque(wanted),
        Err(Other::Pass) => return SK_PASS,
        Err(Other::Drop) => return SK_DROP,
    };
    if assign(ctx, &active, &wanted) || wanted.else_pass {
        return SK_PASS;
    }
    // Never to the app: REDIRECT to a port where nobody listens is refused too.
    count(Counter::RefusedNoListener);
    SK_DROP
}

/// A SYN that is not for a listener of the proxy.
enum Other {
    Pass,
    Drop,
}

/// Which listener a SYN is for.
#[derive(Clone, Copy)]
struct Wanted {
    /// Kind of the listener.
    verdict: u32,
    /// Where REDIRECT would send it: a listener that is bound to an address must have this one.
    to: Addr,
    /// If none is registered the usual lookup may look: the connection was sent to the proxy's port.
    else_pass: bool,
}

#[inline(always)]
fn from_network(ctx: &Lookup, active: &Active) -> Result<Wanted, Other> {
    if active.has(flag::TPROXY)
        && let Some(other) = from_proxy(ctx)
    {
        return Err(other);
    }
    let dst = ctx.local();
    if !dst.is_v4() && !active.has(flag::IPV6) {
        return Err(Other::Pass);
    }
    let local = !active.has(flag::HAS_VIRTUAL_INTERFACES) || active.route(dst).is_none_or(|r| r.local != 0);
    let incoming = opaque(Incoming { dst, dport: ctx.local_port(), iif: interface(ctx), local });
    let decision = opaque(decide::incoming(active.policy, active, &incoming));
    count(decision.rule);
    trace::arriving(ctx, decision, incoming.dport);
    if decision.verdict as u16 == Verdict::Pass as u16 {
        return Err(Other::Pass);
    }
    if !local {
        // The socket tells, too, as long as there is one.
        let _ = GUESTS.insert(key(ctx), 0, 0);
    }
    Ok(Wanted { verdict: decision.verdict as u32, to: dst, else_pass: false })
}

/// The proxy's own connection to the app in TPROXY mode, with the client's source address: it is known by its entry, and
/// one that has none, because it could not be stored, must not go to the proxy again.
#[inline(always)]
fn from_proxy(ctx: &Lookup) -> Option<Other> {
    let key = key(ctx);
    // SAFETY: values are written once, by insert.
    if unsafe { ORIGINAL_DST.get(&key) }.is_some() {
        return Some(Other::Pass);
    }
    take_refused(&key).then_some(Other::Drop)
}

/// Whether a connection could not be stored; asked once.
#[inline(always)]
fn take_refused(key: &FlowKey) -> bool {
    // SAFETY: values are written once, by insert.
    let refused = unsafe { REFUSED.get(key) }.is_some();
    if refused {
        let _ = REFUSED.remove(key);
    }
    refused
}

/// Whether the SYN came over lo. For 127.0.0.1 the interface tells; for an address of another
/// interface it is that interface, although the packet used lo (`ip_route_output_key_hash_rcu`
/// sets rt_iif so). But then the sender's address is one of the namespace's own, which no
/// packet from the network may have (`fib_validate_source`). Nor may it have a loopback address, which is
/// all that tells where the interface is not known.
#[inline(always)]
fn is_from_lo(ctx: &Lookup, active: &Active) -> bool {
    let remote = ctx.remote();
    interface(ctx) == LOOPBACK_IFINDEX
        || !maps::has_ingress_ifindex() && remote.is_loopback()
        || active.route(remote).is_some_and(|r| r.local != 0)
}

/// Index of the interface, 0 before 5.17; a policy that needs it is not attached there.
#[inline(always)]
fn interface(ctx: &Lookup) -> u32 {
    if maps::has_ingress_ifindex() { ctx.ingress_ifindex() } else { 0 }
}

/// On lo the decision was taken in connect(); what is left is to find the listener whatever
/// loopback address the connection was sent to.
#[inline(always)]
fn from_lo(ctx: &Lookup) -> Result<Wanted, Other> {
    let key = key(ctx);
    // SAFETY: values are written once, by insert.
    let Some(original) = (unsafe { ORIGINAL_DST.get(&key) }) else {
        return Err(if take_refused(&key) { Other::Drop } else { Other::Pass });
    };
    if original.verdict == Verdict::Pass as u16 {
        return Err(Other::Pass);
    }
    // TPROXY leaves the address; to the usual lookup the connection would be the app's.
    let unchanged = original.rule == Counter::OutTproxyLoopback as u32;
    // Otherwise, if none is registered (another cgroup, MPTCP), it is found at the proxy's port.
    let to = key.proxy.localhost();
    Ok(Wanted { verdict: u32::from(original.verdict), to, else_pass: !unchanged })
}

#[inline(always)]
fn key(ctx: &Lookup) -> FlowKey {
    FlowKey {
        client: ctx.remote(),
        proxy: ctx.local(),
        client_port: ctx.remote_port(),
        proxy_port: ctx.local_port(),
    }
}

/// Gives the connection to a registered listener: IPv4 ones first for IPv4, then dual-stack ones
/// (their slots follow).
#[inline(always)]
fn assign(ctx: &Lookup, active: &Active, wanted: &Wanted) -> bool {
    let kind = opaque(decide::registered_as(active.policy, wanted.verdict));
    if kind == 0 || kind > LISTENER_KINDS {
        return false;
    }
    let first = opaque(listener_slot(active.slot, kind, false));
    let mut n = if ctx.family() == AF_INET6 { LISTENER_SLOTS } else { 0 };
    while n < 2 * LISTENER_SLOTS {
        // Or LLVM would count the slot instead, whose bounds the verifier does not know.
        let slot = first + black_box(n);
        n += 1;
        let Some(sk) = listener(slot) else { continue };
        let assigned = opaque(is_reachable(sk, &wanted.to))
            // SAFETY: helper of sk_lookup programs; EAFNOSUPPORT for a v6only socket and IPv4.
            && unsafe { bpf_sk_assign(ctx.raw(), sk.0.cast(), 0) } == 0;
        // SAFETY: the reference that the lookup took.
        unsafe { bpf_sk_release(sk.0.cast()) };
        if assigned {
            return true;
        }
    }
    false
}

/// Whether REDIRECT would reach this listener. It goes to 127.0.0.1 or ::1 on lo, and to the pod's address from the
/// network: one that listens on another address beside the proxy must not get what is the proxy's.
#[inline(always)]
fn is_reachable(sk: Sock, to: &Addr) -> bool {
    let bound = sk.local();
    bound.is_unspecified() || bound.same(to)
}

/// The listener in a slot, with a reference that must be released.
#[inline(always)]
fn listener(slot: u32) -> Option<Sock> {
    // SAFETY: a sockmap lookup; the map is a static definition.
    let sk = unsafe { bpf_map_lookup_elem(LISTENERS.raw(), (&raw const slot).cast()) };
    if sk.is_null() { None } else { Some(Sock(sk.cast())) }
}

/// Whether a listener that takes IPv4 is registered (cheap: the first slot of each family).
#[inline(always)]
pub fn is_registered(active: &Active, verdict: u32) -> bool {
    let kind = opaque(decide::registered_as(active.policy, verdict));
    if kind == 0 || kind > LISTENER_KINDS {
        return false;
    }
    let found = listener(listener_slot(active.slot, kind, false))
        .or_else(|| listener(listener_slot(active.slot, kind, true)));
    match found {
        Some(sk) => {
            // SAFETY: the reference that the lookup took.
            unsafe { bpf_sk_release(sk.0.cast()) };
            true
        }
        None => false,
    }
}
