//! Netlink messages: put together for a request, taken apart from an answer.
//!
//! Only the fields this program needs are decoded, so an attribute of a newer kernel cannot make a list
//! unreadable. All numbers are in host byte order, addresses in network byte order, as in
//! uapi/linux/rtnetlink.h.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_REQUEST, NlasIterator};

/// sizeof(struct nlmsghdr).
pub(super) const NETLINK_HEADER_LEN: usize = 16;

/// AF_INET or AF_INET6, as the headers of rtnetlink have it.
pub(crate) const fn family(v6: bool) -> u8 {
    if v6 { libc::AF_INET6 as u8 } else { libc::AF_INET as u8 }
}

/// A fixed part of zeros but for the family, its first byte.
pub(crate) fn family_header<const LEN: usize>(family: u8) -> [u8; LEN] {
    let mut header = [0; LEN];
    header[0] = family;
    header
}

/// A message but for its netlink header.
pub(crate) struct Message {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) body: Vec<u8>,
}

impl Message {
    /// A message of type `kind` whose fixed part is `header`.
    pub(crate) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        Self { kind, flags, body: header.to_vec() }
    }

    /// Appends an attribute.
    pub(crate) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        // Values are addresses and numbers: their length fits.
        self.body.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
        self.body.extend_from_slice(&kind.to_ne_bytes());
        self.body.extend_from_slice(value);
        self.body.resize(self.body.len().next_multiple_of(4), 0);
        self
    }

    /// Appends an attribute that holds an address.
    pub(crate) fn address(self, kind: u16, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => self.attribute(kind, &v4.octets()),
            IpAddr::V6(v6) => self.attribute(kind, &v6.octets()),
        }
    }

    /// What follows the netlink header.
    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    pub(super) fn encode(&self, sequence: u32, into: &mut Vec<u8>) {
        let length = (NETLINK_HEADER_LEN + self.body.len()) as u32;
        into.extend_from_slice(&length.to_ne_bytes());
        into.extend_from_slice(&self.kind.to_ne_bytes());
        into.extend_from_slice(&(self.flags | NLM_F_REQUEST).to_ne_bytes());
        into.extend_from_slice(&sequence.to_ne_bytes());
        into.extend_from_slice(&0u32.to_ne_bytes());
        into.extend_from_slice(&self.body);
    }
}

/// The payload of a message: a fixed part and attributes.
#[derive(Clone, Copy)]
pub(crate) struct Payload<'a> {
    fixed: &'a [u8],
    attributes: &'a [u8],
}

impl<'a> Payload<'a> {
    /// Splits a payload whose fixed part has `length` bytes.
    pub(crate) fn split(payload: &'a [u8], length: usize) -> Option<Self> {
        let (fixed, attributes) = payload.split_at_checked(length)?;
        Some(Self { fixed, attributes })
    }

    /// A byte of the fixed part.
    pub(crate) fn byte(&self, offset: usize) -> u8 {
        self.fixed[offset]
    }

    /// A number of the fixed part.
    pub(crate) fn number(&self, offset: usize) -> u32 {
        number(&self.fixed[offset..]).unwrap_or_default()
    }

    /// The value of an attribute.
    pub(crate) fn get(&self, kind: u16) -> Option<&'a [u8]> {
        attributes(self.attributes).find(|(own, _)| *own == kind).map(|(_, value)| value)
    }

    /// An attribute that holds a number.
    pub(crate) fn get_number(&self, kind: u16) -> Option<u32> {
        self.get(kind).and_then(number)
    }

    /// An attribute that holds an address; its length is the family's.
    pub(crate) fn get_address(&self, kind: u16) -> Option<IpAddr> {
        let value = self.get(kind)?;
        if let Ok(v4) = <[u8; 4]>::try_from(value) {
            Some(IpAddr::from(v4))
        } else {
            <[u8; 16]>::try_from(value).ok().map(IpAddr::from)
        }
    }
}

/// Kind and value of each attribute.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let all = NlasIterator::new(bytes).map_while(Result::ok);
    // `NlaBuffer::value` borrows from the iterator's item; this borrows from the message.
    all.filter_map(|one| Some((one.kind(), one.into_inner().get(4..usize::from(one.length()))?)))
}

/// The number at the start of `bytes`.
pub(crate) fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}
