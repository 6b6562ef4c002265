//! `detach` finds what it is asked for, and works on whatever is left of it.

use std::path::Path;

use anyhow::Context;
use redirector_tests::harness::prelude::*;
use serde_json::{Value, json};

fn attach(bpffs: &Bpffs, pod: &Pod, name: &str) -> anyhow::Result<Objects> {
    bpffs.attach(pod, name, &[])?.expect(exit::OK)?;
    Objects::of(bpffs, name)
}

/// The instances that `detach` has detached.
fn detach(bpffs: &Bpffs, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
    let mut all = vec!["detach"];
    all.extend(arguments);
    let run = bpffs.run(&all)?.expect(exit::OK)?.json()?;
    run["detached"].as_array().cloned().context("a list")
}

fn names(detached: &[Value]) -> Vec<&str> {
    detached.iter().filter_map(|one| one["name"].as_str()).collect()
}

/// By name, by process, by namespace; each takes away everything.
#[test]
fn by_whatever_names_it() -> anyhow::Result<()> {
    require_root!("bpftool");
    let tested = TestPod::new()?;
    let pod = tested.pod();
    let (pid, netns) = (tested.fixture.app.pid().to_string(), pod.netns.file().display().to_string());
    for by in [["--name", NAME], ["--pid", &pid], ["--netns", &netns]] {
        let objects = attach(&tested.bpffs, pod, NAME)?;
        let shared = Objects::shared(&tested.bpffs)?;
        assert!(pod.connect(SERVICE)?.starts_with("proxy:15001"));
        assert!(has_lo6(&pod.netns)?);
        let detached = detach(&tested.bpffs, &by)?;
        assert_eq!(names(&detached), [NAME], "{by:?}");
        assert_eq!(detached[0]["alive"], 0);
        tested.bpffs.expect_empty()?;
        assert_eq!(links_of(pod)?, [0, 0], "{by:?}");
        objects.expect_gone()?;
        shared.expect_gone()?;
        assert!(!has_lo6(&pod.netns)?);
        assert_eq!(pod.connect(SERVICE)?, "remote:8080");

        let mut again = vec!["detach"];
        again.extend(by);
        tested.bpffs.run(&again)?.refused(exit::NOTHING, &[])?;
        again.push("--ignore-missing");
        assert_eq!(tested.bpffs.run(&again)?.expect(exit::OK)?.json()?["detached"], json!([]));
        tested.bpffs.expect_empty()?;
    }
    Ok(())
}

#[test]
fn all_of_a_node() -> anyhow::Result<()> {
    require_root!("bpftool");
    let (bpffs, world) = (Bpffs::new()?, World::with(&vec![PodOptions::default(); 3])?);
    bpffs.run(&["detach", "--all"])?.refused(exit::NOTHING, &[])?;
    assert_eq!(detach(&bpffs, &["--all", "--ignore-missing"])?, Vec::<Value>::new());
    let mut objects = Vec::new();
    for (number, pod) in world.pods.iter().enumerate() {
        objects.push(attach(&bpffs, pod, &format!("pod{number}"))?);
    }
    // One that is damaged is no reason to leave the others.
    std::fs::remove_file(bpffs.instance("pod1").join("META"))?;
    let mut detached = detach(&bpffs, &["--all"])?;
    detached.sort_by_key(|one| one["name"].to_string());
    assert_eq!(names(&detached), ["pod0", "pod1", "pod2"]);
    bpffs.expect_empty()?;
    objects.iter().try_for_each(Objects::expect_gone)
}

/// The pod may be gone in any order; what was given to `attach` still names it.
#[test]
fn after_the_pod_has_gone() -> anyhow::Result<()> {
    require_root!("bpftool");
    let bpffs = Bpffs::new()?;
    let attached = || -> anyhow::Result<(World, Objects, String)> {
        let world = World::new()?;
        let objects = attach(&bpffs, world.pod(), NAME)?;
        let netns = world.pod().netns.file().display().to_string();
        Ok((world, objects, netns))
    };

    // The cgroup first.
    let (mut world, objects, netns) = attached()?;
    let Pod { netns: namespace, cgroup, .. } = world.pods.remove(0);
    let path = cgroup.directory().to_owned();
    drop(cgroup);
    let show = bpffs.show(NAME)?;
    assert_eq!(show["effective"], false, "{show:#}");
    // Also when there is another one of the same path.
    for make in [false, true] {
        if make {
            std::fs::create_dir(&path)?;
        }
        // The kernel detaches the links a moment later.
        let says =
            |line: &Value| line["problem"].as_str().is_some_and(|text| text.contains("its cgroup is gone"));
        retry::until("the list to tell", || says(bpffs.list().ok()?.first()?).then_some(()))?;
        let show = bpffs.show(NAME)?;
        assert!(says(&show), "{show:#}");
    }
    std::fs::remove_dir(&path)?;
    assert_eq!(names(&detach(&bpffs, &["--netns", &netns])?), [NAME]);
    assert!(!has_lo6(&namespace)?);
    objects.expect_gone()?;
    bpffs.expect_empty()?;
    drop((namespace, world));

    // Both; by name, and by the file that is gone.
    for by in ["--name", "--netns"] {
        let (world, objects, netns) = attached()?;
        drop(world);
        // The kernel takes a namespace down in the background (`cleanup_net`).
        retry::until("the list to tell", || {
            bpffs.list().ok()?[0]["problem"].as_str()?.contains("gone").then_some(())
        })?;
        assert_eq!(bpffs.show(NAME)?["effective"], false);
        assert_eq!(names(&detach(&bpffs, &[by, if by == "--name" { NAME } else { &netns }])?), [NAME]);
        objects.expect_gone()?;
        bpffs.expect_empty()?;
        bpffs.run(&["detach", "--netns", &netns])?.refused(exit::USAGE, &[&netns])?;
        bpffs.run(&["detach", "--netns", &netns, "--ignore-missing"])?.expect(exit::OK)?;
    }

    // A new pod may have the name of one that is gone.
    let (world, objects, _) = attached()?;
    drop(world);
    let (world, _, _) = attached()?;
    objects.expect_gone()?;
    assert_eq!(names(&detach(&bpffs, &["--name", NAME])?), [NAME]);
    drop(world);
    bpffs.expect_empty()
}

/// A pin, or several, that somebody has removed.
#[test]
fn damaged() -> anyhow::Result<()> {
    require_root!("bpftool");
    let tested = TestPod::new()?;
    let (pod, pid) = (tested.pod(), tested.fixture.app.pid().to_string());
    let netns = pod.netns.file().display().to_string();
    let cases: [&[&str]; 8] = [
        &["META"],
        &["link_connect4"],
        &["link_sk_lookup"],
        &["META", "link_sk_lookup"],
        &["LIVE"],
        &["RECORD_1", "SOCKETS"],
        &["TABLES", "prog_connect4", "link_sockops", "ORIGINAL_DST"],
        &["META", "RECORD_1"],
    ];
    for (turn, pins) in cases.iter().enumerate() {
        let objects = attach(&tested.bpffs, pod, NAME)?;
        remove(&tested.bpffs.instance(NAME), pins)?;
        // Nobody but `detach` takes away what may be capturing.
        let list = tested.bpffs.list()?;
        assert_eq!(list.len(), 1, "{pins:?}: {list:#?}");
        assert_eq!(
            list[0]["state"] == "damaged",
            pins.iter().any(|pin| ["META", "RECORD_1", "ORIGINAL_DST"].contains(pin))
        );
        let by: [&str; 2] = match turn % 3 {
            0 => ["--pid", &pid],
            1 => ["--netns", &netns],
            _ => ["--name", NAME],
        };
        assert_eq!(names(&detach(&tested.bpffs, &by)?), [NAME], "{pins:?} {by:?}");
        tested.bpffs.expect_empty()?;
        // `detach` detaches what it finds; a link that has lost its pin is freed in the background.
        if pins.iter().any(|pin| pin.starts_with("link_")) {
            objects.expect_gone()?;
        }
        assert_eq!(links_of(pod)?, [0, 0], "{pins:?}");
        objects.expect_gone()?;
        assert_eq!(pod.connect(SERVICE)?, "remote:8080");
        if pins.contains(&"META") {
            // Nobody knows any more who has added it; `detach` has said so.
            pod.netns.ip("address delete ::6/128 dev lo\n")?;
        }
    }
    Ok(())
}

/// Files of somebody else in the directory of the instances do not matter.
#[test]
fn strangers_in_the_directory() -> anyhow::Result<()> {
    require_root!("bpftool");
    let (bpffs, world) = (Bpffs::new()?, World::new()?);
    let objects = attach(&bpffs, world.pod(), NAME)?;
    let pins = bpffs.path().join("redirector");
    std::fs::create_dir(pins.join("NOT-OURS"))?;
    std::fs::create_dir(bpffs.instance(NAME).join("below"))?;
    let meta = bpffs.instance(NAME).join("META");
    let meta = meta.to_str().context("a path")?;
    let pinned = pins.join("file");
    run(std::process::Command::new("bpftool").args(["map", "pin", "pinned", meta]).arg(&pinned), "")?;
    assert_eq!(bpffs.list()?.len(), 1);
    bpffs.attach(world.pod(), NAME, &["-o", "81"])?.expect(exit::OK)?;
    assert_eq!(names(&detach(&bpffs, &["--all"])?), [NAME]);
    std::fs::remove_file(pinned)?;
    std::fs::remove_dir(pins.join("NOT-OURS"))?;
    objects.expect_gone()?;
    bpffs.run(&["list"])?.expect(exit::OK)?;
    bpffs.expect_empty()
}

fn remove(instance: &Path, pins: &[&str]) -> anyhow::Result<()> {
    pins.iter()
        .try_for_each(|pin| std::fs::remove_file(instance.join(pin)).with_context(|| (*pin).to_owned()))
}
