//! Compares the rules with the decision: a walk over the rules must end at the rule whose counter `decide` names.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use redirector_common::decision::{self, Incoming, Outgoing};
use redirector_common::routing::Owner;
use redirector_common::rule::Counter;
use redirector_common::rule::Verdict;

use super::{Family, Packet, Protocol, Rules, Target};
use crate::explain::Offline;
use crate::policy::{Dns, Mode, Policy, Selection};

const INTERFACES: [&str; 3] = ["lo", "eth0", "net1"];

fn few<T: Clone + std::fmt::Debug>(item: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    vec(item, 0..3)
}

fn selection<T: Clone + std::fmt::Debug>(
    item: impl Strategy<Value = T>,
) -> impl Strategy<Value = Selection<T>> {
    prop_oneof![Just(Selection::None), Just(Selection::All), vec(item, 1..3).prop_map(Selection::List)]
}

fn port() -> impl Strategy<Value = u16> {
    select(vec![53, 80, 15008])
}

fn name() -> impl Strategy<Value = String> {
    select(INTERFACES.map(str::to_owned).to_vec())
}

fn net() -> impl Strategy<Value = IpNet> {
    let nets = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.1.0/24",
        "127.0.0.0/8",
        "127.0.0.2/32",
        "::/0",
        "::/64",
        "::1/128",
        "fd00::/8",
    ];
    select(nets.map(|net| net.parse().expect("network")).to_vec())
}

fn dns() -> impl Strategy<Value = Dns> {
    let servers = ["10.0.1.1", "127.0.0.53", "fd00::1"].map(|ip| ip.parse().expect("address"));
    prop_oneof![Just(Dns::Off), Just(Dns::All), vec(select(servers.to_vec()), 1..3).prop_map(Dns::Servers)]
}

/// Policies whose rules often overlap.
pub(crate) fn policy() -> impl Strategy<Value = Policy> {
    let cgroup = proptest::option::of(Just("/sys/fs/cgroup/pod/proxy".into()));
    let owner = (few(0..3_u32), few(0..3_u32), selection(0..3_u32), few(0..3_u32), cgroup);
    let inbound = (selection(port()), few(port()), few(name()), few(name()));
    let outbound = (selection(net()), few(net()), few(port()), few(port()));
    (owner, inbound, outbound, dns(), port(), any::<bool>()).prop_map(
        |(owner, inbound, outbound, dns, tunnel_port, tproxy)| {
            let mut policy = Policy {
                proxy_uids: owner.0,
                proxy_gids: owner.1,
                owner_groups: owner.2,
                owner_groups_exclude: owner.3,
                proxy_cgroup: owner.4,
                inbound_ports: inbound.0,
                inbound_exclude_ports: inbound.1,
                exclude_interfaces: inbound.2,
                virtual_interfaces: if tproxy { Vec::new() } else { inbound.3 },
                outbound_cidrs: outbound.0,
                outbound_exclude_cidrs: outbound.1,
                outbound_ports: outbound.2,
                outbound_exclude_ports: outbound.3,
                mode: if tproxy { Mode::Tproxy } else { Mode::Redirect },
                dns,
                tunnel_port,
                ..Policy::default()
            };
            policy.normalise();
            policy
        },
    )
}

#[derive(Debug, Clone)]
struct Connection {
    source: IpAddr,
    destination: IpAddr,
    port: u16,
    protocol: Protocol,
    interface: usize,
    uid: Option<u32>,
    gid: Option<u32>,
    proxy: bool,
}

fn connection() -> impl Strategy<Value = Connection> {
    let pair = |list: &[&str]| {
        let list: Vec<IpAddr> = list.iter().map(|ip| ip.parse().expect("address")).collect();
        (select(list.clone()), select(list))
    };
    let v4 = pair(&["127.0.0.1", "127.0.0.2", "127.0.0.6", "127.0.0.53", "10.0.0.1", "10.0.1.1", "1.1.1.1"]);
    let v6 = pair(&["::1", "::6", "fd00::1", "2001:db8::1"]);
    let owner = (proptest::option::of(0..4_u32), proptest::option::of(0..4_u32), any::<bool>());
    let port = select(vec![53, 80, 15008, 9999]);
    (prop_oneof![v4, v6], port, any::<bool>(), 0..INTERFACES.len(), owner).prop_map(
        |((source, destination), port, tcp, interface, (uid, gid, proxy))| Connection {
            source,
            destination,
            port,
            protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
            interface,
            uid,
            gid,
            proxy,
        },
    )
}

impl Connection {
    fn family(&self) -> Family {
        if self.destination.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    fn packet(&self, out: bool) -> Packet<'_> {
        let name = Some(INTERFACES[self.interface]);
        Packet {
            source: self.source,
            destination: self.destination,
            port: self.port,
            protocol: self.protocol,
            input: name.filter(|_| !out),
            output: name.filter(|_| out),
            uid: self.uid,
            gid: self.gid,
            proxy: self.proxy,
            mark: 0,
        }
    }
}

/// The counter of the first matching rule of nat whose name begins with `Out` or `In`.
fn walk(rules: &Rules, family: Family, packet: &Packet<'_>, out: bool) -> Option<(Counter, Verdict)> {
    let rule = rules.list.iter().find(|rule| {
        let counted = rule.counter.filter(|counter| *counter != Counter::OutTproxyLoopback);
        counted.is_some_and(|counter| counter.name().starts_with("out_") == out)
            && rule.of(family).is_some_and(|spec| spec.matches(packet))
            // The chains that redirect take only TCP; the rest comes back.
            && !(matches!(rule.any().target, Target::Jump(_)) && packet.protocol == Protocol::Udp)
    })?;
    let verdict = match &rule.any().target {
        Target::Jump(chain) if chain == "ISTIO_REDIRECT" => Verdict::Outbound,
        Target::Jump(_) => Verdict::Inbound,
        Target::Redirect(_) => Verdict::Dns,
        _ => Verdict::Pass,
    };
    Some((rule.counter?, verdict))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn outbound_rules_decide_as_decide_does(policy in policy(), connections in vec(connection(), 1..32)) {
        let rules = Rules::of(&policy);
        let offline = Offline::new(&policy, &[], &INTERFACES);
        for c in &connections {
            let packet = c.packet(true);
            let decision = decision::outgoing(&offline.compiled.policy, &offline, &Outgoing {
                dst: c.destination.into(),
                dport: c.port,
                src: c.source.into(),
                tcp: c.protocol == Protocol::Tcp,
                lo: c.interface == 0,
                oif: offline.index(INTERFACES[c.interface]),
                uid: c.uid.unwrap_or(Owner::NOBODY),
                gid: c.gid.unwrap_or(Owner::NOBODY),
                proxy: c.proxy,
                mark: 0,
            });
            if decision.rule == Counter::OutTproxyLoopback {
                prop_assert!(rules.deciding(decision.rule, c.family(), &packet).is_some(), "{:?}", c);
                continue;
            }
            let expected = walk(&rules, c.family(), &packet, true).unwrap_or((Counter::OutDefault, Verdict::Pass));
            prop_assert_eq!((decision.rule, decision.verdict), expected, "{:?}", c);
            let found = rules.deciding(decision.rule, c.family(), &packet);
            prop_assert_eq!(found.is_none(), decision.rule == Counter::OutDefault);
        }
    }

    #[test]
    fn inbound_rules_decide_as_decide_does(policy in policy(), connections in vec(connection(), 1..32)) {
        let rules = Rules::of(&policy);
        let offline = Offline::new(&policy, &[], &INTERFACES);
        for c in connections.iter().filter(|c| !c.destination.is_loopback() && c.protocol == Protocol::Tcp && c.interface > 0) {
            let packet = c.packet(false);
            let decision = decision::incoming(&offline.compiled.policy, &offline, &Incoming {
                dst: c.destination.into(),
                dport: c.port,
                iif: offline.index(INTERFACES[c.interface]),
                local: true,
            });
            let expected = walk(&rules, c.family(), &packet, false).unwrap_or((Counter::InDefault, Verdict::Pass));
            prop_assert_eq!((decision.rule, decision.verdict), expected, "{:?}", c);
        }
    }
}

/// The rules of the sidecar default as `iptables-save` prints those of istio-init.
#[test]
fn the_sidecar_rules_are_the_known_ones() {
    let rules = Rules::of(&Policy::default());
    let of = |family, name: &str| {
        let of_chain = rules.list.iter().filter(|rule| rule.chain.name == name);
        of_chain.filter_map(|rule| rule.line(family)).collect::<Vec<_>>()
    };
    assert_eq!(
        of(Family::V4, "ISTIO_OUTPUT"),
        [
            "-A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN",
            "-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp -m tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT",
            "-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN",
            "-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN",
            "-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp -m tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT",
            "-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN",
            "-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN",
            "-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN",
            "-A ISTIO_OUTPUT -j ISTIO_REDIRECT",
        ]
    );
    assert_eq!(
        of(Family::V6, "ISTIO_INBOUND"),
        [
            "-A ISTIO_INBOUND -p tcp -m tcp --dport 15008 -j RETURN",
            "-A ISTIO_INBOUND -p tcp -m tcp --dport 15020 -j RETURN",
            "-A ISTIO_INBOUND -p tcp -m tcp --dport 15021 -j RETURN",
            "-A ISTIO_INBOUND -p tcp -m tcp --dport 15090 -j RETURN",
            "-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT",
        ]
    );
    assert_eq!(of(Family::V6, "ISTIO_OUTPUT")[7], "-A ISTIO_OUTPUT -d ::1/128 -j RETURN");
}

#[test]
fn columns_are_those_of_a_listing() {
    let rules = Rules::of(&Policy::default());
    let second =
        rules.list.iter().find(|rule| rule.counter == Some(Counter::OutProxyUidLoopback)).expect("rule");
    assert_eq!(
        second.columns(),
        [
            "ISTIO_IN_REDIRECT",
            "tcp",
            "*",
            "lo",
            "anywhere",
            "!127.0.0.1, !::1",
            "tcp dpt:!15008 owner UID match 1337"
        ]
    );
}
