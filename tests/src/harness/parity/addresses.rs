//! The addresses of the pair: where probes go, and from where.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::configuration::NAME_SERVER4;
use crate::harness::probe::serve::Listen;
use crate::harness::world::{SECOND4, SECOND6, VIP4, VIP6, at};

/// The pod's first interface.
pub const FIRST4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The pod's first interface.
pub const FIRST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 2);
/// The pod's second interface.
pub const SECOND_POD4: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
/// The pod's second interface.
pub const SECOND_POD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x78, 0, 0, 0, 0, 0, 2);
pub const OTHER4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const FAR4: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 1);
/// A service of the same /16, but not /24.
pub const LISTED4: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 10);
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 1);
pub const NAME_SERVER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x53);
/// A service of the same /64.
const LISTED6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 1, 0x10);
/// From where Envoy connects to the application.
const PASSTHROUGH4: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6));
const PASSTHROUGH6: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));
const LOCALHOST4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOCALHOST6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// A destination, and the sources from which one can try to reach it without waiting for ever: a packet with a
/// loopback source that leaves is never answered, but IPv4 does not let it leave.
pub struct Destination {
    pub address: IpAddr,
    pub sources: &'static [IpAddr],
}

const LOCAL4: &[IpAddr] = &[LOCALHOST4, PASSTHROUGH4, IpAddr::V4(FIRST4), IpAddr::V4(SECOND_POD4)];
const LOCAL6: &[IpAddr] = &[LOCALHOST6, PASSTHROUGH6, IpAddr::V6(FIRST6), IpAddr::V6(SECOND_POD6)];
const OUT4: &[IpAddr] = &[IpAddr::V4(FIRST4), LOCALHOST4];
const OUT6: &[IpAddr] = &[IpAddr::V6(FIRST6)];
const OUT_SECOND4: &[IpAddr] = &[IpAddr::V4(SECOND_POD4)];
const OUT_SECOND6: &[IpAddr] = &[IpAddr::V6(SECOND_POD6)];

const fn four(address: Ipv4Addr, sources: &'static [IpAddr]) -> Destination {
    Destination { address: IpAddr::V4(address), sources }
}

const fn six(address: Ipv6Addr, sources: &'static [IpAddr]) -> Destination {
    Destination { address: IpAddr::V6(address), sources }
}

const PLACES: &[Destination] = &[
    four(VIP4, OUT4),
    four(LISTED4, OUT4),
    four(SECOND4, OUT_SECOND4),
    four(GATEWAY4, OUT4),
    four(FIRST4, LOCAL4),
    four(SECOND_POD4, LOCAL4),
    four(Ipv4Addr::LOCALHOST, LOCAL4),
    four(OTHER4, LOCAL4),
    four(FAR4, LOCAL4),
    four(Ipv4Addr::UNSPECIFIED, LOCAL4),
    six(VIP6, OUT6),
    six(LISTED6, OUT6),
    six(SECOND6, OUT_SECOND6),
    six(GATEWAY6, OUT6),
    six(FIRST6, LOCAL6),
    six(SECOND_POD6, LOCAL6),
    six(Ipv6Addr::LOCALHOST, LOCAL6),
    six(Ipv6Addr::UNSPECIFIED, LOCAL6),
];

impl Destination {
    pub fn all() -> &'static [Self] {
        PLACES
    }
}

/// Name servers of the world outside, for UDP.
pub fn outside_queries() -> Vec<Listen> {
    let four = [VIP4, NAME_SERVER4, LISTED4, SECOND4].map(|ip| at(ip, 53));
    let six = [VIP6, NAME_SERVER6, SECOND6].map(|ip| at(ip, 53));
    let other = at(VIP4, 8080);
    four.into_iter().chain(six).chain([other]).map(Listen::udp).collect()
}

/// Name servers in the pod, for UDP.
pub fn pod_queries() -> Vec<Listen> {
    let four = [FIRST4, OTHER4, Ipv4Addr::LOCALHOST].map(|ip| at(ip, 53));
    let six = [FIRST6, Ipv6Addr::LOCALHOST].map(|ip| at(ip, 53));
    four.into_iter().chain(six).map(Listen::udp).collect()
}

/// The proxy's DNS server, where Istio's is.
pub fn dns_listeners() -> Vec<Listen> {
    const DNS: u16 = 15053;
    let addresses: [SocketAddr; 2] = [at(Ipv4Addr::LOCALHOST, DNS), at(Ipv6Addr::LOCALHOST, DNS)];
    addresses.into_iter().flat_map(|address| [Listen::on(address), Listen::udp(address)]).collect()
}
