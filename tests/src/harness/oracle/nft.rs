//! The native nftables rules of Istio (`tools/istio-nftables`, `capture/run.go`), loaded with real `nft`: tables of the
//! family inet for both versions of IP.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use anyhow::Context;

use super::mangle::OWN_POD;
use super::options::{Cidrs, Options, Ports, Tproxy};
use super::{IpVersion, mangle};
use crate::harness::command::run;
use crate::harness::world::netns::Netns;

/// Installs the rules in a namespace; they go with it.
pub fn install(netns: &Netns, options: &Options) -> anyhow::Result<()> {
    load(netns, options)?;
    mangle::route(netns, "add", options)?;
    super::add_passthrough_address(netns, options)
}

/// Loads rules instead of those that were there.
pub fn load(netns: &Netns, options: &Options) -> anyhow::Result<()> {
    let text: String =
        [nat(options), mangle(options), raw(options)].iter().map(ToString::to_string).collect();
    run(netns.command("nft").args(["-f", "-"]), &text).with_context(|| text.clone()).map(drop)
}

/// A table under construction.
struct Table {
    name: &'static str,
    /// Base chains, with their type, hook and priority.
    bases: [(&'static str, &'static str); 2],
    chains: BTreeMap<&'static str, Vec<String>>,
}

impl Table {
    fn new(name: &'static str, prerouting: &'static str, output: &'static str) -> Self {
        Self { name, bases: [("prerouting", prerouting), ("output", output)], chains: BTreeMap::new() }
    }

    fn add(&mut self, chain: &'static str, rule: impl Display) {
        self.chains.entry(chain).or_default().push(rule.to_string());
    }

    /// As Istio's builder does, a rule is appended where the chain is too short for the position.
    fn insert(&mut self, chain: &'static str, position: usize, rule: impl Display) {
        let rules = self.chains.entry(chain).or_default();
        rules.insert(position.min(rules.len()), rule.to_string());
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, .. } = self;
        writeln!(f, "table inet {name}\ndelete table inet {name}\ntable inet {name} {{")?;
        // A chain must be there before a rule jumps to it.
        for chain in self.chains.keys() {
            let base = self.bases.iter().find(|(base, _)| base == chain);
            writeln!(f, "chain {chain} {{ {} }}", base.map_or("", |(_, base)| base))?;
        }
        writeln!(f, "}}")?;
        for (chain, rules) in &self.chains {
            rules.iter().try_for_each(|rule| writeln!(f, "add rule inet {name} {chain} {rule}"))?;
        }
        Ok(())
    }
}

impl IpVersion {
    /// The versions with rules of their own. Rules that name no address are of both, even with IPv6 off.
    fn all(options: &Options) -> &'static [Self] {
        if options.ipv6 { &[Self::V4, Self::V6] } else { &[Self::V4] }
    }

    fn word(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

const OUTPUT: &str = "istio-output";
const DNS: &str = "istio-output-dns";
const INBOUND: &str = "istio-inbound";

fn nat(options: &Options) -> Table {
    let mut table = Table::new(
        "istio-proxy-nat",
        "type nat hook prerouting priority -100;",
        "type nat hook output priority -100;",
    );
    exclude_interfaces(&mut table, options);
    for interface in &options.virtual_interfaces {
        table.insert("prerouting", 0, format_args!("iifname {interface} return"));
    }
    table.add(INBOUND, format_args!("tcp dport {} return", options.inbound_tunnel_port));
    table.add("istio-redirect", format_args!("meta l4proto tcp redirect to :{}", options.envoy_port));
    let port = options.inbound_capture_port;
    table.add("istio-in-redirect", format_args!("meta l4proto tcp redirect to :{port}"));
    if options.tproxy.is_none() {
        inbound(&mut table, options, &["jump istio-in-redirect"]);
    }
    table.add("output", format_args!("jump {OUTPUT}"));
    outbound(&mut table, options);
    table
}

fn exclude_interfaces(table: &mut Table, options: &Options) {
    for interface in &options.exclude_interfaces {
        table.add("prerouting", format_args!("iifname {interface} return"));
        table.add("output", format_args!("oifname {interface} return"));
    }
}

/// Sends the captured ports to each of the targets.
fn inbound(table: &mut Table, options: &Options, targets: &[&str]) {
    let ports: Vec<String> = match &options.inbound_ports {
        Ports::List(list) if list.is_empty() => return,
        Ports::List(list) => list.iter().map(|port| format!("tcp dport {port} ")).collect(),
        Ports::All => vec!["meta l4proto tcp ".to_owned()],
    };
    table.add("prerouting", format_args!("meta l4proto tcp jump {INBOUND}"));
    if options.inbound_ports == Ports::All {
        for port in &options.inbound_ports_exclude {
            table.add(INBOUND, format_args!("tcp dport {port} return"));
        }
    }
    for port in ports {
        targets.iter().for_each(|target| table.add(INBOUND, format_args!("{port}{target}")));
    }
}

fn outbound(table: &mut Table, options: &Options) {
    for port in &options.outbound_ports_exclude {
        table.add(OUTPUT, format_args!("tcp dport {port} return"));
        table.add(OUTPUT, format_args!("udp dport {port} return"));
    }
    for version in IpVersion::all(options) {
        let (_, passthrough) = version.loopback_and_passthrough(options);
        table.add(OUTPUT, format_args!("oifname lo {} saddr {passthrough} return", version.word()));
    }
    let tunnel = options.inbound_tunnel_port;
    for uid in &options.proxy_uids {
        let ports = if options.redirect_dns { format!("{{ 53, {tunnel} }}") } else { tunnel.to_string() };
        owner(table, options, ["skuid", &uid.to_string()], &ports);
    }
    for gid in &options.proxy_gids {
        owner(table, options, ["skgid", &gid.to_string()], &tunnel.to_string());
    }
    match &options.owner_groups {
        None => {
            options
                .owner_groups_exclude
                .iter()
                .for_each(|gid| table.add(OUTPUT, format_args!("skgid {gid} return")));
        }
        Some(groups) => {
            let none_of_them: String = groups.iter().map(|gid| format!("skgid != {gid} ")).collect();
            table.add(OUTPUT, format_args!("{none_of_them}return"));
        }
    }
    dns(table, options);
    for version in IpVersion::all(options) {
        let (loopback, _) = version.loopback_and_passthrough(options);
        table.add(OUTPUT, format_args!("{} daddr {loopback} return", version.word()));
    }
    for (word, cidr) in cidrs(options, &options.outbound_cidrs_exclude) {
        table.add(OUTPUT, format_args!("{word} daddr {cidr} return"));
    }
    for port in &options.outbound_ports {
        table.add(OUTPUT, format_args!("tcp dport {port} jump istio-redirect"));
    }
    let destinations = match &options.outbound_cidrs {
        Cidrs::All => vec![String::new()],
        Cidrs::List(list) => {
            cidrs(options, list).into_iter().map(|(word, cidr)| format!("{word} daddr {cidr} ")).collect()
        }
    };
    for destination in destinations {
        for interface in &options.virtual_interfaces {
            table.insert(
                "prerouting",
                0,
                format_args!("iifname {interface} {destination}jump istio-redirect"),
            );
        }
        table.add(OUTPUT, format_args!("{destination}jump istio-redirect"));
    }
}

/// Networks with the word for their version of IP, version by version.
fn cidrs<'a>(options: &Options, list: &'a [String]) -> Vec<(&'static str, &'a String)> {
    let of = |version: &IpVersion| {
        let (word, version) = (version.word(), *version);
        list.iter().filter(move |cidr| version.has(cidr)).map(move |cidr| (word, cidr))
    };
    IpVersion::all(options).iter().flat_map(of).collect()
}

/// The three rules for one owner of a proxy.
fn owner(table: &mut Table, options: &Options, [key, id]: [&str; 2], ports: &str) {
    for version in IpVersion::all(options) {
        let (loopback, _) = version.loopback_and_passthrough(options);
        let to = format!("{} daddr != {loopback} tcp dport != {ports}", version.word());
        table.add(OUTPUT, format_args!("oifname lo meta l4proto tcp {to} {key} {id} jump istio-in-redirect"));
    }
    if !options.includes_loopback() {
        let protocol = if options.redirect_dns { "tcp dport != 53 " } else { "" };
        table.add(OUTPUT, format_args!("oifname lo {protocol}{key} != {id} return"));
    }
    table.add(OUTPUT, format_args!("{key} {id} return"));
}

fn dns(table: &mut Table, options: &Options) {
    let servers = name_servers(options, "daddr");
    if servers.is_empty() {
        return;
    }
    table.add(OUTPUT, format_args!("jump {DNS}"));
    for protocol in ["tcp", "udp"] {
        for server in &servers {
            table.add(DNS, format_args!("{server}{protocol} dport 53 redirect to :15053"));
        }
    }
}

/// Matches of the captured name servers.
fn name_servers(options: &Options, end: &str) -> Vec<String> {
    if options.redirect_dns && options.capture_all_dns {
        return vec![String::new()];
    }
    let of = |version: &IpVersion| {
        let word = version.word();
        version
            .name_servers(options)
            .into_iter()
            .flatten()
            .map(move |server| format!("{word} {end} {server} "))
    };
    let versions = if options.redirect_dns { IpVersion::all(options) } else { &[] };
    versions.iter().flat_map(of).collect()
}

fn mangle(options: &Options) -> Table {
    let mut table = Table::new(
        "istio-proxy-mangle",
        "type filter hook prerouting priority -150;",
        "type route hook output priority -150;",
    );
    let Some(Tproxy { mark, .. }) = options.tproxy else { return table };
    exclude_interfaces(&mut table, options);
    let versions = IpVersion::all(options).iter().map(|version| (version.word(), version));
    if options.inbound_ports != Ports::List(Vec::new()) {
        table.add("istio-divert", format_args!("meta mark set {mark}"));
        table.add("istio-divert", "accept");
        for (word, version) in versions.clone() {
            let (loopback, _) = version.loopback_and_passthrough(options);
            let target =
                format!("tproxy {word} to :{} meta mark set {mark} accept", options.inbound_capture_port);
            table.add("istio-tproxy", format_args!("meta l4proto tcp {word} daddr != {loopback} {target}"));
        }
    }
    inbound(&mut table, options, &["ct state related,established jump istio-divert", "jump istio-tproxy"]);
    table.add("prerouting", format_args!("meta l4proto tcp mark {mark} ct mark set mark"));
    table.add("output", format_args!("oifname lo meta l4proto tcp mark {mark} return"));
    let owners = options.proxy_uids.iter().map(|uid| format!("skuid {uid}"));
    for owner in owners.chain(options.proxy_gids.iter().map(|gid| format!("skgid {gid}"))) {
        for (word, version) in versions.clone() {
            let (loopback, _) = version.loopback_and_passthrough(options);
            let rule = format!("oifname lo meta l4proto tcp {word} daddr != {loopback} {owner}");
            table.add("output", format_args!("{rule} meta mark set {OWN_POD}"));
        }
    }
    table.add("output", format_args!("meta l4proto tcp ct mark {mark} meta mark set ct mark"));
    table.insert(INBOUND, 0, format_args!("meta l4proto tcp mark {mark} return"));
    for (word, version) in versions {
        let (_, passthrough) = version.loopback_and_passthrough(options);
        table.insert(
            INBOUND,
            1,
            format_args!("iifname lo meta l4proto tcp {word} saddr {passthrough} return"),
        );
    }
    table.insert(INBOUND, 2, format_args!("iifname lo meta l4proto tcp mark != {OWN_POD} return"));
    table
}

fn raw(options: &Options) -> Table {
    let mut table = Table::new(
        "istio-proxy-raw",
        "type filter hook prerouting priority -300;",
        "type filter hook output priority -300;",
    );
    if !options.redirect_dns {
        return table;
    }
    table.add("output", format_args!("jump {DNS}"));
    let owners = options.proxy_uids.iter().map(|uid| format!("skuid {uid}"));
    for owner in owners.chain(options.proxy_gids.iter().map(|gid| format!("skgid {gid}"))) {
        table.add(DNS, format_args!("udp dport 53 meta {owner} ct zone set 1"));
        table.add(DNS, format_args!("udp sport 15053 meta {owner} ct zone set 2"));
    }
    table.add("prerouting", format_args!("jump {INBOUND}"));
    for (to, from) in name_servers(options, "daddr").iter().zip(name_servers(options, "saddr")) {
        table.add(DNS, format_args!("udp dport 53 {to}ct zone set 2"));
        table.add(INBOUND, format_args!("udp sport 53 {from}ct zone set 1"));
    }
    table
}
