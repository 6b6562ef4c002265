//! A real Kubernetes API server with its etcd, alone in a network namespace: no kubelet, so that pods are what a test
//! says they are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::command::run;
use crate::harness::names;
use crate::harness::process::Daemon;
use crate::harness::retry;
use crate::harness::world::netns::Netns;

/// A role with nothing but what the agent needs (docs/agent.md).
const ROLE: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: redirector}
rules:
  - {apiGroups: [""], resources: [pods], verbs: [get, list, watch]}
  - {apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: redirector}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: redirector}
subjects: [{kind: User, name: agent, apiGroup: rbac.authorization.k8s.io}]
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
"#;

/// A running API server; it ends on drop, with everything it knows.
pub struct ApiServer {
    server: Option<Daemon>,
    _etcd: Daemon,
    home: TempDir,
    binaries: PathBuf,
    /// Its namespace, in which it is at 127.0.0.1:6443.
    pub netns: Netns,
}

impl ApiServer {
    /// Starts it, with the agent's role and the namespace `shop`.
    pub fn start(binaries: &Path) -> anyhow::Result<Self> {
        let netns = Netns::new(&format!("{}-api", names::unique()))?;
        let home = tempfile::Builder::new().prefix("redirtest-api").tempdir()?;
        let tokens = "admin-token,admin,admin,system:masters\nagent-token,agent,agent\n";
        std::fs::write(home.path().join("tokens.csv"), tokens)?;
        run(
            Command::new("openssl").args(["genrsa", "-out"]).arg(home.path().join("sa.key")).arg("2048"),
            "",
        )?;
        let mut etcd = netns.command("etcd");
        etcd.arg("--data-dir").arg(home.path().join("etcd")).args(["--unsafe-no-fsync", "--log-level=error"]);
        let etcd = Daemon::start("etcd", &mut etcd)?;
        let mut this = Self { server: None, _etcd: etcd, home, binaries: binaries.to_owned(), netns };
        for user in ["admin", "agent"] {
            std::fs::write(this.kubeconfig(user), kubeconfig(user))?;
        }
        this.resume()?;
        retry::until("the role to be made", || this.kubectl(&["apply", "-f", "-"], ROLE).ok())?;
        Ok(this)
    }

    /// Ends the server; etcd keeps what it knows.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// Starts the server again.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        let home = self.home.path().display();
        let mut command = self.netns.command(self.binaries.join("kube-apiserver"));
        command.args([
            "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=127.0.0.1",
            "--secure-port=6443",
            "--advertise-address=127.0.0.1",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
            "--service-account-issuer=https://kubernetes.default.svc",
            &format!("--cert-dir={home}/certificates"),
            &format!("--token-auth-file={home}/tokens.csv"),
            &format!("--service-account-key-file={home}/sa.key"),
            &format!("--service-account-signing-key-file={home}/sa.key"),
        ]);
        self.server = Some(Daemon::start("kube-apiserver", &mut command)?);
        // It takes several seconds on a machine that does other things, too.
        let ready = || self.kubectl(&["get", "--raw=/readyz"], "").ok();
        let again = || retry::until("the API server to be ready", ready);
        again().or_else(|_| again()).or_else(|_| again()).map(drop)
    }

    /// The configuration by which a user (`admin`, `agent`) reaches it.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.home.path().join(format!("{user}.conf"))
    }

    /// `kubectl` as admin.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let mut command = self.netns.command(self.binaries.join("kubectl"));
        command.arg("--kubeconfig").arg(self.kubeconfig("admin")).arg("--request-timeout=5s").args(arguments);
        run(&mut command, input)
    }

    /// Makes a DaemonSet of the namespace `shop`, with the role that its agent has for it.
    pub fn make_daemonset(&self, name: &str) -> anyhow::Result<()> {
        let labels = json!({ "app": name });
        let metadata = json!({ "namespace": "shop", "name": name });
        let rbac = "rbac.authorization.k8s.io";
        let objects = [
            json!({
                "apiVersion": "apps/v1",
                "kind": "DaemonSet",
                "metadata": metadata,
                "spec": { "selector": { "matchLabels": labels }, "template": {
                    "metadata": { "labels": labels },
                    "spec": { "containers": [{ "name": "agent", "image": "x" }] },
                } },
            }),
            json!({
                "apiVersion": format!("{rbac}/v1"),
                "kind": "Role",
                "metadata": metadata,
                "rules": [{
                    "apiGroups": ["apps"], "resources": ["daemonsets"], "resourceNames": [name], "verbs": ["get", "watch"],
                }],
            }),
            json!({
                "apiVersion": format!("{rbac}/v1"),
                "kind": "RoleBinding",
                "metadata": metadata,
                "roleRef": { "apiGroup": rbac, "kind": "Role", "name": name },
                "subjects": [{ "kind": "User", "name": "agent", "apiGroup": rbac }],
            }),
        ];
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        self.kubectl(&["apply", "-f", "-"], &list.to_string()).map(drop)
    }

    /// Deletes objects of the namespace `shop`, and waits for none to be gone.
    pub fn delete(&self, what: &[&str]) -> anyhow::Result<()> {
        self.kubectl(&[&["-n", "shop", "delete", "--wait=false"], what].concat(), "").map(drop)
    }

    /// Makes a pod on a node; the uid that the server gives it.
    pub fn create(&self, node: &str, object: &Value) -> anyhow::Result<String> {
        let mut object = object.clone();
        object["spec"]["nodeName"] = node.into();
        let made = self.kubectl(&["create", "--output=json", "-f", "-"], &object.to_string())?;
        let made: Value = serde_json::from_str(&made)?;
        Ok(made["metadata"]["uid"].as_str().context("a uid")?.to_owned())
    }

    /// Sets (or, with `None`, removes) an annotation of a pod of the namespace `shop`.
    pub fn annotate(&self, pod: &str, key: &str, value: Option<&str>) -> anyhow::Result<()> {
        let patch = json!({ "metadata": { "annotations": { key: value } } }).to_string();
        self.kubectl(&["-n", "shop", "patch", "pod", pod, "--type=merge", "-p", &patch], "").map(drop)
    }

    /// The messages of the warnings about a pod of the namespace `shop`.
    pub fn warnings(&self, pod: &str) -> anyhow::Result<Vec<String>> {
        let selector = format!("--field-selector=type=Warning,involvedObject.name={pod}");
        let list = self.kubectl(&["-n", "shop", "get", "events", "--output=json", &selector], "")?;
        let list: Value = serde_json::from_str(&list)?;
        let events = list["items"].as_array().context("a list")?.iter();
        Ok(events.filter_map(|event| event["message"].as_str().map(str::to_owned)).collect())
    }
}

fn kubeconfig(user: &str) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "c", "cluster": { "server": "https://127.0.0.1:6443", "insecure-skip-tls-verify": true } }],
        "users": [{ "name": "u", "user": { "token": format!("{user}-token") } }],
        "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
        "current-context": "x",
    })
    .to_string()
}
