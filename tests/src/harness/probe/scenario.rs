//! The schema of scenarios: one connection, described completely.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::harness::probe::observation::Question;

/// The address family of the socket, and how the destination is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Family {
    /// `AF_INET`.
    V4,
    /// `AF_INET6` to an IPv6 destination.
    V6,
    /// `AF_INET6` to an IPv4 destination, written `::ffff:a.b.c.d`, as dual-stack programs do.
    Mapped,
}

/// The way the connection is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum How {
    /// `connect()` that waits.
    #[default]
    Blocking,
    /// `connect()` on a non-blocking socket, then poll, then `SO_ERROR`.
    Nonblocking,
    /// TCP Fast Open: `sendto(MSG_FASTOPEN)` connects and sends in one call.
    FastOpenSend,
    /// TCP Fast Open: with `TCP_FASTOPEN_CONNECT` the handshake may wait for the first write.
    FastOpenConnect,
    /// `IORING_OP_CONNECT`.
    IoUring,
}

/// The way a UDP query is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Udp {
    /// `connect()`, then `send()`.
    Connect,
    /// `sendto()` on a socket without a peer.
    SendTo,
}

/// A user and group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// A connection attempt made on the socket before the one that counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    pub to: SocketAddr,
    /// Take the connection back with `connect(AF_UNSPEC)` afterwards.
    pub disconnect: bool,
}

/// An option of a socket, as the kernel is given it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOption {
    pub level: i32,
    pub name: i32,
    pub value: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scenario {
    /// Names the scenario in reports; unique within a matrix.
    pub name: String,
    /// Family of the socket.
    pub family: Family,
    /// Destination; for [`Family::Mapped`] given as IPv4.
    pub to: SocketAddr,
    /// Address and port to bind first; for [`Family::Mapped`] given as IPv4 (unspecified binds `[::]`).
    pub bind: Option<SocketAddr>,
    /// The way to connect.
    pub how: How,
    /// Use MPTCP instead of TCP.
    pub mptcp: bool,
    /// A UDP query and its answer, instead of a TCP connection.
    pub udp: Option<Udp>,
    /// Set this option first; see [`Observation::bind`](super::observation::Observation::bind) for the outcome.
    pub option: Option<SocketOption>,
    /// Use up the memory for the socket's options first.
    pub full_memory: bool,
    /// Effective ids while the socket is created. The probe must run as root.
    pub created_by: Option<Owner>,
    /// Effective ids while it is connected. The probe must run as root.
    pub connected_by: Option<Owner>,
    /// Earlier attempts on the same socket.
    pub earlier: Vec<Attempt>,
    /// Asked of the client's socket before anything is connected.
    pub ask_before: Vec<Question>,
    /// Asked of the client's socket once connected.
    pub ask_client: Vec<Question>,
    /// Asked of the socket that the server accepted (or listens on).
    pub ask_server: Vec<Question>,
}

impl Scenario {
    pub fn new(name: impl Into<String>, family: Family, to: SocketAddr) -> Self {
        Self {
            name: name.into(),
            family,
            to,
            bind: None,
            how: How::Blocking,
            mptcp: false,
            udp: None,
            option: None,
            full_memory: false,
            created_by: None,
            connected_by: None,
            earlier: Vec::new(),
            ask_before: Vec::new(),
            ask_client: Vec::new(),
            ask_server: Vec::new(),
        }
    }

    /// A plain connection of the family of the destination, named after it.
    pub fn to(to: SocketAddr) -> Self {
        Self::new(format!("to {to}"), if to.is_ipv4() { Family::V4 } else { Family::V6 }, to)
    }

    pub fn bound(mut self, bind: SocketAddr) -> Self {
        self.bind = Some(bind);
        self
    }

    pub fn by(mut self, how: How) -> Self {
        self.how = how;
        self
    }

    /// Tries another destination first.
    pub fn after(mut self, to: SocketAddr, disconnect: bool) -> Self {
        self.earlier.push(Attempt { to, disconnect });
        self
    }

    /// Gives it another name.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }
}
