//! `--proxy-cgroup`: the proxy is known by its container, where the application has the same user. netfilter can say the
//! same (`-m cgroup --path`), so it is the oracle here, too.

use std::path::Path;

use anyhow::{Context, ensure};
use redirector_tests::harness::pair::matrix::{FAMILIES, destinations};
use redirector_tests::harness::parity::addresses::dns_listeners;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::scenario::Udp;

/// A user of the rules whose rules become those of the cgroup.
const STAND_IN: u32 = 4242;

/// Containers by name, and whether they are the proxy's; all with the proxy's uid and gid.
const CONTAINERS: [(&str, bool); 3] = [("app", false), ("proxy", true), ("proxy/inner", true)];

fn has_cgroups() -> anyhow::Result<bool> {
    has_or_refuses(kernel::TELLS_CGROUPS, &["--proxy-cgroup", "PROXY"])
}

fn place(pod: &Pod, container: &str) -> anyhow::Result<Place> {
    pod.container(container, PROXY)
}

/// The path that `-m cgroup` takes: from the root of the tree.
fn path_of(cgroup: &Path) -> anyhow::Result<String> {
    let name = cgroup.parent().and_then(Path::file_name).context("a cgroup in a pod's")?;
    Ok(format!("{}/{}", name.to_string_lossy(), cgroup.file_name().context("a name")?.to_string_lossy()))
}

/// Rules in real iptables and an instance, both for the cgroup `proxy`.
fn pair(options: &Options) -> anyhow::Result<Pair> {
    let mut setup = Setup::default();
    setup.proxy.extend(dns_listeners());
    let [mut reference, mut subject] =
        [Fixture::with(Redirection::None, &setup)?, Fixture::with(Redirection::None, &setup)?];
    for fixture in [&reference, &subject] {
        CONTAINERS.iter().try_for_each(|(name, _)| place(fixture.pod(), name).map(drop))?;
    }
    let rules = Options { proxy_uids: vec![STAND_IN], proxy_gids: Vec::new(), ..options.clone() };
    let path = path_of(&reference.pod().cgroup.directory().join("proxy"))?;
    let by_cgroup = |text: String| {
        let text =
            text.replace(&format!("-m owner --uid-owner {STAND_IN}"), &format!("-m cgroup --path {path}"));
        text.replace(&format!("-m owner ! --uid-owner {STAND_IN}"), &format!("-m cgroup ! --path {path}"))
    };
    let texts = oracle::rule_texts(&rules).map(by_cgroup);
    // Three in nat; with DNS two more in raw, for conntrack's zones.
    let named = if options.redirect_dns { 5 } else { 3 };
    ensure!(
        texts.iter().all(|text| !text.contains("owner") && text.matches(&path).count() == named),
        "{texts:?}"
    );
    oracle::load(&reference.pod().netns, &texts)?;
    reference.pod().netns.ip("address add ::6/128 dev lo nodad\n")?;
    reference.redirection = Redirection::Iptables(options.clone());

    let mut flags = options.flags();
    let owners: Vec<usize> = (0..flags.len()).filter(|n| matches!(flags[*n].as_str(), "-u" | "-g")).collect();
    owners.into_iter().rev().for_each(|at| drop(flags.drain(at..at + 2)));
    let proxy = subject.pod().cgroup.directory().join("proxy").display().to_string();
    flags.extend(["--proxy-cgroup".to_owned(), proxy]);
    subject.instance = Some(Instance::attach(subject.pod(), &flags, &options.environment())?);
    Ok(Pair { reference, subject })
}

fn scenarios(pod: &Pod, dns: bool) -> Vec<Scenario> {
    let mut all = Vec::new();
    if dns {
        for (family, to) in
            [(Family::V4, at(VIP4, 53)), (Family::V6, at(VIP6, 53)), (Family::V4, at(pod.v4(), 53))]
        {
            all.push(Scenario::new(format!("tcp {to}"), family, to));
            for udp in [Udp::Connect, Udp::SendTo] {
                all.push(Scenario { udp: Some(udp), ..Scenario::new(format!("{udp:?} {to}"), family, to) });
            }
        }
        return all;
    }
    for (family_name, family) in FAMILIES {
        for (name, to) in destinations(pod, family) {
            if ["vip", "self", "127.0.0.", "::"].iter().any(|start| name.starts_with(start)) {
                all.push(Scenario::new(format!("{family_name} to {name}"), family, to));
            }
        }
    }
    all.push(Scenario { mptcp: true, ..Scenario::new("mptcp", Family::V4, SERVICE) });
    all
}

/// Same user, other container: one is the proxy and the other is captured, as netfilter's rules for the cgroup say.
#[test]
fn beside_iptables() -> anyhow::Result<()> {
    if !require_root() || !has_cgroups()? {
        return Ok(());
    }
    for dns in [false, true] {
        let options = Options { redirect_dns: dns, capture_all_dns: dns, ..Options::sidecar() };
        let pair = pair(&options)?;
        let scenarios = scenarios(pair.reference.pod(), dns);
        let count = scenarios.len();
        let parts = CONTAINERS.map(|(container, _)| Part {
            caller: Caller::Container(container, PROXY),
            scenarios: scenarios.clone(),
        });
        let observed = pair.check(&parts)?;
        for ((container, is_proxy), observed) in CONTAINERS.iter().zip(observed.chunks(count)) {
            let name = if dns { "tcp 10.96.0.10:53" } else { "v4 to vip" };
            let captured = observed.iter().find(|one| one.scenario == name).context("a scenario")?.summary();
            ensure!(captured.starts_with("proxy:") != *is_proxy, "{container}: {captured}");
        }
    }
    Ok(())
}

/// The cgroups that are allowed. Users count beside the cgroup only if they are given.
#[test]
fn which_cgroup_and_which_users() -> anyhow::Result<()> {
    if !require_root() || require_program("bpftool").is_none() || !has_cgroups()? {
        return Ok(());
    }
    let (bpffs, world) = (Bpffs::new()?, World::new()?);
    let pod = world.pod();
    let directory = pod.cgroup.directory().display().to_string();
    let proxy = format!("{directory}/proxy");
    for container in ["app", "proxy"] {
        place(pod, container)?;
    }
    let elsewhere = redirector_tests::harness::world::cgroup::Cgroup::new(&names::unique())?;
    let elsewhere = elsewhere.directory().display().to_string();
    for (wrong, words) in [
        (directory.as_str(), "not below the cgroup"),
        (elsewhere.as_str(), "not below the cgroup"),
        ("/nowhere", "does not exist"),
        ("/tmp", "not a cgroup"),
    ] {
        for more in [&[][..], &["--dry-run"]] {
            let flags = [&["--proxy-cgroup", wrong], more].concat();
            bpffs.attach(pod, "pod", &flags)?.refused(exit::USAGE, &["--proxy-cgroup", words])?;
        }
    }
    bpffs.expect_empty()?;
    assert_eq!(links_of(pod)?, [0, 0]);

    let _proxy = Server::start(&place(pod, "proxy")?, "proxy", proxy_listeners(1))?;
    let _remote = world.serve_outside(everywhere(&[SERVED]))?;
    let reached = |container: &str, owner| -> anyhow::Result<String> {
        Ok(observe_one(&pod.container(container, owner)?, SERVICE)?.summary())
    };
    let expect = |all: [(&str, Owner, bool); 4]| -> anyhow::Result<()> {
        for (container, owner, captured) in all {
            let seen = reached(container, owner)?;
            ensure!(seen.starts_with("proxy:15001") == captured, "{container} {owner:?}: {seen}");
        }
        Ok(())
    };
    bpffs.attach(pod, "pod", &["--proxy-cgroup", &proxy])?.expect(exit::OK)?;
    expect([("app", APP, true), ("app", PROXY, true), ("proxy", APP, false), ("proxy", PROXY, false)])?;
    let shown = bpffs.show("pod")?["record"]["policy"].clone();
    assert_eq!(shown["proxy_cgroup"], proxy);
    assert_eq!(
        (&shown["proxy_uids"], &shown["proxy_gids"]),
        (&serde_json::json!([]), &serde_json::json!([]))
    );
    let counters = bpffs.show("pod")?["counters"].clone();
    let passed = counters.as_array().and_then(|all| all.iter().find(|one| one["rule"] == "out_proxy_cgroup"));
    assert!(passed.is_some_and(|one| one["connections"].as_u64() > Some(0)), "{counters}");
    assert_eq!(
        bpffs.attach(pod, "pod", &["--proxy-cgroup", &proxy])?.expect(exit::OK)?.json()?["outcome"],
        "unchanged"
    );
    bpffs.run(&["refresh", "pod"])?.expect(exit::OK)?;
    expect([("app", APP, true), ("app", PROXY, true), ("proxy", APP, false), ("proxy", PROXY, false)])?;

    // Both, and only users again: other programs are needed for each.
    bpffs.attach(pod, "pod", &["--proxy-cgroup", &proxy, "-u", "1337"])?.expect(exit::OK)?;
    expect([("app", APP, true), ("app", PROXY, false), ("proxy", APP, false), ("proxy", PROXY, false)])?;
    bpffs.attach(pod, "pod", &[])?.expect(exit::OK)?;
    expect([("app", APP, true), ("app", PROXY, false), ("proxy", APP, true), ("proxy", PROXY, false)])
}

/// A restarted unit has the same path and another cgroup: it is told, and the same attach finds the new one.
#[test]
fn another_cgroup_of_the_same_path() -> anyhow::Result<()> {
    if !require_root() || !has_cgroups()? {
        return Ok(());
    }
    let (bpffs, world) = (Bpffs::new()?, World::new()?);
    let pod = world.pod();
    let proxy = pod.cgroup.directory().join("proxy");
    let flags = ["--proxy-cgroup", &proxy.display().to_string()];
    place(pod, "proxy")?;
    let attach =
        || anyhow::Ok(bpffs.attach(pod, "pod", &flags)?.expect(exit::OK)?.json()?["outcome"].clone());
    let told = || -> anyhow::Result<[bool; 2]> {
        let list = bpffs.list()?;
        let problems = [&list[0]["problem"], &bpffs.show("pod")?["problem"]];
        Ok(problems.map(|problem| problem.as_str().is_some_and(|text| text.contains("--proxy-cgroup"))))
    };
    assert_eq!(attach()?, "attached");
    assert_eq!(told()?, [false, false]);
    std::fs::remove_dir(&proxy)?;
    assert_eq!(told()?, [true, true], "it is gone");
    bpffs.run(&["refresh", "pod"])?.refused(exit::USAGE, &["--proxy-cgroup", "does not exist"])?;
    std::fs::create_dir(&proxy)?;
    assert_eq!(told()?, [true, true], "it is another one");

    let _remote = world.serve_outside(everywhere(&[SERVED]))?;
    assert_eq!(attach()?, "changed");
    assert_eq!(told()?, [false, false]);
    assert_eq!(observe_one(&place(pod, "proxy")?, SERVICE)?.summary(), "remote:8080");
    assert_eq!(attach()?, "unchanged");
    Ok(())
}

/// The same policy from a file, and what `explain` says of it.
#[test]
fn files_and_explain() -> anyhow::Result<()> {
    let file = std::env::temp_dir().join(names::unique());
    std::fs::write(&file, "proxy_cgroup = \"/sys/fs/cgroup/pod1/proxy\"\n")?;
    let file = file.display().to_string();
    let ask = |flags: &[&str]| {
        let run =
            redirector(&[&["explain", "--policy", &file, "--to", "10.96.0.10:80"], flags].concat(), &[])?;
        run.expect(exit::OK)?.json()
    };
    let (app, proxy) = (ask(&["--uid", "1337"])?, ask(&["--proxy"])?);
    assert_eq!((&app["verdict"], &app["rule"]), (&"outbound".into(), &"out_all".into()));
    assert_eq!((&proxy["verdict"], &proxy["rule"]), (&"pass".into(), &"out_proxy_cgroup".into()));
    assert_eq!(proxy["iptables"], "-A ISTIO_OUTPUT -m cgroup --path pod1/proxy -j RETURN");
    assert_eq!(proxy["in_proxy_cgroup"], true);
    let own = ask(&["--proxy", "--local-addr", "10.96.0.10"])?;
    assert_eq!((&own["verdict"], &own["rule"]), (&"inbound".into(), &"out_proxy_cgroup_loopback".into()));
    let mixed = ask(&["-u", "1000", "--uid", "1000"])?;
    assert_eq!(mixed["rule"], "out_proxy_uid");
    redirector(&["explain", "--proxy", "--to", "10.96.0.10:80"], &[])?
        .refused(exit::USAGE, &["--proxy-cgroup"])?;
    std::fs::write(&file, "proxy_cgroup = \"pod1/proxy\"\n")?;
    redirector(&["explain", "--policy", &file, "--to", "10.96.0.10:80"], &[])?
        .refused(exit::USAGE, &["proxy_cgroup", "absolute"])?;
    run(std::process::Command::new("rm").arg(&file), "")?;
    Ok(())
}
