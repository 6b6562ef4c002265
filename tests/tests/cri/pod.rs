//! A pod as the kubelet makes it: its slice, its sandbox, its containers.

use anyhow::Context;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, IdMapping, ImageSpec, Int64Value, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, UserNamespace,
};
use redirector_tests::harness::probe::serve::Service;
use redirector_tests::harness::server::proxy_listeners;

use crate::node::{FIRST, Node, OBJECTS, PROBE, list, sh};

/// The user of the proxy.
const PROXY: i64 = 1337;

/// A pod whose sandbox runs.
pub struct Pod {
    pub sandbox: String,
    config: PodSandboxConfig,
    slice: String,
    name: String,
    attempts: u32,
}

impl Pod {
    pub fn start(node: &mut Node) -> anyhow::Result<Self> {
        Self::with(node, None, &[])
    }

    /// With users of its own, as the kubelet chooses them for `hostUsers: false`.
    pub fn with_own_users(node: &mut Node) -> anyhow::Result<Self> {
        let ids = vec![IdMapping { host_id: 1 << 16, container_id: 0, length: 1 << 16 }];
        let users = UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids };
        Self::with(node, Some(users), &[])
    }

    pub fn annotated(node: &mut Node, annotations: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::with(node, None, annotations)
    }

    fn with(
        node: &mut Node,
        userns_options: Option<UserNamespace>,
        annotations: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let [name, uid, slice] = node.announce(annotations)?;
        let namespaces = NamespaceOption {
            network: NamespaceMode::Pod.into(),
            pid: NamespaceMode::Container.into(),
            ipc: NamespaceMode::Pod.into(),
            userns_options,
            ..Default::default()
        };
        let security =
            LinuxSandboxSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.clone(),
                uid,
                namespace: "shop".into(),
                attempt: 0,
            }),
            hostname: name.clone(),
            log_directory: format!("/var/log/pods/{name}"),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/kubepods.slice/kubepods-besteffort.slice/{slice}"),
                security_context: Some(security),
                ..Default::default()
            }),
            ..Default::default()
        };
        std::fs::create_dir_all(&config.log_directory)?;
        let sandbox = node.runtime.run_sandbox(config.clone())?;
        Ok(Self { sandbox, config, slice, name, attempts: 0 })
    }

    /// Runs the program whose first instruction connects, as the application's container; how it ended.
    pub fn first(&mut self, node: &mut Node) -> anyhow::Result<Met> {
        let id = self.container(node, "app", FIRST, vec!["/first".into()], 1000)?;
        let code = node.runtime.exit_code(&id)?;
        node.runtime.remove(&id)?;
        Met::of(code)
    }

    /// Starts the proxy's container; its id.
    pub fn proxy(&mut self, node: &mut Node) -> anyhow::Result<String> {
        let service = Service { role: "proxy".to_owned(), listeners: proxy_listeners(1) };
        // It ends with its standard input.
        let script = "tail -f /dev/null | /probe serve \"$0\"";
        let busybox = ["/bin/sh", "-c", script].map(str::to_owned);
        let command = [&busybox[..], &[serde_json::to_string(&service)?]].concat();
        self.container(node, "istio-proxy", PROBE, command, PROXY)
    }

    fn container(
        &mut self,
        node: &mut Node,
        name: &str,
        image: &str,
        command: Vec<String>,
        user: i64,
    ) -> anyhow::Result<String> {
        self.attempts += 1;
        let security = LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: user }),
            run_as_group: Some(Int64Value { value: user }),
            namespace_options: self.namespaces(),
            ..Default::default()
        };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: self.attempts }),
            image: Some(ImageSpec { image: image.to_owned(), ..Default::default() }),
            command,
            log_path: format!("{name}-{}.log", self.attempts),
            linux: Some(LinuxContainerConfig { security_context: Some(security), ..Default::default() }),
            ..Default::default()
        };
        node.runtime.run(&self.sandbox, &self.config, config)
    }

    fn namespaces(&self) -> Option<NamespaceOption> {
        self.config.linux.as_ref()?.security_context.as_ref()?.namespace_options.clone()
    }

    /// Whether an instance captures it.
    pub fn is_captured(&self) -> anyhow::Result<bool> {
        let uid = self.config.metadata.as_ref().map_or("", |metadata| &metadata.uid);
        let name = format!("pod-{uid}");
        Ok(list()?.iter().any(|instance| instance["name"] == name.as_str() && instance["state"] == "active"))
    }

    /// What its containers have said.
    pub fn logs(&self) -> String {
        sh(&format!("tail -n 5 {}/*.log", self.config.log_directory)).unwrap_or_default()
    }

    /// Its sandbox has died, and the kubelet makes another.
    pub fn restart_sandbox(&mut self, node: &mut Node) -> anyhow::Result<()> {
        node.runtime.stop_sandbox(&self.sandbox)?;
        let metadata = self.config.metadata.as_mut().context("metadata")?;
        metadata.attempt += 1;
        let next = node.runtime.run_sandbox(self.config.clone())?;
        node.runtime.remove_sandbox(&std::mem::replace(&mut self.sandbox, next))
    }

    /// The kubelet's part at its end.
    pub fn remove(self, node: &mut Node) -> anyhow::Result<()> {
        node.runtime.stop_sandbox(&self.sandbox)?;
        node.runtime.remove_sandbox(&self.sandbox)?;
        let (name, slice) = (&self.name, &self.slice);
        sh(&format!("rm {OBJECTS}/{name}.json; systemctl stop {slice}")).context("removing a pod")?;
        Ok(())
    }
}

/// Where a container's first connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// Nowhere: captured, and no proxy listens.
    Refused,
    Proxy,
    /// At the service.
    Escaped,
}

impl Met {
    /// By the exit code of `first.c`.
    pub fn of(code: i32) -> anyhow::Result<Self> {
        match code {
            111 => Ok(Self::Refused),
            7 => Ok(Self::Proxy),
            8 => Ok(Self::Escaped),
            other => anyhow::bail!("the container ended with {other}"),
        }
    }
}
