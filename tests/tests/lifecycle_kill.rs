//! Commands that are killed at any step: what they leave captures wholly or not at all, and the next command sweeps it.

use anyhow::{Context, ensure};
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::product::older::Older;
use redirector_tests::harness::strace::{At, Fault, chosen, steps, with};

/// Steps of each test at most, beside the last ten.
const MAX_STEPS: usize = 20;
const OTHER_POLICY: [&str; 4] = ["-o", "81", "-x", "192.0.2.0/24"];

fn detach_by(tested: &TestPod, by: &[&str]) -> anyhow::Result<Run> {
    Run::of(&mut tested.bpffs.command(by, &["detach", "--name", NAME]))
}

/// The steps of a command that succeeds, and those of other kinds.
fn steps_of(
    others: &[(&'static str, usize)],
    run: impl FnOnce(&[&str]) -> anyhow::Result<Run>,
) -> anyhow::Result<Vec<At>> {
    let (run, steps) = steps("bpf", run)?;
    run.expect(exit::OK)?;
    let mut all = chosen(&steps, MAX_STEPS);
    for &(call, times) in others {
        let steps: Vec<At> = (1..=times).map(|number| At { call, number }).collect();
        all.extend(chosen(&share::of(steps), MAX_STEPS / 4));
    }
    Ok(all)
}

/// Where connections go: out to two ports, and in.
fn connect(tested: &TestPod) -> anyhow::Result<[String; 3]> {
    let out = tested.pod().connect(at(VIP4, UNSERVED))?;
    Ok([tested.connect()?, out, tested.fixture.world.connect_to_pod()?])
}

/// The next command, another one each time, and that it clears up.
fn next_command(tested: &TestPod, turn: usize, active: bool) -> anyhow::Result<()> {
    match turn % 3 {
        0 => {
            let list = tested.bpffs.list()?;
            ensure!(list.len() == usize::from(active), "{list:?}");
            ensure!(list.iter().all(|line| line["state"] == "active"), "{list:?}");
            if !active {
                tested.expect_nothing()?;
            }
        }
        1 => {
            let attached = tested.attach(&[])?.json()?;
            ensure!(attached["outcome"] == if active { "unchanged" } else { "attached" }, "{attached}");
            ensure!(connect(tested)? == all_captured(), "attached again, and does not capture");
            ensure!(tested.show()?["effective"] == true);
        }
        _ => {
            let code = if active { exit::OK } else { exit::NOTHING };
            let run = tested.bpffs.run(&["detach", "--name", NAME])?;
            // An instance that was never activated or not wholly removed may count as one.
            ensure!(run.code == Some(code) || !active && run.code == Some(exit::OK), "{run:?}");
            return tested.expect_nothing();
        }
    }
    tested.bpffs.run(&["detach", "--name", NAME, "--ignore-missing"])?.expect(exit::OK)?;
    tested.expect_nothing()
}

fn all_captured() -> [String; 3] {
    [captured(SERVICE), captured(at(VIP4, UNSERVED)), "proxy:15006 original 10.77.0.2:8080".to_owned()]
}

fn straight() -> [String; 3] {
    ["remote:8080", "ECONNREFUSED", "app:8080"].map(str::to_owned)
}

/// Runs a command that is killed at a step; false if the step is not reached.
fn killed(at: At, run: impl FnOnce(&[&str]) -> anyhow::Result<Run>) -> anyhow::Result<bool> {
    let run = with(Fault::Kill, at, run)?;
    ensure!(run.code.is_none() || run.code == Some(exit::OK), "{at:?}: {run:?}");
    Ok(run.code.is_none())
}

#[test]
fn attach() -> anyhow::Result<()> {
    require_root!("strace", "bpftool");
    let tested = TestPod::new()?;
    let calls = steps_of(&[("mkdir", 2), ("rename", 1), ("sendto", 2)], |by| tested.attach_by(by, &[]))?;
    assert_eq!(connect(&tested)?, all_captured());
    detach_by(&tested, &[])?.expect(exit::OK)?;
    let mut kills = 0;
    for (turn, at) in calls.iter().enumerate() {
        kills += usize::from(killed(*at, |by| tested.attach_by(by, &[]))?);
        let seen = connect(&tested)?;
        ensure!(seen == all_captured() || seen == straight(), "{at:?}: {seen:?}");
        next_command(&tested, turn, seen == all_captured()).with_context(|| format!("{at:?}"))?;
    }
    println!("killed {kills} times, at {} steps", calls.len());
    assert!(2 * kills > calls.len());
    Ok(())
}

#[test]
fn detach() -> anyhow::Result<()> {
    require_root!("strace", "bpftool");
    let tested = TestPod::attached(&[])?;
    let calls = steps_of(&[("unlink", 30), ("rmdir", 2), ("sendto", 2)], |by| detach_by(&tested, by))?;
    let (mut kills, mut stopped) = (0, 0);
    for (turn, at) in calls.iter().enumerate() {
        tested.attach(&[])?;
        kills += usize::from(killed(*at, |by| detach_by(&tested, by))?);
        let seen = connect(&tested)?;
        ensure!(seen == all_captured() || seen == straight(), "{at:?}: {seen:?}");
        stopped += usize::from(seen == straight());
        next_command(&tested, turn, seen == all_captured()).with_context(|| format!("{at:?}"))?;
    }
    println!("killed {kills} times, at {} steps; {stopped} times capture had stopped", calls.len());
    assert!(3 * kills > calls.len() && stopped > 0 && stopped < calls.len());
    Ok(())
}

/// The instance captures all the time, under the old programs, the new ones, or some of both.
#[test]
fn upgrade() -> anyhow::Result<()> {
    require_root!("strace", "bpftool");
    let tested = TestPod::new()?;
    let older = Older::make()?;
    let downgrade =
        || Run::of(&mut tested.bpffs.command_of(&older.path(), &[], &["upgrade", NAME]))?.expect(exit::OK);
    let upgrade_by = |by: &[&str]| Run::of(&mut tested.bpffs.command(by, &["upgrade", NAME]));
    tested.attach(&[])?;
    let id = tested.show()?["record"]["programs"].clone();
    downgrade()?;
    let calls = steps_of(&[("rename", 14), ("unlink", 16)], upgrade_by)?;
    let (mut kills, mut done) = (0, 0);
    // Every other one: each takes five commands.
    let calls: Vec<At> = calls.into_iter().step_by(2).collect();
    for at in &calls {
        downgrade()?;
        kills += usize::from(killed(*at, upgrade_by)?);
        ensure!(connect(&tested)? == all_captured(), "{at:?}");
        let show = tested.show()?;
        ensure!(show["effective"] == true, "{at:?}: {show:#}");
        done += usize::from(show["record"]["programs"] == id);
        // The next one completes it.
        upgrade_by(&[])?.expect(exit::OK)?;
        let show = tested.show()?;
        ensure!(show["effective"] == true && show["record"]["programs"] == id, "{at:?}: {show:#}");
    }
    println!("killed {kills} times; {done} times it was done");
    assert!(3 * kills > calls.len() && done < kills);
    ensure!(connect(&tested)? == all_captured());
    detach_by(&tested, &[])?.expect(exit::OK)?;
    tested.expect_nothing()
}

#[test]
fn a_policy_change() -> anyhow::Result<()> {
    require_root!("strace", "bpftool");
    let tested = TestPod::new()?;
    let [served, _, inbound] = all_captured();
    let changed = [served, "ECONNREFUSED".to_owned(), inbound];
    tested.attach(&[])?;
    let calls = steps_of(&[("rename", 9), ("unlink", 12)], |by| tested.attach_by(by, &OTHER_POLICY))?;
    let (mut kills, mut new) = (0, 0);
    for (turn, at) in calls.iter().enumerate() {
        // The programs are replaced only by the first change: that one, and the ones after it.
        if turn % 2 == 0 {
            tested.bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
        }
        tested.attach(&[])?;
        kills += usize::from(killed(*at, |by| tested.attach_by(by, &OTHER_POLICY))?);
        let seen = connect(&tested)?;
        ensure!(seen == all_captured() || seen == changed, "{at:?}: {seen:?}");
        new += usize::from(seen == changed);
        let show = tested.show()?;
        let ports = &show["record"]["policy"]["outbound_exclude_ports"];
        ensure!(
            (*ports == serde_json::json!([81])) == (seen == changed),
            "{at:?}: shown is another policy: {show:#}"
        );
        ensure!(show["effective"] == true, "{at:?}: {show:#}");
        let again = tested.attach(&OTHER_POLICY)?.json()?;
        ensure!(again["outcome"] == if seen == changed { "unchanged" } else { "changed" }, "{at:?}: {again}");
        ensure!(connect(&tested)? == changed, "{at:?}");
    }
    println!("killed {kills} times, at {} steps; {new} times the new policy was in force", calls.len());
    assert!(3 * kills > calls.len() && new > 0 && new < calls.len());
    tested.bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    tested.expect_nothing()
}
