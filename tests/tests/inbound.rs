//! Inbound capture while the proxy's listeners come and go. Each property is shown to hold with real iptables, too.

use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::ops::RangeInclusive;
use std::process::Command;

use anyhow::ensure;
use redirector_tests::harness::pair::fixture::under_each;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::serve::Listen;
use redirector_tests::harness::server::any4;
use redirector_tests::harness::server::any6;

/// Connections made to see where inbound connections go: enough to meet every socket of a small group.
const TRIES: usize = 32;

/// Connects from outside to the application's port by both families; gives what became of it.
fn knock(fixture: &Fixture) -> anyhow::Result<Vec<String>> {
    let pod = fixture.pod();
    let scenarios = [Scenario::to(at(pod.v4(), SERVED)), Scenario::to(at(pod.v6(), SERVED))];
    let tries: Vec<Scenario> = (0..TRIES).flat_map(|_| scenarios.clone()).collect();
    let seen = fixture.world.observe_from_outside(&tries)?;
    let mut outcomes: Vec<String> = seen.iter().map(Observation::summary).collect();
    outcomes.sort();
    outcomes.dedup();
    Ok(outcomes)
}

const CAPTURED: [&str; 2] = ["proxy:15006 original 10.77.0.2:8080", "proxy:15006 original [fd00:77::2]:8080"];

/// The proxy's workers share the port; whichever ends, connections go to the others.
#[test]
fn any_member_of_a_group_may_close() -> anyhow::Result<()> {
    const MEMBERS: usize = 4;
    // In the order of opening: 15001 v4 and v6, then 15006 v4 and v6.
    let (first_v4, first_v6) = (2 * MEMBERS, 3 * MEMBERS);
    for order in [[0, 1, 2], [3, 2, 1], [1, 3, 0], [2, 0, 3]] {
        let setup = Setup { proxy: proxy_listeners(MEMBERS), ..Setup::default() };
        under_each(&setup, |fixture| {
            assert_eq!(knock(fixture)?, CAPTURED);
            for member in order {
                let Some(proxy) = &mut fixture.proxy else { unreachable!("the setup has a proxy") };
                proxy.close(first_v4 + member)?;
                proxy.close(first_v6 + member)?;
                assert_eq!(knock(fixture)?, CAPTURED, "after closing {member} in the order {order:?}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// More workers than the registry has room for: whichever end, connections go to those that are left.
#[test]
fn a_group_larger_than_the_registry() -> anyhow::Result<()> {
    const MEMBERS: usize = 40;
    let setup = Setup { proxy: proxy_listeners(MEMBERS), ..Setup::default() };
    under_each(&setup, |fixture| {
        let Some(proxy) = &mut fixture.proxy else { unreachable!("the setup has a proxy") };
        for member in 0..MEMBERS - 1 {
            proxy.close(2 * MEMBERS + member)?;
            proxy.close(3 * MEMBERS + member)?;
        }
        assert_eq!(knock(fixture)?, CAPTURED);
        Ok(())
    })
}

/// A listener for each interface: a connection goes to the one that is bound to its interface, whichever is older.
#[test]
fn a_listener_for_each_interface() -> anyhow::Result<()> {
    let on = |device: &str| {
        [any4(INBOUND), any6(INBOUND)].map(|at| Listen { device: Some(device.to_owned()), ..Listen::on(at) })
    };
    for devices in [["lo", "eth0"], ["eth0", "lo"]] {
        under_each(
            &Setup { proxy: devices.iter().flat_map(|it| on(it)).collect(), ..Setup::default() },
            |fixture| {
                assert_eq!(knock(fixture)?, CAPTURED, "{devices:?}");
                Ok(())
            },
        )?;
    }
    under_each(&Setup { proxy: on("lo").to_vec(), ..Setup::default() }, |fixture| {
        assert_eq!(knock(fixture)?, ["ECONNREFUSED"]);
        Ok(())
    })
}

/// A group is replaced member by member, as when the proxy restarts hot: there is always one, never the same.
#[test]
fn a_group_may_be_replaced() -> anyhow::Result<()> {
    let group = |address, sockets| Listen { sockets, ..Listen::on(address) };
    let setup = Setup { proxy: vec![group(any4(INBOUND), 2), group(any6(INBOUND), 2)], ..Setup::default() };
    under_each(&setup, |fixture| {
        for round in 0..20 {
            let Some(proxy) = &mut fixture.proxy else { unreachable!("the setup has a proxy") };
            proxy.open(group(any4(INBOUND), 2))?;
            proxy.open(group(any6(INBOUND), 2))?;
            for index in 4 * round..4 * round + 4 {
                proxy.close(index)?;
            }
            assert_eq!(knock(fixture)?, CAPTURED, "in round {round}");
        }
        Ok(())
    })
}

/// A proxy that listened before redirection began is used.
#[test]
fn listeners_older_than_the_redirection() -> anyhow::Result<()> {
    under_each(&Setup { proxy_first: true, ..Setup::default() }, |fixture| {
        assert_eq!(knock(fixture)?, CAPTURED);
        Ok(())
    })
}

/// The same for a group: also those of its members are known that were not the first.
#[test]
fn a_group_older_than_the_redirection() -> anyhow::Result<()> {
    let setup = Setup { proxy_first: true, proxy: proxy_listeners(3), ..Setup::default() };
    under_each(&setup, |fixture| {
        assert_eq!(knock(fixture)?, CAPTURED);
        for index in [6, 7, 9, 10] {
            let Some(proxy) = &mut fixture.proxy else { unreachable!("the setup has a proxy") };
            proxy.close(index)?;
            assert_eq!(knock(fixture)?, CAPTURED, "after closing {index}");
        }
        Ok(())
    })
}

/// Without a listener connections are refused and never reach the application, which is the whole point of a mesh.
#[test]
fn refused_while_the_proxy_does_not_listen() -> anyhow::Result<()> {
    under_each(&Setup { proxy: Vec::new(), ..Setup::default() }, |fixture| {
        assert_eq!(knock(fixture)?, ["ECONNREFUSED"]);
        assert_eq!(fixture.app.accepted().len(), 0);
        Ok(())
    })?;
    under_each(&Setup::default(), |fixture| {
        assert_eq!(knock(fixture)?, CAPTURED);
        // The proxy is killed, not asked.
        fixture.proxy = None;
        // The kernel closes the sockets of a process that is gone in its own time.
        retry::until("connections refused", || match knock(fixture) {
            Ok(outcomes) if outcomes == ["ECONNREFUSED"] => Some(Ok(())),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        })??;
        assert_eq!(fixture.app.accepted().len(), 0, "the application was reached");
        fixture.proxy = Some(fixture.pod().serve(
            redirector_tests::harness::world::PROXY,
            "proxy",
            proxy_listeners(1),
        )?);
        assert_eq!(knock(fixture)?, CAPTURED);
        Ok(())
    })
}

/// Each family has its own listener: one without is refused, whatever the other does.
#[test]
fn a_family_without_a_listener_is_refused() -> anyhow::Result<()> {
    under_each(&Setup { proxy: vec![Listen::on(any4(INBOUND))], ..Setup::default() }, |fixture| {
        assert_eq!(knock(fixture)?, ["ECONNREFUSED", CAPTURED[0]]);
        Ok(())
    })?;
    under_each(&Setup { proxy: vec![Listen::on(any6(INBOUND))], ..Setup::default() }, |fixture| {
        assert_eq!(knock(fixture)?, ["ECONNREFUSED", CAPTURED[1]]);
        Ok(())
    })
}

/// One listener on `[::]` serves both families, as many proxies do.
#[test]
fn a_dual_stack_listener_serves_both_families() -> anyhow::Result<()> {
    let listener = Listen { dual_stack: true, ..Listen::on(any6(INBOUND)) };
    under_each(&Setup { proxy: vec![listener], ..Setup::default() }, |fixture| {
        assert_eq!(knock(fixture)?, CAPTURED);
        Ok(())
    })
}

/// A proxy that listens on the pod's own address only.
#[test]
fn a_listener_on_the_pods_address() -> anyhow::Result<()> {
    let v4 = at(std::net::Ipv4Addr::new(10, 77, 0, 2), INBOUND);
    let v6 = at(std::net::Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 2), INBOUND);
    under_each(&Setup { proxy: vec![Listen::on(v4), Listen::on(v6)], ..Setup::default() }, |fixture| {
        assert_eq!(knock(fixture)?, CAPTURED);
        Ok(())
    })
}

/// Somebody else listens on the proxy's port of another address, before the proxy does.
#[test]
fn a_neighbour_on_another_address() -> anyhow::Result<()> {
    let [v4, other] = [2, 3].map(|last| std::net::Ipv4Addr::new(10, 77, 0, last));
    under_each(&Setup { proxy: Vec::new(), ..Setup::default() }, |fixture| {
        let pod = fixture.pod();
        pod.netns.ip(&format!("address add {other}/24 dev eth0"))?;
        let neighbour = pod.serve(APP, "neighbour", vec![Listen::on(at(other, INBOUND))])?;
        let _proxy = pod.serve(PROXY, "proxy", vec![Listen::on(at(v4, INBOUND))])?;
        let seen = fixture.world.observe_from_outside(&[Scenario::to(at(v4, SERVED))])?;
        assert_eq!(seen[0].summary(), CAPTURED[0]);
        assert!(neighbour.accepted().is_empty());
        Ok(())
    })
}

/// A difference that is meant (COMPATIBILITY.md): the proxy's socket has the port that the connection was made to, as with
/// TPROXY. A server that sets SO_REUSEADDR, as servers do, notices nothing.
#[test]
fn the_port_of_a_captured_connection() -> anyhow::Result<()> {
    const PORT: u16 = 9000;
    under_each(&Setup::default(), |fixture| {
        let pod = fixture.pod();
        let _held = Held::start(&fixture.world.outside(), at(pod.v4(), PORT))?;
        let to = at(pod.v4(), PORT).to_string();
        let bound = run(&mut pod.place(APP)?.probe(&["sequence", "bind", &to]), "")?;
        assert_eq!(bound, if fixture.instance.is_some() { "EADDRINUSE\n" } else { "ok\n" });
        let _app = pod.serve(APP, "app", vec![Listen::on(at(pod.v4(), PORT))])?;
        Ok(())
    })
}

/// A host outside uses every port of the pod up (H1): the pod ends its connections first, and each stays in TIME_WAIT.
#[test]
fn a_flood_leaves_ports_to_the_pod() -> anyhow::Result<()> {
    // With 50051 among them, where an application of Istio's may listen later.
    const PORTS: RangeInclusive<u16> = 50_000..=50_999;
    require_root!();
    // The kernel looks for a free port among the even ones first, or among the odd ones.
    let ports = PORTS.step_by(2).chain(PORTS.skip(1).step_by(2));
    for by in [Redirection::iptables(), Redirection::redirector()] {
        let setup = Setup { proxy: everywhere(&[OUTBOUND]), ..Setup::default() };
        let world = World::new()?;
        world.pod().netns.sysctl(&[("ipv4/ip_local_port_range", "50000 50999")])?;
        let fixture = Fixture::in_world(by.clone(), &setup, world)?;
        let pod = fixture.pod();
        let sequence = |owner, what, to: SocketAddr| -> anyhow::Result<Command> {
            Ok(pod.place(owner)?.probe(&["sequence", what, &to.to_string()]))
        };
        let to = pod.v4();
        let proxy = Daemon::start("proxy", &mut sequence(PROXY, "end-first", at(to, INBOUND))?)?;
        proxy.wait_for(0, |line| (line == "ready").then_some(()))?;
        fixture.world.client.enter(|| {
            for port in ports.clone() {
                let end = TcpStream::connect((to, port))?.read(&mut [0]);
                ensure!(matches!(end, Ok(0)), "{port}: {end:?}");
            }
            Ok(())
        })?;
        for address in [at(Ipv4Addr::UNSPECIFIED, 0), at(Ipv6Addr::UNSPECIFIED, 0)] {
            assert_eq!(run(&mut sequence(APP, "bind", address)?, "")?, "ok\n", "{}", by.label());
        }
        let to = [SERVICE, at(VIP6, SERVED)].map(Scenario::to);
        let seen = pod.observe(APP, &to)?;
        assert!(seen.iter().all(|it| it.summary().starts_with("proxy:15001")), "{}: {seen:#?}", by.label());
    }
    Ok(())
}

/// The client resets the connection before the proxy has asked where it was going.
#[test]
fn reset_before_the_proxy_asks() -> anyhow::Result<()> {
    under_each(&Setup { proxy: Vec::new(), ..Setup::default() }, |fixture| {
        let pod = fixture.pod();
        for to in [at(pod.v4(), SERVED), at(pod.v6(), SERVED)] {
            let sequence = |place: &Place, what| place.probe(&["sequence", what, &to.to_string()]);
            let proxy = Daemon::start("proxy", &mut sequence(&pod.place(PROXY)?, "accept-reset"))?;
            proxy.wait_for(0, |line| (line == "ready").then_some(()))?;
            run(&mut sequence(&fixture.world.outside(), "reset-at-once"), "")?;
            let told = proxy.wait_for(1, |line| Some(line.to_owned()))?;
            assert!(told.contains(&to.to_string()), "{told}");
        }
        Ok(())
    })
}

/// A proxy that listens on loopback only: what comes from the network cannot reach it, and must not reach the app.
#[test]
fn a_listener_on_loopback_is_out_of_reach() -> anyhow::Result<()> {
    let v4 = at(Ipv4Addr::LOCALHOST, INBOUND);
    let v6 = at(Ipv6Addr::LOCALHOST, INBOUND);
    under_each(&Setup { proxy: vec![Listen::on(v4), Listen::on(v6)], ..Setup::default() }, |fixture| {
        assert_eq!(knock(fixture)?, ["ECONNREFUSED"]);
        Ok(())
    })
}

/// One port for both directions (`-p` and `-z`), as the first versions of Istio had it: the listener is the outbound
/// and the inbound one, whether it or the redirection is older.
#[test]
fn one_port_for_both_directions() -> anyhow::Result<()> {
    require_root!();
    let options = Options { inbound_capture_port: OUTBOUND, ..Options::sidecar() };
    for proxy_first in [false, true] {
        let setup = Setup { proxy: everywhere(&[OUTBOUND]), proxy_first, ..Setup::default() };
        let pair = Pair::with(options.clone(), &setup)?;
        let pod = pair.reference.pod();
        let own = [at(pod.v4(), SERVED), at(pod.v6(), SERVED)];
        let out: Vec<Scenario> =
            own.into_iter().chain([SERVICE, at(VIP6, SERVED)]).map(Scenario::to).collect();
        let into = Part { caller: Caller::Outside, scenarios: own.map(Scenario::to).to_vec() };
        let seen = pair.check(&[Part::of(APP, out.clone()), Part::of(PROXY, out), into])?;
        let captured = seen.iter().filter(|it| it.summary().starts_with("proxy:15001")).count();
        assert_eq!(captured, 6, "{seen:#?}");
    }
    Ok(())
}
