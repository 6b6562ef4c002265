//! DNS over UDP: a question is sent as resolvers do, and who gets it answers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{set_ipv6_v6only, set_socket_reuseport};
use rustix::net::{RecvFlags, SendFlags, SocketType, ipproto};
use serde::{Deserialize, Serialize};

use super::sockets;

/// `localhost. IN A`, with recursion desired: a question that any server answers.
const QUESTION: &[u8] = b"rd\x01\0\0\x01\0\0\0\0\0\0\x09localhost\0\0\x01\0\x01";

/// A question on its way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sent {
    /// Why it was not sent.
    pub error: Option<String>,
    /// The client's own port.
    pub port: Option<u16>,
}

fn udp(address: IpAddr) -> io::Result<OwnedFd> {
    sockets::open(address, SocketType::DGRAM, ipproto::UDP)
}

/// Opens a free port. A server that starts meanwhile can share it.
pub fn serve(address: SocketAddr) -> io::Result<OwnedFd> {
    let fd = udp(address.ip())?;
    set_socket_reuseport(&fd, true)?;
    if address.is_ipv6() {
        set_ipv6_v6only(&fd, true)?;
    }
    rustix::net::bind(&fd, &address)?;
    Ok(fd)
}

/// Sends a question by a socket that is not connected.
pub fn send(to: SocketAddr) -> io::Result<(OwnedFd, Sent)> {
    let fd = udp(to.ip())?;
    let error = rustix::net::sendto(&fd, QUESTION, SendFlags::empty(), &to).err();
    let local = rustix::net::getsockname(&fd).ok().and_then(|any| SocketAddr::try_from(any).ok());
    let sent = Sent { error: error.map(|e| e.to_string()), port: local.map(|local| local.port()) };
    Ok((fd, sent))
}

/// The address that answered, as the client sees it.
pub fn answered_by(fd: &OwnedFd, patience: Duration) -> io::Result<Option<SocketAddr>> {
    if !sockets::readable(fd, patience)? {
        return Ok(None);
    }
    let mut buffer = [0; 512];
    let (_, _, from) = rustix::net::recvfrom(fd, &mut buffer[..], RecvFlags::empty())?;
    Ok(from.and_then(|any| SocketAddr::try_from(any).ok()))
}

/// Waits for the question of a client, sends it back, and says whether it has come.
pub fn answer(servers: &[OwnedFd], client: u16, patience: Duration) -> io::Result<bool> {
    let end = Instant::now() + patience;
    while sockets::wait_readable(servers, end)? {
        for server in servers {
            let mut buffer = [0; 512];
            let (len, from) = match rustix::net::recvfrom(server, &mut buffer[..], RecvFlags::empty()) {
                Ok((len, _, from)) => (len, from.and_then(|any| SocketAddr::try_from(any).ok())),
                Err(Errno::AGAIN) => continue,
                Err(e) => return Err(e.into()),
            };
            // What others ask meanwhile is not answered: there is no server that could.
            if let Some(from) = from.filter(|from| from.port() == client) {
                rustix::net::sendto(server, &buffer[..len], SendFlags::empty(), &from)?;
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_and_its_answer() {
        let long = Duration::from_secs(5);
        let server = serve("127.0.0.1:0".parse().unwrap()).unwrap();
        let to = SocketAddr::try_from(rustix::net::getsockname(&server).unwrap()).unwrap();
        let servers = [server];
        send(to).unwrap();
        assert!(!answer(&servers, 1, Duration::ZERO).unwrap(), "another's question");
        let (client, sent) = send(to).unwrap();
        assert!(sent.error.is_none());
        assert!(answer(&servers, sent.port.unwrap(), long).unwrap());
        assert_eq!(answered_by(&client, long).unwrap(), Some(to));
        assert_eq!(answered_by(&client, Duration::ZERO).unwrap(), None);
    }
}
