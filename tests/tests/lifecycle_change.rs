//! Attaching again, to the same policy and to another; addresses, routes and interfaces that change afterwards.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use serde_json::{Value, json};

use redirector_tests::harness::kernel::{self, refusal};
use redirector_tests::harness::pair::fixture::{By, Setup, Side};
use redirector_tests::harness::pair::matrix::{SERVED, UNSERVED};
use redirector_tests::harness::probe::observation::Observation;
use redirector_tests::harness::probe::scenario::Scenario;
use redirector_tests::harness::product::bpffs::{Node, has_or_refuses};
use redirector_tests::harness::product::exit;
use redirector_tests::harness::product::objects::{Objects, has_lo6, links_of};
use redirector_tests::harness::requirements::require_root;
use redirector_tests::harness::world::{APP, Pod, PodOptions, SECOND4, VIP4, World, at};

const NAME: &str = "pod";

/// A pod with its servers that nobody has attached yet, on a node of its own.
fn world() -> anyhow::Result<(Node, Side)> {
    let pod = PodOptions { second_interface: true, ..PodOptions::default() };
    Ok((Node::new()?, Side::with(By::Nobody, &Setup { pod, ..Setup::default() })?))
}

fn attach(node: &Node, side: &Side, flags: &[&str]) -> anyhow::Result<Value> {
    node.attach(side.pod(), NAME, flags)?.expect(exit::OK)?.json()
}

fn connect(pod: &Pod, to: SocketAddr) -> anyhow::Result<String> {
    let seen = pod.observe(APP, &[Scenario::to(to)])?;
    Ok(seen.first().map(Observation::summary).unwrap_or_default())
}

fn counter(show: &Value, rule: &str) -> anyhow::Result<u64> {
    let counters = show["counters"].as_array().context("counters")?;
    let counter = counters.iter().find(|counter| counter["rule"] == rule).with_context(|| rule.to_owned())?;
    counter["connections"].as_u64().context("a number")
}

fn captured(to: SocketAddr) -> String {
    format!("proxy:15001 original {to}")
}

#[test]
fn the_same_again_changes_nothing() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let (node, side) = world()?;
    assert_eq!(attach(&node, &side, &["-o", "25,22", "-x", "10.5.0.0/16"])?["outcome"], "attached");
    assert_eq!(connect(side.pod(), at(VIP4, SERVED))?, captured(at(VIP4, SERVED)));
    let before = node.show(NAME)?;
    let (pins, objects) = (node.pins()?, Objects::of(&before)?);

    // Equal after parsing, not as written.
    for flags in [["-o", "22,25", "-x", "10.5.0.0/16"], ["-o", "25,22,22", "-x", "10.5.6.7/16"]] {
        let again = attach(&node, &side, &flags)?;
        assert_eq!(again["outcome"], "unchanged", "{again:#}");
        assert_eq!(again["name"], NAME);
    }
    assert_eq!(node.show(NAME)?, before);
    assert_eq!(node.pins()?, pins);
    assert_eq!(Objects::of(&before)?, objects);
    Ok(())
}

#[test]
fn another_policy_is_shown_and_counters_survive() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let (node, side) = world()?;
    let to = at(VIP4, UNSERVED);
    attach(&node, &side, &[])?;
    assert_eq!(connect(side.pod(), to)?, captured(to));
    let first = node.show(NAME)?;
    let objects = Objects::of(&first)?;
    let rules = first["counters"].as_array().context("counters")?;
    let rule = rules.iter().find(|counter| counter["connections"] == 1).context("a rule counted it")?;
    let rule = rule["rule"].as_str().context("a name")?.to_owned();

    let changed = attach(&node, &side, &["-o", "81", "-p", "16001", "-i", "10.96.0.0/16,fd00:96::/64"])?;
    assert_eq!(changed["outcome"], "changed", "{changed:#}");
    assert_eq!(connect(side.pod(), to)?, "ECONNREFUSED", "an excluded port is not captured any more");
    let second = node.show(NAME)?;
    let policy = &second["record"]["policy"];
    assert_eq!(policy["outbound_port"], 16001);
    assert_eq!(policy["outbound_exclude_ports"], json!([81]));
    assert_eq!(policy["outbound_cidrs"], json!(["10.96.0.0/16", "fd00:96::/64"]));
    assert_eq!(counter(&second, &rule)?, 1, "the counters of the first policy are gone");
    assert_eq!(counter(&second, "out_excluded_port")?, 1);

    let back = attach(&node, &side, &[])?;
    assert_eq!(back["outcome"], "changed");
    assert_eq!(connect(side.pod(), to)?, captured(to));
    let third = node.show(NAME)?;
    assert_eq!(third["record"], first["record"]);
    assert_eq!(counter(&third, &rule)?, 2);
    assert_eq!(Objects::of(&third)?.links, objects.links, "links stay, or there would be a window");
    Ok(())
}

/// `::6` is for Envoy's IPv6 connections: it comes with a policy that captures IPv6, and goes with the instance.
#[test]
fn lo6_comes_with_ipv6() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let (node, world) = (Node::new()?, World::new()?);
    let pod = world.pod();
    node.attach(pod, NAME, &["--ipv6", "off"])?.expect(exit::OK)?;
    assert!(!has_lo6(&pod.netns)?);
    node.attach(pod, NAME, &["--ipv6", "on"])?.expect(exit::OK)?;
    assert!(has_lo6(&pod.netns)?);
    assert_eq!(node.show(NAME)?["added_lo6"], true);
    node.attach(pod, NAME, &["--ipv6", "off"])?.expect(exit::OK)?;
    node.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    assert!(!has_lo6(&pod.netns)?, "detach leaves ::6");

    // What was there before us stays.
    pod.netns.ip("address add ::6/128 dev lo nodad\n")?;
    node.attach(pod, NAME, &[])?.expect(exit::OK)?;
    assert_eq!(node.show(NAME)?["added_lo6"], false);
    node.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    assert!(has_lo6(&pod.netns)?, "detach takes away what was not ours");
    Ok(())
}

#[test]
fn refresh_sees_new_routes_addresses_and_interfaces() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let (node, side) = world()?;
    let pod = side.pod();
    // Where the kernel has it: the rest of this test is of all kernels.
    let interfaces = has_or_refuses(kernel::TELLS_INTERFACES, &["-c", "eth1,eth2"])?;
    attach(&node, &side, if interfaces { &["-c", "eth1,eth2"] } else { &[] })?;
    let refresh = || node.run(&["refresh", NAME])?.expect(exit::OK)?.json();

    // A destination that was unreachable.
    let dead = at(Ipv4Addr::new(10, 98, 0, 1), SERVED);
    assert_eq!(connect(pod, dead)?, refusal("EHOSTUNREACH"));
    pod.netns.ip("route replace 10.98.0.0/16 via 10.77.0.1\n")?;
    assert_eq!(refresh()?["outcome"], "refreshed");
    assert_eq!(connect(pod, dead)?, captured(dead));
    pod.netns.ip("route delete 10.98.0.0/16 via 10.77.0.1\nroute add prohibit 10.98.0.0/16\n")?;
    refresh()?;
    assert_eq!(connect(pod, dead)?, refusal("EACCES"));

    // A new address of its own: a call to itself is left to the app, though it is not on 127.0.0.1.
    let own = Ipv4Addr::new(10, 77, 0, 99);
    assert_eq!(connect(pod, at(own, SERVED))?, captured(at(own, SERVED)));
    pod.netns.ip(&format!("address add {own}/32 dev eth0\n"))?;
    refresh()?;
    assert_eq!(connect(pod, at(own, SERVED))?, "app:8080");
    if !interfaces {
        return Ok(());
    }

    // Interfaces are known by the indices they have now.
    let second = at(SECOND4, SERVED);
    assert_eq!(connect(pod, second)?, "remote:8080");
    pod.netns.ip("link set eth1 down\nlink set eth1 name net1\nlink set net1 up\nroute add 10.94.0.0/16 via 10.78.0.1\n")?;
    pod.netns.wait_until_links_are_up()?;
    refresh()?;
    assert_eq!(connect(pod, second)?, captured(second));
    pod.netns.ip("link set net1 down\nlink set net1 name eth2\nlink set eth2 up\nroute add 10.94.0.0/16 via 10.78.0.1\n")?;
    pod.netns.wait_until_links_are_up()?;
    refresh()?;
    assert_eq!(connect(pod, second)?, "remote:8080");

    let show = node.show(NAME)?;
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
    let (node, side) = world()?;
    let named = |answer: Value, option: &str| {
        let notes = answer["notes"].as_array().cloned().unwrap_or_default();
        let about = |note: &&Value| note.as_str().is_some_and(|text| text.starts_with(option));
        notes.iter().filter(about).map(Value::to_string).collect::<Vec<_>>().join(" ")
    };
    let flags = ["-c", "eth1,net7", "-k", "vnet8,eth1"];
    let attached = attach(&node, &side, &flags)?;
    let (excluded, virtual_ones) = (named(attached.clone(), "-c:"), named(attached, "-k: there is"));
    assert!(excluded.contains("net7") && !excluded.contains("eth1"), "{excluded}");
    assert!(virtual_ones.contains("vnet8") && !virtual_ones.contains("eth1"), "{virtual_ones}");
    side.pod().netns.ip("link set eth1 down\nlink set eth1 name net7\n")?;
    let refreshed = named(node.run(&["refresh", NAME])?.expect(exit::OK)?.json()?, "-c:");
    assert!(refreshed.contains("eth1") && !refreshed.contains("net7"), "{refreshed}");
    Ok(())
}

/// `refresh` finds the namespace again when the process that stood for it has ended.
#[test]
fn refresh_outlives_the_process_of_the_attach() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let (node, side) = world()?;
    let pod = side.pod();
    let gone = pod.serve(APP, "first", Vec::new())?;
    let pid = gone.pid().to_string();
    let attached = node.run(&["attach", "--pid", &pid, "--name", NAME])?.expect(exit::OK)?.json()?;
    assert_eq!(attached["outcome"], "attached");
    drop(gone);
    let own = Ipv4Addr::new(10, 77, 0, 99);
    pod.netns.ip(&format!("address add {own}/32 dev eth0\n"))?;
    node.run(&["refresh", NAME])?.expect(exit::OK)?;
    assert_eq!(connect(pod, at(own, SERVED))?, "app:8080");
    let record = &node.show(NAME)?["record"];
    assert_eq!(record["pid"].as_u64().map(|pid| pid.to_string()).as_deref(), Some(pid.as_str()));

    node.run(&["refresh", "nobody"])?.refused(exit::NOTHING, &["nobody"])?;
    node.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    node.run(&["refresh", NAME])?.refused(exit::NOTHING, &[NAME])?;
    node.expect_empty()
}
