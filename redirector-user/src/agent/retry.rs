//! Failures: each is logged once until its text changes, and retried after a growing pause.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::metrics::{Metrics, Reason};
use super::sync::lock;
use crate::base::error::Error;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);
const MIN_WAIT: Duration = Duration::from_millis(100);

/// The pause after so many failures in a row: doubled each time, up to 30 seconds. Up to half of it is left out by
/// chance, so that the agents of a cluster do not retry together.
pub fn pause(times: u32, first: Duration) -> Duration {
    let full = first.saturating_mul(1 << times.saturating_sub(1).min(16)).min(MAX_PAUSE);
    let chance = RandomState::new().hash_one(times) % 1000;
    full - full.mul_f64(chance as f64 / 2000.0)
}

/// What a failure is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    Node,
    Configuration,
    Pods,
    /// A file of `--pods`.
    PodFile(PathBuf),
    Plugin,
    ApiServer,
    /// An instance: attach, change, upgrade, detach.
    Instance(String),
    /// The search for an instance's target. The instance may have to be detached meanwhile.
    Target(String),
    /// Following and refreshing an instance.
    Refresh(String),
    /// The agent's socket.
    Socket,
}

impl Subject {
    fn instance(&self) -> Option<&str> {
        match self {
            Self::Instance(name) | Self::Target(name) | Self::Refresh(name) => Some(name),
            _ => None,
        }
    }

    /// Whether a pass that does not meet it any more has no reason to retry it.
    fn may_vanish(&self) -> bool {
        matches!(self, Self::Instance(_) | Self::Target(_) | Self::Refresh(_) | Self::PodFile(_))
    }

    /// Whether passes retry it.
    fn is_of_passes(&self) -> bool {
        !matches!(self, Self::ApiServer | Self::Socket)
    }
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
            Self::PodFile(path) => write!(f, "{}", path.display()),
            Self::Socket => f.write_str("the agent's socket"),
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
    /// The pods of instances, for the log.
    pods: Mutex<HashMap<String, String>>,
}

impl Failures {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, all: Mutex::default(), pods: Mutex::default() }
    }

    /// Takes the pods of instances, which the log names.
    pub fn name_pods(&self, pods: HashMap<String, String>) {
        *lock(&self.pods) = pods;
    }

    /// Records a failure to be retried; true if its text is new.
    pub fn failed(&self, subject: Subject, reason: Reason, error: &Error) -> bool {
        self.metrics.error(reason);
        let text = error.on_command_line();
        let mut all = lock(&self.all);
        let times = all.get(&subject).map_or(1, |failure| failure.times + 1);
        let is_new = all.get(&subject).is_none_or(|failure| failure.text != text);
        if is_new {
            let pod = subject.instance().and_then(|name| lock(&self.pods).get(name).cloned());
            tracing::error!(about = %subject, pod, reason = reason.name(), "{text}");
        }
        all.insert(subject, Failure { times, next: Instant::now() + pause(times, FIRST_PAUSE), text });
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
        lock(&self.all).retain(|subject, failure| !subject.may_vanish() || failure.next > begin);
    }

    /// How long until the next retry.
    pub fn retry_in(&self) -> Option<Duration> {
        let all = lock(&self.all);
        let of_passes = all.iter().filter(|(subject, _)| subject.is_of_passes());
        let next = of_passes.map(|(_, failure)| failure.next).min()?;
        Some(next.saturating_duration_since(Instant::now()).max(MIN_WAIT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_by_chance_up_to_30_seconds() {
        for (times, full) in [(1, 1), (2, 2), (5, 16), (6, 30), (u32::MAX, 30)] {
            let pauses: Vec<Duration> = (0..50).map(|_| pause(times, FIRST_PAUSE)).collect();
            let full = Duration::from_secs(full);
            assert!(pauses.iter().all(|pause| (full / 2..=full).contains(pause)), "{times}: {pauses:?}");
            assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{times}");
        }
    }

    #[test]
    fn what_passes_do_not_retry_is_kept_and_wakes_none() {
        let failures = Failures::new(Arc::default());
        let error = Error::failed("away");
        assert!(failures.failed(Subject::ApiServer, Reason::Api, &error));
        assert_eq!(failures.retry_in(), None);
        failures.failed(Subject::Target("a".into()), Reason::Target, &error);
        assert!(failures.retry_in().is_some());
        let later = Instant::now() + MAX_PAUSE;
        failures.forget_due(later);
        assert!(!failures.failed(Subject::ApiServer, Reason::Api, &error), "it was never told that it works");
        assert!(failures.failed(Subject::Target("a".into()), Reason::Target, &error));
    }
}
