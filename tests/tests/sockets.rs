//! Ways to connect beside real iptables: non-blocking, Fast Open, io_uring, MPTCP, sockets used again, users switched.

use std::net::{Ipv4Addr, SocketAddr};

use redirector_tests::harness::pair::matrix::CALLERS;
use redirector_tests::harness::parity::addresses::dns_listeners;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::scenario::{How, SocketOption, Udp};
use redirector_tests::harness::server::{any4, any6};

/// Destinations of every kind of verdict and error.
fn destinations(pod: &Pod) -> Vec<Scenario> {
    let ip = |a, b, c, d| Ipv4Addr::new(a, b, c, d);
    let mut scenarios: Vec<Scenario> = [
        SERVICE,
        at(VIP4, UNSERVED),
        at(VIP6, SERVED),
        at(VIP6, UNSERVED),
        at(pod.v4(), SERVED),
        at(pod.v4(), UNSERVED),
        at(pod.v6(), SERVED),
        at(Ipv4Addr::LOCALHOST, SERVED),
        at(Ipv4Addr::LOCALHOST, UNSERVED),
        at(ip(127, 0, 0, 2), SERVED),
        at(ip(10, 98, 0, 1), SERVED),
        at(ip(10, 99, 0, 1), SERVED),
        at(ip(224, 0, 0, 1), SERVED),
    ]
    .into_iter()
    .map(Scenario::to)
    .collect();
    scenarios.push(Scenario::new("to mapped vip", Family::Mapped, SERVICE));
    scenarios.push(Scenario::new("to mapped self", Family::Mapped, at(pod.v4(), SERVED)));
    scenarios
}

/// Every caller does to every destination what `change` makes of it.
fn parts(pod: &Pod, change: impl Fn(Scenario) -> Scenario) -> Vec<Part> {
    let named = |caller: &str, scenario: Scenario| {
        let name = format!("{caller} {}", scenario.name);
        change(scenario.named(name))
    };
    let of = |caller| destinations(pod).into_iter().map(|scenario| named(caller, scenario)).collect();
    CALLERS.iter().map(|(caller, owner)| Part::of(*owner, of(caller))).collect()
}

/// Nothing is proven by two worlds in which a way to connect does not exist.
fn assert_captured(seen: &[Observation], scenario: &str) {
    let Some(observation) = seen.iter().find(|seen| seen.scenario == scenario) else {
        panic!("no {scenario}")
    };
    assert!(observation.summary().starts_with("proxy:15001"), "{observation:#?}");
}

fn check(how: How) -> anyhow::Result<()> {
    require_root!();
    let pair = Pair::of_sidecars(&Setup::default())?;
    let seen = pair.check(&parts(pair.reference.pod(), |scenario| scenario.by(how)))?;
    assert_captured(&seen, "app to 10.96.0.10:8080");
    Ok(())
}

#[test]
fn nonblocking() -> anyhow::Result<()> {
    check(How::Nonblocking)
}

#[test]
fn io_uring() -> anyhow::Result<()> {
    check(How::IoUring)
}

/// Twice, because only the second connection to a destination has the cookie that lets data travel with the SYN.
fn check_fast_open(how: How) -> anyhow::Result<()> {
    require_root!();
    let mut proxy = proxy_listeners(1);
    proxy.iter_mut().for_each(|listen| listen.fast_open = true);
    let pair = Pair::of_sidecars(&Setup { proxy, ..Setup::default() })?;
    for fixture in [&pair.reference, &pair.subject] {
        fixture.pod().netns.sysctl(&[("ipv4/tcp_fastopen", "3")])?;
        fixture.world.client.sysctl(&[("ipv4/tcp_fastopen", "3")])?;
    }
    for time in ["first time", "second time"] {
        let seen = pair.check(&parts(pair.reference.pod(), |scenario| {
            let name = format!("{time} {}", scenario.name);
            scenario.by(how).named(name)
        }))?;
        assert_captured(&seen, &format!("{time} app to 10.96.0.10:8080"));
    }
    Ok(())
}

#[test]
fn fast_open_by_sendto() -> anyhow::Result<()> {
    check_fast_open(How::FastOpenSend)
}

/// A socket for IPv6 alone is refused IPv4-mapped destinations by the kernel, whatever becomes of the connection.
#[test]
fn ipv6_alone() -> anyhow::Result<()> {
    require_root!();
    let pair = Pair::of_sidecars(&Setup::default())?;
    let v6only = SocketOption { level: libc::SOL_IPV6, name: libc::IPV6_V6ONLY, value: vec![1, 0, 0, 0] };
    let seen = pair.check(&parts(pair.reference.pod(), |mut scenario| {
        scenario.option = (scenario.family != Family::V4).then(|| v6only.clone());
        scenario
    }))?;
    let mapped = seen.iter().find(|seen| seen.scenario == "app to mapped vip");
    assert_eq!(mapped.map(Observation::summary).as_deref(), Some("ENETUNREACH"));
    Ok(())
}

#[test]
fn fast_open_by_option() -> anyhow::Result<()> {
    check_fast_open(How::FastOpenConnect)
}

fn check_mptcp(listener: bool) -> anyhow::Result<()> {
    require_root!();
    if !kernel::has_mptcp() {
        println!("note: this kernel has no MPTCP, so nobody can connect with it");
        return Ok(());
    }
    let mut proxy = proxy_listeners(1);
    proxy.iter_mut().for_each(|listen| listen.mptcp = listener);
    let pair = Pair::of_sidecars(&Setup { proxy, ..Setup::default() })?;
    let seen = pair.check(&parts(pair.reference.pod(), |mut scenario| {
        scenario.mptcp = true;
        scenario
    }))?;
    assert_captured(&seen, "app to 10.96.0.10:8080");
    Ok(())
}

/// The proxy knows no MPTCP: connections fall back.
#[test]
fn mptcp_to_a_tcp_proxy() -> anyhow::Result<()> {
    check_mptcp(false)
}

/// The proxy listens with MPTCP, as Go programs do.
#[test]
fn mptcp_to_an_mptcp_proxy() -> anyhow::Result<()> {
    check_mptcp(true)
}

/// Sockets that were used before: after failures of each kind, after `connect(AF_UNSPEC)`, and while connected.
#[test]
fn used_again() -> anyhow::Result<()> {
    require_root!();
    let pod = PodOptions { second_interface: true, ..PodOptions::default() };
    let pair = Pair::of_sidecars(&Setup { pod, ..Setup::default() })?;
    let seen = pair.check(&again(pair.reference.pod()))?;
    assert!(seen.iter().any(|seen| seen.connect.as_deref() == Some("EISCONN")));
    Ok(())
}

/// The same without a proxy: captured connections are refused, and the sockets are used again.
#[test]
fn used_again_after_refusal() -> anyhow::Result<()> {
    require_root!();
    let pod = PodOptions { second_interface: true, ..PodOptions::default() };
    let pair = Pair::of_sidecars(&Setup { pod, proxy: Vec::new(), ..Setup::default() })?;
    pair.check(&again(pair.reference.pod()))?;
    Ok(())
}

/// All ordered pairs of destinations, with and without disconnecting in between, bound and unbound.
fn again(pod: &Pod) -> Vec<Part> {
    let destinations: [(&str, SocketAddr); 8] = [
        ("vip", SERVICE),
        ("second-network", at(SECOND4, SERVED)),
        ("self", at(pod.v4(), SERVED)),
        ("self-unserved", at(pod.v4(), UNSERVED)),
        ("localhost", at(Ipv4Addr::LOCALHOST, SERVED)),
        ("localhost-unserved", at(Ipv4Addr::LOCALHOST, UNSERVED)),
        ("127.0.0.2", at(Ipv4Addr::new(127, 0, 0, 2), SERVED)),
        ("prohibited", at(Ipv4Addr::new(10, 99, 0, 1), SERVED)),
    ];
    let mut port = 20000;
    let mut part = |caller: &str, owner| {
        // A socket that meant IPv6 and then IPv4, as a program does that has only one.
        let mut scenarios = Vec::new();
        for to in [at(VIP6, SERVED), at(VIP6, UNSERVED), at(pod.v6(), SERVED)] {
            for disconnect in [false, true] {
                let name = format!("{caller} to {to} then (disconnect: {disconnect}) to mapped vip");
                scenarios.push(Scenario::new(name, Family::Mapped, SERVICE).after(to, disconnect));
            }
        }
        for family in [Family::V4, Family::Mapped] {
            for (first, before) in destinations {
                for (second, after) in destinations {
                    for disconnect in [false, true] {
                        let word = if disconnect { "then, disconnected," } else { "then" };
                        let name = format!("{family:?} {caller} to {first} {word} to {second}");
                        let scenario = Scenario::new(name.clone(), family, after).after(before, disconnect);
                        let bound = scenario.clone().bound(at(Ipv4Addr::UNSPECIFIED, port));
                        port += 1;
                        scenarios.push(bound.named(format!("{name} from a port")));
                        scenarios.push(scenario);
                    }
                }
            }
        }
        Part::of(owner, scenarios)
    };
    vec![part("app", APP), part("proxy", PROXY)]
}

/// The owner of a socket is who created it, whoever connects it.
#[test]
fn user_switched_after_creation() -> anyhow::Result<()> {
    require_root!();
    let pair = Pair::of_sidecars(&Setup::default())?;
    let mut scenarios = Vec::new();
    for (creator, created_by) in CALLERS {
        for (user, connected_by) in CALLERS {
            for scenario in destinations(pair.reference.pod()) {
                let name = format!("created by {creator}, connected by {user}, {}", scenario.name);
                scenarios.push(Scenario {
                    created_by: Some(created_by),
                    connected_by: Some(connected_by),
                    ..scenario.named(name)
                });
            }
        }
    }
    let seen = pair.check(&[Part::of(ROOT, scenarios)])?;
    assert_captured(&seen, "created by app, connected by proxy, to 10.96.0.10:8080");
    Ok(())
}

/// Lives through a sequence in a pod without a proxy, whose part it takes itself: the same is seen under iptables.
fn compare(sequence: &str, to: SocketAddr, options: &Options) -> anyhow::Result<Vec<String>> {
    let setup = Setup { proxy: Vec::new(), ..Setup::default() };
    let told = |by| -> anyhow::Result<String> {
        let fixture = Fixture::with(by, &setup)?;
        run(&mut fixture.pod().place(APP)?.probe(&["sequence", sequence, &to.to_string()]), "\n")
    };
    let expected = told(Redirection::Iptables(options.clone()))?;
    assert_eq!(told(Redirection::with(options))?, expected, "{sequence} to {to}, redirector and iptables");
    Ok(expected.lines().map(str::to_owned).collect())
}

/// What the names and the original destination are when a connection has ended in this way or that, and when a socket becomes
/// something else.
#[test]
fn ends_of_connections() -> anyhow::Result<()> {
    require_root!();
    for to in [SERVICE, at(VIP6, SERVED)] {
        for sequence in
            ["reset", "ended", "refused", "reset-by-client", "client-first", "client-listens", "same-twice"]
        {
            let seen = compare(sequence, to, &Options::sidecar())?;
            assert!(!seen.is_empty());
            if sequence == "reset-by-client" {
                assert!(seen[0].contains(&to.to_string()), "{seen:?}");
            }
            assert!(sequence != "client-first" || seen == ["the proxy's socket is gone: true"], "{seen:?}");
        }
    }
    Ok(())
}

/// A listener on the proxy's port of another loopback address, older than the proxy's, gets nothing.
#[test]
fn neighbours_of_the_proxy() -> anyhow::Result<()> {
    require_root!();
    let seen = compare("neighbours", SERVICE, &Options::sidecar())?;
    assert_eq!(seen, ["ok; the proxy got it: true; others got it: 0"]);
    Ok(())
}

/// A UDP socket that is connected to one DNS server asks another: its peer stays.
#[test]
fn asked_elsewhere() -> anyhow::Result<()> {
    require_root!();
    let options = Options { redirect_dns: true, capture_all_dns: true, ..Options::sidecar() };
    let seen = compare("asked-elsewhere", at(VIP4, 53), &options)?;
    assert_eq!(seen.last().map(String::as_str), Some("peer 10.96.0.10:53"), "{seen:?}");
    Ok(())
}

/// A query from 127.0.0.1 to a server outside is refused by routing, before anybody redirects it.
#[test]
fn query_from_loopback() -> anyhow::Result<()> {
    require_root!();
    let options = Options { redirect_dns: true, capture_all_dns: true, ..Options::sidecar() };
    let mut setup = Setup::default();
    setup.proxy.extend(dns_listeners());
    let pair = Pair::with(options, &setup)?;
    let from = |address: Ipv4Addr, udp| {
        let query = Scenario::to(at(VIP4, 53)).named(format!("{udp:?} from {address}"));
        Scenario { udp: Some(udp), ..query.bound(at(address, 0)) }
    };
    let addresses = [Ipv4Addr::LOCALHOST, pair.reference.pod().v4()];
    let scenarios =
        addresses.into_iter().flat_map(|address| [Udp::Connect, Udp::SendTo].map(|udp| from(address, udp)));
    let seen = pair.check(&[Part::of(APP, scenarios.collect())])?;
    assert_eq!(seen[0].connect.as_deref(), Some("EINVAL"), "{seen:#?}");
    Ok(())
}

/// A socket that is bound to the proxy's port is not redirected to itself.
#[test]
fn a_socket_with_the_proxys_port() -> anyhow::Result<()> {
    require_root!();
    for by in [Redirection::iptables(), Redirection::redirector()] {
        let label = by.label();
        let refused = if label == "iptables" { "ECONNREFUSED" } else { kernel::refusal("ECONNREFUSED") };
        let fixture = Fixture::with(by, &Setup { proxy: Vec::new(), ..Setup::default() })?;
        let scenarios = [
            Scenario::to(SERVICE).bound(any4(OUTBOUND)),
            Scenario::to(at(VIP6, SERVED)).bound(any6(OUTBOUND)),
        ];
        for seen in fixture.pod().observe(APP, &scenarios)? {
            assert_eq!(seen.summary(), refused, "{label}: {seen:#?}");
        }
    }
    Ok(())
}
