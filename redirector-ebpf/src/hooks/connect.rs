//! connect(): the outbound decision, taken once for each connection.

use aya_ebpf::bindings::bpf_sock_addr;
use redirector_common::Addr;
use redirector_common::abi::{DIRECT, Destination, EventKind, ListenerRole, SockKind, SockState, flag};
use redirector_common::rule::{Counter, Verdict};

use super::outbound::Outbound;
use super::{ALLOW, ENETUNREACH, ENOBUFS, refuse, udp_dns};
use crate::active_policy::ActivePolicy;
use crate::ctx::{Family, IPPROTO_TCP, IPPROTO_UDP, OfSocket, Sock, SockAddr};
use crate::instance::Instance;
use crate::maps;
use crate::source_address::{self, Bound, is_worth_binding};
use crate::verifier::opaque;
use crate::{destinations, listeners, socket_state, trace};

pub const ECONNREFUSED: u16 = 111;

/// Calls a function for the family of a context.
macro_rules! by_family {
    ($ctx:ident, $function:ident($($argument:expr),*)) => {
        match $ctx.family {
            Family::V4 => $function::<{ Family::V4 as u8 }>($($argument),*),
            Family::V6 => $function::<{ Family::V6 as u8 }>($($argument),*),
        }
    };
}

#[inline(always)]
pub fn connect(ctx: &SockAddr) -> i32 {
    match handle(ctx) {
        Ok(()) => ALLOW,
        Err(errno) if says_unreachable(ctx, errno) => {
            ctx.set_addr(&unreachable(ctx));
            ALLOW
        }
        Err(errno) => refuse(errno),
    }
}

/// Whether to have the kernel itself say ENETUNREACH, by a destination that is never reachable: without
/// `bpf_set_retval` a refusal is EPERM, which a program that tries one address after the other may
/// take for final. Not for UDP, to which a broadcast may be reachable.
#[inline(always)]
fn says_unreachable(ctx: &SockAddr, errno: u16) -> bool {
    !maps::has_set_retval() && errno == ENETUNREACH && ctx.protocol() == IPPROTO_TCP
}

/// tcp_v4_connect refuses a broadcast route without a packet; tcp_v6_connect looks for multicast before anything else.
#[inline(always)]
fn unreachable(ctx: &SockAddr) -> Addr {
    match ctx.family {
        Family::V4 => Addr::v4(u32::MAX),
        Family::V6 => Addr::v6([0xff02_0000_u32.to_be(), 0, 0, 1_u32.to_be()]),
    }
}

#[inline(always)]
fn handle(ctx: &SockAddr) -> Result<(), u16> {
    // An MPTCP socket connects through a subflow, which is a TCP socket of its own.
    let tcp = ctx.protocol() == IPPROTO_TCP;
    if !tcp && !(ctx.protocol() == IPPROTO_UDP && maps::may_have(flag::DNS)) {
        return Ok(());
    }
    let Some(active) = Instance::of(ctx).and_then(Instance::active) else { return Ok(()) };
    if !tcp && !active.has(flag::DNS) {
        return Ok(());
    }
    let Some(sk) = ctx.sock() else { return Ok(()) };
    let bound = opaque(Bound::of(ctx, sk, active.instance, true));
    if !tcp && ctx.port() != udp_dns::PORT {
        udp_dns::pass(ctx, sk, active.instance, &bound);
        return Ok(());
    }
    let mut outbound = Outbound::new(active, bound, opaque(tcp));
    let o = &mut outbound;
    let routed = by_family!(ctx, route(ctx.raw(), o));
    if routed != 0 {
        decide(sk, o);
    }
    let errno = match (routed, o.tcp) {
        (0, true) => 0,
        (_, true) => by_family!(ctx, carry_out(ctx.raw(), sk, o)),
        (routed, false) => by_family!(ctx, carry_out_dns(ctx.raw(), sk, o, routed)),
    };
    let outcome = if routed == 0 { trace::UNDECIDED } else { errno };
    trace::outgoing(ctx, o, EventKind::CONNECT, outcome);
    if errno == 0 { Ok(()) } else { Err(errno as u16) }
}

// Functions of their own, one after the other: a hook and the functions that it is in share 512 bytes of stack. What they
// return is opaque: where a constant decides a branch, kernels before 6.5 do not follow it back into a function, and take
// every number for decisive instead (`mark_all_scalars_precise`); then no two paths are one.

/// Whether the policy is about the destination.
#[inline(never)]
fn route<const FAMILY: u8>(ctx: *mut bpf_sock_addr, o: &mut Outbound) -> u32 {
    let tcp = opaque(o.tcp);
    opaque(u32::from(o.route(&SockAddr::of::<FAMILY>(ctx), tcp)))
}

#[inline(never)]
fn decide(sk: Sock, o: &mut Outbound) -> u32 {
    o.decide(sk);
    opaque(0)
}

/// Returns an errno or 0.
#[inline(never)]
fn carry_out<const FAMILY: u8>(ctx: *mut bpf_sock_addr, sk: Sock, o: &Outbound) -> u32 {
    errno(decided(&SockAddr::of::<FAMILY>(ctx), sk, o))
}

/// The same of a UDP socket.
#[inline(never)]
fn carry_out_dns<const FAMILY: u8>(ctx: *mut bpf_sock_addr, sk: Sock, o: &Outbound, routed: u32) -> u32 {
    errno(udp_dns::connect(&SockAddr::of::<FAMILY>(ctx), sk, o, routed != 0))
}

#[inline(always)]
fn errno(result: Result<(), u16>) -> u32 {
    opaque(u32::from(result.err().unwrap_or(0)))
}

#[inline(always)]
fn decided(ctx: &SockAddr, sk: Sock, o: &Outbound) -> Result<(), u16> {
    if !o.decision.is_pass() && o.errno != 0 {
        // netfilter sees a packet only after routing has accepted it, so routing's errors come first.
        o.active.count(Counter::RefusedByRoute);
        return Err(o.errno);
    }
    let passes = o.decision.is_pass() && !means_another(&o.active, &o.dst, o.dport);
    let result = if opaque(passes) { pass(ctx, sk, o) } else { redirect(ctx, sk, o) };
    if result.is_err() {
        o.bound.undo(ctx, sk, o.active.instance);
    }
    result
}

/// Whether an application connects by itself to an address that redirector gives, at the proxy's port: the address stands
/// for somebody else's destination, or will. At another port an address that stands for nothing keeps its own meaning.
#[inline(always)]
fn means_another(active: &ActivePolicy, dst: &Addr, port: u16) -> bool {
    let instance = active.instance;
    if !destinations::is_given(instance, dst) {
        return false;
    }
    if destinations::original(instance, dst, port).is_some()
        || ListenerRole::of_port(active.policy, port).is_some()
    {
        return true;
    }
    if destinations::is_for_destinations(instance, dst) {
        destinations::keep(instance, dst);
    }
    false
}

/// Whether a connection to the pod itself looks as if it came from the network: neither end is a loopback address. By its FLOWS
/// entry sk_lookup tells it from one that does. Without the entry it would go to the proxy.
#[inline(always)]
fn looks_foreign(o: &Outbound) -> bool {
    let source = if o.bound.addr.is_unspecified() { &o.way.source } else { &o.bound.addr };
    o.way.lo && !o.dst.is_loopback() && !source.is_loopback()
}

/// The connection goes its own way. What an earlier redirect left on the socket is undone.
#[inline(always)]
fn pass(ctx: &SockAddr, sk: Sock, o: &Outbound) -> Result<(), u16> {
    let (instance, rule) = (o.active.instance, o.decision.rule);
    let foreign = opaque(looks_foreign(o));
    if foreign && o.active.is_full() {
        o.active.count(Counter::RefusedFull);
        return Err(ENOBUFS);
    }
    o.bound.undo(ctx, sk, instance);
    // Remembered so that SO_ORIGINAL_DST can tell a client from an accepted socket. Without
    // memory for it nothing but that answer is lost, except of one that looks foreign its entry.
    if let Some(state) = socket_state::get_or_create(sk, instance) {
        state.kind = if foreign { SockKind::LOCAL } else { SockKind::PASSED };
        state.pending = 1;
        state.rule = rule as u32;
        state.verdict = Verdict::Pass as u16;
    } else if foreign {
        o.active.count(Counter::RefusedUnstored);
        return Err(ENOBUFS);
    }
    o.active.count(rule);
    Ok(())
}

#[inline(always)]
fn redirect(ctx: &SockAddr, sk: Sock, o: &Outbound) -> Result<(), u16> {
    let unchanged = opaque(o.decision.rule as u32 == Counter::OutTproxyLoopback as u32);
    let (port, verdict) = opaque((proxy_port(o), verdict(o)));
    let registered = opaque(listeners::is_registered(&o.active, opaque(role(o)), &o.dst));
    let eligible = opaque(!unchanged && registered && o.dst.is_v4());
    if eligible && opaque(to_virtual_destination(ctx, sk, o, port, verdict)?) {
        o.active.count(o.decision.rule);
        return Ok(());
    }
    if o.active.is_full() {
        o.active.count(Counter::RefusedFull);
        return Err(ENOBUFS);
    }
    // Without memory for its state the connection would lose its destination.
    let Some(state) = socket_state::get_or_create(sk, o.active.instance) else {
        o.active.count(Counter::RefusedUnstored);
        return Err(ENOBUFS);
    };
    if unchanged {
        // TPROXY changes no address: sk_lookup gives the connection to the listener.
        *state = redirected(o, 0, o.dst, o.dport, verdict);
        o.active.count(o.decision.rule);
        o.bound.undo(ctx, sk, o.active.instance);
        return Ok(());
    }
    let itself = o.bound.port == port;
    let proxy = match source_address::bind(ctx, sk, o, state)? {
        Some(from) => proxy_address(o, registered, if itself { &Addr::UNSPECIFIED } else { &from }),
        // To its own address the kernel chooses the same source as to the original destination; getsockname of the
        // proxy is repaired.
        None if !itself => o.way.source,
        None => {
            o.active.count(Counter::RefusedNoListener);
            return Err(ECONNREFUSED);
        }
    };
    let proxy = opaque(proxy);
    o.active.count(o.decision.rule);
    *state = redirected(o, state.bound_by_us, proxy, port, verdict);
    ctx.set_name(&proxy, port);
    Ok(())
}

/// Sends a connection to the address that stands for its destination. False if it must be handed over by itself.
#[inline(always)]
fn to_virtual_destination(
    ctx: &SockAddr,
    sk: Sock,
    o: &Outbound,
    port: u16,
    verdict: u16,
) -> Result<bool, u16> {
    let bind = opaque(o.bound.addr.is_unspecified() && is_worth_binding(&o.way.source));
    // bpf_bind takes no socket that has a port.
    if bind && o.bound.port != 0 || !o.active.has(flag::SPREAD) {
        return Ok(false);
    }
    let wanted = Destination {
        addr: o.dst.v4_be(),
        port: o.dport,
        proxy_port: port,
        verdict,
        source_bound: bind.into(),
        rule: o.decision.rule as u32,
    };
    let Some(proxy) = destinations::give(&o.active, &wanted) else {
        o.active.count(Counter::DestinationsFull);
        return Ok(false);
    };
    // What an earlier connect() of this socket has left.
    if let Some(state) = socket_state::get(sk, o.active.instance) {
        state.kind = SockKind::NONE;
    }
    if !bind {
        o.bound.undo(ctx, sk, o.active.instance);
    } else {
        source_address::bind_source(ctx, o)?;
    }
    ctx.set_name(&proxy, port);
    Ok(true)
}

#[inline(always)]
fn proxy_port(o: &Outbound) -> u16 {
    let policy = o.active.policy;
    match o.decision.verdict {
        Verdict::Pass => o.dport,
        Verdict::Inbound => policy.inbound_port,
        Verdict::Dns => policy.dns_port,
        Verdict::Outbound => policy.outbound_port,
    }
}

#[inline(always)]
fn verdict(o: &Outbound) -> u16 {
    if o.decision.is_pass() { DIRECT } else { o.decision.verdict as u16 }
}

/// The role of the listener that gets the connection: for what passes, that of the port.
#[inline(always)]
fn role(o: &Outbound) -> u32 {
    if o.decision.is_pass() {
        ListenerRole::of_port(o.active.policy, o.dport).map_or(0, |role| role as u32)
    } else {
        o.decision.verdict as u32
    }
}

#[inline(always)]
fn redirected(o: &Outbound, bound_by_us: u8, proxy: Addr, proxy_port: u16, verdict: u16) -> SockState {
    SockState {
        kind: SockKind::REDIRECTED,
        bound_by_us,
        pending: 1,
        verdict,
        orig: o.dst,
        proxy,
        orig_port: o.dport,
        proxy_port,
        rule: o.decision.rule as u32,
        instance: o.active.instance.generation,
    }
}

/// Where to connect to from an address of the socket. Over IPv4 each connection goes to another address: with one for all
/// an app would have only one connection for each of its ports; under iptables it has one for each port and destination.
///
/// Not from another address to `::1`: the kernel answers there only for a socket (`tcp_v6_send_response` looks up the
/// route without the device, and what answers for no socket leaves the pod). From an address to itself it stays on lo.
#[inline(always)]
fn proxy_address(o: &Outbound, registered: bool, from: &Addr) -> Addr {
    let dst = &o.dst;
    if !registered || dst.is_v4() && !o.active.has(flag::SPREAD) {
        return dst.localhost();
    }
    if dst.is_v4() {
        return destinations::next_for_connection(o.active.instance).unwrap_or(Addr::LOOPBACK_V4);
    }
    if is_worth_binding(from) && o.active.is_local(*from) { *from } else { Addr::LOOPBACK_V6 }
}
