//! Virtual destinations: an original destination has a loopback address of its own, and no second one; beyond the quota it
//! is handed over for each connection. Whatever happens, the proxy is told the right destination or none.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::Context;
use redirector_tests::harness::pair::matrix;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::serve::Listen;
use redirector_tests::harness::probe::storm::{End, Outcome, Storm};
use serde_json::Value;

/// None has an address of its own; as many as there are; and some of them.
const QUOTAS: [&str; 3] = ["0", "16384", "20"];

fn without_proxy() -> Setup {
    Setup { proxy: Vec::new(), ..Setup::default() }
}

fn services(count: u16, v6: bool) -> Vec<SocketAddr> {
    let of = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let v4 = Ipv4Addr::new(10, 96, 64 + high, low);
        let ip: IpAddr =
            if v6 { format!("fd00:96::1:{number:x}").parse().unwrap_or(v4.into()) } else { v4.into() };
        SocketAddr::new(ip, SERVED)
    };
    (1..=count).map(of).collect()
}

fn storm(tested: &TestPod, storm: &Storm) -> anyhow::Result<Outcome> {
    let told = run(&mut tested.pod().place(APP)?.probe(&["storm"]), &serde_json::to_string(storm)?)?;
    serde_json::from_str(&told).context(told)
}

fn all_right(count: usize) -> Outcome {
    Outcome { right: count, ..Outcome::default() }
}

fn one(seen: &[Observation]) -> anyhow::Result<&Observation> {
    seen.first().context("an observation")
}

/// Where the connection of a client really goes.
fn sent_to(tested: &TestPod, held: &mut Held) -> anyhow::Result<SocketAddr> {
    let client = held.names()?.local.address().context("an address")?.to_string();
    let flows = tested.bpffs.run(&["original-dst", NAME, "--client", &client])?.expect(exit::OK)?.json()?;
    flows[0]["proxy"].as_str().context("a proxy")?.parse().context("an address")
}

/// The client has reset the connection before its accepted socket is asked; on lo packets are handled at once, or by
/// another CPU (RPS).
#[test]
fn reset_at_once() -> anyhow::Result<()> {
    require_root!("bpftool");
    for quota in QUOTAS {
        let tested = TestPod::attached_with(&without_proxy(), &["--max-destinations", quota])?;
        for cpus in ["0", "3"] {
            let set = format!(
                "mount -t sysfs redirtest /sys && echo {cpus} > /sys/class/net/lo/queues/rx-0/rps_cpus"
            );
            let mut set_rps = Command::new("unshare");
            let netns = format!("--net={}", tested.pod().netns.file().display());
            set_rps.args(["--mount", "nsenter", &netns, "sh", "-c", &set]);
            run(&mut set_rps, "")?;
            for v6 in [false, true] {
                let resets = Storm { destinations: services(300, v6), from: None, end: End::Reset };
                assert_eq!(storm(&tested, &resets)?, all_right(300), "quota {quota}, CPUs {cpus}, IPv6 {v6}");
            }
        }
        assert_eq!(tested.counter("original_dst_unknown")?, 0);
    }
    Ok(())
}

/// The kernel cannot answer a packet from the pod's address to ::1 for which there is no socket any more.
#[test]
fn closed_by_the_client_first() -> anyhow::Result<()> {
    require_root!("bpftool");
    for quota in QUOTAS {
        let tested = TestPod::attached_with(&without_proxy(), &["--max-destinations", quota])?;
        for v6 in [true, false] {
            let closed = Storm { destinations: services(1000, v6), from: None, end: End::Close };
            assert_eq!(storm(&tested, &closed)?, all_right(1000), "quota {quota}, IPv6 {v6}");
        }
    }
    Ok(())
}

/// One source address and port for many destinations, as under iptables.
#[test]
fn one_source_for_many_destinations() -> anyhow::Result<()> {
    require_root!("bpftool");
    for quota in QUOTAS {
        let tested = TestPod::attached_with(&without_proxy(), &["--max-destinations", quota])?;
        let mut destinations = services(500, false);
        // What an earlier version sent to one address.
        destinations.extend(services(500, false).iter().map(|to| SocketAddr::new(to.ip(), SERVED + 0x100)));
        let from = Some(at(tested.pod().v4(), 7777));
        let kept = Storm { destinations, from, end: End::Keep };
        assert_eq!(storm(&tested, &kept)?, all_right(1000), "quota {quota}");
    }
    Ok(())
}

/// Beyond the quota destinations are handed over connection by connection; an address that was given keeps its meaning.
#[test]
fn the_quota_is_kept() -> anyhow::Result<()> {
    require_root!("bpftool");
    let tested = TestPod::attached(&["--max-destinations", "20"])?;
    let load = Load::services(60);
    let before = tested.pod().load(APP, &load)?;
    assert_eq!((before.right, before.wrong), (60, 0), "{before:?}");
    let given = meanings(&tested)?;
    assert_eq!(given.len(), 20);
    let again = tested.pod().load(APP, &load)?;
    assert_eq!((again.right, again.wrong), (60, 0), "{again:?}");
    assert_eq!(meanings(&tested)?, given);
    assert_eq!((tested.counter("destinations_given")?, tested.counter("destinations_full")?), (20, 80));
    assert_eq!((&tested.show()?["destinations"], &tested.show()?["connections"]), (&20.into(), &0.into()));
    tested.attach_by(&[], &["--max-destinations", "21"])?.refused(exit::USAGE, &["--max-destinations"])?;
    Ok(())
}

/// Nothing is stored for a connection whose destination has an address.
#[test]
fn nothing_is_stored_for_a_connection() -> anyhow::Result<()> {
    require_root!("bpftool");
    let tested = TestPod::attached(&[])?;
    let place = tested.pod().place(APP)?;
    let held = (0..5).map(|_| Held::start(&place, SERVICE)).collect::<anyhow::Result<Vec<_>>>()?;
    assert_eq!(entries(&tested, "FLOWS")?.len(), 0);
    assert_eq!((entries(&tested, "ORIGINAL_DST")?.len(), tested.counter("destinations_given")?), (1, 1));
    assert_eq!(tested.show()?["connections"], 5);
    drop(held);
    retry::until("the connections to end", || (tested.show().ok()?["connections"] == 0).then_some(()))?;
    Ok(())
}

/// Address and meaning of all that are given, as bpftool has them.
fn meanings(tested: &TestPod) -> anyhow::Result<Vec<String>> {
    entries(tested, "ORIGINAL_DST")
}

fn dump(tested: &TestPod, map: &str) -> anyhow::Result<Vec<Value>> {
    let map = tested.bpffs.instance(NAME).join(map);
    let told = run(Command::new("bpftool").args(["--json", "map", "dump", "pinned"]).arg(map), "")?;
    Ok(serde_json::from_str(&told)?)
}

fn entries(tested: &TestPod, map: &str) -> anyhow::Result<Vec<String>> {
    let mut all: Vec<String> =
        dump(tested, map)?.iter().map(|entry| format!("{} {}", entry["key"], entry["value"])).collect();
    all.sort();
    Ok(all)
}

/// An application that connects to a virtual address by itself, at the proxy's port, is told that address; at another port it
/// reaches what listens there; and an address that it has taken is given to nobody.
#[test]
fn a_virtual_address_as_destination() -> anyhow::Result<()> {
    require_root!("bpftool");
    let tested = TestPod::attached(&["--max-destinations", "100"])?;
    let mut held = Held::start(&tested.pod().place(APP)?, at(VIP4, SERVED))?;
    let given = sent_to(&tested, &mut held)?;
    let IpAddr::V4(ip) = given.ip() else { anyhow::bail!("{given}") };
    let free = Ipv4Addr::from_bits(ip.to_bits() ^ 0x3);
    for to in [given, at(free, OUTBOUND)] {
        let seen =
            tested.pod().observe(APP, &[Scenario::to(to), Scenario::new("mapped", Family::Mapped, to)])?;
        for seen in &seen {
            let reached = seen.reached.as_ref().with_context(|| format!("{seen:#?}"))?;
            assert_eq!(reached.role, "proxy", "{seen:#?}");
            let told = [&reached.original_dst, &reached.local].map(|seen| seen.address());
            assert_eq!(told, [Some(to), Some(to)], "{seen:#?}");
            assert_eq!(reached.peer.address().map(|peer| peer.ip()), Some(Ipv4Addr::LOCALHOST.into()));
            let peer = seen.peer.as_ref().and_then(|peer| peer.address());
            let peer = peer.map(|peer| SocketAddr::new(peer.ip().to_canonical(), peer.port()));
            assert_eq!(peer, Some(to), "{seen:#?}");
        }
        // The proxy itself is captured inbound, as under iptables.
        let seen = tested.pod().observe(PROXY, &[Scenario::to(to)])?;
        let reached = one(&seen)?.reached.as_ref().with_context(|| format!("{seen:#?}"))?;
        assert_eq!(
            (reached.listener.port(), reached.original_dst.address()),
            (INBOUND, Some(to)),
            "{seen:#?}"
        );
    }
    let seen = tested.pod().observe(APP, &[Scenario::to(at(ip, SERVED))])?;
    assert!(one(&seen)?.summary().starts_with("app:8080"), "{seen:#?}");

    // All free addresses of the range but some are taken.
    let range = tested.show()?["virtual_destinations"].as_str().context("a range")?.to_owned();
    let first: Ipv4Addr = range.split('/').next().context("an address")?.parse()?;
    let taken: Vec<Scenario> =
        (0..60).map(|n| Scenario::to(at(Ipv4Addr::from_bits(first.to_bits() + n), SERVED))).collect();
    let seen = tested.pod().observe(APP, &taken)?;
    assert!(seen.iter().all(|seen| seen.summary().starts_with("app:8080")), "{seen:#?}");
    let load = tested.pod().load(APP, &Load::services(200))?;
    assert_eq!((load.right, load.wrong), (200, 0), "{load:?}");
    // Each means itself, at no port (docs/abi.md): bytes 12 to 15, 24 and 25.
    let is_kept = |entry: &&Value| {
        let bytes = |side: &str| entry[side].as_array().cloned().unwrap_or_default();
        let (key, value) = (bytes("key"), bytes("value"));
        value.get(12..16) == key.get(4..) && value.get(24..26) == Some(&["0x00".into(), "0x00".into()])
    };
    let kept = dump(&tested, "ORIGINAL_DST")?.iter().filter(is_kept).count();
    // But the few that had been given before.
    assert!(kept >= taken.len() - 10, "{kept} of {}", taken.len());
    let seen = tested.pod().observe(APP, &taken)?;
    assert!(seen.iter().all(|seen| seen.summary().starts_with("app:8080")), "{seen:#?}");
    assert_eq!(held.names()?.peer.address(), Some(at(VIP4, SERVED)));
    Ok(())
}

/// A listener on a virtual address beside the proxy gets nothing, also while the proxy is away.
#[test]
fn nobody_else_wins() -> anyhow::Result<()> {
    require_root!("bpftool");
    let mut proxy = everywhere(&[OUTBOUND]);
    proxy.iter_mut().for_each(|listen| listen.sockets = 2);
    let setup = Setup { proxy, ..Setup::default() };
    for quota in QUOTAS {
        let mut tested = TestPod::attached_with(&setup, &["--max-destinations", quota])?;
        let place = tested.pod().place(APP)?;
        let mut held = Held::start(&place, at(VIP4, SERVED))?;
        let given = sent_to(&tested, &mut held)?;
        let thief = Listen { sockets: 2, ..Listen::on(given) };
        let thief = tested.pod().serve(PROXY, "thief", vec![thief])?;
        for _ in 0..20 {
            let seen = tested.pod().observe(APP, &[Scenario::to(at(VIP4, SERVED))])?;
            assert!(one(&seen)?.summary().starts_with("proxy:15001"), "quota {quota}: {seen:#?}");
        }
        tested.fixture.proxy = None;
        let seen = tested.pod().observe(APP, &[Scenario::to(at(VIP4, SERVED))])?;
        assert_eq!(one(&seen)?.connect.as_deref(), Some("ECONNREFUSED"), "quota {quota}: {seen:#?}");
        assert!(thief.accepted().is_empty(), "quota {quota}");
    }
    Ok(())
}

/// An address whose meaning is gone, which only a hand in the maps can do, is no original destination.
#[test]
fn an_unknown_destination_is_told_to_be_unknown() -> anyhow::Result<()> {
    require_root!("bpftool");
    if kernel::refusal("ENOENT") != "ENOENT" {
        println!("note: a program of this kernel cannot say ENOENT where conntrack has an answer");
        return Ok(());
    }
    let tested = TestPod::attached(&[])?;
    let mut held = Held::start(&tested.pod().place(APP)?, at(VIP4, SERVED))?;
    let IpAddr::V4(ip) = sent_to(&tested, &mut held)?.ip() else { anyhow::bail!("an IPv6 address") };
    let map = tested.bpffs.instance(NAME).join("ORIGINAL_DST");
    let mut key: Vec<String> = 32_u32.to_ne_bytes().map(|byte| byte.to_string()).into();
    key.extend(ip.octets().map(|octet| octet.to_string()));
    run(Command::new("bpftool").args(["map", "delete", "pinned"]).arg(&map).arg("key").args(&key), "")?;
    let seen = tested.pod().observe(APP, &[Scenario::to(at(VIP4, SERVED))])?;
    let told = one(&seen)?.reached.as_ref().map(|reached| reached.original_dst.to_string());
    assert_eq!(told.as_deref(), Some("ENOENT"), "{seen:#?}");
    assert!(tested.counter("original_dst_unknown")? > 0);
    Ok(())
}

/// Without any address for a destination all is as under iptables, too.
#[test]
fn beyond_the_quota_nothing_differs() -> anyhow::Result<()> {
    require_root!();
    let subject = Redirection::flags(vec!["--max-destinations".into(), "0".into()]);
    let pair = Pair::new(Options::sidecar(), subject, &Setup::default())?;
    pair.check(&share::parts(matrix::outbound(pair.reference.pod())))?;
    Ok(())
}
