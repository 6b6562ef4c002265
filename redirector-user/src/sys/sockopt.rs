//! getsockopt(2) and setsockopt(2) for options that no library offers.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

const SO_ORIGINAL_DST: i32 = 80;

/// SO_ORIGINAL_DST at SOL_IP.
pub fn original_dst4(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let sin: libc::sockaddr_in = get(socket, libc::SOL_IP, SO_ORIGINAL_DST)?;
    let ip = Ipv4Addr::from(sin.sin_addr.s_addr.to_ne_bytes());
    Ok(SocketAddr::new(ip.into(), u16::from_be(sin.sin_port)))
}

/// IP6T_SO_ORIGINAL_DST at SOL_IPV6.
pub fn original_dst6(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let sin6: libc::sockaddr_in6 = get(socket, libc::SOL_IPV6, SO_ORIGINAL_DST)?;
    let ip = Ipv6Addr::from(sin6.sin6_addr.s6_addr);
    Ok(SocketAddr::new(ip.into(), u16::from_be(sin6.sin6_port)))
}

/// SO_COOKIE: tells a socket from every other one.
pub fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_COOKIE: i32 = 57;
    get(socket, libc::SOL_SOCKET, SO_COOKIE)
}

/// SO_NETNS_COOKIE: the same for the socket's network namespace (5.14).
pub(super) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    get(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE)
}

/// IP_TRANSPARENT, which also is IPV6_TRANSPARENT: one bit of the socket.
pub fn is_transparent(socket: BorrowedFd<'_>) -> io::Result<bool> {
    get::<i32>(socket, libc::SOL_IP, libc::IP_TRANSPARENT).map(|on| on != 0)
}

/// Sets or clears it; takes CAP_NET_ADMIN or CAP_NET_RAW over the socket's namespace.
pub fn set_transparent(socket: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    let (value, len) = (i32::from(on), size_of::<i32>() as libc::socklen_t);
    // SAFETY: a pointer to a local, and its size.
    let ret = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            libc::IP_TRANSPARENT,
            (&raw const value).cast(),
            len,
        )
    };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `T`: plain integers and structs of them.
fn get<T: Copy>(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<T> {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: both pointers are to locals of the sizes given; what the kernel leaves out is zero.
    let ret =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) };
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed, then filled; every caller's type is valid for any bytes.
    Ok(unsafe { value.assume_init() })
}
