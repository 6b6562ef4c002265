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
use crate::harness::product::bpffs::Node;
use crate::harness::world::World;
use crate::harness::world::cgroup::Cgroup;

/// What the plugins before have answered; blanks and order must survive.
pub const PREVIOUS: &str =
    r#"{ "interfaces":[{"name":"eth0"}],  "cniVersion":"1.0.0","ips":[ {"address":"10.77.0.2/24"}] }"#;

/// A kubelet's place on this machine: its root of cgroups, and the pods' objects.
#[derive(Debug)]
pub struct Kubelet {
    /// Below it are the pods' cgroups.
    pub cgroup: Cgroup,
    objects: tempfile::TempDir,
}

/// A pod's name and uid.
#[derive(Clone, Debug)]
pub struct Id {
    /// Its name; the namespace is `shop`.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

impl Id {
    /// Of a number.
    #[must_use]
    pub fn new(number: u32) -> Self {
        Self { name: format!("web-{number}"), uid: format!("0a1b2c3d-0000-4000-8000-{number:012}") }
    }

    /// Name of its instance.
    #[must_use]
    pub fn instance(&self) -> String {
        format!("pod-{}", self.uid)
    }

    /// An injected pod, as the API has it.
    #[must_use]
    pub fn object(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": "shop",
                "name": self.name,
                "uid": self.uid,
                "annotations": { "sidecar.istio.io/status": "{}" },
            },
            "spec": { "containers": [
                { "name": "app", "image": "x" },
                { "name": "istio-proxy", "image": "x", "args": ["proxy", "sidecar"],
                  "securityContext": { "runAsUser": 1337, "runAsGroup": 1337 } },
            ] },
        })
    }
}

impl Kubelet {
    /// A kubelet without pods.
    ///
    /// # Errors
    /// When the machine does not let us.
    pub fn new() -> anyhow::Result<Self> {
        let objects = tempfile::Builder::new().prefix("redirtest-pods").tempdir()?;
        Ok(Self { cgroup: Cgroup::new(&names::unique())?, objects })
    }

    /// Directory of the pods' objects.
    #[must_use]
    pub fn objects(&self) -> &Path {
        self.objects.path()
    }

    /// Starts an agent for this kubelet's pods.
    ///
    /// # Errors
    /// When it does not start.
    pub fn agent(&self, node: &Node, home: &Home, more: &[&str]) -> anyhow::Result<Agent> {
        let [objects, root] =
            [self.objects(), self.cgroup.directory()].map(|path| path.display().to_string());
        let mut arguments = vec!["--pods", &objects, "--cgroup-root", &root];
        arguments.extend(more);
        let agent = Agent::with(node, home, &arguments)?;
        agent.wait_for(0, "working")?;
        Ok(agent)
    }

    /// What the API server knows of a pod from now on.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn know(&self, id: &Id, object: &Value) -> anyhow::Result<()> {
        let path = self.objects().join(format!("{}.json", id.name));
        std::fs::write(path.with_extension("new"), object.to_string())?;
        std::fs::rename(path.with_extension("new"), path)?;
        Ok(())
    }

    /// Makes the pod's cgroup, as the cgroupfs driver does.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_cgroup(&self, id: &Id) -> anyhow::Result<PathBuf> {
        let cgroup = self.cgroup.directory().join("besteffort").join(format!("pod{}", id.uid));
        std::fs::create_dir_all(&cgroup).with_context(|| cgroup.display().to_string())?;
        Ok(cgroup)
    }

    /// A process of a container of the pod, in the first pod's namespace of a world.
    ///
    /// # Errors
    /// When the container's cgroup cannot be made.
    pub fn place(&self, id: &Id, world: &World, container: &str, owner: Owner) -> anyhow::Result<Place> {
        let cgroup = self.make_cgroup(id)?.join(container);
        std::fs::create_dir_all(&cgroup)?;
        Ok(Place { netns: world.pod().netns.file().to_owned(), cgroup: Some(cgroup), owner })
    }
}

/// A call of the plugin.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its environment.
    pub environment: Vec<(String, String)>,
    /// Its configuration.
    pub config: String,
    by: Vec<String>,
}

impl Call {
    /// As a runtime calls it for a pod's sandbox.
    #[must_use]
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
    #[must_use]
    pub fn with(mut self, name: &str, value: Option<&str>) -> Self {
        self.environment.retain(|(other, _)| other != name);
        self.environment.extend(value.map(|value| (name.to_owned(), value.to_owned())));
        self
    }

    /// With another configuration.
    #[must_use]
    pub fn configured(self, config: impl Into<String>) -> Self {
        Self { config: config.into(), ..self }
    }

    /// Called by another program, with its arguments.
    #[must_use]
    pub fn by(self, by: &[&str]) -> Self {
        Self { by: by.iter().map(|word| (*word).to_owned()).collect(), ..self }
    }

    /// The command.
    #[must_use]
    pub fn command(&self) -> Command {
        let by: Vec<&str> = self.by.iter().map(String::as_str).collect();
        let mut command = product::command(&by);
        command.envs(self.environment.iter().cloned());
        command
    }

    /// Calls it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self) -> anyhow::Result<Output> {
        command::output(&mut self.command(), &self.config)
    }

    /// Calls it and requires success; its answer.
    ///
    /// # Errors
    /// When it fails.
    pub fn succeed(&self) -> anyhow::Result<String> {
        let output = self.run()?;
        let (out, err) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{self:?}: {out} {err}");
        Ok(out.strip_suffix('\n').unwrap_or(&out).to_owned())
    }

    /// Calls it and requires a CNI error; its code and words.
    ///
    /// # Errors
    /// When it succeeds, or says something that is no error of CNI.
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
