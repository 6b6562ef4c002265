//! Which loopback addresses an instance gives: to original destinations, and to single connections. They are chosen once,
//! at random, as few as will do, and none that the namespace already uses.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use redirector_common::abi::VirtualRange;

use crate::base::error::{Error, Result};
use crate::netlink::sock_diag::{self, Kind};
use crate::pod::Target;
use crate::policy::Policy;
use crate::routes::RouteSnapshot;

/// 127.128.0.0/9.
const ALL: RangeInclusive<u32> = 0x7f80_0000..=0x7fff_ffff;
/// Its last /16 holds the broadcast address of lo.
const LAST: u32 = 0x7fff_0000;
/// Addresses for single connections, so that as many may be alive from one port of a client.
const OF_CONNECTIONS: u32 = 1 << 16;
/// The fewest for destinations: a range that no application hits by chance.
const FEWEST: u32 = 1 << 8;
const ATTEMPTS: u32 = 64;

/// The addresses that an instance gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VirtualRanges {
    /// To original destinations.
    pub destinations: VirtualRange,
    /// To single connections.
    pub connections: VirtualRange,
    /// Number of the first address for a destination.
    pub first: u64,
}

impl VirtualRanges {
    /// Said when there is no room for them.
    pub(super) fn remark(&self, policy: &Policy) -> Option<String> {
        let without = policy.max_destinations > 0 && self.destinations.is_none();
        without.then(|| {
            "the network namespace uses so much of 127.128.0.0/9 that no addresses there are left for original \
             destinations: each is stored for its connection alone, which is slower"
                .to_owned()
        })
    }
}

/// Chooses addresses that are no socket's, interface's or route's of the target's namespace.
pub(super) fn choose(target: &Target, policy: &Policy, routes: &RouteSnapshot) -> Result<VirtualRanges> {
    let mut used = used_by_sockets(target)?;
    let addresses = routes.interfaces.iter().flat_map(|interface| &interface.addresses);
    let prefixes = routes.routes.iter().map(|route| &route.prefix);
    used.extend(addresses.map(|net| net.addr()).filter_map(|ip| virtual_number(ip).map(|n| n..=n)));
    used.extend(prefixes.filter_map(|prefix| {
        let (first, last) = (virtual_number(prefix.network())?, virtual_number(prefix.broadcast())?);
        Some(first..=last)
    }));
    let random = RandomState::new();
    let mut turn = 0_u64;
    Ok(place(policy.max_destinations, used, || {
        let mut hasher = random.build_hasher();
        hasher.write_u64(turn);
        turn += 1;
        hasher.finish()
    }))
}

fn used_by_sockets(target: &Target) -> Result<Vec<RangeInclusive<u32>>> {
    let list = |kind| sock_diag::list(kind, None).map(|sockets| sockets.list);
    let told = target.netns.run(|| {
        let servers = [list(Kind::TcpListeners)?, list(Kind::UdpServers)?].concat();
        Ok::<_, Error>([servers, sock_diag::connections()?].concat())
    })?;
    let ends = told.iter().flat_map(|socket| [socket.local.ip(), socket.remote.ip()]);
    Ok(ends.filter_map(virtual_number).map(|n| n..=n).collect())
}

fn virtual_number(ip: IpAddr) -> Option<u32> {
    let IpAddr::V4(ip) = ip.to_canonical() else { return None };
    Some(ip.to_bits()).filter(|number| ALL.contains(number))
}

/// Where the addresses are. Connections that get none go to 127.0.0.1.
fn place(
    max_destinations: u32,
    mut used: Vec<RangeInclusive<u32>>,
    mut random: impl FnMut() -> u64,
) -> VirtualRanges {
    used.push(LAST..=*ALL.end());
    let destinations = match max_destinations {
        0 => VirtualRange::NONE,
        max => find(max.saturating_mul(2).max(FEWEST).next_power_of_two(), &used, &mut random),
    };
    used.push(destinations.first..=destinations.first | destinations.mask);
    let connections = find(OF_CONNECTIONS, &used, &mut random);
    VirtualRanges { destinations, connections, first: random() }
}

/// A random place for so many addresses, a power of two.
fn find(size: u32, used: &[RangeInclusive<u32>], random: &mut impl FnMut() -> u64) -> VirtualRange {
    let mask = size - 1;
    for _ in 0..ATTEMPTS {
        let first = ALL.start() | random() as u32 & (ALL.end() - ALL.start()) & !mask;
        let last = first | mask;
        if used.iter().all(|used| *used.end() < first || last < *used.start()) {
            return VirtualRange { first, mask };
        }
    }
    VirtualRange::NONE
}

/// As people write it.
pub(super) fn shown(range: &VirtualRange) -> Option<ipnet::Ipv4Net> {
    let bits = range.mask.leading_zeros() as u8;
    (!range.is_none()).then(|| ipnet::Ipv4Net::new_assert(Ipv4Addr::from_bits(range.first), bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random() -> impl FnMut() -> u64 {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 16
        }
    }

    fn numbers(range: &VirtualRange) -> RangeInclusive<u32> {
        range.first..=range.first | range.mask
    }

    #[test]
    fn the_ranges_are_apart_from_each_other_and_from_what_is_used() {
        let used = vec![0x7f90_0001..=0x7f90_0001, 0x7fa0_0000..=0x7fbf_ffff];
        let mut next = random();
        for max in [1, 100, 16_384, 1 << 20] {
            for _ in 0..200 {
                let ranges = place(max, used.clone(), &mut next);
                let (a, b) = (numbers(&ranges.destinations), numbers(&ranges.connections));
                assert!(a.end() < b.start() || b.end() < a.start(), "{ranges:x?}");
                for range in [a, b] {
                    assert!(ALL.contains(range.start()) && *range.end() < LAST, "{ranges:x?}");
                    let hits = |used: &RangeInclusive<u32>| {
                        used.end() >= range.start() && range.end() >= used.start()
                    };
                    assert!(!used.iter().any(hits), "{ranges:x?}");
                }
                assert!(ranges.destinations.mask + 1 >= 2 * max);
            }
        }
    }

    #[test]
    fn without_room_or_quota_there_are_none() {
        let ranges = place(16_384, vec![ALL], random());
        assert!(ranges.destinations.is_none() && ranges.connections.is_none());
        let ranges = place(0, Vec::new(), random());
        assert!(ranges.destinations.is_none() && !ranges.connections.is_none());
    }

    #[test]
    fn a_range_as_a_network() {
        let range = VirtualRange { first: 0x7f80_8000, mask: 0x7fff };
        assert_eq!(shown(&range).unwrap().to_string(), "127.128.128.0/17");
        assert_eq!(shown(&VirtualRange::NONE), None);
    }
}
