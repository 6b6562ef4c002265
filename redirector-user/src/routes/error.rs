//! What can go wrong while the kernel is asked.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

/// Why the namespace could not be mirrored or changed.
///
/// Every message says what failed, on what, with which errno, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// The thread that enters the namespace could not be started.
    #[error(
        "cannot start the thread that enters the network namespace: {0}; raise the limit \
         of tasks (ulimit -u, pids.max)"
    )]
    Thread(#[source] io::Error),
    /// `setns(2)` refused the descriptor.
    #[error(
        "cannot enter the network namespace: {0}; it takes CAP_SYS_ADMIN in this user namespace and in the \
         one that owns the network namespace, and a descriptor of a network namespace (EINVAL: it is another file)"
    )]
    Enter(#[source] io::Error),
    /// A socket could not be made or set up inside the namespace.
    #[error(
        "cannot open {what} in the namespace: {source}; raise the limit of open files or \
         allow this socket family (seccomp)"
    )]
    Socket {
        /// Which socket.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A question could not be sent.
    #[error("cannot ask the kernel for {what} (netlink send): {source}")]
    Send {
        /// What was asked for.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An answer did not arrive. EAGAIN: none within the time limit; ENOBUFS: it did not fit into the
    /// socket's buffer.
    #[error(
        "no answer from the kernel for {what} (netlink receive): {source}; try again, and if it \
         repeats raise net.core.rmem_max or look for a process that holds the rtnl lock"
    )]
    Receive {
        /// What was asked for.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused to list something.
    #[error("the kernel does not list {what} of the namespace: {source}")]
    Dump {
        /// What was listed.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The list changed under every attempt to read it (`NLM_F_DUMP_INTR`).
    #[error(
        "{what} of the namespace changed during each of {attempts} attempts to list them; try again \
         when they are at rest"
    )]
    Restless {
        /// What was listed.
        what: &'static str,
        /// How often it was tried.
        attempts: u32,
    },
    /// A message that does not have the form uapi/linux/rtnetlink.h gives it.
    #[error("the kernel's answer for {what} is malformed; please report it with `uname -r`")]
    Malformed {
        /// What was asked for.
        what: &'static str,
    },
    /// The kernel could not say how it routes a destination, for a reason that is not a route's.
    #[error("the kernel does not say how it routes {destination}: {source}; try again")]
    Route {
        /// The destination.
        destination: IpAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An address could not be added to lo or removed from it.
    #[error(
        "cannot {verb} {address}/128 on lo: {source}; it takes CAP_NET_ADMIN over the namespace, and IPv6 \
         enabled on lo to add (net.ipv6.conf.lo.disable_ipv6=0)"
    )]
    LoopbackAddress {
        /// "add" or "remove".
        verb: &'static str,
        /// The address.
        address: Ipv6Addr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The namespace has no loopback interface.
    #[error("the namespace has no loopback interface to put addresses on")]
    NoLoopback,
}

impl RouteError {
    /// The errno behind it, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Thread(source) | Self::Enter(source) => source.raw_os_error(),
            Self::Socket { source, .. }
            | Self::Send { source, .. }
            | Self::Receive { source, .. }
            | Self::Dump { source, .. }
            | Self::Route { source, .. }
            | Self::LoopbackAddress { source, .. } => source.raw_os_error(),
            Self::Restless { .. } | Self::Malformed { .. } | Self::NoLoopback => None,
        }
    }
}
