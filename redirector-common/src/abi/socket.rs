//! Connections, sockets, and the registry of listeners.

use bytemuck::{Pod, Zeroable};

use super::{Addr, Policy, Slot};

/// Key of `FLOWS`: the connection between a client and the proxy, as both see it. What differs most comes first: of two keys in a
/// trie the kernel compares 8 bytes at a time.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowKey {
    /// The client's port, host byte order.
    pub client_port: u16,
    /// The proxy's port, host byte order.
    pub proxy_port: u16,
    /// The client's address: what the proxy's `accept` returns.
    pub client: Addr,
    /// The address the connection was redirected to.
    pub proxy: Addr,
}

/// Value of `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Flow {
    /// Where the client wanted to go.
    pub addr: Addr,
    /// Its port, host byte order.
    pub port: u16,
    /// [`crate::rule::Verdict`] as a number: 1 outbound, 2 inbound, 3 DNS; or [`super::DIRECT`]; 0 for a connection
    /// of the proxy to the app in TPROXY mode, which was not redirected.
    pub verdict: u16,
    /// [`crate::rule::Counter`] of the rule that decided.
    pub rule: u32,
    /// 1 when the accepted socket has its own copy.
    pub taken: u16,
    /// 1 when the client has closed its socket.
    pub closed: u16,
}

/// Elements of `UNTAKEN` for each CPU.
pub const UNTAKEN_LEN: usize = 32;

/// What a socket is to us.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SockKind(u32);

impl SockKind {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// A client that was let pass.
    pub const PASSED: Self = Self(1);
    /// A client that was redirected.
    pub const REDIRECTED: Self = Self(2);
    /// A listener of the proxy, and (cloned) a connection accepted from it.
    pub const LISTENER: Self = Self(3);
    /// A connection the proxy accepted, whose original destination is recorded here.
    pub const ACCEPTED: Self = Self(4);
    /// A client within the pod that was let pass, and looks as if it came from the network: neither end is a loopback address.
    pub const LOCAL: Self = Self(5);
}

/// Value of `SOCKETS`: lives and dies with its socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SockState {
    /// What it is.
    pub kind: SockKind,
    /// Client: 1 if we bound its source address. The kernel keeps that bind over a refused
    /// connect, so it must be told from one the app made. Listener: 1 if we made it transparent.
    pub bound_by_us: u8,
    /// Client: 1 until its original destination is in `FLOWS`. If connect() fails before that, an entry of this
    /// key belongs to another socket.
    pub pending: u8,
    /// [`crate::rule::Verdict`]; of a listener its [`ListenerRole`].
    pub verdict: u16,
    /// Original destination.
    pub orig: Addr,
    /// Client: where it was redirected to. Listener and accepted: unused.
    pub proxy: Addr,
    /// Original port, host byte order.
    pub orig_port: u16,
    /// Port of the proxy's listener, host byte order.
    pub proxy_port: u16,
    /// Counter of the rule that decided.
    pub rule: u32,
    /// [`super::Meta::generation`] of the instance.
    pub instance: u32,
}

/// Which traffic a listener of the proxy takes. The number is that of its [`crate::rule::Verdict`].
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListenerRole {
    /// What leaves the pod (15001).
    Outbound = 1,
    /// What arrives, and what the proxy sends to its own pod (15006).
    Inbound = 2,
    /// DNS (15053).
    Dns = 3,
}

impl ListenerRole {
    /// All, by their numbers.
    pub const ALL: [Self; 3] = [Self::Outbound, Self::Inbound, Self::Dns];

    /// The role of a number.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Outbound),
            2 => Some(Self::Inbound),
            3 => Some(Self::Dns),
            _ => None,
        }
    }

    /// Its traffic, as in `--output json` and the metric's label.
    #[cfg(feature = "user")]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outbound => crate::rule::Verdict::Outbound.name(),
            Self::Inbound => crate::rule::Verdict::Inbound.name(),
            Self::Dns => crate::rule::Verdict::Dns.name(),
        }
    }

    /// The port where such a listener listens, host byte order.
    #[inline(always)]
    pub const fn port(self, policy: &Policy) -> u16 {
        match self {
            Self::Outbound => policy.outbound_port,
            Self::Inbound => policy.inbound_port,
            Self::Dns => policy.dns_port,
        }
    }

    /// The role of the listeners on a port. One port may have several roles (`-p` and `-z` may be equal): the first counts.
    #[inline(always)]
    pub const fn of_port(policy: &Policy, port: u16) -> Option<Self> {
        if port == policy.outbound_port {
            Some(Self::Outbound)
        } else if port == policy.inbound_port {
            Some(Self::Inbound)
        } else if port == policy.dns_port {
            Some(Self::Dns)
        } else {
            None
        }
    }

    /// The role under which listeners of this role are registered: the first of their port.
    #[inline(always)]
    #[must_use]
    pub const fn registered(self, policy: &Policy) -> Self {
        match Self::of_port(policy, self.port(policy)) {
            Some(first) => first,
            None => self,
        }
    }

    /// Whether listeners of this role accept what comes from the network: it is told from what they accept over lo by
    /// the state that accepted sockets inherit.
    #[inline(always)]
    pub const fn takes_from_network(self, policy: &Policy) -> bool {
        self.port(policy) == policy.inbound_port
    }

    /// First of the [`LISTENER_SLOTS`] elements of `LISTENERS` for this role in a policy slot; those of IPv6 listeners
    /// follow those of IPv4 ones.
    #[inline(always)]
    pub const fn first_element(self, slot: Slot, v6: bool) -> u32 {
        slot.index() * LISTENERS_OF_POLICY + ((self as u32 - 1) * 2 + v6 as u32) * LISTENER_SLOTS
    }
}

/// Elements for each role and family. A proxy may have one listener for each worker, all in one SO_REUSEPORT group; any of
/// them leads to the group. Of more listeners than elements the newest are registered.
pub const LISTENER_SLOTS: u32 = 32;
/// Elements of one policy.
pub const LISTENERS_OF_POLICY: u32 = ListenerRole::ALL.len() as u32 * 2 * LISTENER_SLOTS;
/// Elements of `LISTENERS`: two policies, because another policy may have other ports.
pub const LISTENERS_LEN: u32 = 2 * LISTENERS_OF_POLICY;
