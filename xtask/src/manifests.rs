//! `cargo xtask manifests`: are the manifests and the chart in `deploy/` what Kubernetes takes?
//!
//! kustomize builds each overlay (Debian's, unpacked into `.cache`), Helm's library lints the chart and renders it, and
//! `kubernetes-validate --strict` compares the results with the schemas of several Kubernetes versions (both from the Python
//! index, in a virtual environment in `.cache`). The chart's README and schema are what its values make them, and Prometheus'
//! promtool tests the alerts. GitHub's workflow files are compared with their schema on the way.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    archive::{Archive, Wanted},
    cmd::Cmd,
    deps, project, python,
};

const OVERLAYS: [&str; 5] =
    ["base", "overlays/istio", "overlays/istio-cni", "overlays/standalone", "uninstall"];
/// The oldest and the newest that the schemas are there for.
const VERSIONS: [&str; 2] = ["1.25", "1.37"];
/// The pod that the tests of native sidecars read.
const NATIVE: &str = "redirector-user/src/policy/tests/native-sidecar.json";
const VALIDATOR: &str = "kubernetes-validate==1.37.0";
const WORKFLOW_VALIDATOR: &str = "check-jsonschema==0.39.0";
const HELM: &str = "helm-sdkpy==0.1.32";
const RENDER: &str = include_str!("chart.py");
const CHART_DOCS: &str = include_str!("chart_docs.py");
const CHART: &str = "deploy/helm/redirector";
const ALERT_TESTS: &str = "deploy/prometheus/alerts.test.yaml";

/// A rendering of the chart.
struct Rendering {
    name: &'static str,
    values: &'static str,
    /// What must be in it.
    words: &'static [&'static str],
}

/// The chart as it is, with each setting the other way, on other platforms, for taking it off, with the operator's objects.
const RENDERINGS: [Rendering; 8] = [
    Rendering {
        name: "defaults",
        values: "{}",
        words: &[
            "  name: redirector\n",
            "--cni-bin-dir=/opt/cni/bin",
            "--daemonset=redirector-system/redirector",
            "resourceNames: [redirector]",
            "redirector:0.1.0",
        ],
    },
    Rendering {
        name: "others",
        values: r#"{"cni": {"enabled": false}, "excludeNamespaces": [], "imagePullSecrets": [{"name": "secret"}],
            "podAnnotations": {"example.org/key": "value"}, "extraCapabilities": ["SYS_RESOURCE"], "extraArgs": ["--resync=30"],
            "image": {"tag": "1", "digest": "sha256:abc"}, "resourceQuota": {"enabled": false}, "fullnameOverride": "other",
            "labels": {"team": "mesh"}, "podLabels": {"tier": "node"}, "env": [{"name": "A", "value": "b"}],
            "affinity": {"nodeAffinity": {}}, "serviceAccountAnnotations": {"a": "b"}, "priorityClassName": "",
            "updateStrategy": {"type": "OnDelete"}, "seLinuxOptions": {"type": "container_runtime_t"}, "http": {"address": "127.0.0.1"}}"#,
        words: &[
            "@sha256:abc",
            "  name: other\n",
            "type: OnDelete",
            "type: container_runtime_t",
            "team: mesh",
            "tier: node",
        ],
    },
    Rendering {
        name: "gke",
        values: r#"{"platform": "gke"}"#,
        words: &[
            "--cni-bin-dir=/home/kubernetes/bin",
            "--cni-conf-dir=/etc/cni/net.d",
            "path: \"/home/kubernetes/bin\"",
        ],
    },
    Rendering {
        name: "k3s",
        values: r#"{"platform": "k3s", "uninstall": true}"#,
        words: &[
            "--bin-dir=/var/lib/rancher/k3s/data/cni",
            "--conf-dir=/var/lib/rancher/k3s/agent/etc/cni/net.d",
            "maxUnavailable: \"100%\"",
        ],
    },
    Rendering {
        name: "openshift",
        values: r#"{"platform": "openshift"}"#,
        words: &["type: spc_t", "/etc/cni/multus/net.d"],
    },
    Rendering {
        name: "talos",
        values: r#"{"platform": "talos", "cni": {"binDir": "/opt/cni/other"}}"#,
        words: &["--cni-bin-dir=/opt/cni/other"],
    },
    Rendering { name: "named", values: r#"{"nameOverride": "net"}"#, words: &["  name: redirector-net\n"] },
    Rendering {
        name: "monitoring",
        values: r#"{"podMonitor": {"enabled": true}, "prometheusRule": {"enabled": true, "labels": {"release": "prom"}},
            "dashboard": {"enabled": true}}"#,
        words: &[
            "kind: PodMonitor",
            "- port: metrics",
            "name: metrics, containerPort: 9464",
            "kind: PrometheusRule",
            "alert: RedirectorPluginNotInstalled",
            "release: prom",
            "grafana_dashboard: \"1\"",
        ],
    },
];
/// Values that the chart's schema refuses.
const REFUSED: [&str; 3] =
    [r#"{"imge": {"tag": "1"}}"#, r#"{"unknownPods": "maybe"}"#, r#"{"cni": {"enabled": "yes"}}"#];
const LINT: &str = "
import asyncio, sys, helm_sdkpy
async def lint():
    found = await helm_sdkpy.Lint(helm_sdkpy.Configuration(namespace='default')).run(sys.argv[1])
    # Severity 1 is a remark (the chart has no icon).
    bad = [message for message in found['Messages'] or [] if message['Severity'] > 1]
    if bad or found['Errors'] or found['TotalChartsLinted'] != 1:
        sys.exit(f'helm lint: {found}')
asyncio.run(lint())
";

/// Checks everything; writes what is made of the chart's values first, if asked to.
pub fn check(write: bool) -> Result<()> {
    let (kustomize, python) = (kustomize()?, python()?);
    workflows(&python)?;
    let built = project::root().join("target/manifests");
    fs::create_dir_all(&built).with_context(|| built.display().to_string())?;
    for overlay in OVERLAYS {
        let manifests = Cmd::new(&kustomize)
            .arg("build")
            .arg(project::root().join("deploy/kustomize").join(overlay))
            .quiet(true)
            .read()
            .with_context(|| format!("deploy/kustomize/{overlay}"))?;
        let file = built.join(format!("{}.yaml", overlay.replace('/', "-")));
        fs::write(&file, manifests)?;
        for version in VERSIONS {
            validate(&python, version, &file)?;
        }
        println!("manifests: {overlay} is valid for Kubernetes {}", VERSIONS.join(" and "));
    }
    chart(&python, &built, write)?;
    alerts()?;
    // It is no recording: no API server of that version runs here. So at least it is what one could send.
    let (_, newest) = VERSIONS.into();
    validate(&python, newest, &project::root().join(NATIVE))?;
    println!("manifests: the tests' pod with a native sidecar is valid for Kubernetes {newest}");
    Ok(())
}

fn chart(python: &Path, built: &Path, write: bool) -> Result<()> {
    let python3 = || Cmd::new(python.join("python3"));
    let chart = project::root().join(CHART);
    let flag = write.then_some("--write");
    python3()
        .args(["-c", CHART_DOCS])
        .arg(&chart)
        .args(flag)
        .quiet(true)
        .run()
        .context("the chart's pages")?;
    python3().args(["-c", LINT]).arg(&chart).quiet(true).run().context("linting the chart")?;
    for Rendering { name, values, words } in RENDERINGS {
        for version in VERSIONS {
            let file = built.join(format!("chart-{name}-{version}.yaml"));
            let rendered = render(python, version, values)?;
            let missing: Vec<_> = words.iter().filter(|word| !rendered.contains(**word)).collect();
            ensure!(missing.is_empty(), "the chart with {values} has no {missing:?}: {rendered}");
            // The operator's kinds are in no schema of Kubernetes.
            let known: Vec<&str> = rendered
                .split("\n---\n")
                .filter(|object| !object.contains("monitoring.coreos.com"))
                .collect();
            fs::write(&file, known.join("\n---\n"))?;
            validate(python, version, &file)?;
        }
    }
    for values in REFUSED {
        ensure!(render(python, VERSIONS[0], values).is_err(), "the chart takes {values}");
    }
    println!(
        "manifests: the chart passes helm lint, and {} renderings of it are valid for Kubernetes {}",
        RENDERINGS.len(),
        VERSIONS.join(" and ")
    );
    Ok(())
}

/// Prometheus' own tool reads the alerts, and tests each.
fn alerts() -> Result<()> {
    let promtool = prometheus()?.join("promtool");
    let rules = project::root().join(CHART).join("files/alerts.yaml");
    Cmd::new(&promtool).args(["check", "rules"]).arg(rules).quiet(true).run()?;
    Cmd::new(&promtool).args(["test", "rules"]).arg(project::root().join(ALERT_TESTS)).quiet(true).run()?;
    println!("manifests: promtool takes the alerts, and each fires in its test");
    Ok(())
}

/// The directory of Debian's Prometheus.
pub fn prometheus() -> Result<PathBuf> {
    Ok(unpacked("prometheus", "bookworm")?.join("usr/bin"))
}

/// GitHub's workflow files, and the forms for issues, against the schemas that check-jsonschema ships.
fn workflows(python: &Path) -> Result<()> {
    let root = project::root().join(".github");
    for (schema, directory) in [("github-workflows", "workflows"), ("github-issue-forms", "ISSUE_TEMPLATE")] {
        let mut files = Vec::new();
        for entry in fs::read_dir(root.join(directory)).with_context(|| directory.to_owned())? {
            files.push(entry?.path());
        }
        // `config.yml` beside the forms is none.
        files.retain(|file| !file.ends_with("config.yml"));
        Cmd::new(python.join("check-jsonschema"))
            .arg(format!("--builtin-schema=vendor.{schema}"))
            .args(files)
            .quiet(true)
            .run()?;
    }
    println!("manifests: the workflows and the forms for issues are valid");
    Ok(())
}

/// What `helm install` would send to an API server of this version.
fn render(python: &Path, version: &str, values: &str) -> Result<String> {
    Cmd::new(python.join("python3"))
        .args(["-c", RENDER, version])
        .arg(project::root().join("deploy/helm/redirector"))
        .arg(values)
        .quiet(true)
        .read()
        .with_context(|| format!("rendering the chart for Kubernetes {version}"))
}

fn validate(python: &Path, version: &str, file: &Path) -> Result<()> {
    Cmd::new(python.join("kubernetes-validate"))
        .args(["--strict", "--kubernetes-version", version])
        .arg(file)
        .quiet(true)
        .run()
}

/// Debian's kustomize of a newer suite: bookworm has none.
pub fn kustomize() -> Result<PathBuf> {
    Ok(unpacked("kustomize", "trixie")?.join("usr/bin/kustomize"))
}

/// A package of Debian's, unpacked into `.cache`.
fn unpacked(package: &str, suite: &str) -> Result<PathBuf> {
    let root = project::cache(package);
    if !root.join("usr/bin").join(package).is_file() {
        let work = project::cache(&format!("{package}.build"));
        let wanted = Wanted { arch: deps::DEBIAN_ARCH, suites: &[("debian", suite)], sources: false };
        Archive::open(&work, wanted)?.unpack(&[package], &root)?;
        fs::remove_dir_all(&work).with_context(|| work.display().to_string())?;
    }
    Ok(root)
}

/// The `bin` directory of the environment with the validators and Helm's library.
pub fn python() -> Result<PathBuf> {
    python::environment("manifests", &[VALIDATOR, WORKFLOW_VALIDATOR, HELM])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chart and the plain manifests are two texts of the same thing.
    #[test]
    fn chart_and_manifests_ask_for_the_same_privileges() {
        let read = |path: &str| fs::read_to_string(project::root().join("deploy").join(path)).unwrap();
        let (plain, chart) =
            (read("kustomize/base/daemonset.yaml"), read("helm/redirector/templates/daemonset.yaml"));
        let chart = chart.replace("{{ range .Values.extraCapabilities }}, {{ . }}{{ end }}", "");
        let line = |text: &str, start: &str| {
            text.lines().map(str::trim).find(|line| line.starts_with(start)).map(str::to_owned)
        };
        for start in ["add: [", "drop: [", "hostPID:", "hostNetwork:"] {
            assert!(line(&plain, start).is_some(), "{start}");
            assert_eq!(line(&plain, start), line(&chart, start));
        }
        // Of both roles.
        let rules = |text: String| -> Vec<String> {
            let text = text.replace("{{ $name }}", "redirector");
            let rules = text.split("\n---\n").filter_map(|object| object.split_once("rules:\n"));
            rules.map(|(_, rules)| rules.trim_end().to_owned()).collect()
        };
        assert_eq!(rules(read("kustomize/base/rbac.yaml")).len(), 2);
        assert_eq!(
            rules(read("kustomize/base/rbac.yaml")),
            rules(read("helm/redirector/templates/rbac.yaml"))
        );
        // And the systemd unit.
        let unit = read("systemd/redirector-agent.service");
        let listed = line(&plain, "add: [").unwrap();
        let listed = listed.trim_start_matches("add: [").trim_end_matches(']');
        let wanted: Vec<String> = listed.split(", ").map(|name| format!("CAP_{name}")).collect();
        assert_eq!(
            line(&unit, "CapabilityBoundingSet="),
            Some(format!("CapabilityBoundingSet={}", wanted.join(" ")))
        );
    }
}
