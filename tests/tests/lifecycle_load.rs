//! A policy is changed while connections are made: each is decided under the old one or under the new one.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context;
use redirector_tests::harness::load::during;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::many::LoadReport;

/// So many connections in each direction, again and again until there have been so many changes.
const CONNECTIONS: u16 = 2000;
const CHANGES: usize = 20;

/// The policies send to different ports of the proxy, and need different programs.
const POLICIES: [&[&str]; 2] =
    [&["-p", "15001", "-z", "15006"], &["-p", "16001", "-z", "16006", "-o", "9", "-x", "192.0.2.0/24"]];

/// Services outside, all different, of both families.
fn outbound() -> Vec<SocketAddr> {
    let one = |number: u16| {
        let [high, low] = number.to_be_bytes();
        match number % 2 {
            0 => at(Ipv4Addr::new(10, 96, high, low), 1000 + number),
            _ => at(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 1, number), 1000 + number),
        }
    };
    (0..CONNECTIONS).map(one).collect()
}

/// Ports of the pod, on which nobody listens.
fn inbound(pod: &Pod) -> Vec<SocketAddr> {
    let one = |number: u16| match number % 2 {
        0 => at(pod.v4(), 1000 + number),
        _ => at(pod.v6(), 1000 + number),
    };
    (0..CONNECTIONS).map(one).collect()
}

fn assert_no_connection_lost(reports: &[LoadReport], ports: [u16; 2]) {
    let mut seen = [0, 0];
    for report in reports {
        assert!(report.wrong == 0 && report.failed.is_empty(), "{report:#?}");
        assert_eq!(report.right, usize::from(CONNECTIONS));
        let at = |port| report.reached.get(&format!("proxy:{port}")).copied().unwrap_or_default();
        let [first, second] = ports.map(at);
        assert_eq!(first + second, usize::from(CONNECTIONS), "{report:#?}");
        seen = [seen[0] + first, seen[1] + second];
    }
    assert!(seen[0] > 0 && seen[1] > 0, "only one policy was seen: {reports:#?}");
}

#[test]
fn no_connection_is_lost_while_policies_alternate() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, world) = (Bpffs::new()?, World::new()?);
    let pod = world.pod();
    let _proxy = pod.serve(PROXY, "proxy", everywhere(&[15001, 15006, 16001, 16006]))?;
    bpffs.attach(pod, NAME, POLICIES[0])?.expect(exit::OK)?;
    let change = |number: usize| -> anyhow::Result<()> {
        let run = bpffs.attach(pod, NAME, POLICIES[number % 2])?.expect(exit::OK)?.json()?;
        assert_eq!(run["outcome"], "changed", "{run:#}");
        Ok(())
    };

    let (app, outside) = (pod.place(APP)?, world.outside());
    let load = |destinations| Load { threads: 4, ..Load::to(destinations) };
    let loads = [(&app, load(outbound())), (&outside, load(inbound(pod)))];
    let reports = during(&loads, || (1..=CHANGES).try_for_each(change))?;
    let made = reports.iter().map(Vec::len).sum::<usize>() * usize::from(CONNECTIONS);
    println!("{CHANGES} changes while {made} connections were made");
    assert_no_connection_lost(&reports[0], [15001, 16001]);
    assert_no_connection_lost(&reports[1], [15006, 16006]);

    // The registry of listeners and the exposed map have not kept anything of it.
    change(CHANGES + 1)?;
    change(CHANGES + 2)?;
    let show = bpffs.show(NAME)?;
    for listener in show["listeners"].as_array().context("listeners")? {
        assert_eq!((&listener["ipv4"], &listener["ipv6"]), (&1.into(), &1.into()), "{show:#}");
    }
    assert_eq!(show["connections"], 0, "{show:#}");
    assert_eq!(bpffs.run(&["original-dst", NAME])?.expect(exit::OK)?.json()?, serde_json::json!([]));
    Ok(())
}
