//! The agent without Kubernetes: targets from files.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context;
use redirector_tests::harness::load::during;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::many::LoadReport;
use redirector_tests::harness::product::agent::{Agent, Home, target, until_active, until_registered};
use redirector_tests::harness::product::objects::detach_link;
use redirector_tests::harness::product::older::{Older, PROGRAMS};
use rustix::process::Signal;

const NAME: &str = "file-shop";
const DASHBOARD: &str = include_str!("../../deploy/helm/redirector/files/dashboard.json");
const ALERTS: &str = include_str!("../../deploy/helm/redirector/files/alerts.yaml");
/// Only where something is wrong, and where the agent keeps a plugin: `cni` and `cni_install` see them.
const NOT_HERE: [&str; 4] = [
    "redirector_pod_faults",
    "redirector_findings",
    "redirector_plugin_installed",
    "redirector_cni_requests_total",
];
/// Of SECURITY.md, those of the agent; and one more where locked memory limits maps (before 5.11).
const CAPABILITIES: &str = "+bpf,+net_admin,+net_broadcast,+perfmon,+sys_admin,+sys_ptrace";
const LOCKED_MEMORY: &str = "+sys_resource";
const PROXIED: &str = "proxy:15001";

struct CapturedPod {
    agent: Agent,
    fixture: Fixture,
    home: Home,
    bpffs: Bpffs,
}

/// A node whose agent captures the pod.
fn captured() -> anyhow::Result<Option<CapturedPod>> {
    require_root!();
    let (bpffs, home, fixture) = (Bpffs::new()?, Home::new()?, Fixture::new(Redirection::None)?);
    home.write("shop", &target(fixture.pod(), ""))?;
    let agent = Agent::start(&bpffs, &home)?;
    until_active(&bpffs, &agent, NAME, true)?;
    Ok(Some(CapturedPod { agent, fixture, home, bpffs }))
}

/// So many connections of the app to services outside.
fn connect(fixture: &Fixture, count: u16) -> anyhow::Result<LoadReport> {
    fixture.pod().load(APP, &Load::services(count))
}

/// Works while the app connects, 500 times or more; the connections all have to reach the proxy. How many there were.
fn under_load(fixture: &Fixture, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<usize> {
    let app = fixture.pod().place(APP)?;
    let reports = during(&[(&app, Load::services(500))], work)?.concat();
    for report in &reports {
        assert_eq!(report.reached, HashMap::from([(PROXIED.to_owned(), 500)]), "{report:#?}");
        assert!(report.wrong == 0 && report.failed.is_empty(), "{report:#?}");
    }
    Ok(reports.len() * 500)
}

/// Where the app's connection to an address ends.
fn reached(fixture: &Fixture, to: impl Into<IpAddr>) -> anyhow::Result<HashMap<String, usize>> {
    Ok(fixture.pod().load(APP, &Load::to(vec![at(to, SERVED)]))?.reached)
}

fn ends_at(fixture: &Fixture, to: impl Into<IpAddr>, server: &str) -> anyhow::Result<()> {
    let to = to.into();
    retry::until(&format!("a connection to {to} to reach {server}"), || {
        reached(fixture, to).is_ok_and(|reached| reached.contains_key(server)).then_some(())
    })
}

#[test]
fn files_are_followed() -> anyhow::Result<()> {
    let Some(CapturedPod { agent, fixture, home, bpffs }) = captured()? else { return Ok(()) };
    assert_eq!(reached(&fixture, VIP4)?, HashMap::from([(PROXIED.to_owned(), 1)]));
    assert_eq!(agent.get("/healthz")?.0, 200);
    retry::until("the agent to be ready", || {
        agent.get("/readyz").is_ok_and(|(s, _)| s == 200).then_some(())
    })?;

    // Another policy; what is wrong changes nothing; the next right one counts again.
    home.write("shop", &target(fixture.pod(), &format!("outbound_exclude_ports = [{SERVED}]")))?;
    ends_at(&fixture, VIP4, &format!("remote:{SERVED}"))?;
    let lines = agent.line_count();
    home.write("shop", "cgroup = 1")?;
    let error = agent.wait_for_event(lines, |event| event["reason"] == "config")?;
    assert!(error["message"].as_str().is_some_and(|text| text.contains("shop.toml")), "{error:#}");
    assert_eq!(error["level"], "ERROR", "{error:#}");
    assert!(agent.metric("redirector_errors_total{reason=\"config\"}")? >= 1.0);
    assert_eq!(bpffs.list()?.len(), 1);
    assert_eq!(reached(&fixture, VIP4)?, HashMap::from([(format!("remote:{SERVED}"), 1)]));
    home.write("shop", &target(fixture.pod(), ""))?;
    ends_at(&fixture, VIP4, PROXIED)?;

    home.remove("shop")?;
    retry::until("the instance to be gone", || (!bpffs.instance(NAME).exists()).then_some(()))?;
    bpffs.expect_no_instance()?;
    assert!(bpffs.instance("NODE-2").is_dir(), "the programs are kept for the next one");
    assert!(reached(&fixture, VIP4)?.contains_key(&format!("remote:{SERVED}")));
    agent.signal(Signal::TERM)?;
    retry::until("the bpffs to be empty", || bpffs.expect_empty().ok())
}

/// kill -9 while connections are made, again and again; a new agent adopts what is there.
#[test]
fn capture_outlives_the_agent() -> anyhow::Result<()> {
    const KILLS: usize = 5;
    let Some(CapturedPod { agent, fixture, home, bpffs }) = captured()? else { return Ok(()) };
    let before = bpffs.show(NAME)?;
    let connections = under_load(&fixture, || {
        let mut agent = agent;
        for _ in 0..KILLS {
            agent.kill()?;
            agent = Agent::start(&bpffs, &home)?;
            agent.wait_for(0, "adopted")?;
        }
        // Told to end, it leaves everything as it is.
        agent.signal(Signal::TERM)?;
        agent.wait_for(0, "ending").map(drop)
    })?;
    println!("{KILLS} kills while {connections} connections were made");
    // Adopted, not made anew.
    let programs = |show: &serde_json::Value| {
        show["hooks"].as_array().map(|h| h.iter().map(|h| h["program"].clone()).collect::<Vec<_>>())
    };
    assert_eq!(programs(&bpffs.show(NAME)?), programs(&before));
    Ok(())
}

#[test]
fn addresses_are_followed() -> anyhow::Result<()> {
    let Some(CapturedPod { agent, fixture, home: _home, bpffs }) = captured()? else { return Ok(()) };
    let new = Ipv4Addr::new(10, 77, 0, 99);
    // Somebody else's, as far as the instance knows: to the proxy.
    let report = fixture.pod().load(APP, &Load::to(vec![at(new, SERVED)]))?;
    assert!(report.reached.contains_key(PROXIED), "{report:#?} {}", bpffs.show(NAME)?["counters"]);
    fixture.pod().netns.ip(&format!("address add {new}/24 dev eth0"))?;
    ends_at(&fixture, new, &format!("app:{SERVED}")).with_context(|| agent.log())?;
    retry::until("the refresh to be counted", || {
        agent.metric("redirector_steps_total{step=\"refresh\"}").is_ok_and(|n| n >= 1.0).then_some(())
    })?;
    fixture.pod().netns.ip(&format!("address del {new}/24 dev eth0"))?;
    ends_at(&fixture, new, PROXIED).with_context(|| agent.log())?;

    // A change without effect on the snapshot does not touch the instance.
    let lines = agent.line_count();
    fixture.pod().netns.ip("link set eth0 txqueuelen 1001")?;
    agent.wait_for(lines, "its namespace has changed, which makes no difference")?;
    Ok(())
}

/// A namespace that ends takes its instance with it, at once, whoever made it.
#[test]
fn orphans_are_removed() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home, fixture) = (Bpffs::new()?, Home::new()?, Fixture::new(Redirection::None)?);
    bpffs.attach(fixture.pod(), "by-hand", &[])?.expect(exit::OK)?;
    // A whole minute without a look of its own: what it does it does because it hears of it.
    let config = home.config().display().to_string();
    let agent = Agent::with(&bpffs, &home, &["--config", &config, "--resync", "3600"])?;
    agent.wait_for(0, "adopted")?;
    drop(fixture);
    until_active(&bpffs, &agent, "by-hand", false)?;
    retry::until("the instances to be gone", || bpffs.expect_no_instance().ok())
        .with_context(|| agent.log())?;

    // One that ended while there was no agent.
    let fixture = Fixture::new(Redirection::None)?;
    bpffs.attach(fixture.pod(), "by-hand", &[])?.expect(exit::OK)?;
    agent.wait_for(0, "adopted")?;
    agent.kill()?;
    drop(fixture);
    let agent = Agent::start(&bpffs, &home)?;
    until_active(&bpffs, &agent, "by-hand", false)?;
    retry::until("the instances to be gone", || bpffs.expect_no_instance().ok())
        .with_context(|| agent.log())?;
    Ok(())
}

/// A link that somebody has detached is no namespace that has ended: the instance stays, and is repaired when it is adopted.
#[test]
fn a_detached_link_is_no_orphan() -> anyhow::Result<()> {
    require_root!("bpftool");
    let (bpffs, home, fixture) = (Bpffs::new()?, Home::new()?, Fixture::new(Redirection::None)?);
    bpffs.attach(fixture.pod(), "by-hand", &[])?.expect(exit::OK)?;
    for hook in ["sk_lookup", "getsockopt"] {
        detach_link(&bpffs.instance("by-hand").join(format!("link_{hook}")))?;
    }
    let agent = Agent::start(&bpffs, &home)?;
    agent.wait_for(0, "adopted")?;
    assert_eq!(bpffs.show("by-hand")?["effective"], true, "{}", agent.log());
    Ok(())
}

#[test]
fn metrics_tell_the_traffic() -> anyhow::Result<()> {
    let Some(CapturedPod { agent, fixture, home, bpffs }) = captured()? else { return Ok(()) };
    let sample = "redirector_connections_total{verdict=\"outbound\",rule=\"out_all\"}";
    assert_eq!(agent.metric(sample)?, 0.0);
    assert_eq!(connect(&fixture, 300)?.reached, HashMap::from([(PROXIED.to_owned(), 300)]));
    fixture.world.pods[0].observe(PROXY, &[Scenario::to(at(VIP4, SERVED))])?;
    let metrics = agent.metrics()?;
    let expect = [
        (sample, 300.0),
        ("redirector_connections_total{verdict=\"pass\",rule=\"out_proxy_uid\"}", 1.0),
        ("redirector_instances{state=\"active\"}", 1.0),
        ("redirector_listeners{traffic=\"outbound\",family=\"ipv4\"}", 1.0),
        ("redirector_listeners{traffic=\"inbound\",family=\"ipv6\"}", 1.0),
        ("redirector_attach_seconds_count", 1.0),
        ("redirector_targets{state=\"here\"}", 1.0),
        ("redirector_steps_total{step=\"attach\"}", 1.0),
    ];
    for (name, value) in expect {
        assert_eq!(metrics.get(name), Some(&value), "{name}: {metrics:#?}");
    }
    assert!(!metrics.keys().any(|name| name.starts_with("redirector_errors")), "{metrics:#?}");
    assert!(metrics.keys().any(|name| name.starts_with("redirector_build_info{version=")), "{metrics:#?}");

    // Whatever the dashboard asks for is there.
    let text = agent.get("/metrics")?.1;
    let asked = [DASHBOARD, ALERTS].concat();
    let shown: Vec<&str> = asked
        .split(|c: char| !c.is_ascii_lowercase() && c != '_')
        .filter(|w| w.starts_with("redirector_"))
        .collect();
    assert!(shown.len() > 10, "{shown:?}");
    for name in shown.into_iter().filter(|name| !NOT_HERE.contains(name)) {
        assert!(
            text.lines().any(|line| line.starts_with(name)),
            "the dashboard or an alert asks for {name}: {text}"
        );
    }

    // The agent does not look again at an instance that it has just attached.
    assert!(!agent.log().contains("\"adopted\"") && !agent.log().contains("refreshed"), "{}", agent.log());

    // They do not go back when the instance goes, nor count twice when it comes again.
    home.remove("shop")?;
    until_active(&bpffs, &agent, NAME, false)?;
    assert_eq!(agent.metric(sample)?, 300.0);
    home.write("shop", &target(fixture.pod(), ""))?;
    until_active(&bpffs, &agent, NAME, true)?;
    connect(&fixture, 7)?;
    assert_eq!(agent.metric(sample)?, 307.0);
    assert_eq!(agent.get("/nothing")?.0, 404);
    Ok(())
}

/// A process says where it is; when it ends there is nothing to capture, and the next one is captured again.
#[test]
fn pid_files_are_followed() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home, fixture) = (Bpffs::new()?, Home::new()?, Fixture::new(Redirection::None)?);
    let file = home.run().with_extension("pid");
    home.write("shop", &format!("pid_file = \"{}\"\n", file.display()))?;
    let config = home.config().display().to_string();
    let agent = Agent::with(&bpffs, &home, &["--config", &config, "--resync", "3600"])?;
    retry::until("the target to be awaited", || {
        agent.metric("redirector_targets{state=\"awaited\"}").is_ok_and(|n| n == 1.0).then_some(())
    })?;
    let _process =
        Daemon::start("sleep", fixture.pod().place(APP)?.program("/bin/sleep".as_ref()).arg("600"))?;
    std::fs::write(&file, format!("{}\n", fixture.app.pid()))?;
    until_active(&bpffs, &agent, NAME, true)?;
    ends_at(&fixture, VIP4, PROXIED)?;
    // The file going is no reason to let the processes out.
    std::fs::remove_file(&file)?;
    retry::until("the target to be awaited", || {
        agent.metric("redirector_targets{state=\"awaited\"}").is_ok_and(|n| n == 1.0).then_some(())
    })?;
    assert!(reached(&fixture, VIP4)?.contains_key(PROXIED));
    Ok(())
}

/// An instance that another version has made gets the programs of this one under load, and nobody notices.
#[test]
fn programs_of_an_older_version_are_swapped() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home, fixture, older) =
        (Bpffs::new()?, Home::new()?, Fixture::new(Redirection::None)?, Older::make()?);
    home.write("shop", &target(fixture.pod(), ""))?;
    let agent = Agent::of(&older.path(), &bpffs, &home)?;
    until_active(&bpffs, &agent, NAME, true)?;
    agent.kill()?;
    let before = bpffs.show(NAME)?;
    assert_eq!(before["record"]["programs"], PROGRAMS);
    under_load(&fixture, || Agent::start(&bpffs, &home)?.wait_for(0, "upgrade done").map(drop))?;
    let after = bpffs.show(NAME)?;
    for (old, new) in
        before["hooks"].as_array().context("hooks")?.iter().zip(after["hooks"].as_array().context("hooks")?)
    {
        assert_ne!(old["program"], new["program"], "{new:#}");
        assert_eq!(new["effective"], true);
    }
    assert_ne!(after["record"]["programs"], PROGRAMS);
    assert_eq!(after["record"]["policy"], before["record"]["policy"]);
    // Once is enough.
    let agent = Agent::start(&bpffs, &home)?;
    agent.wait_for(0, "adopted")?;
    assert_eq!(agent.metric("redirector_steps_total{step=\"upgrade\"}")?, 0.0, "{}", agent.log());
    Ok(())
}

/// Two agents are never at work at once: the second stands by, and goes on when the first ends.
#[test]
fn a_second_agent_waits() -> anyhow::Result<()> {
    let Some(CapturedPod { agent, fixture, home, bpffs }) = captured()? else { return Ok(()) };
    let second = Agent::start(&bpffs, &home)?;
    second.wait_for(0, "another agent is at work")?;
    let standby = (200, "standby: another agent is at work on this node\n".to_owned());
    retry::until("the standby to know that it could take over", || {
        second.get("/readyz").is_ok_and(|answer| answer == standby).then_some(())
    })?;
    agent.kill()?;
    second.wait_for(0, "adopted")?;
    home.remove("shop")?;
    until_active(&bpffs, &second, NAME, false)?;
    drop(fixture);
    Ok(())
}

fn capabilities_here() -> String {
    if kernel::is_at_least(5, 11) {
        CAPABILITIES.to_owned()
    } else {
        format!("{CAPABILITIES},{LOCKED_MEMORY}")
    }
}

/// The capabilities that SECURITY.md lists for the agent suffice for everything it does.
#[test]
fn capabilities() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home, fixture) = (Bpffs::new()?, Home::new()?, Fixture::new(Redirection::None)?);
    home.write("shop", &target(fixture.pod(), ""))?;
    let config = home.config().display().to_string();
    let arguments = ["--config", config.as_str()];
    let with = |capabilities: &str| {
        let bounding = format!("--bounding-set=-all,{capabilities}");
        Agent::by(&["setpriv", &bounding], &bpffs, &home, &arguments)
    };
    let refused = |capabilities: &str, missing: &str| -> anyhow::Result<()> {
        let error = format!("{:#}", with(capabilities).err().context("it must not start")?);
        assert!(error.contains(missing), "{error}");
        Ok(())
    };
    let needed = capabilities_here();
    if needed != CAPABILITIES {
        refused(CAPABILITIES, "CAP_SYS_RESOURCE")?;
    }
    refused(&needed.replace("+net_broadcast,", ""), "CAP_NET_BROADCAST")?;
    let agent = with(&needed)?;
    until_active(&bpffs, &agent, NAME, true)?;
    ends_at(&fixture, VIP4, PROXIED)?;
    let new = Ipv4Addr::new(10, 77, 0, 99);
    fixture.pod().netns.ip(&format!("address add {new}/24 dev eth0"))?;
    ends_at(&fixture, new, &format!("app:{SERVED}")).with_context(|| agent.log())?;
    let errors = || -> anyhow::Result<Vec<String>> {
        Ok(agent.metrics()?.into_keys().filter(|name| name.starts_with("redirector_errors")).collect())
    };
    assert!(errors()?.is_empty(), "{}", agent.log());
    drop(fixture);
    until_active(&bpffs, &agent, NAME, false)?;
    // The file names a pod whose cgroup goes first: the agent may have looked for it in between, and say so.
    assert!(errors()?.iter().all(|name| name.contains("\"target\"")), "{}", agent.log());
    Ok(())
}

/// Listeners of a program that was started as the proxy's user: its descriptors are another user's, which takes more than
/// what the agent has to look at, and are registered all the same, by each agent anew.
#[test]
fn listeners_of_another_user() -> anyhow::Result<()> {
    let (true, Some(busybox)) = (require_root(), require_program("busybox")) else { return Ok(()) };
    let setup = Setup { proxy: Vec::new(), ..Setup::default() };
    let (bpffs, home, fixture) = (Bpffs::new()?, Home::new()?, Fixture::with(Redirection::None, &setup)?);
    let mut proxy = fixture.pod().place(PROXY)?.program(&busybox);
    let _proxy = Daemon::start("proxy", proxy.args(["httpd", "-f", "-p", "15006", "-h", "/tmp"]))?;
    fixture.pod().netns.wait_for_listener(15006)?;
    home.write("shop", &target(fixture.pod(), ""))?;
    let config = home.config().display().to_string();
    let bounding = format!("--bounding-set=-all,{}", capabilities_here());
    for _ in 0..2 {
        let agent = Agent::by(&["setpriv", &bounding], &bpffs, &home, &["--config", config.as_str()])?;
        until_active(&bpffs, &agent, NAME, true)?;
        until_registered(&bpffs, &agent, NAME)?;
        agent.kill()?;
    }
    Ok(())
}
