//! How a network namespace answers connect(2): a snapshot of its routing as a longest-prefix table.
//!
//! Under iptables routing comes before NAT: a connect(2) to a destination without a route fails with the
//! kernel's errno although the connection would have been redirected to the local proxy, and the interface
//! and source address of the original destination are those the rules see. A connect hook sees no route, so
//! [`read`] asks the kernel for every destination that can differ.
//!
//! # Method
//! The prefixes of all routes of all tables, of the policy rules (`ip rule ... to`), those connect(2) treats
//! specially and those that decide between IPv6 source addresses are the points where the answer can change.
//! For each one an address that is in it and in no more specific one is put to the kernel's own lookup
//! (RTM_GETROUTE, `inet_rtm_getroute` and `inet6_rtm_getroute`), in the way `tcp_v4_connect` and
//! `tcp_v6_connect` do it; prefixes that say what their nearest less specific one says are left out. The
//! lookup applies the policy rules. tests/routes/ compares the outcomes with real connects.
//!
//! # What is not in it
//! - It speaks for TCP sockets without a mark, a bound device or a bound source, on ports no rule selects, of
//!   the user that reads (rules on uidrange, fwmark, ports and TOS are answered for such a socket; [`rules`]
//!   names them).
//! - A route with several next hops is answered as for the address that was asked (`fib_select_path` hashes
//!   the destination).
//! - fe80::/10 is what `ip -6 route get` says without an interface. connect(2) without a scope is refused
//!   there (EINVAL), but a connect hook does not see `sin6_scope_id`, and those who use link-local addresses
//!   give one.
//! - IPv4-mapped IPv6 (::ffff:0:0/96) is not there: connect(2) routes it as IPv4.
//! - It is a snapshot; [`RouteSnapshot`] is comparable and sorted, so that a second one tells whether anything
//!   changed.

mod ask;
mod dump;
mod prefix;
pub mod rules;
mod snapshot;
#[cfg(test)]
mod tests;

use std::net::Ipv6Addr;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use self::ask::Asker;
pub(crate) use self::dump::interfaces as list_interfaces;
use self::prefix::Block;
pub use self::snapshot::{Interface, Outcome, Route, RouteSnapshot};
use crate::base::error::{Context, Result};
use crate::netlink::{self, family};
use crate::sys::netns::NetNs;

/// Asks a network namespace how it routes.
///
/// Blocks for about half a millisecond in a typical pod. Entering the namespace takes CAP_SYS_ADMIN over it, reading takes
/// no privilege. Nothing is sent to the network.
///
/// # Errors
///
/// The kernel's. That the namespace has no route to somewhere, or no IPv6, is no error.
pub fn read(netns: &NetNs) -> Result<RouteSnapshot> {
    netlink::within(netns, |netlink| {
        let ipv6 = has_ipv6()?;
        let families = &[false, true][..1 + usize::from(ipv6)];
        let interfaces = dump::interfaces(netlink, families)?;
        let mut blocks = Vec::new();
        for v6 in families {
            blocks.extend(dump::prefixes(netlink, family(*v6), &interfaces)?);
        }
        let loopbacks = interfaces.iter().filter(|it| it.loopback).map(|it| it.index).collect();
        let mut outcomes = Asker::new(netlink, loopbacks).outcomes(&blocks)?;

        let mapped = Block::new(dump::V4_MAPPED.0.into(), dump::V4_MAPPED.1);
        outcomes.retain(|(block, _)| !mapped.is_some_and(|mapped| mapped.covers(block)));
        if !ipv6 {
            let all = Block::new(Ipv6Addr::UNSPECIFIED.into(), 0);
            outcomes.extend(all.map(|all| (all, Outcome::Refused { errno: libc::EAFNOSUPPORT })));
        }
        Ok(RouteSnapshot { routes: prefix::merge(outcomes), interfaces })
    })
}

/// The interfaces of a network namespace with their addresses, without its routes.
///
/// # Errors
///
/// The kernel's.
pub fn interfaces(netns: &NetNs) -> Result<Vec<Interface>> {
    netlink::within(netns, |netlink| {
        let families = &[false, true][..1 + usize::from(has_ipv6()?)];
        Ok(dump::interfaces(netlink, families)?)
    })
}

/// Whether the kernel has IPv6 at all (not with `ipv6.disable=1`; `disable_ipv6` only takes the addresses
/// away).
fn has_ipv6() -> Result<bool> {
    match rustix::net::socket_with(AddressFamily::INET6, SocketType::DGRAM, SocketFlags::CLOEXEC, None) {
        Ok(_) => Ok(true),
        Err(Errno::AFNOSUPPORT) => Ok(false),
        Err(errno) => Err(errno).context(|| "open an IPv6 socket in the network namespace".into()),
    }
}
