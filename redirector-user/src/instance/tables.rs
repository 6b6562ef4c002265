//! A policy in the kernel's form: scalars in a policy slot, lists and routes in `TABLES`.

use crate::config::{Dns, Mode, Policy, Selection};
use crate::error::{Context, Result};
use crate::mirror::{Mirror, Outcome};
use aya::maps::lpm_trie::Key;
use aya::maps::{LpmTrie, MapData};
use ipnet::IpNet;
use redirector_common::abi::{Route, TableKey};
use redirector_common::policy::{self, Table, flag};
use redirector_common::Addr;
use std::net::{IpAddr, Ipv4Addr};

/// A policy and the namespace's facts, ready to be written.
pub struct Compiled {
    /// Scalars.
    pub policy: policy::Policy,
    entries: Vec<(Table, Addr, u32, Route)>,
}

const PRESENT: Route = Route { source: Addr::UNSPECIFIED, oif: 0, errno: 0, local: 0 };

impl Compiled {
    /// Translates a policy; names of interfaces become the indices they have now.
    pub fn new(wanted: &Policy, mirror: &Mirror) -> Self {
        let mut this = Self { policy: scalars(wanted), entries: Vec::new() };
        for route in &mirror.routes {
            this.prefix(Table::Routes, &route.prefix, kernel_route(&route.outcome));
        }
        if spreadable(mirror) {
            this.policy.flags |= flag::SPREAD;
        }
        let ports = |list: &[u16]| list.iter().map(|p| u32::from(*p)).collect::<Vec<_>>();
        this.numbers(Table::ExcludeOutPorts, flag::HAS_EXCLUDE_OUT_PORTS, ports(&wanted.outbound_exclude_ports));
        this.numbers(Table::IncludeOutPorts, flag::HAS_INCLUDE_OUT_PORTS, ports(&wanted.outbound_ports));
        this.numbers(Table::ExcludeInPorts, flag::HAS_EXCLUDE_IN_PORTS, ports(&wanted.inbound_exclude_ports));
        this.numbers(Table::IncludeInPorts, flag::INBOUND_LIST, ports(wanted.inbound_ports.items()));
        let indices = |names: &[String]| {
            let known = mirror.interfaces.iter().filter(|i| names.contains(&i.name));
            known.map(|i| i.index).collect::<Vec<_>>()
        };
        this.numbers(Table::ExcludeInterfaces, flag::HAS_EXCLUDE_INTERFACES, indices(&wanted.exclude_interfaces));
        this.numbers(Table::VirtualInterfaces, flag::HAS_VIRTUAL_INTERFACES, indices(&wanted.virtual_interfaces));
        this.numbers(Table::ProxyUids, 0, wanted.proxy_uids.clone());
        this.numbers(Table::ProxyGids, 0, wanted.proxy_gids.clone());
        this.numbers(Table::OwnerGroups, flag::OWNER_GROUPS_LIST, wanted.owner_groups.items().to_vec());
        this.numbers(
            Table::OwnerGroupsExclude,
            flag::HAS_OWNER_GROUPS_EXCLUDE,
            wanted.owner_groups_exclude.clone(),
        );
        this.cidrs(Table::IncludeCidrs, flag::HAS_INCLUDE_CIDRS, wanted.outbound_cidrs.items());
        this.cidrs(Table::ExcludeCidrs, flag::HAS_EXCLUDE_CIDRS, &wanted.outbound_exclude_cidrs);
        if let Dns::Servers(servers) = &wanted.dns {
            let nets: Vec<IpNet> = servers.iter().map(|ip| IpNet::from(*ip)).collect();
            this.cidrs(Table::DnsServers, 0, &nets);
        }
        this
    }

    /// Writes the lists of one slot. What the slot held before must have been cleared.
    pub fn write(&self, tables: &mut LpmTrie<MapData, TableKey, Route>, slot: u32) -> Result<()> {
        for (table, addr, bits, value) in &self.entries {
            let key = Key::new(TableKey::TABLE_BITS + bits, TableKey::address(slot, *table, *addr));
            tables.insert(&key, value, 0).context(|| format!("write {addr}/{bits} to the map TABLES"))?;
        }
        Ok(())
    }

    fn numbers(&mut self, table: Table, present: u32, values: Vec<u32>) {
        if !values.is_empty() {
            self.policy.flags |= present;
        }
        for value in values {
            let key = TableKey::number(0, table, value);
            self.entries.push((table, key.addr, 128, PRESENT));
        }
    }

    fn cidrs(&mut self, table: Table, present: u32, nets: &[IpNet]) {
        if !nets.is_empty() {
            self.policy.flags |= present;
        }
        for net in nets {
            self.prefix(table, net, PRESENT);
        }
    }

    fn prefix(&mut self, table: Table, net: &IpNet, value: Route) {
        let net = net.trunc();
        let mapped = if net.addr().is_ipv4() { 96 } else { 0 };
        self.entries.push((table, net.addr().into(), mapped + u32::from(net.prefix_len()), value));
    }
}

/// Removes the lists of a slot.
pub fn clear(tables: &mut LpmTrie<MapData, TableKey, Route>, slot: u32) -> Result<()> {
    // Removal while iterating may restart the walk, so collect first.
    let keys: Vec<Key<TableKey>> =
        tables.keys().collect::<Result<_, _>>().context(|| "read the map TABLES".into())?;
    for key in keys.into_iter().filter(|key| key.data().slot() == slot) {
        tables.remove(&key).context(|| "clear the map TABLES".into())?;
    }
    Ok(())
}

fn kernel_route(outcome: &Outcome) -> Route {
    let source = |ip: &Option<IpAddr>| ip.map_or(Addr::UNSPECIFIED, Addr::from);
    const LOOPBACK_IFINDEX: u32 = 1;
    match outcome {
        Outcome::Local { source: s } => Route { source: source(s), oif: LOOPBACK_IFINDEX, errno: 0, local: 1 },
        Outcome::Via { oif, source: s } => Route { source: source(s), oif: *oif, errno: 0, local: 0 },
        Outcome::Refused { errno } => {
            Route { source: Addr::UNSPECIFIED, oif: 0, errno: *errno as u16, local: 0 }
        }
    }
}

/// Whether all of 127.0.0.0/8 is local, as it is unless somebody has changed lo.
fn spreadable(mirror: &Mirror) -> bool {
    let lo = IpNet::from(IpAddr::from(Ipv4Addr::new(127, 128, 128, 128)));
    let best = mirror.routes.iter().filter(|r| r.prefix.contains(&lo)).max_by_key(|r| r.prefix.prefix_len());
    best.is_some_and(|r| matches!(r.outcome, Outcome::Local { .. }))
}

fn scalars(wanted: &Policy) -> policy::Policy {
    let flags = [
        (flag::IPV6, wanted.ipv6),
        (flag::OUTBOUND_ALL, wanted.outbound_cidrs == Selection::All),
        (flag::INBOUND_ALL, wanted.inbound_ports == Selection::All),
        (flag::TPROXY, wanted.mode == Mode::Tproxy),
        (flag::DNS, wanted.dns != Dns::Off),
        (flag::DNS_ALL, wanted.dns == Dns::All),
        (flag::LOOPBACK_INCLUDED, wanted.captures_loopback()),
        (flag::OWNER_GROUPS_LIST, wanted.owner_groups == Selection::None),
        (flag::HAS_MORE_UIDS, wanted.proxy_uids.len() > 1),
        (flag::HAS_MORE_GIDS, wanted.proxy_gids.len() > 1),
    ];
    let first = |ids: &[u32]| ids.first().copied().unwrap_or(redirector_common::decide::NOBODY);
    policy::Policy {
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
    }
}
