//! Explanations of known connections, and that nothing makes one fail.

use std::net::SocketAddr;

use proptest::prelude::*;
use redirector_common::rule::Outcome;

use super::report::PASS;
use super::{Arriving, Explanation, Offline, Outgoing, incoming, outgoing};
use crate::policy::{Dns, Policy};
use crate::rules::Protocol;
use crate::rules::tests::policy;

const LOCAL: [&str; 2] = ["10.77.0.2", "fd00:77::2"];

fn local() -> Vec<std::net::IpAddr> {
    LOCAL.map(|ip| ip.parse().expect("address")).to_vec()
}

fn to(text: &str) -> Outgoing {
    let to: SocketAddr = text.parse().expect("destination");
    Outgoing { protocol: Protocol::Tcp, uid: None, gid: None, proxy: false, source: None, to }
}

fn ask(policy: &Policy, query: &Outgoing) -> Explanation {
    outgoing(policy, &Offline::new(policy, &local(), &[]), query)
}

#[track_caller]
fn check(explanation: &Explanation, verdict: &str, rule: &str, iptables: &str) {
    let found = (explanation.verdict.name(), explanation.rule, explanation.iptables.as_deref());
    assert_eq!(found, (verdict, Some(rule), Some(iptables)), "{explanation:#?}");
}

#[test]
fn of_the_sidecar_default() {
    let policy = Policy::default();
    let vip = ask(&policy, &to("10.96.0.10:80"));
    check(&vip, "outbound", "out_all", "-A ISTIO_OUTPUT -j ISTIO_REDIRECT");
    assert_eq!(vip.proxy, Some("127.0.0.1:15001".parse().expect("address")));
    let own = ask(&policy, &to("10.77.0.2:80"));
    let text = "-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN";
    check(&own, "pass", "out_not_proxy_uid_loopback", text);
    let udp = Outgoing { protocol: Protocol::Udp, ..to("10.96.0.10:53") };
    check(&ask(&policy, &udp), "pass", "out_default", "-P OUTPUT ACCEPT");
    let v6 = Outgoing { uid: Some(1337), ..to("[fd00:77::2]:80") };
    let text = "-A ISTIO_OUTPUT ! -d ::1/128 -o lo -p tcp -m tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT";
    let v6 = ask(&policy, &v6);
    check(&v6, "inbound", "out_proxy_uid_loopback", text);
    assert_eq!(v6.proxy, Some("[::1]:15006".parse().expect("address")));
}

#[test]
fn of_the_validation() {
    let source = "127.0.0.1".parse().ok();
    let query = Outgoing { uid: Some(1337), source, ..to("127.0.0.6:15002") };
    let text = "-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp -m tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT";
    check(&ask(&Policy::default(), &query), "inbound", "out_proxy_uid_loopback", text);
}

#[test]
fn unspecified_means_what_connect_makes_of_it() {
    let policy = Policy::default();
    let to = |text: &str, source: Option<&str>| {
        let source = source.map(|ip| ip.parse().expect("address"));
        ask(&policy, &Outgoing { source, ..to(text) }).destination.to_string()
    };
    assert_eq!(to("0.0.0.0:80", None), "127.0.0.1:80");
    assert_eq!(to("0.0.0.0:80", Some("10.77.0.2")), "10.77.0.2:80");
    assert_eq!(to("0.0.0.0:80", Some("0.0.0.0")), "127.0.0.1:80");
    assert_eq!(to("[::]:80", None), "[::1]:80");
    assert_eq!(to("[::]:80", Some("10.77.0.2")), "127.0.0.1:80");
    assert_eq!(to("[::ffff:0.0.0.0]:80", None), "127.0.0.1:80");
    assert_eq!(to("[::ffff:10.96.0.10]:80", None), "10.96.0.10:80");
}

#[test]
fn the_rule_is_the_one_that_matches() {
    let policy = Policy {
        outbound_exclude_cidrs: ["10.1.0.0/16", "10.2.0.0/16"]
            .map(|net| net.parse().expect("network"))
            .to_vec(),
        inbound_exclude_ports: vec![15020, 15090],
        dns: Dns::Servers(vec!["10.96.0.10".parse().expect("address")]),
        ..Policy::default()
    };
    let excluded = ask(&policy, &to("10.2.3.4:80"));
    check(&excluded, "pass", "out_excluded_cidr", "-A ISTIO_OUTPUT -d 10.2.0.0/16 -j RETURN");
    let query = Outgoing { protocol: Protocol::Udp, ..to("10.96.0.10:53") };
    let text = "-A ISTIO_OUTPUT -d 10.96.0.10/32 -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053";
    check(&ask(&policy, &query), "dns", "out_dns", text);
    let offline = Offline::new(&policy, &[], &["eth0"]);
    let arriving = |text: &str| {
        let to = text.parse().expect("destination");
        incoming(&policy, &offline, &Arriving { protocol: Protocol::Tcp, to, interface: Some("eth0".into()) })
    };
    let text = "-A ISTIO_INBOUND -p tcp -m tcp --dport 15090 -j RETURN";
    check(&arriving("10.77.0.2:15090"), "pass", "in_excluded_port", text);
    let captured = arriving("10.77.0.2:80");
    check(&captured, "inbound", "in_all", "-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT");
    assert_eq!((captured.proxy, captured.port), (None, Some(15006)));
    assert_eq!(arriving("127.0.0.1:80").rule, None);
}

/// As in the kernel: a loopback source does not leave the pod, whatever the rules say.
#[test]
fn routing_comes_first() {
    let policy = Policy::default();
    let query = Outgoing { source: "127.0.0.1".parse().ok(), ..to("10.96.0.10:80") };
    let refused = ask(&policy, &query);
    assert_eq!(
        (refused.verdict, refused.rule, refused.port),
        (Outcome::Refused, Some("refused_by_route"), None)
    );
    let passes = ask(&policy, &Outgoing { uid: Some(1337), ..query });
    assert_eq!((passes.verdict, passes.notes.len()), (PASS, 1));
    assert_eq!(ask(&policy, &to("[fe80::1]:80")).verdict, Outcome::Refused);
}

#[test]
fn ipv6_off() {
    let policy = Policy { ipv6: false, ..Policy::default() };
    let query = to("[2001:db8::1]:80");
    assert_eq!((ask(&policy, &query).verdict, ask(&policy, &query).rule), (PASS, None));
}

/// Annotations of 256 KiB name tens of thousands; what takes steps for each pair of them takes minutes.
#[test]
fn long_lists_take_no_longer_for_each_item() {
    let exclude_interfaces = (0..40_000).map(|n| format!("e{n}")).collect();
    let policy =
        Policy { exclude_interfaces, outbound_exclude_ports: (1..=u16::MAX).collect(), ..Policy::default() };
    let begin = std::time::Instant::now();
    assert_eq!(ask(&policy, &to("1.2.3.4:80")).verdict, PASS);
    assert!(!crate::rules::Rules::of(&policy).listing(|_| 0).is_empty());
    assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every verdict has its rule, and the rule its text.
    #[test]
    fn every_decision_has_a_text(policy in policy(), ip: std::net::IpAddr, port: u16, tcp: bool, own: bool, uid in 0..4_u32) {
        let to = SocketAddr::new(if own { local()[0] } else { ip }, port);
        let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
        let query = Outgoing { protocol, uid: Some(uid), gid: None, proxy: false, source: None, to };
        let explanation = ask(&policy, &query);
        prop_assert!(explanation.iptables.is_some() || explanation.verdict == Outcome::Refused, "{:?}", explanation);
        let offline = Offline::new(&policy, &local(), &[]);
        let arriving = incoming(&policy, &offline, &Arriving { protocol, to, interface: None });
        prop_assert_eq!(arriving.iptables.is_some(), arriving.rule.is_some());
    }
}
