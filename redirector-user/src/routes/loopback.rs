//! Addresses of the loopback interface.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};

use super::lists::{IFA_FLAGS, interfaces};
use super::{Interface, RouteError};
use crate::netlink::{Message, Netlink};

/// Adds `address`/128 to lo (RTM_NEWADDR with IFA_F_NODAD, inet6_rtm_newaddr); `false` if it is there.
pub(super) fn add(netlink: &mut Netlink, address: Ipv6Addr) -> Result<bool, RouteError> {
    change(netlink, address, libc::RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, "add", libc::EEXIST)
}

/// Removes it (RTM_DELADDR, inet6_rtm_deladdr); `false` if it is not there.
pub(super) fn remove(netlink: &mut Netlink, address: Ipv6Addr) -> Result<bool, RouteError> {
    change(netlink, address, libc::RTM_DELADDR, 0, "remove", libc::EADDRNOTAVAIL)
}

/// `unchanged` is the errno that says there is nothing to do.
fn change(
    netlink: &mut Netlink,
    address: Ipv6Addr,
    kind: u16,
    flags: u16,
    verb: &'static str,
    unchanged: i32,
) -> Result<bool, RouteError> {
    let interfaces = interfaces(netlink, &[])?;
    let Interface { index, .. } =
        interfaces.iter().find(|interface| interface.loopback).ok_or(RouteError::NoLoopback)?;
    // struct ifaddrmsg: family, prefix length, flags, scope (host), index.
    let mut header = vec![libc::AF_INET6 as u8, 128, libc::IFA_F_NODAD as u8, libc::RT_SCOPE_HOST];
    header.extend_from_slice(&index.to_ne_bytes());
    let message = Message::new(kind, flags | NLM_F_ACK, &header)
        .address(libc::IFA_LOCAL, IpAddr::V6(address))
        .address(libc::IFA_ADDRESS, IpAddr::V6(address))
        .attribute(IFA_FLAGS, &libc::IFA_F_NODAD.to_ne_bytes());
    let answers = netlink.ask::<()>("a change of lo's addresses", [message].into_iter(), |_| None)?;
    match answers.into_iter().next() {
        Some(Err(0)) => Ok(true),
        Some(Err(errno)) if errno == unchanged => Ok(false),
        Some(Err(errno)) => {
            Err(RouteError::LoopbackAddress { verb, address, source: io::Error::from_raw_os_error(errno) })
        }
        // Every other answer is malformed and was refused as such.
        Some(Ok(())) | None => Err(RouteError::Malformed { what: "a change of lo's addresses" }),
    }
}
