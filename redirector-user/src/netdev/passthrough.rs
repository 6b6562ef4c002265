//! `::6` on lo, which Envoy binds for what it hands to the application over IPv6 (istio-iptables adds it, too).

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use redirector_common::Addr;
use redirector_common::abi::LOOPBACK_IFINDEX;

use super::rules;
use crate::base::error::Result;
use crate::netlink::{self, Message};
use crate::sys::netns::NetNs;

const IFA_FLAGS: u16 = 8;

/// Adds it without duplicate address detection (RTM_NEWADDR with IFA_F_NODAD, inet6_rtm_newaddr); `false` if lo has it.
///
/// # Errors
///
/// The kernel's: EACCES if IPv6 is off on lo.
pub fn add(netns: &NetNs) -> Result<bool> {
    change(netns, libc::RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, "add ::6/128 to lo", libc::EEXIST)
}

/// Removes it (RTM_DELADDR, inet6_rtm_deladdr); `false` if lo does not have it.
///
/// # Errors
///
/// The kernel's.
pub fn remove(netns: &NetNs) -> Result<bool> {
    change(netns, libc::RTM_DELADDR, 0, "remove ::6/128 from lo", libc::EADDRNOTAVAIL)
}

/// `unchanged` is the errno that says there is nothing to do.
fn change(netns: &NetNs, kind: u16, flags: u16, what: &'static str, unchanged: i32) -> Result<bool> {
    let address = Addr::PASSTHROUGH_V6.into();
    // struct ifaddrmsg: family, prefix length, flags, scope (host), index.
    let mut header = vec![libc::AF_INET6 as u8, 128, libc::IFA_F_NODAD as u8, libc::RT_SCOPE_HOST];
    header.extend_from_slice(&LOOPBACK_IFINDEX.to_ne_bytes());
    let message = Message::new(kind, flags, &header)
        .address(libc::IFA_LOCAL, address)
        .address(libc::IFA_ADDRESS, address)
        .attribute(IFA_FLAGS, &libc::IFA_F_NODAD.to_ne_bytes());
    let answers = netlink::within(netns, |netlink| Ok(netlink.change(what, vec![message])?))?;
    match answers.first().copied().unwrap_or_default() {
        0 => Ok(true),
        errno if errno == unchanged => Ok(false),
        errno => Err(rules::refused(format!("{what}{}", rules::hint(true, errno)), errno)),
    }
}
