//! Whether the agent works (`/healthz`) and has done its first work (`/readyz`).

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// No step of a pass takes longer; this long without one means that something hangs.
const STUCK: Duration = Duration::from_secs(120);

/// How the agent is.
#[derive(Debug)]
pub struct Health {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    standby: bool,
    passed: bool,
    last: Instant,
    resync: Duration,
}

impl Health {
    /// Before the first pass; each is followed by another after `resync` at the latest.
    pub fn new(resync: Duration) -> Self {
        let inner = Inner { standby: false, passed: false, last: Instant::now(), resync };
        Self { inner: Mutex::new(inner) }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Another agent is at work on this node, and this one waits for it to end.
    pub fn standby(&self, standby: bool) {
        self.with(|inner| (inner.standby, inner.last) = (standby, Instant::now()));
    }

    /// A step of a pass is done: the first pass of an agent that comes late has hundreds.
    pub fn working(&self) {
        self.with(|inner| inner.last = Instant::now());
    }

    /// A pass is done.
    pub fn passed(&self) {
        self.with(|inner| (inner.passed, inner.last) = (true, Instant::now()));
    }

    /// `/healthz`.
    pub fn alive(&self) -> Result<&'static str, String> {
        self.with(|inner| match inner.last.elapsed() {
            _ if inner.standby => Ok("standby"),
            since if since > inner.resync + STUCK => {
                Err(format!("nothing was done for {} seconds", since.as_secs()))
            }
            _ => Ok("ok"),
        })
    }

    /// `/readyz`: a rollout must be able to go on while the old agent is at work.
    pub fn ready(&self) -> Result<&'static str, String> {
        self.with(|inner| match (inner.standby, inner.passed) {
            (true, _) => Ok("standby: another agent is at work on this node"),
            (false, false) => Err("the first look at the node is not done".into()),
            (false, true) => Ok("ok"),
        })
    }
}
