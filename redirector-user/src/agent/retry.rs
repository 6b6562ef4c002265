//! What fails, and when it is tried again.

use super::{Agent, lock};
use crate::base::error::Error;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// By what they are about.
pub(super) type Failures = Mutex<HashMap<String, Failure>>;

pub(super) struct Failure {
    times: u32,
    next: Instant,
    text: String,
}

impl Agent {
    /// Something has failed: said when it is new (then true), tried again later each time.
    pub(super) fn failed(&self, about: &str, reason: &'static str, error: &Error) -> bool {
        self.remember_failure(about, reason, error, |times| Duration::from_millis(500 << times.min(7)))
    }

    /// What somebody asked for has failed, who tries again himself: remembered, not to be told each time.
    pub(super) fn refused(&self, about: &str, reason: &'static str, error: &Error) -> bool {
        self.remember_failure(about, reason, error, |_| Duration::from_secs(600))
    }

    /// `wait`: how long, after so many times.
    fn remember_failure(
        &self,
        about: &str,
        reason: &'static str,
        error: &Error,
        wait: impl Fn(u32) -> Duration,
    ) -> bool {
        self.metrics.error(reason);
        let text = error.on_command_line();
        let mut failures = lock(&self.memory.failures);
        let times = failures.get(about).map_or(0, |failure| failure.times) + 1;
        let new = failures.get(about).is_none_or(|failure| failure.text != text);
        if new {
            tracing::error!(about, reason, "{text}");
        }
        failures.insert(about.to_owned(), Failure { times, next: Instant::now() + wait(times), text });
        new
    }

    pub(super) fn fine(&self, about: &str) {
        if lock(&self.memory.failures).remove(about).is_some() {
            tracing::info!(about, "works again");
        }
    }

    pub(super) fn is_failing(&self, about: &str) -> bool {
        lock(&self.memory.failures).contains_key(about)
    }

    pub(super) fn is_too_early(&self, about: &str) -> bool {
        lock(&self.memory.failures).get(about).is_some_and(|failure| failure.next > Instant::now())
    }

    /// What was due when a pass began, and has not failed again in it, is gone or will be told anew.
    pub(super) fn forget_what_was_due(&self, begin: Instant) {
        lock(&self.memory.failures).retain(|_, failure| failure.next > begin);
    }

    pub(super) fn retry_in(&self) -> Option<Duration> {
        let failures = lock(&self.memory.failures);
        let next = failures.values().map(|failure| failure.next).min()?;
        Some(next.saturating_duration_since(Instant::now()).max(Duration::from_millis(100)))
    }
}
