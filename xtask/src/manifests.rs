//! `cargo xtask manifests`: are the manifests and the chart in `deploy/` what Kubernetes takes?
//!
//! kustomize builds each overlay (Debian's, unpacked into `.cache`), Helm's library lints the chart and renders it, and
//! `kubernetes-validate --strict` compares the results with the schemas of several Kubernetes versions (both from the Python
//! index, in a virtual environment in `.cache`). GitHub's workflow files are compared with their schema on the way.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

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
/// Values of the chart by name: as it is, and with each setting the other way.
const VALUES: [(&str, &str); 2] = [
    ("defaults", "{}"),
    (
        "others",
        r#"{"cni": {"enabled": false}, "excludeNamespaces": [], "imagePullSecrets": [{"name": "secret"}],
            "podAnnotations": {"example.org/key": "value"}, "extraCapabilities": ["SYS_RESOURCE"], "extraArgs": ["--resync=30"], "image": {"tag": "1"},
            "resourceQuota": {"enabled": false}}"#,
    ),
];
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

/// Checks everything.
pub fn check() -> Result<()> {
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
    Cmd::new(python.join("python3"))
        .args(["-c", LINT])
        .arg(project::root().join("deploy/helm/redirector"))
        .quiet(true)
        .run()
        .context("linting the chart")?;
    for (name, values) in VALUES {
        for version in VERSIONS {
            let file = built.join(format!("chart-{name}-{version}.yaml"));
            fs::write(&file, render(&python, version, values)?)?;
            validate(&python, version, &file)?;
        }
    }
    // It is no recording: no API server of that version runs here. So at least it is what one could send.
    let (_, newest) = VERSIONS.into();
    validate(&python, newest, &project::root().join(NATIVE))?;
    println!("manifests: the tests' pod with a native sidecar is valid for Kubernetes {newest}");
    println!(
        "manifests: the chart passes helm lint, and what helm makes of it is valid for Kubernetes {}",
        VERSIONS.join(" and ")
    );
    Ok(())
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
    let root = project::cache("kustomize");
    let program = root.join("usr/bin/kustomize");
    if !program.is_file() {
        let work = project::cache("kustomize.build");
        let wanted = Wanted { arch: deps::DEBIAN_ARCH, suites: &[("debian", "trixie")], sources: false };
        Archive::open(&work, wanted)?.unpack(&["kustomize"], &root)?;
        fs::remove_dir_all(&work).with_context(|| work.display().to_string())?;
    }
    Ok(program)
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
        for start in ["add: [", "drop: [", "hostPID:", "hostNetwork:", "maxSurge:", "maxUnavailable:"] {
            assert!(line(&plain, start).is_some(), "{start}");
            assert_eq!(line(&plain, start), line(&chart, start));
        }
        let rules = |text: String| -> String {
            let start = text.find("rules:").unwrap();
            let end = text[start..].find("---").unwrap();
            text[start..start + end].to_owned()
        };
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
