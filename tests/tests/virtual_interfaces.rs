//! `-k`: what enters a virtual interface, the traffic of a guest in the pod, goes out through the proxy.

use anyhow::{Context, ensure};
use redirector_tests::harness::oracle::options::Cidrs;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::scenario::Udp;
use redirector_tests::harness::world::GUEST_INTERFACE;
use redirector_tests::harness::world::VNET4;
use redirector_tests::harness::world::VNET6;

const REROUTE: [&str; 2] = ["-k", GUEST_INTERFACE];

fn has_guests() -> anyhow::Result<bool> {
    has_or_refuses(kernel::TELLS_INTERFACES, &REROUTE)
}

fn options() -> Options {
    Options { virtual_interfaces: vec![GUEST_INTERFACE.to_owned()], ..Options::sidecar() }
}

fn with_guest() -> Setup {
    let pod = PodOptions { guest: true, second_interface: true, ..PodOptions::default() };
    Setup { pod, proxy_first: true, ..Setup::default() }
}

/// To services, to the pod itself, to ports with rules of their own, by TCP and UDP.
fn guest(pair: &Pair) -> Part {
    let pod = pair.reference.pod();
    let mut scenarios = Vec::new();
    let services = ["10.96.0.10", "10.96.1.10", "10.94.0.10", "fd00:96::10", "fd00:94::10"];
    let mut addresses: Vec<std::net::IpAddr> = services.iter().filter_map(|ip| ip.parse().ok()).collect();
    addresses.extend([pod.v4().into(), VNET4.into(), pod.v6().into(), VNET6.into()] as [std::net::IpAddr; 4]);
    for address in addresses {
        for port in [SERVED, UNSERVED, 53, 15001, 15006, 15008, 15020] {
            scenarios.push(Scenario::to(at(address, port)));
        }
    }
    for to in [SERVICE, at(VIP6, SERVED)] {
        let udp = Scenario { udp: Some(Udp::Connect), ..Scenario::to(to).named(format!("udp to {to}")) };
        scenarios.push(udp);
    }
    Part { caller: Caller::Guest, scenarios }
}

/// How many were redirected.
fn redirected(seen: &[Observation]) -> usize {
    seen.iter().filter(|it| it.reached.as_ref().is_some_and(|reached| reached.role == "proxy")).count()
}

fn check(options: Options) -> anyhow::Result<usize> {
    let pair = Pair::with(options, &with_guest())?;
    let seen = pair.check(&[guest(&pair)])?;
    Ok(redirected(&seen))
}

/// `-i '*'`: all TCP.
#[test]
fn everything() -> anyhow::Result<()> {
    if !require_root() || !has_guests()? {
        return Ok(());
    }
    let redirected = check(options())?;
    ensure!(redirected == 9 * 7, "{redirected}");
    Ok(())
}

/// `-i` with networks: the others are forwarded, or reach the pod, untouched. What else is excluded does not matter.
#[test]
fn listed_networks() -> anyhow::Result<()> {
    if !require_root() || !has_guests()? {
        return Ok(());
    }
    let cidrs = ["10.96.0.0/24", "10.79.0.2/32", "fd00:94::/64"].map(str::to_owned).to_vec();
    let redirected = check(Options {
        outbound_cidrs: Cidrs::List(cidrs),
        outbound_cidrs_exclude: vec!["10.96.0.10/32".to_owned()],
        outbound_ports: vec![SERVED],
        outbound_ports_exclude: vec![53],
        exclude_interfaces: vec![GUEST_INTERFACE.to_owned()],
        ..options()
    })?;
    // The proxy's own ports in the pod are in no network, and reached as they are.
    ensure!(redirected == 3 * 7 + 3 * 2, "{redirected}");
    Ok(())
}

/// The proxy's ports are other ones, and IPv6 is not captured.
#[test]
fn without_ipv6() -> anyhow::Result<()> {
    if !require_root() || !has_guests()? {
        return Ok(());
    }
    let options = Options { ipv6: false, ..options() };
    let pair = Pair::with(options, &with_guest())?;
    let mut part = guest(&pair);
    part.scenarios.retain(|scenario| scenario.to.is_ipv4());
    let seen = pair.check(&[part])?;
    ensure!(redirected(&seen) == 5 * 7, "{}", redirected(&seen));
    let v6 = Part { caller: Caller::Guest, scenarios: vec![Scenario::to(at(VIP6, SERVED))] };
    let seen = pair.subject.observe_all(&[v6])?;
    ensure!(
        seen[0].reached.as_ref().is_some_and(|reached| reached.role == "remote"),
        "{:?}",
        seen[0].connect
    );
    Ok(())
}

/// A pod whose guest and proxy come after the attach.
struct Late {
    bpffs: Bpffs,
    world: World,
}

impl Late {
    fn new() -> anyhow::Result<Option<Self>> {
        if !require_root() || !has_guests()? {
            return Ok(None);
        }
        let world = World::with(&[PodOptions { guest: true, ..PodOptions::default() }])?;
        Ok(Some(Self { bpffs: Bpffs::new()?, world }))
    }

    fn attach(&self, flags: &[&str]) -> anyhow::Result<()> {
        self.bpffs.attach(self.world.pod(), NAME, flags)?.expect(exit::OK).map(drop)
    }

    fn refresh(&self) -> anyhow::Result<()> {
        self.bpffs.run(&["refresh", NAME])?.expect(exit::OK).map(drop)
    }

    /// The roles that answer the guest at a service, over IPv4 and IPv6.
    fn answers(&self) -> anyhow::Result<[String; 2]> {
        let scenarios = [SERVICE, at(VIP6, SERVED)].map(Scenario::to);
        let seen = observe(&self.world.pod().in_guest()?, &scenarios)?;
        let who = |it: &Observation| {
            let role = it.reached.as_ref().map(|reached| reached.role.clone());
            role.or_else(|| it.connect.clone()).unwrap_or_default()
        };
        Ok([who(&seen[0]), who(&seen[1])])
    }

    /// The problem of the outbound listeners, by `show`.
    fn problem(&self) -> anyhow::Result<String> {
        let show = self.bpffs.show(NAME)?;
        let listeners = show["listeners"].as_array().context("listeners")?;
        let outbound = listeners.iter().find(|it| it["traffic"] == "outbound").context("outbound")?;
        Ok(outbound["problem"].as_str().unwrap_or_default().to_owned())
    }
}

const TIMED_OUT: &str = "EINPROGRESS";
const REFUSED: &str = "ECONNREFUSED";

/// Refused as long as the proxy does not listen; over IPv4 nothing is heard until its listener is transparent.
#[test]
fn a_proxy_that_comes_later() -> anyhow::Result<()> {
    let Some(late) = Late::new()? else { return Ok(()) };
    let _remote = late.world.serve_outside(everywhere(&[SERVED, 15001]))?;
    let app = late.world.pod().serve(APP, "app", everywhere(&[SERVED]))?;
    assert_eq!(late.answers()?, ["remote", "remote"]);
    late.attach(&REROUTE)?;
    assert_eq!(late.answers()?, [TIMED_OUT, REFUSED]);
    assert!(late.problem()?.contains("no listener"), "{}", late.problem()?);

    let proxy = late.world.pod().serve(PROXY, "proxy", everywhere(&[15001, 15006]))?;
    assert_eq!(late.answers()?, [TIMED_OUT, "proxy"]);
    assert!(late.problem()?.contains("not transparent"), "{}", late.problem()?);
    late.refresh()?;
    assert_eq!(late.answers()?, ["proxy", "proxy"]);
    assert_eq!(late.problem()?, "");
    drop(proxy);
    assert_eq!(late.answers()?, [TIMED_OUT, REFUSED]);
    drop(app);

    // A proxy that may make itself transparent needs nobody.
    let mut listeners = everywhere(&[15001, 15006]);
    listeners.iter_mut().for_each(|listen| listen.transparent = true);
    let _proxy = late.world.pod().serve(ROOT, "proxy", listeners)?;
    assert_eq!(late.answers()?, ["proxy", "proxy"]);
    assert_eq!(late.problem()?, "");
    Ok(())
}

/// The listeners are as they were once nothing needs them transparent any more.
#[test]
fn listeners_are_given_back() -> anyhow::Result<()> {
    let Some(late) = Late::new()? else { return Ok(()) };
    let _remote = late.world.serve_outside(everywhere(&[SERVED]))?;
    let _proxy = late.world.pod().serve(PROXY, "proxy", everywhere(&[15001, 15006]))?;
    // Rules as those of the instance, made by hand: only a transparent listener answers over IPv4.
    let by_hand = "rule add iif vnet0 ipproto 6 to 10.93.0.0/16 lookup 7 pref 3\nroute add local 10.93.0.0/16 dev lo table 7\n";
    late.world.pod().netns.ip(by_hand)?;
    let answers = || -> anyhow::Result<String> {
        let to = at(std::net::Ipv4Addr::new(10, 93, 0, 1), 15001);
        Ok(observe(&late.world.pod().in_guest()?, &[Scenario::to(to)])?[0]
            .connect
            .clone()
            .unwrap_or_default())
    };
    assert_eq!(answers()?, TIMED_OUT);
    for end in [&["attach"][..], &["detach", "--name", NAME]] {
        late.attach(&REROUTE)?;
        late.refresh()?;
        assert_eq!(late.answers()?, ["proxy", "proxy"]);
        assert_eq!(answers()?, "ok");
        if end == ["attach"] {
            // Or the inbound listener would answer, which never was transparent.
            late.attach(&["-b", ""])?;
        } else {
            late.bpffs.run(end)?.expect(exit::OK)?;
        }
        assert_eq!(late.answers()?, ["remote", "remote"]);
        assert_eq!(answers()?, TIMED_OUT);
    }
    Ok(())
}

/// The interface is known by its name to the rules, and by its index only since the next refresh: captured all the same.
#[test]
fn an_interface_that_comes_later() -> anyhow::Result<()> {
    let Some(late) = Late::new()? else { return Ok(()) };
    let pod = late.world.pod();
    let _remote = late.world.serve_outside(everywhere(&[SERVED]))?;
    let _proxy = pod.serve(PROXY, "proxy", everywhere(&[15001, 15006]))?;
    late.attach(&["-k", "guest0"])?;
    assert_eq!(late.answers()?, ["remote", "remote"]);
    pod.netns.ip(&format!(
        "link set {GUEST_INTERFACE} down\nlink set {GUEST_INTERFACE} name guest0\nlink set guest0 up\n"
    ))?;
    pod.netns.wait_until_links_are_up()?;
    pod.netns.ip("address replace fd00:79:0::2/64 dev guest0 nodad\n\
         neighbour replace 10.79.0.1 lladdr 02:00:00:4f:00:01 dev guest0 nud permanent\n\
         neighbour replace fd00:79:0::1 lladdr 02:00:00:4f:00:01 dev guest0 nud permanent\n")?;
    late.world.pod().guest.as_ref().context("guest")?.wait_until_links_are_up()?;
    assert_eq!(late.answers()?, ["proxy", "proxy"]);
    let ports = late.bpffs.show(NAME)?["counters"].to_string();
    assert!(ports.contains("in_virtual_captured"), "{ports}");
    Ok(())
}
