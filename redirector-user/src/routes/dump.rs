//! What the namespace lists about itself: interfaces with their addresses, and the prefixes at which its
//! routing may change.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::prefix::{Block, source_splits};
use super::snapshot::Interface;
use crate::base::text::nul_terminated;
use crate::netlink::{Message, Netlink, NetlinkError, Payload, family, family_header, if_present};

/// sizeof(struct ifinfomsg).
const LINK_HEADER: usize = 16;
/// sizeof(struct ifaddrmsg).
const ADDRESS_HEADER: usize = 8;
/// sizeof of struct rtmsg, struct fib_rule_hdr and struct ifaddrlblmsg; the first byte of each is the family.
pub(super) const ROUTE_HEADER: usize = 12;

const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
const IFA_FLAGS: u16 = 8;
const FRA_DST: u16 = 1;
const IFAL_ADDRESS: u16 = 1;

/// More addresses than this are not compared pairwise ([`source_splits`]).
const COMPARED_ADDRESSES: usize = 64;

/// Prefixes that connect(2) treats in its own way, so that no other prefix may speak for them or be spoken
/// for by them.
const SPECIAL_V4: [(Ipv4Addr, u8); 5] = [
    (Ipv4Addr::UNSPECIFIED, 0),
    (Ipv4Addr::UNSPECIFIED, 32),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::BROADCAST, 32),
];
const SPECIAL_V6: [(Ipv6Addr, u8); 7] = [
    (Ipv6Addr::UNSPECIFIED, 0),
    (Ipv6Addr::UNSPECIFIED, 128),
    (Ipv6Addr::LOCALHOST, 128),
    V4_MAPPED,
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10),
    // Refused by tcp_v6_connect before any route is looked up.
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];
/// IPv4 written as IPv6: `tcp_v6_connect` hands it to `tcp_v4_connect`, no IPv6 route counts.
pub(super) const V4_MAPPED: (Ipv6Addr, u8) = (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);

/// The interfaces, sorted by index; their addresses in the order of the kernel, IPv4 first.
pub(crate) fn interfaces(netlink: &mut Netlink, families: &[bool]) -> Result<Vec<Interface>, NetlinkError> {
    const WHAT: &str = "the interfaces";
    let request = Message::new(libc::RTM_GETLINK, 0, &[0; LINK_HEADER])
        .attribute(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    let mut interfaces = netlink.list(WHAT, &request, |payload| {
        let link = Payload::split(payload, LINK_HEADER)?;
        let name = nul_terminated(link.get(libc::IFLA_IFNAME)?);
        Some(Interface {
            index: link.number(4),
            name,
            addresses: Vec::new(),
            loopback: link.number(8) & libc::IFF_LOOPBACK as u32 != 0,
        })
    })?;
    interfaces.sort_by_key(|interface| interface.index);

    for family in families.iter().map(|v6| family(*v6)) {
        let request = Message::new(libc::RTM_GETADDR, 0, &family_header::<ADDRESS_HEADER>(family));
        let addresses = netlink.list("the addresses", &request, |payload| {
            let address = Payload::split(payload, ADDRESS_HEADER)?;
            let flags = address.get_number(IFA_FLAGS).unwrap_or_else(|| u32::from(address.byte(2)));
            if address.byte(0) != family || flags & libc::IFA_F_DADFAILED != 0 {
                return None;
            }
            // With a peer IFA_ADDRESS is the peer's and IFA_LOCAL ours.
            let ours =
                address.get_address(libc::IFA_LOCAL).or_else(|| address.get_address(libc::IFA_ADDRESS))?;
            Some((address.number(4), IpNet::new(ours, address.byte(1)).ok()?))
        })?;
        for (index, address) in addresses {
            if let Ok(place) = interfaces.binary_search_by_key(&index, |interface| interface.index) {
                interfaces[place].addresses.push(address);
            }
        }
    }
    Ok(interfaces)
}

/// The prefixes of a family at which the answer may change, sorted: those of all routes of all tables and of
/// the policy rules, the special ones and, for IPv6, those that decide between source addresses.
pub(super) fn prefixes(
    netlink: &mut Netlink,
    family: u8,
    interfaces: &[Interface],
) -> Result<Vec<Block>, NetlinkError> {
    let v6 = family == libc::AF_INET6 as u8;
    let mut blocks = BTreeSet::new();
    if v6 {
        blocks.extend(SPECIAL_V6.iter().filter_map(|(address, len)| Block::new((*address).into(), *len)));
        let sources: Vec<_> =
            interfaces.iter().flat_map(candidate_sources).take(COMPARED_ADDRESSES).collect();
        blocks.extend(source_splits(&sources));
    } else {
        blocks.extend(SPECIAL_V4.iter().filter_map(|(address, len)| Block::new((*address).into(), *len)));
    }
    let unspecified = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };

    // Routes with another source prefix or TOS have their destination in common with plain ones: the kernel
    // is asked which counts.
    blocks.extend(dump(netlink, "the routes", libc::RTM_GETROUTE, family, |route| {
        // Cached exceptions (path MTU, redirects) are no routes of their own.
        if route.number(8) & libc::RTM_F_CLONED != 0 {
            return None;
        }
        Block::new(route.get_address(libc::RTA_DST).unwrap_or(unspecified), route.byte(1))
    })?);
    // A kernel without CONFIG_IP_MULTIPLE_TABLES has no rules, one without CONFIG_IPV6 no labels.
    blocks.extend(if_present(dump(netlink, "the policy rules", libc::RTM_GETRULE, family, |rule| {
        Block::new(rule.get_address(FRA_DST)?, rule.byte(1))
    }))?);
    if v6 {
        // RFC 6724 rule 6: the label of the destination picks among source addresses.
        blocks.extend(if_present(dump(
            netlink,
            "the address labels",
            libc::RTM_GETADDRLABEL,
            family,
            |label| Block::new(label.get_address(IFAL_ADDRESS)?, label.byte(2)),
        ))?);
    }
    Ok(blocks.into_iter().collect())
}

/// Lists what belongs to a family: routes, policy rules or address labels.
pub(super) fn dump<T>(
    netlink: &mut Netlink,
    what: &'static str,
    kind: u16,
    family: u8,
    mut decode: impl FnMut(Payload<'_>) -> Option<T>,
) -> Result<Vec<T>, NetlinkError> {
    let request = Message::new(kind, 0, &family_header::<ROUTE_HEADER>(family));
    netlink.list(what, &request, |payload| {
        // Without a handler of its own for a family the kernel lists all families (rtnl_dump_all).
        let message = Payload::split(payload, ROUTE_HEADER).filter(|message| message.byte(0) == family)?;
        decode(message)
    })
}

/// IPv6 addresses that compete as source of a connection (`ipv6_dev_get_saddr`).
fn candidate_sources(interface: &Interface) -> impl Iterator<Item = (Ipv6Addr, u8)> + '_ {
    interface.addresses.iter().filter_map(|address| match address.addr() {
        IpAddr::V6(v6) if !v6.is_loopback() => Some((v6, address.prefix_len())),
        _ => None,
    })
}
