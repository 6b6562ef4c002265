//! What was read: routes with what connect(2) comes to, and interfaces.

use std::net::IpAddr;

use ipnet::IpNet;

/// How a namespace routes, and its interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSnapshot {
    /// Sorted, IPv4 before IPv6; always has 0.0.0.0/0 and ::/0. The longest prefix that holds a destination
    /// decides.
    pub routes: Vec<Route>,
    /// Sorted by index.
    pub interfaces: Vec<Interface>,
}

/// What connect(2) comes to for the destinations of a prefix that no longer prefix takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The prefix; its host bits are zero.
    pub prefix: IpNet,
    /// What happens.
    pub outcome: Outcome,
}

/// What connect(2) of an unbound TCP socket comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The packet leaves on a loopback interface: an address of the namespace, or a route over lo (iptables'
    /// `-o lo`).
    Local {
        /// The source address (`fib_result_prefsrc`, `ipv6_dev_get_saddr`); `None`: the destination itself.
        source: Option<IpAddr>,
    },
    /// The packet leaves on another interface.
    Via {
        /// Index of the interface, host byte order.
        oif: u32,
        /// The source address (RTA_PREFSRC); `None`: the kernel has none, and the source would be 0.0.0.0
        /// (only IPv4).
        source: Option<IpAddr>,
    },
    /// The broadcast address of an interface: connect(2) fails with ENETUNREACH, or, from a loopback source,
    /// with EINVAL (`__mkroute_output` looks at the source first).
    Broadcast {
        /// Index of the interface, host byte order.
        oif: u32,
    },
    /// connect(2) fails.
    Refused {
        /// The positive errno: ENETUNREACH (no route, throw, multicast, broadcast), EHOSTUNREACH
        /// (unreachable), EACCES (prohibit), EINVAL (blackhole), EADDRNOTAVAIL (no IPv6 source address),
        /// EAFNOSUPPORT (socket(2) says so in a kernel without IPv6)...
        errno: i32,
    },
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index, host byte order.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its own addresses with their prefix lengths, IPv4 then IPv6, in the order in which the kernel lists
    /// them (the first IPv4 one is the primary address, the one REDIRECT uses). Addresses that failed
    /// duplicate detection are left out.
    pub addresses: Vec<IpNet>,
    /// Whether what leaves on it comes straight back (IFF_LOOPBACK).
    pub loopback: bool,
}

impl RouteSnapshot {
    /// Whether an interface has this address.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.interfaces.iter().any(|interface| interface.has(address))
    }

    /// The loopback interface.
    pub fn lo(&self) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.loopback)
    }

    /// Whether IPv6 is in use: somewhere there is an address.
    pub fn has_ipv6(&self) -> bool {
        self.interfaces.iter().flat_map(|it| &it.addresses).any(|net| net.addr().is_ipv6())
    }

    /// Adds an address to lo, as it will be when it has been added to the namespace.
    pub fn add_to_lo(&mut self, address: IpAddr) {
        self.routes.push(Route { prefix: address.into(), outcome: Outcome::Local { source: None } });
    }

    /// Takes an address of lo away, with its route.
    pub fn remove_from_lo(&mut self, address: IpAddr) {
        self.routes.retain(|route| route.prefix != IpNet::from(address));
        for interface in self.interfaces.iter_mut().filter(|interface| interface.loopback) {
            interface.addresses.retain(|net| net.addr() != address);
        }
    }
}

impl Interface {
    /// Whether it has this address.
    pub fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|net| net.addr() == address)
    }
}
