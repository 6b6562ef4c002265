//! Lists of nf_tables (uapi/linux/netfilter/nf_tables.h), which iptables-nft uses, too.

use rustix::net::netlink::NETFILTER;

use super::{Message, Netlink, attributes};
use crate::base::Result;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// NFT_MSG_GETTABLE.
pub(crate) const GETTABLE: u16 = 1;
/// NFT_MSG_GETCHAIN.
pub(crate) const GETCHAIN: u16 = 4;
/// NFT_MSG_GETRULE.
pub(crate) const GETRULE: u16 = 7;
/// NFT_MSG_GETSET.
pub(crate) const GETSET: u16 = 10;
/// NFT_MSG_GETSETELEM.
pub(crate) const GETSETELEM: u16 = 13;
/// sizeof(struct nfgenmsg): family, version 0, resource 0.
pub(crate) const HEADER: usize = 4;

/// What lists objects of a kind: those of all families (0), or of one.
pub(crate) fn request(kind: u16, family: u8) -> Message {
    Message::new(NFNL_SUBSYS_NFTABLES << 8 | kind, 0, &[family, 0, 0, 0])
}

/// Lists objects of the calling thread's namespace. A kernel without nf_tables has none.
pub(crate) fn list<T>(
    what: &'static str,
    request: &Message,
    decode: impl FnMut(&[u8]) -> Option<T>,
) -> Result<Vec<T>> {
    let listed =
        Netlink::open_protocol(Some(NETFILTER)).and_then(|mut netlink| netlink.list(what, request, decode));
    match listed {
        // No netfilter netlink, or nfnetlink knows no nf_tables.
        Err(e) if matches!(e.errno(), Some(libc::EPROTONOSUPPORT | libc::EINVAL | libc::EOPNOTSUPP)) => {
            Ok(Vec::new())
        }
        listed => Ok(listed?),
    }
}

/// The same as the kernel sends them.
pub(crate) fn payloads(what: &'static str, kind: u16) -> Result<Vec<Vec<u8>>> {
    list(what, &request(kind, 0), |payload| Some(payload.to_vec()))
}

/// A number, which nf_tables has in big endian.
pub(crate) fn big(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|four| u32::from_be_bytes(*four))
}

/// An attribute by the path of kinds that leads to it.
pub(crate) fn at<'a>(bytes: &'a [u8], path: &[u16]) -> Option<&'a [u8]> {
    path.iter()
        .try_fold(bytes, |bytes, kind| attributes(bytes).find(|(own, _)| own == kind).map(|(_, value)| value))
}
