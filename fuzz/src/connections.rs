//! Connections under a policy: `explain` says what the decision says.
//!
//! `explain` asks the lists that an instance would have, in the kernel's form; the decision here asks the policy itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use redirector_common::Addr;
use redirector_common::abi::List;
use redirector_common::decision::{self, Lists};
use redirector_common::routing::Owner;
use redirector_common::rule::Outcome;
use redirector_user::explain::{self, Arriving, Explanation, Offline, Outgoing};
use redirector_user::policy::{Dns, Policy};
use redirector_user::rules::Protocol;

/// Connections for each input.
const CONNECTIONS: usize = 12;

/// Asks about some connections, most of them to what the policy speaks of; the input says which.
pub fn check(policy: &Policy, seed: &str) {
    // Explaining builds all rules each time.
    if policy.outbound_cidrs.items().len() + policy.outbound_exclude_cidrs.len() > 500 {
        return;
    }
    let mut random = Random::new(seed);
    let own: Vec<IpAddr> = vec![Ipv4Addr::new(10, 0, 0, 1).into(), "fd00::1".parse().expect("address")];
    let output = random.pick(&["eth0", "lo", ""]);
    let offline = match *output {
        "" => Offline::new(policy, &own, &["eth0"]),
        output => Offline::leaving_on(policy, &own, output),
    };
    for _ in 0..CONNECTIONS {
        let protocol = *random.pick(&[Protocol::Tcp, Protocol::Tcp, Protocol::Udp]);
        let to = SocketAddr::new(address(policy, &mut random), port(policy, &mut random));
        let source = random.one_in(2).then(|| address(policy, &mut random));
        let source =
            source.filter(|source| source.to_canonical().is_ipv4() == to.ip().to_canonical().is_ipv4());
        let (uid, gid) = (owner(policy, &mut random), owner(policy, &mut random));
        let proxy = random.one_in(4);
        outgoing(policy, &offline, &Outgoing { protocol, uid, gid, proxy, source, to });
        let interface = random.one_in(2).then(|| (*random.pick(&["eth0", "lo", "absent"])).to_owned());
        incoming(policy, &offline, &Arriving { protocol, to, interface });
    }
}

fn outgoing(policy: &Policy, offline: &Offline, query: &Outgoing) {
    let said = explain::outgoing(policy, offline, query);
    let Some(rule) = said.rule.filter(|_| said.verdict != Outcome::Refused) else { return };
    let dst = said.destination.ip();
    let any: IpAddr = if dst.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let decision = decision::outgoing(
        &offline.compiled.policy,
        &Plain { policy, offline },
        &decision::Outgoing {
            dst: dst.into(),
            dport: said.destination.port(),
            src: said.source.unwrap_or(any).into(),
            tcp: query.protocol == Protocol::Tcp,
            lo: said.lo,
            oif: offline.route(dst).oif,
            uid: query.uid.unwrap_or(Owner::NOBODY),
            gid: query.gid.unwrap_or(Owner::NOBODY),
            proxy: query.proxy,
            mark: 0,
        },
    );
    compare(&said, rule, &decision, query);
}

fn incoming(policy: &Policy, offline: &Offline, query: &Arriving) {
    let said = explain::incoming(policy, offline, query);
    let Some(rule) = said.rule else { return };
    let decision = decision::incoming(
        &offline.compiled.policy,
        &Plain { policy, offline },
        &decision::Incoming {
            dst: said.destination.ip().into(),
            dport: said.destination.port(),
            iif: query.interface.as_deref().map_or(0, |name| offline.index(name)),
            local: true,
        },
    );
    compare(&said, rule, &decision, query);
}

fn compare(said: &Explanation, rule: &str, decision: &decision::Decision, query: &impl std::fmt::Debug) {
    assert_eq!(rule, decision.rule.name(), "{query:?}\n{said:#?}");
    assert_eq!(said.verdict, Outcome::Decided(decision.verdict), "{query:?}\n{said:#?}");
    assert!(said.iptables.is_some(), "no rule is named: {query:?}\n{said:#?}");
    assert!(!said.lines().is_empty());
}

/// A policy as its own lists.
struct Plain<'a> {
    policy: &'a Policy,
    offline: &'a Offline,
}

impl Lists for Plain<'_> {
    fn holds(&self, list: List, value: u32) -> bool {
        let port = |ports: &[u16]| ports.iter().any(|port| u32::from(*port) == value);
        let interface = |names: &[String]| names.iter().any(|name| self.offline.index(name) == value);
        let policy = self.policy;
        match list {
            List::ExcludeOutPorts => port(&policy.outbound_exclude_ports),
            List::IncludeOutPorts => port(&policy.outbound_ports),
            List::ExcludeInPorts => port(&policy.inbound_exclude_ports),
            List::IncludeInPorts => port(policy.inbound_ports.items()),
            List::ExcludeInterfaces => interface(&policy.exclude_interfaces),
            List::VirtualInterfaces | List::VirtualInterfaces6 => interface(&policy.virtual_interfaces),
            List::ProxyUids => policy.proxy_uids.contains(&value),
            List::ProxyGids => policy.proxy_gids.contains(&value),
            List::OwnerGroups => policy.owner_groups.items().contains(&value),
            List::OwnerGroupsExclude => policy.owner_groups_exclude.contains(&value),
            List::Routes | List::IncludeCidrs | List::ExcludeCidrs | List::DnsServers => {
                panic!("{list:?} is no list of numbers")
            }
        }
    }

    fn covers(&self, list: List, addr: &Addr) -> bool {
        let ip = IpAddr::from(*addr).to_canonical();
        let covers = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&ip));
        match list {
            List::IncludeCidrs => covers(self.policy.outbound_cidrs.items()),
            List::ExcludeCidrs => covers(&self.policy.outbound_exclude_cidrs),
            List::DnsServers => match &self.policy.dns {
                Dns::Servers(servers) => servers.iter().any(|server| server.to_canonical() == ip),
                Dns::Off | Dns::All => false,
            },
            _ => panic!("{list:?} is no list of networks"),
        }
    }
}

fn address(policy: &Policy, random: &mut Random) -> IpAddr {
    const COMMON: [&str; 12] = [
        "127.0.0.1",
        "127.0.0.6",
        "127.0.0.2",
        "10.0.0.1",
        "1.1.1.1",
        "0.0.0.0",
        "::1",
        "::6",
        "fd00::1",
        "2001:db8::1",
        "::",
        "::ffff:1.1.1.1",
    ];
    let nets: Vec<IpNet> =
        policy.outbound_cidrs.items().iter().chain(&policy.outbound_exclude_cidrs).copied().collect();
    let near = |addr: IpAddr, step: i8| match addr {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits().wrapping_add_signed(step.into())).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits().wrapping_add_signed(step.into())).into(),
    };
    match (&policy.dns, random.below(4)) {
        (Dns::Servers(servers), 0) => *random.pick(servers),
        (_, 1 | 2) if !nets.is_empty() => {
            let net = random.pick(&nets);
            match random.below(4) {
                0 => near(net.network(), -1),
                1 => near(net.broadcast(), 1),
                2 => net.broadcast(),
                _ => net.network(),
            }
        }
        _ => random.pick(&COMMON).parse().expect("address"),
    }
}

fn port(policy: &Policy, random: &mut Random) -> u16 {
    let mut ports = vec![53, 80, 15008, policy.tunnel_port];
    ports.extend(policy.inbound_ports.items());
    ports.extend(&policy.inbound_exclude_ports);
    ports.extend(&policy.outbound_ports);
    ports.extend(&policy.outbound_exclude_ports);
    *random.pick(&ports)
}

fn owner(policy: &Policy, random: &mut Random) -> Option<u32> {
    let mut ids = vec![None, Some(0), Some(1000)];
    let of_policy = [&policy.proxy_uids, &policy.proxy_gids, &policy.owner_groups_exclude];
    ids.extend(of_policy.into_iter().flatten().chain(policy.owner_groups.items()).map(|id| Some(*id)));
    *random.pick(&ids)
}

/// Numbers that follow from a text: the same input always means the same connections.
struct Random(u64);

impl Random {
    fn new(seed: &str) -> Self {
        // FNV-1a.
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Self(seed.bytes().fold(0xcbf2_9ce4_8422_2325, hash) | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % bound
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}
