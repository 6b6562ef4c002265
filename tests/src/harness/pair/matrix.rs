//! The matrix of connections that both worlds must agree on.
//!
//! Families × callers × destinations × ways of binding, all combinations. Every scenario is independent of the others:
//! a bound port is used once, and connections are reset so that none lingers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::harness::probe::scenario::{Family, Owner, Scenario};
use crate::harness::share;
use crate::harness::world::{APP, ETH0, LINK_LOCAL, PROXY, Pod, ROOT, SECOND4, SECOND6, VIP4, VIP6, at};

/// The port of the ordinary servers, inside and outside.
pub const SERVED: u16 = 8080;
/// A port where nobody listens.
pub const UNSERVED: u16 = 81;
/// Ports of the sidecar that are excluded from inbound capture, and the tunnel's.
pub const SIDECAR_PORTS: [u16; 4] = [15020, 15021, 15090, 15008];

/// The first of the ports that are bound; below those the kernel picks.
const FIRST_BOUND: u16 = 20000;

/// The users that connect, by name.
pub const CALLERS: [(&str, Owner); 5] = [
    ("app", APP),
    ("proxy", PROXY),
    ("proxy-uid", Owner { uid: 1337, gid: 0 }),
    ("proxy-gid", Owner { uid: 1000, gid: 1337 }),
    ("root", ROOT),
];

/// The families, by name.
pub const FAMILIES: [(&str, Family); 3] =
    [("v4", Family::V4), ("v6", Family::V6), ("mapped", Family::Mapped)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A user within the pod.
    Pod(Owner),
    /// A user within this container of the pod.
    Container(&'static str, Owner),
    /// Somebody in the rest of the cluster.
    Outside,
    /// The virtual machine in the pod.
    Guest,
}

/// The connections of one caller.
#[derive(Clone, Debug)]
pub struct Part {
    pub caller: Caller,
    /// Its connections, independent of each other.
    pub scenarios: Vec<Scenario>,
}

impl Part {
    /// Connections of a user within the pod.
    pub fn of(owner: Owner, scenarios: Vec<Scenario>) -> Self {
        Self { caller: Caller::Pod(owner), scenarios }
    }
}

/// Connections from within a pod.
pub fn outbound(pod: &Pod) -> Vec<Part> {
    let mut port = FIRST_BOUND;
    CALLERS
        .into_iter()
        .map(|(caller, owner)| {
            let mut scenarios = Vec::new();
            for (family_name, family) in FAMILIES {
                for (name, to) in destinations(pod, family) {
                    for (bind_name, mut bind) in binds(pod, family) {
                        if let Some(address) = bind.as_mut().filter(|address| address.port() != 0) {
                            address.set_port(port);
                            port += 1;
                        }
                        let name = format!("{family_name} {caller} to {name} from {bind_name}");
                        scenarios.push(Scenario { bind, ..Scenario::new(name, family, to) });
                    }
                }
            }
            Part::of(owner, scenarios)
        })
        .collect()
}

pub fn destinations(pod: &Pod, family: Family) -> Vec<(&'static str, SocketAddr)> {
    match family {
        Family::V4 | Family::Mapped => destinations4(pod),
        Family::V6 => destinations6(pod),
    }
}

fn destinations4(pod: &Pod) -> Vec<(&'static str, SocketAddr)> {
    let ip = |a, b, c, d| IpAddr::from(Ipv4Addr::new(a, b, c, d));
    vec![
        ("vip", at(VIP4, SERVED)),
        ("vip-unserved", at(VIP4, UNSERVED)),
        ("vip-ssh", at(VIP4, 22)),
        ("vip-15001", at(VIP4, 15001)),
        ("vip-15008", at(VIP4, 15008)),
        ("vip-15020", at(VIP4, 15020)),
        ("gateway", at(ip(10, 77, 0, 1), SERVED)),
        ("neighbour-absent", at(VIP4, 65535)),
        ("second-network", at(SECOND4, SERVED)),
        ("self", at(pod.v4(), SERVED)),
        ("self-unserved", at(pod.v4(), UNSERVED)),
        ("self-15001", at(pod.v4(), 15001)),
        ("self-15006", at(pod.v4(), 15006)),
        ("self-15008", at(pod.v4(), 15008)),
        ("self-15020", at(pod.v4(), 15020)),
        ("127.0.0.1", at(ip(127, 0, 0, 1), SERVED)),
        ("127.0.0.1-unserved", at(ip(127, 0, 0, 1), UNSERVED)),
        ("127.0.0.1-15001", at(ip(127, 0, 0, 1), 15001)),
        ("127.0.0.1-15006", at(ip(127, 0, 0, 1), 15006)),
        ("127.0.0.2", at(ip(127, 0, 0, 2), SERVED)),
        ("127.0.0.2-15008", at(ip(127, 0, 0, 2), 15008)),
        ("127.0.0.6", at(ip(127, 0, 0, 6), SERVED)),
        ("127.0.0.6-15002", at(ip(127, 0, 0, 6), 15002)),
        ("127.255.255.255", at(ip(127, 255, 255, 255), SERVED)),
        ("0.0.0.0", at(ip(0, 0, 0, 0), SERVED)),
        ("0.0.0.0-unserved", at(ip(0, 0, 0, 0), UNSERVED)),
        ("0.0.0.1", at(ip(0, 0, 0, 1), SERVED)),
        ("unreachable", at(ip(10, 98, 0, 1), SERVED)),
        ("prohibited", at(ip(10, 99, 0, 1), SERVED)),
        ("blackhole", at(ip(10, 97, 0, 1), SERVED)),
        ("thrown", at(ip(10, 95, 0, 1), SERVED)),
        ("multicast", at(ip(224, 0, 0, 1), SERVED)),
        ("reserved", at(ip(240, 0, 0, 1), SERVED)),
        ("broadcast", at(ip(10, 77, 0, 255), SERVED)),
        ("all-ones", at(ip(255, 255, 255, 255), SERVED)),
        ("port-0", at(VIP4, 0)),
    ]
}

fn destinations6(pod: &Pod) -> Vec<(&'static str, SocketAddr)> {
    let dead = |net| IpAddr::from(Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, 0, 1));
    let six = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
    let scoped = |ip, scope| SocketAddr::V6(SocketAddrV6::new(ip, SERVED, 0, scope));
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    vec![
        ("vip", at(VIP6, SERVED)),
        ("vip-unserved", at(VIP6, UNSERVED)),
        ("vip-15001", at(VIP6, 15001)),
        ("vip-15008", at(VIP6, 15008)),
        ("gateway", at(Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 1), SERVED)),
        ("second-network", at(SECOND6, SERVED)),
        ("self", at(pod.v6(), SERVED)),
        ("self-unserved", at(pod.v6(), UNSERVED)),
        ("self-15001", at(pod.v6(), 15001)),
        ("self-15006", at(pod.v6(), 15006)),
        ("self-15008", at(pod.v6(), 15008)),
        ("self-15020", at(pod.v6(), 15020)),
        ("::1", at(Ipv6Addr::LOCALHOST, SERVED)),
        ("::1-unserved", at(Ipv6Addr::LOCALHOST, UNSERVED)),
        ("::1-15001", at(Ipv6Addr::LOCALHOST, 15001)),
        ("::6", at(six, SERVED)),
        ("::6-15002", at(six, 15002)),
        ("::", at(Ipv6Addr::UNSPECIFIED, SERVED)),
        ("::-unserved", at(Ipv6Addr::UNSPECIFIED, UNSERVED)),
        ("unreachable", at(dead(0x98), SERVED)),
        ("prohibited", at(dead(0x99), SERVED)),
        ("blackhole", at(dead(0x97), SERVED)),
        ("multicast", scoped(all_nodes, ETH0)),
        ("link-local", scoped(LINK_LOCAL, ETH0)),
        ("link-local-unscoped", scoped(LINK_LOCAL, 0)),
        ("port-0", at(VIP6, 0)),
    ]
}

/// Ways to bind, by name. A port other than 0 asks for a port of its own.
fn binds(pod: &Pod, family: Family) -> Vec<(&'static str, Option<SocketAddr>)> {
    let (own, localhost, six): (IpAddr, IpAddr, IpAddr) = match family {
        Family::V4 | Family::Mapped => {
            (pod.v4().into(), Ipv4Addr::LOCALHOST.into(), Ipv4Addr::new(127, 0, 0, 6).into())
        }
        Family::V6 => {
            (pod.v6().into(), Ipv6Addr::LOCALHOST.into(), Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).into())
        }
    };
    // A dual-stack program binds [::] when it only wants a port.
    let any: IpAddr =
        if family == Family::V4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    vec![
        ("anywhere", None),
        ("any:0", Some(at(any, 0))),
        ("self", Some(at(own, 0))),
        ("localhost", Some(at(localhost, 0))),
        ("passthrough", Some(at(six, 0))),
        ("any:port", Some(at(any, 1))),
        ("self:port", Some(at(own, 1))),
        ("localhost:port", Some(at(localhost, 1))),
    ]
}

/// Connections in both directions, of which this machine has its share to make.
pub fn all(pod: &Pod) -> Vec<Part> {
    let mut parts = outbound(pod);
    parts.push(inbound(pod));
    share::parts(parts)
}

/// Connections from the network into a pod.
pub fn inbound(pod: &Pod) -> Part {
    let addresses: [(&str, Family, IpAddr); 3] = [
        ("v4", Family::V4, pod.v4().into()),
        ("v6", Family::V6, pod.v6().into()),
        ("mapped", Family::Mapped, pod.v4().into()),
    ];
    let ports = [SERVED, UNSERVED, 22, 15001, 15006, 15000, 15002].into_iter().chain(SIDECAR_PORTS);
    let mut scenarios = Vec::new();
    for port in ports {
        for (name, family, address) in addresses {
            scenarios.push(Scenario::new(format!("{name} inbound to {port}"), family, at(address, port)));
        }
    }
    Part { caller: Caller::Outside, scenarios }
}
