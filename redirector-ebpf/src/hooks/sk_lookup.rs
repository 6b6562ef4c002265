//! sk_lookup: which listener gets a SYN. It runs once for each connection, never for packets
//! of established ones.

use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use redirector_common::abi::{
    DIRECT, EventKind, FlowKey, LOOPBACK_IFINDEX, ListenerRole, NO_RULE, flag, may_be_virtual,
};
use redirector_common::decision::{self, Incoming};
use redirector_common::rule::{Counter, Verdict};

use crate::active_policy::ActivePolicy;
use crate::ctx::{IPPROTO_TCP, Lookup};
use crate::instance::Instance;
use crate::listeners::{self, RedirectedTo};
use crate::maps::{self, GUESTS, REFUSED};
use crate::verifier::{opaque, packed, unpacked};
use crate::{destinations, trace};

pub fn select(ctx: &Lookup) -> u32 {
    let passes = opaque(choose(ctx) == SK_PASS);
    maps::forget_looked_up();
    if passes { SK_PASS } else { SK_DROP }
}

#[inline(always)]
fn choose(ctx: &Lookup) -> u32 {
    if ctx.protocol() != IPPROTO_TCP {
        return SK_PASS;
    }
    let Some(active) = Instance::of_hook().and_then(Instance::active) else { return SK_PASS };
    let guests = active.has(flag::HAS_VIRTUAL_INTERFACES);
    if guests && maps::is_probed(ctx.remote_port(), ctx.local_port()) {
        return SK_DROP;
    }
    let answer = match from_pod(ctx, &active) {
        None => from_network(ctx, &active),
        Some(Ok((verdict, rule))) => to_proxy(ctx, &active, verdict, rule),
        Some(Err(other)) => Err(other),
    };
    let wanted = match answer {
        Ok(wanted) => opaque(wanted),
        Err(Other::Pass) => return SK_PASS,
        Err(Other::Drop) => {
            trace::arriving(ctx, EventKind::ACCEPT, 0, NO_RULE, Counter::RefusedUnstored as u32);
            return SK_DROP;
        }
    };
    if listeners::assign(ctx, &active, wanted.role, &wanted.to) {
        maps::count_number(active.instance, wanted.rule);
        if wanted.rule != COUNTED {
            trace::arriving(ctx, EventKind::ACCEPT, wanted.role, wanted.rule, NO_RULE);
        }
        return SK_PASS;
    }
    if wanted.else_pass {
        trace::arriving(ctx, EventKind::UNREGISTERED, wanted.role, wanted.rule, NO_RULE);
        return SK_PASS;
    }
    // Never to the app: REDIRECT to a port where nobody listens is refused too.
    let refused = Counter::RefusedNoListener;
    active.count(refused);
    trace::arriving(ctx, EventKind::ACCEPT, wanted.role, wanted.rule, refused as u32);
    SK_DROP
}

/// A SYN that is not for a listener of the proxy.
enum Other {
    Pass,
    Drop,
}

/// Which listener a SYN is for.
#[derive(Clone, Copy)]
pub struct Wanted {
    /// Number of its role.
    pub role: u32,
    /// Counter of the rule that decided, [`COUNTED`] if it was counted in connect().
    pub rule: u32,
    pub to: RedirectedTo,
    /// If none is registered the usual lookup may look: the connection was sent to the proxy's port.
    pub else_pass: bool,
}

const COUNTED: u32 = NO_RULE;
const PASS: u16 = Verdict::Pass as u16;

#[inline(always)]
fn from_network(ctx: &Lookup, active: &ActivePolicy) -> Result<Wanted, Other> {
    let dst = opaque(ctx.local());
    if !dst.is_v4() && !active.has(flag::IPV6) {
        return Err(Other::Pass);
    }
    let local = opaque(!active.has(flag::HAS_VIRTUAL_INTERFACES) || active.is_local(dst));
    let incoming = opaque(Incoming { dst, dport: ctx.local_port(), iif: interface(ctx), local });
    let decision = unpacked(decide(active, &incoming));
    if decision.is_pass() {
        active.count(decision.rule);
        trace::arriving(ctx, EventKind::ACCEPT, 0, decision.rule as u32, NO_RULE);
        return Err(Other::Pass);
    }
    if !local {
        // The socket tells, too, as long as there is one.
        if let Some(guests) = GUESTS.of(active.instance) {
            let _ = guests.insert(&key(ctx), &0, 0);
        }
    }
    let to = RedirectedTo { addr: dst, interface: incoming.iif };
    Ok(Wanted { role: decision.verdict as u32, rule: decision.rule as u32, to, else_pass: false })
}

/// A function of its own: the paths through the rules are one where it returns.
#[inline(never)]
fn decide(active: &ActivePolicy, incoming: &Incoming) -> u64 {
    packed(decision::incoming(active.policy, active, incoming))
}

/// Verdict and rule of a connection that a process of the pod has begun: the decision was taken in connect(). None: it comes from
/// the network.
///
/// Only what cannot be forged tells: the loopback interface, a loopback address as sender, which the kernel takes from no network
/// (`fib_validate_source`, `ip6_rcv_core`), or what connect() has stored. Not a loopback address as destination, to which
/// `route_localnet` lets the network send. Not an address of the namespace as sender: over IPv6 anybody may write it, and it may have
/// left the namespace. Nor the interface: of a packet to such an address it is the one that has it, although the packet came
/// over lo (`ip_route_output_key_hash_rcu` sets rt_iif so).
#[inline(always)]
fn from_pod(ctx: &Lookup, active: &ActivePolicy) -> Option<Result<(u16, u32), Other>> {
    let key = key(ctx);
    let lo = opaque(is_on_lo(ctx, active, &key));
    if lo && let Some(original) = destinations::original(active.instance, &key.proxy, key.proxy_port) {
        return Some(Ok(opaque((original.verdict, original.rule))));
    }
    if let Some(flow) = maps::flow(active.instance, &key) {
        return Some(if flow.verdict == PASS {
            Err(Other::Pass)
        } else {
            Ok(opaque((flow.verdict, flow.rule)))
        });
    }
    // One that could not be stored must not go to the proxy as if it came from the network.
    if take_refused(active, &key) {
        return Some(Err(Other::Drop));
    }
    (lo || key.client.is_loopback()).then_some(Err(Other::Pass))
}

/// Whether a SYN came over lo and enters there. Before 5.17 that is not told; then a loopback address as destination does, together with
/// a sender that is the namespace's, which IPv4 takes from no network (`fib_validate_source`).
#[inline(always)]
fn is_on_lo(ctx: &Lookup, active: &ActivePolicy, key: &FlowKey) -> bool {
    if maps::has_ingress_ifindex() {
        return ctx.ingress_ifindex() == LOOPBACK_IFINDEX;
    }
    key.proxy.is_loopback() && (key.client.is_loopback() || active.is_local(key.client))
}

/// Whether a connection could not be stored; asked once.
#[inline(always)]
fn take_refused(active: &ActivePolicy, key: &FlowKey) -> bool {
    let Some(connections) = REFUSED.of(active.instance) else { return false };
    let refused = connections.get(key).is_some();
    if refused {
        connections.remove(key);
    }
    refused
}

/// Index of the interface, 0 before 5.17; a policy that needs it is not attached there.
#[inline(always)]
fn interface(ctx: &Lookup) -> u32 {
    if maps::has_ingress_ifindex() { ctx.ingress_ifindex() } else { 0 }
}

/// What is left is to find the listener whatever address the connection was sent to.
#[inline(always)]
fn to_proxy(ctx: &Lookup, active: &ActivePolicy, verdict: u16, rule: u32) -> Result<Wanted, Other> {
    let to = ctx.local();
    let role = match verdict {
        DIRECT => ListenerRole::of_port(active.policy, ctx.local_port()).map_or(0, |role| role as u32),
        verdict => u32::from(verdict),
    };
    // TPROXY leaves the address; to the usual lookup the connection would be the app's. Otherwise, if none is registered
    // (another cgroup, MPTCP), it is found at the proxy's port; virtual addresses are given only while one is, and
    // another program may listen on one.
    let else_pass = rule != Counter::OutTproxyLoopback as u32 && !may_be_virtual(&to);
    Ok(Wanted { role, rule: COUNTED, to: RedirectedTo::localhost(&to), else_pass })
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
