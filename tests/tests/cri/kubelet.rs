//! A real kubelet on the node: systemd is its driver of cgroups, and it asks the runtime itself. It has no API server:
//! its pod is a file, as the control plane's are.

use redirector_tests::harness::retry;
use serde_json::json;

use crate::node::{FIRST, Node, OBJECTS, PROBE, PROGRAMS, sh};

const CONFIG: &str = include_str!("../../tools/node/kubelet.yaml");
const HOME: &str = "/var/lib/kubelet-of-test";
const UNIT: &str = "redirtest-kubelet";
/// The node's name, which the kubelet adds to that of a pod from a file.
const NAME: &str = "node-1";

/// Stopped on drop.
#[derive(Default)]
pub struct Kubelet {
    /// Uid of its pod.
    pod: String,
}

impl Kubelet {
    pub fn start() -> anyhow::Result<Self> {
        let config =
            CONFIG.replace("cgroupDriver: cgroupfs", "cgroupDriver: systemd").replace("MAX_PODS", "10");
        let config = format!("{config}staticPodPath: {HOME}/pods\n");
        std::fs::create_dir_all(format!("{HOME}/pods"))?;
        std::fs::write(format!("{HOME}/config.yaml"), config)?;
        sh(&format!(
            "systemd-run --quiet --collect --unit {UNIT} {PROGRAMS}/kubelet --config={HOME}/config.yaml \
             --root-dir={HOME}/root --hostname-override={NAME} --container-runtime=remote \
             --container-runtime-endpoint=unix:///run/containerd/containerd.sock"
        ))?;
        Ok(Self::default())
    }

    /// Has it start a pod, whose application's first instruction connects; how its container ended.
    pub fn first(&mut self, node: &mut Node) -> anyhow::Result<i32> {
        let [name, uid] = node.publish(&format!("-{NAME}"), &[])?;
        let of_file = name.trim_end_matches(&format!("-{NAME}"));
        let container = |name: &str, image: &str, command: &[&str], user: u32| {
            json!({"name": name, "image": image, "imagePullPolicy": "Never", "command": command,
                   "securityContext": {"runAsUser": user, "runAsGroup": user}})
        };
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": "shop",
                "name": of_file,
                "uid": uid,
                // The kubelet tells the runtime, and the runtime the plugin.
                "annotations": {"sidecar.istio.io/status": "{}"},
            },
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "containers": [
                    container("app", FIRST, &["/first"], 1000),
                    container("istio-proxy", PROBE, &["/bin/busybox", "tail", "-f", "/dev/null"], 1337),
                ],
            },
        });
        std::fs::write(file(), pod.to_string())?;
        let id = retry::until("the kubelet to start the application", || {
            node.runtime.container(&uid, "app").ok().flatten()
        })?;
        self.pod = uid;
        node.runtime.exit_code(&id)
    }

    /// Takes the pod away.
    pub fn remove(&self) -> anyhow::Result<()> {
        sh(&format!("rm {} {OBJECTS}/*-{NAME}.json", file())).map(drop)
    }

    /// Ends it, and what its garbage collector would have removed.
    pub fn end(self, node: &mut Node) -> anyhow::Result<()> {
        let pod = self.pod.clone();
        drop(self);
        node.runtime.remove_sandboxes(&pod)
    }

    pub fn what_it_says() -> String {
        sh(&format!("journalctl --no-pager --lines 60 --unit {UNIT}")).unwrap_or_default()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        let _ = sh(&format!("systemctl stop {UNIT}"));
    }
}

fn file() -> String {
    format!("{HOME}/pods/pod.json")
}
