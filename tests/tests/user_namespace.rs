//! Pods with a user namespace of their own (`hostUsers: false`): users and groups of a policy are counted as the pod
//! counts them, as iptables does when its rules are loaded from inside.

use anyhow::Context;
use redirector_tests::harness::pair::matrix::FAMILIES;
use redirector_tests::harness::pair::matrix::destinations;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::world::netns::{MAPPED_GROUPS, MAPPED_USERS};

const fn inside(uid: u32, gid: u32) -> Owner {
    Owner { uid: MAPPED_USERS + uid, gid: MAPPED_GROUPS + gid }
}

/// By name: who connects. The numbers of the policy belong to others on the host.
const CALLERS: [(&str, Owner); 9] = [
    ("app", inside(1000, 1000)),
    ("proxy", inside(1337, 1337)),
    ("proxy-uid", inside(1337, 0)),
    ("proxy-gid", inside(1000, 1337)),
    ("second", inside(1338, 1000)),
    ("group", inside(1000, 42)),
    ("root", inside(0, 0)),
    ("host-proxy", PROXY),
    ("host-group", Owner { uid: 1000, gid: 42 }),
];

fn pod_options() -> PodOptions {
    PodOptions { user_namespace: true, ..PodOptions::default() }
}

/// The same connections under iptables rules loaded from inside: same outcome for users and groups of both countings.
#[test]
fn beside_iptables() -> anyhow::Result<()> {
    require_root!();
    let setup = Setup { pod: pod_options(), ..Setup::default() };
    let plain = Options { proxy_uids: vec![1337, 1338], ..Options::sidecar() };
    let only = Options { owner_groups: Some(vec![42, 43]), ..Options::sidecar() };
    let without = Options { owner_groups_exclude: vec![42], ..Options::sidecar() };
    for (name, options) in [("users", plain), ("groups", only), ("excluded", without)] {
        let pair = Pair::with(options, &setup)?;
        let seen = pair.check(&parts(pair.subject.pod())).context(name)?;
        // The outcomes under iptables, so that agreement means something.
        let reached = |caller: &str| summary(&seen, &format!("v4 {caller} to vip"));
        let (direct, captured) = ("remote:8080", "proxy:15001");
        let group = if name == "excluded" { direct } else { captured };
        let app = if name == "groups" { direct } else { captured };
        for (caller, expected) in
            [("proxy", direct), ("app", app), ("host-proxy", app), ("group", group), ("host-group", app)]
        {
            assert!(reached(caller).starts_with(expected), "{name}: {caller}: {}", reached(caller));
        }
    }
    Ok(())
}

fn parts(pod: &Pod) -> Vec<Part> {
    let of = |(caller, owner): (&str, Owner)| {
        let all = FAMILIES.iter().flat_map(|(family_name, family)| {
            let all = destinations(pod, *family).into_iter();
            // Documented differences, of which nothing is to be learnt here.
            let all = all.filter(|(name, _)| !matches!(*name, "link-local" | "port-0"));
            all.map(move |(name, to)| Scenario::new(format!("{family_name} {caller} to {name}"), *family, to))
        });
        Part::of(owner, all.collect())
    };
    CALLERS.into_iter().map(of).collect()
}

fn summary(seen: &[Observation], name: &str) -> String {
    seen.iter().find(|one| one.scenario == name).map(Observation::summary).unwrap_or_default()
}

/// A user or group that the pod does not have: iptables refuses the rule, attach the policy.
#[test]
fn what_is_not_mapped_is_refused() -> anyhow::Result<()> {
    require_root!("bpftool");
    let (bpffs, world) = (Bpffs::new()?, World::with(&[pod_options()])?);
    let pod = world.pod();
    for (flag, owner, kind, file) in
        [("-u", "--uid-owner", "user", "uid_map"), ("-g", "--gid-owner", "group", "gid_map")]
    {
        let rule = ["-t", "nat", "-A", "OUTPUT", "-m", "owner", owner, "65536", "-j", "RETURN"];
        let refused = output(pod.netns.command("iptables").args(rule), "")?;
        assert!(String::from_utf8_lossy(&refused.stderr).contains("Invalid argument"), "{refused:?}");
        let words = [flag, kind, "65536", file, "65536 from 0"];
        bpffs.attach(pod, "pod", &[flag, "65536"])?.refused(exit::USAGE, &words)?;
        bpffs.attach(pod, "pod", &[flag, "65536", "--dry-run"])?.refused(exit::USAGE, &words)?;
    }
    bpffs.expect_empty()?;
    assert_eq!(links_of(pod)?, [0, 0]);

    // Nor does a change to such a policy change anything.
    bpffs.attach(pod, "pod", &[])?.expect(exit::OK)?;
    let before = bpffs.show("pod")?;
    bpffs.attach(pod, "pod", &["-u", "65536"])?.refused(exit::USAGE, &["user 65536"])?;
    assert_eq!(bpffs.show("pod")?, before);
    Ok(())
}

/// Names of groups are those of the pod's /etc/group, and numbers are shown as they were asked for; a refresh keeps
/// what they mean.
#[test]
fn names_refresh_and_change() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, world) = (Bpffs::new()?, World::with(&[pod_options()])?);
    let pod = world.pod();
    let proxy = pod.serve(inside(1337, 1337), "proxy", proxy_listeners(1))?;
    let _app = pod.serve(PROXY, "other", Vec::new())?;
    let _remote = world.serve_outside(everywhere(&[SERVED]))?;
    let text = std::fs::read_to_string("/etc/group")?;
    let mut groups = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let group = groups.find(|fields| fields[2] != "0").context("a group")?;
    let (name, number) = (group[0], group[2].parse::<u32>()?);

    let mut command = bpffs.command(&[], &["attach", "--name", "pod", "--pid", &proxy.pid().to_string()]);
    command.env("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", name);
    Run::of(&mut command)?.expect(exit::OK)?;
    let expect = |proxy: u32, other: u32| -> anyhow::Result<()> {
        for (owner, reached) in [
            (inside(proxy, proxy), "remote:8080"),
            (inside(other, other), "proxy:15001"),
            (Owner { uid: proxy, gid: proxy }, "proxy:15001"),
            (inside(1000, number), "remote:8080"),
            (Owner { uid: 1000, gid: number }, "proxy:15001"),
            (ROOT, "proxy:15001"),
        ] {
            let seen = observe_one(&pod.place(owner)?, SERVICE)?.summary();
            assert!(seen.starts_with(reached), "{owner:?}: {seen} instead of {reached}");
        }
        Ok(())
    };
    expect(1337, 1400)?;
    let policy = bpffs.show("pod")?["record"]["policy"].clone();
    assert_eq!(
        (&policy["proxy_uids"][0], &policy["owner_groups_exclude"][0]),
        (&1337.into(), &number.into())
    );
    bpffs.run(&["refresh", "pod"])?.expect(exit::OK)?;
    expect(1337, 1400)?;

    let mut command =
        bpffs.command(&[], &["attach", "--name", "pod", "--pid", &proxy.pid().to_string(), "-u", "1400"]);
    command.env("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", name);
    assert_eq!(Run::of(&mut command)?.expect(exit::OK)?.json()?["outcome"], "changed");
    expect(1400, 1337)?;
    let report = bpffs.run(&["verify", "pod", "--programs-only"])?.expect(exit::OK)?.json()?;
    // As the kernel counts.
    assert_eq!(report["probes"][0]["uid"], inside(1400, 1400).uid, "{report:#}");
    Ok(())
}
