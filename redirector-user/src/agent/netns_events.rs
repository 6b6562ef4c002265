//! Netlink events of the targets' network namespaces, all on one socket.
//!
//! A socket inside a namespace would keep the namespace from ending. This one is in a namespace of its
//! own, in which those to be followed get ids (RTM_NEWNSID): netlink then tells their changes here with
//! their id (NETLINK_LISTEN_ALL_NSID, Linux 4.2), and with RTM_DELNSID that one has ended
//! (`unhash_nsid` in net/core/net_namespace.c). The ids end with the agent. It takes CAP_NET_BROADCAST.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink::SocketAddrNetlink};
use tokio::io::unix::AsyncFd;

use super::sync::lock;
use crate::base::error::{Context, Result};
use crate::netlink::{Message, Netlink, Payload, number};
use crate::sys::netns::in_new;
use crate::sys::{nsid, poll};

const RTM_NEWNSID: u16 = 88;
const RTM_DELNSID: u16 = 89;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// sizeof(struct rtgenmsg), aligned.
const RTGENMSG: usize = 4;
const NLMSG_HEADER: usize = 16;
/// LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE, NSID (`enum rtnetlink_groups`).
const GROUPS: [u32; 8] = [1, 5, 7, 8, 9, 11, 19, 28];
/// Some thousand messages. If more are lost every namespace is compared.
const RECEIVE_BUFFER_BYTES: i32 = 4 << 20;

/// What happened since the last time.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Cookies of namespaces whose links, addresses, routes or rules have changed.
    pub changed: BTreeSet<u64>,
    /// Some namespace has ended.
    pub ended: bool,
    /// Messages were lost: any may have changed.
    pub lost: bool,
}

/// The namespaces that are followed.
pub struct Namespaces {
    events: AsyncFd<OwnedFd>,
    inner: Mutex<Inner>,
}

struct Inner {
    requests: Netlink,
    next: i32,
    cookies: HashMap<i32, u64>,
}

impl Namespaces {
    /// Follows none yet. Must be called in a tokio runtime.
    ///
    /// # Errors
    ///
    /// If the kernel does not let us.
    pub fn new() -> Result<Self> {
        let (events, requests) = in_new(|| -> Result<_> {
            let events = listen()
                .context(|| "listen to the netlink of other namespaces (needs CAP_NET_BROADCAST)".into())?;
            Ok((events, Netlink::open()?))
        })?;
        let events = poll::readable(events).context(|| "wait for netlink".into())?;
        let inner = Inner { requests, next: 0, cookies: HashMap::new() };
        Ok(Self { events, inner: Mutex::new(inner) })
    }

    /// Whether a namespace is followed, and has not ended.
    pub fn follows(&self, cookie: u64) -> bool {
        let inner = lock(&self.inner);
        inner.cookies.values().any(|followed| *followed == cookie)
    }

    /// Cookies of all of them.
    pub fn followed(&self) -> BTreeSet<u64> {
        let inner = lock(&self.inner);
        inner.cookies.values().copied().collect()
    }

    /// Begins to follow a namespace; nothing happens if it is followed already.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn follow(&self, netns: BorrowedFd<'_>, cookie: u64) -> Result<()> {
        let mut inner = lock(&self.inner);
        if inner.cookies.values().any(|followed| *followed == cookie) {
            return Ok(());
        }
        let id = inner.next;
        let request = Message::new(RTM_NEWNSID, 0, &[0; RTGENMSG])
            .attribute(NETNSA_NSID, &id.to_ne_bytes())
            .attribute(NETNSA_FD, &netns.as_raw_fd().to_ne_bytes());
        let answers = inner.requests.change("an id for a network namespace", vec![request])?;
        if let Some(errno) = answers.first().filter(|errno| **errno != 0) {
            return Err(io::Error::from_raw_os_error(*errno))
                .context(|| "give the network namespace an id, to follow its addresses and routes".into());
        }
        inner.next += 1;
        inner.cookies.insert(id, cookie);
        Ok(())
    }

    /// Waits for changes and takes all there are.
    pub async fn changes(&self) -> Changes {
        loop {
            let Ok(mut ready) = self.events.readable().await else {
                return Changes { lost: true, ..Changes::default() };
            };
            let mut changes = Changes::default();
            while ready.try_io(|fd| self.receive(fd.as_fd(), &mut changes)).is_ok() {}
            if changes != Changes::default() {
                return changes;
            }
        }
    }

    /// Takes one datagram.
    fn receive(&self, socket: BorrowedFd<'_>, changes: &mut Changes) -> io::Result<()> {
        let mut buffer = [0; 32 * 1024];
        let (length, id) = match nsid::receive(socket, &mut buffer) {
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                changes.lost = true;
                return Ok(());
            }
            other => other?,
        };
        let mut inner = lock(&self.inner);
        match id {
            Some(id) => changes.changed.extend(inner.cookies.get(&id)),
            // Our own namespace has no traffic of its own: ids that end.
            None => {
                for ended in ended(&buffer[..length]) {
                    changes.ended |= inner.cookies.remove(&ended).is_some();
                }
            }
        }
        Ok(())
    }
}

fn listen() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    nsid::set_buffer(fd.as_fd(), RECEIVE_BUFFER_BYTES)?;
    nsid::listen_all(fd.as_fd())?;
    rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0))?;
    GROUPS.iter().try_for_each(|group| nsid::join(fd.as_fd(), *group))?;
    Ok(fd)
}

/// Ids of the RTM_DELNSID messages in a datagram.
fn ended(mut datagram: &[u8]) -> Vec<i32> {
    let mut ids = Vec::new();
    while let (Some(length), Some(kind)) = (number(datagram), datagram.get(4..6)) {
        let length = length as usize;
        let Some(body) = datagram.get(NLMSG_HEADER..length) else { break };
        if kind == RTM_DELNSID.to_ne_bytes() {
            let id = Payload::split(body, RTGENMSG).and_then(|body| body.get_number(NETNSA_NSID));
            ids.extend(id.map(u32::cast_signed));
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    ids
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, id: i32) -> Vec<u8> {
        let body = Message::new(kind, 0, &[0; RTGENMSG]).attribute(NETNSA_NSID, &id.to_ne_bytes());
        let length = (NLMSG_HEADER + body.body().len()) as u32;
        let header = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10]];
        [&header.concat(), body.body()].concat()
    }

    proptest! {
        #[test]
        fn all_namespaces_that_end_are_told(ids in prop::collection::vec((any::<i32>(), any::<bool>()), 0..8)) {
            let kind = |ends| if ends { RTM_DELNSID } else { RTM_NEWNSID };
            let datagram: Vec<u8> = ids.iter().flat_map(|(id, ends)| message(kind(*ends), *id)).collect();
            let expected: Vec<i32> = ids.iter().filter(|(_, ends)| *ends).map(|(id, _)| *id).collect();
            prop_assert_eq!(ended(&datagram), expected);
        }

        #[test]
        fn any_datagram_has_an_end(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            length in 0..40_u8,
        ) {
            ended(&bytes);
            bytes.iter_mut().take(4).zip([length, 0, 0, 0]).for_each(|(byte, of_length)| *byte = of_length);
            ended(&bytes);
        }
    }
}
