//! The options of `istio-iptables`, as data: the oracle makes rules of them, the product gets them as flags.

use std::fmt::Display;

/// The options of `istio-iptables`. [`Options::sidecar`] is the command of an injected sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `-p`: the proxy's outbound port.
    pub envoy_port: u16,
    /// `-z`: the proxy's inbound port.
    pub inbound_capture_port: u16,
    /// `-e`: never captured inbound.
    pub inbound_tunnel_port: u16,
    /// `-u`.
    pub proxy_uids: Vec<u32>,
    /// `-g`.
    pub proxy_gids: Vec<u32>,
    /// `-m TPROXY`; `None` is `-m REDIRECT`.
    pub tproxy: Option<Tproxy>,
    /// `-b`: `*`, a list, or nothing.
    pub inbound_ports: Ports,
    /// `-d`: excluded when inbound is `*`.
    pub inbound_ports_exclude: Vec<u16>,
    /// `-i`: `*`, a list, or nothing.
    pub outbound_cidrs: Cidrs,
    /// `-x`.
    pub outbound_cidrs_exclude: Vec<String>,
    /// `-q`: captured whatever the address.
    pub outbound_ports: Vec<u16>,
    /// `-o`: never captured.
    pub outbound_ports_exclude: Vec<u16>,
    /// `-c`.
    pub exclude_interfaces: Vec<String>,
    /// `-k`.
    pub virtual_interfaces: Vec<String>,
    /// `ISTIO_OUTBOUND_OWNER_GROUPS`; `None` is `*`.
    pub owner_groups: Option<Vec<u32>>,
    /// `ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE`.
    pub owner_groups_exclude: Vec<u32>,
    /// `ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR`.
    pub loopback_cidr: String,
    /// `--redirect-dns`.
    pub redirect_dns: bool,
    /// `--capture-all-dns`.
    pub capture_all_dns: bool,
    /// The name servers of resolv.conf.
    pub dns_servers: Vec<String>,
    /// Whether IPv6 is captured.
    pub ipv6: bool,
}

/// The options of `-m TPROXY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tproxy {
    /// `-t`: the mark of connections with the client's address.
    pub mark: u32,
    /// `-r`: the routing table of marked packets.
    pub table: u32,
}

impl Default for Tproxy {
    fn default() -> Self {
        Self { mark: 1337, table: 133 }
    }
}

/// A list of ports, or all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// `*`.
    All,
    /// These; none is legal.
    List(Vec<u16>),
}

/// A list of networks, or all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cidrs {
    /// `*`.
    All,
    /// These, of both families; none is legal.
    List(Vec<String>),
}

impl Options {
    /// `istio-iptables -p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -x "" -b '*' -d 15090,15021,15020`.
    pub fn sidecar() -> Self {
        Self {
            envoy_port: 15001,
            inbound_capture_port: 15006,
            inbound_tunnel_port: 15008,
            proxy_uids: vec![1337],
            proxy_gids: vec![1337],
            tproxy: None,
            inbound_ports: Ports::All,
            inbound_ports_exclude: vec![15090, 15021, 15020],
            outbound_cidrs: Cidrs::All,
            outbound_cidrs_exclude: Vec::new(),
            outbound_ports: Vec::new(),
            outbound_ports_exclude: Vec::new(),
            exclude_interfaces: Vec::new(),
            virtual_interfaces: Vec::new(),
            owner_groups: None,
            owner_groups_exclude: Vec::new(),
            loopback_cidr: "127.0.0.1/32".to_owned(),
            redirect_dns: false,
            capture_all_dns: false,
            dns_servers: Vec::new(),
            ipv6: true,
        }
    }

    /// The same as flags. All of them are given, also the empty ones, so that no default can hide.
    pub fn flags(&self) -> Vec<String> {
        let ports = match &self.inbound_ports {
            Ports::All => "*".to_owned(),
            Ports::List(list) => join(list),
        };
        let cidrs = match &self.outbound_cidrs {
            Cidrs::All => "*".to_owned(),
            Cidrs::List(list) => join(list),
        };
        let mut flags: Vec<String> = [
            ("-p", self.envoy_port.to_string()),
            ("-z", self.inbound_capture_port.to_string()),
            ("-e", self.inbound_tunnel_port.to_string()),
            ("-u", join(&self.proxy_uids)),
            ("-g", join(&self.proxy_gids)),
            ("-m", if self.tproxy.is_some() { "TPROXY" } else { "REDIRECT" }.to_owned()),
            ("-t", self.tproxy.unwrap_or_default().mark.to_string()),
            ("-r", self.tproxy.unwrap_or_default().table.to_string()),
            ("-b", ports),
            ("-d", join(&self.inbound_ports_exclude)),
            ("-i", cidrs),
            ("-x", join(&self.outbound_cidrs_exclude)),
            ("-q", join(&self.outbound_ports)),
            ("-o", join(&self.outbound_ports_exclude)),
            ("-c", join(&self.exclude_interfaces)),
            ("-k", join(&self.virtual_interfaces)),
            ("--ipv6", if self.ipv6 { "on" } else { "off" }.to_owned()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
        if self.redirect_dns {
            flags.push("--redirect-dns".to_owned());
        }
        if self.capture_all_dns {
            flags.push("--capture-all-dns".to_owned());
        }
        flags
    }

    /// The variables of the options that have no flag.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let mut variables = vec![("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", self.loopback_cidr.clone())];
        if let Some(groups) = &self.owner_groups {
            variables.push(("ISTIO_OUTBOUND_OWNER_GROUPS", join(groups)));
        }
        if !self.owner_groups_exclude.is_empty() {
            variables.push(("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", join(&self.owner_groups_exclude)));
        }
        variables
    }

    /// The proxy's users and groups, as iptables' match `owner` takes them.
    pub fn owners(&self) -> impl Iterator<Item = String> {
        let users = self.proxy_uids.iter().map(|uid| format!("--uid-owner {uid}"));
        users.chain(self.proxy_gids.iter().map(|gid| format!("--gid-owner {gid}")))
    }

    /// Whether the included networks contain loopback addresses, of either family: rule 3b then falls away for both.
    pub fn includes_loopback(&self) -> bool {
        match &self.outbound_cidrs {
            Cidrs::All => false,
            Cidrs::List(list) => list.iter().any(|cidr| cidr.starts_with("127.") || cidr.starts_with("::1/")),
        }
    }
}

fn join<T: Display>(list: &[T]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
