//! Commands that run at the same time: one after the other does its work, and none sees a half of another's.

use std::process::Command;

use anyhow::{Context, anyhow, ensure};
use redirector_tests::harness::prelude::*;

const AT_ONCE: usize = 8;

/// Runs the same at once, each with its number.
fn at_once<T: Send>(run: impl Fn(usize) -> anyhow::Result<T> + Sync) -> anyhow::Result<Vec<T>> {
    let start = std::sync::Barrier::new(AT_ONCE);
    std::thread::scope(|scope| {
        let (start, run) = (&start, &run);
        let one = |number| {
            scope.spawn(move || {
                start.wait();
                run(number)
            })
        };
        let running: Vec<_> = (0..AT_ONCE).map(one).collect();
        running.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?).collect()
    })
}

fn count(runs: &[Run], wanted: impl Fn(&Run) -> bool) -> usize {
    runs.iter().filter(|run| wanted(run)).count()
}

fn outcome(run: &Run) -> String {
    run.json().ok().and_then(|json| json["outcome"].as_str().map(str::to_owned)).unwrap_or_default()
}

/// On a node where even the bpffs is not mounted yet.
#[test]
fn the_same_attach() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, fixture) = (Bpffs::not_mounted()?, Fixture::new(Redirection::None)?);
    let runs = at_once(|_| bpffs.attach(fixture.pod(), "pod", &[]))?;
    assert!(runs.iter().all(|run| run.code == Some(exit::OK)), "{runs:#?}");
    assert_eq!(count(&runs, |run| outcome(run) == "attached"), 1, "{runs:#?}");
    assert_eq!(count(&runs, |run| outcome(run) == "unchanged"), AT_ONCE - 1, "{runs:#?}");
    assert_eq!(count(&runs, |run| run.stderr.contains("mounted a bpffs")), 1, "{runs:#?}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let here = format!(" {} ", bpffs.path().display());
    assert_eq!(mounts.lines().filter(|line| line.contains(&here)).count(), 1, "{mounts}");
    assert!(fixture.pod().connect(SERVICE)?.starts_with("proxy:15001"));
    assert_eq!(bpffs.show("pod")?["effective"], true);
    Ok(())
}

#[test]
fn names_for_one_namespace() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, world) = (Bpffs::new()?, World::new()?);
    let runs = at_once(|number| bpffs.attach(world.pod(), &format!("name{number}"), &[]))?;
    assert_eq!(count(&runs, |run| outcome(run) == "attached"), 1, "{runs:#?}");
    let list = bpffs.list()?;
    assert_eq!(list.len(), 1, "{list:#?}");
    let winner = list[0]["name"].as_str().context("a name")?;
    for run in runs.into_iter().filter(|run| run.code != Some(exit::OK)) {
        run.refused(exit::USAGE, &[&format!("--name {winner}"), "already"])?;
    }
    Ok(())
}

/// Pods do not wait for each other longer than it takes.
#[test]
fn pods_of_a_node() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, world) = (Bpffs::new()?, World::with(&vec![PodOptions::default(); AT_ONCE])?);
    let attach = |number: usize| {
        let pod = &world.pods[number];
        bpffs.attach(pod, &format!("pod{number}"), &[])?.expect(exit::OK)
    };
    let runs = at_once(attach)?;
    assert_eq!(count(&runs, |run| outcome(run) == "attached"), AT_ONCE);
    assert!(bpffs.list()?.iter().all(|line| line["state"] == "active"));

    // And goes away as fast, with others asking all the while.
    let detach = |number: usize| {
        let name = format!("pod{number}");
        bpffs.list()?;
        bpffs.run(&["detach", "--name", &name])?.expect(exit::OK)
    };
    at_once(detach)?;
    bpffs.expect_empty()
}

#[test]
fn attach_and_detach() -> anyhow::Result<()> {
    require_root!("bpftool");
    let tested = TestPod::new()?;
    let pod = tested.pod();
    let [mut attached, mut detached] = [0, 0];
    for round in 0..9 {
        if round % 3 > 0 {
            // Then an attach is as quick as a detach.
            tested.attach(&[])?;
        }
        let one = |number: usize| match (number + round) % 4 {
            0 => tested.attach_by(&[], &[]),
            1 => tested.attach_by(&[], &["-o", "81"]),
            // It may find that nobody listens.
            2 => tested.bpffs.run(&["list"])?.looked().map(|run| Run { code: Some(exit::OK), ..run }),
            _ => {
                // More of it, because it takes less time.
                for _ in 0..round / 3 {
                    tested.bpffs.run(&["detach", "--name", "pod", "--ignore-missing"])?.expect(exit::OK)?;
                }
                tested.bpffs.run(&["detach", "--name", "pod", "--ignore-missing"])
            }
        };
        for run in at_once(one)? {
            run.expect(exit::OK)?;
        }
        let list = tested.bpffs.list()?;
        let seen = tested.connect()?;
        if list.is_empty() {
            detached += 1;
            tested.bpffs.expect_empty()?;
            ensure!(links_of(pod)? == [0, 0], "programs are attached");
            ensure!(seen == "remote:8080", "{seen}");
        } else {
            attached += 1;
            ensure!(list.len() == 1 && list[0]["state"] == "active", "{list:#?}");
            ensure!(seen.starts_with("proxy:15001"), "{seen}");
            ensure!(tested.show()?["effective"] == true);
        }
    }
    println!("{attached} rounds ended attached, {detached} detached");
    Ok(())
}

/// A command that has to wait says so, once.
#[test]
fn waiting_is_told() -> anyhow::Result<()> {
    require_root!("flock");
    let tested = TestPod::new()?;
    let quick = tested.attach(&[])?;
    ensure!(!quick.stderr.contains("waits for"), "{quick:?}");
    let directory = tested.bpffs.path().join("redirector");
    let mut holder = Command::new("flock").arg(&directory).args(["sleep", "3"]).spawn()?;
    retry::until("the lock to be taken", || {
        let free = Command::new("flock").arg("-n").arg(&directory).arg("true").status().ok()?.success();
        (!free).then_some(())
    })?;
    let waited = tested.refresh()?;
    holder.wait()?;
    ensure!(waited.stderr.matches("waits for another command").count() == 1, "{waited:?}");
    Ok(())
}
