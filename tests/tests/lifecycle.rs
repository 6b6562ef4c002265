//! Attach, look, detach: exit codes, and that nothing is left behind.

use redirector_tests::harness::prelude::*;
use redirector_tests::harness::product::attach_run;
use redirector_tests::harness::product::is_listed;

const CAPTURED: [&str; 2] = ["proxy:15001 original 10.96.0.10:8080", "proxy:15006 original 10.77.0.2:8080"];

/// Where connections out and in end.
fn outcome(fixture: &Fixture) -> anyhow::Result<[String; 2]> {
    Ok([fixture.pod().connect(SERVICE)?, fixture.world.connect_to_pod()?])
}

#[test]
fn detach_leaves_nothing_behind() -> anyhow::Result<()> {
    require_root!("bpftool");
    let mut fixture = Fixture::new(Redirection::redirector())?;
    assert_eq!(outcome(&fixture)?, CAPTURED);
    let [to_cgroup, to_netns] = links_of(fixture.pod())?;
    assert!(to_cgroup > 0 && to_netns > 0, "{to_cgroup}, {to_netns}: the check sees nothing");
    let Some(instance) = fixture.instance.take() else { unreachable!("the side is redirected by it") };
    let name = instance.name().to_owned();
    assert!(is_listed(&name)?);
    instance.show()?;
    instance.detach()?;
    assert!(!is_listed(&name)?);
    assert_eq!(links_of(fixture.pod())?, [0, 0]);
    assert_eq!(outcome(&fixture)?, ["remote:8080", "app:8080"]);
    Ok(())
}

#[test]
fn exit_codes() -> anyhow::Result<()> {
    require_root!();
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

    let instance = Instance::attach(pod, &[], &[])?;
    // The same again is nothing to do; under another name it is a mistake.
    attach_run(pod, instance.name(), &[], &[])?.expect(exit::OK)?;
    attach_run(pod, &nobody, &[], &[])?.expect(exit::USAGE)?;
    assert!(!is_listed(&nobody)?);
    instance.detach()
}

/// The policy of an instance can be replaced.
#[test]
fn another_policy_is_swapped_in() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Redirection::redirector())?;
    let Some(instance) = &fixture.instance else { unreachable!("the side is redirected by it") };
    let connect = |port| fixture.pod().connect(at(VIP4, port));
    assert_eq!(connect(UNSERVED)?, "proxy:15001 original 10.96.0.10:81");
    attach_run(fixture.pod(), instance.name(), &["-o".into(), UNSERVED.to_string()], &[])?
        .expect(exit::OK)?;
    assert_eq!(connect(UNSERVED)?, "ECONNREFUSED");
    assert_eq!(connect(SERVED)?, "proxy:15001 original 10.96.0.10:8080");
    Ok(())
}

/// Instances are separate: detaching one leaves its neighbour alone, though both have the same addresses.
#[test]
fn neighbours_do_not_matter() -> anyhow::Result<()> {
    require_root!();
    let first = Fixture::new(Redirection::redirector())?;
    let second = Fixture::new(Redirection::redirector())?;
    let third = Fixture::new(Redirection::None)?;
    assert_eq!(outcome(&first)?, CAPTURED);
    assert_eq!(outcome(&second)?, CAPTURED);
    assert_eq!(outcome(&third)?, ["remote:8080", "app:8080"]);
    drop(first);
    assert_eq!(outcome(&second)?, CAPTURED);
    Ok(())
}
