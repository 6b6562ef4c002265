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
    let answer =
        if opaque(is_from_lo(ctx, &active)) { from_lo(ctx, &active) } else { from_network(ctx, &active) };
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
    if active.has(flag::TPROXY)
        && let Some(other) = from_proxy(ctx, active)
    {
        return Err(other);
    }
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

/// The proxy's own connection to the app in TPROXY mode, with the client's source address: it is known by its entry, and
/// one that has none, because it could not be stored, must not go to the proxy again.
#[inline(always)]
fn from_proxy(ctx: &Lookup, active: &ActivePolicy) -> Option<Other> {
    let key = key(ctx);
    if maps::flow(active.instance, &key).is_some() {
        return Some(Other::Pass);
    }
    take_refused(active, &key).then_some(Other::Drop)
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

/// Whether the SYN came over lo. For 127.0.0.1 the interface tells; for an address of another
/// interface it is that interface, although the packet used lo (`ip_route_output_key_hash_rcu`
/// sets rt_iif so). But then the sender's address is one of the namespace's own, which no
/// packet from the network may have (`fib_validate_source`). Nor may it have a loopback address, which is
/// all that tells where the interface is not known.
#[inline(always)]
fn is_from_lo(ctx: &Lookup, active: &ActivePolicy) -> bool {
    let remote = ctx.remote();
    interface(ctx) == LOOPBACK_IFINDEX
        || !maps::has_ingress_ifindex() && remote.is_loopback()
        || active.is_local(remote)
}

/// Index of the interface, 0 before 5.17; a policy that needs it is not attached there.
#[inline(always)]
fn interface(ctx: &Lookup) -> u32 {
    if maps::has_ingress_ifindex() { ctx.ingress_ifindex() } else { 0 }
}

/// On lo the decision was taken in connect(); what is left is to find the listener whatever
/// loopback address the connection was sent to.
#[inline(always)]
fn from_lo(ctx: &Lookup, active: &ActivePolicy) -> Result<Wanted, Other> {
    let (to, port) = (ctx.local(), ctx.local_port());
    let (verdict, rule) = if let Some(original) = destinations::original(active.instance, &to, port) {
        (original.verdict, original.rule)
    } else {
        let key = key(ctx);
        let Some(flow) = maps::flow(active.instance, &key) else {
            return Err(if take_refused(active, &key) { Other::Drop } else { Other::Pass });
        };
        (flow.verdict, flow.rule)
    };
    let role = match verdict {
        PASS => return Err(Other::Pass),
        DIRECT => ListenerRole::of_port(active.policy, port).map_or(0, |role| role as u32),
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
