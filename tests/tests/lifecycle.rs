//! Attach, look, detach: exit codes, and that nothing is left behind.

use redirector_tests::harness::names;
use redirector_tests::harness::pair::fixture::{By, Side};
use redirector_tests::harness::pair::matrix::{SERVED, UNSERVED};
use redirector_tests::harness::probe::observation::Observation;
use redirector_tests::harness::probe::scenario::Scenario;
use redirector_tests::harness::product::objects::links_of;
use redirector_tests::harness::product::{Instance, attach_run, exit, is_listed, redirector};
use redirector_tests::harness::requirements::{require_program, require_root};
use redirector_tests::harness::world::{APP, VIP4, World, at};

fn outcome(side: &Side) -> anyhow::Result<[String; 2]> {
    let out = side.pod().observe(APP, &[Scenario::to(at(VIP4, SERVED))])?;
    let into = side.world.observe_from_outside(&[Scenario::to(at(side.pod().v4(), SERVED))])?;
    let summary = |seen: &[Observation]| seen.first().map(Observation::summary).unwrap_or_default();
    Ok([summary(&out), summary(&into)])
}

#[test]
fn detach_leaves_nothing_behind() -> anyhow::Result<()> {
    if !require_root() || require_program("bpftool").is_none() {
        return Ok(());
    }
    let mut side = Side::new(By::Redirector)?;
    let captured = ["proxy:15001 original 10.96.0.10:8080", "proxy:15006 original 10.77.0.2:8080"];
    assert_eq!(outcome(&side)?, captured);
    let [to_cgroup, to_netns] = links_of(side.pod())?;
    assert!(to_cgroup > 0 && to_netns > 0, "{to_cgroup}, {to_netns}: the check sees nothing");
    let Some(instance) = side.instance.take() else { unreachable!("the side is redirected by it") };
    let name = instance.name().to_owned();
    assert!(is_listed(&name)?);
    instance.show()?;
    instance.detach()?;
    assert!(!is_listed(&name)?);
    assert_eq!(links_of(side.pod())?, [0, 0]);
    assert_eq!(outcome(&side)?, ["remote:8080", "app:8080"]);
    Ok(())
}

#[test]
fn exit_codes() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let world = World::new()?;
    let pod = world.pod();
    let nobody = names::unique();
    redirector(&["detach", "--name", &nobody], &[])?.expect(exit::NOTHING)?;
    redirector(&["detach", "--name", &nobody, "--ignore-missing"], &[])?.expect(exit::OK)?;
    redirector(&["show", &nobody], &[])?.expect(exit::NOTHING)?;
    redirector(&["attach", "--no-such-flag"], &[])?.expect(exit::USAGE)?;
    attach_run(pod, &nobody, &["-b".into(), "no port".into()], &[])?.expect(exit::USAGE)?;
    attach_run(pod, "NOT A NAME", &[], &[])?.expect(exit::USAGE)?;
    assert!(!is_listed(&nobody)?, "a refused attach leaves an instance");

    let instance = Instance::attach_default(pod)?;
    // The same again is nothing to do; under another name it is a mistake.
    attach_run(pod, instance.name(), &[], &[])?.expect(exit::OK)?;
    attach_run(pod, &nobody, &[], &[])?.expect(exit::USAGE)?;
    assert!(!is_listed(&nobody)?);
    instance.detach()
}

/// The policy of an instance can be replaced.
#[test]
fn another_policy_is_swapped_in() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let side = Side::new(By::Redirector)?;
    let Some(instance) = &side.instance else { unreachable!("the side is redirected by it") };
    let connect = |port| -> anyhow::Result<String> {
        let seen = side.pod().observe(APP, &[Scenario::to(at(VIP4, port))])?;
        Ok(seen.first().map(Observation::summary).unwrap_or_default())
    };
    assert_eq!(connect(UNSERVED)?, "proxy:15001 original 10.96.0.10:81");
    attach_run(side.pod(), instance.name(), &["-o".into(), UNSERVED.to_string()], &[])?.expect(exit::OK)?;
    assert_eq!(connect(UNSERVED)?, "ECONNREFUSED");
    assert_eq!(connect(SERVED)?, "proxy:15001 original 10.96.0.10:8080");
    Ok(())
}

/// Instances are separate: detaching one leaves its neighbour alone, though both have the same addresses.
#[test]
fn neighbours_do_not_matter() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let first = Side::new(By::Redirector)?;
    let second = Side::new(By::Redirector)?;
    let third = Side::new(By::Nobody)?;
    let captured = ["proxy:15001 original 10.96.0.10:8080", "proxy:15006 original 10.77.0.2:8080"];
    assert_eq!(outcome(&first)?, captured);
    assert_eq!(outcome(&second)?, captured);
    assert_eq!(outcome(&third)?, ["remote:8080", "app:8080"]);
    drop(first);
    assert_eq!(outcome(&second)?, captured);
    Ok(())
}
