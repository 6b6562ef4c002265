//! A policy of 50,000 networks: it attaches, decides, is shown back, changes and detaches.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::ensure;
use redirector_tests::harness::prelude::*;
use serde_json::{Value, json};

/// Networks in the list.
const NETWORKS: usize = 50_000;

/// Networks that hold services of the world outside, to be first, in the middle and last in the list.
const PLACED: [&str; 3] = ["10.96.0.0/30", "fd00:96::10/128", "10.96.7.8/32"];

/// Addresses in those networks, and neighbours just outside of them.
const INSIDE: [&str; 4] = ["10.96.0.0", "10.96.0.3", "fd00:96::10", "10.96.7.8"];
const OUTSIDE: [&str; 5] = ["10.96.0.4", "fd00:96::11", "fd00:96::f", "10.96.7.7", "10.96.7.9"];

/// As many networks of each family that hold no service of the tests, neighbours in the list far apart in the trie.
fn networks() -> Vec<String> {
    let of_number = |number: u32| {
        let mixed = number.wrapping_mul(0x9e37_79b1);
        let v4 = Ipv4Addr::from_bits(11 << 24 | (mixed & 0x3f_ffff) << 2);
        [format!("{v4}/30"), format!("2001:db8:{:x}:{:x}::/64", mixed >> 16, mixed & 0xffff)]
    };
    (0..).flat_map(of_number).take(NETWORKS).collect()
}

/// Which of the addresses a connection of the app to which is captured.
fn captured(world: &World) -> anyhow::Result<Vec<&'static str>> {
    let mut scenarios = Vec::new();
    for text in INSIDE.into_iter().chain(OUTSIDE) {
        let ip: IpAddr = text.parse()?;
        let family = if ip.is_ipv4() { Family::V4 } else { Family::V6 };
        scenarios.push(Scenario::new(text, family, SocketAddr::new(ip, SERVED)));
    }
    let mut captured = Vec::new();
    for (seen, text) in world.pod().observe(APP, &scenarios)?.iter().zip(INSIDE.into_iter().chain(OUTSIDE)) {
        let reached = seen.reached.as_ref().map(|reached| reached.role.as_str());
        ensure!(matches!(reached, Some("proxy" | "remote")), "{seen:?}");
        if reached == Some("proxy") {
            captured.push(text);
        }
    }
    Ok(captured)
}

#[test]
fn fifty_thousand_networks() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, world) = (Bpffs::new()?, World::new()?);
    let pod = world.pod();
    let _proxy = pod.serve(PROXY, "proxy", proxy_listeners(1))?;
    let _remote = world.serve_outside(everywhere(&[SERVED]))?;
    let mut nets = networks();
    nets.truncate(NETWORKS - PLACED.len());
    for (place, net) in [0, nets.len() / 2, nets.len() + 1].into_iter().zip(PLACED) {
        nets.insert(place.min(nets.len()), net.to_owned());
    }
    ensure!(nets.len() == NETWORKS, "{} networks", nets.len());

    let directory = tempfile::tempdir()?;
    let file = directory.path().join("policy.json");
    let path = file.display().to_string();
    let attach = |policy: &Value| -> anyhow::Result<String> {
        std::fs::write(&file, policy.to_string())?;
        let run = bpffs.attach(pod, "pod", &["--policy", &path])?.expect(exit::OK)?;
        Ok(run.json()?["outcome"].as_str().unwrap_or_default().to_owned())
    };
    let listed = |field: &str| -> anyhow::Result<usize> {
        let shown = bpffs.show("pod")?;
        // The shown policy attaches as the same policy.
        assert_eq!(attach(&shown["record"]["policy"])?, "unchanged");
        Ok(shown["record"]["policy"][field].as_array().map_or(0, Vec::len))
    };
    let excluded = json!({"outbound_exclude_cidrs": nets});
    assert_eq!(attach(&excluded)?, "attached");
    assert_eq!(listed("outbound_exclude_cidrs")?, nets.len());
    assert_eq!(attach(&excluded)?, "unchanged");
    assert_eq!(captured(&world)?, OUTSIDE);
    bpffs.run(&["refresh", "pod"])?.expect(exit::OK)?;
    assert_eq!(captured(&world)?, OUTSIDE);

    // The same networks the other way round, beside the old ones until the change is complete.
    assert_eq!(attach(&json!({"outbound_cidrs": nets}))?, "changed");
    assert_eq!(listed("outbound_cidrs")?, nets.len());
    assert_eq!(captured(&world)?, INSIDE);

    assert_eq!(attach(&json!({}))?, "changed");
    assert_eq!(captured(&world)?, [INSIDE.as_slice(), &OUTSIDE].concat());
    bpffs.run(&["detach", "--name", "pod"])?.expect(exit::OK)?;
    assert!(captured(&world)?.is_empty());
    bpffs.expect_empty()
}
