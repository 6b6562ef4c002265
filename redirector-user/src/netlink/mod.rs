//! Netlink: lists that are read whole, changes that are acknowledged, sockets of a namespace.

mod error;
mod message;
pub(crate) mod nf_tables;
pub mod proc_net;
pub mod sock_diag;
mod socket;
mod sockets;
#[cfg(test)]
mod tests;

pub(crate) use error::{NetlinkError, if_present};
pub(crate) use message::{Message, Payload, attributes, family, family_header, number};
pub(crate) use socket::{Answer, Netlink};

use crate::base::Result;
use crate::sys::netns::NetNs;

/// Runs `work` with a `NETLINK_ROUTE` socket of a network namespace.
pub(crate) fn within<T: Send>(
    netns: &NetNs,
    work: impl FnOnce(&mut Netlink) -> Result<T> + Send,
) -> Result<T> {
    netns.run(|| work(&mut Netlink::open()?))
}
