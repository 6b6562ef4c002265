//! What a kubelet and its runtime do to a pod, done by a test: the pod's cgroup, its sandbox's namespace, the calls of
//! the CNI plugin, and processes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::harness::command;
use crate::harness::names;
use crate::harness::probe::scenario::Owner;
use crate::harness::process::Place;
use crate::harness::product;
use crate::harness::product::agent::{Agent, Home};
use crate::harness::product::bpffs::Bpffs;
use crate::harness::server::{Server, proxy_listeners};
use crate::harness::world::cgroup::Cgroup;
use crate::harness::world::{APP, PROXY, World};
use crate::require_root;

/// The result of the plugins before. Blanks and order must survive.
pub const PREVIOUS: &str =
    r#"{ "interfaces":[{"name":"eth0"}],  "cniVersion":"1.0.0","ips":[ {"address":"10.77.0.2/24"}] }"#;

/// A kubelet's place on this machine: its root of cgroups, and the pods' objects.
pub struct Kubelet {
    /// Below it are the pods' cgroups.
    pub cgroup: Cgroup,
    objects: tempfile::TempDir,
}

/// A pod's name and uid.
pub struct Id {
    /// Its name; the namespace is `shop`.
    pub name: String,
    pub uid: String,
}

impl Id {
    pub fn new(number: u32) -> Self {
        Self { name: format!("web-{number}"), uid: format!("0a1b2c3d-0000-4000-8000-{number:012}") }
    }

    /// Name of its instance.
    pub fn instance(&self) -> String {
        format!("pod-{}", self.uid)
    }

    /// An injected pod, as the API has it.
    pub fn object(&self) -> Value {
        let mut object = injected(&self.name, &self.uid, ["x", "x"]);
        object["spec"]["containers"][1]["securityContext"]["runAsGroup"] = 1337.into();
        object
    }
}

/// An injected pod, with the images of the application and of the proxy.
pub fn injected(name: &str, uid: &str, [app, proxy]: [&str; 2]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "shop",
            "name": name,
            "uid": uid,
            "annotations": { "sidecar.istio.io/status": "{}" },
        },
        "spec": { "containers": [
            { "name": "app", "image": app },
            { "name": "istio-proxy", "image": proxy, "args": ["proxy", "sidecar"],
              "securityContext": { "runAsUser": 1337 } },
        ] },
    })
}

impl Kubelet {
    /// A kubelet without pods.
    pub fn new() -> anyhow::Result<Self> {
        let objects = tempfile::Builder::new().prefix("redirtest-pods").tempdir()?;
        Ok(Self { cgroup: Cgroup::new(&names::unique())?, objects })
    }

    /// Directory of the pods' objects.
    pub fn objects(&self) -> &Path {
        self.objects.path()
    }

    /// Starts an agent for this kubelet's pods.
    pub fn agent(&self, bpffs: &Bpffs, home: &Home, more: &[&str]) -> anyhow::Result<Agent> {
        let [objects, root] =
            [self.objects(), self.cgroup.directory()].map(|path| path.display().to_string());
        let mut arguments = vec!["--pods", &objects, "--cgroup-root", &root];
        arguments.extend(more);
        let agent = Agent::with(bpffs, home, &arguments)?;
        agent.wait_for(0, "working")?;
        Ok(agent)
    }

    /// Publishes a pod, as the API server does.
    pub fn know(&self, id: &Id, object: &Value) -> anyhow::Result<()> {
        let path = self.objects().join(format!("{}.json", id.name));
        std::fs::write(path.with_extension("new"), object.to_string())?;
        std::fs::rename(path.with_extension("new"), path)?;
        Ok(())
    }

    /// Makes the pod's cgroup, as the cgroupfs driver does.
    pub fn make_cgroup(&self, id: &Id) -> anyhow::Result<PathBuf> {
        let cgroup = self.cgroup.directory().join("besteffort").join(format!("pod{}", id.uid));
        std::fs::create_dir_all(&cgroup).with_context(|| cgroup.display().to_string())?;
        Ok(cgroup)
    }

    /// A process of a container of the pod, in the first pod's namespace of a world.
    pub fn place(&self, id: &Id, world: &World, container: &str, owner: Owner) -> anyhow::Result<Place> {
        let cgroup = self.make_cgroup(id)?.join(container);
        std::fs::create_dir_all(&cgroup)?;
        Ok(Place { netns: world.pod().netns.file().to_owned(), cgroup: Some(cgroup), owner })
    }
}

/// A call of the plugin.
#[derive(Clone, Debug)]
pub struct Call {
    pub environment: Vec<(String, String)>,
    pub config: String,
    by: Vec<String>,
}

impl Call {
    /// As a runtime calls it for a pod's sandbox.
    pub fn new(command: &str, home: &Home, id: &Id, netns: &Path) -> Self {
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID=c0ffee;K8S_POD_UID={}",
            id.name, id.uid
        );
        let environment = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "c0ffee"),
            ("CNI_NETNS", &netns.display().to_string()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
            ("CNI_ARGS", &arguments),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let version = if matches!(command, "GC" | "STATUS") { "1.1.0" } else { "1.0.0" };
        let socket = home.run().join("agent.sock").display().to_string();
        let config = format!(
            r#"{{"cniVersion":"{version}","name":"shop-net","type":"redirector","socket":"{socket}","prevResult":{PREVIOUS}}}"#
        );
        Self { environment, config, by: Vec::new() }
    }

    /// With another value of a variable; without it if there is none.
    pub fn with(mut self, name: &str, value: Option<&str>) -> Self {
        self.environment.retain(|(other, _)| other != name);
        self.environment.extend(value.map(|value| (name.to_owned(), value.to_owned())));
        self
    }

    pub fn configured(self, config: impl Into<String>) -> Self {
        Self { config: config.into(), ..self }
    }

    /// Called by another program, with its arguments.
    pub fn by(self, by: &[&str]) -> Self {
        Self { by: by.iter().map(|word| (*word).to_owned()).collect(), ..self }
    }

    pub fn command(&self) -> Command {
        let by: Vec<&str> = self.by.iter().map(String::as_str).collect();
        let mut command = product::command(&by);
        command.envs(self.environment.iter().cloned());
        command
    }

    pub fn run(&self) -> anyhow::Result<Output> {
        command::output(&mut self.command(), &self.config)
    }

    /// Calls it and requires success; its answer.
    pub fn succeed(&self) -> anyhow::Result<String> {
        let output = self.run()?;
        let (out, err) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{self:?}: {out} {err}");
        Ok(out.strip_suffix('\n').unwrap_or(&out).to_owned())
    }

    /// Calls it and requires a CNI error; its code and words.
    pub fn fail(&self) -> anyhow::Result<(u64, String)> {
        let output = self.run()?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(!output.status.success(), "{self:?} succeeded: {text}");
        let error: Value = serde_json::from_str(&text).with_context(|| format!("{self:?}: {text:?}"))?;
        ensure!(error["cniVersion"].is_string() && error["msg"].is_string(), "{error:#}");
        let code = error["code"].as_u64().context("a code")?;
        Ok((code, format!("{}: {}", error["msg"], error["details"])))
    }
}

/// A node with an agent and one pod, which has a namespace and a cgroup, and no process yet.
pub struct NodeWithPod {
    pub agent: Agent,
    pub kubelet: Kubelet,
    pub world: World,
    pub home: Home,
    pub bpffs: Bpffs,
    pub id: Id,
}

impl NodeWithPod {
    pub fn new(arguments: &[&str]) -> anyhow::Result<Option<Self>> {
        require_root!();
        let (bpffs, home, world, kubelet) = (Bpffs::new()?, Home::new()?, World::new()?, Kubelet::new()?);
        let id = Id::new(1);
        kubelet.know(&id, &id.object())?;
        kubelet.make_cgroup(&id)?;
        let agent = kubelet.agent(&bpffs, &home, arguments)?;
        Ok(Some(Self { agent, kubelet, world, home, bpffs, id }))
    }

    pub fn call(&self, command: &str) -> Call {
        Call::new(command, &self.home, &self.id, self.world.pod().netns.file())
    }

    pub fn app(&self) -> anyhow::Result<Place> {
        self.kubelet.place(&self.id, &self.world, "app", APP)
    }

    pub fn proxy(&self) -> anyhow::Result<Server> {
        let place = self.kubelet.place(&self.id, &self.world, "proxy", PROXY)?;
        Server::start(&place, "proxy", proxy_listeners(1))
    }

    pub fn is_captured(&self) -> anyhow::Result<bool> {
        Ok(self.bpffs.list()?.iter().any(|i| i["name"] == self.id.instance() && i["state"] == "active"))
    }
}
