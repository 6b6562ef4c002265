//! A policy in the kernel's form: scalars in a policy slot, lists and routes in `TABLES`.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::maps::lpm_trie::Key;
use aya::maps::{LpmTrie, MapData};
use ipnet::IpNet;
use redirector_common::Addr;
use redirector_common::abi::{self, List, ListKey, Route, Slot, flag};

use crate::base::error::{Context, Result};
use crate::policy::{Dns, Mode, Policy, Selection};
use crate::routes::{Interface, Outcome, RouteSnapshot};

/// A policy and a snapshot of its namespace, ready to be written.
pub struct Compiled {
    /// Scalars.
    pub policy: abi::Policy,
    entries: Vec<(List, Addr, u32, Route)>,
}

impl Compiled {
    /// Translates a policy; names of interfaces become the indices they have now.
    pub fn new(wanted: &Policy, snapshot: &RouteSnapshot) -> Self {
        let mut this = Self { policy: scalars(wanted), entries: Vec::new() };
        for route in &snapshot.routes {
            this.prefix(List::Routes, &route.prefix, kernel_route(&route.outcome));
        }
        if spreadable(snapshot) {
            this.policy.flags |= flag::SPREAD;
        }
        let ports = |list: &[u16]| list.iter().map(|p| u32::from(*p)).collect::<Vec<_>>();
        this.numbers(
            List::ExcludeOutPorts,
            flag::HAS_EXCLUDE_OUT_PORTS,
            ports(&wanted.outbound_exclude_ports),
        );
        this.numbers(List::IncludeOutPorts, flag::HAS_INCLUDE_OUT_PORTS, ports(&wanted.outbound_ports));
        this.numbers(List::ExcludeInPorts, flag::HAS_EXCLUDE_IN_PORTS, ports(&wanted.inbound_exclude_ports));
        this.numbers(List::IncludeInPorts, flag::INBOUND_LIST, ports(wanted.inbound_ports.items()));
        let indices = |names: &[String]| named(snapshot, names).map(|i| i.index).collect::<Vec<_>>();
        this.numbers(
            List::ExcludeInterfaces,
            flag::HAS_EXCLUDE_INTERFACES,
            indices(&wanted.exclude_interfaces),
        );
        this.virtual_interfaces(&wanted.virtual_interfaces, snapshot);
        this.numbers(List::ProxyUids, 0, wanted.proxy_uids.clone());
        this.numbers(List::ProxyGids, 0, wanted.proxy_gids.clone());
        this.numbers(List::OwnerGroups, flag::OWNER_GROUPS_LIST, wanted.owner_groups.items().to_vec());
        this.numbers(
            List::OwnerGroupsExclude,
            flag::HAS_OWNER_GROUPS_EXCLUDE,
            wanted.owner_groups_exclude.clone(),
        );
        this.cidrs(List::IncludeCidrs, flag::HAS_INCLUDE_CIDRS, wanted.outbound_cidrs.items());
        this.cidrs(List::ExcludeCidrs, flag::HAS_EXCLUDE_CIDRS, &wanted.outbound_exclude_cidrs);
        if let Dns::Servers(servers) = &wanted.dns {
            let nets: Vec<IpNet> = servers.iter().map(|ip| IpNet::from(ip.to_canonical())).collect();
            this.cidrs(List::DnsServers, 0, &nets);
        }
        this
    }

    /// What is in force in a policy slot.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn in_force(
        policy: abi::Policy,
        tables: &LpmTrie<MapData, ListKey, Route>,
        slot: Slot,
    ) -> Result<Self> {
        let what = || "read the map TABLES".to_owned();
        let mut entries = Vec::new();
        for key in tables.keys() {
            let key = key.context(what)?;
            let data = key.data();
            let Some(list) = list_of(&data, slot) else { continue };
            match tables.get(&key, 0) {
                Ok(value) => {
                    entries.push((list, data.addr, key.prefix_len() - ListKey::LIST_BITS, value));
                }
                // Another policy is being written.
                Err(aya::maps::MapError::KeyNotFound) => {}
                Err(e) => return Err(e).context(what),
            }
        }
        Ok(Self { policy, entries })
    }

    /// With the lists of the namespace (routes, interfaces) of another one.
    #[must_use]
    pub fn with_namespace_of(mut self, other: &Self) -> Self {
        let of_namespace = |(list, ..): &&(List, Addr, u32, Route)| {
            matches!(
                list,
                List::Routes | List::ExcludeInterfaces | List::VirtualInterfaces | List::VirtualInterfaces6
            )
        };
        self.entries.retain(|entry| !of_namespace(&entry));
        self.entries.extend(other.entries.iter().filter(of_namespace).copied());
        self
    }

    /// Keys of a list whose value another one does not have, with their values: address, bits, value.
    pub fn beyond<'a>(
        &'a self,
        other: &'a Self,
        list: List,
    ) -> impl Iterator<Item = (Addr, u32, Route)> + 'a {
        let of = move |(of, ..): &&(List, Addr, u32, Route)| *of == list;
        let theirs: std::collections::HashSet<_> = other.entries.iter().filter(of).map(identity).collect();
        let ours = self.entries.iter().filter(of).filter(move |entry| !theirs.contains(&identity(entry)));
        ours.map(|(_, addr, bits, value)| (*addr, *bits, *value))
    }

    /// Writes the lists of one slot. What the slot held before must have been cleared.
    pub fn write(&self, tables: &mut LpmTrie<MapData, ListKey, Route>, slot: Slot) -> Result<()> {
        for (table, addr, bits, value) in &self.entries {
            let key = Key::new(ListKey::LIST_BITS + bits, ListKey::address(slot, *table, *addr));
            tables.insert(&key, value, 0).context(|| format!("write {addr}/{bits} to the map TABLES"))?;
        }
        Ok(())
    }

    /// What a list says about an address: the value of its longest prefix, as the kernel finds it.
    pub fn find(&self, list: List, addr: Addr) -> Option<&Route> {
        let covers = |prefix: &Addr, bits: u32| (key_bits(prefix) ^ key_bits(&addr)).leading_zeros() >= bits;
        let of_list = self.entries.iter().filter(|(of, ..)| *of == list);
        let found =
            of_list.filter(|(_, prefix, bits, _)| covers(prefix, *bits)).max_by_key(|(.., bits, _)| *bits);
        found.map(|(.., value)| value)
    }

    fn numbers(&mut self, list: List, present: u32, values: Vec<u32>) {
        if !values.is_empty() {
            self.policy.flags |= present;
        }
        for value in values {
            let key = ListKey::number(Slot::FIRST, list, value);
            self.entries.push((list, key.addr, 128, Route::UNKNOWN));
        }
    }

    /// The flag does not depend on the interfaces being there: they may come later.
    fn virtual_interfaces(&mut self, names: &[String], snapshot: &RouteSnapshot) {
        if !names.is_empty() {
            self.policy.flags |= flag::HAS_VIRTUAL_INTERFACES;
        }
        for interface in named(snapshot, names) {
            for (list, v6) in [(List::VirtualInterfaces, false), (List::VirtualInterfaces6, true)] {
                let source = redirect_address(interface, v6).map_or(Addr::UNSPECIFIED, Addr::from);
                let key = ListKey::number(Slot::FIRST, list, interface.index);
                self.entries.push((list, key.addr, 128, Route { source, ..Route::UNKNOWN }));
            }
        }
    }

    fn cidrs(&mut self, list: List, present: u32, nets: &[IpNet]) {
        if !nets.is_empty() {
            self.policy.flags |= present;
        }
        for net in nets.iter().flat_map(of_one_family) {
            self.prefix(list, &net, Route::UNKNOWN);
        }
    }

    fn prefix(&mut self, list: List, net: &IpNet, value: Route) {
        let net = net.trunc();
        let mapped = if net.addr().is_ipv4() { 96 } else { 0 };
        self.entries.push((list, net.addr().into(), mapped + u32::from(net.prefix_len()), value));
    }
}

/// Where REDIRECT in PREROUTING sends what enters an interface: its first address
/// (`nf_nat_redirect_ipv4`, `nf_nat_redirect_ipv6`), over IPv6 the first that is no link-local one, like
/// the destination.
fn redirect_address(interface: &Interface, v6: bool) -> Option<IpAddr> {
    let fits = |ip: &IpAddr| match ip {
        IpAddr::V4(_) => !v6,
        IpAddr::V6(ip) => v6 && !ip.is_unicast_link_local(),
    };
    interface.addresses.iter().map(IpNet::addr).find(fits)
}

/// An address as it stands in a key.
fn key_bits(addr: &Addr) -> u128 {
    addr.words.iter().fold(0, |all, word| all << 32 | u128::from(u32::from_be(*word)))
}

/// The part of a network that no address of the other family is in. In keys IPv4 is ::ffff:0:0/96, which to ip6tables
/// is an IPv6 network like any other, without packets: `-i ::/0` captures no IPv4.
fn of_one_family(net: &IpNet) -> Vec<IpNet> {
    const MAPPED: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0);
    const BITS: u8 = 96;
    let IpNet::V6(v6) = net else { return vec![*net] };
    if !v6.contains(&MAPPED) {
        let mapped = v6.prefix_len() > BITS && v6.addr().to_ipv4_mapped().is_some();
        return if mapped { Vec::new() } else { vec![*net] };
    }
    // All of it but MAPPED: at each bit on the way there, the half on the other side.
    let beside = |bits: u8| {
        let other = Ipv6Addr::from_bits(MAPPED.to_bits() ^ 1 << (127 - bits));
        IpNet::new_assert(other.into(), bits + 1).trunc()
    };
    (v6.prefix_len()..BITS).map(beside).collect()
}

/// Removes the lists of a slot.
pub fn clear(tables: &mut LpmTrie<MapData, ListKey, Route>, slot: Slot) -> Result<()> {
    // Removal while iterating may restart the walk, so collect first.
    let keys: Vec<Key<ListKey>> =
        tables.keys().collect::<Result<_, _>>().context(|| "read the map TABLES".into())?;
    for key in keys.into_iter().filter(|key| key.data().is_in(slot)) {
        tables.remove(&key).context(|| "clear the map TABLES".into())?;
    }
    Ok(())
}

/// What tells an entry of a list from every other.
fn identity((_, addr, bits, value): &(List, Addr, u32, Route)) -> (Addr, u32, Vec<u8>) {
    (*addr, *bits, bytemuck::bytes_of(value).to_vec())
}

/// Which list of a slot a key is of; None: of another slot.
fn list_of(key: &ListKey, slot: Slot) -> Option<List> {
    const LISTS: [List; 15] = [
        List::Routes,
        List::IncludeCidrs,
        List::ExcludeCidrs,
        List::DnsServers,
        List::ExcludeOutPorts,
        List::IncludeOutPorts,
        List::ExcludeInPorts,
        List::IncludeInPorts,
        List::ExcludeInterfaces,
        List::VirtualInterfaces,
        List::ProxyUids,
        List::ProxyGids,
        List::OwnerGroups,
        List::OwnerGroupsExclude,
        List::VirtualInterfaces6,
    ];
    LISTS.into_iter().find(|list| ListKey::address(slot, *list, key.addr) == *key)
}

fn kernel_route(outcome: &Outcome) -> Route {
    let source = |ip: &Option<IpAddr>| ip.map_or(Addr::UNSPECIFIED, Addr::from);
    match outcome {
        Outcome::Local { source: s } => {
            Route { source: source(s), oif: abi::LOOPBACK_IFINDEX, errno: 0, local: 1 }
        }
        Outcome::Via { oif, source: s } => Route { source: source(s), oif: *oif, errno: 0, local: 0 },
        Outcome::Broadcast { oif } => {
            let errno = libc::ENETUNREACH as u16;
            Route { source: Addr::UNSPECIFIED, oif: *oif, errno, local: 0 }
        }
        Outcome::Refused { errno } => {
            Route { source: Addr::UNSPECIFIED, oif: 0, errno: *errno as u16, local: 0 }
        }
    }
}

/// Whether all of 127.0.0.0/8 is local, as it is unless somebody has changed lo.
fn spreadable(snapshot: &RouteSnapshot) -> bool {
    let lo = IpNet::from(IpAddr::from(Ipv4Addr::new(127, 128, 128, 128)));
    let best =
        snapshot.routes.iter().filter(|r| r.prefix.contains(&lo)).max_by_key(|r| r.prefix.prefix_len());
    best.is_some_and(|r| matches!(r.outcome, Outcome::Local { .. }))
}

fn scalars(wanted: &Policy) -> abi::Policy {
    let flags = [
        (flag::IPV6, wanted.ipv6),
        (flag::OUTBOUND_ALL, wanted.outbound_cidrs == Selection::All),
        (flag::INBOUND_ALL, wanted.inbound_ports == Selection::All),
        (flag::TPROXY, wanted.mode == Mode::Tproxy),
        (flag::DNS, wanted.dns != Dns::Off),
        (flag::DNS_ALL, wanted.dns == Dns::All),
        (flag::LOOPBACK_INCLUDED, wanted.captures_loopback()),
        (flag::OWNER_GROUPS_LIST, wanted.owner_groups == Selection::None),
        (flag::PROXY_CGROUP, wanted.proxy_cgroup.is_some()),
        (flag::HAS_UIDS, !wanted.proxy_uids.is_empty()),
        (flag::HAS_GIDS, !wanted.proxy_gids.is_empty()),
        (flag::HAS_MORE_UIDS, wanted.proxy_uids.len() > 1),
        (flag::HAS_MORE_GIDS, wanted.proxy_gids.len() > 1),
    ];
    let first = |ids: &[u32]| ids.first().copied().unwrap_or(redirector_common::routing::Owner::NOBODY);
    abi::Policy {
        flags: flags.iter().filter(|(_, on)| *on).fold(0, |all, (bit, _)| all | bit),
        outbound_port: wanted.outbound_port,
        inbound_port: wanted.inbound_port,
        tunnel_port: wanted.tunnel_port,
        dns_port: wanted.dns_port,
        first_uid: first(&wanted.proxy_uids),
        first_gid: first(&wanted.proxy_gids),
        loopback_net: u32::from_ne_bytes(wanted.loopback_cidr.network().octets()),
        loopback_mask: u32::from_ne_bytes(wanted.loopback_cidr.netmask().octets()),
        capacity: wanted.max_connections,
        tproxy_mark: wanted.tproxy_mark,
        // Only a target knows its cgroups.
        proxy_cgroup: 0,
        destinations: wanted.max_destinations,
    }
}

/// The interfaces of these names, of which annotations may hold tens of thousands.
fn named<'a>(snapshot: &'a RouteSnapshot, names: &[String]) -> impl Iterator<Item = &'a Interface> {
    let names: HashSet<&str> = names.iter().map(String::as_str).collect();
    snapshot.interfaces.iter().filter(move |interface| names.contains(interface.name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(include: &str) -> Compiled {
        let nets = vec![include.parse().expect("network")];
        let policy = Policy { outbound_cidrs: Selection::of(nets), ..Policy::default() };
        Compiled::new(&policy, &RouteSnapshot { routes: Vec::new(), interfaces: Vec::new() })
    }

    #[test]
    fn an_ipv6_network_holds_no_ipv4() {
        for (net, inside, outside) in [
            ("::/0", "2001:db8::1 ::1 :: ::fffe:1.2.3.4 ::1:0:0 ffff::", "1.2.3.4 0.0.0.0"),
            ("::/64", "::1 ::fffe:ffff:ffff", "1.2.3.4 0:0:0:1::"),
            ("::fffe:0:0/95", "::fffe:1.2.3.4", "1.2.3.4"),
            ("::ffff:0:0/96", "", "1.2.3.4 ::1"),
            ("::ffff:1.2.3.0/120", "", "1.2.3.4 ::1"),
            ("0.0.0.0/0", "1.2.3.4", "::1 2001:db8::1"),
            ("fd00::/8", "fd00::1", "1.2.3.4 fe00::1"),
        ] {
            let compiled = compiled(net);
            let covers = |ip: &str| {
                let ip: IpAddr = ip.parse().expect("address");
                compiled.find(List::IncludeCidrs, ip.into()).is_some()
            };
            inside.split_whitespace().for_each(|ip| assert!(covers(ip), "{ip} in {net}"));
            outside.split_whitespace().for_each(|ip| assert!(!covers(ip), "{ip} not in {net}"));
        }
    }
}
