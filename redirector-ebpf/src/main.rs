//! Entry points: one thin function for each hook. What they do is in the module they call.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(missing_docs, reason = "entry points, each with its hook; the macros repeat them")]
#![expect(internal_features, reason = "an atomic add: see maps::add_live")]

mod active_policy;
mod ctx;
mod destinations;
mod hooks;
mod instance;
mod listeners;
mod maps;
mod socket_owner;
mod socket_state;
mod source_address;
mod trace;
mod verifier;

use aya_ebpf::macros::{cgroup_sock_addr, cgroup_sockopt, classifier, sk_lookup, sock_ops};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockOpsContext, SockoptContext, TcContext};
use ctx::{Family, Lookup, Ops, Packet, SockAddr, Sockopt};
use hooks::{connect, getsockopt, setsockopt, sk_lookup as lookup, sock_names, sockops, tc_guest, udp_dns};

/// connect() on an IPv4 socket, before the route is looked up (4.17).
#[cgroup_sock_addr(connect4)]
pub fn rd_connect4(c: SockAddrContext) -> i32 {
    connect::connect(&SockAddr::new(c.sock_addr, Family::V4))
}

/// connect() on an IPv6 socket, native or IPv4-mapped (4.17).
#[cgroup_sock_addr(connect6)]
pub fn rd_connect6(c: SockAddrContext) -> i32 {
    connect::connect(&SockAddr::new(c.sock_addr, Family::V6))
}

/// sendto() and sendmsg() on an IPv4 UDP socket (4.18).
#[cgroup_sock_addr(sendmsg4)]
pub fn rd_sendmsg4(c: SockAddrContext) -> i32 {
    udp_dns::sendmsg(&SockAddr::new(c.sock_addr, Family::V4))
}

/// sendto() and sendmsg() on an IPv6 UDP socket (4.18).
#[cgroup_sock_addr(sendmsg6)]
pub fn rd_sendmsg6(c: SockAddrContext) -> i32 {
    udp_dns::sendmsg(&SockAddr::new(c.sock_addr, Family::V6))
}

/// recvfrom() and recvmsg() on an IPv4 UDP socket (5.2).
#[cgroup_sock_addr(recvmsg4)]
pub fn rd_recvmsg4(c: SockAddrContext) -> i32 {
    udp_dns::recvmsg(&SockAddr::new(c.sock_addr, Family::V4));
    1
}

/// recvfrom() and recvmsg() on an IPv6 UDP socket (5.2).
#[cgroup_sock_addr(recvmsg6)]
pub fn rd_recvmsg6(c: SockAddrContext) -> i32 {
    udp_dns::recvmsg(&SockAddr::new(c.sock_addr, Family::V6));
    1
}

/// getpeername() of an IPv4 socket (5.8).
#[cgroup_sock_addr(getpeername4)]
pub fn rd_peername4(c: SockAddrContext) -> i32 {
    sock_names::peer_name(&SockAddr::new(c.sock_addr, Family::V4));
    1
}

/// getpeername() of an IPv6 socket (5.8).
#[cgroup_sock_addr(getpeername6)]
pub fn rd_peername6(c: SockAddrContext) -> i32 {
    sock_names::peer_name(&SockAddr::new(c.sock_addr, Family::V6));
    1
}

/// getsockname() of an IPv4 socket (5.8).
#[cgroup_sock_addr(getsockname4)]
pub fn rd_sockname4(c: SockAddrContext) -> i32 {
    sock_names::local_name(&SockAddr::new(c.sock_addr, Family::V4));
    1
}

/// getsockname() of an IPv6 socket (5.8).
#[cgroup_sock_addr(getsockname6)]
pub fn rd_sockname6(c: SockAddrContext) -> i32 {
    sock_names::local_name(&SockAddr::new(c.sock_addr, Family::V6));
    1
}

/// Events of TCP sockets: connect, listen, accept, close (TCP_LISTEN_CB is of 4.19).
#[sock_ops]
pub fn rd_sockops(c: SockOpsContext) -> u32 {
    sockops::handle(&Ops::new(c.ops));
    1
}

/// getsockopt() after the kernel has answered it (5.3).
#[cgroup_sockopt(getsockopt)]
pub fn rd_getsockopt(c: SockoptContext) -> i32 {
    getsockopt::answer(&Sockopt::new(c.sockopt));
    1
}

/// setsockopt() before the kernel carries it out (5.3).
#[cgroup_sockopt(setsockopt)]
pub fn rd_setsockopt(c: SockoptContext) -> i32 {
    setsockopt::check(&Sockopt::new(c.sockopt))
}

/// Which listener gets a SYN (5.9).
#[sk_lookup]
pub fn rd_sk_lookup(c: SkLookupContext) -> u32 {
    lookup::select(&Lookup::new(c.lookup))
}

/// A packet that enters a virtual interface, before routing (5.2).
#[classifier]
pub fn rd_guest(c: TcContext) -> i32 {
    tc_guest::classify(&Packet::new(c.skb.skb))
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Helpers such as `bpf_set_retval` are offered to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
