//! The example mesh: weighted routing, a gateway by host name, rewritten prefixes, with real Envoys and no netfilter rule.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::world::cgroup::mount_point;
use serde_json::{Value, json};

/// Five standard deviations: a right split fails once in two million runs.
const MAX_DEVIATION: f64 = 5.0;
const REQUESTS: u32 = 600;

/// Torn down even when the test fails.
struct Example(String);

impl Example {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh"));
        command.args(["--name", &self.0]).args(arguments);
        command
    }

    fn measured(&self, verb: &str) -> anyhow::Result<Value> {
        let requests = REQUESTS.to_string();
        Ok(serde_json::from_str(&run(&mut self.command(&[verb, "--json", "--requests", &requests]), "")?)?)
    }

    /// Namespaces, cgroups, files and instances of the mesh.
    fn left(&self) -> anyhow::Result<Vec<String>> {
        let prefix = format!("redirmesh-{}", self.0);
        let list = redirector(&["list"], &[])?.looked()?.json()?;
        let instances = list.as_array().context("a list")?.iter().filter_map(|one| one["name"].as_str());
        let mut left: Vec<String> = instances.map(str::to_owned).collect();
        for directory in [Path::new("/run/netns"), &mount_point()?, &std::env::temp_dir()] {
            let entries = std::fs::read_dir(directory)?.filter_map(Result::ok);
            left.extend(entries.map(|entry| entry.file_name().to_string_lossy().into_owned()));
        }
        left.retain(|name| name.starts_with(&prefix));
        Ok(left)
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        if let Err(error) = run(&mut self.command(&["down"]), "") {
            eprintln!("clean-up: {error:#}");
        }
    }
}

/// One command starts and measures it, a second removes it; in between it outlives the first, and needs redirector.
#[test]
fn up_measure_down() -> anyhow::Result<()> {
    let (true, Some(_)) = (require_root(), require_envoy()) else { return Ok(()) };
    let example = Example(names::unique());
    check(&example.measured("up")?)?;
    for app in ["user-app-v1", "user-app-v2"] {
        redirector(&["status", &format!("redirmesh-{}-{app}", example.0)], &[])?.expect(exit::OK)?;
    }
    let again = output(&mut example.command(&["up"]), "")?;
    let refusal = String::from_utf8_lossy(&again.stderr).into_owned();
    ensure!(!again.status.success() && refusal.contains("is up already"), "a second one: {refusal}");
    check(&example.measured("measure")?)?;

    // Without redirector the app reaches nobody: no answer above can have come past the sidecar.
    let instance = format!("redirmesh-{}-user-app-v2", example.0);
    redirector(&["detach", "--name", &instance], &[])?.expect(exit::OK)?;
    let without = output(&mut example.command(&["measure", "--json", "--requests", "1"]), "")?;
    let error = String::from_utf8_lossy(&without.stderr).into_owned();
    ensure!(!without.status.success() && error.contains("Failed to connect"), "not captured: {error}");

    ensure!(!example.left()?.is_empty(), "it is up, and nothing of it is found");
    let removed = run(&mut example.command(&["down"]), "")?;
    ensure!(removed.contains("Nothing is left."), "{removed}");
    assert_eq!(example.left()?, Vec::<String>::new());
    run(&mut example.command(&["down"]), "")?;
    Ok(())
}

fn check(measured: &Value) -> anyhow::Result<()> {
    for split in [&measured["inside"], &measured["gateway"]] {
        let [v1, v2] = ["v1", "v2"].map(|version| split[version].as_f64().unwrap_or_default());
        let requests = f64::from(REQUESTS);
        assert_eq!(v1 + v2, requests);
        // Of a binomial distribution with p = 0.1.
        let deviation = (v2 - requests * 0.1).abs() / (requests * 0.1 * 0.9).sqrt();
        ensure!(deviation < MAX_DEVIATION, "not 90/10: {split}");
    }
    let rewrite = |version: &str| json!({"path": format!("/{version}"), "answer": format!("user service for {version}"), "seen_by_app": "/"});
    assert_eq!(measured["rewrites"], json!([rewrite("v1"), rewrite("v2")]));
    assert_eq!(measured["other_host"], "404");
    assert_eq!(measured["netfilter_rules"], 0);
    for captured in measured["captured"].as_array().context("captured connections")? {
        let calls = if captured[0] == "user-app-v2" { u64::from(REQUESTS) } else { 0 };
        let [outbound, inbound] = [1, 2].map(|index| captured[index].as_u64().unwrap_or_default());
        ensure!(outbound >= calls && inbound > 0, "{captured}");
    }
    Ok(())
}
