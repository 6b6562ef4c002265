//! Sockets of a network namespace, and which of them to list.

use std::net::SocketAddr;

/// `TCP_LISTEN` of net/tcp_states.h.
pub(super) const TCP_LISTEN: u8 = 10;
/// `TCP_CLOSE`: the state of a UDP socket that is not connected.
pub(super) const TCP_CLOSE: u8 = 7;
/// ESTABLISHED, SYN_SENT, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT: the connections that a process may hold open.
const CONNECTED: [u8; 5] = [1, 2, 4, 5, 8];

/// Which sockets to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP sockets that listen.
    TcpListeners,
    /// TCP sockets that are connected, or on their way there.
    TcpConnections,
    /// UDP sockets that are bound and not connected: those of servers are among them.
    UdpServers,
}

impl Kind {
    pub(super) fn is_tcp(self) -> bool {
        self != Self::UdpServers
    }

    pub(super) fn states(self) -> &'static [u8] {
        match self {
            Self::TcpListeners => &[TCP_LISTEN],
            Self::TcpConnections => &CONNECTED,
            Self::UdpServers => &[TCP_CLOSE],
        }
    }
}

/// A socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Its family is AF_INET6, whatever its addresses are.
    pub v6: bool,
    /// Its own address; IPv4 in IPv6 is IPv4.
    pub local: SocketAddr,
    /// The other end; of one that listens unspecified.
    pub remote: SocketAddr,
    /// Who made it, in the caller's user namespace.
    pub uid: u32,
    /// Its inode, 0 for one without a descriptor.
    pub inode: u64,
    /// Index of the interface it is bound to, 0 for none.
    pub device: Option<u32>,
    /// SO_COOKIE.
    pub cookie: Option<u64>,
    /// Id of the cgroup (v2) it was made in (5.9).
    pub cgroup: Option<u64>,
    /// An IPv6 listener does not take IPv4.
    pub v6_only: Option<bool>,
    /// Of a listener: it is the TCP socket of an MPTCP one.
    pub mptcp: Option<bool>,
    /// Of a listener: connections that wait to be accepted, and how many may.
    pub queue: Option<(u32, u32)>,
    /// What the map that was asked for holds of it (BPF_MAP_TYPE_SK_STORAGE).
    pub storage: Option<Vec<u8>>,
}

/// Sockets, and who told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sockets {
    /// In the kernel's order.
    pub list: Vec<Socket>,
    /// `NETLINK_SOCK_DIAG` has told; else /proc/net, which knows neither cookies, cgroups nor storages.
    pub complete: bool,
}
