//! The CNI plugin, called as a runtime calls it, and the agent behind it.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use redirector_tests::harness::kubelet::{Call, Id, NodeWithPod, PREVIOUS};
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::many::LoadReport;
use redirector_tests::harness::product;
use redirector_tests::harness::product::agent::until_active;
use rustix::process::Signal;
use serde_json::json;

fn load(place: &Place, count: u16) -> anyhow::Result<LoadReport> {
    place.load(&Load::services(count))
}

#[test]
fn the_life_of_a_pod() -> anyhow::Result<()> {
    let Some(node) = NodeWithPod::new(&[])? else { return Ok(()) };
    // Nobody runs in the pod, and the first one who does is captured.
    assert_eq!(node.call("ADD").succeed()?, PREVIOUS);
    assert!(node.is_captured()?);
    let outside = node.world.serve_outside(everywhere(&[SERVED]))?;
    let first = load(&node.app()?, 1)?;
    assert_eq!(first.failed, [("ECONNREFUSED".to_owned(), 1)].into(), "no proxy yet: {first:#?}");
    assert!(outside.accepted().is_empty());
    let _proxy = node.proxy()?;
    assert_eq!(load(&node.app()?, 50)?.reached, HashMap::from([("proxy:15001".to_owned(), 50)]));
    assert_eq!(node.call("CHECK").succeed()?, "");
    // As a runtime does that has lost the answer.
    assert_eq!(node.call("ADD").succeed()?, PREVIOUS);
    assert_eq!(node.call("STATUS").succeed()?, "");
    assert_eq!(node.call("GC").succeed()?, "");

    // DEL of a sandbox that is none of the pod's present one leaves it alone.
    let other = World::new()?;
    Call::new("DEL", &node.home, &node.id, other.pod().netns.file()).succeed()?;
    node.call("DEL").with("CNI_NETNS", None).succeed()?;
    node.call("DEL").with("CNI_NETNS", Some("/run/netns/gone")).succeed()?;
    assert!(node.is_captured()?);
    assert_eq!(node.call("DEL").succeed()?, "");
    assert!(!node.is_captured()?);
    node.call("DEL").succeed()?;
    let (code, why) = node.call("CHECK").fail()?;
    assert_eq!(code, 101, "{why}");
    let metrics = node.agent.metrics()?;
    for (name, value) in [
        ("redirector_cni_requests_total{operation=\"add\",outcome=\"done\"}", 2.0),
        ("redirector_cni_requests_total{operation=\"del\",outcome=\"done\"}", 5.0),
        ("redirector_cni_requests_total{operation=\"check\",outcome=\"failed\"}", 1.0),
        ("redirector_attach_seconds_count", 1.0),
    ] {
        assert_eq!(metrics.get(name), Some(&value), "{name}: {metrics:#?}");
    }
    Ok(())
}

/// An instance knows its pod: every verb takes and tells the pod's name, whatever has been done to the instance.
#[test]
fn an_instance_is_known_by_its_pod() -> anyhow::Result<()> {
    let Some(node) = NodeWithPod::new(&[])? else { return Ok(()) };
    node.call("ADD").succeed()?;
    let (pod, instance) = (format!("shop/{}", node.id.name), node.id.instance());
    node.agent
        .wait_for_event(0, |event| event["message"] == "attach done" && event["pod"] == pod.as_str())?;
    let known = json!({"namespace": "shop", "name": node.id.name, "uid": node.id.uid});
    assert_eq!(node.bpffs.list()?[0]["pod"], known);
    node.bpffs.run(&["refresh", "--pod", &pod])?.expect(0)?;
    assert_eq!(node.bpffs.show(&instance)?["record"]["pod"], known);
    // Annotations change: the agent swaps policies.
    let mut object = node.id.object();
    object["metadata"]["annotations"]["traffic.sidecar.istio.io/excludeOutboundPorts"] = json!("80");
    node.kubelet.know(&node.id, &object)?;
    node.agent.signal(Signal::HUP)?;
    node.agent
        .wait_for_event(0, |event| event["message"] == "change done" && event["pod"] == pod.as_str())?;
    let bpffs = node.bpffs.path().display().to_string();
    for (verb, line) in [
        (&["list"][..], &*pod),
        (&["show", "--pod", &pod], &format!("pod          {pod}\n")),
        (&["status", "--pod", &pod], &format!("{instance} ({pod}): active")),
    ] {
        let shown = Run::of(product::command(&[]).args(["--bpffs", &bpffs]).args(verb))?.looked()?.stdout;
        assert!(shown.contains(line), "{shown}");
    }
    let words = ["the pod shop/other is not captured", "events"];
    node.bpffs.run(&["show", "--pod", "shop/other"])?.refused(exit::NOTHING, &words)?;
    Ok(())
}

/// The pod's sandbox ends without a DEL, and the pod gets another.
#[test]
fn a_new_sandbox() -> anyhow::Result<()> {
    let Some(node) = NodeWithPod::new(&[])? else { return Ok(()) };
    node.call("ADD").succeed()?;
    let second = World::new()?;
    let netns = second.pod().netns.file();
    Call::new("ADD", &node.home, &node.id, netns).succeed()?;
    let list = node.bpffs.list()?;
    assert_eq!(list.len(), 1, "{list:#?}");
    assert_eq!(list[0]["netns"], netns.display().to_string());
    Call::new("CHECK", &node.home, &node.id, netns).succeed()?;
    let (code, why) = node.call("CHECK").fail()?;
    assert_eq!(code, 101, "the sandbox before: {why}");
    // The namespace ends, nobody says DEL: gone all the same.
    drop(second);
    until_active(&node.bpffs, &node.agent, &node.id.instance(), false)?;
    Ok(())
}

#[test]
fn who_is_captured() -> anyhow::Result<()> {
    let Some(node) = NodeWithPod::new(&["--exclude-namespaces", "kube-system"])? else { return Ok(()) };
    let plain = |change: fn(&mut serde_json::Value)| {
        let mut object = node.id.object();
        change(&mut object);
        node.kubelet.know(&node.id, &object)
    };
    for change in [
        (|o: &mut serde_json::Value| o["metadata"]["annotations"] = json!({})) as fn(&mut serde_json::Value),
        |o| o["metadata"]["labels"] = json!({ "sidecar.istio.io/inject": "false" }),
        |o| o["spec"]["containers"][1]["name"] = "envoy".into(),
        |o| o["spec"]["initContainers"] = json!([{ "name": "istio-init" }]),
        |o| o["spec"]["containers"][1]["args"] = json!(["proxy", "router"]),
    ] {
        plain(change)?;
        assert_eq!(node.call("ADD").succeed()?, PREVIOUS);
        node.call("CHECK").succeed()?;
        assert!(!node.is_captured()?);
    }
    let elsewhere = "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns;K8S_POD_UID=1-2";
    node.call("ADD").with("CNI_ARGS", Some(elsewhere)).succeed()?;
    node.call("ADD").with("CNI_ARGS", None).succeed()?;

    // A native sidecar (Kubernetes 1.29) is among the init containers; a runtime of before 2021 tells no uid.
    plain(|o| {
        let proxy = o["spec"]["containers"].as_array_mut().and_then(Vec::pop).unwrap_or_default();
        o["spec"]["initContainers"] = json!([proxy]);
        o["metadata"]["annotations"]["traffic.sidecar.istio.io/excludeOutboundPorts"] = "8080".into();
    })?;
    let old = format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={}", node.id.name);
    node.call("ADD").with("CNI_ARGS", Some(&old)).succeed()?;
    assert!(node.is_captured()?);
    let show = node.bpffs.show(&node.id.instance())?;
    assert_eq!(show["record"]["policy"]["outbound_exclude_ports"], json!([8080]), "{show:#}");
    Ok(())
}

/// A pod that cannot be captured does not start, and leaves nothing behind.
#[test]
fn failures() -> anyhow::Result<()> {
    let Some(node) = NodeWithPod::new(&[])? else { return Ok(()) };
    let mut object = node.id.object();
    let key = "traffic.sidecar.istio.io/excludeOutboundPorts";
    object["metadata"]["annotations"][key] = "80,http".into();
    node.kubelet.know(&node.id, &object)?;
    let (code, why) = node.call("ADD").fail()?;
    assert!(code == 100 && why.contains(key), "{code} {why}");

    let unknown = Id::new(2);
    let (code, why) = Call::new("ADD", &node.home, &unknown, node.world.pod().netns.file()).fail()?;
    assert!(code == 11 && why.contains(&unknown.name), "{code} {why}");
    node.kubelet.know(&unknown, &unknown.object())?;
    let (code, why) = Call::new("ADD", &node.home, &unknown, node.world.pod().netns.file()).fail()?;
    assert!(code == 100 && why.contains("cgroup"), "{code} {why}");

    node.kubelet.know(&node.id, &node.id.object())?;
    let (code, why) = node.call("ADD").with("CNI_NETNS", Some("/proc/self/ns/net")).fail()?;
    assert!(code == 100 && why.contains("machine's own"), "{code} {why}");
    let (code, why) = node.call("ADD").with("CNI_NETNS", Some("/proc/self/ns/uts")).fail()?;
    assert!(code == 100 && why.contains("not a network namespace"), "{code} {why}");
    let (code, why) = node.call("ADD").with("CNI_NETNS", Some("/run/netns/none")).fail()?;
    assert!(code == 4 && why.contains("/run/netns/none"), "{code} {why}");
    node.bpffs.expect_empty()?;

    // Nobody to ask.
    let NodeWithPod { agent, ref world, ref home, ref id, .. } = node;
    agent.kill()?;
    let call = |command| Call::new(command, home, id, world.pod().netns.file());
    let (code, why) = call("ADD").fail()?;
    assert!(code == 11 && why.contains("agent.sock"), "{code} {why}");
    assert_eq!(call("STATUS").fail()?.0, 50);
    assert_eq!(call("CHECK").fail()?.0, 11);
    assert_eq!(call("DEL").succeed()?, "");
    let excluded = call("ADD").config.replacen('{', r#"{"excludeNamespaces":["shop"],"#, 1);
    assert_eq!(call("ADD").configured(excluded).succeed()?, PREVIOUS);
    Ok(())
}

#[test]
fn what_nobody_knows_may_be_let_through() -> anyhow::Result<()> {
    let Some(node) = NodeWithPod::new(&["--unknown-pods", "pass"])? else { return Ok(()) };
    let unknown = Id::new(2);
    let call = Call::new("ADD", &node.home, &unknown, node.world.pod().netns.file());
    assert_eq!(call.succeed()?, PREVIOUS);
    node.bpffs.expect_empty()
}

#[test]
fn malformed_calls() -> anyhow::Result<()> {
    let Some(node) = NodeWithPod::new(&[])? else { return Ok(()) };
    let good = node.call("ADD");
    let config = good.config.clone();
    let version = node.call("VERSION").configured("").succeed()?;
    let version: serde_json::Value = serde_json::from_str(&version)?;
    assert_eq!(version["supportedVersions"], json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    for (call, code) in [
        (good.clone().with("CNI_COMMAND", Some("")), 4),
        (good.clone().with("CNI_COMMAND", Some("add")), 4),
        (good.clone().with("CNI_CONTAINERID", None), 4),
        (good.clone().with("CNI_CONTAINERID", Some("/etc")), 4),
        (good.clone().with("CNI_NETNS", None), 4),
        (good.clone().with("CNI_IFNAME", Some("a/b")), 4),
        (good.clone().with("CNI_ARGS", Some("K8S_POD_NAME")), 4),
        (good.clone().with("CNI_ARGS", Some("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a;K8S_POD_UID=../..")), 4),
        (good.clone().configured(""), 6),
        (good.clone().configured("[1]"), 6),
        (good.clone().configured(&config[..config.len() - 1]), 6),
        (good.clone().configured(config.replace("1.0.0", "9.9.9")), 1),
        (good.clone().configured(config.replace("shop-net", "")), 7),
        (good.clone().configured(config.replace("prevResult", "previous")), 7),
        (node.call("STATUS").configured(config.as_str()), 1),
    ] {
        let (got, why) = call.fail()?;
        assert_eq!(got, code, "{why}\n{call:?}");
    }
    node.bpffs.expect_empty()
}

/// The socket's mode keeps others out; where somebody has changed it, their credentials do.
#[test]
fn only_root_may_ask() -> anyhow::Result<()> {
    let Some(node) = NodeWithPod::new(&[])? else { return Ok(()) };
    let socket = node.home.run().join("agent.sock");
    assert_eq!(std::fs::metadata(&socket)?.permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(node.home.run())?.permissions().mode() & 0o777, 0o700);
    let user = ["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups"];
    let ask = || node.call("STATUS").by(&user).fail();
    let (code, why) = ask()?;
    assert!(code == 50 && why.contains("Permission denied"), "{code} {why}");
    for path in [socket.as_path(), &node.home.run(), node.home.run().parent().context("a parent")?] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
    }
    let (code, why) = ask()?;
    assert!(code == 100 && why.contains("only root may ask, not user 1000"), "{code} {why}");
    assert_eq!(node.agent.metric("redirector_errors_total{reason=\"peer\"}")?, 1.0);
    node.call("STATUS").succeed()?;
    Ok(())
}

/// An agent that comes later captures what runs already; one that comes again keeps what is there; annotations that
/// change are followed.
#[test]
fn pods_that_the_plugin_missed() -> anyhow::Result<()> {
    let Some(node) = NodeWithPod::new(&[])? else { return Ok(()) };
    let _proxy = node.proxy()?;
    let name = node.id.instance();
    let NodeWithPod { agent, ref kubelet, ref world, ref home, ref bpffs, ref id } = node;
    agent.kill()?;
    let app = kubelet.place(id, world, "app", APP)?;
    let _outside = world.serve_outside(everywhere(&[SERVED]))?;
    assert_eq!(load(&app, 1)?.reached, HashMap::from([(format!("remote:{SERVED}"), 1)]));
    let agent = kubelet.agent(bpffs, home, &["--resync", "1"])?;
    until_active(bpffs, &agent, &name, true)?;
    assert_eq!(load(&app, 20)?.reached, HashMap::from([("proxy:15001".to_owned(), 20)]));

    let mut object = id.object();
    object["metadata"]["annotations"]["traffic.sidecar.istio.io/excludeOutboundIPRanges"] =
        "10.96.0.0/16".into();
    kubelet.know(id, &object)?;
    retry::until("the new policy to be in force", || {
        load(&app, 1)
            .is_ok_and(|report| report.reached.contains_key(&format!("remote:{SERVED}")))
            .then_some(())
    })
    .with_context(|| agent.log())?;
    // A wrong one changes nothing, and a pod that is gone from the API but runs stays captured.
    object["metadata"]["annotations"]["traffic.sidecar.istio.io/excludeOutboundIPRanges"] = "nonsense".into();
    kubelet.know(id, &object)?;
    agent.wait_for_event(0, |event| event["reason"] == "target")?;
    std::fs::remove_file(kubelet.objects().join(format!("{}.json", id.name)))?;
    let lines = agent.line_count();
    drop(agent);
    let agent = kubelet.agent(bpffs, home, &[])?;
    agent.wait_for(0, "adopted")?;
    assert!(
        node.world.pods.len() == 1 && bpffs.list()?.iter().any(|i| i["name"] == name.as_str()),
        "{lines}"
    );
    Ok(())
}

/// In a hybrid layout the kubelet makes the pod's cgroup in the v1 trees only.
#[test]
fn a_cgroup_of_v1_only() -> anyhow::Result<()> {
    let Some(node) = NodeWithPod::new(&[])? else { return Ok(()) };
    let v1 = Path::new("/sys/fs/cgroup/pids");
    if !v1.join("tasks").exists() {
        println!("no cgroup v1 here");
        return Ok(());
    }
    let id = Id::new(3);
    node.kubelet.know(&id, &id.object())?;
    let root = v1.join(node.kubelet.cgroup.directory().file_name().context("a name")?);
    let pod = root.join("burstable").join(format!("pod{}", id.uid));
    std::fs::create_dir_all(&pod)?;
    let result = Call::new("ADD", &node.home, &id, node.world.pod().netns.file()).succeed();
    for directory in [&pod, &root.join("burstable"), &root] {
        std::fs::remove_dir(directory)?;
    }
    assert_eq!(result?, PREVIOUS);
    let cgroup = node.kubelet.cgroup.directory().join("burstable").join(format!("pod{}", id.uid));
    assert_eq!(node.bpffs.list()?[0]["cgroup"], cgroup.display().to_string());
    Ok(())
}

/// The agent is killed again and again while pods start: whoever is told that his pod may start is captured.
#[test]
fn killed_while_pods_start() -> anyhow::Result<()> {
    const PODS: u32 = 12;
    let Some(node) = NodeWithPod::new(&[])? else { return Ok(()) };
    let NodeWithPod { agent, ref kubelet, ref home, ref bpffs, .. } = node;
    let done = std::sync::atomic::AtomicBool::new(false);
    let agents = std::thread::scope(|scope| {
        let killing = scope.spawn(|| {
            let (mut agent, mut count) = (agent, 0);
            loop {
                // In the middle of an ADD, and after one, in turn.
                let moment = if count % 2 == 0 { "\"asked\"" } else { "\"attach done\"" };
                let seen = retry::until("the moment to kill", || {
                    let done = done.load(std::sync::atomic::Ordering::Relaxed);
                    (done || agent.log().contains(moment)).then_some(!done)
                })?;
                if !seen {
                    return anyhow::Ok(count);
                }
                agent.kill()?;
                agent = kubelet.agent(bpffs, home, &[])?;
                count += 1;
            }
        });
        let pods = (|| {
            for number in 10..10 + PODS {
                let (id, world) = (Id::new(number), World::new()?);
                kubelet.know(&id, &id.object())?;
                kubelet.make_cgroup(&id)?;
                let call = Call::new("ADD", home, &id, world.pod().netns.file());
                retry::until("ADD to succeed, as the kubelet would", || call.succeed().ok())?;
                let report = load(&kubelet.place(&id, &world, "app", APP)?, 1)?;
                assert_eq!(report.failed, [("ECONNREFUSED".to_owned(), 1)].into(), "uncaptured: {report:#?}");
                let held = Daemon::start(
                    "app",
                    kubelet.place(&id, &world, "app", APP)?.program("/bin/sleep".as_ref()).arg("60"),
                )?;
                drop((held, world));
            }
            anyhow::Ok(())
        })();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let agents = killing.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        pods.map(|()| agents)
    })?;
    println!("{agents} agents were killed while {PODS} pods started");
    assert!(agents > PODS / 2);
    // Their namespaces are gone, and a last agent leaves nothing of them.
    let agent = kubelet.agent(bpffs, home, &[])?;
    retry::until("the instances to be gone", || bpffs.expect_no_instance().ok()).with_context(|| agent.log())
}

/// A plugin that has given up is not served any more: the runtime throws the sandbox away and makes another.
#[test]
fn who_has_given_up() -> anyhow::Result<()> {
    let Some(node) = NodeWithPod::new(&[])? else { return Ok(()) };
    node.agent.signal(Signal::STOP)?;
    let call = node.call("ADD");
    let mut plugin = Daemon::start("plugin", &mut call.command())?;
    plugin.tell(&call.config)?;
    plugin.close();
    retry::until("the plugin to wait for its answer", || waits_for_an_answer(plugin.pid()).then_some(()))?;
    drop(plugin);
    node.agent.signal(Signal::CONT)?;
    node.agent.wait_for(0, "failed: the plugin has not waited")?;
    node.bpffs.expect_no_instance()?;
    assert_eq!(node.call("ADD").succeed()?, PREVIOUS);
    Ok(())
}

/// A process sleeps that has a socket, though nothing but the answer keeps it waiting.
fn waits_for_an_answer(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let Ok(fds) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let sleeps = stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'));
    let links = fds.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
    sleeps && links.into_iter().any(|link| link.to_string_lossy().starts_with("socket:"))
}
