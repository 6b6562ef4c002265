//! A step of `attach` that fails leaves nothing behind; one of a policy change leaves the old policy in force.

use anyhow::{Context, ensure};
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::product::objects::maps_with_cookie;
use redirector_tests::harness::strace::{At, Fault, chosen, steps, with};

/// Steps of each test at most, beside the last ten.
const MAX_STEPS: usize = 24;

/// An attach in which a step fails.
fn attach_failing(tested: &TestPod, at: At, flags: &[&str]) -> anyhow::Result<Run> {
    with(Fault::Fail, at, |by| tested.attach_by(by, flags))
}

/// The steps of an attach that succeeds.
fn attach_steps(tested: &TestPod, flags: &[&str]) -> anyhow::Result<Vec<At>> {
    let (run, steps) = steps("bpf", |by| tested.attach_by(by, flags))?;
    run.expect(exit::OK)?;
    println!("{} steps of {:?} calls", steps.len(), steps.last());
    Ok(chosen(&steps, MAX_STEPS))
}

/// Requires an error with its object and its reason.
fn expect_failed(run: &Run) -> anyhow::Result<()> {
    ensure!(run.code.is_some_and(|code| code == exit::FAILED || code == exit::CANNOT), "{run:?}");
    let error = run.error()?;
    let text = error["error"].as_str().with_context(|| format!("no message: {run:?}"))?;
    // An object: a path, a program, a map, a helper; and the reason.
    let objects = ["/", "rd_", "map", "bpf_", "META", "POLICIES", "LISTENERS", "interfaces", "addresses"];
    ensure!(objects.iter().any(|object| text.contains(object)), "names no object: {text}");
    // Not always EPERM: the loader takes a failure for an answer and then does something else that fails.
    ensure!(text.contains("os error"), "gives no reason: {text}");
    Ok(())
}

/// The cookie of the pod's namespace: the default name has it.
fn cookie(tested: &TestPod) -> anyhow::Result<u64> {
    let target = target(tested.pod());
    let mut arguments = vec!["attach", "--dry-run"];
    arguments.extend(target.iter().map(String::as_str));
    let run = tested.bpffs.run(&arguments)?.expect(exit::OK)?.json()?;
    let name = run["name"].as_str().and_then(|name| name.strip_prefix('n')).context("a default name")?;
    Ok(name.parse()?)
}

#[test]
fn a_failed_attach_leaves_nothing() -> anyhow::Result<()> {
    require_root!("strace", "bpftool");
    let tested = TestPod::new()?;
    let cookie = cookie(&tested)?;
    tested.expect_nothing()?;
    let calls = attach_steps(&tested, &[])?;
    assert!(calls.len() > share::times(MAX_STEPS, 2), "{} calls of bpf(2) are not an attach", calls.len());
    assert!(!maps_with_cookie(cookie)?.is_empty(), "the check sees nothing");
    tested.detach()?;

    let others = [("mkdir", 2), ("rename", 1), ("unlink", 1), ("sendto", 2)];
    let others = others.iter().flat_map(|&(call, times)| (1..=times).map(move |number| At { call, number }));
    let mut tolerated = Vec::new();
    for at in calls.into_iter().chain(others) {
        let run = attach_failing(&tested, at, &[])?;
        if run.code == Some(exit::OK) {
            // The loader asks what the kernel can, and takes a no for an answer; but then all has to work.
            ensure!(tested.connect()?.starts_with("proxy:15001"), "{at:?}: attached, and does not capture");
            tolerated.push(at);
            tested.detach()?;
        } else {
            expect_failed(&run).with_context(|| format!("{at:?}"))?;
        }
        tested.expect_nothing().with_context(|| format!("{at:?}: {run:?}"))?;
    }
    println!("no failure: {tolerated:?}");
    // The first attach loads the programs for all: in two thirds of its calls the loader asks what the kernel can.
    ensure!(tolerated.len() < MAX_STEPS * 5 / 6, "most failures went unnoticed: {tolerated:?}");
    retry::until("maps of failed attaches to be freed", || {
        maps_with_cookie(cookie).ok()?.is_empty().then_some(())
    })?;
    assert_eq!(tested.connect()?, "remote:8080");
    Ok(())
}

#[test]
fn a_failed_change_leaves_the_old_policy() -> anyhow::Result<()> {
    require_root!("strace", "bpftool");
    let tested = TestPod::new()?;
    let new = ["-o", "81", "-x", "192.0.2.0/24"];
    let unserved = at(VIP4, UNSERVED);
    tested.attach(&[])?;
    let calls = attach_steps(&tested, &new)?;
    tested.detach()?;

    let mut refused = 0;
    for at in calls {
        // Anew each time: the first change replaces the programs, too.
        tested.attach(&[])?;
        let run = attach_failing(&tested, at, &new)?;
        let show = tested.show()?;
        let policy = &show["record"]["policy"]["outbound_exclude_ports"];
        if run.code == Some(exit::OK) {
            // Failures after the switch to the new policy are cleared away later.
            ensure!(tested.pod().connect(unserved)? == "ECONNREFUSED", "{at:?}: {run:?}");
            assert_eq!(policy, &serde_json::json!([81]), "{at:?}");
        } else {
            refused += 1;
            expect_failed(&run).with_context(|| format!("{at:?}"))?;
            ensure!(tested.pod().connect(unserved)? == captured(unserved), "{at:?}: {run:?}");
            assert_eq!(policy, &serde_json::json!([]), "{at:?}");
        }
        ensure!(show["effective"] == true, "{at:?}: {show:#}");
        // Whatever it was, the change can be made afterwards.
        tested.attach(&new)?;
        ensure!(tested.pod().connect(unserved)? == "ECONNREFUSED", "{at:?}");
        tested.detach()?;
    }
    // Of a share of them it may be none.
    ensure!(refused >= share::times(MAX_STEPS, 0) / 4, "only {refused} failures came before the change");
    Ok(())
}

/// That something of an instance could not be read says nothing of it: whatever a command fails at, it never calls the
/// instance damaged, and takes nothing of it away.
#[test]
fn an_error_while_reading_is_no_verdict() -> anyhow::Result<()> {
    require_root!("strace", "bpftool");
    let tested = TestPod::new()?;
    tested.attach(&[])?;
    for command in [&["list"][..], &["show", "pod"], &["refresh", "pod"]] {
        let run = |by: &[&str]| Run::of(&mut tested.bpffs.command(by, command));
        let (whole, calls) = steps("bpf", run)?;
        whole.expect(exit::OK)?;
        for at in chosen(&calls, MAX_STEPS) {
            let run = with(Fault::Fail, at, run)?;
            ensure!(!format!("{run:?}").contains("damaged"), "{command:?}, {at:?}: {run:?}");
            let show = tested.show()?;
            ensure!(show["state"] == "active" && show["effective"] == true, "{command:?}, {at:?}: {show:#}");
            ensure!(tested.connect()?.starts_with("proxy:15001"), "{command:?}, {at:?}: does not capture");
        }
    }
    Ok(())
}
