//! The oracle itself: what real iptables with the sidecar's rules are known to do.
//!
//! Everything else is measured against these rules, so first it is made sure that they were written down and loaded
//! right, and that the probes see what is there. No product takes part.

use std::collections::BTreeMap;

use redirector_tests::harness::oracle::options::Tproxy;
use redirector_tests::harness::pair::matrix;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::scenario::Udp;
use redirector_tests::harness::world::TRANSPARENT_PROXY;

/// What must have become of the scenarios named `"<family> <caller> to <destination> from <binding>"`.
struct Expect<'a> {
    seen: &'a BTreeMap<String, Observation>,
}

impl Expect<'_> {
    /// Checks the summary for all the families, callers, destinations and bindings given; `{to}` in the expectation is
    /// the destination's address in the form of the family.
    fn all(&self, families: &str, callers: &str, destinations: &str, bindings: &str, expected: &str) {
        for family in families.split(' ') {
            for caller in callers.split(' ') {
                for destination in destinations.split(' ') {
                    for binding in bindings.split(' ') {
                        self.one(&format!("{family} {caller} to {destination} from {binding}"), expected);
                    }
                }
            }
        }
    }

    fn one(&self, name: &str, expected: &str) {
        let Some(observation) = self.seen.get(name) else { panic!("no scenario is named {name}") };
        assert_eq!(observation.summary(), expected, "{name}: {observation:#?}");
    }
}

const ALL: &str = "v4 mapped v6";
const V4: &str = "v4 mapped";
const OTHERS: &str = "app root";
const PROXIES: &str = "proxy proxy-uid proxy-gid";

#[test]
fn the_well_known_outcomes() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Redirection::iptables())?;
    let observations = fixture.observe_all(&matrix::outbound(fixture.pod()))?;
    let seen: BTreeMap<String, Observation> =
        observations.into_iter().map(|observation| (observation.scenario.clone(), observation)).collect();
    let expect = Expect { seen: &seen };

    // Connections out of the pod go to the proxy...
    let unbound = "anywhere any:0 self any:port self:port";
    expect.all(V4, OTHERS, "vip", unbound, "proxy:15001 original 10.96.0.10:8080");
    expect.all("v6", OTHERS, "vip", unbound, "proxy:15001 original [fd00:96::10]:8080");
    expect.all(V4, OTHERS, "vip-unserved", unbound, "proxy:15001 original 10.96.0.10:81");
    expect.all(V4, OTHERS, "vip-ssh", unbound, "proxy:15001 original 10.96.0.10:22");
    expect.all(V4, OTHERS, "vip-15020", unbound, "proxy:15001 original 10.96.0.10:15020");
    // A link-local destination pins the socket to its interface, and the answer from ::1 comes from another: a hole in
    // the original, seen as a handshake that is never answered.
    expect.all("v6", OTHERS, "link-local", "anywhere", "EINPROGRESS");
    expect.all("v6", PROXIES, "link-local", "anywhere", "remote:8080");
    // ... except the proxy's own, by user or by group.
    expect.all(ALL, PROXIES, "vip", unbound, "remote:8080");
    expect.all(ALL, PROXIES, "vip-unserved", unbound, "ECONNREFUSED");

    // Within the pod the app is left alone; the proxy (by user, not by group) is sent to its inbound port, except from
    // or to the addresses by which it reaches the application itself, and for the tunnel's port.
    expect.all(ALL, OTHERS, "self", "anywhere self localhost passthrough any:port", "app:8080");
    expect.all(
        V4,
        "proxy proxy-uid",
        "self",
        "anywhere self localhost",
        "proxy:15006 original 10.77.0.2:8080",
    );
    expect.all("v6", "proxy proxy-uid", "self", "anywhere self", "proxy:15006 original [fd00:77::2]:8080");
    expect.all(ALL, PROXIES, "self", "passthrough", "app:8080");
    expect.all(ALL, "proxy-gid", "self", "anywhere", "app:8080");
    expect.all(ALL, PROXIES, "self-15008", "anywhere", "app:15008");
    expect.all(V4, PROXIES, "127.0.0.1 0.0.0.0", "anywhere localhost", "app:8080");
    expect.all("v6", PROXIES, "::1 ::", "anywhere localhost", "app:8080");
    expect.all(V4, OTHERS, "127.0.0.2 127.0.0.6", "anywhere localhost", "app:8080");
    expect.all(V4, "proxy proxy-uid", "127.0.0.2", "anywhere", "proxy:15006 original 127.0.0.2:8080");
    // The connection by which istio-validation checks the rules.
    expect.all(V4, "proxy proxy-uid", "127.0.0.6-15002", "localhost", "proxy:15006 original 127.0.0.6:15002");
    expect.all("v6", "proxy proxy-uid", "::6-15002", "localhost", "proxy:15006 original [::6]:15002");

    expect_errors_of_routing(&expect);
    Ok(())
}

/// Routing comes before NAT: what has no route fails as without rules.
fn expect_errors_of_routing(expect: &Expect<'_>) {
    for (destination, errno) in [
        ("unreachable", "EHOSTUNREACH"),
        ("prohibited", "EACCES"),
        ("blackhole", "EINVAL"),
        ("thrown", "ENETUNREACH"),
        ("multicast", "ENETUNREACH"),
        ("broadcast", "ENETUNREACH"),
        ("all-ones", "ENETUNREACH"),
        ("127.255.255.255", "ENETUNREACH"),
    ] {
        expect.all(V4, "app proxy", destination, "anywhere", errno);
    }
    for (destination, errno) in [
        ("unreachable", "EHOSTUNREACH"),
        ("prohibited", "EACCES"),
        ("blackhole", "EINVAL"),
        ("multicast", "ENETUNREACH"),
        ("link-local-unscoped", "EINVAL"),
    ] {
        expect.all("v6", "app proxy", destination, "anywhere", errno);
    }
    // A loopback source and a destination elsewhere: refused by IPv4 routing, redirected in IPv6.
    expect.all(V4, OTHERS, "vip", "localhost localhost:port passthrough", "EINVAL");
    expect.all(
        "v6",
        OTHERS,
        "vip",
        "localhost localhost:port passthrough",
        "proxy:15001 original [fd00:96::10]:8080",
    );
}

#[test]
fn every_end_sees_the_same_connection() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Redirection::iptables())?;
    let observations = fixture.observe_all(&share::parts(matrix::outbound(fixture.pod())))?;
    let mut redirected = 0;
    for observation in &observations {
        let Some(reached) = observation.reached.as_ref().filter(|reached| reached.role == "proxy") else {
            continue;
        };
        // Towards port 0 getpeername() says that there is no peer.
        if observation.peer.as_ref().is_some_and(|peer| peer.address().is_none()) {
            assert!(observation.scenario.contains("port-0"), "{observation:#?}");
            continue;
        }
        redirected += 1;
        let name = &observation.scenario;
        assert_eq!(reached.accept_peer, reached.peer, "{name}");
        let (Some(local), Some(seen)) =
            (observation.local.as_ref().and_then(|seen| seen.address()), reached.peer.address())
        else {
            panic!("{observation:#?}");
        };
        // netfilter may give it another source port.
        assert_eq!(local.ip().to_canonical(), seen.ip().to_canonical(), "{name}");
    }
    assert!(redirected > share::times(500, 1), "{redirected}");
    Ok(())
}

#[test]
fn inbound_from_the_network() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Redirection::iptables())?;
    let seen: BTreeMap<String, Observation> = fixture
        .observe_all(&[matrix::inbound(fixture.pod())])?
        .into_iter()
        .map(|observation| (observation.scenario.clone(), observation))
        .collect();
    let expect = Expect { seen: &seen };
    for (family, address) in [("v4", "10.77.0.2"), ("mapped", "10.77.0.2"), ("v6", "[fd00:77::2]")] {
        for port in [8080, 81, 22, 15000, 15001, 15002, 15006] {
            let expected = format!("proxy:15006 original {address}:{port}");
            expect.one(&format!("{family} inbound to {port}"), &expected);
        }
        for port in matrix::SIDECAR_PORTS {
            expect.one(&format!("{family} inbound to {port}"), &format!("app:{port}"));
        }
    }
    Ok(())
}

/// The comparison can succeed: the oracle agrees with itself.
#[test]
fn two_oracles_agree() -> anyhow::Result<()> {
    require_root!();
    let pair = Pair::new(Options::sidecar(), Redirection::iptables(), &Setup::default())?;
    pair.check(&matrix::all(pair.reference.pod())).map(drop)
}

/// Istio's native nftables rules do the same, as a sidecar and in TPROXY mode.
#[test]
fn nft_agrees_with_iptables() -> anyhow::Result<()> {
    require_root!("nft");
    for tproxy in [None, Some(Tproxy::default())] {
        let options = Options { tproxy, ..Options::sidecar() };
        // TPROXY takes a transparent listener; without one nft's statement lets packets through.
        let mut setup = Setup { proxy_owner: TRANSPARENT_PROXY, ..Setup::default() };
        setup.proxy.iter_mut().for_each(|listen| listen.transparent = tproxy.is_some());
        let pair = Pair::new(options.clone(), Redirection::Nft(options), &setup)?;
        pair.check(&matrix::all(pair.reference.pod()))?;
    }
    Ok(())
}

/// A query is met with silence while the proxy's DNS server does not listen, because ICMP errors are in no conntrack zone:
/// the resolver asks again later. Without the raw table the query would be refused at once.
#[test]
fn a_query_before_the_dns_server_listens() -> anyhow::Result<()> {
    require_root!("nft");
    let options = Options { redirect_dns: true, capture_all_dns: true, ..Options::sidecar() };
    let query = Scenario { udp: Some(Udp::Connect), ..Scenario::to(at(VIP4, 53)) };
    for redirection in [Redirection::Iptables(options.clone()), Redirection::Nft(options)] {
        let fixture = Fixture::new(redirection)?;
        let observed = fixture.pod().observe(APP, std::slice::from_ref(&query))?;
        assert_eq!(observed[0].greeting.as_deref(), Some("EAGAIN"), "{observed:#?}");
    }
    Ok(())
}

/// The comparison can fail: a small mistake in the rules is found, and nothing else.
#[test]
fn a_planted_mistake_is_found() -> anyhow::Result<()> {
    require_root!();
    let pair = Pair::new(Options::sidecar(), Redirection::iptables(), &Setup::default())?;
    oracle::insert(&pair.subject.pod().netns, "ISTIO_OUTPUT -p tcp -d 10.96.0.10 --dport 22 -j RETURN")?;
    let parts =
        share::parts_with(matrix::outbound(pair.reference.pod()), |one| one.name.contains("to vip-ssh"));
    let (_, differences) = pair.run(&parts)?;
    assert!(!differences.is_empty());
    for difference in &differences {
        assert!(difference.scenario.contains("to vip-ssh"), "{difference:?}");
        assert!(!difference.scenario.contains(" proxy"), "{difference:?}");
    }
    assert!(
        differences.iter().any(|row| row.field == "connect" && row.right == "ECONNREFUSED"),
        "{differences:?}"
    );
    Ok(())
}
