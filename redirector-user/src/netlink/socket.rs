//! A blocking netlink socket: lists that are read whole, single questions one after the other, changes that are
//! acknowledged.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NetlinkBuffer};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};

use super::NetlinkError;
use super::message::{Message, NETLINK_HEADER_LEN, number};

/// Questions under way at once. An answer takes up to NLMSG_GOODSIZE plus overhead of the receive buffer
/// (about 4.5 KiB, 9 KiB with large pages), and one that does not fit is dropped.
pub(super) const WINDOW: usize = 16;
/// The kernel answers within microseconds unless somebody holds the rtnl lock.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A list is tried this often while it changes.
const ATTEMPTS: u32 = 8;
/// `netlink_recvmsg` fills at most 32 KiB.
const BUFFER: usize = 64 * 1024;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;

/// The answer to a single question: its payload, decoded, or the errno (0 is an acknowledgement).
pub(crate) type Answer<T> = Result<T, i32>;

/// A socket to the rtnetlink of the namespace the calling thread is in.
pub(crate) struct Netlink {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        Self::open_protocol(None)
    }

    /// A socket to another subsystem of that namespace, such as `netlink::SOCK_DIAG`.
    pub(crate) fn open_protocol(protocol: Option<net::Protocol>) -> Result<Self, NetlinkError> {
        let fail = |source: Errno| NetlinkError::Socket(source.into());
        let (family, flags) = (AddressFamily::NETLINK, SocketFlags::CLOEXEC);
        let fd = net::socket_with(family, SocketType::RAW, flags, protocol).map_err(fail)?;
        // A connected netlink socket takes messages of its peer only, here the kernel
        // (netlink_getsockbyportid).
        net::connect(&fd, &netlink::SocketAddrNetlink::new(0, 0)).map_err(fail)?;
        // Room for a window also where net.core.rmem_default is small; the kernel caps it at rmem_max.
        sockopt::set_socket_recv_buffer_size(&fd, 2 * WINDOW * 9 * 1024).map_err(fail)?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT)).map_err(fail)?;
        Ok(Self::over(fd))
    }

    /// Speaks netlink over a socket that keeps messages apart.
    pub(crate) fn over(fd: OwnedFd) -> Self {
        Self { fd, sequence: 0, buffer: vec![0; BUFFER] }
    }

    /// Lists what `request` asks for, each message as `decode` sees its payload (`None` leaves it out).
    ///
    /// A list during which something changed is read again. [`NetlinkError::Refused`] if the kernel refuses.
    pub(crate) fn list<T>(
        &mut self,
        what: &'static str,
        request: &Message,
        mut decode: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..ATTEMPTS {
            if let Some(list) = self.list_once(what, request, &mut decode)? {
                return Ok(list);
            }
        }
        Err(NetlinkError::Restless { what })
    }

    /// `None` if the list changed while it was read.
    fn list_once<T>(
        &mut self,
        what: &'static str,
        request: &Message,
        decode: &mut impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>, NetlinkError> {
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
                Err(NetlinkError::Refused { what, source: io::Error::from_raw_os_error(-errno) })
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
    ) -> Result<Vec<Answer<T>>, NetlinkError> {
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

    /// Makes changes in one piece; for each the kernel's answer, 0 if it was made.
    pub(crate) fn change(
        &mut self,
        what: &'static str,
        mut changes: Vec<Message>,
    ) -> Result<Vec<i32>, NetlinkError> {
        changes.iter_mut().for_each(|change| change.flags |= NLM_F_ACK);
        let answers = self.ask::<()>(what, changes.into_iter(), |_| None)?;
        Ok(answers.into_iter().map(|answer| answer.err().unwrap_or_default()).collect())
    }

    fn send(&self, what: &'static str, bytes: &[u8]) -> Result<(), NetlinkError> {
        rustix::io::retry_on_intr(|| net::send(&self.fd, bytes, SendFlags::empty()))
            .map(drop)
            .map_err(|source| NetlinkError::Send { what, source: source.into() })
    }

    /// Receives one datagram and hands its messages to `each`, which answers `None` to a malformed one.
    fn receive(
        &mut self,
        what: &'static str,
        mut each: impl FnMut(&NetlinkBuffer<&[u8]>, &[u8]) -> Option<()>,
    ) -> Result<(), NetlinkError> {
        let (received, _) =
            rustix::io::retry_on_intr(|| net::recv(&self.fd, &mut self.buffer[..], RecvFlags::empty()))
                .map_err(|source| NetlinkError::Receive { what, source: source.into() })?;
        if received == 0 {
            return Err(NetlinkError::Malformed { what });
        }
        let mut rest = &self.buffer[..received];
        while !rest.is_empty() {
            let header = NetlinkBuffer::new_checked(rest).map_err(|_| NetlinkError::Malformed { what })?;
            let length = header.length() as usize;
            each(&header, &rest[NETLINK_HEADER_LEN..length]).ok_or(NetlinkError::Malformed { what })?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}
