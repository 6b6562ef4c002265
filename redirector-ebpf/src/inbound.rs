//! sk_lookup: which listener gets a SYN. It runs once for each connection, never for packets
//! of established ones.

use crate::ctx::{AF_INET6, IPPROTO_TCP, Lookup, Sock};
use crate::maps::{self, Active, LISTENERS, ORIGINAL_DST, REFUSED, count};
use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::helpers::generated::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release};
use redirector_common::abi::{FlowKey, LISTENER_SLOTS, listener_slot};
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
    if is_from_lo(ctx, &active) {
        return from_lo(ctx, active.slot);
    }
    let dst = ctx.local();
    if !dst.is_v4() && !active.policy.has(flag::IPV6) {
        return SK_PASS;
    }
    let incoming = Incoming { dst, dport: ctx.local_port(), iif: ctx.ingress_ifindex() };
    let decision = decide::incoming(active.policy, &active, &incoming);
    count(decision.rule);
    match decision.verdict {
        Verdict::Pass => SK_PASS,
        verdict => {
            if assign(ctx, active.slot, verdict as u32, false) {
                return SK_PASS;
            }
            // Never to the app: REDIRECT to a port where nobody listens is refused too.
            count(Counter::RefusedNoListener);
            SK_DROP
        }
    }
}

/// Whether the SYN came over lo. For 127.0.0.1 the interface tells; for an address of another
/// interface it is that interface, although the packet used lo (`ip_route_output_key_hash_rcu`
/// sets rt_iif so). But then the sender's address is one of the namespace's own, which no
/// packet from the network may have (`fib_validate_source`).
#[inline(always)]
fn is_from_lo(ctx: &Lookup, active: &Active) -> bool {
    ctx.ingress_ifindex() == LOOPBACK_IFINDEX || active.route(ctx.remote()).is_some_and(|r| r.local != 0)
}

/// On lo the decision was taken in connect(); what is left is to find the listener whatever
/// loopback address the connection was sent to.
#[inline(always)]
fn from_lo(ctx: &Lookup, policy: u32) -> u32 {
    let key = FlowKey {
        client: ctx.remote(),
        proxy: ctx.local(),
        client_port: ctx.remote_port(),
        proxy_port: ctx.local_port(),
    };
    // SAFETY: values are written once, by insert.
    let verdict = match unsafe { ORIGINAL_DST.get(&key) } {
        Some(original) => u32::from(original.verdict),
        // SAFETY: as above.
        None if unsafe { REFUSED.get(&key) }.is_some() => {
            let _ = REFUSED.remove(&key);
            return SK_DROP;
        }
        None => return SK_PASS,
    };
    // Not registered (another cgroup, MPTCP): the usual lookup finds it at the proxy's port.
    let _ = assign(ctx, policy, verdict, true);
    SK_PASS
}

/// Gives the connection to a registered listener: IPv4 ones first for IPv4, then dual-stack ones.
#[inline(always)]
fn assign(ctx: &Lookup, policy: u32, verdict: u32, lo: bool) -> bool {
    if verdict == 0 || verdict > 3 {
        return false;
    }
    let v6 = ctx.family() == AF_INET6;
    (!v6 && assign_from(ctx, listener_slot(policy, verdict, false), lo)) || assign_from(ctx, listener_slot(policy, verdict, true), lo)
}

#[inline(always)]
fn assign_from(ctx: &Lookup, first: u32, lo: bool) -> bool {
    let mut n = 0;
    while n < LISTENER_SLOTS {
        let slot = first + n;
        n += 1;
        let Some(sk) = listener(slot) else { continue };
        let reachable = is_reachable(sk, lo);
        let assigned = reachable
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

/// Whether REDIRECT would reach this listener: it goes to the loopback address on lo, and to
/// the pod's address from the network, where a listener on 127.0.0.1 hears nothing.
#[inline(always)]
fn is_reachable(sk: Sock, lo: bool) -> bool {
    let bound = sk.local();
    bound.is_unspecified() || bound.is_loopback() == lo
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
pub fn is_registered(policy: u32, verdict: u32) -> bool {
    if verdict == 0 || verdict > 3 {
        return false;
    }
    let found = listener(listener_slot(policy, verdict, false)).or_else(|| listener(listener_slot(policy, verdict, true)));
    match found {
        Some(sk) => {
            // SAFETY: the reference that the lookup took.
            unsafe { bpf_sk_release(sk.0.cast()) };
            true
        }
        None => false,
    }
}
