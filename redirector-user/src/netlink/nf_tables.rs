//! Lists of nf_tables (uapi/linux/netfilter/nf_tables.h), which iptables-nft uses, too.

use rustix::net::netlink::NETFILTER;

use super::{Message, Netlink};
use crate::base::Result;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// NFT_MSG_GETCHAIN.
pub(crate) const GETCHAIN: u16 = 4;
/// NFT_MSG_GETRULE.
pub(crate) const GETRULE: u16 = 7;
/// sizeof(struct nfgenmsg): any family, version 0, resource 0.
pub(crate) const HEADER: usize = 4;

/// Lists objects of the calling thread's namespace. A kernel without nf_tables has none.
pub(crate) fn list<T>(
    what: &'static str,
    request: u16,
    decode: impl FnMut(&[u8]) -> Option<T>,
) -> Result<Vec<T>> {
    let request = Message::new(NFNL_SUBSYS_NFTABLES << 8 | request, 0, &[0; HEADER]);
    let listed =
        Netlink::open_protocol(Some(NETFILTER)).and_then(|mut netlink| netlink.list(what, &request, decode));
    match listed {
        // No netfilter netlink, or nfnetlink knows no nf_tables.
        Err(e) if matches!(e.errno(), Some(libc::EPROTONOSUPPORT | libc::EINVAL | libc::EOPNOTSUPP)) => {
            Ok(Vec::new())
        }
        listed => Ok(listed?),
    }
}
