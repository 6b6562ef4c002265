//! Netlink messages of other namespaces: `NETLINK_LISTEN_ALL_NSID` (Linux 4.2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const NETLINK_ADD_MEMBERSHIP: i32 = 1;
const NETLINK_LISTEN_ALL_NSID: i32 = 8;

/// Lets a netlink socket receive what is sent to its groups in every namespace that has an id in the
/// socket's own.
pub fn listen_all(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, 1)
}

/// Joins a multicast group.
pub fn join(socket: BorrowedFd<'_>, group: u32) -> io::Result<()> {
    set(socket, libc::SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group.cast_signed())
}

/// Makes room for so many bytes, whatever net.core.rmem_max says.
pub fn set_buffer(socket: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
}

fn set(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the pointer is to a local of the length given.
    let ret = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives a datagram without waiting: its length, and the id of the namespace it was sent in (None:
/// the socket's own).
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Option<i32>)> {
    /// Room for one control message with an int, aligned as its header must be.
    #[repr(C, align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is plain integers and pointers, for which zero is valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control.0).cast();
    header.msg_controllen = control.0.len() as _;
    // SAFETY: every pointer in the header is to a local, or to the caller's buffer, of the length given.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled the control buffer as the header says.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !message.is_null() {
        // SAFETY: not null, so it is a whole header inside the control buffer.
        let head = unsafe { message.read_unaligned() };
        if head.cmsg_level == libc::SOL_NETLINK && head.cmsg_type == NETLINK_LISTEN_ALL_NSID {
            // SAFETY: netlink_cmsg_listen_all_nsid puts an int.
            let id = unsafe { libc::CMSG_DATA(message).cast::<i32>().read_unaligned() };
            return Ok((received.cast_unsigned(), Some(id)));
        }
        // SAFETY: header and message are those of above.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    Ok((received.cast_unsigned(), None))
}
