//! The server's side: the proxy's stand-in, an application, or a remote service, depending on role and addresses.
//!
//! Every accepted connection is looked at from all sides at once; the report goes to stdout for the test, and as the
//! first line over the connection, so that the client knows whom it reached. After that a client may send a
//! [`Question`] (JSON, one a line), to be asked of the server's socket; any other line is echoed.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt::{set_ipv6_v6only, set_socket_reuseaddr, set_socket_reuseport};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use serde::{Deserialize, Serialize};

use super::{print_line, relay, sys, udp};
use crate::harness::probe::observation::{Accepted, AddressOrErrno, Question};

/// A client that keeps a connection open without a word is forgotten after this long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Service {
    /// How it calls itself in reports.
    pub role: String,
    pub listeners: Vec<Listen>,
}

/// A listener, or a group of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listen {
    /// The address to bind. IPv6 listeners accept IPv6 only, unless `dual_stack`.
    pub address: SocketAddr,
    /// More than one: a group of sockets sharing the port by `SO_REUSEPORT`, as Envoy's workers do.
    pub sockets: usize,
    /// `[::]` accepts IPv4 too.
    pub dual_stack: bool,
    pub mptcp: bool,
    /// Listen without SO_REUSEADDR.
    pub exclusive: bool,
    /// Accept data in the SYN (needs the sysctl, too).
    pub fast_open: bool,
    /// Answer UDP queries instead of accepting connections.
    pub udp: bool,
    /// Accept connections to any address (`IP_TRANSPARENT`); takes privileges.
    pub transparent: bool,
    /// Accept only what enters by this interface (`SO_BINDTODEVICE`).
    #[serde(default)]
    pub device: Option<String>,
    /// Hand connections on to the application from the client's address, with this mark, instead of answering.
    pub relay: Option<u32>,
}

impl Listen {
    pub fn on(address: SocketAddr) -> Self {
        Self {
            address,
            sockets: 1,
            dual_stack: false,
            mptcp: false,
            exclusive: false,
            fast_open: false,
            udp: false,
            transparent: false,
            device: None,
            relay: None,
        }
    }

    /// Answers UDP queries. The address must be a certain one: it is the answers' source.
    pub fn udp(address: SocketAddr) -> Self {
        Self { udp: true, ..Self::on(address) }
    }
}

/// A line that a server prints.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ServerEvent {
    Ready,
    /// A connection was accepted.
    Accepted(Box<Accepted>),
    /// The listening socket of this index was closed on command.
    Closed(usize),
    /// This many sockets were opened on command.
    Opened(usize),
}

/// A command, one JSON object a line on stdin; each is answered by an [`ServerEvent`] before the next is sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Close the listening socket of this index (counted in the order of opening; indices do not shift).
    Close(usize),
    Open(Listen),
}

struct Listener {
    fd: Arc<OwnedFd>,
    address: SocketAddr,
    udp: bool,
    relay: Option<u32>,
}

/// Serves until stdin ends.
pub fn serve(service: &Service) -> anyhow::Result<()> {
    let mut listeners: Vec<Option<Listener>> = Vec::new();
    for listen in &service.listeners {
        open(listen, &mut listeners)?;
    }
    print_line(&ServerEvent::Ready)?;
    let mut stdin = BufReader::new(io::stdin());
    loop {
        let open: Vec<&Listener> = listeners.iter().flatten().collect();
        let mut polled: Vec<PollFd<'_>> =
            open.iter().map(|entry| PollFd::new(&entry.fd, PollFlags::IN)).collect();
        let input = io::stdin();
        polled.push(PollFd::new(&input, PollFlags::IN));
        poll(&mut polled, None)?;
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        for (listener, _) in open.iter().zip(&ready).filter(|(_, ready)| **ready) {
            if listener.udp {
                udp::answer(&listener.fd, listener.address, &service.role)?;
            } else {
                accept(listener, &service.role)?;
            }
        }
        if ready.last() == Some(&true) {
            let mut line = String::new();
            if stdin.read_line(&mut line)? == 0 {
                return Ok(());
            }
            obey(serde_json::from_str(&line).context("a command")?, &mut listeners)?;
        }
    }
}

fn obey(command: Command, listeners: &mut Vec<Option<Listener>>) -> anyhow::Result<()> {
    match command {
        Command::Close(index) => {
            *listeners.get_mut(index).context("no such listener")? = None;
            print_line(&ServerEvent::Closed(index))
        }
        Command::Open(listen) => {
            open(&listen, listeners)?;
            print_line(&ServerEvent::Opened(listen.sockets))
        }
    }
}

fn open(listen: &Listen, listeners: &mut Vec<Option<Listener>>) -> anyhow::Result<()> {
    for _ in 0..listen.sockets {
        let fd = open_one(listen).with_context(|| format!("listening on {}", listen.address))?;
        let (address, udp, relay) = (listen.address, listen.udp, listen.relay);
        listeners.push(Some(Listener { fd: Arc::new(fd), address, udp, relay }));
    }
    Ok(())
}

fn open_one(listen: &Listen) -> io::Result<OwnedFd> {
    let family = if listen.address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let protocol = if listen.mptcp { ipproto::MPTCP } else { ipproto::TCP };
    // Non-blocking, because a connection may be gone between poll and accept.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    if listen.udp {
        let fd = udp::socket(family, flags)?;
        rustix::net::bind(&fd, &listen.address)?;
        return Ok(fd);
    }
    let fd = socket_with(family, SocketType::STREAM, flags, Some(protocol))?;
    set_socket_reuseaddr(&fd, !listen.exclusive)?;
    if listen.sockets > 1 {
        set_socket_reuseport(&fd, true)?;
    }
    if listen.address.is_ipv6() {
        set_ipv6_v6only(&fd, !listen.dual_stack)?;
    }
    if listen.fast_open {
        sys::switch_on(&fd, libc::SOL_TCP, libc::TCP_FASTOPEN)?;
    }
    if listen.transparent {
        sys::switch_on(&fd, libc::SOL_IP, libc::IP_TRANSPARENT)?;
    }
    if let Some(device) = &listen.device {
        sys::bind_to_device(&fd, device)?;
    }
    rustix::net::bind(&fd, &listen.address)?;
    rustix::net::listen(&fd, 4096)?;
    Ok(fd)
}

fn accept(listener: &Listener, role: &str) -> anyhow::Result<()> {
    // An error concerns the one connection that vanished; the listener goes on.
    let Ok((fd, peer)) = rustix::net::acceptfrom_with(&listener.fd, SocketFlags::CLOEXEC) else {
        return Ok(());
    };
    let accept_peer = peer.map(SocketAddr::try_from);
    let accepted = Accepted {
        role: role.to_owned(),
        listener: listener.address,
        accept_peer: match accept_peer {
            Some(result) => result.map_err(io::Error::from).into(),
            None => AddressOrErrno::Error("no address".to_owned()),
        },
        peer: name(rustix::net::getpeername(&fd)),
        local: name(rustix::net::getsockname(&fd).map(Some)),
        original_dst: sys::original_dst(&fd, libc::SOL_IP),
        original_dst6: sys::original_dst(&fd, libc::SOL_IPV6),
    };
    print_line(&ServerEvent::Accepted(Box::new(accepted.clone())))?;
    let (relay, listener) = (listener.relay, Arc::downgrade(&listener.fd));
    std::thread::Builder::new().stack_size(128 * 1024).spawn(move || {
        // The client may leave at any time; that is its business.
        let _ = match relay {
            Some(mark) => relay::relay(fd, &accepted, mark).map_err(anyhow::Error::from),
            None => attend(fd, &listener, &accepted),
        };
    })?;
    Ok(())
}

fn attend(fd: OwnedFd, listener: &Weak<OwnedFd>, accepted: &Accepted) -> anyhow::Result<()> {
    let mut writer = TcpStream::from(fd);
    writer.set_read_timeout(Some(IDLE_TIMEOUT))?;
    let mut reader = BufReader::new(writer.try_clone()?);
    writer.write_all(format!("{}\n", serde_json::to_string(accepted)?).as_bytes())?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if let Ok(question) = serde_json::from_str::<Question>(&line) {
            let answer = match (question.listener, listener.upgrade()) {
                (true, Some(listener)) => sys::ask(listener.as_fd(), question),
                (true, None) => anyhow::bail!("the listener is closed"),
                (false, _) => sys::ask(writer.as_fd(), question),
            };
            line = format!("{}\n", serde_json::to_string(&answer)?);
        }
        writer.write_all(line.as_bytes())?;
    }
}

pub(super) fn name(any: rustix::io::Result<Option<rustix::net::SocketAddrAny>>) -> AddressOrErrno {
    match any {
        Ok(Some(any)) => SocketAddr::try_from(any).map_err(io::Error::from).into(),
        Ok(None) => AddressOrErrno::Error("no address".to_owned()),
        Err(error) => Err(io::Error::from(error)).into(),
    }
}
