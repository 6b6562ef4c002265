//! BPF_PROG_TEST_RUN: what a program would do with a SYN, without one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::bpf::bpf;

const BPF_PROG_TEST_RUN: i32 = 10;
const SK_DROP: u32 = 0;

/// What becomes of the SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The usual lookup finds who gets it.
    Pass,
    /// It is dropped: the client sees ECONNREFUSED.
    Drop,
    /// The listener with this cookie gets it.
    Given(u64),
    /// A group of SO_REUSEPORT listeners gets it; the kernel does not say which.
    GivenToGroup,
}

/// `struct bpf_sk_lookup`.
#[repr(C)]
#[derive(Default)]
struct Ctx {
    cookie: u64,
    family: u32,
    protocol: u32,
    remote_ip4: [u8; 4],
    remote_ip6: [u8; 16],
    remote_port: u16,
    pad: u16,
    local_ip4: [u8; 4],
    local_ip6: [u8; 16],
    local_port: u32,
    // The kernel takes only zeroes from here on, the padding of its struct included.
    ingress_ifindex: u32,
    tail: u32,
}

#[repr(C)]
#[derive(Default)]
struct Attr {
    prog_fd: u32,
    retval: u32,
    data_size: [u32; 2],
    data: [u64; 2],
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags_cpu_batch_pad: [u32; 4],
}

/// What a program returns for a packet, which begins with its Ethernet header.
///
/// # Errors
///
/// The kernel's: of a program that it does not run so, or of a packet that is too short.
pub fn packet(program: BorrowedFd<'_>, packet: &[u8]) -> io::Result<u32> {
    let mut attr = Attr {
        prog_fd: program.as_raw_fd() as u32,
        data_size: [packet.len() as u32, 0],
        data: [packet.as_ptr() as u64, 0],
        ..Attr::default()
    };
    bpf(BPF_PROG_TEST_RUN, &mut attr)?;
    Ok(attr.retval)
}

/// Runs an sk_lookup program in the calling thread's network namespace.
///
/// # Errors
///
/// The kernel's: it offers this since 5.14.
pub fn sk_lookup(program: BorrowedFd<'_>, from: SocketAddr, to: SocketAddr) -> io::Result<Lookup> {
    let mut ctx = Ctx {
        family: if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u32,
        protocol: libc::IPPROTO_TCP as u32,
        remote_port: from.port().to_be(),
        local_port: to.port().into(),
        ..Ctx::default()
    };
    (ctx.remote_ip4, ctx.remote_ip6) = octets(from.ip());
    (ctx.local_ip4, ctx.local_ip6) = octets(to.ip());
    let size = size_of::<Ctx>() as u32;
    let pointer = (&raw mut ctx) as u64;
    let mut attr = Attr {
        prog_fd: program.as_raw_fd() as u32,
        ctx_size_in: size,
        ctx_size_out: size,
        ctx_in: pointer,
        ctx_out: pointer,
        ..Attr::default()
    };
    match bpf(BPF_PROG_TEST_RUN, &mut attr) {
        // bpf_prog_test_run_sk_lookup, if the selected socket has sk_reuseport.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Lookup::GivenToGroup),
        other => other?,
    };
    Ok(match (attr.retval, ctx.cookie) {
        (SK_DROP, _) => Lookup::Drop,
        (_, 0) => Lookup::Pass,
        (_, cookie) => Lookup::Given(cookie),
    })
}

fn octets(ip: IpAddr) -> ([u8; 4], [u8; 16]) {
    match ip {
        IpAddr::V4(v4) => (v4.octets(), Ipv6Addr::UNSPECIFIED.octets()),
        IpAddr::V6(v6) => (Ipv4Addr::UNSPECIFIED.octets(), v6.octets()),
    }
}
