//! Many connections at once: no original destination is lost or mistaken for another's.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::many::LoadReport;
use redirector_tests::harness::probe::storm::End;

/// This many different services exist outside; all lead to different original destinations.
fn services4(count: u16) -> impl Iterator<Item = SocketAddr> {
    (0..count).map(|number| {
        let [high, low] = number.to_be_bytes();
        at(Ipv4Addr::new(10, 96, high, low), 1000 + number)
    })
}

fn services6(count: u16) -> impl Iterator<Item = SocketAddr> {
    (0..count).map(|number| at(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 1, number), 1000 + number))
}

/// So many of each family.
fn services(count: u16) -> Vec<SocketAddr> {
    services4(count).zip(services6(count)).flat_map(|(v4, v6)| [v4, v6]).collect()
}

fn share(count: u16) -> u16 {
    u16::try_from(share::times(count.into(), 200)).unwrap_or(count)
}

fn run(
    by: Redirection,
    destinations: Vec<SocketAddr>,
    end: End,
    ports: Option<&str>,
) -> anyhow::Result<LoadReport> {
    let same_port = !matches!(by, Redirection::Iptables(_));
    let fixture = Fixture::new(by)?;
    if let Some(range) = ports {
        fixture.pod().netns.sysctl(&[("ipv4/ip_local_port_range", range)])?;
    }
    let report = fixture.pod().load(APP, &Load { destinations, threads: 16, end, same_port })?;
    if let Some(proxy) = &fixture.proxy {
        assert_eq!(proxy.accepted().len(), report.right + report.wrong, "{report:#?}");
    }
    Ok(report)
}

fn assert_all_right(by: &Redirection, report: &LoadReport, expected: usize) {
    assert!(report.wrong == 0 && report.failed.is_empty(), "{}: {report:#?}", by.label());
    assert_eq!(report.right, expected, "{}", by.label());
    assert_eq!(report.reached.get("proxy:15001"), Some(&expected), "{}: {report:#?}", by.label());
}

fn both(destinations: &[SocketAddr], end: End, ports: Option<&str>) -> anyhow::Result<()> {
    require_root!();
    for by in [Redirection::iptables(), Redirection::redirector()] {
        let report = run(by.clone(), destinations.to_vec(), end, ports)?;
        assert_all_right(&by, &report, destinations.len());
    }
    Ok(())
}

/// Ten thousand connections of both families from many threads.
#[test]
fn ten_thousand_connections() -> anyhow::Result<()> {
    both(&services(share(5000)), End::Reset, None)
}

/// Two thousand at the same time.
#[test]
fn two_thousand_open_connections() -> anyhow::Result<()> {
    both(&services(share(1000)), End::Keep, None)
}

/// Ports are a client's per destination: with ten of them thirty services can be connected to at the same time, though
/// all connections end at the same proxy.
#[test]
fn more_destinations_than_source_ports() -> anyhow::Result<()> {
    both(&services4(30).collect::<Vec<_>>(), End::Keep, Some("40000 40009"))
}
