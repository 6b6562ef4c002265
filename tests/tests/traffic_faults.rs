//! Faults of traffic that users of such software have met and that only rules of others bring about: attach and status say so.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::scenario::SocketOption;
use serde_json::Value;

fn finding(tested: &TestPod, kind: &str) -> anyhow::Result<Option<Value>> {
    let answer = tested.bpffs.run(&["status", NAME])?.json()?;
    let findings = answer["instances"][0]["findings"].as_array().cloned().unwrap_or_default();
    Ok(findings.into_iter().find(|finding| finding["kind"] == kind))
}

/// The proxy's listeners were made in another cgroup, as by socket activation: connections are delivered, and attach and
/// status say that the proxy does not learn original destinations.
#[test]
fn listeners_from_another_cgroup() -> anyhow::Result<()> {
    require_root!();
    let tested = TestPod::with(&Setup { proxy: Vec::new(), ..Setup::default() })?;
    let pod = tested.pod();
    let elsewhere = Place { netns: pod.netns.file().to_owned(), cgroup: None, owner: PROXY };
    let proxy = Server::start(&elsewhere, "proxy", proxy_listeners(1))?;
    std::fs::write(pod.cgroup.child("proxy")?.join("cgroup.procs"), proxy.pid().to_string())?;
    let run = tested.attach(&[])?;
    let reached = observe_one(&pod.place(APP)?, SERVICE)?;
    assert_eq!(reached.reached.as_ref().map(|it| it.role.as_str()), Some("proxy"), "{reached:#?}");
    for port in [15001, 15006] {
        assert!(run.stderr.contains(&format!("on port {port} was made outside the cgroup")), "{run:?}");
    }
    let found = finding(&tested, "listener_outside")?.context("no finding")?;
    assert!(found["consequence"].as_str().is_some_and(|text| text.contains("SO_ORIGINAL_DST")), "{found:#}");
    // One that is made in the cgroup is nothing to speak of.
    drop(proxy);
    let _proxy = pod.serve(PROXY, "proxy", proxy_listeners(1))?;
    assert_eq!(finding(&tested, "listener_outside")?, None);
    Ok(())
}

/// A rule of routing by user forbids a connection, which no snapshot can know.
#[test]
fn a_routing_rule_by_user() -> anyhow::Result<()> {
    require_root!();
    let rules = "rule add uidrange 1000-1000 to 10.96.0.0/16 prohibit\nrule add dport 8443 lookup 77\n\
                 rule add to ::/0 tos 0x10 lookup 77\nrule add iif eth0 uidrange 5-5 prohibit\nrule add fwmark 1 lookup 77\n";
    let pod = PodOptions { extra: rules.to_owned(), ..PodOptions::default() };
    let tested = TestPod::with(&Setup { pod, ..Setup::default() })?;
    let run = tested.attach(&[])?;
    let shown = ["uidrange 1000-1000 prohibit", "dport 8443-8443 lookup 77", "tos 0x10 lookup 77"];
    for rule in shown {
        assert!(run.stderr.contains(rule), "{rule}: {run:?}");
    }
    assert!(!run.stderr.contains("uidrange 5-5") && !run.stderr.contains("fwmark"), "{run:?}");
    let found = finding(&tested, "routing_rule")?.context("no finding")?;
    assert_eq!(found["level"], "fault", "{found:#}");
    assert!(found["what"].as_str().is_some_and(|what| what.contains(shown[0])), "{found:#}");
    Ok(())
}

/// A pod that runs in a virtual machine, or in gVisor: every hook is in force and sees nothing.
#[test]
fn a_pod_with_a_kernel_of_its_own() -> anyhow::Result<()> {
    require_root!();
    let tested = TestPod::new()?;
    let dir = tempfile::tempdir()?;
    let sandbox = dir.path().join("runsc-sandbox");
    std::fs::copy("/bin/sleep", &sandbox)?;
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut command = tested.pod().place(APP)?.program(&sandbox);
    let sandbox = Daemon::start("sandbox", command.arg("600"))?;
    retry::until("the sandbox to run", || {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", sandbox.pid())).ok()?;
        (name == "runsc-sandbox\n").then_some(())
    })?;
    let shown = format!("pid {} runsc-sandbox (gVisor)", sandbox.pid());
    let run = tested.attach(&[])?;
    assert!(run.stderr.contains(&shown) && run.stderr.contains("nothing that its processes open"), "{run:?}");
    let found = finding(&tested, "own_kernel")?.context("no finding")?;
    assert_eq!(found["level"], "fault", "{found:#}");
    let report = tested.bpffs.run(&["verify", NAME, "--timeout", "1"])?.expect(exit::FAILED)?;
    assert!(report.stdout.contains("own_kernel"), "{report:?}");
    drop(sandbox);
    assert_eq!(finding(&tested, "own_kernel")?, None);
    Ok(())
}

/// Two more addresses of the pod, which come to another host.
const MOVING: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, 50)),
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, 51)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 0x50)),
];

fn in_the_pod() -> Setup {
    // The second is a secondary address of the first's network, whose source is the first.
    let extra = MOVING.map(|addr| {
        let rest = if addr.is_ipv6() { "/128 dev eth0 nodad" } else { "/28 dev eth0" };
        format!("address add {addr}{rest}\n")
    });
    Setup { pod: PodOptions { extra: extra.concat(), ..PodOptions::default() }, ..Setup::default() }
}

/// An address leaves the pod, and nobody tells redirector: whoever has it now is captured, and the application does not reach it
/// past the proxy, which does.
#[test]
fn an_address_that_moves_away() -> anyhow::Result<()> {
    require_root!();
    let tested = TestPod::attached_with(&in_the_pod(), &[])?;
    let (world, pod) = (&tested.fixture.world, tested.pod());
    let own = [IpAddr::from(pod.v4()), pod.v4().into(), pod.v6().into()];
    let reached = |from: Owner, to: IpAddr| {
        let seen =
            pod.observe(from, &[Scenario::to(at(to, SERVED))])?.pop().context("nothing was observed")?;
        anyhow::Ok(seen.summary())
    };
    for addr in MOVING.into_iter().rev() {
        assert_eq!(reached(APP, addr)?, format!("app:{SERVED}"));
        let gateway = if addr.is_ipv4() { "10.77.0.1" } else { "fd00:77::1" };
        let length = if addr.is_ipv4() { 28 } else { 128 };
        pod.netns.ip(&format!("address del {addr}/{length} dev eth0\nroute add {addr} via {gateway}\n"))?;
        let nodad = if addr.is_ipv6() { "nodad" } else { "" };
        world.client.ip(&format!("address add {addr} dev lo {nodad}\n"))?;
    }
    for (addr, own) in MOVING.into_iter().zip(own) {
        let seen = world.observe_from_outside(&[Scenario::to(at(own, SERVED)).bound(at(addr, 0))])?;
        assert!(seen[0].summary().starts_with("proxy:15006"), "{seen:#?}");
        assert_eq!(reached(APP, addr)?, "ENETUNREACH");
        assert!(reached(PROXY, addr)?.starts_with("remote:8080"), "{addr}");
        // What is the pod's still passes, and the socket shows no trace.
        assert_eq!(reached(APP, own)?, format!("app:{SERVED}"));
    }
    tested.refresh()?.expect(exit::OK)?;
    for addr in MOVING {
        assert!(reached(APP, addr)?.starts_with("proxy:15001"), "{addr}");
    }
    Ok(())
}

/// The pod's addresses are replaced, without a refresh: no connection goes to the proxy from another address than it
/// would have under iptables. It is refused, as long as the snapshot names the source that is gone.
#[test]
fn an_address_that_is_replaced() -> anyhow::Result<()> {
    require_root!();
    for flags in [&[][..], &["--max-destinations", "0"]] {
        let tested = TestPod::attached(flags)?;
        let pod = tested.pod();
        let new = [
            IpAddr::from(Ipv4Addr::new(10, 77, 0, 60)),
            Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 0x60).into(),
        ];
        // The second address of an IPv4 network leaves with the first.
        pod.netns.ip(&format!(
            "address del {}/24 dev eth0\naddress add {}/24 dev eth0\nroute replace default via 10.77.0.1\n\
             address del {}/64 dev eth0\naddress add {}/64 dev eth0 nodad\nroute replace default via fd00:77::1\n",
            pod.v4(),
            new[0],
            pod.v6(),
            new[1]
        ))?;
        let to = [SERVICE, at(VIP6, SERVED)];
        for to in to {
            let seen = observe_one(&pod.place(APP)?, to)?;
            assert_eq!(seen.summary(), kernel::refusal("EADDRNOTAVAIL"), "{flags:?}: {seen:#?}");
        }
        let seen = pod.observe(APP, &[Scenario::new("mapped", Family::Mapped, SERVICE)])?;
        assert_eq!(seen[0].summary(), kernel::refusal("EADDRNOTAVAIL"), "{flags:?}: {seen:#?}");
        assert_eq!(tested.counter("refused_without_source")?, 3);
        tested.refresh()?.expect(exit::OK)?;
        for (to, new) in to.into_iter().zip(new) {
            let seen = observe_one(&pod.place(APP)?, to)?;
            let peer = seen.reached.as_ref().and_then(|reached| reached.peer.address());
            assert_eq!(peer.map(|peer| peer.ip()), Some(new), "{flags:?}: {seen:#?}");
        }
    }
    Ok(())
}

/// No process of the pod sends its packets by way of a host that it names, whatever connect() decides; other options of sockets
/// work as before, also with buffers of more than a page.
#[test]
fn source_routes_are_refused() -> anyhow::Result<()> {
    require_root!();
    let tested = TestPod::attached(&[])?;
    let pod = tested.pod();
    let (rthdr, pktoptions) = (libc::IPV6_RTHDR, 6);
    // Type 4 (segment routing) to fd00:77::1 first.
    let mut header = vec![0, 4, 4, 1, 1, 0, 0, 0];
    header.extend([0; 16]);
    header.extend(Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 1).octets());
    // `struct cmsghdr`, then the same.
    let mut ancillary = (16 + header.len()).to_ne_bytes().to_vec();
    ancillary.extend([libc::IPPROTO_IPV6, rthdr].map(i32::to_ne_bytes).concat());
    ancillary.extend(&header);
    let loose = vec![131, 7, 4, 10, 77, 0, 1, 0];
    let strict = vec![137, 7, 4, 10, 77, 0, 1, 0];
    let record = vec![7, 7, 4, 0, 0, 0, 0, 0];
    let (ip, ip6) = (libc::SOL_IP, libc::SOL_IPV6);
    let own6 = at(pod.v6(), SERVED);
    let refused = [
        (own6, ip6, rthdr, header.clone()),
        (own6, ip6, pktoptions, ancillary),
        (at(pod.v4(), SERVED), ip, libc::IP_OPTIONS, loose),
        (SERVICE, ip, libc::IP_OPTIONS, strict),
    ];
    let kept = [
        (own6, ip6, rthdr, Vec::new()),
        (SERVICE, ip, libc::IP_OPTIONS, record),
        (SERVICE, libc::SOL_SOCKET, libc::SO_KEEPALIVE, [1, 0, 0, 0].repeat(2048)),
    ];
    let place = pod.place(APP)?;
    let observe = |(to, level, name, value): (SocketAddr, i32, i32, Vec<u8>)| {
        let option = Some(SocketOption { level, name, value });
        observe(&place, &[Scenario { option, ..Scenario::to(to) }])?.pop().context("nothing was observed")
    };
    for case in refused {
        assert_eq!(observe(case.clone())?.summary(), "bind: option: EPERM", "{case:?}");
    }
    for case in kept {
        let seen = observe(case.clone())?;
        assert!(seen.reached.is_some(), "{case:?}: {seen:#?}");
    }
    assert_eq!(tested.counter("refused_source_route")?, 4);
    // What is not captured is the kernel's.
    tested.bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    let seen = observe((own6, ip6, rthdr, header))?;
    assert_ne!(seen.summary(), "bind: option: EPERM", "{seen:#?}");
    Ok(())
}

/// A SYN from the network with an address of the pod as its source, which IPv6 lets in, is decided as one from the network.
#[test]
fn an_address_of_the_pod_from_outside() -> anyhow::Result<()> {
    require_root!();
    let tested = TestPod::attached_with(&in_the_pod(), &[])?;
    let (client, pod) = (&tested.fixture.world.client, tested.pod());
    let forged = [pod.v6(), Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)];
    for addr in forged {
        client.ip(&format!("address add {addr}/128 dev lo nodad\n"))?;
        let before = tested.counter("in_all")?;
        let syn = Scenario::to(at(MOVING[2], SERVED)).bound(at(addr, 0));
        let seen = tested.fixture.world.observe_from_outside(&[syn])?;
        assert!(seen[0].reached.is_none(), "{seen:#?}");
        assert!(tested.counter("in_all")? > before, "{addr}");
    }
    Ok(())
}

/// With `route_localnet` the network reaches 127.0.0.0/8 in the pod. It is captured there, too, and no address that redirector gives
/// is the network's way to the proxy's outbound listener.
#[test]
fn the_network_at_a_loopback_address() -> anyhow::Result<()> {
    require_root!();
    let tested = TestPod::attached(&[])?;
    let (world, pod) = (&tested.fixture.world, tested.pod());
    pod.netns.sysctl(&[("ipv4/conf/all/route_localnet", "1")])?;
    world.client.sysctl(&[("ipv4/conf/all/route_localnet", "1")])?;
    let mut held = Held::start(&pod.place(APP)?, SERVICE)?;
    let given = held.names()?;
    let range = tested.show()?["virtual_destinations"].as_str().context("a range")?.to_owned();
    world.client.ip(&format!(
        "rule add pref 1 to {range} lookup 77\nrule add pref 1 to 127.9.9.9 lookup 77\n\
        rule add pref 2 lookup local\nrule del pref 0\nroute add 127.0.0.0/8 via {} table 77\n",
        pod.v4()
    ))?;
    let from = at(Ipv4Addr::new(10, 77, 0, 1), 0);
    let connections = connections_to_given(&tested)?;
    assert!(!connections.is_empty(), "{given:?}");
    for to in connections.into_iter().chain([at(Ipv4Addr::new(127, 9, 9, 9), SERVED)]) {
        let seen = world.observe_from_outside(&[Scenario::to(to).bound(from)])?;
        let told = seen[0].summary();
        assert!(told.starts_with("proxy:15006"), "{to}: {seen:#?}");
    }
    Ok(())
}

/// Where the pod's connections were really sent.
fn connections_to_given(tested: &TestPod) -> anyhow::Result<Vec<std::net::SocketAddr>> {
    let flows = tested.bpffs.run(&["original-dst", NAME])?.json()?;
    let sent = flows.as_array().cloned().unwrap_or_default();
    Ok(sent.iter().filter_map(|flow| flow["proxy"].as_str()?.parse().ok()).collect())
}
