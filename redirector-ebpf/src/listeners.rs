//! The registry of the proxy's listeners: a listener is registered when it starts to listen, and given the connections
//! that are for it.

use core::hint::black_box;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{
    bpf_get_prandom_u32, bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release, bpf_sock_map_update,
};
use aya_log_ebpf::warn;
use redirector_common::Addr;
use redirector_common::abi::{LISTENER_SLOTS, LOOPBACK_IFINDEX, ListenerRole, SockKind, flag};
use redirector_common::rule::Counter;

use crate::active_policy::ActivePolicy;
use crate::ctx::{AF_INET6, Family, Lookup, OfSocket, Ops, Sock};
use crate::instance::Instance;
use crate::maps::{LISTENERS, MapOf};
use crate::socket_state;
use crate::verifier::{is_zero, opaque};

/// Where listeners are registered.
type Registry = MapOf<u32, u64>;

/// listen(): if it is on a port of the proxy, register the socket.
#[inline(always)]
pub fn register(ops: &Ops) {
    // Also while the instance is being made: user space has looked for older listeners, or will.
    let Some(active) = Instance::of(ops).and_then(Instance::active_or_next) else { return };
    let Some(sk) = ops.sock() else { return };
    let (address, port) = (ops.local(), ops.local_port());
    let role = ListenerRole::of_port(active.policy, port);
    // A client may have become a listener, whose state the accepted sockets inherit.
    if let Some(state) = socket_state::get(sk, active.instance) {
        state.kind = SockKind::NONE;
    }
    let Some(role) = role else { return };
    // REDIRECT never sends to another loopback address.
    if address.is_loopback() && !address.is_localhost() {
        return;
    }
    // Of what comes over lo the address tells, or a flow: the sockets that are accepted need no state of their listener.
    let from_network = role.takes_from_network(active.policy) || active.has(flag::HAS_VIRTUAL_INTERFACES);
    if from_network && let Some(state) = socket_state::get_or_create(sk, active.instance) {
        state.kind = SockKind::LISTENER;
        state.verdict = role as u16;
        state.proxy_port = port;
    }
    let Some(registry) = LISTENERS.of(active.instance) else { return };
    let first = role.first_element(active.slot, ops.family() == AF_INET6);
    let mut n = 0;
    while n < LISTENER_SLOTS {
        // Or LLVM would count the element instead, whose bounds the verifier does not know.
        if put(ops, registry, first + black_box(n), BPF_NOEXIST) {
            return;
        }
        n += 1;
    }
    // All are taken: of a reload the newest are those that stay.
    // SAFETY: a helper without arguments.
    let any = unsafe { bpf_get_prandom_u32() } % LISTENER_SLOTS;
    if !put(ops, registry, first + any, BPF_ANY) {
        active.count(Counter::ListenerNotRegistered);
        warn!(ops, "the kernel registers no listener of this kind (port {})", port);
    }
}

#[inline(always)]
fn put(ops: &Ops, registry: Registry, mut element: u32, flags: u32) -> bool {
    let key = &raw mut element;
    // SAFETY: the context of this run, a map, a key. An element empties by itself when its socket closes.
    unsafe { bpf_sock_map_update(ops.raw(), registry.raw(), key.cast(), flags.into()) == 0 }
}

/// Where REDIRECT would send a connection.
#[derive(Clone, Copy)]
pub struct RedirectedTo {
    pub addr: Addr,
    /// The interface that its packets enter by, 0 if the kernel does not tell.
    pub interface: u32,
}

impl RedirectedTo {
    /// What comes over lo: 127.0.0.1 or ::1.
    #[inline(always)]
    pub fn localhost(of: &Addr) -> Self {
        Self { addr: of.localhost(), interface: LOOPBACK_IFINDEX }
    }
}

/// Gives a connection to a registered listener that can take it: for IPv4 to an IPv4 listener or a dual-stack one.
#[inline(always)]
pub fn assign(ctx: &Lookup, active: &ActivePolicy, role: u32, to: &RedirectedTo) -> bool {
    let Some(first) = first_element(active, role) else { return false };
    let Some(registry) = LISTENERS.of(active.instance) else { return false };
    let first = opaque(first);
    // A branch: with one less, the verifier of 6.1 merges no paths any more, and comes to its million instructions.
    let ipv4 = ctx.family() != AF_INET6;
    let mut n = 0;
    while n < LISTENER_SLOTS {
        // Or LLVM would count the element instead, whose bounds the verifier does not know.
        let element = first + black_box(n);
        n += 1;
        // In turn, so that a registry of dual-stack listeners alone is not searched to its end.
        if ipv4 && give(ctx, registry, element, Family::V4, to)
            || give(ctx, registry, element + LISTENER_SLOTS, Family::V6, to)
        {
            return true;
        }
    }
    false
}

/// Gives the connection to the listener in an element, if it can take it.
#[inline(always)]
fn give(ctx: &Lookup, registry: Registry, element: u32, family: Family, to: &RedirectedTo) -> bool {
    let Some(sk) = get(registry, element) else { return false };
    let given = can_take(sk, family, to)
        // SAFETY: helper of sk_lookup programs; EAFNOSUPPORT for a v6only socket and IPv4.
        && unsafe { bpf_sk_assign(ctx.raw(), sk.0.cast(), 0) } == 0;
    release(sk);
    given
}

/// Whether a listener is registered that can take a connection over lo (cheap: the first element of a family).
#[inline(always)]
pub fn is_registered(active: &ActivePolicy, role: u32, dst: &Addr) -> bool {
    let Some(first) = first_element(active, role) else { return false };
    let Some(registry) = LISTENERS.of(active.instance) else { return false };
    let first = opaque(first);
    let to = &RedirectedTo::localhost(dst);
    dst.is_v4() && is_usable(registry, first, Family::V4, to)
        || is_usable(registry, first + LISTENER_SLOTS, Family::V6, to)
}

#[inline(always)]
fn is_usable(registry: Registry, element: u32, family: Family, to: &RedirectedTo) -> bool {
    let Some(sk) = get(registry, element) else { return false };
    let usable = can_take(sk, family, to);
    release(sk);
    usable
}

/// The first element for a role, which is given as a number.
#[inline(always)]
fn first_element(active: &ActivePolicy, role: u32) -> Option<u32> {
    let registered = opaque(ListenerRole::from_number(role)?.registered(active.policy) as u32);
    Some(ListenerRole::from_number(registered)?.first_element(active.slot, false))
}

/// Whether REDIRECT would reach this listener: a listener on another address or interface beside the proxy must not get
/// the proxy's connections. Without branches: the verifier would follow each for every element.
#[inline(always)]
fn can_take(sk: Sock, family: Family, to: &RedirectedTo) -> bool {
    let (bound, interface) = (sk.local_of(family), sk.bound_interface());
    let any = is_zero(match family {
        Family::V4 => bound.words[3],
        Family::V6 => bound.words[0] | bound.words[1] | bound.words[2] | bound.words[3],
    });
    let same = is_zero(bound.difference(&to.addr));
    // Without `ingress_ifindex` only lo is known.
    let not_lo = is_zero(to.interface) & (is_zero(interface ^ LOOPBACK_IFINDEX) ^ 1);
    let here = is_zero(interface) | is_zero(interface ^ to.interface) | not_lo;
    (any | same) & here != 0
}

/// The listener in an element, with a reference that must be released.
#[inline(always)]
fn get(registry: Registry, element: u32) -> Option<Sock> {
    // SAFETY: a sockmap lookup.
    let sk = unsafe { bpf_map_lookup_elem(registry.raw(), (&raw const element).cast()) };
    if sk.is_null() { None } else { Some(Sock(sk.cast())) }
}

#[inline(always)]
fn release(sk: Sock) {
    // SAFETY: the reference that `get` took.
    unsafe { bpf_sk_release(sk.0.cast()) };
}
