//! What depends on the kernel: `check` tells it, and what is missing is made up for or refused, never ignored. Runs on
//! kernels without IPv6, too, where most other tests cannot.

use anyhow::Context;
use redirector_tests::harness::kernel::{is_at_least, refusal};
use redirector_tests::harness::prelude::*;
use serde_json::Value;

/// Instructions that the verifier may follow for a program with every feature and `--trace`. The search of sk_lookup for a
/// listener takes most on 6.1, 49,159, connect6 since, 20,000 to 31,000.
const VERIFIER_BUDGET: u64 = 50_000;

/// A seccomp profile that forbids bpf(2) is no older kernel.
#[test]
fn check_where_bpf_is_forbidden() -> anyhow::Result<()> {
    require_root!("strace");
    let by = ["strace", "-f", "-o", "/dev/null", "-e", "trace=bpf", "-e", "inject=bpf:error=EPERM"];
    let run = Run::of(&mut Bpffs::new()?.command(&by, &["check"]))?.expect(exit::CANNOT)?;
    let findings = run.json()?;
    let findings = findings.as_array().context("an array")?;
    let forbidden =
        findings.iter().find(|finding| finding["name"] == "bpf(2) allowed").context("a finding")?;
    assert!(forbidden["remedy"].as_str().is_some_and(|text| text.contains("seccomp")), "{forbidden:#}");
    assert!(!run.stdout.contains("or newer"), "{}", run.stdout);
    Ok(())
}

/// Features by the versions that brought them; a distribution may have brought them to an older kernel.
#[test]
fn check_tells_what_is_there() -> anyhow::Result<()> {
    require_root!();
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
        let verified = program["verified_instructions"].as_u64();
        assert_eq!(verified.is_some(), is_at_least(5, 16), "{program:#}");
        assert!(verified.is_none_or(|count| count < VERIFIER_BUDGET), "{program:#}");
    }
    Ok(())
}

/// The least of it all: IPv4, both directions, each with its original destination.
#[test]
fn both_directions_are_captured() -> anyhow::Result<()> {
    require_root!();
    let tested = TestPod::attached(&[])?;
    let sent = tested.connect()?;
    assert_eq!(sent, captured(SERVICE));
    let pod = at(tested.pod().v4(), SERVED);
    let arrived = tested.fixture.world.connect_to_pod()?;
    assert_eq!(arrived, format!("proxy:{INBOUND} original {pod}"));
    tested.bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    tested.bpffs.expect_empty()
}

/// Routes that refuse still do, with the errno of the route where the kernel lets a program say so.
#[test]
fn refusals_are_those_of_routing() -> anyhow::Result<()> {
    require_root!();
    let tested = TestPod::attached(&[])?;
    for (network, errno) in [(98, "EHOSTUNREACH"), (99, "EACCES"), (97, "EINVAL"), (95, "ENETUNREACH")] {
        let became = tested.pod().connect(at([10, network, 0, 1], SERVED))?;
        assert!(became.contains(refusal(errno)), "10.{network}.0.1: {became} instead of {errno}");
    }
    Ok(())
}

/// Two pods in one cgroup, one of them captured: the namespace tells them apart, by cookie or by inode number.
#[test]
fn another_namespace_in_the_cgroup_is_left_alone() -> anyhow::Result<()> {
    require_root!();
    let tested = TestPod::attached(&[])?;
    let other = Fixture::new(Redirection::None)?;
    let mut place = other.pod().place(APP)?;
    place.cgroup = Some(tested.pod().cgroup.directory().to_owned());
    let became = observe_one(&place, SERVICE)?.summary();
    assert!(!became.contains("proxy"), "{became}");
    assert!(tested.connect()?.contains("proxy"));
    Ok(())
}

/// Before 5.17 sk_lookup does not tell the interface: what needs it is refused, on attach and on change.
#[test]
fn excluded_interfaces_work_or_are_refused() -> anyhow::Result<()> {
    require_root!();
    let tested = TestPod::attached(&[])?;
    let known = {
        let findings = redirector(&["check"], &[])?.json()?;
        let all = findings.as_array().context("an array")?;
        all.iter().any(|finding| finding["name"] == "sk_lookup ingress_ifindex" && finding["present"] == true)
    };
    let run = tested.attach_by(&[], &["-c", "eth0"])?;
    if known {
        run.expect(exit::OK)?;
        return Ok(());
    }
    run.refused(exit::CANNOT, &["-c", "5.17"])?;
    assert!(tested.connect()?.contains("proxy"), "the policy in force has stayed");
    let tested = TestPod::new()?;
    tested.attach_by(&[], &["-c", "eth0"])?.refused(exit::CANNOT, &["-c", "5.17"])?;
    tested.bpffs.expect_empty()
}
