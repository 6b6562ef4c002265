//! A pod for a test to attach to, on a bpffs of the test's own.

use serde_json::Value;

use super::bpffs::Bpffs;
use super::objects::expect_untouched;
use super::{Run, exit};
use crate::harness::pair::fixture::{Fixture, Redirection, Setup};
use crate::harness::world::{Pod, SERVICE};

/// The instance's name.
pub const NAME: &str = "pod";

/// A pod with its servers.
pub struct TestPod {
    pub bpffs: Bpffs,
    pub fixture: Fixture,
}

impl TestPod {
    /// One that nobody has attached to.
    pub fn new() -> anyhow::Result<Self> {
        Self::with(&Setup::default())
    }

    pub fn with(setup: &Setup) -> anyhow::Result<Self> {
        Ok(Self { bpffs: Bpffs::new()?, fixture: Fixture::with(Redirection::None, setup)? })
    }

    pub fn attached(flags: &[&str]) -> anyhow::Result<Self> {
        Self::attached_with(&Setup::default(), flags)
    }

    pub fn attached_with(setup: &Setup, flags: &[&str]) -> anyhow::Result<Self> {
        let tested = Self::with(setup)?;
        tested.attach(flags)?;
        Ok(tested)
    }

    pub fn pod(&self) -> &Pod {
        self.fixture.pod()
    }

    pub fn attach(&self, flags: &[&str]) -> anyhow::Result<Run> {
        self.attach_by(&[], flags)?.expect(exit::OK)
    }

    /// `attach` run by another program, whatever its exit code.
    pub fn attach_by(&self, by: &[&str], flags: &[&str]) -> anyhow::Result<Run> {
        self.bpffs.attach_by(by, self.pod(), NAME, flags)
    }

    pub fn refresh(&self) -> anyhow::Result<Run> {
        self.bpffs.run(&["refresh", NAME])?.expect(exit::OK)
    }

    /// `detach`, after which nothing is left.
    pub fn detach(&self) -> anyhow::Result<()> {
        self.bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
        self.expect_nothing()
    }

    pub fn show(&self) -> anyhow::Result<Value> {
        self.bpffs.show(NAME)
    }

    /// How many connections a rule has decided.
    pub fn counter(&self, rule: &str) -> anyhow::Result<u64> {
        counter(&self.show()?, rule)
    }

    /// Where the app's connection to a service ends.
    pub fn connect(&self) -> anyhow::Result<String> {
        self.pod().connect(SERVICE)
    }

    /// Nothing in the bpffs, nothing attached, no `::6`.
    pub fn expect_nothing(&self) -> anyhow::Result<()> {
        self.bpffs.expect_empty()?;
        expect_untouched(self.pod())
    }
}

/// How many connections a rule has decided, as `show` says.
pub fn counter(show: &Value, rule: &str) -> anyhow::Result<u64> {
    let counters = show["counters"].as_array().map_or(&[][..], Vec::as_slice);
    let counter = counters.iter().find(|counter| counter["rule"] == rule);
    let connections = counter.and_then(|counter| counter["connections"].as_u64());
    connections.ok_or_else(|| anyhow::anyhow!("no counter {rule}: {show:#}"))
}
