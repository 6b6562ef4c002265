//! A whole Kubernetes of one node inside a machine: etcd, apiserver, controller-manager, scheduler, kubelet, containerd.
//!
//! No kube-proxy is needed: the apiserver listens at the address of its own service, and tests name pods by address.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use redirector_tests::harness::command::run;
use redirector_tests::harness::machine::{Inside, Machine};
use serde_json::Value;

use crate::containerd::Containerd;

/// The only node's name.
pub const NODE: &str = "node-1";
/// The address of the service `kubernetes`.
const API: &str = "10.96.0.1";
const NODE_IP: &str = "172.30.0.1";
/// The network's configuration as it is before the agent comes.
pub const NETWORK: &str = include_str!("10-network.conflist");
const KUBELET: &str = include_str!("kubelet.yaml");

/// How long something of a cluster may take; generous because the machine may be busy.
const CLUSTER_TIMEOUT: Duration = Duration::from_secs(180);

/// A running cluster. The machine is dropped last: everything ends with it.
pub struct Kubernetes {
    pub containerd: Containerd,
    daemons: Vec<(&'static str, Inside)>,
    binaries: PathBuf,
    pub machine: Machine,
}

impl Kubernetes {
    /// Starts everything, and waits until the node is ready for pods.
    pub fn start(binaries: &Path, max_pods: u32) -> anyhow::Result<Self> {
        let machine = Machine::boot()?;
        machine.sh(&format!(
            "ip link add node0 type veth peer name wire; ip link set wire up; ip addr add {NODE_IP}/24 dev node0; ip link set node0 up; \
             ip route add default dev node0; ip addr add {API}/32 dev lo; \
             echo 1 >/proc/sys/net/ipv4/ip_forward"
        ))?;
        machine.write("/etc/cni/net.d/10-network.conflist", NETWORK)?;
        let containerd = Containerd::start(&machine)?;
        let mut this = Self { containerd, daemons: Vec::new(), binaries: binaries.to_owned(), machine };
        this.credentials()?;
        this.etcd()?;
        this.apiserver()?;
        this.daemon(
            "kube-controller-manager",
            &[
                "--kubeconfig=/var/lib/kube/admin.conf",
                "--service-account-private-key-file=/var/lib/kube/sa.key",
                "--root-ca-file=/var/lib/kube/ca.crt",
                "--leader-elect=false",
            ],
        )?;
        this.daemon("kube-scheduler", &["--kubeconfig=/var/lib/kube/admin.conf", "--leader-elect=false"])?;
        this.machine
            .write("/var/lib/kube/kubelet.yaml", &KUBELET.replace("MAX_PODS", &max_pods.to_string()))?;
        this.kubelet()?;
        // Pods need it, and the controller-manager makes it when it gets there.
        this.wait("the service account", |this| this.get(&["serviceaccount", "default"]).ok().map(drop))?;
        Ok(this)
    }

    /// Keys, certificates, and who may come in: `admin` may do anything.
    fn credentials(&self) -> anyhow::Result<()> {
        self.machine.write("/var/lib/kube/tokens.csv", "admin-token,admin,admin,system:masters\n")?;
        self.machine
            .write("/var/lib/kube/san", &format!("subjectAltName=IP:127.0.0.1,IP:{API},IP:{NODE_IP}\n"))?;
        self.machine.sh(
            "cd /var/lib/kube; exec 2>openssl.log; \
             openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=test-ca -keyout ca.key -out ca.crt; \
             openssl req -newkey rsa:2048 -nodes -subj /CN=kube-apiserver -keyout api.key -out api.csr; \
             openssl x509 -req -in api.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile san -out api.crt; \
             openssl genrsa -out sa.key 2048",
        )?;
        self.machine.write("/var/lib/kube/admin.conf", &kubeconfig("admin-token"))
    }

    fn etcd(&mut self) -> anyhow::Result<()> {
        let arguments = ["--data-dir=/var/lib/etcd", "--unsafe-no-fsync", "--log-level=error"];
        self.daemons.push(("etcd", self.machine.daemon("etcd", &arguments)?));
        Ok(())
    }

    /// Starts the apiserver, and waits until it answers.
    pub fn apiserver(&mut self) -> anyhow::Result<()> {
        self.daemon(
            "kube-apiserver",
            &[
                "--etcd-servers=http://127.0.0.1:2379",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--authorization-mode=RBAC",
                "--token-auth-file=/var/lib/kube/tokens.csv",
                "--tls-cert-file=/var/lib/kube/api.crt",
                "--tls-private-key-file=/var/lib/kube/api.key",
                "--service-account-issuer=https://kubernetes.default.svc",
                "--service-account-key-file=/var/lib/kube/sa.key",
                "--service-account-signing-key-file=/var/lib/kube/sa.key",
                "--secure-port=443",
                &format!("--advertise-address={NODE_IP}"),
                "--kubelet-preferred-address-types=InternalIP",
                "--allow-privileged=true",
            ],
        )?;
        self.wait("the apiserver", |this| this.kubectl(&["get", "--raw=/readyz"], "").ok().map(drop))
    }

    /// Starts the kubelet, and waits until the node is ready.
    pub fn kubelet(&mut self) -> anyhow::Result<()> {
        self.daemon(
            "kubelet",
            &[
                "--config=/var/lib/kube/kubelet.yaml",
                "--kubeconfig=/var/lib/kube/admin.conf",
                "--container-runtime=remote",
                "--container-runtime-endpoint=unix:///run/containerd/containerd.sock",
                &format!("--hostname-override={NODE}"),
                &format!("--node-ip={NODE_IP}"),
            ],
        )?;
        self.wait("the node to be ready", |this| {
            let node = this.get(&["node", NODE]).ok()?;
            condition(&node, "Ready").filter(|ready| ready == "True").map(drop)
        })
    }

    /// Stops one of the daemons. `kube-apiserver` and `kubelet` come back by [`Self::apiserver`] and [`Self::kubelet`].
    pub fn stop(&mut self, name: &str) -> anyhow::Result<()> {
        let index = self.daemons.iter().position(|(daemon, _)| *daemon == name);
        let (_, daemon) = self.daemons.remove(index.with_context(|| format!("no {name} runs"))?);
        // It would wait for its watchers for a minute.
        daemon.kill(rustix::process::Signal::KILL)
    }

    fn daemon(&mut self, name: &'static str, arguments: &[&str]) -> anyhow::Result<()> {
        let daemon = self.machine.daemon(self.binaries.join(name), arguments)?;
        self.daemons.push((name, daemon));
        Ok(())
    }

    /// Waits for a condition; says on failure what the daemons said last.
    pub fn wait<T>(&self, what: &str, mut condition: impl FnMut(&Self) -> Option<T>) -> anyhow::Result<T> {
        let deadline = Instant::now() + CLUSTER_TIMEOUT;
        loop {
            if let Some(found) = condition(self) {
                return Ok(found);
            }
            if Instant::now() > deadline {
                let last = |lines: Vec<String>| {
                    lines.iter().rev().take(8).rev().cloned().collect::<Vec<_>>().join("\n")
                };
                let logs: Vec<_> = self
                    .daemons
                    .iter()
                    .map(|(name, daemon)| format!("== {name}\n{}", last(daemon.daemon.lines())))
                    .collect();
                bail!("gave up waiting after {CLUSTER_TIMEOUT:?}: {what}\n{}", logs.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// `kubectl` as admin.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        run(&mut self.kubectl_command(arguments), input)
    }

    /// The same, to be run.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.machine.command(self.binaries.join("kubectl"));
        command.arg("--kubeconfig=/var/lib/kube/admin.conf").args(arguments);
        command
    }

    /// An object, or a list, as JSON.
    pub fn get(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut all = vec!["get", "--output=json"];
        all.extend(arguments);
        Ok(serde_json::from_str(&self.kubectl(&all, "")?)?)
    }

    pub fn apply(&self, manifests: &str) -> anyhow::Result<()> {
        self.kubectl(&["apply", "--filename=-"], manifests).map(drop)
    }

    /// Waits until pods with this label are ready, and returns them.
    pub fn ready(&self, label: &str, count: usize) -> anyhow::Result<Vec<Value>> {
        let selector = format!("--selector={label}");
        let pods = self.wait(&format!("{count} ready pods with {label}"), |this| {
            let list = this.get(&["pods", "--all-namespaces", &selector]).ok()?;
            let pods = list["items"].as_array()?.clone();
            let ready = pods.iter().filter(|pod| condition(pod, "Ready").is_some_and(|is| is == "True"));
            (ready.count() == count && pods.len() == count).then_some(pods)
        });
        pods.with_context(|| self.kubectl(&["describe", "pods", "-A", &selector], "").unwrap_or_default())
    }

    /// The address of a pod.
    pub fn address(pod: &Value) -> anyhow::Result<std::net::Ipv4Addr> {
        let address = pod["status"]["podIP"].as_str().context("a pod has an address")?;
        ensure!(!address.is_empty(), "no address");
        Ok(address.parse()?)
    }
}

/// A kubeconfig with a token.
pub fn kubeconfig(token: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters: [{{name: test, cluster: {{server: 'https://{API}', certificate-authority: /var/lib/kube/ca.crt}}}}]\n\
         users: [{{name: test, user: {{token: {token}}}}}]\n\
         contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n"
    )
}

/// The status of a condition of an object.
fn condition(object: &Value, kind: &str) -> Option<String> {
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == kind)?;
    Some(found["status"].as_str()?.to_owned())
}
