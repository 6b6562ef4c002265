//! The agent against a real API server (1.20): pods by watch, annotations, events, the server away and back. The
//! kubelet's and the runtime's part is played by the test.

use std::collections::HashMap;

use anyhow::Context;
use redirector_tests::harness::apiserver::ApiServer;
use redirector_tests::harness::kubelet::{Call, Id, Kubelet, PREVIOUS};
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::product::agent::{Agent, Home, until_active};
use redirector_tests::harness::requirements::find_kubernetes;
use rustix::process::Signal;

const NODE: &str = "node-1";
const LIST: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;

struct NodeOfApiServer {
    kubelet: Kubelet,
    world: World,
    home: Home,
    bpffs: Bpffs,
    server: ApiServer,
}

impl NodeOfApiServer {
    fn new() -> anyhow::Result<Option<Self>> {
        require_root!();
        let Some(binaries) = find_kubernetes() else { return Ok(None) };
        let server = ApiServer::start(&binaries)?;
        let (bpffs, home, world, kubelet) = (Bpffs::new()?, Home::new()?, World::new()?, Kubelet::new()?);
        Ok(Some(Self { kubelet, world, home, bpffs, server }))
    }

    fn agent(&self) -> anyhow::Result<Agent> {
        let config = self.server.kubeconfig("agent").display().to_string();
        let root = self.kubelet.cgroup.directory().display().to_string();
        let arguments = ["--node-name", NODE, "--kubeconfig", &config, "--cgroup-root", &root];
        Agent::inside(&self.server.netns, &self.bpffs, &self.home, &arguments)
    }

    /// A pod that the scheduler has put on this node.
    fn pod(&self, number: u32) -> anyhow::Result<Id> {
        let id = Id::new(number);
        let mut object = id.object();
        object["metadata"].as_object_mut().and_then(|metadata| metadata.remove("uid"));
        let uid = self.server.create(NODE, &object)?;
        let id = Id { uid, ..id };
        self.kubelet.make_cgroup(&id)?;
        Ok(id)
    }

    fn call(&self, command: &str, id: &Id) -> Call {
        Call::new(command, &self.home, id, self.world.pod().netns.file())
    }
}

/// Where one connection of the app ends.
fn reached(place: &Place) -> anyhow::Result<HashMap<String, usize>> {
    Ok(place.load(&Load::services(1))?.reached)
}

fn until_reached(place: &Place, agent: &Agent, server: &str) -> anyhow::Result<()> {
    let is = || reached(place).is_ok_and(|reached| reached.contains_key(server));
    retry::until(&format!("a connection to reach {server}"), || is().then_some(()))
        .with_context(|| agent.log())
}

#[test]
fn pods_of_the_api_server() -> anyhow::Result<()> {
    let Some(mut node) = NodeOfApiServer::new()? else { return Ok(()) };
    let agent = node.agent()?;
    agent.wait_for(0, "the API server has told the node's pods")?;
    retry::until("the agent to be ready", || {
        agent.get("/readyz").is_ok_and(|(s, _)| s == 200).then_some(())
    })?;

    // The plugin may be quicker than the watch.
    let id = node.pod(1)?;
    assert_eq!(node.call("ADD", &id).succeed()?, PREVIOUS);
    until_active(&node.bpffs, &agent, &id.instance(), true)?;
    let _outside = node.world.serve_outside(everywhere(&[SERVED]))?;
    let _proxy = {
        let place = node.kubelet.place(&id, &node.world, "proxy", PROXY)?;
        Server::start(&place, "proxy", proxy_listeners(1))?
    };
    let app = node.kubelet.place(&id, &node.world, "app", APP)?;
    until_reached(&app, &agent, "proxy:15001")?;

    // Annotations of a running pod are followed by watch; a wrong one changes nothing and is told.
    let key = "traffic.sidecar.istio.io/excludeOutboundPorts";
    node.server.annotate(&id.name, key, Some(&SERVED.to_string()))?;
    until_reached(&app, &agent, &format!("remote:{SERVED}"))?;
    node.server.annotate(&id.name, key, Some("http"))?;
    retry::until("the event", || {
        let warnings = node.server.warnings(&id.name).ok()?;
        warnings.iter().any(|text| text.contains(key) && text.contains("http")).then_some(())
    })
    .with_context(|| agent.log())?;
    assert!(reached(&app)?.contains_key(&format!("remote:{SERVED}")));
    node.server.annotate(&id.name, key, None)?;
    until_reached(&app, &agent, "proxy:15001")?;

    // The server is away: what is captured stays, a pod that is known starts, one that is not does not.
    let (known, unknown) = (node.pod(2)?, Id::new(3));
    retry::until("the pod to be known", || {
        agent.metric("redirector_targets{state=\"awaited\"}").is_ok_and(|n| n == 1.0).then_some(())
    })
    .with_context(|| agent.log())?;
    node.server.stop();
    agent.wait_for_event(0, |event| event["reason"] == "api")?;
    assert!(reached(&app)?.contains_key("proxy:15001"));
    let second = World::new()?;
    let call = Call::new("ADD", &node.home, &known, second.pod().netns.file());
    assert_eq!(call.succeed()?, PREVIOUS);
    let (code, why) = node.call("ADD", &unknown).fail()?;
    assert!(code == 11 && why.contains("API server"), "{code} {why}");

    // It comes back, and so does the agent's view of it.
    node.server.resume()?;
    node.server.annotate(&id.name, key, Some(&SERVED.to_string()))?;
    until_reached(&app, &agent, &format!("remote:{SERVED}"))?;
    Ok(())
}

/// Pods that run when the agent comes are captured; those of other nodes and those that are none of the mesh's are not.
#[test]
fn an_agent_that_comes_later() -> anyhow::Result<()> {
    let Some(node) = NodeOfApiServer::new()? else { return Ok(()) };
    let id = node.pod(1)?;
    let mut plain = Id::new(2).object();
    plain["metadata"]["annotations"] = serde_json::json!({});
    node.server.create(NODE, &plain)?;
    node.server.create("node-2", &Id::new(3).object())?;
    let _proxy = {
        let place = node.kubelet.place(&id, &node.world, "proxy", PROXY)?;
        Server::start(&place, "proxy", proxy_listeners(1))?
    };
    let agent = node.agent()?;
    until_active(&node.bpffs, &agent, &id.instance(), true)?;
    let app = node.kubelet.place(&id, &node.world, "app", APP)?;
    until_reached(&app, &agent, "proxy:15001")?;
    assert_eq!(node.bpffs.list()?.len(), 1);
    // ADD without a uid asks the server.
    let old = format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={}", id.name);
    assert_eq!(node.call("ADD", &id).with("CNI_ARGS", Some(&old)).succeed()?, PREVIOUS);
    assert_eq!(node.bpffs.list()?.len(), 1);

    // An attach that fails is told, too: the pod's namespace has another instance.
    let other = node.pod(4)?;
    let world = World::new()?;
    let _process = {
        let place = node.kubelet.place(&other, &world, "proxy", PROXY)?;
        node.bpffs.attach(world.pod(), "by-hand", &[])?.expect(0)?;
        Server::start(&place, "proxy", proxy_listeners(1))?
    };
    retry::until("the event", || {
        agent.signal(Signal::HUP).ok()?;
        let warnings = node.server.warnings(&other.name).ok()?;
        warnings.iter().any(|text| text.contains("captured by the instance by-hand")).then_some(())
    })
    .with_context(|| agent.log())
}

/// A node whose agent is of a DaemonSet, and has installed the plugin.
struct NodeOfDaemonSet<'a> {
    server: &'a ApiServer,
    bpffs: Bpffs,
    home: Home,
    cni: tempfile::TempDir,
}

impl<'a> NodeOfDaemonSet<'a> {
    fn new(server: &'a ApiServer) -> anyhow::Result<Self> {
        let cni = tempfile::Builder::new().prefix("redirtest-cni").tempdir()?;
        std::fs::create_dir(cni.path().join("bin"))?;
        std::fs::create_dir(cni.path().join("net.d"))?;
        std::fs::write(cni.path().join("net.d/10-n.conflist"), LIST)?;
        Ok(Self { server, bpffs: Bpffs::new()?, home: Home::new()?, cni })
    }

    fn agent(&self, daemonset: &str) -> anyhow::Result<Agent> {
        let [bin, conf] = ["bin", "net.d"].map(|dir| self.cni.path().join(dir).display().to_string());
        let config = self.server.kubeconfig("agent").display().to_string();
        let daemonset = format!("shop/{daemonset}");
        let arguments = ["--node-name", NODE, "--kubeconfig", &config, "--cni-bin-dir", &bin];
        let arguments = [&arguments[..], &["--cni-conf-dir", &conf, "--daemonset", &daemonset]].concat();
        Agent::inside(&self.server.netns, &self.bpffs, &self.home, &arguments)
    }

    fn is_installed(&self) -> anyhow::Result<bool> {
        let list = std::fs::read_to_string(self.cni.path().join("net.d/10-n.conflist"))?;
        let binary = self.cni.path().join("bin/redirector").exists();
        anyhow::ensure!(binary == list.contains("redirector"), "half installed: {list}");
        Ok(binary)
    }

    /// The first agent of it; the watch of its DaemonSet is answered.
    fn installed_by(&self, daemonset: &str) -> anyhow::Result<Agent> {
        let agent = self.agent(daemonset)?;
        agent.wait_for(0, "installed the CNI plugin")?;
        Ok(agent)
    }
}

/// What happens to a DaemonSet of that name before its agent is ended, and whether the plugin stays.
type Case = (&'static str, fn(&ApiServer, &str, &Agent) -> anyhow::Result<()>, bool);

const CASES: [Case; 6] = [
    ("left-alone", |_, _, _| Ok(()), true),
    ("deleted", |server, name, _| server.delete(&["daemonset", name]), false),
    (
        // It goes when its pods have.
        "deleted-in-foreground",
        |server, name, _| server.delete(&["daemonset", name, "--cascade=foreground"]),
        false,
    ),
    (
        "deleted-after-its-role",
        |server, name, _| {
            server.delete(&["role,rolebinding", name])?;
            server.delete(&["daemonset", name])
        },
        false,
    ),
    ("only-the-role-deleted", |server, name, _| server.delete(&["role,rolebinding", name]), true),
    (
        "made-again",
        |server, name, agent| {
            server.delete(&["daemonset", name])?;
            agent.wait_for(0, "the agent's own DaemonSet is Deleted")?;
            let lines = agent.line_count();
            server.make_daemonset(name)?;
            agent.wait_for(lines, "the agent's own DaemonSet is There").map(drop)
        },
        true,
    ),
];

const ENDED: &str = "ending; what is captured stays captured";

fn leaves(server: &ApiServer, (name, act, stays): Case) -> anyhow::Result<()> {
    server.make_daemonset(name)?;
    let node = NodeOfDaemonSet::new(server)?;
    let agent = node.installed_by(name)?;
    agent.wait_for(0, "watching")?;
    act(server, name, &agent)?;
    assert!(node.is_installed()?, "it stays as long as the agent works");
    agent.signal(Signal::TERM)?;
    agent.wait_for(0, ENDED)?;
    anyhow::ensure!(node.is_installed()? == stays, "{}", agent.log());
    Ok(())
}

/// The agent is killed, or its node is off, while the DaemonSet goes. `installed_and_uninstalled` has what a pod is told then.
fn killed(server: &ApiServer) -> anyhow::Result<()> {
    server.make_daemonset("killed")?;
    let node = NodeOfDaemonSet::new(server)?;
    let agent = node.installed_by("killed")?;
    server.delete(&["daemonset", "killed"])?;
    agent.wait_for(0, "the agent's own DaemonSet is Deleted")?;
    agent.kill()?;
    anyhow::ensure!(node.is_installed()?);
    Ok(())
}

/// Of two releases the second takes over; its own deletion counts then.
fn two_releases(server: &ApiServer) -> anyhow::Result<()> {
    ["first", "second"].iter().try_for_each(|name| server.make_daemonset(name))?;
    let node = NodeOfDaemonSet::new(server)?;
    let first = node.installed_by("first")?;
    let second = node.agent("second")?;
    second.wait_for(0, "another agent is at work")?;
    second.wait_for(0, "watching")?;
    server.delete(&["daemonset", "first"])?;
    first.signal(Signal::TERM)?;
    first.wait_for(0, ENDED)?;
    second.wait_for(0, "working")?;
    anyhow::ensure!(node.is_installed()?, "{}", first.log());
    server.delete(&["daemonset", "second"])?;
    second.signal(Signal::TERM)?;
    second.wait_for(0, ENDED)?;
    anyhow::ensure!(!node.is_installed()?, "{}", second.log());
    Ok(())
}

/// `--daemonset` names one that never was.
fn wrong_name(server: &ApiServer) -> anyhow::Result<()> {
    server.make_daemonset("wrong-name")?;
    server.delete(&["daemonset", "wrong-name"])?;
    let node = NodeOfDaemonSet::new(server)?;
    let agent = node.installed_by("wrong-name")?;
    agent.signal(Signal::TERM)?;
    agent.wait_for(0, ENDED)?;
    anyhow::ensure!(node.is_installed()?, "{}", agent.log());
    Ok(())
}

/// The plugin leaves a node when the agent is ended whose DaemonSet is deleted, and in no other case.
#[test]
fn the_plugin_goes_with_the_daemonset() -> anyhow::Result<()> {
    require_root!();
    let Some(binaries) = find_kubernetes() else { return Ok(()) };
    let mut server = ApiServer::start(&binaries)?;
    let of = &server;
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let cases = CASES.map(|case| scope.spawn(move || leaves(of, case).context(case.0)));
        let others = [killed, two_releases, wrong_name].map(|other| scope.spawn(move || other(of)));
        for case in cases.into_iter().chain(others) {
            case.join().map_err(|_| anyhow::anyhow!("a case has panicked"))??;
        }
        Ok(())
    })?;
    // The server is away: the answer is unknown.
    server.stop();
    let node = NodeOfDaemonSet::new(&server)?;
    let agent = node.installed_by("left-alone")?;
    agent.signal(Signal::TERM)?;
    agent.wait_for(0, ENDED)?;
    anyhow::ensure!(node.is_installed()?, "{}", agent.log());
    Ok(())
}
