//! The agent without Kubernetes: targets from files.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, anyhow};
use rustix::process::Signal;

use redirector_tests::harness::kernel;
use redirector_tests::harness::pair::fixture::{By, Setup, Side};
use redirector_tests::harness::pair::matrix::SERVED;
use redirector_tests::harness::probe::many::{Load, Report};
use redirector_tests::harness::process::Daemon;
use redirector_tests::harness::product::agent::{Agent, Home, target, until_active, until_registered};
use redirector_tests::harness::product::bpffs::Node;
use redirector_tests::harness::product::exit;
use redirector_tests::harness::product::objects::detach_link;
use redirector_tests::harness::product::older::{Older, PROGRAMS};
use redirector_tests::harness::requirements::{require_program, require_root};
use redirector_tests::harness::retry;
use redirector_tests::harness::world::{APP, PROXY, VIP4, at};

const NAME: &str = "file-shop";
const DASHBOARD: &str = include_str!("../../deploy/grafana/redirector.json");
/// Of SECURITY.md, those of the agent; and one more where locked memory limits maps (before 5.11).
const CAPABILITIES: &str = "+bpf,+net_admin,+net_broadcast,+perfmon,+sys_admin,+sys_ptrace";
const LOCKED_MEMORY: &str = "+sys_resource";
const PROXIED: &str = "proxy:15001";

struct Place {
    agent: Agent,
    side: Side,
    home: Home,
    node: Node,
}

/// A node whose agent captures the pod.
fn captured() -> anyhow::Result<Option<Place>> {
    if !require_root() {
        return Ok(None);
    }
    let (node, home, side) = (Node::new()?, Home::new()?, Side::new(By::Nobody)?);
    home.write("shop", &target(side.pod(), ""))?;
    let agent = Agent::start(&node, &home)?;
    until_active(&node, &agent, NAME, true)?;
    Ok(Some(Place { agent, side, home, node }))
}

/// So many connections of the app to services outside.
fn connect(side: &Side, count: u16) -> anyhow::Result<Report> {
    side.pod().load(APP, &Load::services(count))
}

/// Works while the app connects, 500 times or more; the connections all have to reach the proxy. How many there were.
fn under_load(side: &Side, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<usize> {
    let done = &AtomicBool::new(false);
    let reports = std::thread::scope(|scope| {
        let loading = scope.spawn(|| {
            let mut reports = Vec::new();
            while !done.load(Ordering::Relaxed) || reports.is_empty() {
                reports.push(connect(side, 500)?);
            }
            anyhow::Ok(reports)
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        let reports = loading.join().map_err(|_| anyhow!("a thread panicked"))??;
        worked.map(|()| reports)
    })?;
    for report in &reports {
        assert_eq!(report.reached, HashMap::from([(PROXIED.to_owned(), 500)]), "{report:#?}");
        assert!(report.wrong == 0 && report.failed.is_empty(), "{report:#?}");
    }
    Ok(reports.len() * 500)
}

/// Where the app's connection to an address ends.
fn reached(side: &Side, to: impl Into<IpAddr>) -> anyhow::Result<HashMap<String, usize>> {
    Ok(side.pod().load(APP, &Load::to(vec![at(to, SERVED)]))?.reached)
}

fn ends_at(side: &Side, to: impl Into<IpAddr>, server: &str) -> anyhow::Result<()> {
    let to = to.into();
    retry::until(&format!("a connection to {to} to reach {server}"), || {
        reached(side, to).is_ok_and(|reached| reached.contains_key(server)).then_some(())
    })
}

#[test]
fn files_are_followed() -> anyhow::Result<()> {
    let Some(Place { agent, side, home, node }) = captured()? else { return Ok(()) };
    assert_eq!(reached(&side, VIP4)?, HashMap::from([(PROXIED.to_owned(), 1)]));
    assert_eq!(agent.get("/healthz")?.0, 200);
    retry::until("the agent to be ready", || {
        agent.get("/readyz").is_ok_and(|(s, _)| s == 200).then_some(())
    })?;

    // Another policy; what is wrong changes nothing; the next right one counts again.
    home.write("shop", &target(side.pod(), &format!("outbound_exclude_ports = [{SERVED}]")))?;
    ends_at(&side, VIP4, &format!("remote:{SERVED}"))?;
    let lines = agent.line_count();
    home.write("shop", "cgroup = 1")?;
    let error = agent.wait_for_event(lines, |event| event["reason"] == "config")?;
    assert!(error["message"].as_str().is_some_and(|text| text.contains("shop.toml")), "{error:#}");
    assert_eq!(error["level"], "ERROR", "{error:#}");
    assert!(agent.metric("redirector_errors_total{reason=\"config\"}")? >= 1.0);
    assert_eq!(node.list()?.len(), 1);
    assert_eq!(reached(&side, VIP4)?, HashMap::from([(format!("remote:{SERVED}"), 1)]));
    home.write("shop", &target(side.pod(), ""))?;
    ends_at(&side, VIP4, PROXIED)?;

    home.remove("shop")?;
    until_active(&node, &agent, NAME, false)?;
    retry::until("the bpffs to be empty", || node.expect_empty().ok())?;
    assert!(reached(&side, VIP4)?.contains_key(&format!("remote:{SERVED}")));
    Ok(())
}

/// kill -9 while connections are made, again and again; a new agent adopts what is there.
#[test]
fn capture_outlives_the_agent() -> anyhow::Result<()> {
    const KILLS: usize = 5;
    let Some(Place { agent, side, home, node }) = captured()? else { return Ok(()) };
    let before = node.show(NAME)?;
    let connections = under_load(&side, || {
        let mut agent = agent;
        for _ in 0..KILLS {
            agent.kill()?;
            agent = Agent::start(&node, &home)?;
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
    assert_eq!(programs(&node.show(NAME)?), programs(&before));
    Ok(())
}

#[test]
fn addresses_are_followed() -> anyhow::Result<()> {
    let Some(Place { agent, side, home: _home, node }) = captured()? else { return Ok(()) };
    let new = Ipv4Addr::new(10, 77, 0, 99);
    // Somebody else's, as far as the instance knows: to the proxy.
    let report = side.pod().load(APP, &Load::to(vec![at(new, SERVED)]))?;
    assert!(report.reached.contains_key(PROXIED), "{report:#?} {}", node.show(NAME)?["counters"]);
    side.pod().netns.ip(&format!("address add {new}/24 dev eth0"))?;
    ends_at(&side, new, &format!("app:{SERVED}")).with_context(|| agent.log())?;
    retry::until("the refresh to be counted", || {
        agent.metric("redirector_steps_total{step=\"refresh\"}").is_ok_and(|n| n >= 1.0).then_some(())
    })?;
    side.pod().netns.ip(&format!("address del {new}/24 dev eth0"))?;
    ends_at(&side, new, PROXIED).with_context(|| agent.log())?;

    // What makes no difference is no reason to touch the instance.
    let lines = agent.line_count();
    side.pod().netns.ip("link set eth0 txqueuelen 1001")?;
    agent.wait_for(lines, "its namespace has changed, which makes no difference")?;
    Ok(())
}

/// A namespace that ends takes its instance with it, at once, whoever made it.
#[test]
fn orphans_are_removed() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let (node, home, side) = (Node::new()?, Home::new()?, Side::new(By::Nobody)?);
    node.attach(side.pod(), "by-hand", &[])?.expect(exit::OK)?;
    // A whole minute without a look of its own: what it does it does because it hears of it.
    let config = home.config().display().to_string();
    let agent = Agent::with(&node, &home, &["--config", &config, "--resync", "3600"])?;
    agent.wait_for(0, "adopted")?;
    drop(side);
    until_active(&node, &agent, "by-hand", false)?;
    retry::until("the bpffs to be empty", || node.expect_empty().ok()).with_context(|| agent.log())?;

    // One that ended while there was no agent.
    let side = Side::new(By::Nobody)?;
    node.attach(side.pod(), "by-hand", &[])?.expect(exit::OK)?;
    agent.wait_for(0, "adopted")?;
    agent.kill()?;
    drop(side);
    let agent = Agent::start(&node, &home)?;
    until_active(&node, &agent, "by-hand", false)?;
    retry::until("the bpffs to be empty", || node.expect_empty().ok()).with_context(|| agent.log())?;
    Ok(())
}

/// A link that somebody has detached is no namespace that has ended: the instance stays, and is repaired when it is adopted.
#[test]
fn a_detached_link_is_no_orphan() -> anyhow::Result<()> {
    if !require_root() || require_program("bpftool").is_none() {
        return Ok(());
    }
    let (node, home, side) = (Node::new()?, Home::new()?, Side::new(By::Nobody)?);
    node.attach(side.pod(), "by-hand", &[])?.expect(exit::OK)?;
    for hook in ["sk_lookup", "getsockopt"] {
        detach_link(&node.instance("by-hand").join(format!("link_{hook}")))?;
    }
    let agent = Agent::start(&node, &home)?;
    agent.wait_for(0, "adopted")?;
    assert_eq!(node.show("by-hand")?["effective"], true, "{}", agent.log());
    Ok(())
}

#[test]
fn metrics_tell_the_traffic() -> anyhow::Result<()> {
    let Some(Place { agent, side, home, node }) = captured()? else { return Ok(()) };
    let sample = "redirector_connections_total{verdict=\"outbound\",rule=\"out_all\"}";
    assert_eq!(agent.metric(sample)?, 0.0);
    assert_eq!(connect(&side, 300)?.reached, HashMap::from([(PROXIED.to_owned(), 300)]));
    side.world.pods[0]
        .observe(PROXY, &[redirector_tests::harness::probe::scenario::Scenario::to(at(VIP4, SERVED))])?;
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
    let shown: Vec<&str> = DASHBOARD
        .split(|c: char| !c.is_ascii_lowercase() && c != '_')
        .filter(|w| w.starts_with("redirector_"))
        .collect();
    assert!(shown.len() > 10, "{shown:?}");
    for name in shown {
        assert!(text.lines().any(|line| line.starts_with(name)), "the dashboard shows {name}: {text}");
    }

    // What the agent has attached itself needs no second look.
    assert!(!agent.log().contains("\"adopted\"") && !agent.log().contains("refreshed"), "{}", agent.log());

    // They do not go back when the instance goes, nor count twice when it comes again.
    home.remove("shop")?;
    until_active(&node, &agent, NAME, false)?;
    assert_eq!(agent.metric(sample)?, 300.0);
    home.write("shop", &target(side.pod(), ""))?;
    until_active(&node, &agent, NAME, true)?;
    connect(&side, 7)?;
    assert_eq!(agent.metric(sample)?, 307.0);
    assert_eq!(agent.get("/nothing")?.0, 404);
    Ok(())
}

/// A process says where it is; when it ends there is nothing to capture, and the next one is captured again.
#[test]
fn pid_files_are_followed() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let (node, home, side) = (Node::new()?, Home::new()?, Side::new(By::Nobody)?);
    let file = home.run().with_extension("pid");
    home.write("shop", &format!("pid_file = \"{}\"\n", file.display()))?;
    let config = home.config().display().to_string();
    let agent = Agent::with(&node, &home, &["--config", &config, "--resync", "3600"])?;
    retry::until("the target to be awaited", || {
        agent.metric("redirector_targets{state=\"awaited\"}").is_ok_and(|n| n == 1.0).then_some(())
    })?;
    let _process = Daemon::start("sleep", side.pod().place(APP)?.program("/bin/sleep".as_ref()).arg("600"))?;
    std::fs::write(&file, format!("{}\n", side.app.pid()))?;
    until_active(&node, &agent, NAME, true)?;
    ends_at(&side, VIP4, PROXIED)?;
    // The file going is no reason to let the processes out.
    std::fs::remove_file(&file)?;
    retry::until("the target to be awaited", || {
        agent.metric("redirector_targets{state=\"awaited\"}").is_ok_and(|n| n == 1.0).then_some(())
    })?;
    assert!(reached(&side, VIP4)?.contains_key(PROXIED));
    Ok(())
}

/// An instance that another version has made gets the programs of this one under load, and nobody notices.
#[test]
fn programs_of_an_older_version_are_swapped() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let (node, home, side, older) = (Node::new()?, Home::new()?, Side::new(By::Nobody)?, Older::make()?);
    home.write("shop", &target(side.pod(), ""))?;
    let agent = Agent::of(&older.path(), &node, &home)?;
    until_active(&node, &agent, NAME, true)?;
    agent.kill()?;
    let before = node.show(NAME)?;
    assert_eq!(before["record"]["programs"], PROGRAMS);
    under_load(&side, || Agent::start(&node, &home)?.wait_for(0, "upgrade done").map(drop))?;
    let after = node.show(NAME)?;
    for (old, new) in
        before["hooks"].as_array().context("hooks")?.iter().zip(after["hooks"].as_array().context("hooks")?)
    {
        assert_ne!(old["program"], new["program"], "{new:#}");
        assert_eq!(new["effective"], true);
    }
    assert_ne!(after["record"]["programs"], PROGRAMS);
    assert_eq!(after["record"]["policy"], before["record"]["policy"]);
    // Once is enough.
    let agent = Agent::start(&node, &home)?;
    agent.wait_for(0, "adopted")?;
    assert_eq!(agent.metric("redirector_steps_total{step=\"upgrade\"}")?, 0.0, "{}", agent.log());
    Ok(())
}

/// Two agents are never at work at once: the second stands by, and goes on when the first ends.
#[test]
fn a_second_agent_waits() -> anyhow::Result<()> {
    let Some(Place { agent, side, home, node }) = captured()? else { return Ok(()) };
    let second = Agent::start(&node, &home)?;
    second.wait_for(0, "another agent is at work")?;
    assert_eq!(second.get("/readyz")?, (200, "standby: another agent is at work on this node\n".to_owned()));
    agent.kill()?;
    second.wait_for(0, "adopted")?;
    home.remove("shop")?;
    until_active(&node, &second, NAME, false)?;
    drop(side);
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
    if !require_root() {
        return Ok(());
    }
    let (node, home, side) = (Node::new()?, Home::new()?, Side::new(By::Nobody)?);
    home.write("shop", &target(side.pod(), ""))?;
    let config = home.config().display().to_string();
    let arguments = ["--config", config.as_str()];
    let with = |capabilities: &str| {
        let bounding = format!("--bounding-set=-all,{capabilities}");
        Agent::by(&["setpriv", &bounding], &node, &home, &arguments)
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
    until_active(&node, &agent, NAME, true)?;
    ends_at(&side, VIP4, PROXIED)?;
    let new = Ipv4Addr::new(10, 77, 0, 99);
    side.pod().netns.ip(&format!("address add {new}/24 dev eth0"))?;
    ends_at(&side, new, &format!("app:{SERVED}")).with_context(|| agent.log())?;
    let errors = || -> anyhow::Result<Vec<String>> {
        Ok(agent.metrics()?.into_keys().filter(|name| name.starts_with("redirector_errors")).collect())
    };
    assert!(errors()?.is_empty(), "{}", agent.log());
    drop(side);
    until_active(&node, &agent, NAME, false)?;
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
    let (node, home, side) = (Node::new()?, Home::new()?, Side::with(By::Nobody, &setup)?);
    let mut proxy = side.pod().place(PROXY)?.program(&busybox);
    let _proxy = Daemon::start("proxy", proxy.args(["httpd", "-f", "-p", "15006", "-h", "/tmp"]))?;
    side.pod().netns.wait_for_listener(15006)?;
    home.write("shop", &target(side.pod(), ""))?;
    let config = home.config().display().to_string();
    let bounding = format!("--bounding-set=-all,{}", capabilities_here());
    for _ in 0..2 {
        let agent = Agent::by(&["setpriv", &bounding], &node, &home, &["--config", config.as_str()])?;
        until_active(&node, &agent, NAME, true)?;
        until_registered(&node, &agent, NAME)?;
        agent.kill()?;
    }
    Ok(())
}
