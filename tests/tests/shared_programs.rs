//! The programs are the node's: each acts for the instance of the socket's namespace, once, however many share it.

use std::path::Path;

use anyhow::Context;
use redirector_tests::harness::prelude::*;
use serde_json::Value;

const SECOND: &str = "second";

/// A pod that is captured, and another one in a world of its own.
fn two() -> anyhow::Result<(TestPod, Fixture)> {
    Ok((TestPod::attached(&[])?, Fixture::new(Redirection::None)?))
}

/// Attaches to the namespace of a pod, by another cgroup than its own.
fn attach_at(bpffs: &Bpffs, pod: &Pod, cgroup: &Path) -> anyhow::Result<()> {
    let (netns, cgroup) = (pod.netns.file().display().to_string(), cgroup.display().to_string());
    let target = ["--netns", &netns, "--cgroup", &cgroup, "--allow-partial"];
    bpffs.run(&[&["attach", "--name", SECOND], &target[..]].concat())?.expect(exit::OK).map(drop)
}

/// Where a connection of a process in this cgroup goes.
fn connect_in(pod: &Pod, cgroup: &Path) -> anyhow::Result<String> {
    let mut place = pod.place(APP)?;
    place.cgroup = Some(cgroup.to_owned());
    Ok(observe_one(&place, SERVICE)?.summary())
}

fn program(show: &Value, hook: &str) -> anyhow::Result<u64> {
    let hooks = show["hooks"].as_array().context("hooks")?;
    let of = hooks.iter().find(|one| one["hook"] == hook).context("the hook")?;
    of["program"].as_u64().context("a program")
}

fn captured_by(bpffs: &Bpffs, name: &str) -> anyhow::Result<u64> {
    counter(&bpffs.show(name)?, "out_all")
}

/// Of the second instance with the same features nothing is loaded but an entry, and its end leaves the first alone.
#[test]
fn one_set_for_all() -> anyhow::Result<()> {
    require_root!("bpftool");
    let (first, second) = two()?;
    let bpffs = &first.bpffs;
    bpffs.attach(second.pod(), SECOND, &[])?.expect(exit::OK)?;
    let shown = [bpffs.show(NAME)?, bpffs.show(SECOND)?];
    assert_eq!(program(&shown[0], "connect4")?, program(&shown[1], "connect4")?);
    assert_ne!(program(&shown[0], "sk_lookup")?, program(&shown[1], "sk_lookup")?);
    let objects = Objects::of(bpffs, SECOND)?;
    assert_eq!(objects.programs.len(), 1, "{objects:?}");
    for pod in [first.pod(), second.pod()] {
        assert_eq!(pod.connect(SERVICE)?, captured(SERVICE));
    }
    assert!(second.world.connect_to_pod()?.contains("proxy:15006"));
    // Another feature, another set.
    bpffs.attach(second.pod(), SECOND, &["-o", "81"])?.expect(exit::OK)?;
    assert_ne!(program(&bpffs.show(SECOND)?, "connect4")?, program(&shown[0], "connect4")?);
    assert_eq!(second.pod().connect(SERVICE)?, captured(SERVICE));
    bpffs.run(&["detach", "--name", SECOND])?.expect(exit::OK)?;
    objects.expect_gone()?;
    assert_eq!(second.pod().connect(SERVICE)?, "remote:8080");
    assert_eq!(first.connect()?, captured(SERVICE));
    Ok(())
}

/// A process in the cgroup of one pod and the namespace of another is captured as the namespace says.
#[test]
fn the_namespace_tells() -> anyhow::Result<()> {
    require_root!();
    let (first, second) = two()?;
    first.bpffs.attach(second.pod(), SECOND, &[])?.expect(exit::OK)?;
    assert!(connect_in(second.pod(), first.pod().cgroup.directory())?.contains("proxy:15001"));
    assert_eq!((captured_by(&first.bpffs, NAME)?, captured_by(&first.bpffs, SECOND)?), (0, 1));
    Ok(())
}

/// Cgroups within each other, in either order, and two namespaces on one cgroup: each connection is captured once, by the
/// instance of its namespace.
#[test]
fn cgroups_within_each_other() -> anyhow::Result<()> {
    require_root!("bpftool");
    let (first, second) = two()?;
    let bpffs = &first.bpffs;
    let outer = first.pod().cgroup.directory().to_owned();
    let inner = first.pod().cgroup.child("inner")?;
    for (cgroup, inner_first) in [(&inner, false), (&inner, true), (&outer, false)] {
        if inner_first {
            first.detach()?;
        }
        attach_at(bpffs, second.pod(), cgroup)?;
        if inner_first {
            first.attach(&[])?;
        }
        let before = [captured_by(bpffs, NAME)?, captured_by(bpffs, SECOND)?];
        assert!(connect_in(second.pod(), cgroup)?.contains("proxy:15001"), "{cgroup:?}");
        assert_eq!(connect_in(first.pod(), cgroup)?, captured(SERVICE), "{cgroup:?}");
        assert_eq!(first.connect()?, captured(SERVICE));
        let now = [captured_by(bpffs, NAME)?, captured_by(bpffs, SECOND)?];
        assert_eq!(now, [before[0] + 2, before[1] + 1], "{cgroup:?}");
        let own = [NAME, SECOND].map(|name| Objects::of(bpffs, name).map(|objects| objects.programs.len()));
        let own = own.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        assert!(own.iter().any(|programs| *programs > 1), "{own:?}");
        bpffs.run(&["detach", "--name", SECOND])?.expect(exit::OK)?;
        assert_eq!(first.connect()?, captured(SERVICE));
    }
    Ok(())
}

/// What instances share is a cache: its removal harms no instance.
#[test]
fn what_is_shared_may_be_removed() -> anyhow::Result<()> {
    require_root!("bpftool");
    let (first, second) = two()?;
    let bpffs = &first.bpffs;
    let objects = Objects::of(bpffs, NAME)?;
    std::fs::remove_dir_all(bpffs.instance("NODE-2"))?;
    assert_eq!(first.connect()?, captured(SERVICE));
    assert!(first.fixture.world.connect_to_pod()?.contains("proxy:15006"));
    bpffs.attach(second.pod(), SECOND, &[])?.expect(exit::OK)?;
    for pod in [first.pod(), second.pod()] {
        assert_eq!(pod.connect(SERVICE)?, captured(SERVICE));
    }
    // Other features need other programs, which find their maps where the new ones are.
    first.attach(&["-o", "81"])?.expect(exit::OK)?;
    assert_eq!(first.connect()?, captured(SERVICE));
    assert_eq!(first.pod().connect(at(VIP4, UNSERVED))?, "ECONNREFUSED");
    bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    objects.expect_gone()?;
    assert_eq!(second.pod().connect(SERVICE)?, captured(SERVICE));
    bpffs.run(&["detach", "--name", SECOND])?.expect(exit::OK)?;
    bpffs.expect_empty()
}

/// Nor does that of a part: what is not whole is made again.
#[test]
fn a_part_of_it_may_be_removed() -> anyhow::Result<()> {
    require_root!("bpftool");
    let (first, second) = two()?;
    let bpffs = &first.bpffs;
    let node = bpffs.instance("NODE-2");
    for (turn, pin) in ["NAMESPACES", "META", "TABLES", "SET"].into_iter().enumerate() {
        if pin == "SET" {
            let sets = std::fs::read_dir(&node)?.filter_map(Result::ok).map(|entry| entry.path());
            let mut sets = sets.filter(|path| path.is_dir());
            sets.try_for_each(|set| std::fs::remove_file(set.join("prog_connect4")))?;
        } else {
            std::fs::remove_file(node.join(pin))?;
        }
        bpffs.attach(second.pod(), SECOND, &[])?.expect(exit::OK)?;
        assert_eq!(second.pod().connect(SERVICE)?, captured(SERVICE), "{pin}");
        assert!(second.world.connect_to_pod()?.contains("proxy:15006"), "{pin}");
        // With other features, so that the programs are others.
        let flags: &[&str] = if turn % 2 == 0 { &["-o", "81"] } else { &["-x", "192.0.2.0/24"] };
        first.attach(flags)?.expect(exit::OK)?;
        assert_eq!(first.connect()?, captured(SERVICE), "{pin}");
        assert!(first.fixture.world.connect_to_pod()?.contains("proxy:15006"), "{pin}");
        bpffs.run(&["detach", "--name", SECOND])?.expect(exit::OK)?;
        assert_eq!(first.connect()?, captured(SERVICE), "{pin}");
    }
    Ok(())
}
