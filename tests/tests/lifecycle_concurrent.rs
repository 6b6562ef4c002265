//! Commands that run at the same time: one after the other does its work, and none sees a half of another's.

use std::process::Command;

use anyhow::{Context, anyhow, ensure};

use redirector_tests::harness::pair::fixture::{By, Side};
use redirector_tests::harness::pair::matrix::SERVED;
use redirector_tests::harness::probe::observation::Observation;
use redirector_tests::harness::probe::scenario::Scenario;
use redirector_tests::harness::product::bpffs::Node;
use redirector_tests::harness::product::objects::links_of;
use redirector_tests::harness::product::{Run, exit};
use redirector_tests::harness::requirements::{require_program, require_root};
use redirector_tests::harness::retry;
use redirector_tests::harness::world::{APP, Pod, PodOptions, VIP4, World, at};

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

fn connect(pod: &Pod) -> anyhow::Result<String> {
    let seen = pod.observe(APP, &[Scenario::to(at(VIP4, SERVED))])?;
    seen.first().map(Observation::summary).context("an observation")
}

/// On a node where even the bpffs is not mounted yet.
#[test]
fn the_same_attach() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let (node, side) = (Node::without_bpffs()?, Side::new(By::Nobody)?);
    let runs = at_once(|_| node.attach(side.pod(), "pod", &[]))?;
    assert!(runs.iter().all(|run| run.code == Some(exit::OK)), "{runs:#?}");
    assert_eq!(count(&runs, |run| outcome(run) == "attached"), 1, "{runs:#?}");
    assert_eq!(count(&runs, |run| outcome(run) == "unchanged"), AT_ONCE - 1, "{runs:#?}");
    assert_eq!(count(&runs, |run| run.stderr.contains("mounted a bpffs")), 1, "{runs:#?}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let here = format!(" {} ", node.bpffs().display());
    assert_eq!(mounts.lines().filter(|line| line.contains(&here)).count(), 1, "{mounts}");
    assert!(connect(side.pod())?.starts_with("proxy:15001"));
    assert_eq!(node.show("pod")?["effective"], true);
    Ok(())
}

#[test]
fn names_for_one_namespace() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let (node, world) = (Node::new()?, World::new()?);
    let runs = at_once(|number| node.attach(world.pod(), &format!("name{number}"), &[]))?;
    assert_eq!(count(&runs, |run| outcome(run) == "attached"), 1, "{runs:#?}");
    let list = node.list()?;
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
    if !require_root() {
        return Ok(());
    }
    let (node, world) = (Node::new()?, World::with(&vec![PodOptions::default(); AT_ONCE])?);
    let attach = |number: usize| {
        let pod = &world.pods[number];
        node.attach(pod, &format!("pod{number}"), &[])?.expect(exit::OK)
    };
    let runs = at_once(attach)?;
    assert_eq!(count(&runs, |run| outcome(run) == "attached"), AT_ONCE);
    assert!(node.list()?.iter().all(|line| line["state"] == "active"));

    // And goes away as fast, with others asking all the while.
    let detach = |number: usize| {
        let name = format!("pod{number}");
        node.list()?;
        node.run(&["detach", "--name", &name])?.expect(exit::OK)
    };
    at_once(detach)?;
    node.expect_empty()
}

#[test]
fn attach_and_detach() -> anyhow::Result<()> {
    if !require_root() || require_program("bpftool").is_none() {
        return Ok(());
    }
    let (node, side) = (Node::new()?, Side::new(By::Nobody)?);
    let pod = side.pod();
    let [mut attached, mut detached] = [0, 0];
    for round in 0..9 {
        if round % 3 > 0 {
            // Then an attach is as quick as a detach.
            node.attach(pod, "pod", &[])?.expect(exit::OK)?;
        }
        let one = |number: usize| match (number + round) % 4 {
            0 => node.attach(pod, "pod", &[]),
            1 => node.attach(pod, "pod", &["-o", "81"]),
            2 => node.run(&["list"]),
            _ => {
                // More of it, because it takes less time.
                for _ in 0..round / 3 {
                    node.run(&["detach", "--name", "pod", "--ignore-missing"])?.expect(exit::OK)?;
                }
                node.run(&["detach", "--name", "pod", "--ignore-missing"])
            }
        };
        for run in at_once(one)? {
            run.expect(exit::OK)?;
        }
        let list = node.list()?;
        let seen = connect(pod)?;
        if list.is_empty() {
            detached += 1;
            node.expect_empty()?;
            ensure!(links_of(pod)? == [0, 0], "programs are attached");
            ensure!(seen == "remote:8080", "{seen}");
        } else {
            attached += 1;
            ensure!(list.len() == 1 && list[0]["state"] == "active", "{list:#?}");
            ensure!(seen.starts_with("proxy:15001"), "{seen}");
            ensure!(node.show("pod")?["effective"] == true);
        }
    }
    println!("{attached} rounds ended attached, {detached} detached");
    Ok(())
}

/// Who has to wait is told what for, once.
#[test]
fn waiting_is_told() -> anyhow::Result<()> {
    if !require_root() || require_program("flock").is_none() {
        return Ok(());
    }
    let (node, side) = (Node::new()?, Side::new(By::Nobody)?);
    let quick = node.attach(side.pod(), "pod", &[])?.expect(exit::OK)?;
    ensure!(!quick.stderr.contains("waits for"), "{quick:?}");
    let directory = node.bpffs().join("redirector");
    let mut holder = Command::new("flock").arg(&directory).args(["sleep", "3"]).spawn()?;
    retry::until("the lock to be taken", || {
        let free = Command::new("flock").arg("-n").arg(&directory).arg("true").status().ok()?.success();
        (!free).then_some(())
    })?;
    let waited = node.run(&["refresh", "pod"])?.expect(exit::OK)?;
    holder.wait()?;
    ensure!(waited.stderr.matches("waits for another command").count() == 1, "{waited:?}");
    Ok(())
}
