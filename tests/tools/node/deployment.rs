//! The agent as users deploy it: its image, the manifests of `deploy/`, and what it tells.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use redirector_tests::harness::command::{output, run};
use redirector_tests::harness::image::Image;
use redirector_tests::harness::product;
use redirector_tests::harness::requirements::repository;
use serde_json::{Value, json};

use crate::kubernetes::Kubernetes;
use crate::starts::CONFLIST;

/// The image's name in the manifests.
const IMAGE: &str = "localhost/redirector:0.1.0";
const HELM: &str = include_str!("helm.py");
/// The label of the agent's pods.
pub const LABEL: &str = "app.kubernetes.io/name=redirector";

/// Deploys an overlay of `deploy/kustomize`, and waits until the agent is ready and its plugin installed.
pub fn deploy(kubernetes: &Kubernetes, overlay: &str) -> anyhow::Result<()> {
    import(kubernetes)?;
    kubernetes.machine.sh("mkdir -p /run/redirector")?;
    apply(kubernetes, overlay)?;
    agent(kubernetes)?;
    kubernetes.wait("the plugin in the network's configuration", |kubernetes| {
        let file = kubernetes.machine.outside(Path::new(CONFLIST));
        std::fs::read_to_string(file).ok()?.contains("\"redirector\"").then_some(())
    })
}

pub fn apply(kubernetes: &Kubernetes, overlay: &str) -> anyhow::Result<()> {
    kubernetes.apply(&for_this_version(&build(overlay)?))
}

/// Takes an overlay away again, and waits until it is gone.
pub fn remove(kubernetes: &Kubernetes, overlay: &str) -> anyhow::Result<()> {
    let manifests = for_this_version(&build(overlay)?);
    kubernetes.kubectl(&["delete", "--wait=true", "--ignore-not-found", "--filename=-"], &manifests).map(drop)
}

/// The agent without its plugin: what is in the network's configuration is nobody's then.
pub fn without_plugin(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    let namespace = "--namespace=redirector-system";
    let mut agent = kubernetes.get(&[namespace, "daemonset", "redirector"])?;
    let arguments = &mut agent["spec"]["template"]["spec"]["containers"][0]["args"];
    arguments
        .as_array_mut()
        .context("arguments")?
        // --daemonset is about the plugin, too, and refused without.
        .retain(|word| {
            word.as_str().is_some_and(|word| !["--cni-", "--daemonset"].iter().any(|it| word.starts_with(it)))
        });
    let patch =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "agent", "args": arguments}]}}}});
    kubernetes
        .kubectl(&[namespace, "patch", "daemonset", "redirector", "--patch", &patch.to_string()], "")?;
    let status = [namespace, "rollout", "status", "daemonset/redirector", "--timeout=120s"];
    kubernetes.kubectl(&status, "")?;
    self::agent(kubernetes).map(drop)
}

/// `helm install` and `helm uninstall` of the chart, by Helm's own library; what Helm says of the release.
pub fn helm(kubernetes: &Kubernetes, verb: &str) -> anyhow::Result<Value> {
    let python =
        std::env::var_os("REDIRECTOR_HELM_PYTHON").context("REDIRECTOR_HELM_PYTHON names no program")?;
    let values = json!({"image": {"pullPolicy": "Never"}, "log": {"level": "debug"}});
    let mut command = kubernetes.machine.command(python);
    command.args(["-c", HELM, verb]).arg(repository().join("deploy/helm/redirector")).arg(values.to_string());
    let said = run(&mut command, "")?;
    serde_json::from_str(&said).with_context(|| format!("helm said: {said}"))
}

/// The API server takes every overlay as it is.
pub fn all_accepted(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    for overlay in ["base", "overlays/istio", "overlays/istio-cni", "overlays/standalone", "uninstall"] {
        let manifests = for_this_version(&build(overlay)?);
        kubernetes
            .kubectl(&["apply", "--dry-run=server", "--filename=-"], &manifests)
            .with_context(|| overlay.to_owned())?;
    }
    Ok(())
}

/// The image of `cargo xtask dist`, if there is one (`REDIRECTOR_IMAGE`); else one of the binary under test.
fn import(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    if let Some(archive) = std::env::var_os("REDIRECTOR_IMAGE") {
        return kubernetes.containerd.import_archive(&kubernetes.machine, Path::new(&archive));
    }
    let image = Image { name: IMAGE.into(), files: Vec::new(), entrypoint: vec!["/redirector".into()] };
    kubernetes.containerd.import(&kubernetes.machine, &image.with(&product::binary(), "/redirector")?)
}

/// The output of kustomize for an overlay.
pub fn build(overlay: &str) -> anyhow::Result<String> {
    let kustomize = std::env::var_os("REDIRECTOR_KUSTOMIZE").map(PathBuf::from);
    let directory = repository().join("deploy/kustomize").join(overlay);
    run(
        Command::new(kustomize.context("REDIRECTOR_KUSTOMIZE names no program")?).arg("build").arg(directory),
        "",
    )
}

/// Kubernetes 1.20 has no surge for DaemonSets (1.22), and insists on one that may be unavailable.
fn for_this_version(manifests: &str) -> String {
    manifests.replace("      maxSurge: 1\n", "").replace("maxUnavailable: 0", "maxUnavailable: 1")
}

/// The agent's pod, once it is ready.
pub fn agent(kubernetes: &Kubernetes) -> anyhow::Result<Value> {
    let found = kubernetes.ready(LABEL, 1);
    let mut pods = found.with_context(|| format!("the agent says:\n{}", log(kubernetes)))?;
    pods.pop().context("a pod")
}

/// The agent's log.
pub fn log(kubernetes: &Kubernetes) -> String {
    let selector = format!("--selector={LABEL}");
    let arguments = ["logs", "--namespace=redirector-system", &selector, "--tail=60", "--prefix=false"];
    kubernetes.kubectl(&arguments, "").unwrap_or_else(|error| error.to_string())
}

/// The pid of the agent's process, inside the machine.
pub fn pid(kubernetes: &Kubernetes) -> anyhow::Result<u32> {
    let pids = kubernetes.machine.sh("grep -lsa '^/redirector.agent' /proc/[0-9]*/cmdline | cut -d/ -f3")?;
    let pids: Vec<u32> = pids.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    ensure!(pids.len() == 1, "processes of the agent: {pids:?}");
    Ok(pids[0])
}

/// A value of `/metrics`, summed over labels that contain `label`.
pub fn metric(kubernetes: &Kubernetes, name: &str, label: &str) -> anyhow::Result<f64> {
    let metrics = kubernetes.machine.sh("curl -sf http://127.0.0.1:9464/metrics")?;
    let values = metrics.lines().filter(|line| line.starts_with(name) && line.contains(label));
    Ok(values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

/// Names of the instances on the node, by the command line.
pub fn instances(kubernetes: &Kubernetes) -> anyhow::Result<Vec<String>> {
    let mut command = kubernetes.machine.command(product::binary());
    // It ends with 1 where something is wrong with one of them.
    let list = output(command.args(["list", "--output", "json"]), "")?;
    let list: Value = serde_json::from_slice(&list.stdout)
        .with_context(|| String::from_utf8_lossy(&list.stderr).into_owned())?;
    let names = list.as_array().context("a list")?.iter().filter_map(|instance| instance["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// The distribution's Prometheus scrapes the agent and takes the chart's alerts, of which none fires.
pub fn scraped(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    let program =
        std::env::var_os("REDIRECTOR_PROMETHEUS").context("REDIRECTOR_PROMETHEUS names no program")?;
    let config = json!({
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [repository().join("deploy/helm/redirector/files/alerts.yaml")],
        "scrape_configs": [{"job_name": "redirector", "static_configs": [{"targets": ["127.0.0.1:9464"]}]}],
    });
    kubernetes.machine.write("/run/prometheus.yaml", &config.to_string())?;
    let arguments = [
        "--config.file=/run/prometheus.yaml",
        "--storage.tsdb.path=/run/prometheus",
        "--web.listen-address=127.0.0.1:9099",
    ];
    let _prometheus = kubernetes.machine.daemon(program, &arguments)?;
    let get = |path: &str| -> Option<Value> {
        let text = kubernetes.machine.sh(&format!("curl -sf 'http://127.0.0.1:9099/api/v1/{path}'")).ok()?;
        serde_json::from_str(&text).ok()
    };
    kubernetes.wait("the plugin's gauge in Prometheus", |_| {
        let found = get("query?query=redirector_plugin_installed")?;
        (found["data"]["result"][0]["value"][1] == "1").then_some(())
    })?;
    kubernetes.wait("the alerts to be evaluated, and quiet", |_| {
        let rules = get("rules?type=alert")?["data"]["groups"][0]["rules"].as_array()?.clone();
        let quiet = rules.iter().all(|rule| rule["health"] == "ok" && rule["state"] == "inactive");
        (rules.len() >= 8 && quiet).then_some(())
    })
}
