//! What depends on the kernel: `check` tells it, and what is missing is made up for or refused, never ignored. Runs on
//! kernels without IPv6, too, where most other tests cannot.

use anyhow::Context;
use serde_json::Value;

use redirector_tests::harness::kernel::{is_at_least, refusal};
use redirector_tests::harness::pair::fixture::{By, Side};
use redirector_tests::harness::pair::matrix::SERVED;
use redirector_tests::harness::probe::observation::Observation;
use redirector_tests::harness::probe::scenario::Scenario;
use redirector_tests::harness::product::bpffs::Node;
use redirector_tests::harness::product::{exit, redirector};
use redirector_tests::harness::requirements::require_root;
use redirector_tests::harness::server::{INBOUND, OUTBOUND};
use redirector_tests::harness::world::{APP, VIP4, at, observe};

const NAME: &str = "pod";

fn attached() -> anyhow::Result<Option<(Node, Side)>> {
    if !require_root() {
        return Ok(None);
    }
    let (node, side) = (Node::new()?, Side::new(By::Nobody)?);
    node.attach(side.pod(), NAME, &[])?.expect(exit::OK)?;
    Ok(Some((node, side)))
}

/// What became of one connection of an application.
fn connect(side: &Side, to: [u8; 4]) -> anyhow::Result<String> {
    summary(side.pod().observe(APP, &[Scenario::to(at(to, SERVED))])?)
}

fn summary(seen: Vec<Observation>) -> anyhow::Result<String> {
    Ok(seen.first().context("an observation")?.summary())
}

/// Features by the versions that brought them; a distribution may have brought them to an older kernel.
#[test]
fn check_tells_what_is_there() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let findings = redirector(&["check"], &[])?.expect(exit::OK)?.json()?;
    let findings = findings.as_array().context("an array")?;
    let find = |name: &str| findings.iter().find(|finding| finding["name"] == name).context(name.to_owned());
    for (name, major, minor) in
        [("bpf_set_retval", 5, 18), ("sk_lookup ingress_ifindex", 5, 17), ("netns cookie in sockops", 5, 15)]
    {
        let finding = find(name)?;
        assert!(finding["present"] == true || !is_at_least(major, minor), "{finding:#}");
        assert_eq!(finding["present"] == false, finding["remedy"] != "", "{finding:#}");
    }
    let programs: Vec<&Value> = findings
        .iter()
        .filter(|finding| finding["name"].as_str().is_some_and(|name| name.starts_with("program ")))
        .collect();
    assert!(programs.len() >= 13, "{findings:#?}");
    for program in programs {
        assert_eq!(program["present"], true, "{program:#}");
        assert_eq!(program["verified_instructions"].is_u64(), is_at_least(5, 16), "{program:#}");
    }
    Ok(())
}

/// The least of it all: IPv4, both directions, each with its original destination.
#[test]
fn both_directions_are_captured() -> anyhow::Result<()> {
    let Some((node, side)) = attached()? else { return Ok(()) };
    let sent = connect(&side, VIP4.octets())?;
    assert_eq!(sent, format!("proxy:{OUTBOUND} original {VIP4}:{SERVED}"));
    let pod = at(side.pod().v4(), SERVED);
    let arrived = summary(side.world.observe_from_outside(&[Scenario::to(pod)])?)?;
    assert_eq!(arrived, format!("proxy:{INBOUND} original {pod}"));
    node.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    node.expect_empty()
}

/// Routes that refuse still do, with the errno of the route where the kernel lets a program say so.
#[test]
fn refusals_are_those_of_routing() -> anyhow::Result<()> {
    let Some((_node, side)) = attached()? else { return Ok(()) };
    for (network, errno) in [(98, "EHOSTUNREACH"), (99, "EACCES"), (97, "EINVAL"), (95, "ENETUNREACH")] {
        let became = connect(&side, [10, network, 0, 1])?;
        assert!(became.contains(refusal(errno)), "10.{network}.0.1: {became} instead of {errno}");
    }
    Ok(())
}

/// Two pods in one cgroup, one of them captured: the namespace tells them apart, by cookie or by inode number.
#[test]
fn another_namespace_in_the_cgroup_is_left_alone() -> anyhow::Result<()> {
    let Some((_node, side)) = attached()? else { return Ok(()) };
    let other = Side::new(By::Nobody)?;
    let mut place = other.pod().place(APP)?;
    place.cgroup = Some(side.pod().cgroup.directory().to_owned());
    let became = summary(observe(&place, &[Scenario::to(at(VIP4, SERVED))])?)?;
    assert!(!became.contains("proxy"), "{became}");
    assert!(connect(&side, VIP4.octets())?.contains("proxy"));
    Ok(())
}

/// Before 5.17 sk_lookup does not tell the interface: what needs it is refused, on attach and on change.
#[test]
fn excluded_interfaces_work_or_are_refused() -> anyhow::Result<()> {
    let Some((node, side)) = attached()? else { return Ok(()) };
    let known = {
        let findings = redirector(&["check"], &[])?.json()?;
        let all = findings.as_array().context("an array")?;
        all.iter().any(|finding| finding["name"] == "sk_lookup ingress_ifindex" && finding["present"] == true)
    };
    let run = node.attach(side.pod(), NAME, &["-c", "eth0"])?;
    if known {
        run.expect(exit::OK)?;
        return Ok(());
    }
    run.refused(exit::CANNOT, &["-c", "5.17"])?;
    assert!(connect(&side, VIP4.octets())?.contains("proxy"), "the policy in force has stayed");
    let (node, side) = (Node::new()?, Side::new(By::Nobody)?);
    node.attach(side.pod(), NAME, &["-c", "eth0"])?.refused(exit::CANNOT, &["-c", "5.17"])?;
    node.expect_empty()
}
