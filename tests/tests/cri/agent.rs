//! The agent as the shipped DaemonSet runs it: in a container, with the manifest's capabilities and mounts.

use anyhow::Context;
use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::{
    Capability, ContainerConfig, ContainerMetadata, ImageSpec, Int64Value, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, SecurityProfile,
};

use crate::node::{DIST, Node, OBJECTS, sh, until_ready};

const MANIFEST: &str = include_str!("../../../deploy/kustomize/base/daemonset.yaml");

/// The agent's pod.
pub struct AgentPod {
    sandbox: String,
    config: PodSandboxConfig,
    attempts: u32,
}

impl AgentPod {
    /// Its sandbox, in the node's network, with the node's processes.
    pub fn start(node: &mut Node) -> anyhow::Result<Self> {
        sh(&format!("ctr --namespace k8s.io images import {DIST}/redirector-image.tar"))?;
        sh("mkdir -p /run/redirector /var/lib/cni")?;
        let security =
            LinuxSandboxSecurityContext { namespace_options: Some(of_the_node()), ..Default::default() };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: "redirector".to_owned(),
                uid: "redirector".to_owned(),
                namespace: "redirector-system".to_owned(),
                attempt: 0,
            }),
            log_directory: "/var/log/pods/redirector".to_owned(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods.slice/kubepods-podredirector.slice".to_owned(),
                security_context: Some(security),
                ..Default::default()
            }),
            ..Default::default()
        };
        std::fs::create_dir_all(&config.log_directory)?;
        let sandbox = node.runtime.run_sandbox(config.clone())?;
        Ok(Self { sandbox, config, attempts: 0 })
    }

    /// Starts its container and waits until it is ready; the container's id.
    pub fn run(&mut self, node: &mut Node) -> anyhow::Result<String> {
        self.attempts += 1;
        let mut args: Vec<String> = words("            - ").map(str::to_owned).collect();
        // There is no API server.
        args.retain(|word| !word.starts_with("--daemonset"));
        args.push(format!("--pods={OBJECTS}"));
        let container = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "agent".to_owned(), attempt: self.attempts }),
            image: Some(ImageSpec { image: between("image: ", "\n")?.to_owned(), ..Default::default() }),
            args,
            mounts: mounts(),
            log_path: format!("agent-{}.log", self.attempts),
            linux: Some(LinuxContainerConfig { security_context: Some(security()?), ..Default::default() }),
            ..Default::default()
        };
        let id = node.runtime.run(&self.sandbox, &self.config, container)?;
        until_ready(true).with_context(|| self.logs())?;
        Ok(id)
    }

    fn logs(&self) -> String {
        sh(&format!("tail -n 20 {}/*.log", self.config.log_directory)).unwrap_or_default()
    }

    pub fn remove(self, node: &mut Node) -> anyhow::Result<()> {
        node.runtime.stop_sandbox(&self.sandbox)?;
        node.runtime.remove_sandbox(&self.sandbox)
    }
}

/// Items of the manifest's only list with this indentation: the arguments.
fn words(indentation: &str) -> impl Iterator<Item = &'static str> {
    let items = MANIFEST.lines().filter_map(move |line| line.strip_prefix(indentation));
    items.filter(|item| !item.contains([' ', ':']) || item.starts_with("--"))
}

/// The manifest's text between the first of these words and the next of those.
fn between(begin: &str, end: &str) -> anyhow::Result<&'static str> {
    let found = MANIFEST.split_once(begin).and_then(|(_, rest)| rest.split_once(end));
    Ok(found.with_context(|| format!("the manifest has no {begin}"))?.0)
}

fn of_the_node() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Node.into(),
        ipc: NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

/// The directories of the node, and that of the pods' objects.
fn mounts() -> Vec<Mount> {
    let of_manifest = MANIFEST.lines().filter_map(|line| {
        let (path, more) = line.split_once("mountPath: ")?.1.split_once([',', '}'])?;
        Some((path, more.contains("readOnly: true")))
    });
    let mount = |(path, readonly): (&str, bool)| Mount {
        host_path: path.to_owned(),
        container_path: path.to_owned(),
        readonly,
        ..Default::default()
    };
    of_manifest.chain([(OBJECTS, true)]).map(mount).collect()
}

fn security() -> anyhow::Result<LinuxContainerSecurityContext> {
    let added = between("add: [", "]")?.split(", ").map(str::to_owned).collect();
    let unconfined = SecurityProfile { profile_type: ProfileType::Unconfined.into(), ..Default::default() };
    Ok(LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: added,
            drop_capabilities: vec!["ALL".to_owned()],
            ..Default::default()
        }),
        namespace_options: Some(of_the_node()),
        run_as_user: Some(Int64Value { value: 0 }),
        run_as_group: Some(Int64Value { value: 0 }),
        readonly_rootfs: true,
        no_new_privs: true,
        seccomp: Some(unconfined.clone()),
        apparmor: Some(unconfined),
        ..Default::default()
    })
}
