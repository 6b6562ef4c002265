//! What the rules of one family say, before it is a policy.

use ipnet::{IpNet, Ipv4Net};

use crate::policy::{Dns, Selection};

/// What the rules of one family look like.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub outbound_port: Option<u16>,
    pub inbound_port: Option<u16>,
    pub tunnel_port: Option<u16>,
    pub dns_port: Option<u16>,
    pub uids: Vec<u32>,
    pub gids: Vec<u32>,
    /// Others than the proxy's pass within the pod.
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

/// How often an item is in a list.
pub(super) fn counted<T: PartialEq>(list: &[T], item: &T) -> usize {
    list.iter().filter(|other| *other == item).count()
}
