//! The agent and its plugin are taken off a real Kubernetes.

use std::path::Path;

use anyhow::ensure;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::deployment;
use crate::kubernetes::NETWORK;
use crate::pods::{pod, sleeper};
use crate::starts::CONFLIST;

impl Cluster {
    /// The chart in place of the manifests: installed by Helm, it captures. Each goes with its plugin; what is captured stays so.
    pub fn chart(&self) -> anyhow::Result<()> {
        deployment::remove(&self.kubernetes, "overlays/istio")?;
        self.is_taken_off("after kubectl delete")?;
        let release = deployment::helm(&self.kubernetes, "install")?;
        ensure!(release["info"]["status"] == "deployed", "helm install: {}", release["info"]);
        deployment::agent(&self.kubernetes)?;
        self.served("after helm install")?;
        self.first_instructions("chart", 3, |_, _| Ok(()))?;
        deployment::helm(&self.kubernetes, "uninstall")?;
        self.is_taken_off("after helm uninstall")
    }

    /// The agents are gone and the network's configuration is what it was. Every kind of pod starts: an injected one, whose first
    /// instruction reaches the service past the proxy (8), and a plain one.
    fn is_taken_off(&self, when: &str) -> anyhow::Result<()> {
        self.kubernetes.wait("the agent to be gone", |kubernetes| {
            let selector = format!("--selector={}", deployment::LABEL);
            let pods = kubernetes.get(&["pods", "--all-namespaces", &selector]);
            pods.ok()?["items"].as_array()?.is_empty().then_some(())
        })?;
        let list: Value = serde_json::from_str(&self.list()?)?;
        ensure!(list == serde_json::from_str::<Value>(NETWORK)?, "{when}: not as it was: {list}");
        // The binary stays until the pods have ended that were set up with it (`cni_install::cache`).
        self.served(when)?;
        self.all_end_with(8, "uncaptured", 2)?;
        self.plain_pod_starts()?;
        self.remove_pods("uncaptured")?;
        self.served(when)
    }

    fn list(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.kubernetes.machine.outside(Path::new(CONFLIST)))?)
    }

    fn remove_pods(&self, series: &str) -> anyhow::Result<()> {
        let selector = format!("--selector=series={series}");
        let delete = ["delete", "pods", &selector, "--grace-period=1", "--wait=true"];
        self.kubernetes.kubectl(&delete, "").map(drop)
    }

    /// A pod that is none of the mesh's.
    fn plain_pod_starts(&self) -> anyhow::Result<()> {
        let mut plain = pod("plain", &[sleeper("app")], "Always");
        plain["metadata"]["annotations"] = serde_json::json!({});
        plain["metadata"]["labels"] = serde_json::json!({"app": "plain", "series": "plain"});
        self.kubernetes.apply(&plain.to_string())?;
        self.kubernetes.ready("app=plain", 1)?;
        self.remove_pods("plain")
    }

    /// A node that was off while redirector was deleted keeps the plugin: plain pods start there, one of the mesh is told what to
    /// do, and `deploy/kustomize/uninstall` takes it off.
    pub fn uninstall(&self) -> anyhow::Result<()> {
        let machine = &self.kubernetes.machine;
        deployment::deploy(&self.kubernetes, "overlays/istio")?;
        let list = self.list()?;
        machine.sh("cp -a /opt/cni/bin/redirector /run/kept")?;
        deployment::remove(&self.kubernetes, "overlays/istio")?;
        self.is_taken_off("after another kubectl delete")?;
        machine.write(CONFLIST, &list)?;
        machine.sh("cp -a /run/kept /opt/cni/bin/redirector")?;
        self.plain_pod_starts()?;
        self.kubernetes
            .apply(&pod("stuck", &[sleeper("istio-proxy"), sleeper("app")], "Always").to_string())?;
        self.kubernetes.wait("an event with the remedy", |kubernetes| {
            let events = kubernetes.get(&["events", "--field-selector=involvedObject.name=stuck"]).ok()?;
            let remedy =
                "/opt/cni/bin/redirector cni uninstall --bin-dir /opt/cni/bin --conf-dir /etc/cni/net.d";
            events.to_string().contains(remedy).then_some(())
        })?;
        self.kubernetes.kubectl(&["delete", "pod", "stuck", "--grace-period=1"], "")?;
        deployment::apply(&self.kubernetes, "uninstall")?;
        let status = ["--namespace=redirector-system", "rollout", "status", "daemonset/redirector-uninstall"];
        self.kubernetes.kubectl(&status, "")?;
        deployment::remove(&self.kubernetes, "uninstall")?;
        self.is_taken_off("after the overlay uninstall")
    }

    /// The agent without Kubernetes' API and without the plugin: it works, and leaves what is captured alone.
    pub fn standalone(&self) -> anyhow::Result<()> {
        deployment::apply(&self.kubernetes, "overlays/standalone")?;
        let pod = deployment::agent(&self.kubernetes)?;
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        ensure!(*restarts == 0, "the standalone agent was started anew {restarts} times");
        self.served("with the standalone agent")?;
        deployment::remove(&self.kubernetes, "overlays/standalone")
    }
}
