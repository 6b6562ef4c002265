//! A short run of `cargo xtask endure`, and that it finds faults.

use std::path::Path;
use std::process::Command;

use redirector_tests::harness::campaign::planted::second_meaning;
use redirector_tests::harness::endure::cycles::cycles;
use redirector_tests::harness::endure::{Endurance, Endured, connections};
use redirector_tests::harness::prelude::*;

const DESTINATIONS: u32 = 2_000;

/// Each part goes to each destination once.
fn short(destinations: u32, quota: u32) -> Endurance {
    let destinations = if retry::is_slow() { destinations / 10 } else { destinations };
    Endurance { connections: 10 * u64::from(destinations), destinations, quota }
}

/// Does something to the instance after the first part.
fn planted(wanted: &Endurance, plant: impl Fn(&Path) -> anyhow::Result<()>) -> anyhow::Result<Endured> {
    let mut is_first = true;
    connections(wanted, |tested, _| {
        if std::mem::take(&mut is_first) { plant(&tested.bpffs.instance(NAME)) } else { Ok(()) }
    })
}

#[test]
fn within_the_quota() -> anyhow::Result<()> {
    require_root!("bpftool");
    let wanted = short(DESTINATIONS, 4096);
    let endured = connections(&wanted, |_, _| Ok(()))?;
    println!("{endured}");
    assert_eq!(endured.fault(), None);
    let of_ipv6 = if kernel::has_ipv6() { wanted.destinations / 10 } else { 0 };
    assert_eq!((endured.given, endured.full), (u64::from(wanted.destinations - of_ipv6), 0));
    Ok(())
}

#[test]
fn beyond_the_quota() -> anyhow::Result<()> {
    require_root!("bpftool");
    let wanted = short(DESTINATIONS, DESTINATIONS / 40);
    let endured = connections(&wanted, |_, _| Ok(()))?;
    println!("{endured}");
    assert_eq!(endured.fault(), None);
    assert_eq!(endured.given, u64::from(wanted.quota));
    assert!(endured.full > wanted.connections / 2, "{endured}");
    Ok(())
}

#[test]
fn a_second_meaning_is_found() -> anyhow::Result<()> {
    require_root!("bpftool");
    let endured = planted(&short(DESTINATIONS / 10, 4096), second_meaning)?;
    assert!(endured.seen.wrong > 0 && endured.seen.missing == 0, "{endured}");
    assert!(endured.fault().is_some_and(|fault| fault.contains("told")), "{endured}");
    Ok(())
}

/// Entries of connections that nobody removes.
#[test]
fn growth_is_found() -> anyhow::Result<()> {
    require_root!("bpftool");
    if !kernel::is_at_least(6, 4) {
        println!("note: this kernel counts the memory of a map by its size");
        return Ok(());
    }
    let endured = planted(&short(DESTINATIONS / 10, 10), |instance| {
        let map = instance.join("FLOWS").display().to_string();
        let update = |port: u16| {
            let mut key = [0_u8; 40];
            key[..4].copy_from_slice(&288_u32.to_ne_bytes());
            key[4..6].copy_from_slice(&port.to_ne_bytes());
            let bytes = key.map(|byte| byte.to_string()).join(" ");
            format!("map update pinned {map} key {bytes} value {}\n", ["0"; 28].join(" "))
        };
        let batch: String = (1..=500).map(update).collect();
        run(Command::new("bpftool").args(["batch", "file", "-"]), &batch).map(drop)
    })?;
    assert!(endured.fault().is_some_and(|fault| fault.contains("has grown")), "{endured}");
    Ok(())
}

#[test]
fn attach_and_detach() -> anyhow::Result<()> {
    require_root!("bpftool");
    let cycled = cycles(20, true)?;
    println!("{cycled}");
    assert_eq!(cycled.left, None);
    Ok(())
}

#[test]
fn a_detach_that_is_left_out_is_found() -> anyhow::Result<()> {
    require_root!("bpftool");
    let cycled = cycles(9, false)?;
    assert!(cycled.left.is_some(), "{cycled}");
    Ok(())
}
