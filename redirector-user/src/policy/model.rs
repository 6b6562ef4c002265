//! What is captured and what passes: the user-space policy.
//!
//! Every field is one of istio-iptables' settings after parsing and after all defaults; the order in which
//! the fields are applied is that of its rules (`tools/istio-iptables/pkg/capture/run.go`, `Run`). Two
//! policies are the same if they are equal once normalised (see [`Policy::normalise`]); [`Deserialize`] and
//! `resolve` always normalise.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};
use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::range;

/// Highest `max_connections`.
pub const MAX_CONNECTIONS: u32 = 1 << 24;
/// Highest `max_destinations`.
pub const MAX_DESTINATIONS: u32 = 1 << 20;

/// None, all or some of the ports, networks or groups there are.
///
/// In a policy file `"none"`, `"all"` (or `"*"`), or a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Selection<T> {
    /// Nothing is selected.
    #[default]
    None,
    /// Everything is selected.
    All,
    /// Exactly these; sorted, without duplicates and not empty once normalised.
    List(Vec<T>),
}

impl<T> Selection<T> {
    /// The selection of exactly these items.
    pub fn of(items: Vec<T>) -> Self {
        if items.is_empty() { Self::None } else { Self::List(items) }
    }

    /// The listed items; empty for none and all.
    pub fn items(&self) -> &[T] {
        match self {
            Self::None | Self::All => &[],
            Self::List(items) => items,
        }
    }
}

/// How inbound connections reach the proxy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The proxy's connection to the application comes from 127.0.0.6 or ::6.
    #[default]
    Redirect,
    /// It comes from the client's address.
    Tproxy,
}

/// Which DNS queries (port 53, UDP and TCP) go to the agent.
///
/// In a policy file `"off"`, `"all"` (or `"*"`), or a list of servers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Dns {
    /// None.
    #[default]
    Off,
    /// Those to these servers; sorted, without duplicates and not empty once normalised.
    Servers(Vec<IpAddr>),
    /// Those to any server.
    All,
}

/// The policy of one target. [`Default`] is the sidecar default: everything is captured, as by
/// `istio-iptables -p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -x "" -b '*' -d 15090,15021,15020`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(remote = "Self", deny_unknown_fields, default)]
pub struct Policy {
    /// TCP port of the proxy's outbound listener (`-p`).
    pub outbound_port: u16,
    /// TCP port of the proxy's inbound listener (`-z`).
    pub inbound_port: u16,
    /// TCP port of the HBONE tunnel: never captured inbound, exempt from the proxy's loopback rule (`-e`).
    pub tunnel_port: u16,
    /// TCP and UDP port of the agent's DNS server.
    pub dns_port: u16,
    /// Cgroup (v2) directory of the proxy's container: sockets created in it or below are the proxy's own
    /// (`--proxy-cgroup`; redirector's own). Counts as a user before the first of `proxy_uids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_cgroup: Option<PathBuf>,
    /// Users whose traffic is the proxy's own, in the order of their rules: only the first one's calls to the
    /// own pod's address go inbound (`-u`). As seen in the user namespace that owns the network namespace.
    /// If a policy file says nothing it is 1337, with `proxy_cgroup` nobody.
    #[serde(default = "unset", deserialize_with = "set_uids")]
    pub proxy_uids: Vec<u32>,
    /// The same for groups (`-g`). If a policy file says nothing it is `proxy_uids`, as in istio-iptables.
    #[serde(default = "unset", deserialize_with = "set_gids")]
    pub proxy_gids: Vec<u32>,
    /// How inbound connections reach the proxy (`-m`).
    pub mode: Mode,
    /// TCP ports whose incoming connections are captured (`-b`).
    pub inbound_ports: Selection<u16>,
    /// TCP ports that are not; only while `inbound_ports` is all, otherwise empty once normalised (`-d`).
    pub inbound_exclude_ports: Vec<u16>,
    /// Interfaces on which nothing is captured in either direction (`-c`).
    pub exclude_interfaces: Vec<String>,
    /// Interfaces whose incoming traffic is treated as outbound (`-k`).
    pub virtual_interfaces: Vec<String>,
    /// Destinations captured; masked once normalised (`-i`).
    #[schemars(with = "Selection<String>")]
    pub outbound_cidrs: Selection<IpNet>,
    /// Destinations never captured; masked once normalised, they win over `outbound_ports` (`-x`).
    #[schemars(with = "Vec<String>")]
    pub outbound_exclude_cidrs: Vec<IpNet>,
    /// TCP destination ports captured whatever the address (`-q`).
    pub outbound_ports: Vec<u16>,
    /// TCP and UDP destination ports never captured (`-o`).
    pub outbound_exclude_ports: Vec<u16>,
    /// Packet mark of the proxy's connections in TPROXY mode (`-t`).
    pub tproxy_mark: u32,
    /// Routing table of the marked packets in TPROXY mode (`-r`).
    pub tproxy_table: u32,
    /// DNS capture (`--redirect-dns`, `--capture-all-dns`).
    pub dns: Dns,
    /// Groups whose outbound traffic is captured (`ISTIO_OUTBOUND_OWNER_GROUPS`), at most 64.
    pub owner_groups: Selection<u32>,
    /// Groups whose outbound traffic is not; only while `owner_groups` is all, otherwise empty once
    /// normalised (`ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE`).
    pub owner_groups_exclude: Vec<u32>,
    /// IPv4 loopback range that belongs to the application (`ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR`); masked once
    /// normalised. For IPv6 it is always `::1/128`.
    #[schemars(with = "String")]
    pub loopback_cidr: Ipv4Net,
    /// Drop what conntrack calls invalid (`--drop-invalid`); kept so that it can be shown, without effect.
    pub drop_invalid: bool,
    /// Whether IPv6 is captured as IPv4 is (`EnableIPv6`).
    pub ipv6: bool,
    /// Captured connections that may be open at once, of those whose destination has no address of its own; redirector's
    /// own, 1 to [`MAX_CONNECTIONS`].
    pub max_connections: u32,
    /// Original destinations that get an address of their own; redirector's own, 0 to [`MAX_DESTINATIONS`].
    pub max_destinations: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            inbound_ports: Selection::All,
            inbound_exclude_ports: vec![15020, 15021, 15090],
            outbound_cidrs: Selection::All,
            ..Self::istio_default()
        }
    }
}

impl Policy {
    /// istio-iptables' own defaults: nothing is captured. Its user look-up and IPv6 detection are up to
    /// `resolve`; here it is 1337 and IPv6 on.
    pub fn istio_default() -> Self {
        Self {
            outbound_port: 15001,
            inbound_port: 15006,
            tunnel_port: 15008,
            dns_port: 15053,
            proxy_cgroup: None,
            proxy_uids: vec![1337],
            proxy_gids: vec![1337],
            mode: Mode::Redirect,
            inbound_ports: Selection::None,
            inbound_exclude_ports: Vec::new(),
            exclude_interfaces: Vec::new(),
            virtual_interfaces: Vec::new(),
            outbound_cidrs: Selection::None,
            outbound_exclude_cidrs: Vec::new(),
            outbound_ports: Vec::new(),
            outbound_exclude_ports: Vec::new(),
            tproxy_mark: 1337,
            tproxy_table: 133,
            dns: Dns::Off,
            owner_groups: Selection::All,
            owner_groups_exclude: Vec::new(),
            loopback_cidr: Ipv4Net::new_assert(Ipv4Addr::LOCALHOST, 32),
            drop_invalid: false,
            ipv6: true,
            // As many as one IPv6 address has source ports; with room to spare, the map has 32,768 buckets.
            max_connections: 131_072,
            max_destinations: 16384,
        }
    }

    /// Whether a loopback prefix, of either family, is among the captured destinations: then the
    /// application's own loopback traffic does not pass by rule (`HasLoopBackIP` of `SeparateV4V6`, which
    /// looks at the address as written; [`Policy::normalise`] preserves its answer).
    pub fn captures_loopback(&self) -> bool {
        self.outbound_cidrs.items().iter().any(|net| net.addr().to_canonical().is_loopback())
    }

    pub(super) fn has_unset_uids(&self) -> bool {
        self.proxy_uids == [range::NO_ID]
    }

    pub(super) fn has_unset_gids(&self) -> bool {
        self.proxy_gids == [range::NO_ID]
    }
}

/// The users or groups of a file that says nothing of them, until the rest of it is known.
fn unset() -> Vec<u32> {
    vec![range::NO_ID]
}

/// Those of a file that does; they cannot look like [`unset`].
fn set<'de, D: Deserializer<'de>>(deserializer: D, name: &str) -> Result<Vec<u32>, D::Error> {
    let ids: Vec<u32> = Vec::deserialize(deserializer)?;
    range::check_ids(name, &ids).map_err(D::Error::custom)?;
    Ok(ids)
}

fn set_uids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    set(deserializer, "proxy_uids")
}

fn set_gids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    set(deserializer, "proxy_gids")
}
