//! The normal form of a policy, and what no policy may hold.

use std::collections::HashSet;
use std::hash::Hash;
use std::net::IpAddr;

use ipnet::IpNet;

use super::error::ConfigError;
use super::model::{Dns, MAX_CONNECTIONS, MAX_DESTINATIONS, Policy, Selection};
use super::range::{check, check_ids};
use super::{parse, range};

impl Policy {
    /// Brings the policy into normal form: equal meaning becomes equal value. Sets are sorted and lose
    /// duplicates, users and groups of the proxy keep their order, networks are masked, empty lists become
    /// "none", exclusions that cannot apply are dropped. Doing it twice changes nothing.
    pub fn normalise(&mut self) {
        keep_first(&mut self.proxy_uids);
        keep_first(&mut self.proxy_gids);
        normalise_selection(&mut self.inbound_ports);
        normalise_selection(&mut self.owner_groups);
        if let Selection::List(nets) = &mut self.outbound_cidrs {
            mask_included(nets);
        }
        normalise_selection(&mut self.outbound_cidrs);
        for net in &mut self.outbound_exclude_cidrs {
            *net = net.trunc();
        }
        self.loopback_cidr = self.loopback_cidr.trunc();
        sort(&mut self.outbound_exclude_cidrs);
        sort(&mut self.inbound_exclude_ports);
        sort(&mut self.outbound_ports);
        sort(&mut self.outbound_exclude_ports);
        sort(&mut self.owner_groups_exclude);
        sort(&mut self.exclude_interfaces);
        sort(&mut self.virtual_interfaces);
        if let Dns::Servers(servers) = &mut self.dns {
            sort(servers);
            if servers.is_empty() {
                self.dns = Dns::Off;
            }
        }
        if self.inbound_ports != Selection::All {
            self.inbound_exclude_ports.clear();
        }
        if self.owner_groups != Selection::All {
            self.owner_groups_exclude.clear();
        }
    }

    /// Refuses what no flag could have said either. Errors name the field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let number = |(field, number)| check(field, number, range::port);
        [
            ("outbound_port", self.outbound_port),
            ("inbound_port", self.inbound_port),
            ("tunnel_port", self.tunnel_port),
            ("dns_port", self.dns_port),
        ]
        .into_iter()
        .try_for_each(number)?;
        for (field, ports) in [
            ("inbound_ports", self.inbound_ports.items()),
            ("inbound_exclude_ports", &self.inbound_exclude_ports),
            ("outbound_ports", &self.outbound_ports),
            ("outbound_exclude_ports", &self.outbound_exclude_ports),
        ] {
            ports.iter().try_for_each(|port| number((field, *port)))?;
        }
        for (field, ids) in [
            ("proxy_uids", self.proxy_uids.as_slice()),
            ("proxy_gids", &self.proxy_gids),
            ("owner_groups", self.owner_groups.items()),
            ("owner_groups_exclude", &self.owner_groups_exclude),
        ] {
            check_ids(field, ids)?;
        }
        for (field, names) in [
            ("exclude_interfaces", &self.exclude_interfaces),
            ("virtual_interfaces", &self.virtual_interfaces),
        ] {
            names.iter().try_for_each(|name| parse::interface(field, name).map(drop))?;
        }
        check("tproxy_mark", self.tproxy_mark, range::mark)?;
        check("tproxy_table", self.tproxy_table, range::table)?;
        range::loopback(&self.loopback_cidr).map_err(|(why, remedy)| {
            ConfigError::invalid("loopback_cidr", &self.loopback_cidr.to_string(), why, remedy)
        })?;
        if let Some(path) = self.proxy_cgroup.as_ref().filter(|path| !path.is_absolute()) {
            let item = path.display().to_string();
            let remedy = "write the whole path of the cgroup's directory";
            return Err(ConfigError::invalid("proxy_cgroup", &item, "is not an absolute path", remedy));
        }
        range::group_limit("owner_groups", self.owner_groups.items().len())?;
        if self.max_connections == 0 || self.max_connections > MAX_CONNECTIONS {
            let remedy = format!("write a number from 1 to {MAX_CONNECTIONS}");
            let item = self.max_connections.to_string();
            return Err(ConfigError::invalid("max_connections", &item, "is out of range", remedy));
        }
        if self.max_destinations > MAX_DESTINATIONS {
            let remedy = format!("write a number from 0 to {MAX_DESTINATIONS}");
            let item = self.max_destinations.to_string();
            return Err(ConfigError::invalid("max_destinations", &item, "is out of range", remedy));
        }
        Ok(())
    }
}

/// Masks included networks. A network written with a loopback address counts as a loopback prefix for
/// istio-iptables even where masking takes it out of loopback (`127.0.0.1/7`, `::1/64`): its loopback part is
/// listed, too, which changes no match.
fn mask_included(nets: &mut Vec<IpNet>) {
    let loopback_part = |net: &IpNet| {
        // Go counts IPv4-mapped addresses, too.
        let bits = match (net.addr(), net.addr().to_canonical()) {
            (IpAddr::V4(_), _) => 8,
            (IpAddr::V6(_), IpAddr::V4(_)) => 104,
            (IpAddr::V6(_), IpAddr::V6(_)) => 128,
        };
        IpNet::new(net.addr(), bits).ok()
    };
    let is_loopback = |addr: IpAddr| addr.to_canonical().is_loopback();
    let hidden: Vec<IpNet> = nets
        .iter()
        .filter(|net| is_loopback(net.addr()) && !is_loopback(net.network()))
        .filter_map(loopback_part)
        .collect();
    nets.extend(hidden);
    for net in nets {
        *net = net.trunc();
    }
}

fn normalise_selection<T: Ord>(selection: &mut Selection<T>) {
    if let Selection::List(items) = selection {
        sort(items);
        if items.is_empty() {
            *selection = Selection::None;
        }
    }
}

fn sort<T: Ord>(items: &mut Vec<T>) {
    items.sort_unstable();
    items.dedup();
}

fn keep_first<T: Copy + Eq + Hash>(items: &mut Vec<T>) {
    let mut seen = HashSet::new();
    items.retain(|item| seen.insert(*item));
}
