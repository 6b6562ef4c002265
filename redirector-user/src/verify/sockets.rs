//! Sockets that are looked at: how one listens, connects and accepts for a probe, and what each end then sees.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{
    set_ipv6_v6only, set_socket_linger, set_socket_reuseaddr, set_socket_reuseport, socket_error,
};
use rustix::net::{
    AddressFamily, Protocol, SocketAddrAny, SocketFlags, SocketType, acceptfrom_with, ipproto, socket_with,
};
use serde::{Deserialize, Serialize};

use crate::original_dst;

/// What a client sees.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Connected {
    /// Why it is not connected.
    pub error: Option<String>,
    /// getsockname.
    pub local: Option<SocketAddr>,
    /// getpeername.
    pub peer: Option<SocketAddr>,
    /// Where the connection really leads: the kernel's table of sockets, which no hook can change.
    pub arrived_at: Option<SocketAddr>,
}

/// What a listener of ours sees of a connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Accepted {
    /// Which listener.
    pub listener: SocketAddr,
    /// getpeername.
    pub peer: Option<SocketAddr>,
    /// getsockname.
    pub local: Option<SocketAddr>,
    /// SO_ORIGINAL_DST.
    pub original: Option<SocketAddr>,
}

/// A listener of ours.
pub struct Listener {
    fd: OwnedFd,
    address: SocketAddr,
}

fn tcp(address: IpAddr) -> io::Result<OwnedFd> {
    open(address, SocketType::STREAM, ipproto::TCP)
}

/// A socket that does not block, of the family of an address.
pub(super) fn open(address: IpAddr, kind: SocketType, protocol: Protocol) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(family, kind, flags, Some(protocol))?)
}

/// Listens as Istio's validation does: with SO_REUSEPORT, so that a proxy of the same user that starts
/// meanwhile can bind its port.
pub fn listen(address: SocketAddr) -> io::Result<Listener> {
    let fd = tcp(address.ip())?;
    set_socket_reuseaddr(&fd, true)?;
    set_socket_reuseport(&fd, true)?;
    if address.is_ipv6() {
        set_ipv6_v6only(&fd, true)?;
    }
    rustix::net::bind(&fd, &address)?;
    rustix::net::listen(&fd, 128)?;
    Ok(Listener { fd, address })
}

/// Whether the calling thread's namespace has IPv6.
pub fn has_ipv6() -> bool {
    tcp(Ipv6Addr::LOCALHOST.into())
        .and_then(|fd| Ok(rustix::net::bind(&fd, &SocketAddr::from((Ipv6Addr::LOCALHOST, 0)))?))
        .is_ok()
}

/// Connects. The connection lives as long as the descriptor, and then ends with a reset.
pub fn connect(bind: Option<IpAddr>, to: SocketAddr, patience: Duration) -> io::Result<(OwnedFd, Connected)> {
    let fd = tcp(to.ip())?;
    // No TIME_WAIT is left behind.
    set_socket_linger(&fd, Some(Duration::ZERO))?;
    if let Some(bind) = bind {
        rustix::net::bind(&fd, &SocketAddr::new(bind, 0))?;
    }
    let result = match rustix::net::connect(&fd, &to) {
        Err(Errno::INPROGRESS) => finished(&fd, patience),
        other => other.map_err(io::Error::from),
    };
    let ok = result.is_ok();
    let seen = Connected {
        error: result.err().map(|e| e.to_string()),
        local: address(rustix::net::getsockname(&fd).map(Some)),
        peer: if ok { address(rustix::net::getpeername(&fd)) } else { None },
        arrived_at: if ok { arrived_at(&fd, to.is_ipv6()) } else { None },
    };
    Ok((fd, seen))
}

fn finished(fd: &OwnedFd, patience: Duration) -> io::Result<()> {
    if !wait(&[fd], PollFlags::OUT, Instant::now() + patience)? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(socket_error(fd)??)
}

/// Accepts from any of the listeners until `wanted`, or until the time is over.
pub fn accept_until<T>(
    listeners: &[Listener],
    end: Instant,
    mut wanted: impl FnMut(Accepted) -> Option<T>,
) -> io::Result<Option<T>> {
    let all: Vec<&OwnedFd> = listeners.iter().map(|listener| &listener.fd).collect();
    while wait(&all, PollFlags::IN, end)? {
        for listener in listeners {
            // What others have sent here meanwhile is closed: there is no proxy that could serve it.
            while let Ok((fd, _)) = acceptfrom_with(&listener.fd, SocketFlags::CLOEXEC) {
                let accepted = Accepted {
                    listener: listener.address,
                    peer: address(rustix::net::getpeername(&fd)),
                    local: address(rustix::net::getsockname(&fd).map(Some)),
                    original: original_dst::of_socket(&fd).ok(),
                };
                if let Some(found) = wanted(accepted) {
                    return Ok(Some(found));
                }
            }
        }
    }
    Ok(None)
}

/// Waits until there is something to read; false if there is nothing in time.
pub fn readable(fd: impl AsFd, patience: Duration) -> io::Result<bool> {
    wait(&[fd], PollFlags::IN, Instant::now() + patience)
}

/// Waits until one of them can be read; false if there is nothing in time.
pub fn wait_readable(fds: &[OwnedFd], end: Instant) -> io::Result<bool> {
    let all: Vec<&OwnedFd> = fds.iter().collect();
    wait(&all, PollFlags::IN, end)
}

/// Waits for one of them; false if the time is over.
fn wait<F: AsFd>(fds: &[F], events: PollFlags, end: Instant) -> io::Result<bool> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(fd, events)).collect();
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn address(any: rustix::io::Result<Option<SocketAddrAny>>) -> Option<SocketAddr> {
    SocketAddr::try_from(any.ok()??).ok()
}

/// The other end of a connected socket in /proc/net/tcp, which is written from the socket itself.
fn arrived_at(fd: &OwnedFd, v6: bool) -> Option<SocketAddr> {
    let inode = rustix::fs::fstat(fd.as_fd()).ok()?.st_ino.to_string();
    let file = if v6 { "/proc/thread-self/net/tcp6" } else { "/proc/thread-self/net/tcp" };
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.split_ascii_whitespace().nth(9) == Some(inode.as_str()))?;
    remote(line.split_ascii_whitespace().nth(2)?)
}

/// `0100007F:3A99`: words of the address in host byte order, the port in the usual one.
fn remote(field: &str) -> Option<SocketAddr> {
    let (address, port) = field.split_once(':').filter(|(address, _)| matches!(address.len(), 8 | 32))?;
    let mut bytes = Vec::new();
    for word in address.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => IpAddr::from(Ipv4Addr::from(v4)),
        Err(_) => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?)),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_of_sockets() {
        for (field, text) in
            [("0100007F:3A99", "127.0.0.1:15001"), ("00000000000000000000000001000000:3A9E", "[::1]:15006")]
        {
            assert_eq!(remote(field).unwrap().to_string(), text);
        }
        for bad in ["", "0100007F", "01:1", "xyz:1", "0100007F:x"] {
            assert_eq!(remote(bad), None, "{bad}");
        }
    }

    #[test]
    fn both_ends_see_each_other() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let to = address(rustix::net::getsockname(&listener.fd).map(Some)).unwrap();
        let (_fd, seen) = connect(Some(Ipv4Addr::LOCALHOST.into()), to, Duration::from_secs(5)).unwrap();
        assert_eq!((seen.peer, seen.arrived_at, &seen.error), (Some(to), Some(to), &None));
        let end = Instant::now() + Duration::from_secs(5);
        let peer = accept_until(&[listener], end, |accepted| accepted.peer).unwrap();
        assert_eq!(peer, seen.local);
        let none = accept_until(&[], Instant::now(), Some).unwrap();
        assert!(none.is_none());
    }
}
