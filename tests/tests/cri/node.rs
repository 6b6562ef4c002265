//! The node that the tests are on: systemd, the runtime, the agent as a unit with its plugin installed.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, ensure};
use redirector_tests::harness::image::Image;
use redirector_tests::harness::kubelet;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::serve::Listen;
use redirector_tests::harness::server::any4;
use serde_json::Value;

use crate::install;
use crate::runtime::Runtime;

/// Pods connect to this service of the node, as `first.c` does. Reaching it is an escape.
const SERVICE: &str = "10.96.0.10";
const PORT: u16 = 8080;
/// The image with the program whose first instruction connects.
pub const FIRST: &str = "local.test/first:1";
/// The image with the probe.
pub const PROBE: &str = "local.test/probe:1";
/// Directory of the pods' objects, in the place of an API server.
pub const OBJECTS: &str = "/var/lib/pods";
pub const CONFLIST: &str = "/etc/cni/net.d/10-network.conflist";
const AGENT: &str = "redirector-agent.service";
/// What a node needs beside the targets of files; the unit's own command is in its place otherwise.
const WITH_PODS: &str =
    "--config /etc/redirector/targets.d --run-dir /run/redirector-agent --pods /var/lib/pods";
const WITH_PLUGIN: &str = "--cni-bin-dir /opt/cni/bin --cni-conf-dir /etc/cni/net.d";
/// The directory of the tests' programs.
pub const PROGRAMS: &str = "/t";
/// What `cargo xtask dist` has made.
pub const DIST: &str = "/t/dist";

/// What one test at a time has.
pub struct Node {
    pub runtime: Runtime,
    service: Option<Server>,
    /// Pods made so far.
    pub pods: u32,
}

static NODE: Mutex<Option<Node>> = Mutex::new(None);

/// The node, set up by the first test.
pub fn node() -> anyhow::Result<Locked> {
    let mut guard = NODE.lock().unwrap_or_else(PoisonError::into_inner);
    if guard.is_none() {
        *guard = Some(Node::set_up()?);
    }
    if let Some(node) = &mut *guard {
        // A server ends with the thread that has started it: each test has its own.
        node.service = None;
        let outside = Place { netns: "/proc/1/ns/net".into(), cgroup: None, owner: ROOT };
        node.service = Some(Server::start(&outside, "remote", vec![Listen::on(any4(PORT))])?);
    }
    Ok(Locked(guard))
}

/// The node while a test has it.
pub struct Locked(MutexGuard<'static, Option<Node>>);

impl std::ops::Deref for Locked {
    type Target = Node;
    fn deref(&self) -> &Node {
        self.0.as_ref().expect("it was set up")
    }
}

impl std::ops::DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut Node {
        self.0.as_mut().expect("it was set up")
    }
}

pub fn sh(script: &str) -> anyhow::Result<String> {
    run(Command::new("sh").args(["-euc", script]), "")
}

impl Node {
    fn set_up() -> anyhow::Result<Self> {
        ensure!(
            std::fs::read_to_string("/proc/1/comm")?.trim() == "systemd",
            "systemd is not the first process"
        );
        ensure!(Path::new("/sys/fs/cgroup/cgroup.procs").exists(), "the cgroups are not unified");
        for (name, program) in [("pause", None), ("first", Some("first")), ("probe", Some("probe"))] {
            import(name, program)?;
        }
        network()?;
        sh(&format!(
            "ip addr replace {SERVICE}/32 dev lo; echo 1 >/proc/sys/net/ipv4/ip_forward; mkdir -p {OBJECTS}"
        ))?;
        let node = Self { runtime: Runtime::connect()?, service: None, pods: 0 };
        node.install()?;
        Ok(node)
    }

    /// The package as users install it, and the agent with the plugin.
    pub fn install(&self) -> anyhow::Result<()> {
        install::follow("Check")?;
        install::follow("Debian")?;
        self.agent(true)
    }

    /// Starts the agent again, with its plugin in the list, or with a list that stays as it is.
    pub fn agent(&self, with_plugin: bool) -> anyhow::Result<()> {
        let plugin = if with_plugin { WITH_PLUGIN } else { "" };
        let directory = format!("/etc/systemd/system/{AGENT}.d");
        std::fs::create_dir_all(&directory)?;
        let command = format!("ExecStart=/usr/bin/redirector agent {WITH_PODS} {plugin}");
        std::fs::write(format!("{directory}/pods.conf"), format!("[Service]\nExecStart=\n{command}\n"))?;
        sh(&format!("systemctl daemon-reload; systemctl restart {AGENT}"))?;
        until_ready(with_plugin)
    }

    /// How often the service was reached.
    pub fn reached(&self) -> usize {
        self.service.as_ref().map_or(0, |service| service.accepted().len())
    }

    /// No pod has reached the service, which could be: it counts a connection of ours.
    pub fn nobody_reached_it(&self) -> anyhow::Result<()> {
        ensure!(self.reached() == 0, "the service was reached {} times", self.reached());
        TcpStream::connect((SERVICE, PORT)).context("the service does not work")?;
        retry::until("the service to count", || (self.reached() == 1).then_some(()))
    }

    /// The kubelet's part before it calls the runtime: the pod's object is known, its slice is there.
    pub fn announce(&mut self, annotations: &[(&str, &str)]) -> anyhow::Result<[String; 3]> {
        let [name, uid] = self.publish("", annotations)?;
        let slice = format!("kubepods-besteffort-pod{}.slice", uid.replace('-', "_"));
        sh(&format!("systemctl start {slice}"))?;
        Ok([name, uid, slice])
    }

    /// The API server's part: a pod's object is known; the pod's name, which ends with `suffix`, and its uid.
    pub fn publish(&mut self, suffix: &str, annotations: &[(&str, &str)]) -> anyhow::Result<[String; 2]> {
        self.pods += 1;
        let name = format!("web-{}{suffix}", self.pods);
        let uid = format!("0a1b2c3d-0000-4000-8000-{:012}", self.pods);
        let mut object = kubelet::injected(&name, &uid, [FIRST, PROBE]);
        for (key, value) in annotations {
            object["metadata"]["annotations"][key] = (*value).into();
        }
        std::fs::write(format!("{OBJECTS}/{name}.new"), object.to_string())?;
        std::fs::rename(format!("{OBJECTS}/{name}.new"), format!("{OBJECTS}/{name}.json"))?;
        Ok([name, uid])
    }
}

/// The agent is ready, and its plugin in the network's list if there is one.
pub fn until_ready(with_plugin: bool) -> anyhow::Result<()> {
    retry::until("the agent to be ready", || {
        let ready = sh("curl -sf http://127.0.0.1:9464/readyz").ok();
        ready.filter(|_| !with_plugin || has_plugin().unwrap_or(false))
    })
    .with_context(what_the_agent_says)?;
    Ok(())
}

pub fn what_the_agent_says() -> String {
    sh(&format!("journalctl --no-pager --lines 40 --unit {AGENT}")).unwrap_or_default()
}

/// The node's instances.
pub fn list() -> anyhow::Result<Vec<Value>> {
    Ok(serde_json::from_str(&sh("redirector list --output json || [ $? = 1 ]")?)?)
}

/// The network's configuration, without our plugin, in the newest version that the others know.
pub fn network() -> anyhow::Result<()> {
    let list = include_str!("../../tools/node/10-network.conflist");
    let version = if knows_status()? { "1.1.0" } else { "0.4.0" };
    Ok(std::fs::write(CONFLIST, list.replace("0.4.0", version))?)
}

/// Whether the node's plugins know the verb STATUS, which came with version 1.1 of CNI.
pub fn knows_status() -> anyhow::Result<bool> {
    let answer = sh("echo '{\"cniVersion\":\"1.0.0\"}' | CNI_COMMAND=VERSION /opt/cni/bin/bridge")?;
    let answer: Value = serde_json::from_str(&answer)?;
    Ok(answer["supportedVersions"].as_array().context("versions")?.iter().any(|version| version == "1.1.0"))
}

fn has_plugin() -> anyhow::Result<bool> {
    let list: Value = serde_json::from_str(&std::fs::read_to_string(CONFLIST)?)?;
    let plugins = list["plugins"].as_array().context("plugins")?;
    Ok(plugins.iter().any(|plugin| plugin["type"] == "redirector"))
}

/// Makes an image of busybox, and one of the tests' programs, and imports it.
fn import(name: &str, program: Option<&str>) -> anyhow::Result<()> {
    let mut image = Image::busybox(&format!("local.test/{name}:1"));
    if let Some(program) = program {
        image.files.push((format!("{PROGRAMS}/{program}").into(), format!("/{program}").into()));
        image.entrypoint = vec![format!("/{program}")];
    }
    let archive = format!("/tmp/{name}.tar");
    image.write(Path::new(&archive))?;
    sh(&format!("ctr --namespace k8s.io images import {archive}; rm {archive}"))?;
    Ok(())
}
