//! Whether the agent works (`/healthz`) and can do its work (`/readyz`).

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::sync::lock;

/// No step of a pass takes longer; this long without one means that something hangs.
const HANG_TIMEOUT: Duration = Duration::from_secs(120);

/// Something that readiness depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    Bpffs,
    FirstPass,
    Socket,
    PodList,
    Plugin,
}

#[derive(Debug)]
pub struct Health {
    resync: Duration,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Another agent works; whether this one could take over, or why not.
    standby: Option<Result<(), String>>,
    last_step: Instant,
    /// Unmet conditions, and why.
    unmet: BTreeMap<Condition, String>,
}

impl Health {
    /// Before the first pass. Another pass follows each after `resync` at the latest.
    pub fn new(resync: Duration) -> Self {
        let unmet =
            BTreeMap::from([(Condition::FirstPass, "the first look at the node is not done".to_owned())]);
        Self { resync, inner: Mutex::new(Inner { standby: None, last_step: Instant::now(), unmet }) }
    }

    /// Another agent works on this node, and this one waits for it to end; None: it works itself.
    pub fn standby(&self, standby: Option<Result<(), String>>) {
        let mut inner = lock(&self.inner);
        (inner.standby, inner.last_step) = (standby, Instant::now());
    }

    /// A step of a pass is done. The first pass of an agent that comes late has hundreds.
    pub fn step_done(&self) {
        lock(&self.inner).last_step = Instant::now();
    }

    pub fn met(&self, condition: Condition) {
        lock(&self.inner).unmet.remove(&condition);
    }

    pub fn unmet(&self, condition: Condition, why: String) {
        lock(&self.inner).unmet.insert(condition, why);
    }

    /// `/healthz`.
    pub fn alive(&self) -> Result<&'static str, String> {
        let inner = lock(&self.inner);
        match inner.last_step.elapsed() {
            _ if inner.standby.is_some() => Ok("standby"),
            since if since > self.resync + HANG_TIMEOUT => {
                Err(format!("nothing was done for {} seconds", since.as_secs()))
            }
            _ => Ok("ok"),
        }
    }

    /// `/readyz`. A standby that could take over is ready, or a rollout would wait for the old agent for ever.
    pub fn ready(&self) -> Result<&'static str, String> {
        let inner = lock(&self.inner);
        match (&inner.standby, inner.unmet.values().next()) {
            (Some(Ok(())), _) => Ok("standby: another agent is at work on this node"),
            (Some(Err(why)), _) => Err(format!("standby, but it could not take over: {why}")),
            (None, Some(why)) => Err(why.clone()),
            (None, None) => Ok("ok"),
        }
    }
}
