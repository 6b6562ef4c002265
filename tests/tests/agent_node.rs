//! The agent on nodes that are not as it would like them.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use redirector_tests::harness::kubelet::{Call, Id, Kubelet, NodeWithPod, PREVIOUS};
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::product::agent::{
    Agent, Home, target, until_active, until_ready, until_registered,
};
use redirector_tests::harness::product::objects::{detach_link, set_layout};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;
use serde_json::json;

const SHOP: &str = "shop";
/// The agent's name for it.
const INSTANCE: &str = "file-shop";

/// A mount made by an agent in a container would end with the container, so the agent mounts nothing.
#[test]
fn the_bpffs_is_the_nodes() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home) = (Bpffs::not_mounted()?, Home::new()?);
    let words = ["is not a bpffs on this node", "mount -t bpf bpf", "sys-fs-bpf.mount"];
    Run::of(&mut Agent::command(&bpffs, &home, &[], &[]))?.refused(exit::CANNOT, &words)?;
    bpffs.expect_empty()?;
    assert!(!home.run().exists(), "nothing is made before");
    Ok(())
}

/// Whoever keeps the port of the metrics busy keeps no probe from its answer. On the host's network the next agent wants the
/// same ports: it waits for both.
#[test]
fn probes_are_apart() -> anyhow::Result<()> {
    // More than are served at once.
    const BUSY: usize = 40;
    require_root!();
    let (bpffs, home) = (Bpffs::new()?, Home::new()?);
    let agent = Agent::with(&bpffs, &home, &["--probes", "127.0.0.1:0"])?;
    let serving = agent.wait_for(0, "serving /healthz and /readyz")?;
    let probes: SocketAddr = serving["at"].as_str().context("an address")?.parse()?;
    assert_eq!(agent.get_from(probes, "/healthz")?, (200, "ok\n".to_owned()));
    assert_eq!(agent.get_from(probes, "/metrics")?, (404, "there are /healthz and /readyz\n".to_owned()));
    for path in ["/metrics", "/healthz"] {
        assert_eq!(agent.get(path)?.0, 200, "{path}");
    }
    let busy: Vec<TcpStream> =
        (0..BUSY).map(|_| TcpStream::connect(agent.address())).collect::<std::io::Result<_>>()?;
    let metrics = TcpStream::connect(agent.address())?;
    metrics.set_read_timeout(Some(Duration::from_secs(1)))?;
    std::io::Write::write_all(&mut &metrics, b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n")?;
    assert!(std::io::Read::read(&mut &metrics, &mut [0]).is_err(), "the port is not busy");
    assert_eq!(agent.get_from(probes, "/healthz")?.0, 200);
    drop((busy, metrics));

    let (http, probes) = (agent.address().to_string(), probes.to_string());
    let arguments = ["--http", &http, "--probes", &probes];
    let next = Daemon::start("next", &mut Agent::command(&bpffs, &home, &[], &arguments))?;
    for option in ["--http", "--probes"] {
        let taken = format!("the address of {option} is in use");
        next.wait_for(0, |line| line.contains(&taken).then_some(()))?;
    }
    agent.kill()?;
    for paths in ["serving /metrics", "serving /healthz and /readyz"] {
        next.wait_for(0, |line| line.contains(paths).then_some(()))?;
    }
    Ok(())
}

/// Files of a ConfigMap: links through `..data`, which is all that is exchanged.
#[test]
fn a_config_map_is_followed() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home) = (Bpffs::new()?, Home::new()?);
    let world = World::with(&[PodOptions::default()])?;
    let dir = home.config();
    let publish = |version: &str, policy: &str| -> anyhow::Result<()> {
        std::fs::create_dir(dir.join(version))?;
        std::fs::write(dir.join(version).join("shop.toml"), target(world.pod(), policy))?;
        symlink(version, dir.join("..data_tmp"))?;
        Ok(std::fs::rename(dir.join("..data_tmp"), dir.join("..data"))?)
    };
    publish("..1", "")?;
    symlink("..data/shop.toml", dir.join("shop.toml"))?;
    // The agent acts on events here: the next resync is an hour away.
    let config = dir.display().to_string();
    let agent = Agent::with(&bpffs, &home, &["--config", &config, "--resync", "3600"])?;
    until_active(&bpffs, &agent, "file-shop", true)?;
    let lines = agent.line_count();
    publish("..2", "outbound_exclude_ports = [80]")?;
    agent.wait_for(lines, "change done")?;
    assert_eq!(bpffs.show("file-shop")?["record"]["policy"]["outbound_exclude_ports"], json!([80]));
    Ok(())
}

/// Some editors rename a file away before they write it anew: that takes nothing back.
#[test]
fn a_file_that_is_being_saved() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home) = (Bpffs::new()?, Home::new()?);
    let world = World::with(&[PodOptions::default()])?;
    home.write(SHOP, &target(world.pod(), ""))?;
    let agent = Agent::start(&bpffs, &home)?;
    until_active(&bpffs, &agent, INSTANCE, true)?;
    let file = home.config().join(format!("{SHOP}.toml"));
    let saved = |port: u16| -> anyhow::Result<bool> {
        let (begin, lines) = (Instant::now(), agent.line_count());
        std::fs::rename(&file, file.with_extension("toml~"))?;
        retry::until("the agent to have seen it", || {
            let nothing = agent.metric("redirector_targets{state=\"here\"}").is_ok_and(|here| here == 0.0);
            nothing.then_some(())
        })?;
        home.write(SHOP, &target(world.pod(), &format!("outbound_exclude_ports = [{port}]")))?;
        let in_time = begin.elapsed() < Duration::from_millis(900);
        retry::until("the next policy", || {
            let ports = bpffs.show(INSTANCE).ok()?["record"]["policy"]["outbound_exclude_ports"].clone();
            (ports == json!([port])).then_some(())
        })
        .with_context(|| agent.log())?;
        let log = agent.log();
        let kept = !log.lines().skip(lines).any(|line| line.contains("detaching"));
        assert!(kept || !in_time, "{log}");
        Ok(in_time)
    };
    // A machine that stalls says nothing about an editor.
    assert!((80..90).map(saved).collect::<anyhow::Result<Vec<_>>>()?.contains(&true), "never in time");

    // Another name is another file, at once and without an error.
    std::fs::rename(&file, file.with_file_name("other.toml"))?;
    until_active(&bpffs, &agent, "file-other", true)?;
    assert_eq!(bpffs.list()?.len(), 1);
    let errors = agent.metrics()?.into_keys().find(|name| name.starts_with("redirector_errors"));
    assert_eq!(errors, None, "{}", agent.log());
    // Gone for good it is taken back.
    home.remove("other")?;
    until_active(&bpffs, &agent, "file-other", false)
}

/// The innermost cgroup of a process's namespace is another one when a process elsewhere in it ends: no reason to let the
/// others out for a moment.
#[test]
fn a_process_beside_that_of_the_pid_file_ends() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home) = (Bpffs::new()?, Home::new()?);
    let fixture = Fixture::with(Redirection::None, &Setup { proxy: Vec::new(), ..Setup::default() })?;
    let mut sleep = fixture.pod().place(PROXY)?.program("/bin/sleep".as_ref());
    let beside = Daemon::start("sleep", sleep.arg("600"))?;
    let pid_file = home.run().with_extension("pid");
    std::fs::write(&pid_file, fixture.app.pid().to_string())?;
    let write = |policy: &str| {
        home.write(SHOP, &format!("pid_file = \"{}\"\n[policy]\n{policy}\n", pid_file.display()))
    };
    retry::until("the process to be in the proxy's container", || {
        let procs = fixture.pod().cgroup.child("proxy").ok()?.join("cgroup.procs");
        std::fs::read_to_string(procs).is_ok_and(|pids| !pids.is_empty()).then_some(())
    })?;
    write("")?;
    let agent = Agent::start(&bpffs, &home)?;
    until_active(&bpffs, &agent, INSTANCE, true)?;
    let cgroup = bpffs.show(INSTANCE)?["cgroup_id"].clone();
    assert_eq!(cgroup, std::fs::metadata(fixture.pod().cgroup.directory())?.ino());
    drop(beside);
    let lines = agent.line_count();
    write("outbound_exclude_ports = [80]")?;
    agent.wait_for(lines, "change done")?;
    assert!(!agent.log().contains("detaching"), "{}", agent.log());
    assert_eq!(bpffs.show(INSTANCE)?["cgroup_id"], cgroup);
    Ok(())
}

/// A listener of the proxy that came while the hook that would have registered it was away.
#[test]
fn a_listener_from_before_the_repair() -> anyhow::Result<()> {
    let (true, Some(busybox)) = (require_root(), require_program("busybox")) else { return Ok(()) };
    if require_program("bpftool").is_none() {
        return Ok(());
    }
    let (bpffs, home) = (Bpffs::new()?, Home::new()?);
    let fixture = Fixture::with(Redirection::None, &Setup { proxy: Vec::new(), ..Setup::default() })?;
    home.write(SHOP, &target(fixture.pod(), ""))?;
    let agent = Agent::start(&bpffs, &home)?;
    until_active(&bpffs, &agent, INSTANCE, true)?;
    agent.kill()?;
    detach_link(&bpffs.instance(INSTANCE).join("link_sockops"))?;
    let mut proxy = fixture.pod().place(PROXY)?.program(&busybox);
    let _proxy = Daemon::start("proxy", proxy.args(["httpd", "-f", "-p", "15006", "-h", "/tmp"]))?;
    fixture.pod().netns.wait_for_listener(15006)?;
    let agent = Agent::start(&bpffs, &home)?;
    until_registered(&bpffs, &agent, INSTANCE)?;
    assert_eq!(bpffs.show(INSTANCE)?["effective"], true);
    Ok(())
}

/// An address that comes after the attach has read the addresses and before anything is captured.
#[test]
fn an_address_that_comes_during_the_attach() -> anyhow::Result<()> {
    require_root!("strace");
    let (bpffs, home, fixture) = (Bpffs::new()?, Home::new()?, Fixture::new(Redirection::None)?);
    home.write(SHOP, &target(fixture.pod(), ""))?;
    let config = home.config().display().to_string();
    // -D: the agent is our child, and strace ends with it. Each look of the kernel at a program takes its time.
    let slow =
        ["strace", "-D", "-f", "-o", "/dev/null", "-e", "trace=bpf", "-e", "inject=bpf:delay_enter=10000"];
    let agent = Agent::by(&slow, &bpffs, &home, &["--config", &config, "--resync", "3600"])?;
    let instance = bpffs.instance(INSTANCE);
    let staged = instance.with_file_name(format!("NEW-{INSTANCE}"));
    retry::until("the attach to be at work", || staged.exists().then_some(()))?;
    let new = Ipv4Addr::new(10, 77, 0, 99);
    fixture.pod().netns.ip(&format!("address add {new}/24 dev eth0"))?;
    assert!(!instance.exists(), "the attach was quicker");
    until_active(&bpffs, &agent, INSTANCE, true)?;
    let local = format!("app:{SERVED}");
    retry::until(&format!("a connection to {new} to reach {local}"), || {
        let load = Load::to(vec![at(new, SERVED)]);
        fixture.pod().load(APP, &load).is_ok_and(|report| report.reached.contains_key(&local)).then_some(())
    })
    .with_context(|| agent.log())
}

/// A FIFO among the files is told, and keeps none of the others waiting.
#[test]
fn a_fifo_is_no_target() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home) = (Bpffs::new()?, Home::new()?);
    let world = World::with(&[PodOptions::default()])?;
    mknodat(CWD, home.config().join("fifo.toml"), FileType::Fifo, Mode::RUSR, 0)?;
    home.write("shop", &target(world.pod(), ""))?;
    let agent = Agent::start(&bpffs, &home)?;
    let error = agent.wait_for_event(0, |event| event["reason"] == "config")?;
    let text = error["message"].as_str().unwrap_or_default();
    assert!(text.contains("fifo.toml: it is no regular file"), "{error:#}");
    until_active(&bpffs, &agent, "file-shop", true)
}

/// CRI-O puts the monitor of a pod's containers, which is in the machine's namespace, into the pod's cgroup.
#[test]
fn a_monitor_in_the_pods_cgroup() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home) = (Bpffs::new()?, Home::new()?);
    let world = World::with(&[PodOptions::default()])?;
    let pod = world.pod();
    let place = Place {
        netns: "/proc/self/ns/net".into(),
        cgroup: Some(pod.cgroup.child("conmon")?),
        owner: pod.place(APP)?.owner,
    };
    let monitor = Daemon::start("monitor", place.program("/bin/sleep".as_ref()).arg("600"))?;
    home.write("shop", &format!("cgroup = \"{}\"\n", pod.cgroup.directory().display()))?;
    let agent = Agent::start(&bpffs, &home)?;
    // Alone it is no pod.
    let error = agent.wait_for_event(0, |event| event["reason"] == "target")?;
    let text = error["message"].as_str().unwrap_or_default();
    assert!(text.contains("the machine's own network namespace"), "{error:#}");
    let _app = pod.serve(APP, "app", everywhere(&[SERVED]))?;
    until_active(&bpffs, &agent, "file-shop", true)?;
    let show = bpffs.show("file-shop")?;
    assert_eq!(show["effective"], true, "{show:#}");
    drop(monitor);
    Ok(())
}

/// An instance with another map layout does not outlive its pod, and does not keep the pod from starting again.
#[test]
fn an_instance_of_another_layout() -> anyhow::Result<()> {
    require_root!("bpftool");
    let (bpffs, home, kubelet) = (Bpffs::new()?, Home::new()?, Kubelet::new()?);
    let [first, second] = [World::new()?, World::new()?];
    let id = Id::new(1);
    kubelet.know(&id, &id.object())?;
    let cgroup = kubelet.make_cgroup(&id)?;
    let agent = kubelet.agent(&bpffs, &home, &[])?;
    let instance = bpffs.instance(&id.instance());
    let add = |world: &World| Call::new("ADD", &home, &id, world.pod().netns.file());

    add(&first).succeed()?;
    set_layout(&instance, 99)?;
    let (_, why) = add(&first).fail()?;
    assert!(why.contains("map layout 99"), "{why}");
    add(&second).succeed()?;
    until_active(&bpffs, &agent, &id.instance(), true)?;
    assert_eq!(bpffs.list()?[0]["netns"], second.pod().netns.file().display().to_string());

    // As long as one of both is there somebody may come back.
    set_layout(&instance, 99)?;
    drop(second);
    Call::new("GC", &home, &id, Path::new("")).succeed()?;
    assert!(instance.exists(), "{}", agent.log());
    std::fs::remove_dir(&cgroup)?;
    retry::until("the instance to be removed", || {
        agent.signal(Signal::HUP).ok()?;
        (!instance.exists()).then_some(())
    })
    .with_context(|| agent.log())
}

/// What is detached by hand, in part or in whole, is attached again at once, and counted.
#[test]
fn what_others_detach_is_repaired() -> anyhow::Result<()> {
    require_root!("bpftool");
    let (bpffs, home) = (Bpffs::new()?, Home::new()?);
    let world = World::with(&[PodOptions::default()])?;
    home.write(SHOP, &target(world.pod(), ""))?;
    let agent = Agent::start(&bpffs, &home)?;
    until_active(&bpffs, &agent, INSTANCE, true)?;
    let repaired = |times: f64| {
        retry::until("the repair to be counted", || {
            let counted = agent.metric("redirector_steps_total{step=\"repair\"}").ok()?;
            (counted == times && bpffs.show(INSTANCE).ok()?["effective"] == true).then_some(())
        })
        .with_context(|| agent.log())
    };
    // What works is known by then.
    agent.wait_for_event(0, |event| event["links"].as_u64().is_some_and(|links| links > 0))?;
    detach_link(&bpffs.instance(INSTANCE).join("link_sk_lookup"))?;
    repaired(1.0)?;
    bpffs.run(&["detach", "--force", "--name", INSTANCE])?.expect(exit::OK)?;
    repaired(2.0)
}

/// Metrics name a pod while something is wrong with it.
#[test]
fn a_pod_with_a_fault_is_named() -> anyhow::Result<()> {
    let Some(node) = NodeWithPod::new(&["--resync", "1"])? else { return Ok(()) };
    node.call("ADD").succeed()?;
    let named = |expected: f64| {
        let labels = format!("{{namespace=\"shop\",pod=\"{}\",kind=\"process_outside\"}}", node.id.name);
        retry::until("the fault to be told", || {
            let found = node.agent.metric(&format!("redirector_pod_faults{labels}")).ok()?;
            let sum =
                node.agent.metric("redirector_findings{kind=\"process_outside\",level=\"fault\"}").ok()?;
            (found == expected && sum == expected).then_some(())
        })
        .with_context(|| node.agent.get("/metrics").map(|(_, text)| text).unwrap_or_default())
    };
    let outside = Place { netns: node.world.pod().netns.file().to_owned(), cgroup: None, owner: APP };
    let stray = Server::start(&outside, "stray", everywhere(&[SERVED]))?;
    named(1.0)?;
    drop(stray);
    named(0.0)
}

/// The bpffs is unmounted under the agent, and another one mounted in its place: it is not ready meanwhile, what is captured
/// stays so, and is carried over, so that it outlives the agent.
#[test]
fn the_bpffs_is_mounted_again() -> anyhow::Result<()> {
    let Some(node) = NodeWithPod::new(&[])? else { return Ok(()) };
    assert_eq!(node.call("ADD").succeed()?, PREVIOUS);
    let (_outside, _proxy) = (node.world.serve_outside(everywhere(&[SERVED]))?, node.proxy()?);
    let app = node.app()?;
    let to_proxy = || -> anyhow::Result<()> {
        let load = app.load(&Load::services(20))?;
        anyhow::ensure!(load.reached == [("proxy:15001".to_owned(), 20)].into(), "{load:?}");
        Ok(())
    };
    let path = node.bpffs.path();
    unmount(path, UnmountFlags::DETACH)?;
    let why = until_ready(&node.agent, false)?;
    assert!(why.contains("has been unmounted") && why.contains("mount -t bpf bpf"), "{why}");
    assert_eq!(node.call("STATUS").fail()?.0, 50);
    to_proxy()?;
    mount("bpf", path, "bpf", MountFlags::empty(), None)?;
    until_ready(&node.agent, true)?;
    until_active(&node.bpffs, &node.agent, &node.id.instance(), true)?;
    assert_eq!(node.call("CHECK").succeed()?, "");
    assert_eq!(node.call("STATUS").succeed()?, "");
    // A directory of another user is as good as none.
    let instances = path.join("redirector");
    chown(&instances, Some(1000), None)?;
    node.agent.signal(Signal::HUP)?;
    assert!(until_ready(&node.agent, false)?.contains("who is not trusted"));
    chown(&instances, Some(0), None)?;
    until_ready(&node.agent, true)?;
    node.agent.kill()?;
    to_proxy()?;
    node.bpffs.run(&["detach", &node.id.instance()])?.expect(exit::OK)?;
    assert_eq!(links_of(node.world.pod())?, [0, 0]);
    Ok(())
}
