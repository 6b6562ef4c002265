//! Containers whose first instruction connects, started by containerd in pods that the CNI plugins have set up.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use redirector_tests::harness::command::{output, run};
use redirector_tests::harness::image::Image;
use redirector_tests::harness::kubelet;
use redirector_tests::harness::machine::{Inside, Machine};
use redirector_tests::harness::probe::serve::Listen;
use redirector_tests::harness::process::Place;
use redirector_tests::harness::server::{Server, any4, proxy_listeners};
use redirector_tests::harness::world::{PROXY, ROOT};
use redirector_tests::harness::{product, retry};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::cni::{self, Sandbox};
use crate::containerd::Containerd;
use crate::kubernetes::NETWORK;

/// Every container connects to this service of the node. Reaching it is an escape.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const PORT: u16 = 8080;
/// The image with the program whose first instruction connects.
pub const FIRST: &str = "local.test/first:1";
const FIRST_SOURCE: &str = include_str!("first.c");
/// The network's configuration on a node.
pub const CONFLIST: &str = "/etc/cni/net.d/10-network.conflist";
/// Directory of the pods' objects, in the place of an API server.
const OBJECTS: &str = "/var/lib/pods";
/// Every so many pods has a proxy that listens before the container starts.
const WITH_PROXY: u32 = 5;

/// When the plugin attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugin {
    Shipped,
    /// After it has answered: what must not be.
    Late,
}

/// A node with a runtime, the agent and its plugin; no Kubernetes.
pub struct RuntimeNode {
    service: Server,
    agent: Inside,
    _containerd: Containerd,
    /// Dropped last: everything ends with it.
    pub machine: Machine,
}

/// The ends of the containers' connections.
#[derive(Clone, Debug, Default)]
pub struct Starts {
    /// Containers that were refused, because their pod's proxy did not listen yet.
    pub refused: u32,
    /// Containers that reached the proxy of their pod.
    pub proxy: u32,
    /// Containers that reached the service: escapes.
    pub escaped: u32,
    /// How long the plugin's ADD took, each.
    pub adds: Vec<Duration>,
    pub took: Duration,
}

impl RuntimeNode {
    /// Boots it, with the plugin installed by the agent.
    pub fn start() -> anyhow::Result<Self> {
        let machine = Machine::boot()?;
        machine.write(CONFLIST, NETWORK)?;
        machine.sh(&format!(
            "ip addr add {SERVICE}/32 dev lo; echo 1 >/proc/sys/net/ipv4/ip_forward; mkdir {OBJECTS}"
        ))?;
        let containerd = Containerd::start(&machine)?;
        containerd.import(&machine, &first_image(&machine)?)?;
        let outside =
            Place { netns: format!("/proc/{}/ns/net", machine.init()).into(), cgroup: None, owner: ROOT };
        let service = Server::start(&outside, "remote", vec![Listen::on(any4(PORT))])?;
        let agent = machine.daemon("sh", &["-euc", &contained_agent()?])?;
        let node = Self { service, agent, _containerd: containerd, machine };
        retry::until("the agent to install its plugin", || {
            let list = node.list().ok()?;
            let plugins = list["plugins"].as_array()?.iter().any(|plugin| plugin["type"] == "redirector");
            (plugins && node.machine.outside(Path::new("/run/redirector/agent.sock")).exists()).then_some(())
        })
        .with_context(|| node.agent.daemon.lines().join("\n"))?;
        let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/cgroup"));
        ensure!(
            namespace(node.agent.pid()?)? == namespace(node.machine.init())?,
            "the agent is not in the host's cgroup namespace"
        );
        Ok(node)
    }

    fn list(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&std::fs::read_to_string(self.machine.outside(Path::new(CONFLIST)))?)?)
    }

    /// Starts `count` containers, each in a pod of its own, `threads` at a time.
    pub fn starts(&self, plugin: Plugin, count: u32, threads: u32) -> anyhow::Result<Starts> {
        let list = match plugin {
            Plugin::Shipped => self.list()?,
            Plugin::Late => late(&self.machine, self.list()?)?,
        };
        let started = Instant::now();
        let (next, report) = (AtomicU32::new(0), Mutex::new(Starts::default()));
        std::thread::scope(|scope| {
            let work = || -> anyhow::Result<()> {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return Ok(());
                    }
                    let met = self.one(plugin, &list, number).with_context(|| format!("pod {number}"))?;
                    let mut report = report.lock().map_err(|_| anyhow::anyhow!("another thread panicked"))?;
                    met.count(&mut report);
                }
            };
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
        })?;
        let mut report = report.into_inner().context("a report")?;
        report.took = started.elapsed();
        // The service's own count is the last word.
        ensure!(
            usize::try_from(report.escaped)? == self.service.accepted().len() || plugin == Plugin::Late,
            "the service was reached {} times, containers say {}",
            self.service.accepted().len(),
            report.escaped
        );
        Ok(report)
    }

    fn one(&self, plugin: Plugin, list: &Value, number: u32) -> anyhow::Result<Met> {
        // It would see the pod's object and be quicker than the late plugin.
        let paused = (plugin == Plugin::Late).then(|| Paused::new(self.agent.pid()?)).transpose()?;
        let pod = StartedPod::make(self, number)?;
        let before = Instant::now();
        let result = cni::add(&self.machine, list, &pod.sandbox)?;
        let add = before.elapsed();
        let proxy = number.is_multiple_of(WITH_PROXY);
        let server = proxy.then(|| pod.proxy(self)).transpose()?;
        let (code, said) = pod.run(self)?;
        drop((server, paused));
        cni::del(&self.machine, list, &result, &pod.sandbox)?;
        pod.remove(self)?;
        let what = match code {
            Some(111) if !proxy => What::Refused,
            Some(7) if proxy => What::Proxy,
            Some(8) => What::Escaped,
            other => bail!("the container ended with {other:?} (proxy: {proxy}) and said {said:?}"),
        };
        Ok(Met { what, add })
    }
}

/// A process that does nothing until this is dropped.
struct Paused(Pid);

impl Paused {
    fn new(pid: u32) -> anyhow::Result<Self> {
        let pid = Pid::from_raw(pid.cast_signed()).context("a pid")?;
        kill_process(pid, Signal::STOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// A list with a plugin in the place of ours that calls it a second after it has answered: what must not be.
pub fn late(machine: &Machine, mut list: Value) -> anyhow::Result<Value> {
    machine.write(
        "/opt/cni/bin/late",
        "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exec /opt/cni/bin/redirector\ninput=$(cat)\n\
         (sleep 1; printf %s \"$input\" | /opt/cni/bin/redirector) >/dev/null 2>&1 &\n\
         printf %s \"$input\" | python3 -c 'import json,sys; print(json.dumps(json.load(sys.stdin)[\"prevResult\"]))'\n",
    )?;
    machine.sh("chmod 755 /opt/cni/bin/late")?;
    for plugin in list["plugins"].as_array_mut().context("plugins")? {
        if plugin["type"] == "redirector" {
            plugin["type"] = json!("late");
        }
    }
    Ok(list)
}

/// The agent with a cgroup and a cgroup namespace of its own, as containers have on a unified layout.
fn contained_agent() -> anyhow::Result<String> {
    let cgroup = redirector_tests::harness::world::cgroup::mount_point()?.join("agent");
    Ok(format!(
        "mkdir {0}; echo 0 >{0}/cgroup.procs; exec unshare --cgroup {1} agent --pods {OBJECTS} \
         --cni-bin-dir /opt/cni/bin --cni-conf-dir /etc/cni/net.d",
        cgroup.display(),
        product::binary().display()
    ))
}

/// An image with the program of `first.c`, compiled now.
pub fn first_image(machine: &Machine) -> anyhow::Result<Image> {
    let first = machine.directory().join("first");
    let source = first.with_extension("c");
    std::fs::write(&source, FIRST_SOURCE)?;
    let mut compile = Command::new("cc");
    compile.args(["-O1", "-static", "-nostdlib", "-fno-stack-protector", "-o"]).arg(&first).arg(&source);
    run(&mut compile, "")?;
    let mut image = Image::busybox(FIRST);
    image.files.push((first, "/first".into()));
    image.entrypoint = vec!["/first".into()];
    Ok(image)
}

enum What {
    Refused,
    Proxy,
    Escaped,
}

struct Met {
    what: What,
    add: Duration,
}

impl Met {
    fn count(&self, report: &mut Starts) {
        match self.what {
            What::Refused => report.refused += 1,
            What::Proxy => report.proxy += 1,
            What::Escaped => report.escaped += 1,
        }
        report.adds.push(self.add);
    }
}

/// The files that the kubelet makes for a pod before it calls the runtime.
struct StartedPod {
    sandbox: Sandbox,
    /// Its cgroup, as seen in the machine.
    cgroup: String,
    /// The same directory outside.
    directory: PathBuf,
    /// How to undo what was made.
    undo: String,
}

impl StartedPod {
    fn make(node: &RuntimeNode, number: u32) -> anyhow::Result<Self> {
        // A test may start pods several times on one node.
        static SERIES: AtomicU32 = AtomicU32::new(0);
        let series = SERIES.fetch_add(1, Ordering::Relaxed);
        let (name, uid) = (format!("web-{number}-{series}"), format!("0a1b2c3d-0000-4000-8000-{series:012}"));
        let object = kubelet::injected(&name, &uid, [FIRST, FIRST]);
        node.machine.write(&format!("{OBJECTS}/{name}.new"), &object.to_string())?;
        let cgroup = format!("/kubepods/besteffort/pod{uid}");
        let tree = redirector_tests::harness::world::cgroup::mount_point()?;
        node.machine.sh(&format!(
            "mv {OBJECTS}/{name}.new {OBJECTS}/{name}.json; mkdir -p {}{cgroup}; ip netns add {name}; ip -n {name} link set lo up",
            tree.display()
        ))?;
        let undo = format!(
            "ip netns del {name}; rm {OBJECTS}/{name}.json; rmdir {}{cgroup} 2>&1 || true",
            tree.display()
        );
        let directory = tree.join(node.machine.name()).join(cgroup.trim_start_matches('/'));
        Ok(Self {
            sandbox: Sandbox { netns: name.clone(), pod: ["shop".into(), name, uid] },
            cgroup,
            directory,
            undo,
        })
    }

    fn proxy(&self, node: &RuntimeNode) -> anyhow::Result<Server> {
        let cgroup = self.directory.join("proxy");
        std::fs::create_dir_all(&cgroup).with_context(|| cgroup.display().to_string())?;
        let netns = node.machine.outside(&Path::new("/run/netns").join(&self.sandbox.netns));
        Server::start(&Place { netns, cgroup: Some(cgroup), owner: PROXY }, "proxy", proxy_listeners(1))
    }

    /// Runs the container to its end, and gives its exit code and what was said.
    fn run(&self, node: &RuntimeNode) -> anyhow::Result<(Option<i32>, String)> {
        let mut command = node.machine.command("ctr");
        command.args(["--namespace", "k8s.io", "run", "--rm"]);
        command.args(["--with-ns", &format!("network:/run/netns/{}", self.sandbox.netns)]);
        command.args(["--cgroup", &format!("{}/app", self.cgroup), FIRST, &self.sandbox.netns]);
        let output = output(&mut command, "")?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
    }

    fn remove(&self, node: &RuntimeNode) -> anyhow::Result<()> {
        node.machine.sh(&self.undo).map(drop)
    }
}
