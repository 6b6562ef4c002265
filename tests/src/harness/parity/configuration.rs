//! A configuration: which options are given, with which values.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use super::options::Choice;
use crate::harness::oracle::options::{Cidrs, Options, Ports, Tproxy};

/// The name servers of the pod's resolv.conf.
pub const NAME_SERVERS: [&str; 2] = ["10.96.0.53", "fd00:96::53"];

/// The first of them.
pub const NAME_SERVER4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 53);

/// The options that are given. Those that are not have the default of `istio-iptables`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration(BTreeMap<Choice, String>);

impl Configuration {
    /// An injected sidecar's, with IPv6.
    pub fn sidecar() -> Self {
        Self::default()
            .with(Choice::Cidrs, "*")
            .with(Choice::InboundPorts, "*")
            .with(Choice::InboundPortsExclude, "15090,15021,15020")
            .with(Choice::Ipv6, "on")
    }

    /// The same with another value.
    pub fn with(mut self, choice: Choice, value: impl Into<String>) -> Self {
        self.0.insert(choice, value.into());
        self
    }

    /// The same without an option.
    pub fn without(mut self, choice: Choice) -> Self {
        self.0.remove(&choice);
        self
    }

    pub fn given(&self) -> impl Iterator<Item = (Choice, &str)> {
        self.0.iter().map(|(choice, value)| (*choice, value.as_str()))
    }

    fn value(&self, choice: Choice) -> Option<&str> {
        self.0.get(&choice).map(String::as_str)
    }

    fn items(&self, choice: Choice) -> impl Iterator<Item = &str> {
        self.value(choice).unwrap_or_default().split(',').filter(|item| !item.is_empty())
    }

    fn numbers<T: std::str::FromStr>(&self, choice: Choice) -> Vec<T> {
        self.items(choice).filter_map(|item| item.parse().ok()).collect()
    }

    fn words(&self, choice: Choice) -> Vec<String> {
        self.items(choice).map(str::to_owned).collect()
    }

    fn number(&self, choice: Choice, default: u16) -> u16 {
        self.value(choice).and_then(|value| value.parse().ok()).unwrap_or(default)
    }

    /// Any other word is REDIRECT.
    fn is_tproxy(&self) -> bool {
        self.value(Choice::Mode) == Some("TPROXY")
    }

    /// The mode; mark and table count with TPROXY only.
    fn tproxy(&self) -> Option<Tproxy> {
        let Tproxy { mark, table } = Tproxy::default();
        let number =
            |choice, default| self.value(choice).and_then(|text| text.parse().ok()).unwrap_or(default);
        let given = Tproxy { mark: number(Choice::Mark, mark), table: number(Choice::RouteTable, table) };
        self.is_tproxy().then_some(given)
    }

    /// Whether DNS capture depends on resolv.conf.
    pub fn needs_name_servers(&self) -> bool {
        self.value(Choice::Dns) == Some("servers")
    }

    /// The options as `istio-iptables` reads them: its defaults, its splitting of lists.
    pub fn options(&self) -> Options {
        // Without a user of the name istio-proxy.
        let ids = |choice, default: &[u32]| match self.value(choice) {
            None | Some("") => default.to_vec(),
            Some(_) => self.numbers(choice),
        };
        let proxy_uids = ids(Choice::ProxyUids, &[1337]);
        let dns = self.value(Choice::Dns);
        Options {
            envoy_port: self.number(Choice::EnvoyPort, 15001),
            inbound_capture_port: self.number(Choice::InboundCapturePort, 15006),
            inbound_tunnel_port: self.number(Choice::TunnelPort, 15008),
            proxy_gids: ids(Choice::ProxyGids, &proxy_uids),
            proxy_uids,
            tproxy: self.tproxy(),
            inbound_ports: match self.value(Choice::InboundPorts) {
                Some("*") => Ports::All,
                _ => Ports::List(self.numbers(Choice::InboundPorts)),
            },
            inbound_ports_exclude: self.numbers(Choice::InboundPortsExclude),
            outbound_cidrs: match self.value(Choice::Cidrs) {
                Some("*") => Cidrs::All,
                _ => Cidrs::List(self.words(Choice::Cidrs)),
            },
            outbound_cidrs_exclude: self.words(Choice::CidrsExclude),
            outbound_ports: self.numbers(Choice::OutboundPorts),
            outbound_ports_exclude: self.numbers(Choice::OutboundPortsExclude),
            exclude_interfaces: self.words(Choice::ExcludeInterfaces),
            virtual_interfaces: if self.is_tproxy() {
                Vec::new()
            } else {
                self.words(Choice::VirtualInterfaces)
            },
            owner_groups: match self.value(Choice::OwnerGroups) {
                None | Some("*") => None,
                Some(_) => Some(self.numbers(Choice::OwnerGroups)),
            },
            owner_groups_exclude: self.numbers(Choice::OwnerGroupsExclude),
            loopback_cidr: self.value(Choice::Loopback).unwrap_or("127.0.0.1/32").to_owned(),
            redirect_dns: matches!(dns, Some("servers" | "all")),
            capture_all_dns: matches!(dns, Some("all" | "all-alone")),
            dns_servers: NAME_SERVERS.map(str::to_owned).to_vec(),
            // The first address of a pod is an IPv4 one, and IPv6 ones it has, too.
            ipv6: matches!(self.value(Choice::Ipv6), Some("on" | "dual-stack")),
        }
    }

    /// The flags for the product: as for `istio-iptables`.
    pub fn flags(&self) -> Vec<String> {
        let mut flags = vec!["--istio-defaults".to_owned()];
        for (choice, value) in self.given() {
            let words: &[&str] = match (choice, value) {
                (Choice::Dns, "servers") => &["--redirect-dns"],
                (Choice::Dns, "all") => &["--redirect-dns", "--capture-all-dns"],
                (Choice::Dns, _) => &["--capture-all-dns"],
                // Refused beside it.
                (Choice::VirtualInterfaces, _) if self.is_tproxy() => &[],
                (Choice::Ipv6, "dual-stack") => &["--ipv6", "auto", "--dual-stack"],
                (Choice::Ipv6, when) => &["--ipv6", when],
                _ if choice.is_variable() => &[],
                _ => &[choice.name(), value],
            };
            flags.extend(words.iter().map(|word| (*word).to_owned()));
        }
        flags
    }

    /// The options that go into the environment.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let variables = self.given().filter(|(choice, _)| choice.is_variable());
        variables.map(|(choice, value)| (choice.name(), value.to_owned())).collect()
    }
}

impl fmt::Display for Configuration {
    /// As one would type it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.environment() {
            write!(f, "{name}='{value}' ")?;
        }
        let quoted = self.flags().into_iter().map(|word| {
            let plain = !word.is_empty() && !word.contains('*');
            if plain { word } else { format!("'{word}'") }
        });
        f.write_str(&quoted.collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sidecar_is_the_known_one() {
        let expected =
            Options { dns_servers: NAME_SERVERS.map(str::to_owned).to_vec(), ..Options::sidecar() };
        assert_eq!(Configuration::sidecar().options(), expected);
    }

    #[test]
    fn what_is_absent_has_the_defaults_of_the_original() {
        let options = Configuration::default().with(Choice::ProxyUids, "5,6,").options();
        assert_eq!((options.proxy_uids, options.proxy_gids), (vec![5, 6], vec![5, 6]));
        assert_eq!(options.inbound_ports, Ports::List(Vec::new()));
        assert_eq!(options.outbound_cidrs, Cidrs::List(Vec::new()));
        assert!(!options.ipv6);
        assert_eq!(options.owner_groups, None);
        let nobody = Configuration::default().with(Choice::OwnerGroups, "").options();
        assert_eq!(nobody.owner_groups, Some(Vec::new()));
    }

    #[test]
    fn it_is_shown_as_typed() {
        let configuration = Configuration::default()
            .with(Choice::Cidrs, "*")
            .with(Choice::CidrsExclude, "")
            .with(Choice::Loopback, "127.0.0.0/8")
            .with(Choice::Ipv6, "dual-stack");
        assert_eq!(
            configuration.to_string(),
            "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR='127.0.0.0/8' \
             --istio-defaults -i '*' -x '' --ipv6 auto --dual-stack"
        );
    }
}
