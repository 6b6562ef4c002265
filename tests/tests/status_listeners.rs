//! `redirector status` of pods whose proxy does not get what is captured.

use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;

use anyhow::Context;
use redirector_tests::harness::kernel;
use redirector_tests::harness::names;
use redirector_tests::harness::probe::scenario::Owner;
use redirector_tests::harness::probe::serve::Listen;
use redirector_tests::harness::process::{Daemon, Place};
use redirector_tests::harness::product::exit;
use redirector_tests::harness::product::health::{NAME, Setup};
use redirector_tests::harness::retry;
use redirector_tests::harness::server::{OUTBOUND, Server, any4, proxy_listeners};
use redirector_tests::harness::world::cgroup::Cgroup;
use redirector_tests::harness::world::{PROXY, ROOT};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

#[test]
fn a_proxy_that_listens_is_well() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    // Older than the attach, and younger.
    let proxy = setup.proxy()?;
    setup.attach(&[])?;
    setup.expect_well()?;
    drop(proxy);
    let _proxy = setup.proxy()?;
    setup.expect_well()?;
    let run = setup.node.run(&["status", "nobody"])?;
    run.refused(exit::NOTHING, &["there is no instance nobody"])?;
    Ok(())
}

#[test]
fn nobody_listens() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    setup.attach(&[])?;
    setup.expect_fault("no_listener", &["nobody listens on port 15001", "refused", "start the proxy"])?;
    let _proxy = setup.proxy()?;
    setup.expect_well()?;
    Ok(())
}

#[test]
fn only_on_loopback() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy_with(|listen| {
        let loopback = if listen.address.is_ipv4() { "127.0.0.1" } else { "::1" };
        listen.address.set_ip(loopback.parse().unwrap());
    })?;
    setup.attach(&[])?;
    setup.expect_fault("listener_on_loopback", &["15006", "127.0.0.1 only", "network"])?;
    Ok(())
}

#[test]
fn only_ipv4() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let listeners = [15001, 15006].map(any4).map(Listen::on).to_vec();
    let _proxy = setup.world.pod().serve(PROXY, "proxy", listeners)?;
    setup.attach(&[])?;
    setup.expect_fault("no_listener_of_family", &["15001", "IPv6"])?;
    setup.attach(&["--ipv6", "off"])?;
    let notices = setup.expect_well()?;
    assert!(notices.iter().any(|notice| notice["kind"] == "ipv4_only"), "{notices:#?}");
    Ok(())
}

#[test]
fn outside_the_cgroup() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let elsewhere = Cgroup::new(&names::unique())?;
    let place = Place {
        netns: setup.world.pod().netns.file().to_owned(),
        cgroup: Some(elsewhere.directory().to_owned()),
        owner: PROXY,
    };
    setup.attach(&[])?;
    let _proxy = Server::start(&place, "proxy", proxy_listeners(1))?;
    setup.expect_fault("listener_outside", &["15006", "outside the cgroup", "probe"])?;
    let findings = setup.findings()?;
    let is_it = |finding: &Value| finding["kind"] == "process_outside" && finding["level"] == "notice";
    anyhow::ensure!(findings.iter().any(is_it), "{findings:#?}");
    Ok(())
}

#[test]
fn of_another_user() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let other = Owner { uid: 2000, gid: 2000 };
    let _proxy = setup.world.pod().serve(other, "proxy", proxy_listeners(1))?;
    setup.attach(&[])?;
    setup.expect_fault("proxy_user", &["uid 2000", "1337", "loop", "-u 2000"])?;
    setup.attach(&["-u", "2000"])?;
    setup.expect_well()?;
    Ok(())
}

/// A proxy that is known by its group, and one that is known by its cgroup.
#[test]
fn of_a_group_or_cgroup() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let pod = setup.world.pod();
    let proxy = pod.serve(Owner { uid: 0, gid: 1337 }, "proxy", proxy_listeners(1))?;
    setup.attach(&[])?;
    setup.expect_well()?;
    drop(proxy);
    let container = pod.cgroup.child("proxy")?;
    let place = Place { netns: pod.netns.file().to_owned(), cgroup: Some(container.clone()), owner: ROOT };
    let _proxy = Server::start(&place, "proxy", proxy_listeners(1))?;
    setup.expect_fault("proxy_user", &["uid 0"])?;
    setup.attach(&["--proxy-cgroup", &container.display().to_string()])?;
    setup.expect_well()?;
    Ok(())
}

#[test]
fn with_mptcp() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    if !kernel::has_mptcp() {
        return Ok(());
    }
    let _proxy = setup.proxy_with(|listen| listen.mptcp = true)?;
    setup.attach(&[])?;
    setup.expect_fault("listener_mptcp", &["15006", "MPTCP", "plain TCP"])?;
    Ok(())
}

#[test]
fn more_than_the_registry_holds() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy_with(|listen| listen.sockets = 40)?;
    setup.attach(&[])?;
    let notices = setup.expect_well()?;
    assert!(notices.iter().any(|notice| notice["kind"] == "listeners_beyond_registry"), "{notices:#?}");
    Ok(())
}

#[test]
fn names_are_asked_over_udp() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let mut proxy = setup.proxy()?;
    setup.attach(&["--redirect-dns", "--capture-all-dns"])?;
    setup.expect_fault("no_dns_server", &["15053", "UDP", "not resolved"])?;
    proxy.open(Listen::udp("127.0.0.1:15053".parse()?))?;
    let notices = setup.expect_well()?;
    assert!(notices.iter().any(|notice| notice["kind"] == "no_listener"), "{notices:#?}");
    Ok(())
}

/// `verify` does not say that names are resolved where no answer has come.
#[test]
fn a_dns_server_that_does_not_answer() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&["--redirect-dns", "--capture-all-dns"])?;
    let netns = &setup.world.pod().netns;
    let silent = netns.enter(|| Ok(UdpSocket::bind("127.0.0.1:15053")?))?;
    let report = setup.node.run(&["verify", NAME, "--timeout", "1"])?.json()?;
    let probes = report["probes"].as_array().context("probes")?;
    let question = |probe: &&Value| probe["probe"] == "dns_udp" && probe["family"] == "ipv4";
    let question = probes.iter().find(question).context("a question")?;
    anyhow::ensure!(question["status"] == "skipped", "{question:#}");
    anyhow::ensure!(question["why"].to_string().contains("has not answered"), "{question:#}");
    drop(silent);
    Ok(())
}

/// Names are captured on their way to the servers that resolv.conf named at the attach.
#[test]
fn other_servers_in_resolv_conf() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let mut proxy = setup.proxy()?;
    proxy.open(Listen::udp("127.0.0.1:15053".parse()?))?;
    let dir = tempfile::tempdir()?;
    let policy = dir.path().join("policy.toml");
    std::fs::write(&policy, "dns = [\"10.96.0.10\"]\n")?;
    setup.attach(&["--policy", &policy.display().to_string()])?;
    let place = setup.world.pod().place(ROOT)?;
    let with = |servers: &[&str]| -> anyhow::Result<Daemon> {
        let lines: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        let script = format!(
            "mount -t tmpfs none /etc; printf '{lines}' >/etc/resolv.conf; echo mounted; exec sleep 600"
        );
        let mut command = place.program(Path::new("unshare"));
        let app = Daemon::start("app", command.args(["--mount", "sh", "-c", &script]))?;
        app.wait_for(0, |line| (line == "mounted").then_some(()))?;
        Ok(app)
    };
    let app = with(&["10.96.0.10"])?;
    setup.expect_well()?;
    drop(app);
    let app = with(&["127.0.0.53", "169.254.20.10"])?;
    setup.expect_fault(
        "dns_server_not_captured",
        &["sleep asks 169.254.20.10", "past the proxy", "attach again"],
    )?;
    drop(app);
    let _app = with(&["10.96.0.10", "8.8.8.8"])?;
    let notices = setup.expect_well()?;
    let is_it = |notice: &Value| {
        notice["kind"] == "dns_server_not_captured" && notice.to_string().contains("8.8.8.8")
    };
    anyhow::ensure!(notices.iter().any(is_it), "{notices:#?}");
    Ok(())
}

/// A proxy that is there and does nothing: stopped, frozen, or blocked.
#[test]
fn a_proxy_that_accepts_nothing() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    setup.world.pod().netns.sysctl(&[("core/somaxconn", "2")])?;
    let proxy = setup.proxy()?;
    setup.attach(&[])?;
    let pid = Pid::from_raw(proxy.pid().cast_signed()).context("a pid")?;
    kill_process(pid, Signal::STOP)?;
    let waiting = setup.world.pod().netns.enter(|| {
        let to = (Ipv4Addr::LOCALHOST, OUTBOUND);
        (0..3).map(|_| Ok(TcpStream::connect(to)?)).collect::<anyhow::Result<Vec<_>>>()
    })?;
    setup.expect_found("listener_queue_full", &["3 connections wait", "port 15001", "probe", "time out"])?;
    drop(waiting);
    kill_process(pid, Signal::CONT)?;
    retry::until("the proxy to accept", || setup.expect_well().ok())?;
    Ok(())
}

/// There is room in its queue, and nobody takes what waits there; and of a proxy whose cgroup is frozen by cgroup v1.
#[test]
fn connections_that_nobody_accepts() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    setup.attach(&[])?;
    let netns = &setup.world.pod().netns;
    let listener = netns.enter(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, OUTBOUND))?))?;
    let waiting = netns.enter(|| Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, OUTBOUND))?))?;
    let words = ["1 connection has waited", "port 15001", "keeps the process from accepting"];
    setup.expect_found("listener_not_accepting", &words)?;
    let accepted = listener.accept()?;
    let findings = setup.findings()?;
    anyhow::ensure!(!findings.iter().any(|it| it["kind"] == "listener_not_accepting"), "{findings:#?}");
    drop((accepted, waiting, listener));
    let freezer = Path::new("/sys/fs/cgroup/freezer");
    if !freezer.join("cgroup.procs").exists() {
        return Ok(());
    }
    let proxy = setup.proxy()?;
    setup.expect_well()?;
    let frozen = freezer.join(names::unique());
    std::fs::create_dir(&frozen)?;
    std::fs::write(frozen.join("cgroup.procs"), proxy.pid().to_string())?;
    std::fs::write(frozen.join("freezer.state"), "FROZEN")?;
    let found = setup.expect_found("listener_stopped", &["frozen with its cgroup", "THAWED"]);
    std::fs::write(frozen.join("freezer.state"), "THAWED")?;
    std::fs::write(freezer.join("cgroup.procs"), proxy.pid().to_string())?;
    std::fs::remove_dir(&frozen)?;
    found.map(drop)
}

/// A proxy that is told by its cgroup and has left it after it listened: its own connections are captured.
#[test]
fn a_proxy_that_has_left_its_cgroup() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let pod = setup.world.pod();
    let [own, other] = ["proxy", "other"].map(|name| pod.cgroup.directory().join(name));
    [&own, &other].into_iter().try_for_each(std::fs::create_dir_all)?;
    let place = Place { cgroup: Some(own.clone()), ..pod.place(PROXY)? };
    let proxy = Server::start(&place, "proxy", proxy_listeners(1))?;
    setup.attach(&["--proxy-cgroup", &own.display().to_string()])?;
    setup.expect_well()?;
    std::fs::write(other.join("cgroup.procs"), proxy.pid().to_string())?;
    setup.expect_found("proxy_user", &["the proxy's cgroup is", "loop", "start the proxy in"])?;
    std::fs::write(own.join("cgroup.procs"), proxy.pid().to_string())?;
    setup.expect_well()?;
    Ok(())
}
