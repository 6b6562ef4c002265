//! Many connections to destinations of their own, in one process that is client and proxy: each accepted socket is asked
//! where its client wanted to go, however soon the client has ended it.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{set_socket_linger, set_socket_reuseaddr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
use serde::{Deserialize, Serialize};

use super::sys;
use crate::harness::probe::observation::errno_name;
use crate::harness::retry::{self, long_enough};
use crate::harness::server::OUTBOUND;

/// How a client ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// It resets it, at once if it has nothing to wait for.
    Reset,
    /// It closes it, likewise.
    Close,
    /// It keeps it until all are made.
    Keep,
}

/// What to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Storm {
    /// One connection to each, one after the other.
    pub destinations: Vec<SocketAddr>,
    /// What each client binds.
    pub from: Option<SocketAddr>,
    /// How they end.
    pub end: End,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Accepted sockets that told a destination which nobody had told before.
    pub right: usize,
    /// What others told, and why clients could not connect.
    pub other: Vec<String>,
    /// Sockets of the namespace in state LAST-ACK at the end.
    pub last_ack: usize,
}

/// Does it.
pub fn run(storm: &Storm) -> anyhow::Result<Outcome> {
    let v4 = storm.destinations.first().is_none_or(SocketAddr::is_ipv4);
    let any: IpAddr = if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let proxy = TcpListener::bind(SocketAddr::new(any, OUTBOUND)).context("the proxy's port")?;
    let level = if v4 { libc::SOL_IP } else { libc::SOL_IPV6 };
    let mut left: HashSet<SocketAddr> = storm.destinations.iter().copied().collect();
    let mut outcome = Outcome::default();
    let mut kept = Vec::new();
    for destination in &storm.destinations {
        match client(storm, *destination) {
            Ok(client) if storm.end == End::Keep => kept.push(client),
            Ok(_) => {}
            Err(error) => {
                outcome.other.push(format!("{destination}: {error}"));
                continue;
            }
        }
        let mut ready = [PollFd::new(&proxy, PollFlags::IN)];
        let patience = Timespec { tv_sec: i64::try_from(retry::patience().as_secs())?, tv_nsec: 0 };
        if poll(&mut ready, Some(&patience))? == 0 {
            outcome.other.push(format!("{destination}: not accepted"));
            continue;
        }
        let (server, _) = proxy.accept().context("accept")?;
        let told = sys::original_dst(&server, level);
        match told.address().filter(|original| left.remove(original)) {
            Some(_) => outcome.right += 1,
            None => outcome.other.push(told.to_string()),
        }
        if storm.end == End::Keep {
            kept.push(OwnedFd::from(server));
        }
    }
    drop(kept);
    outcome.last_ack = last_ack()?;
    Ok(outcome)
}

fn client(storm: &Storm, to: SocketAddr) -> Result<OwnedFd, String> {
    let name = |error: rustix::io::Errno| errno_name(&error.into());
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(name)?;
    if let Some(from) = storm.from {
        set_socket_reuseaddr(&fd, true).map_err(name)?;
        bind(&fd, &from).map_err(name)?;
    }
    connect(&fd, &to).map_err(name)?;
    if storm.end == End::Reset {
        set_socket_linger(&fd, Some(Duration::ZERO)).map_err(name)?;
    }
    Ok(fd)
}

/// The thread's namespace's sockets in state LAST-ACK; those that are still there after a moment in which all others have got their last answer.
pub fn last_ack() -> anyhow::Result<usize> {
    let end = Instant::now() + long_enough(Duration::from_secs(3));
    loop {
        let mut count = 0;
        for file in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            count += text.lines().filter(|line| line.split_ascii_whitespace().nth(3) == Some("09")).count();
        }
        if count == 0 || Instant::now() > end {
            return Ok(count);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
