//! Outcomes everybody knows, without a walker in between.

use std::net::{IpAddr, SocketAddr};

use redirector_common::decision;
use redirector_common::rule::Counter;
use redirector_common::rule::Counter::*;
use redirector_common::rule::Verdict;
use redirector_common::rule::Verdict::{Inbound, Outbound, Pass};

use crate::setup::{Choice, Dns, MARK, Net, Packet, Setup};

const APP: u32 = 1000;
const PROXY: u32 = 1337;
/// Addresses of the pod, beside loopback.
const OWN: [&str; 3] = ["10.77.0.2", "fd00:77::2", "::6"];

/// A TCP connection of a user (and group) of the pod.
fn to(uid: u32, gid: u32, dst: &str) -> Packet {
    let dst: SocketAddr = dst.parse().expect("destination");
    let lo = dst.ip().is_loopback() || OWN.contains(&dst.ip().to_string().as_str());
    let own = |n: usize| OWN[n].parse().expect("address");
    // As routing chooses it.
    let src: IpAddr = match dst.ip() {
        IpAddr::V4(v4) if v4.is_loopback() => "127.0.0.1".parse().expect("address"),
        IpAddr::V4(_) => own(0),
        local if lo => local,
        IpAddr::V6(_) => own(1),
    };
    Packet {
        src,
        dst: dst.ip(),
        dport: dst.port(),
        tcp: true,
        lo,
        interface: if lo { 1 } else { 2 },
        uid: Some(uid),
        gid: Some(gid),
        proxy: false,
        mark: 0,
    }
}

fn from(mut packet: Packet, src: &str) -> Packet {
    packet.src = src.parse().expect("source");
    packet
}

#[track_caller]
fn leaves(setup: &Setup, packet: &Packet, verdict: Verdict, rule: Counter) {
    let decision = decision::outgoing(&setup.policy(), setup, &packet.outgoing());
    assert_eq!((decision.verdict, decision.rule), (verdict, rule), "{packet:?}");
}

#[track_caller]
fn arrives(setup: &Setup, dst: &str, iif: u32, verdict: Verdict, rule: Counter) {
    let packet = Packet { interface: iif, ..to(APP, APP, dst) };
    let decision = decision::incoming(&setup.policy(), setup, &packet.incoming());
    assert_eq!((decision.verdict, decision.rule), (verdict, rule), "{packet:?}");
}

#[test]
fn the_app_under_the_sidecar_default() {
    let s = Setup::sidecar();
    for (dst, verdict, rule) in [
        ("10.96.0.10:80", Outbound, OutAll),
        ("[fd00:96::10]:80", Outbound, OutAll),
        ("10.96.0.10:22", Outbound, OutAll),
        ("10.96.0.10:15008", Outbound, OutAll),
        ("10.77.0.2:8080", Pass, OutNotProxyUidLoopback),
        ("[fd00:77::2]:8080", Pass, OutNotProxyUidLoopback),
        ("127.0.0.1:15000", Pass, OutNotProxyUidLoopback),
        ("127.0.0.2:80", Pass, OutNotProxyUidLoopback),
        ("[::1]:80", Pass, OutNotProxyUidLoopback),
    ] {
        leaves(&s, &to(APP, APP, dst), verdict, rule);
        leaves(&s, &to(0, 0, dst), verdict, rule);
    }
    leaves(&s, &Packet { tcp: false, ..to(APP, APP, "10.96.0.10:53") }, Pass, OutDefault);
}

#[test]
fn the_proxy_under_the_sidecar_default() {
    let s = Setup::sidecar();
    for (dst, verdict, rule) in [
        ("10.96.0.10:80", Pass, OutProxyUid),
        ("[fd00:96::10]:80", Pass, OutProxyUid),
        // To the pod itself: through the inbound listener, but for the tunnel and the app's own loopback address.
        ("10.77.0.2:8080", Inbound, OutProxyUidLoopback),
        ("[fd00:77::2]:8080", Inbound, OutProxyUidLoopback),
        ("10.77.0.2:15008", Pass, OutProxyUid),
        ("127.0.0.1:15020", Pass, OutProxyUid),
        ("[::1]:15020", Pass, OutProxyUid),
        ("127.0.0.2:80", Inbound, OutProxyUidLoopback),
    ] {
        leaves(&s, &to(PROXY, PROXY, dst), verdict, rule);
        leaves(&s, &to(PROXY, 0, dst), verdict, rule);
    }
    // By its group alone: only what goes out.
    leaves(&s, &to(0, PROXY, "10.96.0.10:80"), Pass, OutProxyGid);
    leaves(&s, &to(0, PROXY, "10.77.0.2:80"), Pass, OutNotProxyUidLoopback);
    // What the proxy hands to the app comes from 127.0.0.6 or ::6.
    leaves(&s, &from(to(PROXY, PROXY, "10.77.0.2:8080"), "127.0.0.6"), Pass, OutPassthroughSource);
    leaves(&s, &from(to(PROXY, PROXY, "[fd00:77::2]:8080"), "::6"), Pass, OutPassthroughSource);
}

/// istio-validation: as the proxy, from loopback to 127.0.0.6:15002 (::6), must reach the inbound listener.
#[test]
fn the_validation_reaches_the_inbound_listener() {
    let s = Setup::sidecar();
    leaves(&s, &from(to(PROXY, PROXY, "127.0.0.6:15002"), "127.0.0.1"), Inbound, OutProxyUidLoopback);
    leaves(&s, &from(to(PROXY, PROXY, "[::6]:15002"), "::1"), Inbound, OutProxyUidLoopback);
    leaves(&s, &to(APP, APP, "127.0.0.6:15002"), Pass, OutNotProxyUidLoopback);
}

#[test]
fn the_network_under_the_sidecar_default() {
    let s = Setup::sidecar();
    for (dst, verdict, rule) in [
        ("10.77.0.2:80", Inbound, InAll),
        ("[fd00:77::2]:80", Inbound, InAll),
        ("10.77.0.2:22", Inbound, InAll),
        ("10.77.0.2:15001", Inbound, InAll),
        ("10.77.0.2:15008", Pass, InTunnel),
        ("10.77.0.2:15020", Pass, InExcludedPort),
        ("10.77.0.2:15021", Pass, InExcludedPort),
        ("10.77.0.2:15090", Pass, InExcludedPort),
    ] {
        arrives(&s, dst, 2, verdict, rule);
    }
}

/// reference.md c.4: nat OUTPUT is unchanged; inbound the tunnel port is captured unless it is excluded.
#[test]
fn tproxy_from_the_network() {
    let s = Setup { tproxy: true, ..Setup::sidecar() };
    arrives(&s, "10.77.0.2:80", 2, Inbound, InAll);
    arrives(&s, "10.77.0.2:15008", 2, Inbound, InAll);
    arrives(&s, "10.77.0.2:15020", 2, Pass, InExcludedPort);
    let listed = Setup { in_ports: Choice::Only(vec![80, 15008]), ..s.clone() };
    arrives(&listed, "10.77.0.2:80", 2, Inbound, InListed);
    arrives(&listed, "10.77.0.2:15008", 2, Inbound, InListed);
    arrives(&listed, "10.77.0.2:15020", 2, Pass, InDefault);
    let excluded = Setup { exclude_interfaces: vec![2], ..s };
    arrives(&excluded, "10.77.0.2:80", 2, Pass, InExcludedInterface);
    arrives(&excluded, "10.77.0.2:80", 3, Inbound, InAll);
}

/// Within the pod mangle marks what the proxy sends, by user or by group, and takes it inbound by the rules for ports.
#[test]
fn tproxy_on_lo() {
    let s = Setup { tproxy: true, ..Setup::sidecar() };
    leaves(&s, &to(APP, APP, "10.96.0.10:80"), Outbound, OutAll);
    leaves(&s, &to(APP, APP, "10.77.0.2:80"), Pass, OutNotProxyUidLoopback);
    leaves(&s, &to(PROXY, PROXY, "10.96.0.10:80"), Pass, OutProxyUid);
    leaves(&s, &to(PROXY, PROXY, "10.77.0.2:8080"), Inbound, OutProxyUidLoopback);
    leaves(&s, &to(0, PROXY, "10.77.0.2:8080"), Inbound, OutTproxyLoopback);
    leaves(&s, &to(0, PROXY, "10.77.0.2:15020"), Pass, OutNotProxyUidLoopback);
    leaves(&s, &to(PROXY, PROXY, "10.77.0.2:15008"), Inbound, OutTproxyLoopback);
    leaves(&s, &to(PROXY, PROXY, "127.0.0.1:15008"), Pass, OutProxyUid);
    let passthrough = from(to(PROXY, PROXY, "10.77.0.2:8080"), "127.0.0.6");
    leaves(&s, &passthrough, Pass, OutPassthroughSource);
    // The proxy's connection that carries its client's address.
    leaves(&s, &Packet { mark: MARK, ..to(0, PROXY, "10.77.0.2:8080") }, Pass, OutNotProxyUidLoopback);
    let excluded = Setup { exclude_interfaces: vec![1], ..s };
    leaves(&excluded, &to(PROXY, PROXY, "10.77.0.2:8080"), Pass, OutExcludedInterface);
}

/// With REDIRECT and a list the tunnel port is not captured even if it is listed.
#[test]
fn listed_ports() {
    let s = Setup { in_ports: Choice::Only(vec![80, 15008]), ..Setup::sidecar() };
    arrives(&s, "10.77.0.2:80", 2, Inbound, InListed);
    arrives(&s, "10.77.0.2:15008", 2, Pass, InTunnel);
    arrives(&s, "10.77.0.2:443", 2, Pass, InDefault);
    let none = Setup { in_ports: Choice::Only(Vec::new()), ..Setup::sidecar() };
    arrives(&none, "10.77.0.2:15008", 2, Pass, InDefault);
}

/// Only the first user has a rule for its calls on lo: its "others pass" rule takes those of the second.
#[test]
fn a_second_user_passes_on_lo() {
    let s = Setup { uids: vec![PROXY, 42], ..Setup::sidecar() };
    leaves(&s, &to(42, 0, "10.77.0.2:80"), Pass, OutNotProxyUidLoopback);
    leaves(&s, &to(42, 0, "10.96.0.10:80"), Pass, OutProxyUid);
    let loopback = Choice::Only(vec![Net::of("127.0.0.0/8")]);
    let s = Setup { include_cidrs: loopback, ..s };
    leaves(&s, &to(42, 0, "10.77.0.2:80"), Inbound, OutProxyUidLoopback);
    leaves(&s, &to(APP, APP, "127.0.0.2:80"), Outbound, OutIncludedCidr);
    leaves(&s, &to(APP, APP, "127.0.0.1:80"), Pass, OutLoopback);
}

/// Without any user (`-u ,`) there are no rules of users, so none lets traffic on lo pass.
#[test]
fn without_users_nothing_passes_for_them() {
    let s = Setup { uids: Vec::new(), gids: Vec::new(), ..Setup::sidecar() };
    leaves(&s, &to(APP, APP, "10.77.0.2:80"), Outbound, OutAll);
    leaves(&s, &to(APP, APP, "127.0.0.1:80"), Pass, OutLoopback);
    let nobody = Packet { uid: None, gid: None, ..to(APP, APP, "10.77.0.2:80") };
    leaves(&s, &nobody, Outbound, OutAll);
    let by_group = Setup { uids: Vec::new(), ..Setup::sidecar() };
    leaves(&by_group, &to(APP, PROXY, "10.77.0.2:80"), Inbound, OutProxyGidLoopback);
    leaves(&by_group, &to(APP, APP, "10.77.0.2:80"), Pass, OutNotProxyGidLoopback);
}

/// A server on loopback is captured for the app, not for the proxy, UDP and TCP.
#[test]
fn dns_on_loopback() {
    let s = Setup { dns: Dns::Servers(vec![Net::host("127.0.0.53")]), ..Setup::sidecar() };
    for tcp in [true, false] {
        leaves(&s, &Packet { tcp, ..to(APP, APP, "127.0.0.53:53") }, Verdict::Dns, OutDns);
        leaves(&s, &Packet { tcp, ..to(PROXY, PROXY, "127.0.0.53:53") }, Pass, OutProxyUid);
    }
    leaves(&s, &to(APP, APP, "10.96.0.10:53"), Outbound, OutAll);
}
