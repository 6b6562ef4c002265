//! What `redirector status` and `verify` say of a broken set-up.

use anyhow::{Context, ensure};
use serde_json::Value;

use super::exit;
use crate::harness::probe::serve::Listen;
use crate::harness::product::bpffs::Bpffs;
use crate::harness::requirements::require_root;
use crate::harness::server::{Server, proxy_listeners};
use crate::harness::world::{PROXY, World};

/// Name of the instance.
pub const NAME: &str = "pod";

/// A pod on a node of its own, and what may be broken in it.
pub struct Setup {
    /// The node.
    pub node: Bpffs,
    /// The pod's world.
    pub world: World,
}

impl Setup {
    /// None without root.
    ///
    /// # Errors
    /// When the machine does not let us.
    pub fn new() -> anyhow::Result<Option<Self>> {
        if !require_root() {
            return Ok(None);
        }
        Ok(Some(Self { node: Bpffs::new()?, world: World::new()? }))
    }

    /// Attaches.
    ///
    /// # Errors
    /// When that does not succeed.
    pub fn attach(&self, flags: &[&str]) -> anyhow::Result<()> {
        self.node.attach(self.world.pod(), NAME, flags)?.expect(exit::OK).map(drop)
    }

    /// Starts a proxy as it should be.
    ///
    /// # Errors
    /// When it does not start.
    pub fn proxy(&self) -> anyhow::Result<Server> {
        self.world.pod().serve(PROXY, "proxy", proxy_listeners(1))
    }

    /// Starts a proxy with its listeners changed.
    ///
    /// # Errors
    /// When it does not start.
    pub fn proxy_with(&self, change: impl Fn(&mut Listen)) -> anyhow::Result<Server> {
        let mut listeners = proxy_listeners(1);
        listeners.iter_mut().for_each(change);
        self.world.pod().serve(PROXY, "proxy", listeners)
    }

    /// The findings of `status`, whatever it ends with.
    ///
    /// # Errors
    /// When it prints none, or its exit code is not that of its findings.
    pub fn findings(&self) -> anyhow::Result<Vec<Value>> {
        let run = self.node.run(&["status", NAME])?;
        let answer = run.json()?;
        let findings = answer["instances"][0]["findings"].as_array().cloned().context("findings")?;
        let faulty = findings.iter().any(|finding| finding["level"] == "fault");
        let code = if faulty { exit::FAILED } else { exit::OK };
        ensure!(run.code == Some(code) && answer["ok"] == !faulty, "another exit code: {run:?}");
        Ok(findings)
    }

    /// Requires that `status` says nothing is wrong.
    ///
    /// # Errors
    /// When it finds a fault.
    pub fn expect_well(&self) -> anyhow::Result<Vec<Value>> {
        let findings = self.findings()?;
        let bad = |finding: &&Value| finding["level"] != "notice";
        let bad: Vec<&Value> = findings.iter().filter(bad).collect();
        ensure!(bad.is_empty(), "something is wrong where nothing should be: {bad:#?}");
        Ok(findings)
    }

    /// Requires that `status` names this fault, with these words and a remedy, and ends with 1; and that `verify` fails.
    ///
    /// # Errors
    /// When it does not.
    pub fn expect_fault(&self, kind: &str, words: &[&str]) -> anyhow::Result<Value> {
        let found = self.expect_found(kind, words)?;
        let report = self.node.run(&["verify", NAME, "--timeout", "1"])?.expect(exit::FAILED)?.json()?;
        ensure!(report["ok"] == false && report["health"].to_string().contains(kind), "{report:#}");
        Ok(found)
    }

    /// The same of `status` alone.
    ///
    /// # Errors
    /// When it does not.
    pub fn expect_found(&self, kind: &str, words: &[&str]) -> anyhow::Result<Value> {
        let findings = self.findings()?;
        let is_it = |finding: &&Value| {
            let text = finding.to_string();
            finding["kind"] == kind
                && finding["level"] == "fault"
                && words.iter().all(|word| text.contains(word))
        };
        let found = findings.iter().find(is_it);
        let found = found.with_context(|| format!("no fault {kind} with {words:?}: {findings:#?}"))?.clone();
        let remedy = found["remedy"].as_str().unwrap_or_default();
        ensure!(!remedy.is_empty(), "{kind} has no remedy");
        Ok(found)
    }
}
