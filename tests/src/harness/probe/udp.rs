//! Queries by UDP, from both sides: a datagram there, a datagram with the server's report back.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_ipv6_v6only, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrAny, SocketFlags, SocketType, ipproto, socket_with,
};

use super::connect::{local_name, peer_name};
use super::{serve, sys};
use crate::harness::probe::observation::{Accepted, AddressOrErrno, OK, Observation, errno_name, outcome};
use crate::harness::probe::scenario::Udp;

/// An answer needs the server to be scheduled. Some queries are never answered.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// More than any report has.
const MAX_DATAGRAM_BYTES: usize = 4096;

/// A UDP socket, for IPv6 one of which the client side may also be used for IPv4.
pub(super) fn socket(family: AddressFamily, flags: SocketFlags) -> io::Result<OwnedFd> {
    let fd = socket_with(family, SocketType::DGRAM, flags, Some(ipproto::UDP))?;
    if family == AddressFamily::INET6 {
        set_ipv6_v6only(&fd, false)?;
    }
    set_socket_timeout(&fd, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
    Ok(fd)
}

/// Asks, and waits for the answer.
pub(super) fn query(way: Udp, fd: &OwnedFd, to: SocketAddr, seen: &mut Observation) {
    const QUERY: &[u8] = b"who are you?";
    let sent = match way {
        Udp::Connect => rustix::net::connect(fd, &to),
        Udp::SendTo => rustix::net::sendto(fd, QUERY, SendFlags::NOSIGNAL, &to).map(drop),
    };
    seen.connect = Some(outcome(sent));
    seen.local = Some(local_name(fd));
    seen.peer = Some(peer_name(fd));
    seen.original_dst = Some(sys::original_dst(fd, libc::SOL_IP));
    seen.original_dst6 = Some(sys::original_dst(fd, libc::SOL_IPV6));
    if seen.connect.as_deref() != Some(OK) {
        return;
    }
    if way == Udp::Connect
        && let Err(error) = rustix::net::send(fd, QUERY, SendFlags::NOSIGNAL)
    {
        seen.greeting = Some(format!("send: {}", errno_name(&error.into())));
        return;
    }
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    match rustix::net::recvfrom(fd, &mut buffer[..], RecvFlags::empty()) {
        Ok((length, _, from)) => {
            seen.answered_by = Some(serve::name(Ok(from)));
            match serde_json::from_slice(&buffer[..length]) {
                Ok(report) => seen.reached = Some(report),
                Err(error) => seen.greeting = Some(error.to_string()),
            }
        }
        Err(error) => seen.greeting = Some(errno_name(&error.into())),
    }
}

/// Answers one query with the report that a connection would get.
pub(super) fn answer(fd: &OwnedFd, listener: SocketAddr, role: &str) -> io::Result<()> {
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    // The sender of a query that fails here sees no answer.
    let Ok((_, _, Some(from))) = rustix::net::recvfrom(fd, &mut buffer[..], RecvFlags::empty()) else {
        return Ok(());
    };
    let peer = seen(from.clone());
    let report = Accepted {
        role: role.to_owned(),
        listener,
        accept_peer: peer.clone(),
        peer,
        local: serve::name(rustix::net::getsockname(fd).map(Some)),
        original_dst: sys::original_dst(fd, libc::SOL_IP),
        original_dst6: sys::original_dst(fd, libc::SOL_IPV6),
    };
    let _ = rustix::net::sendto(fd, &serde_json::to_vec(&report)?, SendFlags::NOSIGNAL, &from);
    Ok(())
}

fn seen(address: SocketAddrAny) -> AddressOrErrno {
    serve::name(Ok(Some(address)))
}
