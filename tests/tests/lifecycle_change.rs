//! Attaching again, to the same policy and to another; addresses, routes and interfaces that change afterwards.

use std::net::Ipv4Addr;

use anyhow::Context;
use redirector_tests::harness::kernel::{self, refusal};
use redirector_tests::harness::prelude::*;
use serde_json::{Value, json};

/// A pod with two interfaces that nobody has attached yet.
fn unattached() -> anyhow::Result<TestPod> {
    let pod = PodOptions { second_interface: true, ..PodOptions::default() };
    TestPod::with(&Setup { pod, ..Setup::default() })
}

#[test]
fn the_same_again_changes_nothing() -> anyhow::Result<()> {
    require_root!();
    let tested = unattached()?;
    assert_eq!(tested.attach(&["-o", "25,22", "-x", "10.5.0.0/16"])?.json()?["outcome"], "attached");
    assert_eq!(tested.pod().connect(SERVICE)?, captured(SERVICE));
    let before = tested.show()?;
    let (pins, objects) = (tested.bpffs.pins()?, Objects::of(&tested.bpffs, NAME)?);

    // Equal after parsing, not as written.
    for flags in [["-o", "22,25", "-x", "10.5.0.0/16"], ["-o", "25,22,22", "-x", "10.5.6.7/16"]] {
        let again = tested.attach(&flags)?.json()?;
        assert_eq!(again["outcome"], "unchanged", "{again:#}");
        assert_eq!(again["name"], NAME);
    }
    assert_eq!(tested.show()?, before);
    assert_eq!(tested.bpffs.pins()?, pins);
    assert_eq!(Objects::of(&tested.bpffs, NAME)?, objects);
    Ok(())
}

#[test]
fn another_policy_is_shown_and_counters_survive() -> anyhow::Result<()> {
    require_root!();
    let tested = unattached()?;
    let to = at(VIP4, UNSERVED);
    tested.attach(&[])?;
    assert_eq!(tested.pod().connect(to)?, captured(to));
    let first = tested.show()?;
    let objects = Objects::of(&tested.bpffs, NAME)?;
    let rules = first["counters"].as_array().context("counters")?;
    let rule = rules.iter().find(|counter| counter["connections"] == 1).context("a rule counted it")?;
    let rule = rule["rule"].as_str().context("a name")?.to_owned();

    let changed = tested.attach(&["-o", "81", "-p", "16001", "-i", "10.96.0.0/16,fd00:96::/64"])?.json()?;
    assert_eq!(changed["outcome"], "changed", "{changed:#}");
    assert_eq!(tested.pod().connect(to)?, "ECONNREFUSED", "an excluded port is not captured any more");
    let second = tested.show()?;
    let policy = &second["record"]["policy"];
    assert_eq!(policy["outbound_port"], 16001);
    assert_eq!(policy["outbound_exclude_ports"], json!([81]));
    assert_eq!(policy["outbound_cidrs"], json!(["10.96.0.0/16", "fd00:96::/64"]));
    assert_eq!(counter(&second, &rule)?, 1, "the counters of the first policy are gone");
    assert_eq!(counter(&second, "out_excluded_port")?, 1);

    let back = tested.attach(&[])?.json()?;
    assert_eq!(back["outcome"], "changed");
    assert_eq!(tested.pod().connect(to)?, captured(to));
    let third = tested.show()?;
    assert_eq!(third["record"], first["record"]);
    assert_eq!(counter(&third, &rule)?, 2);
    assert_eq!(
        Objects::of(&tested.bpffs, NAME)?.links,
        objects.links,
        "links stay, or there would be a window"
    );
    Ok(())
}

/// `::6` is for Envoy's IPv6 connections: it comes with a policy that captures IPv6, and goes with the instance.
#[test]
fn lo6_comes_with_ipv6() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, world) = (Bpffs::new()?, World::new()?);
    let pod = world.pod();
    bpffs.attach(pod, NAME, &["--ipv6", "off"])?.expect(exit::OK)?;
    assert!(!has_lo6(&pod.netns)?);
    bpffs.attach(pod, NAME, &["--ipv6", "on"])?.expect(exit::OK)?;
    assert!(has_lo6(&pod.netns)?);
    assert_eq!(bpffs.show(NAME)?["added_lo6"], true);
    bpffs.attach(pod, NAME, &["--ipv6", "off"])?.expect(exit::OK)?;
    bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    assert!(!has_lo6(&pod.netns)?, "detach leaves ::6");

    // The address stays if it was there before.
    pod.netns.ip("address add ::6/128 dev lo nodad\n")?;
    bpffs.attach(pod, NAME, &[])?.expect(exit::OK)?;
    assert_eq!(bpffs.show(NAME)?["added_lo6"], false);
    bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    assert!(has_lo6(&pod.netns)?, "detach takes away what was not ours");
    Ok(())
}

#[test]
fn refresh_sees_new_routes_addresses_and_interfaces() -> anyhow::Result<()> {
    require_root!();
    let tested = unattached()?;
    let pod = tested.pod();
    // Where the kernel has it: the rest of this test is of all kernels.
    let interfaces = has_or_refuses(kernel::TELLS_INTERFACES, &["-c", "eth1,eth2"])?;
    tested.attach(if interfaces { &["-c", "eth1,eth2"] } else { &[] })?.json()?;
    let refresh = || tested.refresh()?.json();

    // A destination that was unreachable.
    let dead = at(Ipv4Addr::new(10, 98, 0, 1), SERVED);
    assert_eq!(pod.connect(dead)?, refusal("EHOSTUNREACH"));
    pod.netns.ip("route replace 10.98.0.0/16 via 10.77.0.1\n")?;
    assert_eq!(refresh()?["outcome"], "refreshed");
    assert_eq!(pod.connect(dead)?, captured(dead));
    pod.netns.ip("route delete 10.98.0.0/16 via 10.77.0.1\nroute add prohibit 10.98.0.0/16\n")?;
    refresh()?;
    assert_eq!(pod.connect(dead)?, refusal("EACCES"));

    // A new address of its own: a call to itself is left to the app, though it is not on 127.0.0.1.
    let own = Ipv4Addr::new(10, 77, 0, 99);
    assert_eq!(pod.connect(at(own, SERVED))?, captured(at(own, SERVED)));
    pod.netns.ip(&format!("address add {own}/32 dev eth0\n"))?;
    refresh()?;
    assert_eq!(pod.connect(at(own, SERVED))?, "app:8080");
    if !interfaces {
        return Ok(());
    }

    // Interfaces are known by the indices they have now.
    let second = at(SECOND4, SERVED);
    assert_eq!(pod.connect(second)?, "remote:8080");
    pod.netns.ip("link set eth1 down\nlink set eth1 name net1\nlink set net1 up\nroute add 10.94.0.0/16 via 10.78.0.1\n")?;
    pod.netns.wait_until_links_are_up()?;
    refresh()?;
    assert_eq!(pod.connect(second)?, captured(second));
    pod.netns.ip("link set net1 down\nlink set net1 name eth2\nlink set eth2 up\nroute add 10.94.0.0/16 via 10.78.0.1\n")?;
    pod.netns.wait_until_links_are_up()?;
    refresh()?;
    assert_eq!(pod.connect(second)?, "remote:8080");

    let show = tested.show()?;
    assert_eq!(
        show["record"]["policy"]["exclude_interfaces"],
        json!(["eth1", "eth2"]),
        "the policy is as it was"
    );
    assert_eq!(links_of(pod)?, [show["hooks"].as_array().map_or(0, Vec::len) - 1, 1]);
    Ok(())
}

/// A name of `-c` or `-k` that is no interface has no effect, and attach says so.
#[test]
fn interfaces_that_are_not_there_are_named() -> anyhow::Result<()> {
    if !require_root() || !has_or_refuses(kernel::TELLS_INTERFACES, &["-c", "eth1,net7"])? {
        return Ok(());
    }
    let tested = unattached()?;
    let named = |answer: Value, option: &str| {
        let notes = answer["notes"].as_array().cloned().unwrap_or_default();
        let about = |note: &&Value| note.as_str().is_some_and(|text| text.starts_with(option));
        notes.iter().filter(about).map(Value::to_string).collect::<Vec<_>>().join(" ")
    };
    let flags = ["-c", "eth1,net7", "-k", "vnet8,eth1"];
    let attached = tested.attach(&flags)?.json()?;
    let (excluded, virtual_ones) = (named(attached.clone(), "-c:"), named(attached, "-k: there is"));
    assert!(excluded.contains("net7") && !excluded.contains("eth1"), "{excluded}");
    assert!(virtual_ones.contains("vnet8") && !virtual_ones.contains("eth1"), "{virtual_ones}");
    tested.pod().netns.ip("link set eth1 down\nlink set eth1 name net7\n")?;
    let refreshed = named(tested.refresh()?.json()?, "-c:");
    assert!(refreshed.contains("eth1") && !refreshed.contains("net7"), "{refreshed}");
    Ok(())
}

/// `refresh` finds the namespace again when the process that stood for it has ended.
#[test]
fn refresh_outlives_the_process_of_the_attach() -> anyhow::Result<()> {
    require_root!();
    let tested = unattached()?;
    let pod = tested.pod();
    let gone = pod.serve(APP, "first", Vec::new())?;
    let pid = gone.pid().to_string();
    let attached = tested.bpffs.run(&["attach", "--pid", &pid, "--name", NAME])?.expect(exit::OK)?.json()?;
    assert_eq!(attached["outcome"], "attached");
    drop(gone);
    let own = Ipv4Addr::new(10, 77, 0, 99);
    pod.netns.ip(&format!("address add {own}/32 dev eth0\n"))?;
    tested.refresh()?;
    assert_eq!(pod.connect(at(own, SERVED))?, "app:8080");
    let record = &tested.show()?["record"];
    assert_eq!(record["pid"].as_u64().map(|pid| pid.to_string()).as_deref(), Some(pid.as_str()));

    tested.bpffs.run(&["refresh", "nobody"])?.refused(exit::NOTHING, &["nobody"])?;
    tested.bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    tested.bpffs.run(&["refresh", NAME])?.refused(exit::NOTHING, &[NAME])?;
    tested.bpffs.expect_empty()
}
