//! The node goes down and comes up: what lives in memory is gone, what is on disk stays.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::containerd::Containerd;
use crate::deployment;
use crate::kubernetes::Kubernetes;
use crate::pods::{pod, sleeper};
use crate::starts::FIRST;

const SERIES: &str = "series=reboot";

impl Cluster {
    /// Pods whose first instruction connects, again at each start, and a served one: after the reboot each is captured before its
    /// first instruction, whether or not the agent was there before the kubelet made the pod's network.
    pub fn reboot(&mut self, count: usize) -> anyhow::Result<()> {
        let accepted = self.accepted();
        let pods: Vec<Value> = (0..count)
            .map(|number| {
                let app = json!({"name": "app", "image": FIRST, "imagePullPolicy": "Never"});
                let mut pod = pod(&format!("reboot-{number}"), &[app, sleeper("istio-proxy")], "Always");
                pod["metadata"]["labels"] = json!({"series": "reboot", "injected": "yes"});
                pod
            })
            .collect();
        self.kubernetes.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string())?;
        let before = self.kubernetes.wait("starts before the reboot", |kubernetes| {
            refused_in(kubernetes).ok().filter(|apps| apps.len() == count)
        })?;
        self.power_off()?;
        ensure!(deployment::instances(&self.kubernetes)?.is_empty(), "instances outlive the machine");
        self.power_on()?;
        self.kubernetes.wait("starts after the reboot", |kubernetes| {
            let after = refused_in(kubernetes).ok().filter(|apps| apps.len() == count)?;
            after.iter().all(|(pod, app)| before.get(pod) != Some(app)).then_some(())
        })?;
        deployment::agent(&self.kubernetes)?;
        self.kubernetes.wait("the pod with Envoy to be served", |_| self.answers_now().ok())?;
        self.delete("reboot")?;
        ensure!(self.accepted() == accepted, "connections reached the service past the proxy");
        Ok(())
    }

    /// Kills what runs in pods, the runtime and the kubelet, and empties what is in memory alone. (Mounts of the machine that
    /// runs the tests stand in /proc/mounts too, below the node's /run; one that is left fails rm.)
    fn power_off(&mut self) -> anyhow::Result<()> {
        self.kubernetes.stop("kubelet")?;
        let machine = &self.kubernetes.machine;
        machine.sh("pkill -KILL -x containerd; pkill -KILL -f containerd-shi[m] || true; \
             for i in $(seq 100); do \
                 all=$(grep -ls /kubepods /proc/[0-9]*/cgroup | cut -d/ -f3); \
                 [ -n \"$all\" ] || break; kill -KILL $all || true; sleep 0.1; \
             done; [ -z \"$all\" ]")?;
        machine.sh(
            "umount /sys/fs/bpf; mount -t bpf bpf /sys/fs/bpf; \
             for mount in $(awk '$2 ~ \"^/run/|^/var/lib/kubelet/pods/\" {print $2}' /proc/mounts | sort -r); do \
                 umount --lazy $mount 2>/dev/null || true; \
             done; \
             rm -rf /run/redirector /run/redirector-* /run/netns /run/containerd; mkdir /run/redirector; \
             find /sys/fs/cgroup -depth -type d -path '*kubepods*' -exec rmdir {} +; \
             ip link del cni0 2>/dev/null || true",
        )?;
        Ok(())
    }

    fn power_on(&mut self) -> anyhow::Result<()> {
        self.kubernetes.containerd = Containerd::start(&self.kubernetes.machine)?;
        self.kubernetes.kubelet()
    }
}

/// The containers that have ended because they were refused, by pod; the last one of each.
fn refused_in(kubernetes: &Kubernetes) -> anyhow::Result<BTreeMap<String, String>> {
    let list = kubernetes.get(&["pods", &format!("--selector={SERIES}")])?;
    let mut refused = BTreeMap::new();
    for pod in list["items"].as_array().context("pods")? {
        let name = pod["metadata"]["name"].as_str().context("a name")?;
        for status in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
            let states = [&status["state"]["terminated"], &status["lastState"]["terminated"]];
            let ended = states.into_iter().find(|state| state["exitCode"] == 111);
            if let (true, Some(id)) =
                (status["name"] == "app", ended.and_then(|it| it["containerID"].as_str()))
            {
                refused.insert(name.to_owned(), id.to_owned());
            }
        }
    }
    Ok(refused)
}
