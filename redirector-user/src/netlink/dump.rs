//! A blocking `NETLINK_ROUTE` socket: lists and pipelined single questions.
//!
//! Only the fields this module needs are decoded, so an attribute of a newer kernel cannot make a list
//! unreadable. All numbers are in host byte order, addresses in network byte order, as in
//! uapi/linux/rtnetlink.h.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NlasIterator};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};

use crate::routes::RouteError;

/// Questions under way at once. An answer takes up to NLMSG_GOODSIZE plus overhead of the receive buffer
/// (about 4.5 KiB, 9 KiB with large pages), and one that does not fit is dropped.
pub(crate) const WINDOW: usize = 16;
/// The kernel answers within microseconds unless somebody holds the rtnl lock.
const PATIENCE: Duration = Duration::from_secs(10);
/// A list is tried this often while it changes.
pub(crate) const ATTEMPTS: u32 = 8;
/// `netlink_recvmsg` fills at most 32 KiB.
const BUFFER: usize = 64 * 1024;

/// sizeof(struct nlmsghdr).
const NETLINK_HEADER_LEN: usize = 16;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;

/// A message but for its netlink header.
pub(crate) struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
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

    fn encode(&self, sequence: u32, into: &mut Vec<u8>) {
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
        let attributes = NlasIterator::new(self.attributes).map_while(Result::ok);
        for attribute in attributes {
            if attribute.kind() == kind {
                // `NlaBuffer::value` borrows from the iterator's item; this borrows from the message.
                return attribute.into_inner().get(4..usize::from(attribute.length()));
            }
        }
        None
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

/// The number at the start of `bytes`.
pub(crate) fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// The answer to a single question: its payload, decoded, or the errno (0 is an acknowledgement).
pub(crate) type Answer<T> = Result<T, i32>;

/// A socket to the rtnetlink of the namespace the calling thread is in.
pub(crate) struct Netlink {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    pub(crate) fn open() -> Result<Self, RouteError> {
        Self::open_protocol(None)
    }

    /// A socket to the sock_diag of that namespace.
    pub(crate) fn open_sock_diag() -> Result<Self, RouteError> {
        Self::open_protocol(Some(netlink::SOCK_DIAG))
    }

    fn open_protocol(protocol: Option<net::Protocol>) -> Result<Self, RouteError> {
        let fail = |source: Errno| RouteError::Socket { what: "a netlink socket", source: source.into() };
        let fd = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
            .map_err(fail)?;
        // A connected netlink socket takes messages of its peer only, here the kernel
        // (netlink_getsockbyportid).
        net::connect(&fd, &netlink::SocketAddrNetlink::new(0, 0)).map_err(fail)?;
        // Room for a window also where net.core.rmem_default is small; the kernel caps it at rmem_max.
        sockopt::set_socket_recv_buffer_size(&fd, 2 * WINDOW * 9 * 1024).map_err(fail)?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(PATIENCE)).map_err(fail)?;
        Ok(Self::over(fd))
    }

    /// Speaks netlink over a socket that keeps messages apart.
    pub(crate) fn over(fd: OwnedFd) -> Self {
        Self { fd, sequence: 0, buffer: vec![0; BUFFER] }
    }

    /// Lists what `request` asks for, each message as `decode` sees its payload (`None` leaves it out).
    ///
    /// A list during which something changed is read again. [`RouteError::Dump`] if the kernel refuses.
    pub(crate) fn list<T>(
        &mut self,
        what: &'static str,
        request: &Message,
        mut decode: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, RouteError> {
        for _ in 0..ATTEMPTS {
            if let Some(list) = self.list_once(what, request, &mut decode)? {
                return Ok(list);
            }
        }
        Err(RouteError::Restless { what, attempts: ATTEMPTS })
    }

    /// `None` if the list changed while it was read.
    fn list_once<T>(
        &mut self,
        what: &'static str,
        request: &Message,
        decode: &mut impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>, RouteError> {
        let sequence = self.sequence.wrapping_add(1);
        self.sequence = sequence;
        let mut bytes = Vec::new();
        Message { flags: request.flags | NLM_F_DUMP, kind: request.kind, body: request.body.clone() }
            .encode(sequence, &mut bytes);
        self.send(what, &bytes)?;

        let (mut list, mut intact, mut end) = (Vec::new(), true, None);
        while end.is_none() {
            self.receive(what, |header, payload| {
                if header.sequence_number() != sequence {
                    return Some(());
                }
                intact &= header.flags() & NLM_F_DUMP_INTR == 0;
                match header.message_type() {
                    // A NLMSG_DONE ends with the result of the dump, an NLMSG_ERROR begins with it.
                    NLMSG_DONE => end = Some(number(payload).map_or(0, u32::cast_signed)),
                    NLMSG_ERROR => end = Some(number(payload)?.cast_signed()),
                    _ => list.extend(decode(payload)),
                }
                Some(())
            })?;
        }
        match end {
            Some(errno) if errno < 0 => {
                Err(RouteError::Dump { what, source: io::Error::from_raw_os_error(-errno) })
            }
            _ => Ok(intact.then_some(list)),
        }
    }

    /// Asks single questions, several at a time; the answers are in the order of the questions.
    pub(crate) fn ask<T>(
        &mut self,
        what: &'static str,
        questions: impl ExactSizeIterator<Item = Message>,
        mut decode: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Vec<Answer<T>>, RouteError> {
        let mut answers = Vec::with_capacity(questions.len());
        let mut questions = questions.peekable();
        let mut bytes = Vec::new();
        while questions.peek().is_some() {
            // One send carries many messages: netlink_rcv_skb handles them one after the other.
            bytes.clear();
            let base = self.sequence.wrapping_add(1);
            let mut window: [Option<Answer<T>>; WINDOW] = [const { None }; WINDOW];
            let mut waiting = 0;
            for question in questions.by_ref().take(WINDOW) {
                self.sequence = self.sequence.wrapping_add(1);
                question.encode(self.sequence, &mut bytes);
                waiting += 1;
            }
            let asked = waiting;
            self.send(what, &bytes)?;
            while waiting > 0 {
                self.receive(what, |header, payload| {
                    let place = header.sequence_number().wrapping_sub(base) as usize;
                    let Some(place) = window[..asked].get_mut(place).filter(|place| place.is_none()) else {
                        return Some(());
                    };
                    *place = Some(match header.message_type() {
                        NLMSG_ERROR => Err(number(payload)?.cast_signed().wrapping_neg()),
                        _ => Ok(decode(payload)?),
                    });
                    waiting -= 1;
                    Some(())
                })?;
            }
            answers.extend(window.into_iter().flatten());
        }
        Ok(answers)
    }

    fn send(&self, what: &'static str, bytes: &[u8]) -> Result<(), RouteError> {
        rustix::io::retry_on_intr(|| net::send(&self.fd, bytes, SendFlags::empty()))
            .map(drop)
            .map_err(|source| RouteError::Send { what, source: source.into() })
    }

    /// Receives one datagram and hands its messages to `each`, which answers `None` to a malformed one.
    fn receive(
        &mut self,
        what: &'static str,
        mut each: impl FnMut(&NetlinkBuffer<&[u8]>, &[u8]) -> Option<()>,
    ) -> Result<(), RouteError> {
        let (received, _) =
            rustix::io::retry_on_intr(|| net::recv(&self.fd, &mut self.buffer[..], RecvFlags::empty()))
                .map_err(|source| RouteError::Receive { what, source: source.into() })?;
        if received == 0 {
            return Err(RouteError::Malformed { what });
        }
        let mut rest = &self.buffer[..received];
        while !rest.is_empty() {
            let header = NetlinkBuffer::new_checked(rest).map_err(|_| RouteError::Malformed { what })?;
            let length = header.length() as usize;
            each(&header, &rest[NETLINK_HEADER_LEN..length]).ok_or(RouteError::Malformed { what })?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}
