//! Failures: each is logged once until its text changes, and retried after a growing pause.

use super::metrics::{Metrics, Reason};
use super::sync::lock;
use crate::base::error::Error;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The runtime repeats a failed ADD by itself; its failure is remembered only in order to be logged once.
const ADD_FAILURE_MEMORY: Duration = Duration::from_secs(600);
const MIN_WAIT: Duration = Duration::from_millis(100);

/// What a failure is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    Node,
    Configuration,
    Pods,
    Plugin,
    ApiServer,
    /// An instance: attach, change, upgrade, detach.
    Instance(String),
    /// The search for an instance's target. The instance may have to be detached meanwhile.
    Target(String),
    /// Following and refreshing an instance.
    Refresh(String),
    /// An ADD that became an instance; passes do not end this failure.
    Add(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("the node"),
            Self::Configuration => f.write_str("the configuration"),
            Self::Pods => f.write_str("the pods"),
            Self::Plugin => f.write_str("the CNI plugin"),
            Self::ApiServer => f.write_str("the API server"),
            Self::Instance(name) => f.write_str(name),
            Self::Target(name) => write!(f, "{name} (target)"),
            Self::Refresh(name) => write!(f, "{name} (follow)"),
            Self::Add(name) => write!(f, "{name} (ADD)"),
        }
    }
}

struct Failure {
    times: u32,
    next: Instant,
    text: String,
}

/// Everything that fails at the moment.
pub struct Failures {
    metrics: Arc<Metrics>,
    all: Mutex<HashMap<Subject, Failure>>,
}

impl Failures {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, all: Mutex::default() }
    }

    /// Records a failure to be retried; true if its text is new.
    pub fn failed(&self, subject: Subject, reason: Reason, error: &Error) -> bool {
        let times = lock(&self.all).get(&subject).map_or(1, |failure| failure.times + 1);
        self.record(subject, reason, error, times, Duration::from_millis(500 << times.min(7)))
    }

    /// Records the failure of a request, which whoever made it repeats; true if its text is new.
    pub fn refused(&self, subject: Subject, reason: Reason, error: &Error) -> bool {
        self.record(subject, reason, error, 1, ADD_FAILURE_MEMORY)
    }

    fn record(&self, subject: Subject, reason: Reason, error: &Error, times: u32, wait: Duration) -> bool {
        self.metrics.error(reason);
        let text = error.on_command_line();
        let mut all = lock(&self.all);
        let is_new = all.get(&subject).is_none_or(|failure| failure.text != text);
        if is_new {
            tracing::error!(about = %subject, reason = reason.name(), "{text}");
        }
        all.insert(subject, Failure { times, next: Instant::now() + wait, text });
        is_new
    }

    /// Ends a failure.
    pub fn succeeded(&self, subject: &Subject) {
        if lock(&self.all).remove(subject).is_some() {
            tracing::info!(about = %subject, "works again");
        }
    }

    pub fn is_too_early(&self, subject: &Subject) -> bool {
        lock(&self.all).get(subject).is_some_and(|failure| failure.next > Instant::now())
    }

    /// Forgets what a pass that began then should have retried and did not meet again.
    pub fn forget_due(&self, begin: Instant) {
        lock(&self.all).retain(|_, failure| failure.next > begin);
    }

    /// How long until the next retry.
    pub fn retry_in(&self) -> Option<Duration> {
        let next = lock(&self.all).values().map(|failure| failure.next).min()?;
        Some(next.saturating_duration_since(Instant::now()).max(MIN_WAIT))
    }
}
