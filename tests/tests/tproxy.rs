//! TPROXY mode beside real iptables: the client's address on both legs, client to proxy and proxy to application.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::ensure;
use redirector_tests::harness::oracle::options::Ports;
use redirector_tests::harness::oracle::options::Tproxy;
use redirector_tests::harness::pair::matrix::SIDECAR_PORTS;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::observation::Accepted;
use redirector_tests::harness::world::TRANSPARENT_PROXY;
use redirector_tests::harness::world::netns::Netns;

fn tproxy(mark: u32, table: u32) -> Options {
    Options { tproxy: Some(Tproxy { mark, table }), ..Options::sidecar() }
}

/// Envoy in Istio's TPROXY mode: root, of the proxy's group; inbound it hands on, outbound it answers.
fn setup(mark: u32) -> Setup {
    let mut proxy = everywhere(&[OUTBOUND, INBOUND]);
    for listen in &mut proxy {
        if listen.address.port() == INBOUND {
            (listen.transparent, listen.relay) = (true, Some(mark));
        }
    }
    let pod = PodOptions { second_interface: true, ..PodOptions::default() };
    Setup { pod, proxy, proxy_owner: TRANSPARENT_PROXY, ..Setup::default() }
}

fn parts(fixture: &Fixture) -> Vec<Part> {
    let own = [IpAddr::from(fixture.pod().v4()), fixture.pod().v6().into()];
    // To its own ports the proxy would hand connections on to itself, for ever.
    let ports = [SERVED, UNSERVED].into_iter().chain(SIDECAR_PORTS);
    let into = ports.clone().flat_map(|port| own.map(|ip| Scenario::to(at(ip, port)))).collect();
    let within = |who: &str| -> Vec<Scenario> {
        let mut all: Vec<Scenario> =
            ports.clone().flat_map(|port| own.map(|ip| Scenario::to(at(ip, port)))).collect();
        all.extend([SERVICE, at(VIP6, SERVED), at(Ipv4Addr::LOCALHOST, SERVED)].map(Scenario::to));
        all.push(Scenario::to(at(Ipv6Addr::LOCALHOST, SERVED)));
        all.push(Scenario::to(at(Ipv4Addr::new(127, 0, 0, 2), SERVED)));
        all.push(Scenario::new("mapped", Family::Mapped, at(own[0], SERVED)));
        let four = Scenario::to(at(own[0], SERVED)).bound(at(Ipv4Addr::new(127, 0, 0, 6), 0));
        all.push(four.named("from 127.0.0.6"));
        let six = Scenario::to(at(own[1], SERVED)).bound(at(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6), 0));
        all.push(six.named("from ::6"));
        all.into_iter().map(|it| Scenario { name: format!("{who} {}", it.name), ..it }).collect()
    };
    vec![
        Part { caller: Caller::Outside, scenarios: into },
        Part::of(APP, within("app")),
        Part::of(TRANSPARENT_PROXY, within("proxy's group")),
        // Its calls to its own pod would go round for ever if the proxy handed them on as this user.
        Part::of(PROXY, vec![Scenario::to(SERVICE).named("proxy's user to a service")]),
    ]
}

/// The connections that a proxy accepted, without the ports that the kernel picked.
fn accepted(fixture: &Fixture) -> Vec<[String; 5]> {
    let of = |it: &Accepted| {
        let peer =
            it.accept_peer.address().map_or_else(|| it.accept_peer.to_string(), |peer| peer.ip().to_string());
        let rest = [&it.local, &it.original_dst, &it.original_dst6].map(ToString::to_string);
        let [local, original, original6] = rest;
        [it.listener.to_string(), peer, local, original, original6]
    };
    let mut all: Vec<_> = fixture.proxy.iter().flat_map(|proxy| proxy.accepted()).map(|it| of(&it)).collect();
    all.sort();
    all.dedup();
    all
}

fn check(options: &Options) -> anyhow::Result<(Vec<Observation>, Vec<[String; 5]>)> {
    let mark = options.tproxy.unwrap_or_default().mark;
    let pair = Pair::with(options.clone(), &setup(mark))?;
    let mut parts = parts(&pair.reference);
    if !options.ipv6 {
        parts.iter_mut().for_each(|part| part.scenarios.retain(|it| it.to.is_ipv4()));
    }
    let seen = pair.check(&parts)?;
    let (left, right) = (accepted(&pair.reference), accepted(&pair.subject));
    ensure!(left == right, "the proxies saw different things:\n{left:#?}\n{right:#?}");
    Ok((seen, left))
}

/// Whether somebody in the cluster reached the app by the proxy: both saw the client's address.
fn both_saw(seen: &[Observation], proxy: &[[String; 5]], client: &str, to: &str) -> bool {
    let by_proxy = proxy
        .iter()
        .any(|[listener, peer, local, ..]| listener.ends_with(":15006") && peer == client && local == to);
    let scenario = format!("to {to}");
    let app = seen.iter().find(|it| it.scenario == scenario).and_then(|it| it.reached.as_ref());
    let peer = app.filter(|app| app.role == "app").and_then(|app| app.accept_peer.address());
    by_proxy && peer.is_some_and(|peer| peer.ip().to_string() == client)
}

#[test]
fn the_client_is_seen_by_both() -> anyhow::Result<()> {
    require_root!();
    let (seen, proxy) = check(&tproxy(1337, 133))?;
    ensure!(both_saw(&seen, &proxy, "10.77.0.1", "10.77.0.2:8080"), "{proxy:#?}");
    ensure!(both_saw(&seen, &proxy, "fd00:77::1", "[fd00:77::2]:8080"), "{proxy:#?}");
    // Excluded: to the app, past the proxy.
    ensure!(!both_saw(&seen, &proxy, "10.77.0.1", "10.77.0.2:15020"), "{proxy:#?}");
    Ok(())
}

#[test]
fn another_mark_and_table_and_listed_ports() -> anyhow::Result<()> {
    require_root!();
    let (seen, proxy) =
        check(&Options { inbound_ports: Ports::List(vec![SERVED, 15020]), ..tproxy(65536, 77) })?;
    ensure!(both_saw(&seen, &proxy, "10.77.0.1", "10.77.0.2:8080"), "{proxy:#?}");
    ensure!(both_saw(&seen, &proxy, "10.77.0.1", "10.77.0.2:15020"), "{proxy:#?}");
    ensure!(!both_saw(&seen, &proxy, "10.77.0.1", "10.77.0.2:15021"), "{proxy:#?}");
    Ok(())
}

#[test]
fn excluded_interface_without_ipv6() -> anyhow::Result<()> {
    let has = || has_or_refuses(kernel::TELLS_INTERFACES, &["-c", "eth0", "-m", "TPROXY"]);
    if !require_root() || !has()? {
        return Ok(());
    }
    let options = Options { exclude_interfaces: vec!["eth0".to_owned()], ipv6: false, ..tproxy(7, 133) };
    let (seen, proxy) = check(&options)?;
    ensure!(!both_saw(&seen, &proxy, "10.77.0.1", "10.77.0.2:8080"), "{proxy:#?}");
    Ok(())
}

/// Runtimes mount /proc/sys of a container read-only (`readonlyPaths`): of the agent's, too.
#[test]
fn attached_from_a_container() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, world) = (Bpffs::new()?, World::new()?);
    let script = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$@\"";
    let by = ["unshare", "--mount", "sh", "-c", script, "sh"];
    let marked = || {
        let read = || Ok(std::fs::read_to_string("/proc/sys/net/ipv4/tcp_fwmark_accept")?);
        world.pod().netns.enter(read)
    };
    bpffs.attach_by(&by, world.pod(), "pod1", &["-m", "TPROXY"])?.expect(exit::OK)?;
    ensure!(marked()?.trim() == "1");
    let bound = |netns: &Netns| {
        let read = || Ok(std::fs::read_to_string("/proc/sys/net/ipv4/tcp_max_tw_buckets")?);
        netns.enter(read)
    };
    ensure!(bound(&world.pod().netns)? != bound(&world.client)?, "tcp_max_tw_buckets is as it was");
    Run::of(&mut bpffs.command(&by, &["detach", "pod1"]))?.expect(exit::OK)?;
    ensure!(marked()?.trim() == "0");
    ensure!(bound(&world.pod().netns)? == bound(&world.client)?);
    Ok(())
}
