//! How a network namespace answers connect(2), mirrored into a longest-prefix table.
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
//! lookup applies the policy rules. tests/mirror/ compares the outcomes with real connects.
//!
//! # What is not in it
//! - It speaks for TCP sockets without a mark, a bound device or a bound source, on ports no rule selects, of
//!   the user that reads (rules on uidrange, fwmark, ports and TOS are answered for such a socket).
//! - A route with several next hops is answered as for the address that was asked (`fib_select_path` hashes
//!   the destination).
//! - fe80::/10 is what `ip -6 route get` says without an interface. connect(2) without a scope is refused
//!   there (EINVAL), but a connect hook does not see `sin6_scope_id`, and those who use link-local addresses
//!   give one.
//! - IPv4-mapped IPv6 (::ffff:0:0/96) is not there: connect(2) routes it as IPv4.
//! - It is a snapshot; [`RouteSnapshot`] is comparable and sorted, so that a second one tells whether anything
//!   changed.

mod ask;
mod error;
mod lists;
mod loopback;
mod prefix;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wire_tests;

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

use ipnet::IpNet;
use rustix::fs::{fstat, stat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub use self::error::RouteError;

use self::ask::Asker;
use self::prefix::Block;
use crate::netlink::Netlink;

/// How a namespace routes, and its interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSnapshot {
    /// Sorted, IPv4 before IPv6; always has 0.0.0.0/0 and ::/0. The longest prefix that holds a destination
    /// decides.
    pub routes: Vec<Route>,
    /// Sorted by index.
    pub interfaces: Vec<Interface>,
}

/// What connect(2) comes to for the destinations of a prefix that no longer prefix takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The prefix; its host bits are zero.
    pub prefix: IpNet,
    /// What happens.
    pub outcome: Outcome,
}

/// What connect(2) of an unbound TCP socket comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The packet leaves on a loopback interface: an address of the namespace, or a route over lo (iptables'
    /// `-o lo`).
    Local {
        /// The source address (`fib_result_prefsrc`, `ipv6_dev_get_saddr`); `None`: the destination itself.
        source: Option<IpAddr>,
    },
    /// The packet leaves on another interface.
    Via {
        /// Index of the interface, host byte order.
        oif: u32,
        /// The source address (RTA_PREFSRC); `None`: the kernel has none, and the source would be 0.0.0.0
        /// (only IPv4).
        source: Option<IpAddr>,
    },
    /// The broadcast address of an interface: connect(2) fails with ENETUNREACH, or, from a loopback source,
    /// with EINVAL (`__mkroute_output` looks at the source first).
    Broadcast {
        /// Index of the interface, host byte order.
        oif: u32,
    },
    /// connect(2) fails.
    Refused {
        /// The positive errno: ENETUNREACH (no route, throw, multicast, broadcast), EHOSTUNREACH
        /// (unreachable), EACCES (prohibit), EINVAL (blackhole), EADDRNOTAVAIL (no IPv6 source address),
        /// EAFNOSUPPORT (socket(2) says so in a kernel without IPv6)...
        errno: i32,
    },
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index, host byte order.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its own addresses with their prefix lengths, IPv4 then IPv6, in the order in which the kernel lists
    /// them (the first IPv4 one is the primary address, the one REDIRECT uses). Addresses that failed
    /// duplicate detection are left out.
    pub addresses: Vec<IpNet>,
    /// Whether what leaves on it comes straight back (IFF_LOOPBACK).
    pub loopback: bool,
}

/// Mirrors a network namespace.
///
/// Blocks for about half a millisecond in a typical pod. A thread of its own enters the namespace with setns(2),
/// unless the caller is in it, which takes CAP_SYS_ADMIN over it; reading takes no privilege. Nothing is sent
/// to the network.
///
/// # Errors
/// [`RouteError`]. That the namespace has no route to somewhere, or no IPv6, is no error.
pub fn read(netns: BorrowedFd<'_>) -> Result<RouteSnapshot, RouteError> {
    inside(netns, |netlink| {
        let ipv6 = has_ipv6()?;
        let (v4, v6) = (libc::AF_INET as u8, libc::AF_INET6 as u8);
        let families: &[u8] = if ipv6 { &[v4, v6] } else { &[v4] };
        let interfaces = lists::interfaces(netlink, families)?;
        let mut blocks = lists::prefixes(netlink, v4, &interfaces)?;
        if ipv6 {
            blocks.extend(lists::prefixes(netlink, v6, &interfaces)?);
        }
        let loopbacks = interfaces.iter().filter(|it| it.loopback).map(|it| it.index).collect();
        let mut outcomes = Asker::new(netlink, loopbacks).outcomes(&blocks)?;

        let mapped = Block::new(lists::V4_MAPPED.0.into(), lists::V4_MAPPED.1);
        outcomes.retain(|(block, _)| !mapped.is_some_and(|mapped| mapped.covers(block)));
        if !ipv6 {
            let all = Block::new(Ipv6Addr::UNSPECIFIED.into(), 0);
            outcomes.extend(all.map(|all| (all, Outcome::Refused { errno: libc::EAFNOSUPPORT })));
        }
        Ok(RouteSnapshot { routes: prefix::merge(outcomes), interfaces })
    })
}

/// Adds `address`/128 to the namespace's lo without duplicate address detection; `false` if lo has it
/// already.
///
/// istio-iptables adds ::6 so that the proxy can bind it. Do it before [`read`]: the address then belongs to
/// the mirror.
///
/// # Errors
/// [`RouteError::LoopbackAddress`] (EPERM, EACCES if IPv6 is disabled on lo, EOPNOTSUPP in a kernel without
/// IPv6) and those of [`read`].
pub fn add_loopback_address(netns: BorrowedFd<'_>, address: Ipv6Addr) -> Result<bool, RouteError> {
    inside(netns, |netlink| loopback::add(netlink, address))
}

/// Removes `address`/128 from the namespace's lo; `false` if lo does not have it.
///
/// # Errors
/// Those of [`add_loopback_address`].
pub fn remove_loopback_address(netns: BorrowedFd<'_>, address: Ipv6Addr) -> Result<bool, RouteError> {
    inside(netns, |netlink| loopback::remove(netlink, address))
}

/// Runs `work` on a thread in the namespace, which ends with it.
fn inside<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce(&mut Netlink) -> Result<T, RouteError> + Send,
) -> Result<T, RouteError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("mirror".into()).spawn_scoped(scope, move || {
            if !is_current(netns) {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                    .map_err(|errno| RouteError::Enter(errno.into()))?;
            }
            work(&mut Netlink::open()?)
        });
        match thread.map_err(RouteError::Thread)?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Whether the calling thread is in the namespace: entering it again would take privileges that reading does
/// not.
fn is_current(netns: BorrowedFd<'_>) -> bool {
    match (fstat(netns), stat("/proc/thread-self/ns/net")) {
        (Ok(theirs), Ok(ours)) => (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino),
        _ => false,
    }
}

/// Whether the kernel has IPv6 at all (not with `ipv6.disable=1`; `disable_ipv6` only takes the addresses
/// away).
fn has_ipv6() -> Result<bool, RouteError> {
    match rustix::net::socket_with(AddressFamily::INET6, SocketType::DGRAM, SocketFlags::CLOEXEC, None) {
        Ok(_) => Ok(true),
        Err(Errno::AFNOSUPPORT) => Ok(false),
        Err(errno) => Err(RouteError::Socket { what: "an IPv6 socket", source: errno.into() }),
    }
}
