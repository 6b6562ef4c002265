//! The proxy of TPROXY mode: hands an accepted connection on to where it was going, from the client's own address, with
//! a mark. Envoy does so with its filter `original_src`.

use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

use super::sys;
use crate::harness::probe::observation::{Accepted, errno_name};

/// An application in the same pod answers at once, or not at all.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(1);

/// Relays until both sides have ended. What goes wrong is told to the client.
pub(super) fn relay(client: OwnedFd, accepted: &Accepted, mark: u32) -> io::Result<()> {
    let mut client = TcpStream::from(client);
    match connect(accepted, mark) {
        Ok(app) => {
            let (mut from_client, mut to_app) = (client.try_clone()?, app.try_clone()?);
            let forth = std::thread::spawn(move || {
                let _ = io::copy(&mut from_client, &mut to_app);
                let _ = to_app.shutdown(Shutdown::Write);
            });
            io::copy(&mut &app, &mut client)?;
            client.shutdown(Shutdown::Both)?;
            forth.join().map_err(|_| io::Error::other("a thread panicked"))
        }
        Err(error) => writeln!(client, "the proxy's connection to the application: {}", errno_name(&error)),
    }
}

fn connect(accepted: &Accepted, mark: u32) -> io::Result<TcpStream> {
    let address = |seen: Option<SocketAddr>| seen.ok_or_else(|| io::Error::other("no address"));
    let client = address(accepted.accept_peer.address())?;
    let original = accepted.original_dst.address().or_else(|| accepted.original_dst6.address());
    let to = address(original.or_else(|| accepted.local.address()))?;
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    sys::switch_on(&fd, libc::SOL_IP, libc::IP_TRANSPARENT)?;
    sys::switch_on(&fd, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT)?;
    sys::set_mark(&fd, mark)?;
    set_socket_timeout(&fd, Timeout::Send, Some(HANDSHAKE_TIMEOUT))?;
    rustix::net::bind(&fd, &SocketAddr::new(client.ip(), 0))?;
    rustix::net::connect(&fd, &to)?;
    Ok(TcpStream::from(fd))
}
