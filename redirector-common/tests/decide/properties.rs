//! Random policies and random connections. Everything is drawn from a few values, so that rules and packets meet.

use std::net::IpAddr;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use redirector_common::decision;

use crate::rules::Rules;
use crate::setup::{Choice, Dns, MARK, Net, Packet, Setup};

/// Connections for each policy, at most.
const CONNECTIONS: usize = 64;

fn few<T: Clone + std::fmt::Debug>(item: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    vec(item, 0..4)
}

/// All, nothing or a few, equally often.
fn choice<T: Clone + std::fmt::Debug>(item: impl Strategy<Value = T>) -> impl Strategy<Value = Choice<T>> {
    (0..3, vec(item, 1..4)).prop_map(|(kind, list)| match kind {
        0 => Choice::All,
        1 => Choice::Only(Vec::new()),
        _ => Choice::Only(list),
    })
}

fn port() -> impl Strategy<Value = u16> {
    select(vec![53, 80, 443, 15008])
}

fn id() -> impl Strategy<Value = u32> {
    0..4_u32
}

fn interface() -> impl Strategy<Value = u32> {
    1..4_u32
}

fn net() -> impl Strategy<Value = Net> {
    let nets = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.1.0/24",
        "10.0.1.1/32",
        "127.0.0.0/8",
        "127.0.0.2/32",
        "126.0.0.0/7",
        "::/0",
        "::1/128",
        "::/64",
        "fd00::/8",
        "fd00:1::/64",
        "2001:db8::1/128",
    ];
    select(nets.map(Net::of).to_vec())
}

/// Source and destination.
fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    let pair = |list: &[&str]| {
        let list: Vec<IpAddr> = list.iter().map(|text| text.parse().expect("address")).collect();
        (select(list.clone()), select(list))
    };
    let v4 =
        ["127.0.0.1", "127.0.0.2", "127.0.0.6", "127.1.0.1", "10.0.0.1", "10.0.1.1", "10.0.2.1", "1.1.1.1"];
    let v6 = ["::1", "::6", "fd00::1", "fd00:1::1", "2001:db8::1", "2001:db8::2"];
    prop_oneof![pair(&v4), pair(&v6)]
}

fn server() -> impl Strategy<Value = Net> {
    select(["10.0.1.1", "127.0.0.1", "127.0.0.2", "1.1.1.1", "fd00:1::1", "::1"].map(Net::host).to_vec())
}

fn dns() -> impl Strategy<Value = Dns> {
    prop_oneof![Just(Dns::Off), Just(Dns::All), vec(server(), 1..4).prop_map(Dns::Servers)]
}

fn loopback() -> impl Strategy<Value = Net> {
    select(["127.0.0.1/32", "127.0.0.0/8", "127.0.0.0/30"].map(Net::of).to_vec())
}

fn setup() -> impl Strategy<Value = Setup> {
    let owners = (few(id()), few(id()), choice(id()), few(id()), any::<bool>());
    let inbound = (any::<bool>(), choice(port()), few(port()), few(interface()), few(interface()));
    let outbound = (choice(net()), few(net()), few(port()), few(port()));
    (owners, inbound, outbound, dns(), loopback(), port()).prop_map(
        |(owners, inbound, outbound, dns, loopback, tunnel_port)| {
            let (mut uids, mut gids, owner_groups, owner_groups_exclude, proxy_cgroup) = owners;
            keep_first(&mut uids);
            keep_first(&mut gids);
            let (tproxy, in_ports, exclude_in_ports, exclude_interfaces, virtual_interfaces) = inbound;
            let (include_cidrs, exclude_cidrs, include_out_ports, exclude_out_ports) = outbound;
            Setup {
                tunnel_port,
                proxy_cgroup,
                uids,
                gids,
                tproxy,
                in_ports,
                exclude_in_ports,
                exclude_interfaces,
                virtual_interfaces,
                include_cidrs,
                exclude_cidrs,
                include_out_ports,
                exclude_out_ports,
                dns,
                owner_groups,
                owner_groups_exclude,
                loopback,
            }
        },
    )
}

/// A user listed twice has its rules twice, which changes nothing; policies hold it once.
fn keep_first(ids: &mut Vec<u32>) {
    let all = std::mem::take(ids);
    all.into_iter().for_each(|id| {
        if !ids.contains(&id) {
            ids.push(id)
        }
    });
}

fn packet() -> impl Strategy<Value = Packet> {
    let marks = select(vec![0, 0, MARK, 1338]);
    let owner = (option::weighted(0.9, 0..5_u32), option::weighted(0.9, 0..5_u32), any::<bool>());
    let port = select(vec![53, 80, 443, 15008, 9999]);
    (addresses(), port, any::<bool>(), any::<bool>(), 1..5_u32, owner, marks).prop_map(
        |((src, dst), dport, tcp, lo, interface, (uid, gid, proxy), mark)| Packet {
            src,
            dst,
            dport,
            tcp,
            lo,
            interface,
            uid,
            gid,
            proxy,
            mark,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn outgoing_is_what_the_rules_say(setup in setup(), packets in vec(packet(), 1..=CONNECTIONS)) {
        let policy = setup.policy();
        let rules = [Rules::new(&setup, false), Rules::new(&setup, true)];
        for packet in &packets {
            let expected = rules[usize::from(packet.dst.is_ipv4())].outgoing(packet);
            prop_assert_eq!(decision::outgoing(&policy, &setup, &packet.outgoing()), expected, "{:?}", packet);
        }
    }

    #[test]
    fn incoming_is_what_the_rules_say(setup in setup(), packets in vec(packet(), 1..=CONNECTIONS)) {
        let policy = setup.policy();
        let rules = [Rules::new(&setup, false), Rules::new(&setup, true)];
        for packet in packets.iter().filter(|packet| !packet.dst.is_loopback()) {
            let expected = rules[usize::from(packet.dst.is_ipv4())].incoming(packet);
            prop_assert_eq!(decision::incoming(&policy, &setup, &packet.incoming()), expected, "{:?}", packet);
        }
    }
}
