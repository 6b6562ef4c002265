//! What happens to sockets one after the other, in one process that is client and server: what a program sees of it, as
//! lines to compare. Ports that the kernel chooses are told by whether they stay.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{set_socket_linger, set_socket_reuseaddr, socket_error};
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, bind, connect, connect_unspec, listen, sendto,
    socket_with,
};

use super::connect::{local_name, peer_name};
use super::sys;
use crate::harness::probe::observation::{AddressOrErrno, errno_name, outcome};
use crate::harness::retry::{self, long_enough};
use crate::harness::server::{INBOUND, OUTBOUND};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sequence {
    /// The server resets the connection.
    Reset,
    /// The server ends it, then the client does.
    Ended,
    /// The client closes; when only its address is left of it, the server ends the connection.
    ClientFirst,
    /// Nobody listens: a non-blocking client is told afterwards.
    Refused,
    /// The client resets it before the server has asked for its original destination.
    ResetByClient,
    /// The client's part of that alone.
    ResetAtOnce,
    /// The inbound proxy's part of that alone.
    AcceptReset,
    /// The inbound proxy ends every connection at once, before its client does.
    EndFirst,
    /// A server binds its port, without SO_REUSEADDR.
    Bind,
    /// A client's socket becomes a listener.
    ClientListens,
    /// Listeners on other loopback addresses are older than the proxy's on the one.
    Neighbours,
    /// A connection fails for want of a port, which another one to the same destination has.
    SameTwice,
    /// A connected UDP socket asks another server once.
    AskedElsewhere,
}

/// Lives through it; what it saw.
pub fn tell(sequence: Sequence, to: SocketAddr) -> anyhow::Result<Vec<String>> {
    match sequence {
        Sequence::Reset => ends(to, |server, _| {
            set_socket_linger(&server, Some(Duration::ZERO))?;
            Ok(())
        }),
        Sequence::Ended => ends(to, |server, client| {
            drop(server);
            let read = client.try_clone()?.read(&mut [0]);
            ensure!(read.as_ref().is_ok_and(|length| *length == 0), "{read:?}");
            client.shutdown(Shutdown::Write).context("shutdown")
        }),
        Sequence::ClientFirst => client_first(to),
        Sequence::Refused => refused(to),
        Sequence::ResetByClient => reset_by_client(to),
        Sequence::ResetAtOnce => reset_at_once(to),
        Sequence::AcceptReset => accept_reset(to),
        Sequence::EndFirst => end_first(to),
        Sequence::Bind => Ok(vec![outcome(bind(&socket(to, SocketFlags::empty())?, &to))]),
        Sequence::ClientListens => client_listens(to),
        Sequence::Neighbours => neighbours(to),
        Sequence::SameTwice => same_twice(to),
        Sequence::AskedElsewhere => asked_elsewhere(to),
    }
}

/// A listener of the proxy, of which the sequence takes the part, too.
fn proxy(to: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(SocketAddr::new(unspecified(to), OUTBOUND)).context("the proxy's port")
}

fn unspecified(of: SocketAddr) -> IpAddr {
    if of.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() }
}

fn family(of: SocketAddr) -> AddressFamily {
    if of.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

fn socket(to: SocketAddr, flags: SocketFlags) -> anyhow::Result<OwnedFd> {
    Ok(socket_with(family(to), SocketType::STREAM, flags | SocketFlags::CLOEXEC, None)?)
}

/// Names of a socket; its port as it was or not.
fn names(what: &str, fd: impl AsFd, port: u16) -> String {
    let local = match local_name(fd.as_fd()) {
        AddressOrErrno::Address(local) if local.port() == port => format!("{} and its port", local.ip()),
        AddressOrErrno::Address(local) => format!("{} and another port", local.ip()),
        AddressOrErrno::Error(error) => error,
    };
    format!("{what}: local {local}, peer {}", peer_name(fd))
}

fn original(what: &str, fd: impl AsFd) -> String {
    let [v4, v6] = [libc::SOL_IP, libc::SOL_IPV6].map(|level| sys::original_dst(fd.as_fd(), level));
    format!("{what}: original destination {v4} {v6}")
}

/// Waits until a socket has an event.
fn until(fd: impl AsFd, events: PollFlags) -> anyhow::Result<PollFlags> {
    let mut fds = [PollFd::new(&fd, events)];
    let patience = Timespec { tv_sec: i64::try_from(retry::patience().as_secs())?, tv_nsec: 0 };
    ensure!(poll(&mut fds, Some(&patience))? == 1, "no {events:?} in time");
    Ok(fds[0].revents())
}

fn ends(
    to: SocketAddr,
    end: impl FnOnce(TcpStream, &TcpStream) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<String>> {
    let proxy = proxy(to)?;
    let client = TcpStream::connect(to)?;
    let (server, _) = proxy.accept()?;
    let port = client.local_addr()?.port();
    let before = names("before", &client, port);
    end(server, &client)?;
    // Both directions are closed, or there is no connection any more.
    until(&client, PollFlags::empty())?;
    Ok(vec![before, names("after", &client, port)])
}

fn client_first(to: SocketAddr) -> anyhow::Result<Vec<String>> {
    const FIN_WAIT2: &str = "05";
    let proxy = proxy(to)?;
    let client = TcpStream::connect(to)?;
    let (server, _) = proxy.accept()?;
    let port = client.local_addr()?.port();
    drop(client);
    retry::until("the end to be acknowledged", || {
        (tcp_state(to, port, None)?.as_deref() == Some(FIN_WAIT2)).then_some(())
    })?;
    drop(server);
    let gone = retry::until("the socket to be gone", || {
        tcp_state(to, OUTBOUND, Some(port))?.is_none().then_some(())
    });
    Ok(vec![format!("the proxy's socket is gone: {}", gone.is_ok())])
}

/// State of the socket with this local port, and this port of its peer, as the kernel's table has it; None: no table.
fn tcp_state(of: SocketAddr, local: u16, peer: Option<u16>) -> Option<Option<String>> {
    let table =
        std::fs::read_to_string(if of.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" }).ok()?;
    let found = table.lines().find_map(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let (from, to, state) = (columns.next()?, columns.next()?, columns.next()?);
        let is = |name: &str, port: u16| name.ends_with(&format!(":{port:04X}"));
        (is(from, local) && peer.is_none_or(|port| is(to, port))).then(|| state.to_owned())
    });
    Some(found)
}

fn refused(to: SocketAddr) -> anyhow::Result<Vec<String>> {
    let client = socket(to, SocketFlags::NONBLOCK)?;
    let begun = outcome(connect(&client, &to));
    let port = local_name(&client).address().context("a name")?.port();
    until(&client, PollFlags::OUT)?;
    let end = outcome(socket_error(&client)?);
    Ok(vec![begun, end, names("afterwards", &client, port)])
}

fn reset_by_client(to: SocketAddr) -> anyhow::Result<Vec<String>> {
    let proxy = proxy(to)?;
    reset_at_once(to)?;
    of_reset(&proxy)
}

fn reset_at_once(to: SocketAddr) -> anyhow::Result<Vec<String>> {
    set_socket_linger(&TcpStream::connect(to)?, Some(Duration::ZERO))?;
    Ok(Vec::new())
}

fn of_reset(proxy: &TcpListener) -> anyhow::Result<Vec<String>> {
    let (server, _) = proxy.accept()?;
    until(&server, PollFlags::empty())?;
    Ok(vec![original("the server", &server)])
}

fn accept_reset(to: SocketAddr) -> anyhow::Result<Vec<String>> {
    let proxy = TcpListener::bind(SocketAddr::new(unspecified(to), INBOUND))?;
    println!("ready");
    of_reset(&proxy)
}

fn end_first(to: SocketAddr) -> anyhow::Result<Vec<String>> {
    let proxy = TcpListener::bind(SocketAddr::new(unspecified(to), INBOUND))?;
    println!("ready");
    loop {
        drop(proxy.accept()?);
    }
}

fn client_listens(to: SocketAddr) -> anyhow::Result<Vec<String>> {
    let here = |port| {
        SocketAddr::new(
            if to.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { std::net::Ipv6Addr::LOCALHOST.into() },
            port,
        )
    };
    let first = TcpListener::bind(here(0))?;
    let fd = socket(to, SocketFlags::empty())?;
    connect(&fd, &first.local_addr()?)?;
    connect_unspec(&fd)?;
    bind(&fd, &here(0))?;
    listen(&fd, 1)?;
    let second = TcpListener::from(fd);
    let at = second.local_addr()?;
    let _client = TcpStream::connect(at)?;
    let (server, _) = second.accept()?;
    let text = original("accepted", &server);
    Ok(vec![text.replace(&at.to_string(), "its own address")])
}

fn neighbours(to: SocketAddr) -> anyhow::Result<Vec<String>> {
    let listener = |last: u8| TcpListener::bind((Ipv4Addr::new(127, 0, 0, last), OUTBOUND));
    // More than there are slots.
    let others = (2..40).map(listener).collect::<Result<Vec<_>, _>>()?;
    let proxy = listener(1)?;
    let connected = outcome(TcpStream::connect_timeout(&to, long_enough(Duration::from_secs(4))));
    let got = |listener: &TcpListener| -> anyhow::Result<bool> {
        listener.set_nonblocking(true)?;
        match listener.accept() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).context("accept"),
        }
    };
    let others = others.iter().map(got).collect::<anyhow::Result<Vec<bool>>>()?;
    let others = others.into_iter().filter(|got| *got).count();
    Ok(vec![format!("{connected}; the proxy got it: {}; others got it: {others}", got(&proxy)?)])
}

/// The first of the two sockets has failed before, so that its end is told to programs.
fn same_twice(to: SocketAddr) -> anyhow::Result<Vec<String>> {
    let from = SocketAddr::new(unspecified(to), 5560);
    let client = || -> anyhow::Result<OwnedFd> {
        let fd = socket(to, SocketFlags::empty())?;
        set_socket_reuseaddr(&fd, true)?;
        bind(&fd, &from)?;
        Ok(fd)
    };
    let (first, second) = (client()?, client()?);
    let refused = outcome(connect(&first, &to));
    let proxy = proxy(to)?;
    let connected = outcome(connect(&second, &to));
    let again = outcome(connect(&first, &to));
    let (server, _) = proxy.accept()?;
    println!("connected");
    // Somebody looks.
    std::io::stdin().read_line(&mut String::new())?;
    Ok(vec![
        refused,
        connected,
        again,
        original("the server", &server),
        format!("peer {}", peer_name(&second)),
    ])
}

fn asked_elsewhere(to: SocketAddr) -> anyhow::Result<Vec<String>> {
    let fd = super::udp::socket(family(to), SocketFlags::CLOEXEC)?;
    connect(&fd, &to)?;
    let before = format!("peer {}", peer_name(&fd));
    let other = SocketAddr::new(Ipv4Addr::new(10, 96, 0, 11).into(), to.port());
    let sent = sendto(&fd, b"?", SendFlags::empty(), &other).map_err(|error| errno_name(&error.into()));
    Ok(vec![before, format!("sent {sent:?}"), format!("peer {}", peer_name(&fd))])
}
