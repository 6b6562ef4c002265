//! What was read of one family's rules, before it becomes a policy.

use ipnet::{IpNet, Ipv4Net};

use crate::policy::{Dns, Selection};

/// The properties of one family's rules.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub outbound_port: Option<u16>,
    pub inbound_port: Option<u16>,
    pub tunnel_port: Option<u16>,
    pub dns_port: Option<u16>,
    pub uids: Vec<u32>,
    pub gids: Vec<u32>,
    /// Traffic within the pod passes unless it is the proxy's.
    pub others_pass: bool,
    pub tproxy_mark: Option<u32>,
    pub in_ports: Selection<u16>,
    pub exclude_in_ports: Vec<u16>,
    pub exclude_interfaces: Vec<String>,
    pub virtual_interfaces: Vec<String>,
    pub include_cidrs: Vec<IpNet>,
    pub exclude_cidrs: Vec<IpNet>,
    pub include_out_ports: Vec<u16>,
    pub exclude_out_ports: Vec<u16>,
    pub dns: Dns,
    pub owner_groups: Selection<u32>,
    pub owner_groups_exclude: Vec<u32>,
    pub loopback: Option<Ipv4Net>,
    pub drop_invalid: bool,
}

/// How often a list has an item.
pub(super) fn counted<T: PartialEq>(list: &[T], item: &T) -> usize {
    list.iter().filter(|other| *other == item).count()
}
