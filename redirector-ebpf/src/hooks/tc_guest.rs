//! tc ingress of a virtual interface: which packets of a guest are none of ours.
//!
//! A routing rule takes packets, not connections: it would also take the guest's answers to connections
//! that were routed or translated to it past every socket of the pod. Those are marked as foreign, and the
//! rule takes what is not; so without this program, all is taken.

use aya_ebpf::bindings::{
    TC_ACT_UNSPEC, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use redirector_common::Addr;
use redirector_common::abi::FlowKey;
use redirector_common::abi::guest_mark::{BOTH, FOREIGN, OURS};

use crate::ctx::{IPPROTO_TCP, Packet};
use crate::instance::Instance;
use crate::maps::{self, GUESTS};

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const HOP_BY_HOP: u32 = 0;
const ROUTING: u32 = 43;
const FRAGMENT: u32 = 44;
const DESTINATION: u32 = 60;
/// Headers between those of IPv6 and TCP; each may occur once, DESTINATION twice (RFC 8200, 4.1).
const EXTENSIONS: u32 = 5;
const SYN: u32 = 2;
const ACK: u32 = 16;

/// Filters that follow are asked, too.
pub fn classify(ctx: &Packet) -> i32 {
    let bits = match segment(ctx) {
        Ok(segment) if is_ours(ctx, &segment) => OURS,
        Ok(_) => FOREIGN,
        Err(bits) => bits,
    };
    // Nobody else may exempt anything by the mark.
    let (before, mark) = (ctx.mark(), ctx.mark() & !BOTH | bits);
    if mark != before {
        ctx.set_mark(mark);
    }
    TC_ACT_UNSPEC
}

struct Segment {
    /// The guest is the client, its peer the "proxy".
    flow: FlowKey,
    v4: bool,
    flags: u32,
}

/// A SYN begins a connection that is captured; what follows has a socket here. A connection that was
/// captured stays ours for a while when its socket is gone: what was on the way must not leave the pod.
#[inline(always)]
fn is_ours(ctx: &Packet, segment: &Segment) -> bool {
    let answers_syn = match segment.flags & (SYN | ACK) {
        SYN => return true,
        other => other == SYN | ACK,
    };
    let guests = Instance::of_hook().and_then(|instance| GUESTS.of(instance));
    if !answers_syn && guests.is_some_and(|guests| guests.get(&segment.flow).is_some()) {
        return true;
    }
    let ours = has_connection(ctx, segment);
    if answers_syn && !ours {
        // Now the guest is the server, at the same ports.
        if let Some(guests) = guests {
            guests.remove(&segment.flow);
        }
    }
    ours
}

#[inline(always)]
fn has_connection(ctx: &Packet, segment: &Segment) -> bool {
    let flow = &segment.flow;
    let (sport, dport) = (flow.client_port.to_be(), flow.proxy_port.to_be());
    let (from, to) = (flow.client.words, flow.proxy.words);
    // Without a connection the lookup goes on to the listeners, and so to sk_lookup.
    maps::set_probed(flow.client_port, flow.proxy_port);
    let found = if segment.v4 {
        let ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 { saddr: from[3], daddr: to[3], sport, dport };
        let mut tuple = bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv4 } };
        ctx.has_connection(&mut tuple, size_of_val(&ipv4))
    } else {
        let ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 { saddr: from, daddr: to, sport, dport };
        let mut tuple = bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv6 } };
        ctx.has_connection(&mut tuple, size_of_val(&ipv6))
    };
    maps::set_probed(0, 0);
    found
}

/// A segment whose ports cannot be known is ours: a later fragment, a broken one. Where netfilter puts fragments
/// together (conntrack), that is before routing, and the mark is the first one's (`inet_frag_reasm_prepare`).
#[inline(always)]
fn segment(ctx: &Packet) -> Result<Segment, u32> {
    let v4 = match ctx.protocol() {
        ETH_P_IP => true,
        ETH_P_IPV6 => false,
        _ => return Err(0),
    };
    let (client, proxy, at) = if v4 { ipv4(ctx)? } else { ipv6(ctx)? };
    let [ports, _, _, offset_and_flags] = ctx.words::<4>(at).ok_or(OURS)?.map(u32::from_be);
    let flow = FlowKey { client, proxy, client_port: (ports >> 16) as u16, proxy_port: ports as u16 };
    Ok(Segment { flow, v4, flags: offset_and_flags >> 16 })
}

/// Source, destination, and where TCP's header is.
#[inline(always)]
fn ipv4(ctx: &Packet) -> Result<(Addr, Addr, u32), u32> {
    let header: [u32; 5] = ctx.words(0).ok_or(OURS)?;
    let [first, fragment, protocol, ..] = header.map(u32::from_be);
    if protocol >> 16 & 0xff != IPPROTO_TCP {
        return Err(0);
    }
    if fragment & 0x1fff != 0 {
        return Err(OURS);
    }
    Ok((Addr::v4(header[3]), Addr::v4(header[4]), (first >> 24 & 0xf) * 4))
}

/// The same; past the headers that the rule's `ipproto` looks past (`__skb_flow_dissect`).
#[inline(always)]
fn ipv6(ctx: &Packet) -> Result<(Addr, Addr, u32), u32> {
    let header: [u32; 10] = ctx.words(0).ok_or(OURS)?;
    let [_, _, s0, s1, s2, s3, d0, d1, d2, d3] = header;
    let (mut next, mut at) = (u32::from_be(header[1]) >> 8 & 0xff, 40);
    let mut left = EXTENSIONS;
    while next != IPPROTO_TCP {
        if !matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION) {
            return Err(0);
        }
        let first = u32::from_be(ctx.words::<1>(at).ok_or(OURS)?[0]);
        if left == 0 || next == FRAGMENT && first & 0xfff8 != 0 {
            return Err(OURS);
        }
        left -= 1;
        at += if next == FRAGMENT { 8 } else { ((first >> 16 & 0xff) + 1) * 8 };
        next = first >> 24;
    }
    Ok((Addr::v6([s0, s1, s2, s3]), Addr::v6([d0, d1, d2, d3]), at))
}
