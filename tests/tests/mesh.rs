//! The example mesh: weighted routing, a gateway by host name, rewritten prefixes, with real Envoys and no netfilter rule.

use std::process::Command;

use anyhow::ensure;
use redirector_tests::command::{output, run};
use redirector_tests::mesh::Mesh;
use redirector_tests::mesh::measure::Measured;
use redirector_tests::names;
use redirector_tests::privileged::{require_envoy, require_root};
use redirector_tests::redirector::{exit, redirector};

/// Five standard deviations: a right split fails once in two million runs.
const BOUND: f64 = 5.0;
const REQUESTS: u32 = 600;

/// Torn down even when the test fails.
struct Example(String);

impl Example {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh"));
        command.args(["--name", &self.0]).args(arguments);
        command
    }

    fn measured(&self, verb: &str) -> anyhow::Result<Measured> {
        let requests = REQUESTS.to_string();
        Ok(serde_json::from_str(&run(&mut self.command(&[verb, "--json", "--requests", &requests]), "")?)?)
    }

    fn mesh(&self) -> Mesh {
        Mesh::new(&self.0)
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        if let Err(error) = self.mesh().down() {
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

    ensure!(!example.mesh().left()?.is_empty(), "it is up, and nothing of it is found");
    let removed = run(&mut example.command(&["down"]), "")?;
    ensure!(removed.contains("Nothing is left."), "{removed}");
    assert_eq!(example.mesh().left()?, Vec::<String>::new());
    run(&mut example.command(&["down"]), "")?;
    Ok(())
}

fn check(measured: &Measured) -> anyhow::Result<()> {
    for split in [measured.inside, measured.gateway] {
        assert_eq!(split.v1 + split.v2, REQUESTS);
        ensure!(split.deviation() < BOUND, "not 90/10: {split:?}");
    }
    let rewrites: Vec<_> = measured
        .rewrites
        .iter()
        .map(|it| (it.path.as_str(), it.answer.as_str(), it.seen_by_app.as_str()))
        .collect();
    assert_eq!(rewrites, [("/v1", "user service for v1", "/"), ("/v2", "user service for v2", "/")]);
    assert_eq!(measured.other_host, "404");
    assert_eq!(measured.netfilter_rules, 0);
    for (pod, outbound, inbound) in &measured.captured {
        let calls = if pod == "user-app-v2" { u64::from(REQUESTS) } else { 0 };
        ensure!(*outbound >= calls && *inbound > 0, "{pod}: {outbound} outbound, {inbound} inbound");
    }
    Ok(())
}
