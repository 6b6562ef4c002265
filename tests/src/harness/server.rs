//! Servers of a test: the proxy's stand-in, the pod's applications, the services of the world outside.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context;

use crate::harness::kernel;
use crate::harness::probe::observation::Accepted;
use crate::harness::probe::serve::{Command, Listen, ServerEvent, Service};
use crate::harness::process::{Daemon, Place};

/// Where the proxy accepts captured outbound connections.
pub const OUTBOUND: u16 = 15001;
/// Where the proxy accepts captured inbound connections.
pub const INBOUND: u16 = 15006;

/// A running server; ends on drop.
pub struct Server {
    daemon: Daemon,
}

impl Server {
    /// Starts a server and waits until it listens.
    pub fn start(place: &Place, role: &str, listeners: Vec<Listen>) -> anyhow::Result<Self> {
        let service = serde_json::to_string(&Service { role: role.to_owned(), listeners })?;
        let daemon = Daemon::start(role, &mut place.probe(&["serve", &service]))?;
        daemon
            .wait_for(0, |line| matches!(serde_json::from_str(line), Ok(ServerEvent::Ready)).then_some(()))?;
        Ok(Self { daemon })
    }

    /// Everything accepted so far, in order.
    pub fn accepted(&self) -> Vec<Accepted> {
        self.daemon
            .lines()
            .iter()
            .filter_map(|line| match serde_json::from_str(line) {
                Ok(ServerEvent::Accepted(accepted)) => Some(*accepted),
                _ => None,
            })
            .collect()
    }

    /// Closes one listening socket, counted in the order of opening.
    pub fn close(&mut self, index: usize) -> anyhow::Result<()> {
        self.command(&Command::Close(index))
    }

    /// Opens more listening sockets.
    pub fn open(&mut self, listen: Listen) -> anyhow::Result<()> {
        self.command(&Command::Open(listen))
    }

    fn command(&mut self, command: &Command) -> anyhow::Result<()> {
        let skip = self.daemon.line_count();
        self.daemon.tell(&serde_json::to_string(command)?)?;
        let done = |line: &str| {
            matches!(serde_json::from_str(line), Ok(ServerEvent::Closed(_) | ServerEvent::Opened(_)))
        };
        self.daemon.wait_for(skip, |line| done(line).then_some(())).context("obeying a command")
    }

    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }
}

/// `0.0.0.0:port`.
pub fn any4(port: u16) -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, port).into()
}

/// `[::]:port`.
pub fn any6(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

/// Listeners on the wildcard addresses of every family the kernel has.
pub fn everywhere(ports: &[u16]) -> Vec<Listen> {
    let both = ports.iter().flat_map(|port| [any4(*port), any6(*port)]);
    both.filter(|address| address.is_ipv4() || kernel::has_ipv6()).map(Listen::on).collect()
}

/// The proxy's listeners, `sockets` of each.
pub fn proxy_listeners(sockets: usize) -> Vec<Listen> {
    let mut listeners = everywhere(&[OUTBOUND, INBOUND]);
    for listen in &mut listeners {
        listen.sockets = sockets;
    }
    listeners
}
